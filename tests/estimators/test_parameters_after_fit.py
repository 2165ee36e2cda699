"""Parameters that are set after a fit belong to the next one: what was fitted answers as before."""

import pickle

import numpy as np
import pytest
from quick import answers
from sklearn.base import clone

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    RobustFeatureSelector,
    TangentFeatures,
    load,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 3)).astype(np.float32)
Z = RANDOM.normal(size=(20, 3)).astype(np.float32)
LABELS = (X[:, 0] * X[:, 1] > 0).astype(int)
TARGETS = np.c_[X[:, 0] * X[:, 1], np.sin(X[:, 2])]
NETWORK = MLP(widths=(6,))
CLASSIFIERS = EmpiricalNTKClassifier, EmpiricalNTKClassifierCV
# all parameters of one machine or another that have a say in what a fit finds
OTHERS = {
    "estimator": MLP(widths=(9,)),
    "alpha": 10.0,
    "alphas": [3.0],
    "stopping_times": [1.0],
    "solver": "sgd",
    "dynamics": "linearized",
    "calibrate": True,
    "class_weight": {0: 5.0, 1: 1.0},
    "params": "*.bias",
    "input_shape": (1, 3, 1),
    "precision": "bf16",
    "random_state": 7,
    "gram_store": "nowhere",
    "scoring": "gcv",
    "cv": 2,
    "n_features": 1,
    "n_candidates": 3,
    "n_components": 2,
    "criterion": "eigenvalue",
    "network": MLP(widths=(9,)),
    "loss": "trades",
    "learning_rate": 3.0,
    "max_epochs": 0,
}


def kernel_of_scalar_products(model, a, b):
    return 1 + a @ b.T


def everything(machine) -> list[np.ndarray]:
    """What a machine answers, by all ways to ask."""
    found = [machine.predict(Z), machine.attribute(Z), machine.gram(Z, X), answers(machine.as_model(), Z)]
    target = None if hasattr(machine, "predict_proba") else 1
    found += [*vars(machine.top_attributions(Z, 2, target=target)).values()]
    found += [machine.ood_score(Z), answers(machine.ood_model(), Z), machine.prior_variance_]
    if hasattr(machine, "predict_proba"):
        return [*found, machine.decision_function(Z), machine.predict_proba(Z)]
    return [*found, *machine.predict(Z, return_std=True), answers(machine.std_model(), Z), machine.noise_std_]


def set_all(estimator, tmp_path, **settings):
    known = estimator.get_params(deep=False)
    settings |= {"cache": tmp_path / "set later", **OTHERS}
    return estimator.set_params(**{name: value for name, value in settings.items() if name in known})


def require_same(found, before):
    assert len(found) == len(before)
    for ours, theirs in zip(found, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "kind, kernel",
    [
        (EmpiricalNTKClassifier, "pseudo"),
        (EmpiricalNTKClassifierCV, kernel_of_scalar_products),
        (EmpiricalNTKRegressor, "precomputed"),
        (EmpiricalNTKRegressorCV, "class"),
    ],
)
def test_a_machine_answers_by_the_kernel_that_was_fitted(kind, kernel, tmp_path):
    y = LABELS if kind in CLASSIFIERS else TARGETS
    machine = kind(NETWORK, random_state=0).fit(X, y)
    before = everything(machine)
    set_all(machine, tmp_path, kernel=kernel)
    # nothing of it may come from what was kept when it was asked before
    require_same(everything(pickle.loads(pickle.dumps(machine))), before)
    require_same(everything(machine), before)
    assert machine.kernel_ == "trace" and machine.kernel is kernel
    assert machine.perturb(Z, machine.predict(Z), PGD(0.1, n_steps=2, bounds=None)).shape == Z.shape
    assert not (tmp_path / "set later").exists()


@pytest.mark.parametrize("kind", [EmpiricalNTKRegressor, EmpiricalNTKRegressorCV])
def test_a_precomputed_machine_stays_one_and_the_next_fit_takes_the_new_kernel(kind):
    inputs = kind(NETWORK, random_state=0).fit(X, TARGETS)
    machine = kind(kernel="precomputed").fit(inputs.gram(X), TARGETS)
    K = inputs.gram(Z, X)
    before, terms = machine.predict(K), machine.attribute(K)
    machine.set_params(kernel="pseudo", estimator=NETWORK, random_state=0)
    np.testing.assert_array_equal(machine.predict(K), before)
    np.testing.assert_array_equal(machine.attribute(K), terms)
    with pytest.raises(ValueError, match="knows numbers"):
        machine.ood_score(K)
    # a fit that fails at the door leaves what was there
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        machine.fit(X, TARGETS[:4])
    again = machine.fit(X, TARGETS)
    assert again.kernel_ == "pseudo"
    expected = kind(NETWORK, kernel="pseudo", random_state=0).fit(X, TARGETS)
    require_same(everything(again), everything(expected))


def test_a_file_holds_the_kernel_that_was_fitted(tmp_path):
    machine = EmpiricalNTKClassifier(NETWORK, random_state=0).fit(X, LABELS)
    before = everything(machine)
    machine.set_params(kernel="pseudo").save(tmp_path / "machine.ntk")
    loaded = load(tmp_path / "machine.ntk")
    require_same(everything(loaded), before)
    assert clone(loaded).fit(X, LABELS).kernel_ == "pseudo"


@pytest.mark.parametrize("first, then", [("sgd", "cholesky"), ("cholesky", "sgd")])
def test_a_machine_answers_by_the_solver_that_was_fitted(first, then):
    machine = EmpiricalNTKClassifier(NETWORK, solver=first, max_epochs=1, random_state=0).fit(X, LABELS)
    before = machine.decision_function(Z), machine._rows
    machine.set_params(solver=then, kernel="pseudo")
    np.testing.assert_array_equal(machine.decision_function(Z), before[0])
    assert machine._rows == before[1]


@pytest.mark.parametrize(
    "estimator",
    [
        TangentFeatures(NETWORK, random_state=0),
        TangentFeatures(NETWORK, n_components=5, random_state=0),
        RobustFeatureSelector(NETWORK, criterion="usefulness", n_candidates=4, n_features=2, random_state=0),
        AdversarialKernelTrainer(NETWORK, max_epochs=1, random_state=0),
    ],
    ids=["features", "projected", "selected", "trained"],
)
def test_transformers_and_trainers_answer_by_what_was_fitted(estimator, tmp_path):
    fitted = clone(estimator).fit(X, LABELS)
    ask = fitted.transform if hasattr(fitted, "transform") else fitted.decision_function
    before = ask(Z)
    set_all(fitted, tmp_path, kernel="pseudo" if fitted.get_params().get("kernel") == "trace" else "trace")
    np.testing.assert_array_equal(ask(Z), before)


def test_a_machine_that_was_fitted_with_a_cache_answers_from_its_file_to_the_last_bit(tmp_path):
    for kind, y in ((EmpiricalNTKClassifier, LABELS), (EmpiricalNTKRegressorCV, TARGETS)):
        machine = kind(NETWORK, random_state=0, cache=tmp_path / "cache").fit(X, y)
        machine.save(tmp_path / "machine.ntk")
        loaded = load(tmp_path / "machine.ntk")
        assert loaded.cache is None
        before = everything(machine)
        require_same(everything(loaded), before)
        require_same(everything(machine.set_params(cache=None)), before)
        for few in (1, 15, 16, 20):
            np.testing.assert_array_equal(loaded.predict(Z[:few]), machine.predict(Z[:few]))
