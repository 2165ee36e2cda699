"""Gradients that are not finite are told of, and those that are very small or large are used."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norms_in_numpy import DUALS

from ntkrobust_sk import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    AutoAttack,
    Box,
    Square,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
)
from ntkrobust_sk.attacks.autoattack import _differ

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [PGD(0.2, 2), FGSM(0.2), FAB(0.2, 2), FMN(0.2, 2)], ids=lambda a: type(a).__name__
)
def test_gradients_that_are_not_finite_are_told_of_once_with_their_number(attack):
    found = told(lambda: robust_accuracy(without_gradients, X, Y, attack))
    assert len(found) == 1
    assert "at 12 of 12 examples" in found[0]
    assert "Square" in found[0]
    assert not told(lambda: robust_accuracy(with_gradients, X, Y, attack))


@pytest.mark.slow
def test_nobody_hears_of_gradients_that_are_not_needed():
    assert not told(lambda: robust_accuracy(without_gradients, X, Y, Square(0.2, 5)))


@pytest.mark.slow
def test_only_the_examples_without_gradients_are_counted():
    def root(x):
        return x @ W + jnp.sqrt(jnp.abs(x[:, :1] - X[3, 0]))

    y = np.asarray(root(X).argmax(1))
    assert "at 1 of 12 examples" in told(lambda: minimal_perturbations(root, X, y, FAB(1.0, 2)))[0]


@pytest.mark.slow
def test_gradients_that_are_lost_beside_the_inputs_are_told_of():
    def flat(x):
        return jnp.where((x[:, :1] > 0.5), x @ W + jnp.linalg.norm(0 * x, axis=1, keepdims=True), x @ W)

    inside = np.full((8, 4), 0.5, np.float32)
    y = np.zeros(8, int)
    assert told(lambda: robust_accuracy(flat, inside, y, PGD(0.2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [PGD(0.3, 5), APGD(0.3, 5), FMN(0.3, 5), FAB(0.3, 5)], ids=lambda a: type(a).__name__
)
def test_gradients_that_are_lost_on_the_way_are_told_of(attack):
    """Beyond a wall the gradient is NaN; the input and a random start near it lie before the wall."""

    @jax.tree_util.Partial
    def walled(x):
        score = 4 * x[:, :1] - 3
        return jnp.hstack(
            [-score, score + jnp.where(x[:, :1] > 0.7, jnp.linalg.norm(0 * x, axis=1, keepdims=True), 0)]
        )

    x, y = np.full((3, 4), 0.5, np.float32), np.zeros(3, int)
    assert "at 3 of 3 examples" in told(lambda: robust_accuracy(walled, x, y, attack))[0]


@pytest.mark.slow
def test_gradients_of_what_may_not_change_are_no_matter():
    def rooted(x):
        return x @ W + jnp.sqrt(x[:, :1])

    x = X.copy()
    x[:, 0] = 0
    y = np.asarray((x @ W).argmax(1))
    for mask in ([False, True, True, True], [True, True, True, True]):
        attacks = PGD(0.2, 2, bounds=Box(mask=mask)), FMN(0.2, 2, bounds=Box(mask=mask))
        for attack in attacks:
            assert bool(told(partial(robust_accuracy, rooted, x, y, attack))) == mask[0]
        assert bool(told(partial(minimal_perturbations, rooted, x, y, attacks[1]))) == mask[0]


@pytest.mark.slow
def test_an_attack_that_changes_how_it_is_called_is_called_so_and_looked_at():
    class Halfway(PGD):
        def __call__(self, model, x, y, *, key):
            return (x + super().__call__(model, x, y, key=key)) / 2

    half, whole = (perturb(with_gradients, X, Y, kind(0.2, 5, random_start=False)) for kind in (Halfway, PGD))
    np.testing.assert_allclose(half, (X + whole) / 2, atol=1e-6)
    assert told(lambda: robust_accuracy(without_gradients, X, Y, Halfway(0.2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_scores_that_are_infinite_are_flagged_and_nothing_else_is_said(value):
    @jax.tree_util.Partial
    def infinite(x):
        return jnp.where(x[:, :1] > 0.5, (x @ W).at[:, 1].set(value), x @ W)

    far = X[:, 0] > 0.5
    y = np.asarray(infinite(X).argmax(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flags = AutoAttack(0.01, n_steps=2, n_queries=5).run(infinite, X, y, key=jax.random.key(0)).flags
    assert f"scores that are infinite: at {far.mean():.0%} of the inputs" in flags
    assert not any("randomness" in flag for flag in flags)


@pytest.mark.parametrize(
    ("again", "random"),
    [
        ([1, np.inf], False),
        ([1 + 1e-6, np.inf], False),
        ([1.1, np.inf], True),
        ([1, -np.inf], True),
        ([1, 1], True),
    ],
)
def test_scores_of_which_some_are_infinite_are_random_where_they_differ(again, random):
    assert _differ(np.array([[1, np.inf]]), np.array([again])) == random


@pytest.mark.slow
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
    from ntkrobust_sk.attacks.tiled import _lost

    robust_accuracy(with_gradients, X, Y, PGD(0.2, 1))
    compiled = _lost._cache_size()
    robust_accuracy(with_gradients, X[:7], Y[:7], PGD(0.2, 1))
    assert _lost._cache_size() == compiled


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize(
    ("attack", "norm"),
    [(FMN, "l2"), (FMN, "linf"), (FMN, "l1"), (FAB, "l2"), (FAB, "linf"), (FAB, "l1"), (DDN, "l2")],
)
def test_the_boundary_of_a_linear_function_is_found_at_any_scale_of_its_scores(scale, attack, norm):
    options = {} if attack is DDN else {"norm": norm}
    of_scale = jax.tree_util.Partial(linear, jnp.float32(scale))
    exact = abs(X @ w) / np.linalg.norm(w, DUALS[norm])
    found = minimal_perturbations(of_scale, X, (X @ w < 0) * 1, attack(1e9, bounds=None, n_steps=20, **options))
    np.testing.assert_allclose(found, exact, rtol=3e-3)


def linear(scale, x):
    return jnp.stack([scale * (x @ w), jnp.zeros(len(x))], 1)


@pytest.mark.slow
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
