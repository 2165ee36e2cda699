"""Gradients that are not finite are told of, and those that are very small or large are used."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    AutoAttack,
    Square,
    minimal_perturbations,
    robust_accuracy,
    robustness_report,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(12, 4)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
Y = np.asarray((X @ W).argmax(1))
w = np.array([1, -1, 0.5, -0.5], np.float32)


@jax.tree_util.Partial
def without_gradients(x):
    return x @ W + jnp.linalg.norm(0 * x, axis=1, keepdims=True)


@jax.tree_util.Partial
def with_gradients(x):
    return x @ W


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "gradients are not finite" in str(w.message)]


@pytest.mark.parametrize(
    "attack", [PGD(0.2, 2), FGSM(0.2), FAB(0.2, 2), FMN(0.2, 2)], ids=lambda a: type(a).__name__
)
def test_gradients_that_are_not_finite_are_told_of_once_with_their_number(attack):
    found = told(lambda: robust_accuracy(without_gradients, X, Y, attack))
    assert len(found) == 1
    assert "at 12 of 12 examples" in found[0]
    assert "Square" in found[0]
    assert not told(lambda: robust_accuracy(with_gradients, X, Y, attack))


def test_nobody_hears_of_gradients_that_are_not_needed():
    assert not told(lambda: robust_accuracy(without_gradients, X, Y, Square(0.2, 5)))


def test_only_the_examples_without_gradients_are_counted():
    def root(x):
        return x @ W + jnp.sqrt(jnp.abs(x[:, :1] - X[3, 0]))

    y = np.asarray(root(X).argmax(1))
    assert "at 1 of 12 examples" in told(lambda: minimal_perturbations(root, X, y, FAB(1.0, 2)))[0]


def test_gradients_that_are_lost_beside_the_inputs_are_told_of():
    def flat(x):
        return jnp.where((x[:, :1] > 0.5), x @ W + jnp.linalg.norm(0 * x, axis=1, keepdims=True), x @ W)

    inside = np.full((8, 4), 0.5, np.float32)
    y = np.zeros(8, int)
    assert told(lambda: robust_accuracy(flat, inside, y, PGD(0.2, 1)))


@pytest.mark.parametrize(
    "call",
    [
        lambda f: minimal_perturbations(f, X, Y, FMN(1.0, 2)),
        lambda f: robustness_report(f, X, Y, [0.1, 0.2], attacks=PGD(0.1, 2), nearest=FMN(1.0, 2)),
        lambda f: robust_accuracy(f, X, Y, AutoAttack(0.1, n_steps=2, n_queries=5)),
    ],
    ids=["minimal_perturbations", "robustness_report", "AutoAttack"],
)
def test_evaluations_tell_once_of_gradients_that_are_not_finite(call):
    assert len(told(lambda: call(without_gradients))) == 1
    assert not told(lambda: call(with_gradients))


def test_the_look_at_gradients_does_not_compile_by_the_number_of_rows():
    from ntkrobust_sk.attacks import _lost

    robust_accuracy(with_gradients, X, Y, PGD(0.2, 1))
    compiled = _lost._cache_size()
    robust_accuracy(with_gradients, X[:7], Y[:7], PGD(0.2, 1))
    assert _lost._cache_size() == compiled


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize(
    ("attack", "norm"),
    [(FMN, "l2"), (FMN, "linf"), (FMN, "l1"), (FAB, "l2"), (FAB, "linf"), (FAB, "l1"), (DDN, "l2")],
)
def test_the_boundary_of_a_linear_function_is_found_at_any_scale_of_its_scores(scale, attack, norm):
    options = {} if attack is DDN else {"norm": norm}
    of_scale = jax.tree_util.Partial(linear, jnp.float32(scale))
    dual = {"l2": 2, "linf": 1, "l1": np.inf}[norm]
    exact = abs(X @ w) / np.linalg.norm(w, dual)
    found = minimal_perturbations(of_scale, X, (X @ w < 0) * 1, attack(1e9, bounds=None, n_steps=20, **options))
    np.testing.assert_allclose(found, exact, rtol=3e-3)


def linear(scale, x):
    return jnp.stack([scale * (x @ w), jnp.zeros(len(x))], 1)


@pytest.mark.parametrize("labels", [[0], [1], [0, 1]])
def test_one_column_of_scores_has_the_distances_of_labels_0_and_1(labels):
    y = (X @ w > 0) * 1
    at = np.isin(y, labels)
    one_column = jax.tree_util.Partial(lambda x: (x @ w)[:, None])
    found = minimal_perturbations(one_column, X[at], y[at], FMN(1e9, 20, norm="l2", bounds=None))
    np.testing.assert_allclose(found, abs(X[at] @ w) / np.linalg.norm(w), rtol=3e-3)


def test_labels_of_a_function_are_refused_without_a_word_of_fit():
    with pytest.raises(ValueError, match="positions of its scores, 0 to 2") as caught:
        minimal_perturbations(with_gradients, X, Y + 2)
    assert "fit" not in str(caught.value)
