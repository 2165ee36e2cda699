"""The reading of networks, verified: no sound network is refused, and every misreading is caught."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    CNN,
    PGD,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Model,
    Stateless,
    TraceNTK,
    Variables,
    from_flax,
    gram,
    linearize,
)
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels import verification
from ntkrobust_sk.tangent import layer_rules
from ntkrobust_sk.tangent import per_example as structure
from ntkrobust_sk.tangent.gradients import Layout

spec = importlib.util.spec_from_file_location(
    "fuzz_networks", Path(__file__).parents[2] / "examples" / "fuzz_networks.py"
)
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def of(apply, params):
    return Model(Stateless(lambda params, x: apply(params, x)), Variables(params))


def dense_kernel(apply, params, x, n_outputs):
    J = jax.tree.leaves(jax.jit(jax.jacrev(lambda params: apply(params, jnp.asarray(x))))(params))
    J = [np.asarray(leaf, float).reshape(len(x), n_outputs, -1) for leaf in J]
    return sum(np.einsum("ncp,mcp->nm", leaf, leaf) for leaf in J) / n_outputs


# among them every kind of layer, activation and dtype that the script draws
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1002, 1030, 1079, 1114, 1205, 1230, 1288])
def test_a_random_network_is_accepted_with_the_kernel_of_its_jacobian(seed):
    kind, found = fuzz.check(seed)
    assert found == "fine", kind


# Misreadings


def network(params, x):
    h = jnp.tanh(x.reshape(-1, 4, 2) @ (params["w"] / 2) + params["b"])
    h = h.reshape(len(x), -1) @ params["u"]
    return jnp.tanh(h) @ params["v"] + jnp.sin(h) @ params["v"] + params["c"]


PARAMS = {"w": normal(2, 3), "b": normal(3), "u": normal(12, 4), "v": normal(4, 2), "c": normal(2)}
X = np.asarray(normal(6, 8, seed=1))


def of_factors(function):
    return lambda found: None if found is None else function(found)


MISREADINGS = {
    "a transposition left out": (
        "_product",
        of_factors(lambda f: replace(f, layout=Layout(f.layout.shape).followed_by(*f.layout.steps[-1]))),
    ),
    "swapped positions": ("_as_of_parameter", of_factors(lambda f: replace(f, inputs=f.inputs[:, :, ::-1]))),
    "another scale": ("_as_of_parameter", of_factors(lambda f: replace(f, cotangents=f.cotangents * 1.000001))),
    "no scale at all": ("_is_one", lambda found: True),
    "a use that is dropped": ("_common_form", lambda found: found),
    "one use taken twice": ("concatenate_uses", of_factors(lambda f: f)),
    "cotangents in another order": (
        "_as_of_parameter",
        of_factors(lambda f: replace(f, cotangents=f.cotangents[..., ::-1])),
    ),
    "inputs of absolute value": ("_product", of_factors(lambda f: replace(f, inputs=abs(f.inputs)))),
    "a sign": ("_as_of_parameter", of_factors(lambda f: replace(f, inputs=-f.inputs))),
    "a direction's cotangents for another's": (
        "_as_of_parameter",
        of_factors(lambda f: replace(f, cotangents=f.cotangents[::-1])),
    ),
    "a position left out": (
        "_as_of_parameter",
        of_factors(lambda f: replace(f, cotangents=f.cotangents.at[..., 0, :].set(0))),
    ),
}


def misread(name, monkeypatch):
    place, change = MISREADINGS[name]
    original = getattr(layer_rules if place == "_product" else structure, place)
    if name == "a use that is dropped":
        monkeypatch.setattr(structure, place, lambda parts: original(parts[:1]))
    elif name == "one use taken twice":
        monkeypatch.setattr(structure, place, lambda parts: original([parts[0]] * len(parts)))
    elif place == "_product":
        monkeypatch.setitem(layer_rules.LINEAR, "dot_general", lambda *args: change(original(*args)))
    else:
        monkeypatch.setattr(structure, place, lambda *args: change(original(*args)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misreading_is_caught(name, monkeypatch):
    misread(name, monkeypatch)
    with pytest.raises(ArithmeticError, match="differ from a plain backward pass"):
        gram("trace", of(network, PARAMS), X)


@pytest.mark.slow
def test_rows_that_get_each_other_s_gradients_are_caught(monkeypatch):
    original = structure.layer_gradients

    def turned(apply, params, x, directions, **options):
        return original(apply, params, jnp.roll(x, 1, axis=0), directions, **options)

    monkeypatch.setattr(structure, "layer_gradients", turned)
    with pytest.raises(ArithmeticError):
        gram("trace", of(network, PARAMS), X)


@pytest.mark.slow
def test_the_conjugate_that_complex_layers_do_not_have_is_caught(monkeypatch):
    original = layer_rules._product
    monkeypatch.setitem(
        layer_rules.LINEAR,
        "dot_general",
        lambda *args: (lambda f: replace(f, inputs=f.inputs.conj()))(original(*args)),
    )
    with pytest.raises(ArithmeticError):
        gram("trace", of(lambda W, x: jnp.abs(jnp.fft.fft(x) @ W), normal(8, 3)), X)


@pytest.mark.slow
def test_nothing_hides_behind_weights_that_start_at_zero(monkeypatch):
    misread("swapped positions", monkeypatch)
    zero = {**PARAMS, "u": jnp.zeros((12, 4)), "v": jnp.zeros((4, 2))}
    with pytest.raises(ArithmeticError):
        gram("trace", of(network, zero), X)


@pytest.mark.slow
def test_one_row_that_fills_a_tile_proves_as_much_as_many():
    with pytest.raises(ArithmeticError, match="depend on the other rows"):
        gram("trace", of(lambda p, x: jnp.tanh(x - x.mean(0)) @ p, normal(8, 2)), X[:1])


@pytest.mark.slow
def test_reading_is_proved_in_double_precision_where_the_network_allows_it():
    kernel = gram("trace", of(network, PARAMS), X)
    np.testing.assert_allclose(kernel, dense_kernel(network, PARAMS, X, 2), rtol=1e-5)
    model = of(network, PARAMS)
    error, tolerance = verification.relative_error_to_backward(TraceNTK(), 2, model, X[:2])
    assert error < 1e-12 and tolerance == verification.EXACT


def flax_network(kind, dtype, n_outputs=3):
    """A module of Flax that computes in a dtype, its parameters in single precision, and inputs of it."""
    linen = pytest.importorskip("flax.linen")
    if kind == "MLP":
        layers, shape = [linen.Dense(64, dtype=dtype), linen.relu, linen.Dense(64, dtype=dtype), linen.relu], (8,)
    else:
        layers, shape = [linen.Conv(8, (3, 3), (2, 2), dtype=dtype), linen.relu], (6, 6, 2)
        layers += [linen.Conv(8, (3, 3), dtype=dtype), linen.relu, lambda h: h.reshape(len(h), -1)]
    inputs = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    return linen.Sequential([*layers, linen.Dense(n_outputs, dtype=dtype)]), inputs


def jacobian_kernel(kernel, module, variables, x):
    """A kernel of the dense Jacobian, taken in the module's own precision."""
    J = jax.tree.leaves(jax.jit(jax.jacrev(lambda variables: module.apply(variables, x)))(variables))
    J = np.concatenate([np.asarray(leaf, float).reshape(len(x), 3, -1) for leaf in J], 2)
    if kernel == "full":
        return np.einsum("ncp,mdp->nmcd", J, J)
    J = J / 3**0.5 if kernel == "trace" else J.sum(1, keepdims=True) / 3**0.5
    return np.einsum("ncp,mcp->nm", J, J)


@pytest.mark.slow
@pytest.mark.parametrize("kind, dtype", [("MLP", "bfloat16"), ("CNN", "bfloat16"), ("MLP", "float16")])
def test_mixed_precision_has_the_kernels_of_single_precision(kind, dtype):
    (single, x), (mixed, _) = flax_network(kind, jnp.float32), flax_network(kind, dtype)
    variables = jax.jit(single.init)(jax.random.key(1), x)
    for kernel in ("trace", "full", "pseudo"):
        exact = jacobian_kernel(kernel, single, variables, x)
        found = gram(kernel, from_flax(mixed, variables), x)
        floor = jacobian_kernel(kernel, mixed, variables, x)
        far, least = (np.linalg.norm(K - exact) / np.linalg.norm(exact) for K in (found, floor))
        assert found.dtype == np.float32
        # what the network's own rounding explains; 1/sqrt(3) rounded to bfloat16 would add 3e-3
        assert far < 3e-3 and far < 1.2 * least, (kernel, far, least)


@pytest.mark.slow
def test_a_scale_of_parameters_is_not_rounded_in_half_precision():
    def apply(params, x):
        low = x.astype(jnp.bfloat16)
        return low @ (params * 3**-0.5).astype(jnp.bfloat16)

    # inputs, and products with ones, are exact in bfloat16: there is nothing else to round
    x = np.asarray([[1.0, 2.0, 0.5], [0.25, 1.0, 3.0]], np.float32)
    found = gram("trace", of(apply, normal(3, 4)), x)
    np.testing.assert_allclose(found, x @ x.T / 3, rtol=1e-6)


# Complex intermediates

COMPLEX = {
    "a product": (lambda p, x: jnp.abs(jnp.fft.fft(x) @ p["w"]), {"w": normal(8, 3)}),
    "with a bias": (lambda p, x: jnp.abs(jnp.fft.fft(x) @ p["w"] + p["b"]), {"w": normal(8, 3), "b": normal(3)}),
    "times a complex number": (
        lambda p, x: jnp.abs(jnp.fft.fft(x) @ (p["w"] * (1 + 2j)) + p["b"] * 1j),
        {"w": normal(8, 3), "b": normal(3)},
    ),
    "two parts": (
        lambda p, x: jnp.fft.irfft(jnp.fft.rfft(x) * jax.lax.complex(p["re"], p["im"]), 8) @ p["v"],
        {"re": normal(5), "im": normal(5, seed=2), "v": normal(8, 3)},
    ),
    "conjugated": (lambda p, x: jnp.real(jnp.conj(p["w"].T * 1j) @ jnp.fft.fft(x).T).T, {"w": normal(8, 3)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLEX)
def test_real_parameters_that_meet_complex_data_have_real_kernels(name):
    apply, params = COMPLEX[name]
    found = gram("trace", of(apply, params), X)
    exact = dense_kernel(apply, params, X, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=1e-5 * exact.max())
    layers = gram("trace", of(apply, params), X, by_layer=True)
    np.testing.assert_allclose(sum(layers.values()), exact, atol=1e-5 * exact.max())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "class", "full", "pseudo"])
def test_machines_on_complex_layers_predict_and_are_attacked(kernel):
    apply, params = COMPLEX["two parts"]
    rows, y = np.asarray(normal(12, 8, seed=3)), np.arange(12) % 3
    machine = EmpiricalNTKClassifier(of(apply, params), kernel=kernel).fit(rows, y)
    assert machine.predictor_(rows).dtype == jnp.float32
    assert 0 <= machine.robust_score(rows, y, PGD(0.1, 2, bounds=None)) <= 1


# Biases that are not one for each unit, and columns for rows

BIASES = {
    "one for all units": (lambda p, x: jnp.tanh(p["w"] @ x.T + p["b"]).T, (1, 1)),
    "columns": (lambda p, x: jnp.tanh(p["w"] @ x.T + p["b"]).T, (5, 1)),
    "a scalar": (lambda p, x: jnp.tanh(p["w"] @ x.T + p["b"]).T, ()),
    "one for each position": (
        lambda p, x: jnp.tanh(x.reshape(-1, 2, 4) @ p["w"][:, :4].T + p["b"]).sum(1),
        (2, 1),
    ),
    "one for each pair": (lambda p, x: jnp.tanh(x.reshape(-1, 2, 4) @ p["w"][:, :4].T + p["b"]).sum(1), (2, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BIASES)
def test_biases_of_every_shape_have_the_kernel_of_the_jacobian(name):
    apply, shape = BIASES[name]
    params = {"w": normal(5, 8), "b": normal(*shape, seed=4)}
    exact = dense_kernel(apply, params, X, 5)
    np.testing.assert_allclose(gram("trace", of(apply, params), X), exact, atol=1e-5 * exact.max())


# Backward passes of their own, and parameters of several dtypes


@jax.custom_vjp
def sign(x):
    return jnp.sign(x)


sign.defvjp(lambda x: (sign(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))

STRAIGHT_THROUGH = {
    "of the data": lambda p, x: sign(x @ p["w"]) @ p["v"],
    "of the weights": lambda p, x: jnp.tanh(x @ sign(p["w"])) @ p["v"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "pseudo", "class", "full"])
@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_networks_with_a_backward_pass_of_their_own_predict(name, kernel):
    apply, params = STRAIGHT_THROUGH[name], {"w": normal(8, 6), "v": normal(6, 2, seed=5)}
    rows = np.asarray(normal(20, 8, seed=6))
    y = (rows[:, 0] > 0).astype(int)
    machine = EmpiricalNTKClassifier(of(apply, params), kernel=kernel, alpha=0.1).fit(rows, y)
    K = gram(kernel, of(apply, params), X, rows)
    dual = machine.dual_coef_
    expected = {
        2: lambda: K @ dual,
        3: lambda: np.einsum("nmc,mc->nc", K, dual),
        4: lambda: np.einsum("nmcd,md->nc", K, dual),
    }
    scores = expected[K.ndim]() + machine.intercept_
    np.testing.assert_allclose(machine.predictor_(X), scores, atol=1e-4 * np.abs(dual).sum())
    assert 0 <= machine.robust_score(rows, y, PGD(0.1, 1, bounds=None)) <= 1


@pytest.mark.slow
def test_a_backward_pass_of_its_own_is_linearised():
    apply, params = STRAIGHT_THROUGH["of the data"], {"w": normal(8, 6), "v": normal(6, 2, seed=5)}
    model = linearize(of(apply, params), centered=True)
    change = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), params)
    J = jax.jit(jax.jacrev(lambda params: apply(params, X)))(params)
    exact = sum(jnp.tensordot(J[name], change[name], axes=change[name].ndim) for name in params)
    found = Model(model.network, Variables(change, model.variables.state))(X)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_parameters_of_several_dtypes_predict():
    def apply(params, x):
        return jnp.tanh(x.astype(jnp.float16) @ params["a_body"]).astype(jnp.float32) @ params["head"]

    params = {"a_body": normal(8, 4).astype(jnp.float16), "head": normal(4, 1)}
    machine = EmpiricalNTKRegressor(of(apply, params)).fit(X, X[:, 0])
    K = gram("trace", of(apply, params), X)
    assert K.dtype == np.float32
    expected = (K @ machine.dual_coef_ + machine.intercept_).ravel()
    np.testing.assert_allclose(machine.predict(X), expected, atol=1e-3)


@pytest.mark.slow
def test_integers_reach_the_network_as_integers():
    params = {"E": normal(1000, 4).astype(jnp.bfloat16), "W": normal(4, 3).astype(jnp.bfloat16)}

    def apply(params, ids):
        return params["E"][ids].mean(1) @ params["W"]

    ids = np.array([[257, 513], [259, 771]])
    model = of(apply, params)
    np.testing.assert_array_equal(model(ids), apply(params, jnp.asarray(ids)))
    exact = dense_kernel(apply, params, ids, 3)
    np.testing.assert_allclose(gram("trace", model, ids).astype(float), exact, atol=2e-2 * exact.max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_host_callback_in_single_precision_alone_is_proved_in_its_own():
    W, X = np.ones((4, 3), np.float32), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def outside(x):
        return np.asarray(x, np.float32)

    def apply(params, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(outside, shape, x, vmap_method="broadcast_all") @ params

    K = gram("trace", Model(Stateless(apply), Variables(W)), X)
    np.testing.assert_allclose(K, X @ X.T, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_compared_as_products_and_give_what_xla_gives(stride, monkeypatch):
    network = CNN(n_outputs=2, widths=(3,), strides=(stride,))
    model = Model(network, network.init(jax.random.key(0), (6, 5, 2)))
    random = np.random.default_rng(0)
    directions, weights = random.normal(size=(2, 2, 2))

    def both(x):
        with enable_x64(True):
            arguments = (*jax.tree.map(verification._double, (model, x)), directions, weights)
            jax.clear_caches()
            found = verification._both_ways.trace(TraceNTK(), *arguments)
            return str(found.jaxpr), jax.tree.leaves(verification._both_ways(TraceNTK(), *arguments))

    x = random.normal(size=(2, 6, 5, 2)).astype(np.float32)
    jaxpr, found = both(x)
    monkeypatch.setattr(verification, "is_by_products", lambda eqn: False)
    monkeypatch.setattr("ntkrobust_sk.tangent.jaxpr.is_by_products", lambda eqn: False)
    direct, expected = both(x)
    jax.clear_caches()
    if jax.default_backend() == "cpu":
        assert "conv_general_dilated" not in jaxpr
    assert "conv_general_dilated" in direct
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)
