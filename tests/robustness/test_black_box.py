"""Black boxes: which scores are attacked, under whose name, and what the estimators refuse to answer."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.svm import SVC

from ntkrobust_sk import (
    PGD,
    AutoAttack,
    Box,
    EmpiricalNTKClassifier,
    Square,
    perturb,
    robust_accuracy,
    robustness_report,
    transfer_matrix,
)
from ntkrobust_sk.robustness.target import attackable


def blobs(k):
    X, y = make_blobs(300, centers=k, n_features=4, cluster_std=2.5, random_state=1)
    return np.clip((X - X.min(0)) / (X.max(0) - X.min(0)), 0, 1), y


X, Y = blobs(3)
FOREST = RandomForestClassifier(5, random_state=0).fit(X, Y)


@pytest.mark.slow
@pytest.mark.parametrize("k, expected", [(3, 0.947), (4, 0.88)])
def test_scores_of_pairs_of_classes_are_attacked_as_those_of_classes_are(k, expected):
    X, y = blobs(k)
    first = QuantileTransformer(n_quantiles=50)
    found = [
        robust_accuracy(make_pipeline(first, SVC(decision_function_shape=s)).fit(X, y), X, y, Square(0.05, 300))
        for s in ("ovr", "ovo")
    ]
    assert found[0] == found[1] == pytest.approx(expected, abs=5e-4)


class Threshold(RandomForestClassifier):
    """Answers the second class from a probability of 0.2 on."""

    def predict(self, X):
        return self.classes_[(self.predict_proba(X)[:, 1] > 0.2).astype(int)]


class Turned(RandomForestClassifier):
    """Probabilities in another order than that of the classes."""

    def predict(self, X):
        return self.classes_[super().predict_proba(X).argmax(1)]

    def predict_proba(self, X):
        return np.roll(super().predict_proba(X), 1, axis=1)


class Undefined(Turned):
    """Probabilities that are no numbers."""

    def predict_proba(self, X):
        return np.full((len(X), 3), np.nan)


@pytest.mark.slow
@pytest.mark.parametrize("kind, note", [(Turned, "answers alone"), (Undefined, "answers alone")])
def test_scores_that_do_not_decide_the_answers_are_not_used(kind, note):
    model = kind(5, random_state=0).fit(X, Y)
    with pytest.warns(UserWarning, match=note):
        score = robust_accuracy(model, X, Y, Square(0.1, 100))
    assert score < model.score(X, Y) - 0.01
    box = attackable(model, X, Y).box
    assert (box.scores(X).argmax(1) == model.predict(X)).all()


@pytest.mark.slow
def test_scores_with_a_threshold_of_their_own_are_lifted_to_the_answers():
    y = (Y == 0).astype(int)
    model = Threshold(20, max_depth=2, random_state=0).fit(X, y)
    box = attackable(model, X, y).box
    assert (box.scores(X).argmax(1) == model.predict(X)).all()
    with pytest.warns(UserWarning, match="put above the others"):
        assert robust_accuracy(model, X, y, Square(0.1, 100)) < model.score(X, y)


@pytest.mark.slow
def test_a_classifier_without_scores_is_attacked_by_its_answers():
    model = VotingClassifier([("a", FOREST), ("b", LogisticRegression())]).fit(X, Y)
    with pytest.warns(UserWarning, match="neither decision_function nor predict_proba"):
        assert robust_accuracy(model, X, Y, Square(0.1, 100)) < model.score(X, Y)


def test_an_error_of_the_estimator_is_raised_as_it_is():
    class Failing(RandomForestClassifier):
        def predict_proba(self, X):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked > 3:
                raise OSError("the server is gone")
            return super().predict_proba(X)

    with pytest.raises(OSError, match="the server is gone"):
        robust_accuracy(Failing(5).fit(X, Y), X, Y, Square(0.1, 10))


# Attacks under their own names


def test_an_own_attack_that_needs_no_gradients_runs_as_it_is():
    def towards_the_middle(model, x, y, *, key):
        return x + 0.1 * np.sign(0.5 - x)

    with pytest.raises(TypeError, match="needs_gradients = False"):
        robust_accuracy(FOREST, X, Y, towards_the_middle)
    towards_the_middle.needs_gradients = False
    expected = FOREST.score((X + np.float64(0.1) * np.sign(0.5 - X)), Y)
    assert robust_accuracy(FOREST, X, Y, towards_the_middle) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:there is no differentiable form")
def test_tables_name_the_attack_that_has_run(monkeypatch):
    monkeypatch.setattr("ntkrobust_sk.robustness.target.QUERIES", 30)
    found = robustness_report(FOREST, X, Y, 0.05, attacks=[PGD(0.1), AutoAttack(0.1), Square(0.1, 20)])
    assert found.names == ("Square", "Square instead of PGD, AutoAttack")
    assert "Square instead of PGD, AutoAttack" in str(found)
    by_name = robustness_report(FOREST, X, Y, 0.05, attacks={"strong": PGD(0.1)})
    assert by_name.names == ("Square instead of strong",)
    linear = LogisticRegression().fit(X, Y)
    assert transfer_matrix({"f": FOREST, "l": linear}, X, Y, PGD(0.05)).attacks == ("Square", "PGD")


# What the estimators refuse


@pytest.fixture(scope="module")
def own():
    return EmpiricalNTKClassifier(random_state=0).fit(X, Y)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["predict", "decision_function", "predict_proba"])
def test_inputs_beyond_the_precision_of_the_network_are_refused(own, method):
    huge = np.where(X[0, 0] == X, 1e39, X)
    with pytest.raises(ValueError, match="scale the data"):
        getattr(own, method)(huge)
    for call in (own.score, lambda X, y: own.robust_score(X, y, PGD(0.1, bounds=None))):
        with pytest.raises(ValueError, match="scale the data"):
            call(huge, Y)


@pytest.mark.slow
def test_scores_that_are_not_finite_decide_nothing(own):
    with pytest.raises(ValueError, match="of 300 inputs are NaN"):
        own.predict(np.full_like(X, 3e38))


@pytest.mark.slow
@pytest.mark.parametrize(
    "X_bad, y_bad, error, message",
    [
        (np.ma.array(X), Y, TypeError, "masked"),
        (X + 1j, Y, TypeError, "real numbers|Complex data"),
        ("rows", Y, TypeError, "array"),
        (None, Y, TypeError, "array"),
        (X, np.ma.array(Y), TypeError, "masked"),
        (X, Y[:, None].repeat(2, 1), ValueError, "one label for each"),
    ],
)
def test_inputs_and_labels_of_other_kinds_are_refused(own, X_bad, y_bad, error, message):
    for model in (own, FOREST, LogisticRegression().fit(X, Y)):
        with pytest.raises(error, match=message):
            robust_accuracy(model, X_bad, y_bad, Square(0.1, 5))


def test_a_column_of_labels_is_labels():
    linear = LogisticRegression().fit(X, Y)
    assert robust_accuracy(linear, X, Y[:, None], PGD(0.1)) == robust_accuracy(linear, X, Y, PGD(0.1))


def test_the_warning_of_a_black_box_is_short_however_wide_the_data_are():
    X, y = np.random.default_rng(0).random((30, 200)), np.arange(30) % 2
    forest = RandomForestClassifier(5, random_state=0).fit(X, y)
    with pytest.warns(UserWarning, match=r"by Square\(epsilon=0.1, n_queries=1000, norm='linf'\) in the") as told:
        perturb(forest, X[:2], y[:2], PGD(0.1, bounds=Box.from_data(X)))
    assert all(len(str(warning.message)) < 500 for warning in told)
