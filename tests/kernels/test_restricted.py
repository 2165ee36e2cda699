"""Kernels of some of a network's parameters: against the dense Jacobian with columns left out."""

import pickle

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ntkrobust_sk import (
    CNN,
    MLP,
    Model,
    ProjectedNTK,
    Stateless,
    Variables,
    from_equinox,
    from_flax,
    from_haiku,
    from_nnx,
    gram,
    gram_operator,
    kernel_diag,
    parameter_names,
)
from ntkrobust_sk.kernels import StoreMismatchError, make_predictor
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.networks import restricted
from ntkrobust_sk.tangent.per_example import tangent_features

C = 3
MODEL = Model(MLP(n_outputs=C, widths=(6, 5), activation="tanh"), Variables(()))
MODEL = Model(MODEL.network, MODEL.network.init(jax.random.key(0), (4,)))
NAMES = parameter_names(MODEL)
X, Y = (np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32) for seed, n in ((1, 7), (2, 5)))
CHOICES = {
    "dense_2": ["dense_2.bias", "dense_2.kernel"],
    "dense_1.kernel": ["dense_1.kernel"],
    "*.bias": ["dense_0.bias", "dense_1.bias", "dense_2.bias"],
    "dense_[01].*": ["dense_0.bias", "dense_0.kernel", "dense_1.bias", "dense_1.kernel"],
    ("dense_0.bias", "dense_?.kernel"): ["dense_0.bias", "dense_0.kernel", "dense_1.kernel", "dense_2.kernel"],
}


@jax.jit
def jacobian(params, x):
    return jax.jacrev(lambda p: Model(MODEL.network, Variables(p))(x))(params)


def expected_blocks(names):
    """The full kernel (7, 5, C, C) from those columns of the dense Jacobian."""
    sides = [jax.tree.leaves(jacobian(MODEL.variables.params, x)) for x in (X, Y)]
    rows, columns = (
        np.concatenate(
            [
                np.asarray(leaf, float).reshape(len(leaf), C, -1)
                for leaf, name in zip(side, NAMES, strict=True)
                if name in names
            ],
            2,
        )
        for side in sides
    )
    return np.einsum("ncp,mdp->nmcd", rows, columns)


def of_kind(kind, full):
    diagonal = np.einsum("nmcc->nmc", full)
    return {"full": full, "class": diagonal, "trace": diagonal.mean(2), "pseudo": full.sum((2, 3)) / C}[kind]


@pytest.mark.parametrize("params", CHOICES)
@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_of_some_parameters_is_that_of_the_dense_jacobian_without_the_other_columns(kind, params):
    expected = of_kind(kind, expected_blocks(CHOICES[params]))
    found = gram(kind, MODEL, X, Y, params=params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KERNELS)
def test_the_kernels_of_a_partition_of_the_parameters_add_up_to_the_whole_kernel(kind):
    parts = sum(np.asarray(gram(kind, MODEL, X, params=NAMES[i::3]), float) for i in range(3))
    whole = np.asarray(gram(kind, MODEL, X))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_no_gradients_are_formed_of_what_is_left_out():
    features = tangent_features(restricted(MODEL, "dense_2"), X)
    assert {leaf.layout.shape for leaf in features} == {(C,), (5, C)}

    def operations(function, model):
        return jax.jit(function).lower(model, X).compile().cost_analysis()["flops"]

    forward = operations(lambda m, x: m(x), MODEL)
    of_last, of_all = (operations(tangent_features, m) for m in (restricted(MODEL, "dense_2"), MODEL))
    # the gradient of the last layer is what it sees: no pass back
    assert of_last < 2 * forward < of_all / 2


def test_the_kernel_of_the_last_layer_is_the_conjugate_kernel_plus_one():
    params = MODEL.variables.params
    hidden = jnp.tanh(jnp.tanh(X @ params["dense_0"]["kernel"]) @ params["dense_1"]["kernel"])
    found = gram("trace", MODEL, X, params="dense_2")
    np.testing.assert_allclose(found, hidden @ hidden.T + 1, rtol=1e-5)


@pytest.mark.parametrize("kind", KERNELS)
def test_products_and_diagonals_of_some_parameters_are_those_of_their_matrix(kind):
    K = np.asarray(gram(kind, MODEL, X, params="dense_1", dtype="float64"))
    operator = gram_operator(kind, MODEL, X, params="dense_1", dtype="float64")
    matrix = operator @ np.eye(operator.shape[1])
    if K.ndim > 2:
        expected = np.einsum("nmc,cd->ncmd", K, np.eye(C)) if K.ndim == 3 else K.swapaxes(1, 2)
    else:
        expected = K
    expected = expected.reshape(matrix.shape)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    own = K[range(7), range(7)]
    own = own.diagonal(0, 1, 2) if K.ndim == 4 else own
    np.testing.assert_allclose(kernel_diag(kind, MODEL, X, params="dense_1"), own, rtol=1e-5)


def test_a_predictor_of_some_parameters_gives_its_kernel_times_its_coefficients():
    dual = np.random.default_rng(0).normal(size=(7, 2))
    predictor = make_predictor("trace", MODEL, X, dual, np.zeros(2), params="dense_0")
    expected = np.asarray(gram("trace", MODEL, Y, X, params="dense_0"), float) @ dual
    np.testing.assert_allclose(predictor(jnp.asarray(Y)), expected, rtol=1e-4, atol=1e-5)


def test_projections_of_some_parameters_estimate_their_kernel():
    K = np.asarray(gram("trace", MODEL, X, params="*.kernel"))
    seeds = [gram(ProjectedNTK(2**12, seed), MODEL, X, params="*.kernel") for seed in range(8)]
    assert np.abs(np.mean(seeds, axis=0) - K).max() < 0.05 * K.max()


def test_a_store_of_some_parameters_is_refused_for_others(tmp_path):
    gram("trace", MODEL, X, params="dense_1", store=tmp_path / "K")
    # equal selections are equal, however they are written
    gram("trace", MODEL, X, params=["dense_1.kernel", "dense_1.bias"], store=tmp_path / "K")
    for other in ("dense_2", None):
        with pytest.raises(StoreMismatchError, match=r"params: .*dense_1.* there, "):
            gram("trace", MODEL, X, params=other, store=tmp_path / "K")


def test_all_parameters_are_the_model_itself():
    assert restricted(MODEL, "*") is MODEL
    assert restricted(MODEL, None) is MODEL


def test_a_restricted_network_draws_the_same_numbers_and_goes_through_pickle():
    found = restricted(MODEL, "dense_1")
    again = Model(found.network, found.network.init(jax.random.key(0), (4,)))
    assert np.array_equal(again(jnp.asarray(X)), MODEL(jnp.asarray(X)))
    assert np.array_equal(pickle.loads(pickle.dumps(found))(jnp.asarray(X)), found(jnp.asarray(X)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.relu(linen.BatchNorm(use_running_average=True)(linen.Dense(5)(x))))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](jax.nn.relu(self.layers[0](x)))


def flax():
    module = Linen()
    return from_flax(module, module.init(jax.random.key(0), X))


def haiku_model():
    network = from_haiku(haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([5, 2])(x))))
    return Model(network, network.init(jax.random.key(0), (4,)))


FOREIGN = {
    "flax": (flax, "Dense_1"),
    "nnx": (lambda: from_nnx(Nnx(nnx.Rngs(0))), "layers.1.*"),
    "equinox": (lambda: from_equinox(equinox.nn.MLP(4, 2, 5, 1, key=jax.random.key(0))), "layers.1"),
    "haiku": (haiku_model, "*linear_1.*"),
    "one array": (lambda: Model(Stateless(lambda p, x: jnp.tanh(x @ p)), Variables(jnp.ones((4, 2)))), "params"),
}


@pytest.mark.parametrize("library", FOREIGN)
def test_parameters_of_other_libraries_are_named_by_their_paths(library):
    make, params = FOREIGN[library]
    model = make()
    layers = list(gram("trace", model, X, by_layer=True).values())
    chosen = set(parameter_names(restricted(model, params)))
    assert 0 < len(chosen) <= 2
    expected = sum(K for K, name in zip(layers, parameter_names(model), strict=True) if name in chosen)
    np.testing.assert_allclose(gram("trace", model, X, params=params), expected, rtol=1e-5)


def test_a_fixed_layer_of_zeros_hides_nothing_from_the_comparison_with_a_backward_pass():
    network = CNN(n_outputs=2, zero_last_layer=True)
    model = Model(network, network.init(jax.random.key(0), (6, 6, 1)))
    images = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32)
    names = parameter_names(model)
    last = [name for name in names if name.startswith("dense")]
    others = [name for name in names if name not in last]
    whole = np.asarray(gram("trace", model, images))
    parts = np.asarray(gram("trace", model, images, params=last)) + gram("trace", model, images, params=others)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


BAD = {
    "an unknown name": ("dense_7", ValueError, "unknown params 'dense_7'; known are 'dense_0.bias'"),
    "one of several": (["dense_0", "head.*"], ValueError, r"unknown params 'head\.\*'"),
    "half a name": ("dense", ValueError, "unknown params 'dense'"),
    "none": ([], ValueError, "one parameter or more"),
    "empty text": ("", ValueError, "unknown params ''"),
    "a number": (3, TypeError, "params must be names"),
    "numbers": ([0, 1], TypeError, "params must be names"),
    "an array of none": (np.array(1.0), TypeError, "params must be names"),
    "a mask": ({"dense_0": True}, TypeError, "params must be names"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("door", [gram, gram_operator, kernel_diag])
def test_what_chooses_no_parameter_is_refused_with_the_names_that_are_known(door, case):
    params, error, said = BAD[case]
    with pytest.raises(error, match=said):
        door("trace", MODEL, X, params=params)


def test_a_kernel_of_the_inputs_has_no_parameters_to_choose():
    with pytest.raises(ValueError, match="restricts tangent kernels"):
        gram(lambda model, x1, x2: x1 @ x2.T, MODEL, X, params="dense_0")


def test_a_selection_in_fewer_digits_than_the_network_is_refused():
    network = Stateless(lambda p, x: jnp.tanh(x @ p["body"].astype(jnp.float32)) @ p["head"])
    params = {"body": jnp.ones((4, 3), jnp.float16), "head": jnp.ones((3, 2), jnp.float32)}
    model = Model(network, Variables(params))
    with pytest.raises(ValueError, match="float16 alone"):
        gram("trace", model, X, params="body")
    assert gram("trace", model, X, params="head").shape == (7, 7)


@pytest.mark.parametrize("kind", KERNELS)
def test_the_diagonal_alone_is_that_of_the_matrix(kind):
    K = np.asarray(gram(kind, MODEL, X))
    own = K[range(7), range(7)]
    own = own.diagonal(0, 1, 2) if K.ndim == 4 else own
    np.testing.assert_allclose(kernel_diag(kind, MODEL, X), own, rtol=1e-5)


def test_the_diagonal_of_projections_is_that_of_their_matrix():
    kernel = ProjectedNTK(64, seed=3)
    expected = np.asarray(gram(kernel, MODEL, X)).diagonal()
    np.testing.assert_allclose(kernel_diag(kernel, MODEL, X), expected, rtol=1e-5)


def test_the_diagonal_of_a_function_asks_it_for_each_input_with_itself_alone():
    pairs = []

    def kernel(model, x1, x2):
        jax.debug.callback(lambda size: pairs.append(int(size)), len(x1) * len(x2))
        return jnp.tanh(x1) @ jnp.tanh(x2).T

    found = kernel_diag(kernel, MODEL, X)
    np.testing.assert_allclose(found, (np.tanh(X) ** 2).sum(1), rtol=1e-5)
    jax.effects_barrier()
    assert set(pairs) == {1}
    assert len(pairs) <= 8  # the last tile is no larger than it has to be


def test_the_diagonal_of_an_overflowing_function_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        kernel_diag(lambda model, x1, x2: 1e38 * jnp.exp(x1) @ jnp.exp(x2).T * 1e38, MODEL, X)
