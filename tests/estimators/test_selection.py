"""Machines that choose their own regularisation: against refits, grids of plain machines, and bad input."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import LeaveOneOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    SingularGramError,
    load,
    robust_accuracy,
)
from ntkrobust_sk.execution.precision import enable_x64

X, Y = load_iris(return_X_y=True)
X, Y = X[::5] / 8, Y[::5]
TARGETS = np.c_[X[:, 0] * X[:, 1], np.sin(7 * X[:, 2])]
WEIGHT = np.random.default_rng(0).integers(1, 4, size=len(X)).astype(float)
NETWORK = MLP(widths=(6,))
ALPHAS = [1e-3, 1e-1, 10.0]
ATTACK = PGD(0.05, n_steps=2)


def classifier(**settings):
    return EmpiricalNTKClassifierCV(NETWORK, **{"alphas": ALPHAS, "random_state": 0} | settings)


def regressor(**settings):
    return EmpiricalNTKRegressorCV(NETWORK, **{"alphas": ALPHAS, "random_state": 0} | settings)


def test_what_is_left_out_is_answered_as_scikit_learn_refits_say():
    """In double precision, with a weight for each row; the plain machines are fitted thirty times."""
    with enable_x64(True):
        chosen = regressor().fit(X, TARGETS, WEIGHT)
        plain = EmpiricalNTKRegressor(NETWORK, alpha=chosen.alpha_, random_state=0)
        options = {"cv": LeaveOneOut(), "params": {"sample_weight": WEIGHT}}
        expected = cross_val_predict(plain, X, TARGETS, **options)
    np.testing.assert_allclose(chosen.left_out_, expected, atol=1e-8)
    error = np.average(((expected - TARGETS) ** 2).mean(1), weights=WEIGHT)
    assert chosen.best_score_ == pytest.approx(-error)


@pytest.mark.parametrize("scoring", ["accuracy", "log_loss", "gcv"])
def test_the_chosen_machine_is_the_plain_one_of_its_alpha(scoring):
    chosen = classifier(scoring=scoring, attack=ATTACK, cv=2).fit(X, Y)
    assert chosen.scores_.shape == (3,) and chosen.best_score_ == chosen.scores_.max()
    assert chosen.alpha_ == max(a for a, s in zip(ALPHAS, chosen.scores_, strict=True) if s == chosen.best_score_)
    plain = EmpiricalNTKClassifier(NETWORK, alpha=chosen.alpha_, random_state=0).fit(X, Y)
    np.testing.assert_allclose(chosen.decision_function(X), plain.decision_function(X), atol=1e-4)


def test_robust_scores_are_those_of_machines_fitted_on_the_folds():
    folds = StratifiedKFold(2)
    chosen = classifier(scoring="robust", attack=ATTACK, cv=folds).fit(X, Y)
    for alpha, score in zip(ALPHAS, chosen.scores_, strict=True):
        found = []
        for train, test in folds.split(X, Y):
            machine = EmpiricalNTKClassifier(NETWORK, alpha=alpha, random_state=0).fit(X[train], Y[train])
            found.append(robust_accuracy(machine, X[test], Y[test], ATTACK))
        # random starts differ
        assert score == pytest.approx(np.mean(found), abs=0.11)


@pytest.mark.parametrize(
    "cv",
    [[], np.array([]), np.array(5), [3], [([0, 1], [999])], [([0, 1], [])], [([0.5], [1])], {}, [([0], [1], [2])]],
)
def test_folds_that_are_none_are_refused(cv):
    with pytest.raises(ValueError, match="cv must be a number of folds"):
        classifier(scoring="robust", attack=ATTACK, cv=cv).fit(X, Y)


def test_a_stopping_time_is_chosen_in_place_of_alpha():
    times = [1.0, 1e2, 1e4]
    chosen = regressor(alphas=None, stopping_times=times).fit(X, TARGETS)
    assert chosen.stopping_time_ in times and not hasattr(chosen, "alpha_")
    errors = ((chosen.left_out_ - TARGETS) ** 2).mean()
    assert chosen.best_score_ == pytest.approx(-errors)
    # of the same network, it fits about as much as its ridge
    ridge = EmpiricalNTKRegressor(NETWORK, alpha=1 / chosen.stopping_time_, random_state=0).fit(X, TARGETS)
    assert abs(chosen.score(X, TARGETS) - ridge.score(X, TARGETS)) < 0.1
    assert chosen.ridge_ == pytest.approx(ridge.ridge_, rel=1e-5)
    again = chosen.set_params(alphas=ALPHAS, stopping_times=None).fit(X, TARGETS)
    assert again.alpha_ in ALPHAS and not hasattr(again, "stopping_time_")


def test_probabilities_are_calibrated_by_what_is_left_out():
    noisy = np.where(np.random.default_rng(1).random(len(Y)) < 0.3, (Y + 1) % 3, Y)
    chosen = classifier().fit(X, noisy)
    logits = chosen.left_out_ - chosen.left_out_.max(1, keepdims=True)

    def loss(temperature):
        z = logits / temperature
        return -(z[np.arange(len(noisy)), noisy] - np.log(np.exp(z).sum(1))).mean()

    temperatures = chosen.temperature_ * np.array([0.7, 1.0, 1.5])
    losses = [loss(t) for t in temperatures]
    assert losses[1] == min(losses) < loss(1.0)
    plain = EmpiricalNTKClassifier(NETWORK, alpha=chosen.alpha_, calibrate=True, random_state=0).fit(X, noisy)
    assert plain.temperature_ == pytest.approx(chosen.temperature_, rel=1e-5)
    np.testing.assert_allclose(plain.predict_proba(X), chosen.predict_proba(X), atol=1e-3)
    assert EmpiricalNTKClassifier(NETWORK, random_state=0).fit(X, noisy).temperature_ == 1.0


def test_alphas_that_regularise_too_little_are_left_out_with_a_warning(monkeypatch):
    twice = np.r_[X, X]
    with pytest.warns(UserWarning, match=r"Ridge\(alpha=0.*left out"):
        chosen = regressor(alphas=[0.0, 0.1]).fit(twice, np.r_[TARGETS, TARGETS])
    assert chosen.alpha_ == 0.1 and np.isnan(chosen.scores_[0])
    monkeypatch.setattr("ntkrobust_sk.estimators.selection.ALPHAS", (0.0, 0.1))
    with warnings.catch_warnings():
        # those of the default are left out without a word
        warnings.simplefilter("error")
        assert regressor(alphas=None).fit(twice, np.r_[TARGETS, TARGETS]).alpha_ == 0.1
    with pytest.raises(SingularGramError, match="larger alphas"):
        regressor(alphas=[0.0]).fit(twice, np.r_[TARGETS, TARGETS])


def test_it_is_saved_cloned_pickled_and_takes_frames_and_pipelines(tmp_path):
    chosen = classifier().fit(pd.DataFrame(X, columns=list("abcd")), Y)
    chosen.save(tmp_path / "model.ntk")
    frame = pd.DataFrame(X[:6], columns=list("abcd"))
    for again in (load(tmp_path / "model.ntk"), pickle.loads(pickle.dumps(chosen))):
        assert again.alpha_ == chosen.alpha_
        np.testing.assert_array_equal(again.predict_proba(frame), chosen.predict_proba(frame))
    assert clone(chosen).get_params() == chosen.get_params()
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(X, Y)
    assert robust_accuracy(pipeline, X[:6], Y[:6], ATTACK) <= 1


def test_robust_selection_takes_data_frames_and_texts():
    frame, labels = pd.DataFrame(X, columns=list("abcd")), np.array(["a", "b", "c"])[Y]
    plain = classifier(scoring="robust", attack=ATTACK, cv=2).fit(X, Y)
    named = classifier(scoring="robust", attack=ATTACK, cv=2).fit(frame, labels, sample_weight=np.ones(len(Y)))
    np.testing.assert_allclose(named.scores_, plain.scores_, atol=0.04)


def test_the_kernel_of_a_trainer_is_taken_and_the_full_kernel_too():
    trainer = AdversarialKernelTrainer(NETWORK, max_epochs=2, random_state=0).fit(X, Y)
    for kernel in ("class", "full"):
        chosen = EmpiricalNTKClassifierCV(FrozenEstimator(trainer), kernel=kernel, alphas=ALPHAS).fit(X, Y)
        plain = EmpiricalNTKClassifier(FrozenEstimator(trainer), kernel=kernel, alpha=chosen.alpha_).fit(X, Y)
        np.testing.assert_allclose(chosen.decision_function(X), plain.decision_function(X), atol=1e-3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alphas": []}, "alphas must hold at least one number"),
        ({"alphas": [0.1, -1]}, r"alphas\[1\] must be a finite number >= 0"),
        ({"alphas": [0.1, np.nan]}, r"alphas\[1\]"),
        ({"alphas": [[0.1]]}, "alphas"),
        ({"alphas": None, "stopping_times": [0.0]}, r"stopping_times\[0\] must be a finite number > 0"),
        ({"stopping_times": [1.0]}, r"alphas and stopping_times are two kinds.*leave one out, got alphas=\[0.001"),
        ({"scoring": "mse"}, "unknown scoring 'mse'; known are 'squared_error'"),
        ({"scoring": None}, "unknown scoring None"),
        ({"scoring": "robust"}, "needs an attack, such as attack=PGD"),
        ({"scoring": "robust", "attack": ATTACK, "cv": 1}, "n_splits"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        classifier(**settings).fit(X, Y)


def test_scorings_of_classes_are_none_of_a_regressor():
    with pytest.raises(ValueError, match="unknown scoring 'accuracy'; known are 'squared_error', 'gcv', 'robust'"):
        regressor(scoring="accuracy").fit(X, TARGETS)
    with pytest.raises(ValueError, match="calibrate=True needs a solver in closed form"):
        EmpiricalNTKClassifier(NETWORK, calibrate=True, solver="sgd").fit(X, Y)
    with pytest.raises(TypeError, match="alphas must be an array of real numbers"):
        regressor(alphas=["x"]).fit(X, TARGETS)
    with pytest.raises(ValueError, match="n_samples = 1"):
        regressor().fit(X[:1], TARGETS[:1])


POINTS = np.random.default_rng(0).normal(size=(40, 50))
GRAM, FIRST = POINTS @ POINTS.T, POINTS[:, 0]


def of_matrix(K=GRAM, y=FIRST, weight=None, **settings):
    return EmpiricalNTKRegressorCV(kernel="precomputed", **settings).fit(K, y, sample_weight=weight)


@pytest.mark.parametrize(
    "settings", [{"alphas": ALPHAS}, {"alphas": ALPHAS, "scoring": "gcv"}, {"stopping_times": ALPHAS}]
)
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-60, 1e30])
def test_scores_are_the_same_for_kernels_of_any_size(size, settings):
    plain, scaled = of_matrix(**settings), of_matrix(GRAM * size, **settings)
    np.testing.assert_allclose(scaled.scores_, plain.scores_, rtol=1e-9)
    np.testing.assert_allclose(scaled.left_out_, plain.left_out_, rtol=1e-6)


@pytest.mark.parametrize("scoring", ["squared_error", "gcv"])
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e150])
def test_the_choice_is_the_same_for_targets_of_any_size(size, scoring):
    plain, scaled = (
        of_matrix(alphas=ALPHAS, scoring=scoring),
        of_matrix(y=FIRST * size, alphas=ALPHAS, scoring=scoring),
    )
    assert scaled.alpha_ == plain.alpha_ and np.isfinite(scaled.scores_).all()
    np.testing.assert_allclose(scaled.left_out_ / size, plain.left_out_, rtol=1e-9)
    with pytest.raises(ValueError, match="y must not be so large that squares"):
        of_matrix(y=FIRST * 1e200, alphas=ALPHAS, scoring=scoring)


@pytest.mark.parametrize("scoring", EmpiricalNTKClassifierCV.SCORINGS[:4])
@pytest.mark.parametrize("weight", [1e-300, 1e-200, 1e200, 1e300])
def test_weights_of_any_size_are_those_near_one_with_alphas_over_them(weight, scoring):
    labels = (FIRST > 0).astype(int)
    plain, scaled = (
        EmpiricalNTKClassifierCV(kernel="precomputed", alphas=[0.1 * by], scoring=scoring).fit(
            GRAM, labels, sample_weight=np.full(40, by)
        )
        for by in (1e3, 1e3 * weight)
    )
    np.testing.assert_allclose(scaled.left_out_, plain.left_out_, rtol=1e-9)
    assert scaled.best_score_ == pytest.approx(plain.best_score_, rel=1e-2)


def test_candidates_beyond_the_range_of_numbers_are_called_so():
    with pytest.warns(
        UserWarning, match=r"1e\+308.*mean diagonal of the Gram matrix, 50.*beyond float64, and left out"
    ):
        assert np.isnan(of_matrix(alphas=[1e308, 1.0]).scores_).tolist() == [True, False]
    with pytest.raises(ValueError, match="beyond float64: take a smaller alpha"):
        of_matrix(alphas=[1e308])
    short = of_matrix(stopping_times=[1e-300])
    expected = (FIRST.sum() - FIRST) / 39
    np.testing.assert_allclose(short.left_out_[:, 0], expected, rtol=1e-6)


def test_rows_that_are_all_equal_are_called_so():
    with pytest.raises(ValueError, match=r"equal are left out together.* n_samples = 5 with 1 of them"):
        regressor().fit(X[[0] * 5], np.arange(5.0))
