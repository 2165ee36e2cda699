"""The four tangent kernels: against the dense Jacobian, against each other, and in closed form."""

import pickle
from dataclasses import FrozenInstanceError
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkrobust_sk import CNN, MLP, ClassNTK, FullNTK, Model, PseudoNTK, ResNet18, Stateless, TraceNTK, Variables
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.ntk import KERNELS, resolve_kernel
from ntkrobust_sk.tangent import per_example as structure

N_OUTPUTS = 3
# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def tied(params, x):
    return jnp.tanh(jnp.tanh(x @ params) @ params.T) @ params


@jax.custom_jvp
def leaky(slope, h):
    return jnp.where(h > 0, h, slope * h)


@leaky.defjvp
def _(primals, tangents):
    return leaky(*primals), 2.0 * tangents[0] * primals[1] + 3.0 * tangents[1]


def nested(params, x):
    inner = jax.jit(jax.checkpoint(lambda p, h: leaky(p["slope"], h @ p["square"])))
    return lax.scan(lambda h, _: (inner(params, h), None), x, None, length=2)[0][:, :N_OUTPUTS]


def embedded(params, x):
    tokens = jnp.abs(2 * x).astype(int) % 5
    h = params["table"][tokens].sum(1)
    h = params["scale"] * (h - h.mean(1, keepdims=True)) * lax.rsqrt(h.var(1, keepdims=True) + 1e-5)
    return jnp.tanh(h) @ params["out"]


def half_constant(params, x):
    constant = jnp.tile(jnp.exp(params["bias"]), (len(x), 1))
    return jnp.concatenate([x @ params["kernel"] / jnp.linalg.norm(params["kernel"]), constant], 1)


def drawing(**shapes):
    return lambda key, input_shape: {name: jnp.zeros(shape) for name, shape in shapes.items()}


class Residual(ResNet18):
    """Two of its blocks: all eight take long to compile."""

    def _blocks(self):
        return [("plain", self.width, self.width, 1), ("strided", self.width, 8 * self.width, 2)]


CASES = {
    "dense": (MLP(n_outputs=N_OUTPUTS, widths=(5, 4), activation="gelu"), (4,)),
    "odd convolutions": (CNN(n_outputs=N_OUTPUTS, widths=(3, 2, 2), strides=(1, 2, 3)), (7, 5, 2)),
    "even filters": (CNN(n_outputs=N_OUTPUTS, widths=(3,), strides=(2,), kernel_size=2), (5, 4, 1)),
    "pointwise filters": (CNN(n_outputs=N_OUTPUTS, widths=(3,), strides=(3,), kernel_size=1), (5, 4, 1)),
    "residual, with batch norm": (Residual(n_outputs=N_OUTPUTS, width=4), (8, 8, 3)),
    "shared weights": (Stateless(tied, lambda key, shape: jnp.zeros((4, N_OUTPUTS))), (4,)),
    "scan, remat, jit and custom_jvp": (Stateless(nested, drawing(slope=(4,), square=(4, 4))), (4,)),
    "embedding and layer norm": (
        Stateless(embedded, drawing(table=(5, 4), scale=(4,), out=(4, N_OUTPUTS), unused=(2,))),
        (4,),
    ),
    "weight norm and a constant logit": (Stateless(half_constant, drawing(kernel=(4, 2), bias=(1,))), (4,)),
}


def draw_model(network, input_shape, dtype, seed=0):
    """Variables as far from their start as after training."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), input_shape))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(dtype), shapes.params)
    state = jax.tree.map(lambda leaf: rng.uniform(0.5, 2.0, size=leaf.shape).astype(dtype), shapes.state)
    return Model(network, Variables(params, state))


def draw_inputs(n, input_shape, dtype, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *input_shape)).astype(dtype)


@partial(quickly, static_argnames="form")
def all_features(model, x, form=None):
    """Of every kernel. Gradients are always formed with ``form``, and never without where they need not be."""
    with pytest.MonkeyPatch.context() as patch:
        if form is not None:
            patch.setattr(structure, "forms_gradient", lambda *shape: form)
        return {name: kernel.features(model, x) for name, kernel in KERNELS.items()}


compiled_contract = partial(quickly, static_argnums=0)(TraceNTK.contract)


def all_blocks(features, n, contract=compiled_contract):
    """Blocks of the first n examples and the others."""
    blocks = {}
    for name, leaves in features.items():
        blocks[name] = contract(KERNELS[name], [leaf[:n] for leaf in leaves], [leaf[n:] for leaf in leaves])
    return blocks


@quickly
def dense_jacobian(model, x):
    """(n, C, P), a row at a time from the VJP of the whole batch."""

    def logits(params):
        return Model(model.network, Variables(params, model.variables.state))(x)

    out, pull = jax.vjp(logits, model.variables.params)
    cotangents = jnp.eye(out.size, dtype=out.dtype).reshape(-1, *out.shape)
    rows = jax.lax.map(lambda c: pull(c)[0], cotangents)
    return jnp.concatenate([leaf.reshape(*out.shape, -1) for leaf in jax.tree.leaves(rows)], axis=2)


def by_definition(J1, J2):
    """The four kernels from two Jacobians (n, C, P)."""
    full = np.einsum("ncp,mdp->nmcd", J1, J2)
    by_class = np.einsum("nmcc->nmc", full)
    pseudo = full.sum((2, 3)) / full.shape[2]
    return {"trace": by_class.mean(2), "class": by_class, "full": full, "pseudo": pseudo}


def assert_close(found, expected, rtol):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this network has parameters inside")
@pytest.mark.parametrize("name", CASES)
def test_all_four_kernels_are_those_of_the_dense_jacobian(name):
    """With gradients formed and not, contracted in JAX and in NumPy."""
    network, shape = CASES[name]
    with enable_x64(True):
        model, x = draw_model(network, shape, np.float64), draw_inputs(5, shape, np.float64)
        J = np.asarray(dense_jacobian(model, x))
        expected = by_definition(J[:3], J[3:])
        for form in (True, False):
            features = all_features(model, x, form)
            on_host = all_blocks(jax.tree.map(np.asarray, features), 3, contract=TraceNTK.contract)
            found = all_blocks(features, 3) if form else on_host
            for kernel in KERNELS:
                assert np.abs(expected[kernel]).max() > 0
                assert_close(found[kernel], expected[kernel], 1e-13)
                assert isinstance(on_host[kernel], np.ndarray)
                assert_close(on_host[kernel], expected[kernel], 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, shape",
    [CASES["dense"], CASES["odd convolutions"], (ResNet18(n_outputs=N_OUTPUTS, width=4), (8, 8, 3))],
    ids=["dense", "odd convolutions", "ResNet18"],
)
def test_in_single_precision_kernels_are_as_close_as_it_allows(network, shape):
    model, x = draw_model(network, shape, np.float32), draw_inputs(5, shape, np.float32)
    J = np.asarray(dense_jacobian(model, x))
    expected = by_definition(J[:3], J[3:])
    found = all_blocks(jax.tree.map(np.asarray, all_features(model, x)), 3, contract=TraceNTK.contract)
    for kernel in KERNELS:
        assert_close(found[kernel], expected[kernel], 5e-6)


@pytest.fixture(scope="module")
def dense_case():
    network, shape = CASES["dense"]
    model, x = draw_model(network, shape, np.float32), draw_inputs(5, shape, np.float32)
    blocks = quickly(lambda model, x1, x2: {name: kernel(model, x1, x2) for name, kernel in KERNELS.items()})
    return model, x, blocks(model, x[:3], x[3:])


@pytest.mark.slow
def test_a_kernel_called_is_its_features_contracted(dense_case):
    model, x, blocks = dense_case
    contracted = all_blocks(all_features(model, x), 3)
    for name in KERNELS:
        assert_close(blocks[name], contracted[name], rtol=1e-6)


@pytest.mark.slow
def test_the_mean_of_the_class_kernels_is_the_trace_kernel(dense_case):
    _, _, blocks = dense_case
    assert_close(blocks["class"].mean(2), blocks["trace"], rtol=1e-6)


def test_the_trace_kernel_is_the_trace_of_the_full_kernel_divided_by_the_number_of_logits(dense_case):
    _, _, blocks = dense_case
    assert_close(jnp.trace(blocks["full"], axis1=2, axis2=3) / N_OUTPUTS, blocks["trace"], rtol=1e-6)


def test_the_class_kernels_are_the_diagonal_of_the_full_kernel(dense_case):
    _, _, blocks = dense_case
    assert_close(jnp.einsum("nmcc->nmc", blocks["full"]), blocks["class"], rtol=1e-6)


def test_the_pseudo_kernel_is_the_mean_over_logits_of_the_sum_of_the_full_kernel(dense_case):
    _, _, blocks = dense_case
    assert_close(blocks["full"].sum((2, 3)) / N_OUTPUTS, blocks["pseudo"], rtol=1e-6)


def test_a_kernel_states_the_rank_of_its_blocks(dense_case):
    _, _, blocks = dense_case
    assert {name: kernel.rank for name, kernel in KERNELS.items()} == {name: b.ndim for name, b in blocks.items()}


@pytest.mark.slow
def test_with_one_logit_all_kernels_are_one():
    model = draw_model(MLP(n_outputs=1, widths=(3,)), (4,), np.float32)
    x = draw_inputs(3, (4,), np.float32)
    blocks = [np.squeeze(block) for block in all_blocks(all_features(model, x), 1).values()]
    for block in blocks[1:]:
        assert_close(block, blocks[0], rtol=1e-6)


ZERO_LAST_LAYER = {
    "ResNet18": CASES["residual, with batch norm"],
    "CNN": (CNN(n_outputs=N_OUTPUTS, widths=(3, 4), strides=(1, 2), zero_last_layer=True), (5, 4, 1)),
    "MLP": (MLP(n_outputs=N_OUTPUTS, widths=(6,), zero_last_layer=True), (4,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZERO_LAST_LAYER)
def test_with_a_zero_last_layer_every_class_has_the_kernel_of_the_pooled_features_plus_one(name):
    network, shape = ZERO_LAST_LAYER[name]
    model = draw_model(network, shape, np.float32)
    params, state = model.variables
    last = "dense_1" if name == "MLP" else "dense"
    start = jax.eval_shape(lambda: network.init(jax.random.key(0), shape)).params[last]
    initial = quickly(lambda key: network.init(key, shape).params[last])(jax.random.key(0))
    jax.tree.map(lambda leaf, like: np.testing.assert_array_equal(leaf, np.zeros(like.shape)), initial, start)

    width = start["kernel"].shape[0]
    identity = {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
    x = draw_inputs(5, shape, np.float32)
    phi = quickly(lambda model, x: model(x))(Model(network, Variables({**params, last: identity}, state)), x)
    expected = np.asarray(phi)[:3] @ np.asarray(phi)[3:].T + 1
    found = all_blocks(all_features(Model(network, Variables({**params, last: initial}, state)), x), 3)
    assert_close(found["trace"], expected, rtol=1e-5)
    assert_close(found["pseudo"], expected, rtol=1e-5)
    assert_close(found["class"], np.repeat(expected[:, :, None], N_OUTPUTS, axis=2), rtol=1e-5)
    assert_close(found["full"], expected[:, :, None, None] * np.eye(N_OUTPUTS, dtype=np.float32), rtol=1e-5)


@pytest.mark.slow
def test_the_kernel_sees_batch_norm_in_evaluation_mode():
    network, shape = CASES["residual, with batch norm"]
    model = draw_model(network, shape, np.float32)
    x = draw_inputs(5, shape, np.float32)
    features = all_features(model, x)["trace"]
    others = all_features(model, np.concatenate([x[:2], 10 * x[2:]]))["trace"]
    for leaf, other in zip(features, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, leaf[:2], other[:2])


# Configuration


@pytest.mark.parametrize("name, kernel", KERNELS.items())
def test_kernels_are_plain_values(name, kernel):
    assert resolve_kernel(name) is kernel
    assert kernel == type(kernel)()
    assert hash(kernel) == hash(type(kernel)())
    assert pickle.loads(pickle.dumps(kernel)) == kernel
    assert eval(repr(kernel)) == kernel
    with pytest.raises(FrozenInstanceError):
        kernel.rank = 7
    assert len({TraceNTK(), ClassNTK(), FullNTK(), PseudoNTK(), kernel}) == 4


def test_a_callable_is_a_kernel_of_its_own_inputs():
    kernel = resolve_kernel(all_features)
    assert kernel.function is all_features and repr(kernel) == repr(all_features)
    assert kernel == resolve_kernel(all_features) == resolve_kernel(kernel)


@pytest.mark.parametrize("kernel", ["Trace", "", 3, None])
def test_what_is_no_kernel_is_refused_with_the_names_that_are(kernel):
    with pytest.raises(ValueError, match="'trace', 'class', 'full', 'pseudo'"):
        resolve_kernel(kernel)


def test_a_class_in_the_place_of_a_kernel_is_named():
    with pytest.raises(TypeError, match=r"write TraceNTK\(...\), not TraceNTK"):
        resolve_kernel(TraceNTK)
