"""Robust accuracy as a scorer: in searches, through meta-estimators, and where nothing can be attacked."""

import pickle
import warnings
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    make_scorer,
    matthews_corrcoef,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Clean,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Model,
    Square,
    as_model,
    certified_accuracy,
    check_evaluation,
    make_robust_scorer,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
    transfer_matrix,
)
from ntkrobust_sk.robustness import target as targets

X, Y = load_iris(return_X_y=True)
X, Y = X[::2] / 8, Y[::2]
NETWORK = MLP(widths=(6,))
ATTACK = PGD(0.05, n_steps=3)
UNBOUNDED = PGD(0.3, n_steps=3, bounds=None)
WEIGHT = np.random.default_rng(0).uniform(0.1, 2, size=len(X))
CLASSIFIER = EmpiricalNTKClassifier(NETWORK, alpha=1e-4, random_state=0)


@cache
def fitted_classifier():
    return clone(CLASSIFIER).fit(X, Y)


@cache
def fitted_pipeline():
    return make_pipeline(MinMaxScaler(), clone(CLASSIFIER)).fit(X, Y)


@pytest.mark.slow
def test_robust_accuracy_is_the_accuracy_on_the_attacked_inputs():
    clf = fitted_classifier()
    X_adv = clf.perturb(X, Y, ATTACK)
    expected = accuracy_score(Y, clf.predict(X_adv), sample_weight=WEIGHT)
    assert robust_accuracy(clf, X, Y, ATTACK, sample_weight=WEIGHT) == pytest.approx(expected)
    assert robust_accuracy(clf, X, Y, ATTACK) < clf.score(X, Y)


@pytest.mark.slow
def test_robust_accuracy_of_a_regressor_is_r2_on_the_attacked_inputs():
    targets = X[:, :2] * X[:, 2:]
    reg = EmpiricalNTKRegressor(NETWORK, random_state=0).fit(X, targets)
    X_adv = reg.perturb(X, targets, ATTACK)
    expected = r2_score(targets, reg.predict(X_adv))
    assert robust_accuracy(reg, X, targets, ATTACK) == pytest.approx(expected, abs=1e-6)
    assert expected < reg.score(X, targets)


@pytest.mark.slow
def test_a_scorer_gives_the_same_score_again_and_another_seed_another_attack():
    one_step = PGD(0.05, n_steps=1, step_size=0.0)  # nothing but the random start
    scorer = make_robust_scorer(one_step, random_state=3)
    clf = fitted_classifier()
    assert scorer(clf, X, Y) == scorer(clf, X, Y) == clf.robust_score(X, Y, one_step, random_state=3)
    starts = [clf.perturb(X, Y, one_step, random_state=seed) for seed in (3, 4)]
    assert not np.array_equal(*starts)


@pytest.mark.slow
def test_scorers_are_compared_hashed_printed_and_pickled():
    scorer = make_robust_scorer(ATTACK, random_state=1)
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer and hash(copy) == hash(scorer)
    assert scorer != make_robust_scorer(ATTACK) and "epsilon=0.05" in repr(scorer)
    assert copy(fitted_classifier(), X, Y) == scorer(fitted_classifier(), X, Y)


# In searches and cross-validation


@pytest.mark.slow
def test_a_search_picks_the_most_robust_candidate():
    scoring = {"clean": "accuracy", "robust": make_robust_scorer(ATTACK)}
    grid = {"alpha": [1e-6, 1e-1]}
    search = GridSearchCV(CLASSIFIER, grid, scoring=scoring, refit="robust", cv=2).fit(X, Y)
    robust = search.cv_results_["mean_test_robust"]
    assert search.best_index_ == robust.argmax() and robust[0] != robust[1]
    assert (robust < search.cv_results_["mean_test_clean"]).all()
    assert search.score(X, Y) == search.best_estimator_.robust_score(X, Y, ATTACK)
    assert robust_accuracy(search, X, Y, ATTACK) == search.score(X, Y)


@pytest.mark.slow
def test_cross_validation_equals_the_score_of_each_fold():
    scorer = make_robust_scorer(ATTACK)
    results = cross_validate(CLASSIFIER, X, Y, scoring=scorer, cv=2, return_estimator=True, return_indices=True)
    by_hand = [
        clf.robust_score(X[test], Y[test], ATTACK)
        for clf, test in zip(results["estimator"], results["indices"]["test"], strict=True)
    ]
    np.testing.assert_array_equal(results["test_score"], by_hand)
    np.testing.assert_array_equal(cross_val_score(CLASSIFIER, X, Y, scoring=scorer, cv=2), by_hand)


def test_weights_reach_the_scorer_of_a_search():
    scorer = make_robust_scorer(ATTACK)
    search = GridSearchCV(CLASSIFIER, {"alpha": [1e-4]}, scoring=scorer, cv=[(np.arange(75), np.arange(75))])
    search.fit(X, Y, sample_weight=WEIGHT)
    expected = search.best_estimator_.robust_score(X, Y, ATTACK, sample_weight=WEIGHT)
    assert search.best_score_ == pytest.approx(expected)


@pytest.mark.slow
def test_a_scorer_works_where_metadata_are_routed():
    with sklearn.config_context(enable_metadata_routing=True):
        clf = clone(CLASSIFIER).set_fit_request(sample_weight=True)
        with pytest.raises(UnsetMetadataPassedError, match=r"RobustScorer\.set_score_request"):
            GridSearchCV(clf, {}, scoring=make_robust_scorer(ATTACK)).fit(X, Y, sample_weight=WEIGHT)
        scorer = make_robust_scorer(ATTACK).set_score_request(sample_weight=False)
        search = GridSearchCV(clf, {"alpha": [1e-4]}, scoring=scorer, cv=2)
        search.fit(X, Y, sample_weight=WEIGHT)
    by_hand = clone(CLASSIFIER).fit(X, Y, WEIGHT)
    np.testing.assert_array_equal(search.best_estimator_.dual_coef_, by_hand.dual_coef_)
    assert 0 < search.best_score_ < 1


def test_routed_weights_reach_a_scorer_that_asks_for_them():
    folds = [(np.arange(75), np.arange(75))]
    with sklearn.config_context(enable_metadata_routing=True):
        clf = clone(CLASSIFIER).set_fit_request(sample_weight=False)
        scorer = make_robust_scorer(ATTACK).set_score_request(sample_weight="importance")
        search = GridSearchCV(clf, {"alpha": [1e-4]}, scoring=scorer, cv=folds)
        search.fit(X, Y, importance=WEIGHT)
    assert search.best_score_ == fitted_classifier().robust_score(X, Y, ATTACK, sample_weight=WEIGHT)
    assert search.best_score_ != fitted_classifier().robust_score(X, Y, ATTACK)


# Through meta-estimators


@pytest.mark.slow
def test_in_a_pipeline_the_attack_acts_on_the_inputs_of_its_first_step():
    scale = np.array([1.0, 50.0, 1.0, 1.0])
    pipeline = make_pipeline(MinMaxScaler(), clone(CLASSIFIER)).fit(X * scale, Y)
    attack = PGD(0.05, n_steps=3, bounds=None)
    X_adv = perturb(pipeline, X * scale, Y, attack)
    assert np.abs(X_adv - X * scale).max() == pytest.approx(0.05, rel=1e-3)
    score = robust_accuracy(pipeline, X * scale, Y, attack)
    assert score == pipeline.score(X_adv, Y) == make_robust_scorer(attack)(pipeline, X * scale, Y)
    # a change of 0.05 is little for the feature that has a range of 50
    assert score > robust_accuracy(fitted_pipeline(), X, Y, attack)


@pytest.mark.slow
def test_a_pipeline_that_changes_nothing_is_no_reason_to_warn():
    pipeline = make_pipeline("passthrough", clone(CLASSIFIER)).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = robust_accuracy(pipeline, X, Y, ATTACK)
    assert score == robust_accuracy(fitted_classifier(), X, Y, ATTACK)


@pytest.mark.slow
def test_a_search_over_pipelines_is_scored():
    pipeline = make_pipeline(MinMaxScaler(clip=True), clone(CLASSIFIER))
    grid = {"empiricalntkclassifier__alpha": [1e-4, 1e-1]}
    search = GridSearchCV(pipeline, grid, scoring=make_robust_scorer(ATTACK), cv=2).fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.slow
def test_a_pipeline_that_ends_in_a_search_is_scored():
    search = GridSearchCV(clone(CLASSIFIER), {"alpha": [1e-4]}, cv=2)
    pipeline = make_pipeline(MinMaxScaler(), search).fit(X, Y)
    assert robust_accuracy(pipeline, X, Y, ATTACK) == robust_accuracy(fitted_pipeline(), X, Y, ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [fitted_classifier, fitted_pipeline])
def test_frozen_estimators_are_scored_like_what_they_hold(inner):
    fitted = inner()
    assert robust_accuracy(FrozenEstimator(fitted), X, Y, ATTACK) == robust_accuracy(fitted, X, Y, ATTACK)


def test_a_frozen_search_is_scored_like_its_best_estimator():
    search = GridSearchCV(CLASSIFIER, {"alpha": [1e-2]}, cv=2).fit(X, Y)
    expected = search.best_estimator_.robust_score(X, Y, ATTACK)
    assert robust_accuracy(FrozenEstimator(search), X, Y, ATTACK) == expected


# Bad input


@pytest.mark.parametrize(
    "fitted, attack, message",
    [
        (lambda: RandomForestRegressor(3).fit(X, X[:, 0]), ATTACK, "RandomForestRegressor"),
        (lambda: RandomForestClassifier(3).fit(X, Y), lambda model, x, y, key: x, "needs_gradients = False"),
        (lambda: StandardScaler().fit(X), ATTACK, "no score"),
    ],
    ids=["regressor", "own attack", "transformer"],
)
def test_what_cannot_be_attacked_is_refused(fitted, attack, message):
    with pytest.raises(TypeError, match=message):
        robust_accuracy(fitted(), X, Y, attack)


# Everything that takes an estimator, data and an attack.
TAKERS = {
    "robust_accuracy": robust_accuracy,
    "perturb": perturb,
    "robustness_report": lambda e, X, y, attack: robustness_report(e, X, y, 0.1, attacks=attack),
    "minimal_perturbations": lambda e, X, y, attack: minimal_perturbations(e, X, y),
    "transfer_matrix": lambda e, X, y, attack: transfer_matrix({"this": e}, X, y, attack),
    "check_evaluation": check_evaluation,
    "certified_accuracy": lambda e, X, y, attack: certified_accuracy(e, X, y, 0.1, sigma=0.1),
}


@cache
def linear():
    return LogisticRegression().fit(X, Y)


@pytest.mark.parametrize("takes", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize("fitted", [linear, fitted_classifier, fitted_pipeline], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "X_bad, y_bad, error, message",
    [
        (X, np.where(Y == 2, 7, Y), ValueError, "not seen in fit"),
        (X, Y.astype(str), ValueError, "not seen in fit"),
        (X, Y[:-1], ValueError, "one label for each"),
        (X, None, ValueError, "one label for each"),
        (scipy.sparse.csr_array(X), Y, TypeError, "[Ss]parse"),
        (X[:0], Y[:0], ValueError, "minimum of 1"),
        (X[0], Y[:1], ValueError, "Expected 2D array"),
        (np.where(X[0, 0] == X, np.nan, X), Y, ValueError, "NaN"),
        (np.hstack([X, X]), Y, ValueError, "X has 8 features"),
        (3 * X, Y, ValueError, "the attack's bounds are"),
    ],
    ids=["labels", "strings", "lengths", "no labels", "sparse", "empty", "one row", "nan", "wide", "bounds"],
)
def test_bad_data_are_named_before_anything_is_attacked(takes, fitted, X_bad, y_bad, error, message):
    if takes is TAKERS["certified_accuracy"] and "bounds" in message:
        pytest.skip("certificates know no bounds")
    with pytest.raises(error, match=message):
        takes(fitted(), X_bad, y_bad, ATTACK)


@pytest.mark.parametrize("takes", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize(
    "estimator, error, message",
    [
        (LogisticRegression(), NotFittedError, "not fitted"),
        (make_pipeline(MinMaxScaler(), CLASSIFIER), NotFittedError, "not fitted"),
        (
            GridSearchCV(LogisticRegression(), {"C": [1]}, cv=2, refit=False).fit(X, Y),
            NotFittedError,
            "refit=True",
        ),
        (
            LogisticRegression,
            TypeError,
            r"got the class LogisticRegression; write LogisticRegression\(\.\.\.\)\.fit\(",
        ),
        (Model, TypeError, r"got the class Model; write Model\(\.\.\.\)"),
        (MLP, TypeError, r"got the class MLP; write Model\(MLP\(\.\.\.\), variables\)"),
        (MLP(3), TypeError, r"a function .* such as a Model, got MLP\(.*; write Model\(network, variables\)"),
        ("svc", TypeError, "estimator must be a fitted estimator, or a function .*, got 'svc'"),
        (X, TypeError, "got an array of shape"),
        (ATTACK, TypeError, r"got the attack PGD\(.*the order is \(estimator, X, y, attack\)"),
        (StandardScaler().fit(X), TypeError, "no score"),
    ],
    ids=str,
)
def test_what_is_no_fitted_estimator_is_refused_by_all(takes, estimator, error, message):
    with pytest.raises(error, match=message):
        takes(estimator, X, Y, ATTACK)


@pytest.mark.parametrize("attack", [None, "pgd", PGD, 0.1], ids=str)
def test_an_attack_is_needed(attack):
    for takes in (robust_accuracy, perturb, TAKERS["transfer_matrix"], check_evaluation):
        with pytest.raises(TypeError, match="attack"):
            takes(linear(), X, Y, attack)


def test_a_function_that_gives_no_scores_is_refused():
    for function in (lambda x: x[:, 0], lambda x: None):
        with pytest.raises(ValueError, match=r"a model gives scores \(n, C\)"):
            robustness_report(function, X, Y, 0.1)
    with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(n, 8\)"):
        robustness_report(fitted_classifier().model_, np.hstack([X, X]), Y, 0.1)
    with pytest.raises(ValueError, match="positions of its scores, 0 to 3"):
        robustness_report(lambda x: x, X, Y + 4, 0.1)


def test_regressors_need_a_target_for_each_sample():
    ridge = Ridge().fit(X, X[:, 0])
    for bad in (None, X[:9, 0]):
        with pytest.raises(ValueError, match="one target for each of the 75 samples"):
            robust_accuracy(ridge, X, bad, ATTACK)


# Estimators of scikit-learn


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [SVC(), make_pipeline(StandardScaler(), PCA(3), LogisticRegression()), KernelRidge(kernel="rbf")]
)
def test_scikit_learn_s_estimators_are_attacked_through_their_gradients(estimator):
    targets = X[:, 0] * X[:, 1] if isinstance(estimator, KernelRidge) else np.array(["a", "b", "c"])[Y]
    fitted, attack = clone(estimator).fit(X, targets), PGD(0.05, n_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X_adv = perturb(fitted, X, targets, attack)
    assert X_adv.dtype == np.float64 and np.abs(X_adv - X).max() <= 0.05 + 1e-12
    score = robust_accuracy(fitted, X, targets, attack, sample_weight=WEIGHT)
    assert score == fitted.score(X_adv, targets, sample_weight=WEIGHT)
    noise = np.random.default_rng(0).choice([-0.05, 0.05], X.shape)
    assert score < min(fitted.score(X + noise, targets), fitted.score(X, targets)) - 0.02


@pytest.mark.slow
def test_what_has_no_gradient_is_attacked_as_a_black_box(monkeypatch):
    monkeypatch.setattr(targets, "QUERIES", 60)
    forest = RandomForestClassifier(5, random_state=0).fit(X, Y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(forest)).fit(X, Y)
    attacks = (PGD(0.05), PGD(0.1, norm="l2"), PGD(0.05))
    for fitted, attack in zip((forest, make_pipeline(MinMaxScaler(), forest), calibrated), attacks, strict=True):
        fitted.fit(X, Y)
        with pytest.warns(UserWarning, match=rf"as a black box, by Square.*norm='{attack.norm}'"):
            score = robust_accuracy(fitted, X, Y, attack)
        assert score < fitted.score(X, Y)
    # asked for by name there is nothing to warn of
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert robust_accuracy(forest.fit(X, Y), X, Y, Square(0.05, 30)) < forest.score(X, Y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_estimator_is_attacked_in_double_precision_after_its_model_was_traced_in_single():
    fitted = MLPClassifier((3,), max_iter=5).fit(X, Y)
    model = as_model(fitted)
    jax.make_jaxpr(model)(X.astype(np.float32))
    assert perturb(fitted, X, Y, ATTACK).dtype == np.float64


def test_data_frames_stay_data_frames():
    frame = pd.DataFrame(X, columns=list("abcd"), index=np.arange(len(X)) + 100)
    columns = ColumnTransformer([("scale", StandardScaler(), ["d", "a"])], remainder="drop")
    pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, Y)
    X_adv = perturb(pipeline, frame, Y, PGD(0.05))
    assert list(X_adv.columns) == list("abcd") and (X_adv.index == frame.index).all()
    changed = np.abs(X_adv - frame).max()
    assert (changed[["a", "d"]] > 0.04).all()
    assert robust_accuracy(pipeline, frame, Y, PGD(0.05)) == pipeline.score(X_adv, Y) < pipeline.score(frame, Y)


# Not fitted


@pytest.mark.parametrize(
    "estimator",
    [
        AdversarialKernelTrainer(),
        CLASSIFIER,
        GridSearchCV(CLASSIFIER, {"alpha": [1.0]}),
        make_pipeline(MinMaxScaler(), CLASSIFIER),
        FrozenEstimator(CLASSIFIER),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_is_not_fitted_is_not_scored(estimator):
    with pytest.raises(NotFittedError):
        robust_accuracy(estimator, X, Y, ATTACK)


@pytest.mark.parametrize("attack", [None, "pgd", PGD, 0.1], ids=str)
def test_a_scorer_needs_an_attack(attack):
    with pytest.raises(TypeError, match="make_robust_scorer needs an attack such as PGD"):
        make_robust_scorer(attack)


def test_inputs_out_of_bounds_are_named_through_the_scorer():
    with pytest.raises(ValueError, match="the attack's bounds are"):
        make_robust_scorer(ATTACK)(fitted_classifier(), 3 * X, Y)


@dataclass(frozen=True)
class Towards:
    """No attack: it moves every input to where the given answer is right."""

    centers: tuple

    def __call__(self, model, x, y, *, key):
        return jnp.asarray(self.centers)[y]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scikit-learn", "own", "function"])
def test_an_attack_that_makes_answers_better_is_told_of(kind):
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 2)).astype(np.float32), np.repeat([0, 1], 30)
    X[:, 0] += y
    fitted = LogisticRegression().fit(X, y) if kind != "own" else EmpiricalNTKClassifier(random_state=0).fit(X, y)
    estimator = as_model(fitted) if kind == "function" else fitted
    helpful = Towards(((-9.0, 0.0), (9.0, 0.0)))
    with pytest.warns(UserWarning, match=r"better: the score is 1.000 .* 0\.[0-9]+ on the inputs"):
        assert robust_accuracy(estimator, X, y, helpful) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert robust_accuracy(estimator, X, y, PGD(0.5, 3, bounds=None)) < fitted.score(X, y)
        assert robust_accuracy(estimator, X, y, Clean()) == fitted.score(X, y)


def test_what_an_estimator_says_of_its_inputs_is_said_and_not_of_an_attack_s():
    with pytest.raises(ValueError, match="Found array with dim 3"):
        robust_accuracy(linear(), X[:, :, None], Y, ATTACK)
    forest = RandomForestClassifier(3, random_state=0).fit(X, Y)
    far = X.copy()
    far[5] = 1e300
    message = r"^RandomForestClassifier refuses X: row 5. It says: Input X contains infinity or a value too large"
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        robust_accuracy(forest, far, Y, Square(0.1, 10, bounds=None))


METRICS_X, METRICS_Y = make_classification(90, 5, n_informative=4, n_redundant=0, weights=[0.7], random_state=3)
BOUNDLESS = PGD(0.3, 5, bounds=None)


@pytest.mark.parametrize(
    "metric, own",
    [
        ("balanced_accuracy", lambda fitted, X, y: balanced_accuracy_score(y, fitted.predict(X))),
        ("roc_auc", lambda fitted, X, y: roc_auc_score(y, fitted.decision_function(X))),
        ("neg_log_loss", lambda fitted, X, y: -log_loss(y, fitted.predict_proba(X))),
        (matthews_corrcoef, lambda fitted, X, y: matthews_corrcoef(y, fitted.predict(X))),
        (
            make_scorer(log_loss, greater_is_better=False, response_method="predict_proba"),
            lambda fitted, X, y: -log_loss(y, fitted.predict_proba(X)),
        ),
    ],
)
def test_any_metric_is_that_of_the_adversarial_examples(metric, own):
    X, y = METRICS_X, METRICS_Y
    fitted = LogisticRegression().fit(X, y)
    scorer = make_robust_scorer(BOUNDLESS, metric=metric)
    assert scorer(fitted, X, y) == pytest.approx(own(fitted, perturb(fitted, X, y, BOUNDLESS), y), abs=1e-12)
    assert scorer(fitted, X, y) < own(fitted, X, y)
    assert repr(pickle.loads(pickle.dumps(scorer))) == repr(scorer)


def test_a_metric_takes_the_answers_that_are_asked_for_and_weights():
    X, y = METRICS_X, METRICS_Y
    fitted = LogisticRegression().fit(X, y)

    def mean_margin(labels, scores, sample_weight=None):
        return float(np.average(np.where(labels == 1, 1, -1) * scores, weights=sample_weight))

    scorer = make_robust_scorer(BOUNDLESS, metric=mean_margin, response_method="decision_function")
    X_adv = perturb(fitted, X, y, BOUNDLESS)
    assert scorer(fitted, X, y) == pytest.approx(mean_margin(y, fitted.decision_function(X_adv)))
    weights = np.arange(90.0)
    assert scorer(fitted, X, y, sample_weight=weights) == pytest.approx(
        mean_margin(y, fitted.decision_function(X_adv), weights)
    )


def test_a_regressor_is_measured_by_another_metric_in_a_search():
    X, y = METRICS_X, METRICS_X @ np.arange(5.0)
    scorer = make_robust_scorer(BOUNDLESS, metric="neg_mean_absolute_error")
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1000.0]}, scoring=scorer, cv=3).fit(X, y)
    assert search.best_params_ == {"alpha": 0.1} and search.best_score_ < 0


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"metric": "accurate"}, ValueError, "'accurate'"),
        ({"metric": 3}, TypeError, "metric must be a name"),
        ({"response_method": "predict"}, TypeError, "give metric= too"),
        ({"metric": "roc_auc", "response_method": "predict"}, TypeError, "leave response_method out"),
        ({"metric": make_robust_scorer(BOUNDLESS)}, TypeError, "RobustScorer"),
        ({"metric": log_loss, "response_method": "probabilities"}, ValueError, "response_method"),
    ],
)
def test_a_metric_that_is_none_is_refused_when_the_scorer_is_made(options, error, message):
    with pytest.raises(error, match=message):
        make_robust_scorer(BOUNDLESS, **options)


def test_a_metric_of_probabilities_says_that_there_are_none():
    fitted = LinearSVC().fit(METRICS_X, METRICS_Y)
    with pytest.raises(TypeError, match="'neg_log_loss' needs predict_proba, which LinearSVC does not have"):
        make_robust_scorer(BOUNDLESS, metric="neg_log_loss")(fitted, METRICS_X, METRICS_Y)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (lambda y, found: np.nan, ValueError, "must give one finite number, got nan"),
        (lambda y, found: np.ones(3), ValueError, "must give one finite number, got an array"),
        (lambda y, found: "good", ValueError, "must give one finite number, got 'good'"),
        (lambda y, found: None, ValueError, "must give one finite number, got None"),
        (lambda y, found: 1 / None, TypeError, "cannot be computed of the answers of LogisticRegression and y"),
        ("f1", ValueError, "Target is multiclass"),
        ("roc_auc", ValueError, "multi_class must be in"),
        ("neg_mean_poisson_deviance", ValueError, "strictly positive"),
    ],
)
def test_what_a_metric_does_not_take_or_give_is_said_before_anything_is_attacked(metric, error, message):
    def never(model, x, y, *, key):
        raise AssertionError("attacked")

    X, y = load_iris(return_X_y=True)
    scorer = make_robust_scorer(never, metric=metric)
    with pytest.raises(error, match=message) as raised:
        scorer(LogisticRegression(max_iter=500).fit(X, y), X, y)
    name = repr(metric) if isinstance(metric, str) else "'<lambda>'"
    assert str(raised.value).startswith(f"the metric {name} of make_robust_scorer")


def test_weights_for_a_metric_without_any_are_refused():
    X, y = load_iris(return_X_y=True)
    scorer = make_robust_scorer(UNBOUNDED, metric=lambda y, found: np.mean(y == found))
    with pytest.raises(TypeError, match="takes no sample_weight"):
        scorer(LogisticRegression(max_iter=500).fit(X, y), X, y, sample_weight=np.ones(len(y)))


def test_what_needs_probabilities_says_what_a_regressor_and_a_function_have():
    X, y = load_iris(return_X_y=True)
    of_probabilities = make_robust_scorer(UNBOUNDED, metric="neg_log_loss")
    with pytest.raises(
        TypeError, match=r"'neg_log_loss' needs predict_proba, which Ridge .*'neg_mean_absolute_error'"
    ):
        of_probabilities(Ridge().fit(X, y), X, y)
    with pytest.raises(TypeError, match="a function from inputs to scores has its accuracy alone"):
        of_probabilities(as_model(LogisticRegression(max_iter=500).fit(X, y)), X, y)


def test_metrics_are_routed_weights_in_a_cross_validation():
    X, y = load_iris(return_X_y=True)
    weights = np.where(y == 2, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_robust_scorer(UNBOUNDED, metric="accuracy").set_score_request(sample_weight=True)
        classifier = LogisticRegression(max_iter=500).set_fit_request(sample_weight=False)
        found = cross_validate(
            classifier,
            X,
            y,
            scoring=scorer,
            params={"sample_weight": weights},
            cv=3,
            return_estimator=True,
            return_indices=True,
        )
    for model, score, at in zip(found["estimator"], found["test_score"], found["indices"]["test"], strict=True):
        right = model.predict(perturb(model, X[at], y[at], UNBOUNDED)) == y[at]
        assert score == pytest.approx(np.average(right, weights=weights[at]))


def test_a_metric_of_numbers_that_is_given_text_is_named():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    scorer = make_robust_scorer(UNBOUNDED, metric="neg_mean_absolute_error")
    with pytest.raises(ValueError, match=r"^the metric 'neg_mean_absolute_error' of make_robust_scorer cannot"):
        scorer(LogisticRegression(max_iter=500).fit(X, names), X, names)


def test_an_estimator_that_is_not_fitted_is_no_fault_of_the_metric():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(NotFittedError, match="LogisticRegression instance is not fitted"):
        make_robust_scorer(UNBOUNDED, metric="balanced_accuracy")(LogisticRegression(), X, y)
