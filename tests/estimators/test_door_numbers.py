"""Numbers that no answer can be computed from are refused where they come in."""

import dataclasses
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import (
    DDN,
    FAB,
    FGSM,
    FMN,
    MLP,
    AdversarialKernelTrainer,
    ClassNTK,
    Model,
    Stateless,
    TraceNTK,
    as_model,
    gram,
    robust_accuracy,
)

X = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
Y = np.arange(6) % 3
NET = MLP(3, widths=(5,))
MODEL = Model(NET, NET.init(jax.random.key(0), (4,)))
WRONG = {
    "nan": X * np.nan,
    "infinity": X + np.inf,
    "too large": X.astype(float) * 1e39,
    "on the device": jnp.asarray(X) * jnp.nan,
}


@pytest.mark.parametrize("kind", WRONG)
def test_kernels_and_models_refuse_inputs_that_are_not_finite_or_too_large(kind):
    wrong = WRONG[kind]
    for call in (lambda: MODEL(wrong), lambda: as_model(LogisticRegression().fit(X, Y))(wrong)):
        with pytest.raises(ValueError, match=r"^x .*(finite|float32 cannot)"):
            call()
    with pytest.raises(ValueError, match=r"^x2 .*(finite|float32 cannot)"):
        ClassNTK()(MODEL, X, wrong)
    with pytest.raises(ValueError, match=r"^X .*(NaN|float32 cannot)"):
        gram("trace", MODEL, wrong)


@pytest.mark.slow
def test_a_kernel_that_overflows_is_no_block():
    with pytest.raises(FloatingPointError, match="TraceNTK"):
        TraceNTK()(MODEL, X * 1e25, X * 1e25)


def test_traced_inputs_are_not_looked_at():
    assert np.isnan(jax.jit(lambda x: MODEL(x))(X * np.nan)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("attack", [FMN(0.5, 3), DDN(0.5, 3), FAB(0.5, 2)])
def test_minimum_norm_attacks_take_inputs_of_lower_precision_than_the_network(attack, dtype):
    found = jax.eval_shape(
        lambda x: attack(MODEL, x, jnp.asarray(Y), key=jax.random.key(0)), jnp.asarray(X, dtype)
    )
    assert found.shape == X.shape and found.dtype == dtype


@pytest.mark.parametrize("weight", [fractions.Fraction(1, 3), b"x", object(), jnp.float32(2), np.ones((6, 1))])
def test_weights_that_are_no_vector_are_refused_by_name(weight):
    trainer = AdversarialKernelTrainer(NET, max_epochs=1, random_state=0)
    for call in (
        lambda: trainer.fit(X, Y, sample_weight=weight),
        lambda: robust_accuracy(LogisticRegression().fit(X, Y), X, Y, FGSM(0.1), sample_weight=weight),
    ):
        with pytest.raises((TypeError, ValueError), match="sample_weight must"):
            call()


@pytest.mark.slow
def test_a_function_of_one_column_has_labels_zero_and_one():
    def score(x):
        return x[:, :1] - 0.5

    labels = (X[:, 0] > 0.5).astype(int)
    exact = np.mean(np.abs(X[:, 0] - 0.5) > 0.1)
    assert robust_accuracy(score, X, labels, FGSM(0.1)) == pytest.approx(exact)
    assert robust_accuracy(score, X, labels, FGSM(0.0)) == 1


def test_functions_are_no_classes_and_flags_no_numbers():
    with pytest.raises(TypeError, match="apply_fn must be an instance"):
        Stateless(FMN)
    with pytest.raises(TypeError, match="init_fn must be an instance"):
        Stateless(lambda params, x: x @ params, MLP)
    with pytest.raises(ValueError, match="zero_last_layer must be True or False"):
        dataclasses.replace(NET, zero_last_layer=0)
