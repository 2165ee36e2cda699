"""The kernel of infinite width: the limit of finite ones, wherever a kernel is taken."""

import pickle
from functools import cache, partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    MLP,
    PGD,
    EmpiricalNTKClassifier,
    InfiniteNTK,
    Model,
    gram,
    load,
    saved_as,
)
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels import StoreMismatchError, import_neural_tangents
from ntkrobust_sk.testing import check_kernel

if find_spec("neural_tangents") is None or find_spec("frozendict") is None:
    pytest.skip("needs: pip install --no-deps neural-tangents==0.6.5 frozendict", allow_module_level=True)

rng = np.random.default_rng(0)
X, y = rng.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3


@saved_as("tests.infinite")
def network(stax):
    return stax.serial(stax.Dense(32), stax.Relu(), stax.Dense(3))


KERNEL = InfiniteNTK(network)
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def arc_cosine(x, z):
    """The tangent kernel of one hidden layer of ReLUs, by the formula of Cho & Saul 2009 and Jacot et al. 2018."""
    d = x.shape[1]
    linear = x @ z.T / d
    lengths = np.sqrt((x**2).sum(1)[:, None] * (z**2).sum(1)) / d
    angle = np.arccos(np.clip(linear / lengths, -1, 1))
    relu = lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return relu + linear * (np.pi - angle) / (2 * np.pi), relu


@pytest.mark.parametrize("at, kind", [(0, "ntk"), (1, "nngp")])
def test_it_is_the_closed_form_of_one_hidden_layer(at, kind):
    K = gram(InfiniteNTK(network, kind), None, X, X[:5])
    np.testing.assert_allclose(K, arc_cosine(X, X[:5])[at], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_wider_and_wider_networks_approach_it_as_one_over_the_root_of_the_width():
    @cache
    def wide(width):
        return InfiniteNTK(lambda stax: stax.serial(stax.Dense(width), stax.Relu(), stax.Dense(3)))

    limit, errors = gram(KERNEL, None, X), []
    for width in (64, 1024):
        found = [gram("trace", wide(width).finite(jax.random.key(seed), (4,)), X) for seed in range(6)]
        errors.append(np.sqrt(np.mean([(K - limit) ** 2 for K in found])))
    # a factor of 4 in all, were there no chance in 6 draws
    assert 2.5 < errors[0] / errors[1] < 6.5


def test_a_store_of_it_goes_on_without_a_model_and_knows_another_kernel(tmp_path):
    first = gram(KERNEL, None, X[:7], store=tmp_path / "K")
    np.testing.assert_array_equal(gram(KERNEL, None, X, store=tmp_path / "K")[:7, :7], first)
    with pytest.raises(StoreMismatchError, match=r"function: network or kernel compute something else|kernel:"):
        gram(InfiniteNTK(network, "nngp"), None, X, store=tmp_path / "K")


def test_it_keeps_the_laws_of_a_kernel_and_takes_double_precision():
    # the angles of single precision would be off by 1e-4
    double = gram(KERNEL, None, X, dtype="float64")
    np.testing.assert_allclose(double, arc_cosine(X.astype(float), X.astype(float))[0], rtol=1e-7, atol=1e-9)
    with enable_x64(True):
        assert gram(KERNEL, None, X.astype(float)).dtype == np.float64
        check_kernel(KERNEL, KERNEL.finite(jax.random.key(0), (4,)), X.astype(float), tangent=False)


def test_a_machine_on_it_is_attacked_saved_and_pickled(tmp_path):
    machine = EmpiricalNTKClassifier(MLP(widths=(3,)), kernel=KERNEL, alpha=1e-3, random_state=0).fit(X, y)
    K = arc_cosine(X.astype(float), X.astype(float))[0]
    np.testing.assert_allclose(
        machine.decision_function(X), K @ machine.dual_coef_ + machine.intercept_, rtol=1e-3, atol=1e-3
    )
    attacked = machine.perturb(X, y, PGD(0.5, n_steps=3, bounds=None))
    true = np.arange(len(y)), y
    assert (machine.decision_function(attacked)[true] < machine.decision_function(X)[true]).mean() > 0.8
    machine.save(tmp_path / "machine.ntk")
    for again in (load(tmp_path / "machine.ntk"), pickle.loads(pickle.dumps(machine))):
        np.testing.assert_array_equal(again.decision_function(X), machine.decision_function(X))


def test_its_gradient_is_the_slope_of_differences():
    with enable_x64(True):
        x = X.astype(float)

        @quickly
        def slopes(x, step):
            def summed(x):
                return (KERNEL(None, x, X.astype(float)) ** 2).sum()

            return (jax.grad(summed)(x) * step).sum(), (summed(x + 1e-5 * step) - summed(x - 1e-5 * step)) / 2e-5

        found, expected = slopes(x + 0.1, rng.normal(size=x.shape))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "make, error, said",
    [
        (lambda: InfiniteNTK(3), TypeError, "network must be .init_fn, apply_fn, kernel_fn.*got 3"),
        (lambda: InfiniteNTK((len, len)), TypeError, "network must be .init_fn"),
        (lambda: InfiniteNTK(lambda: None), TypeError, "callable as network.stax."),
        (lambda: InfiniteNTK(MLP), TypeError, "network must be an instance"),
        (lambda: InfiniteNTK(network, "ntkk"), ValueError, "unknown kind 'ntkk'; known are 'ntk', 'nngp'"),
        (lambda: gram(InfiniteNTK(lambda stax: 3), None, X), TypeError, "network must be .*got 3"),
        (lambda: gram(KERNEL, None, X[:, :, None, None]), ValueError, "not one number for each pair; end the net"),
        (lambda: gram("trace", None, X), TypeError, "model must be a ntkrobust_sk.Model, got None"),
        (lambda: gram(lambda model, x, z: x @ z.T, None, X), TypeError, "model must be .*got None"),
        (lambda: gram(KERNEL, None, X, by_layer=True), ValueError, "by_layer needs a kernel made of tangent"),
        (lambda: gram(InfiniteNTK, None, X), TypeError, "kernel must be an instance"),
        (lambda: gram(convolutional, None, X), ValueError, r"cannot take inputs of shape \(n, 4\): .*Error"),
    ],
)
def test_what_is_no_such_network_or_does_not_fit_is_said(make, error, said):
    with pytest.raises(error, match=said):
        make()


convolutional = InfiniteNTK(lambda stax: stax.serial(stax.Conv(3, (3, 3)), stax.Flatten(), stax.Dense(2)))


def test_a_tuple_of_functions_is_a_network_and_is_told_that_files_need_a_name(tmp_path):
    stax = import_neural_tangents().stax
    kernel = InfiniteNTK(list(network(stax)))
    np.testing.assert_array_equal(gram(kernel, None, X), gram(KERNEL, None, X))
    assert isinstance(kernel.finite(jax.random.key(0), (4,)), Model)
    assert kernel == InfiniteNTK(kernel.network) and hash(kernel) == hash(InfiniteNTK(kernel.network))
    machine = EmpiricalNTKClassifier(MLP(widths=(3,)), kernel=kernel, random_state=0).fit(X, y)
    with pytest.raises(TypeError, match="is a function, which is code; register it"):
        machine.save(tmp_path / "machine.ntk")


def test_integers_are_numbers():
    whole = rng.integers(0, 9, (5, 4))
    np.testing.assert_allclose(gram(KERNEL, None, whole), gram(KERNEL, None, whole.astype(np.float32)), rtol=1e-6)
    assert jnp.issubdtype(KERNEL(None, whole, whole).dtype, jnp.floating)


def leaky(stax):
    layers = stax.Dense(32), stax.LeakyRelu(0.1), stax.Dense(32), stax.Abs(), stax.Dense(3)
    return stax.serial(*layers)


def with_biases(stax):
    return stax.serial(stax.Dense(32, b_std=0.1), stax.Relu(), stax.Dense(3))


def without_activations_like_relu(stax):
    return stax.serial(stax.Dense(32), stax.Erf(), stax.Dense(3))


@pytest.mark.parametrize("made_of", [network, leaky])
@pytest.mark.parametrize("size", [1e-17, 1e-12, 1e-10, 1e9, 1e12, 1e18])
def test_inputs_of_any_size_have_the_kernel_of_those_near_one_times_their_squares(size, made_of):
    kernel = InfiniteNTK(made_of)
    expected = gram(kernel, None, X, X[:5], dtype="float64")
    found = gram(kernel, None, X * np.float32(size), X[:5] * np.float32(size)).astype(float) / size**2
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())
    far = gram(kernel, None, X * np.float32(size), X[:5] / np.float32(size))
    np.testing.assert_allclose(far, expected, atol=2e-3 * expected.max())


def test_gradients_at_large_inputs_are_those_near_one():
    def total(x, others):
        return KERNEL(None, x, others).sum()

    plain = quickly(jax.grad(total))(X[:2], X[3:6])
    np.testing.assert_allclose(quickly(jax.grad(total))(X[:2] * 2.0**50, X[3:6]), plain, rtol=1e-5)
    zero = quickly(jax.grad(total))(np.zeros((1, 4), np.float32), X[3:6])
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("made_of", [with_biases, without_activations_like_relu])
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_networks_that_do_not_scale_with_inputs_refuse_what_single_precision_cannot_hold(size, made_of):
    kernel = InfiniteNTK(made_of)
    with pytest.raises(FloatingPointError, match=r"inputs are too large or too small.*dtype='float64'"):
        gram(kernel, None, X * np.float32(size))
    if made_of is with_biases:
        assert np.isfinite(gram(kernel, None, X.astype(float) * size, dtype="float64")).all()
    expected = gram(kernel, None, X, dtype="float64")
    np.testing.assert_allclose(gram(kernel, None, X), expected, rtol=1e-3, atol=1e-3)
