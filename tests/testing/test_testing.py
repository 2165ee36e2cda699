"""The checks for users: they pass on the package's kernels, and each finds the fault it is for."""

import subprocess
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

import ntkrobust_sk.testing
from ntkrobust_sk import CNN, MLP, ClassNTK, FullNTK, Model, TraceNTK, Variables, gram
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.plan import Plan
from ntkrobust_sk.testing.laws import (
    check_diagonal,
    check_dtype_drift,
    check_kernel,
    check_permutation_equivariance,
    check_positive_semidefinite,
    check_predictor,
    check_scaling,
    check_shape,
    check_symmetric,
    check_tiling_invariance,
)
from ntkrobust_sk.testing.strategies import inputs, models, networks, tilings

# Every network and every number of inputs is compiled anew: so few of both, and many weights and inputs.
few = settings(
    max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
many = settings(few, max_examples=100)
SHAPE = (4,)
SMALL = MLP(n_outputs=2, widths=(3,), activation="gelu")


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: SMALL.init(jax.random.key(0), SHAPE)).params
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Model(SMALL, Variables(params)), rng.normal(size=(5, *SHAPE)).astype(np.float32)


# Properties of the package's own kernels


@pytest.mark.slow
def test_a_convolutional_network_has_one_gram_matrix_in_all_tilings():
    network, shape = CNN(n_outputs=2, widths=(2,), strides=(2,)), (5, 3, 1)
    X = np.random.default_rng(1).uniform(size=(4, *shape))
    check_tiling_invariance("trace", Model(network, network.init(jax.random.key(0), shape)), X)


@pytest.mark.slow
@few
@given(models(SHAPE, networks=st.just(SMALL)), inputs(SHAPE, n_samples=5))
def test_whatever_weights_and_inputs_the_trace_kernel_is_a_tangent_kernel(model, X):
    check_kernel("trace", model, X)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["class", "full", "pseudo"])
def test_the_other_kernels_of_the_package_pass_every_check(kernel, case):
    check_kernel(kernel, *case)


@pytest.mark.slow
@few
@given(models(SHAPE, networks=st.just(SMALL)), inputs(SHAPE, n_samples=5, bounds=(-2.0, 2.0)))
def test_whatever_weights_and_inputs_every_kernel_is_symmetric_and_positive_semidefinite(model, X):
    for kernel in KERNELS:
        check_symmetric(kernel, model, X)
        check_positive_semidefinite(kernel, model, X)
        check_permutation_equivariance(kernel, model, X)


@pytest.mark.slow
@few
@given(st.data(), models(SHAPE, networks=st.just(SMALL)), inputs(SHAPE, n_samples=5))
def test_whatever_the_tiling_the_gram_matrix_is_the_same(data, model, X):
    plan = data.draw(tilings("trace", model, SHAPE, max_rows=4))
    found, whole = gram("trace", model, X, plan=plan), gram("trace", model, X)
    np.testing.assert_allclose(found, whole, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(whole).max())


# Kernels with a fault


def scaled_by_row(model, x1, x2):
    return TraceNTK()(model, x1, x2) * (1 + jnp.abs(x1).sum(1))[:, None]


def negative(model, x1, x2):
    return -TraceNTK()(model, x1, x2)


def negative_for_one_class(model, x1, x2):
    return ClassNTK()(model, x1, x2) * jnp.array([1.0, -1.0])


def negative_across_classes(model, x1, x2):
    return FullNTK()(model, x1, x2) * jnp.array([[1.0, 9.0], [9.0, 1.0]])


def not_swapped_across_classes(model, x1, x2):
    return FullNTK()(model, x1, x2) * jnp.array([[1.0, 0.5], [2.0, 1.0]])


def centred_in_its_block(model, x1, x2):
    K = TraceNTK()(model, x1, x2)
    return K - K.mean()


def by_position(model, x1, x2):
    return TraceNTK()(model, x1, x2) * (1 + jnp.arange(len(x1)))[:, None] * (1 + jnp.arange(len(x2)))


def by_number_of_rows(model, x1, x2):
    return TraceNTK()(model, x1, x2) * len(x1) * len(x2)


def of_probabilities(model, x1, x2):
    return jax.nn.softmax(model(x1)) @ jax.nn.softmax(model(x2)).T


def cancelling(model, x1, x2):
    z1, z2 = model(x1), model(x2)
    return (z1 + 1e3) @ (z2 + 1e3).T - 1e3 * (z1.sum(1)[:, None] + z2.sum(1)) - 1e6 * z1.shape[1]


def not_finite(model, x1, x2):
    return TraceNTK()(model, x1, x2) / 0


def without_columns(model, x1, x2):
    return model(x1)


def with_one_class_too_many(model, x1, x2):
    return jnp.concatenate([ClassNTK()(model, x1, x2)] * 2, axis=2)


@dataclass(frozen=True)
class OtherContraction(TraceNTK):
    """Its features say otherwise than its blocks."""

    def __call__(self, model, x1, x2):
        return 2 * TraceNTK()(model, x1, x2)


@dataclass(frozen=True)
class OtherFold(TraceNTK):
    """Its folded tangents say otherwise than its blocks."""

    def fold(self, features, dual):
        return [2 * leaf for leaf in TraceNTK().fold(features, dual)]


@dataclass(frozen=True)
class OtherRank(TraceNTK):
    """Its rank is not that of its blocks."""

    rank = 3

    def __call__(self, model, x1, x2):
        return TraceNTK()(model, x1, x2)


FAULTS = [
    (check_shape, without_columns, "has shape"),
    (check_shape, with_one_class_too_many, "has shape"),
    (check_shape, OtherRank(), "of rank 3"),
    (check_symmetric, scaled_by_row, "is not symmetric: entry"),
    (check_symmetric, not_swapped_across_classes, "is not symmetric: entry"),
    (check_symmetric, not_finite, "is not finite: entry"),
    (check_positive_semidefinite, negative, "is not positive semidefinite: its least eigenvalue is -"),
    (check_positive_semidefinite, negative_for_one_class, "is not positive semidefinite for class 1: its least"),
    (check_positive_semidefinite, negative_across_classes, "is not positive semidefinite: its least"),
    (check_permutation_equivariance, by_position, "depends on the order of its inputs: entry"),
    (check_diagonal, centred_in_its_block, "another diagonal than k\\(x, x\\): entry"),
    (check_diagonal, OtherContraction(), "another diagonal than k\\(x, x\\): entry"),
    (check_tiling_invariance, centred_in_its_block, "in tiles of 1 rows .* has other entries: entry"),
    (check_tiling_invariance, by_number_of_rows, "in tiles of 1 rows .* has other entries: entry"),
    (check_tiling_invariance, OtherContraction(), "has other entries"),
    (check_scaling, of_probabilities, "of 3 times the logits is not 9 times the kernel: entry"),
    (check_dtype_drift, cancelling, "in float32 is not what it is in float64: entry"),
    (check_predictor, OtherFold(), "predicts otherwise: entry"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "check, kernel, message",
    FAULTS,
    ids=[f"{check.__name__}-{getattr(k, '__name__', k)}" for check, k, _ in FAULTS],
)
def test_each_check_finds_its_fault(check, kernel, message, case):
    with pytest.raises(AssertionError, match=message):
        check(kernel, *case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [scaled_by_row, negative, by_position, of_probabilities, cancelling, OtherFold()]
)
def test_checking_a_kernel_finds_the_fault_whichever_it_is(kernel, case):
    with pytest.raises(AssertionError):
        check_kernel(kernel, *case)


@pytest.mark.slow
def test_a_kernel_that_is_no_tangent_kernel_need_not_scale_with_the_logits(case):
    check_kernel(of_probabilities, *case, tangent=False)


@pytest.mark.slow
def test_the_tolerance_is_what_the_caller_says(case):
    check_dtype_drift(cancelling, *case, rtol=1.0)
    with pytest.raises(AssertionError, match="1e-09 is allowed"):
        check_dtype_drift("trace", *case, rtol=1e-9)
    check_positive_semidefinite(negative, *case, tol=1.0)


def test_a_message_names_kernel_entry_values_and_what_was_allowed(case):
    def faulty(model, x1, x2):
        return (model(x1) @ model(x2).T).at[3, 1].set(1000.0)

    with pytest.raises(AssertionError) as caught:
        check_symmetric(faulty, *case)
    message = str(caught.value)
    assert "faulty" in message
    assert "entry (1, 3) is" in message
    assert "instead of 1000, off by" in message
    assert "of the largest entry where 7.6e-06 is allowed" in message


@pytest.mark.parametrize("X", [np.ones((1, 4)), np.ones(4)])
@pytest.mark.parametrize("check", [check_symmetric, check_kernel, check_scaling])
def test_checks_need_two_inputs(check, X, case):
    with pytest.raises(ValueError, match=r"at least two inputs, of shape \(n, ...\), got shape"):
        check("trace", case[0], X)


# Strategies


@many
@given(inputs((2, 3), n_samples=(2, 6), bounds=(-1.0, 3.0)))
def test_drawn_inputs_are_finite_floats_within_bounds(X):
    assert X.dtype == np.float32
    assert 2 <= len(X) <= 6
    assert X.shape[1:] == (2, 3)
    assert (X >= -1).all()
    assert (X <= 3).all()


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_drawn_inputs_reach_both_bounds_in_any_precision(bound):
    X = find(inputs((1,), n_samples=1, dtype=np.float64), lambda X: X[0, 0] == bound, settings=many)
    assert X.dtype == np.float64


@pytest.mark.slow
@many
@given(networks((5, 4, 2), n_outputs=(1, 3)))
def test_drawn_networks_have_variables_for_their_inputs(network):
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (5, 4, 2)))
    logits = jax.eval_shape(lambda v, x: Model(network, v)(x), shapes, np.zeros((3, 5, 4, 2), np.float32))
    assert logits.shape == (3, network.n_outputs)
    assert 1 <= network.n_outputs <= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_images_draw_both_kinds_of_network(kind):
    found = find(networks((5, 4, 2)), lambda network: isinstance(network, kind), settings=many)
    assert isinstance(found, kind)


@many
@given(networks((5,), n_outputs=2))
def test_rows_draw_dense_networks(network):
    assert isinstance(network, MLP)
    assert network.n_outputs == 2


@pytest.mark.slow
def test_drawn_models_differ_in_their_weights(case):
    strategy = models(SHAPE, networks=st.just(SMALL))
    first = find(strategy, lambda model: True, settings=few)
    other = find(strategy, lambda model: not np.array_equal(model(case[1]), first(case[1])), settings=many)
    assert first.network == other.network == SMALL


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["pseudo", of_probabilities])
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_drawn_tilings_are_plans_with_tiles_of_every_power_of_two(kernel, rows, case):
    def gives_them(plan):
        return plan.rows == rows

    plan = find(tilings(kernel, case[0], SHAPE, max_rows=8), gives_them, settings=many)
    assert isinstance(plan, Plan)
    assert gram(kernel, *case, plan=plan).shape == (5, 5)


def test_no_drawn_tiling_has_larger_tiles_than_asked_for(case):
    @many
    @given(tilings("trace", case[0], SHAPE, max_rows=6))
    def check(plan):
        assert plan.rows in {1, 2, 4}

    check()


@pytest.mark.slow
@pytest.mark.parametrize("tile_rows", [(3,), (6,), (128,), (1, 2, 3)], ids=str)
def test_tiles_of_any_size_are_compared(tile_rows, case):
    check_tiling_invariance("trace", *case, tile_rows=tile_rows)
    with pytest.raises(AssertionError, match=f"in tiles of {tile_rows[0]} rows"):
        check_tiling_invariance(by_number_of_rows, *case, tile_rows=tile_rows)


def test_without_hypothesis_checks_run_and_strategies_say_how_to_install_it(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    check_symmetric("trace", *case)
    for strategy in (lambda: inputs(SHAPE), lambda: networks(SHAPE), lambda: models(SHAPE)):
        with pytest.raises(ImportError, match="pip install hypothesis"):
            strategy()


@pytest.mark.slow
def test_the_checks_do_not_import_hypothesis():
    code = "import sys, ntkrobust_sk.testing; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_every_check_and_strategy_is_documented():
    public = [name for name in vars(ntkrobust_sk.testing) if name.startswith("check_")]
    assert len(public) == 10
    for name in [*public, "inputs", "networks", "models", "tilings"]:
        assert getattr(ntkrobust_sk.testing, name).__doc__
