"""Robust accuracy as a scorer: in searches, through meta-estimators, and where nothing can be attacked."""

import pickle
import warnings
from functools import cache

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    make_robust_scorer,
    robust_accuracy,
)

X, Y = load_iris(return_X_y=True)
X, Y = X[::2] / 8, Y[::2]
NETWORK = MLP(widths=(6,))
ATTACK = PGD(0.05, n_steps=3)
WEIGHT = np.random.default_rng(0).uniform(0.1, 2, size=len(X))
CLASSIFIER = EmpiricalNTKClassifier(NETWORK, alpha=1e-4, random_state=0)


@cache
def fitted_classifier():
    return clone(CLASSIFIER).fit(X, Y)


@cache
def fitted_pipeline():
    return make_pipeline(MinMaxScaler(), clone(CLASSIFIER)).fit(X, Y)


def test_robust_accuracy_is_the_accuracy_on_the_attacked_inputs():
    clf = fitted_classifier()
    X_adv = clf.perturb(X, Y, ATTACK)
    expected = accuracy_score(Y, clf.predict(X_adv), sample_weight=WEIGHT)
    assert robust_accuracy(clf, X, Y, ATTACK, sample_weight=WEIGHT) == pytest.approx(expected)
    assert robust_accuracy(clf, X, Y, ATTACK) < clf.score(X, Y)


def test_robust_accuracy_of_a_regressor_is_r2_on_the_attacked_inputs():
    targets = X[:, :2] * X[:, 2:]
    reg = EmpiricalNTKRegressor(NETWORK, random_state=0).fit(X, targets)
    X_adv = reg.perturb(X, targets, ATTACK)
    expected = r2_score(targets, reg.predict(X_adv))
    assert robust_accuracy(reg, X, targets, ATTACK) == pytest.approx(expected, abs=1e-6)
    assert expected < reg.score(X, targets)


def test_a_scorer_gives_the_same_score_again_and_another_seed_another_attack():
    one_step = PGD(0.05, n_steps=1, step_size=0.0)  # nothing but the random start
    scorer = make_robust_scorer(one_step, random_state=3)
    clf = fitted_classifier()
    assert scorer(clf, X, Y) == scorer(clf, X, Y) == clf.robust_score(X, Y, one_step, random_state=3)
    starts = [clf.perturb(X, Y, one_step, random_state=seed) for seed in (3, 4)]
    assert not np.array_equal(*starts)


def test_scorers_are_compared_hashed_printed_and_pickled():
    scorer = make_robust_scorer(ATTACK, random_state=1)
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer and hash(copy) == hash(scorer)
    assert scorer != make_robust_scorer(ATTACK) and "epsilon=0.05" in repr(scorer)
    assert copy(fitted_classifier(), X, Y) == scorer(fitted_classifier(), X, Y)


# In searches and cross-validation


def test_a_search_picks_the_most_robust_candidate():
    scoring = {"clean": "accuracy", "robust": make_robust_scorer(ATTACK)}
    grid = {"alpha": [1e-6, 1e-1]}
    search = GridSearchCV(CLASSIFIER, grid, scoring=scoring, refit="robust", cv=2).fit(X, Y)
    robust = search.cv_results_["mean_test_robust"]
    assert search.best_index_ == robust.argmax() and robust[0] != robust[1]
    assert (robust < search.cv_results_["mean_test_clean"]).all()
    assert search.score(X, Y) == search.best_estimator_.robust_score(X, Y, ATTACK)
    assert robust_accuracy(search, X, Y, ATTACK) == search.score(X, Y)


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


def test_in_a_pipeline_the_attack_acts_on_what_the_last_step_sees():
    pipeline = fitted_pipeline()
    with pytest.warns(UserWarning, match="features that EmpiricalNTKClassifier sees, after 'minmaxscaler'"):
        score = robust_accuracy(pipeline, X, Y, ATTACK)
    assert score == pipeline[-1].robust_score(pipeline[:-1].transform(X), Y, ATTACK)
    with pytest.warns(UserWarning, match="in their units"):
        assert make_robust_scorer(ATTACK)(pipeline, X, Y) == score


def test_a_pipeline_that_changes_nothing_is_no_reason_to_warn():
    pipeline = make_pipeline("passthrough", clone(CLASSIFIER)).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = robust_accuracy(pipeline, X, Y, ATTACK)
    assert score == robust_accuracy(fitted_classifier(), X, Y, ATTACK)


def test_a_search_over_pipelines_is_scored():
    pipeline = make_pipeline(MinMaxScaler(clip=True), clone(CLASSIFIER))
    grid = {"empiricalntkclassifier__alpha": [1e-4, 1e-1]}
    with pytest.warns(UserWarning, match="in their units"):
        search = GridSearchCV(pipeline, grid, scoring=make_robust_scorer(ATTACK), cv=2).fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.filterwarnings("ignore:the attack acts on the features")
def test_a_pipeline_that_ends_in_a_search_is_scored():
    search = GridSearchCV(clone(CLASSIFIER), {"alpha": [1e-4]}, cv=2)
    pipeline = make_pipeline(MinMaxScaler(), search).fit(X, Y)
    assert robust_accuracy(pipeline, X, Y, ATTACK) == robust_accuracy(fitted_pipeline(), X, Y, ATTACK)


@pytest.mark.filterwarnings("ignore:the attack acts on the features")
@pytest.mark.parametrize("inner", [fitted_classifier, fitted_pipeline])
def test_frozen_estimators_are_scored_like_what_they_hold(inner):
    fitted = inner()
    assert robust_accuracy(FrozenEstimator(fitted), X, Y, ATTACK) == robust_accuracy(fitted, X, Y, ATTACK)


def test_a_frozen_search_is_scored_like_its_best_estimator():
    search = GridSearchCV(CLASSIFIER, {"alpha": [1e-2]}, cv=2).fit(X, Y)
    expected = search.best_estimator_.robust_score(X, Y, ATTACK)
    assert robust_accuracy(FrozenEstimator(search), X, Y, ATTACK) == expected


# Bad input


def test_what_cannot_be_attacked_is_refused():
    for fitted in (
        LogisticRegression().fit(X, Y),
        make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, Y),
        CalibratedClassifierCV(FrozenEstimator(fitted_classifier())).fit(X, Y),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(TypeError, match="has no robust_score, so it cannot be attacked"):
                robust_accuracy(fitted, X, Y, ATTACK)


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
