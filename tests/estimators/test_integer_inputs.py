"""Integers reach networks as integers through every estimator, and attacks refuse networks that only look up."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ntkrobust_sk import (
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Model,
    RobustFeatureSelector,
    Stateless,
    TangentFeatures,
    Variables,
    gram,
    ntk_features,
    robust_accuracy,
)
from ntkrobust_sk.robustness.target import attackable

random = np.random.default_rng(0)
PARAMS = {
    "E": jnp.asarray(random.normal(size=(1000, 4)), jnp.bfloat16),
    "W": jnp.asarray(random.normal(size=(4, 3)), jnp.bfloat16),
}
# bfloat16 does not tell 257 from 256
X, Y = random.integers(257, 1000, size=(24, 5)), np.arange(24) % 3
ATTACK = PGD(0.1, 1, bounds=None)


def looked_up(params, ids):
    return params["E"][ids].mean(1) @ params["W"]


def cast_first(params, ids):
    return params["E"][ids.astype(int)].mean(1) @ params["W"]


MODELS = {"indexed": Model(Stateless(looked_up), Variables(PARAMS))}
MODELS["cast first"] = Model(Stateless(cast_first), Variables(PARAMS))
FORMS = {
    "int64": lambda: X,
    "int16": lambda: X.astype(np.int16),
    "unsigned": lambda: X.astype(np.uint32),
    "lists": X.tolist,
    "a frame": lambda: pd.DataFrame(X, columns=list("abcde")),
    "a frame of nullable integers": lambda: pd.DataFrame(X, columns=list("abcde")).astype("Int64"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_kernel_machines_answer_with_the_kernel_of_the_integers(form, name):
    machine = EmpiricalNTKClassifier(MODELS[name]).fit(FORMS[form](), Y)
    K = np.asarray(gram("trace", Model(Stateless(looked_up), Variables(PARAMS)), X), float)
    scores = machine.decision_function(FORMS[form]())
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, K @ machine.dual_coef_ + machine.intercept_, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", ["standard", "linearized"])
def test_a_trained_network_answers_as_itself_on_integers(dynamics):
    trainer = AdversarialKernelTrainer(MODELS["cast first"], dynamics=dynamics, max_epochs=1, random_state=0)
    scores = trainer.fit(X, Y).decision_function(X)
    np.testing.assert_allclose(scores, trainer.model_(X).astype(float), atol=2e-2)
    assert np.unique(scores, axis=0).shape == scores.shape


@pytest.mark.slow
def test_features_and_regressors_see_the_integers():
    model = MODELS["indexed"]
    Z = TangentFeatures(model).fit(X).transform(X)
    K = np.asarray(gram("pseudo", model, X), float)
    np.testing.assert_allclose(Z @ Z.T, K, atol=1e-2 * K.max())
    assert Z.dtype == np.float64
    assert EmpiricalNTKRegressor(model).fit(X, X[:, 0]).predict(X).shape == (24,)
    assert EmpiricalNTKClassifier(model, solver="sgd", max_epochs=1).fit(X, Y).score(X, Y) >= 0
    selector = RobustFeatureSelector(model, criterion="usefulness", n_features=2, n_candidates=3)
    assert selector.fit(X, Y).transform(X).shape == (24, 2)


ATTACKED = {
    "robust_score": lambda model: EmpiricalNTKClassifier(model).fit(X, Y).robust_score(X, Y, ATTACK),
    "robust_accuracy": lambda model: robust_accuracy(EmpiricalNTKClassifier(model).fit(X, Y), X, Y, ATTACK),
    "a model": lambda model: attackable(model, X, Y),
    "training": lambda model: AdversarialKernelTrainer(model, attack=ATTACK).fit(X, Y),
    "a kernel machine's training": lambda model: EmpiricalNTKClassifier(model, solver="sgd", attack=ATTACK).fit(
        X, Y
    ),
    "eigenfeatures": lambda model: RobustFeatureSelector(model, attack=ATTACK).fit(X, Y),
    "ntk_features": lambda model: ntk_features(
        "trace", model, X, Y, X, Y, ATTACK, n_features=1, key=jax.random.key(0)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ATTACKED)
def test_attacks_on_networks_that_take_integers_alone_are_refused(way):
    with pytest.raises(TypeError, match="takes integers alone"):
        ATTACKED[way](MODELS["indexed"])
    with pytest.raises(TypeError, match="scores of X as floats are not those of X as integers"):
        ATTACKED[way](MODELS["cast first"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        EmpiricalNTKClassifier(random_state=0),
        AdversarialKernelTrainer(random_state=0, max_epochs=1, attack=ATTACK),
    ],
    ids=["machine", "trainer"],
)
def test_counts_are_numbers_to_ordinary_networks_as_before(estimator):
    counts = random.integers(0, 300, size=(24, 4))
    labels = (counts[:, 0] > 150).astype(int)
    found = estimator.fit(counts, labels).decision_function(counts)
    attacked = estimator.perturb(counts, labels, ATTACK)
    np.testing.assert_allclose(np.abs(attacked - counts).max(), 0.1, rtol=1e-3)
    expected = estimator.fit(counts.astype(float), labels).decision_function(counts.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(attacked, estimator.perturb(counts.astype(float), labels, ATTACK))


def test_integers_that_would_be_cut_off_are_refused():
    with pytest.raises(ValueError, match="X holds integers that do not fit int32"):
        EmpiricalNTKClassifier(random_state=0).fit(X + 2**40, Y)
