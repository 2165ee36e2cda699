"""Per-example gradients of networks of every form, against the dense Jacobian in float64."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkrobust_sk import structure
from ntkrobust_sk.structure import contract_gradients, per_example_gradients

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64

N_TANGENTS = 3
FORM, AVOID = 0, 10**9  # costs of an entry at which a filter's gradient is always, or never, formed


@pytest.fixture(autouse=True)
def double_precision():
    with enable_x64(True):
        yield


RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape)


ROWS, IMAGES = draw(3, 4), draw(3, 5, 7, 2)
SQUARE, WIDE, HEAD = draw(4, 4), draw(4, 6), draw(6, 3)
OUT, OTHER = draw(4, 3), draw(4, 3)


def as_logits(h):
    """(n, *spatial, C) to (n, C), every position with a weight of its own."""
    flat = jnp.tanh(h).reshape(len(h), -1, h.shape[-1])
    return jnp.einsum("nsc,s->nc", flat, jnp.cos(jnp.arange(flat.shape[1])))


def convolution(stride=1, padding="SAME", specs=("NHWC", "HWIO", "NHWC"), **options):
    """A network of one convolution, from images (n, *spatial, c) whatever the layouts inside."""
    places = "N" + "".join(letter for letter in specs[0] if letter not in "NC") + "C"

    def apply(params, x):
        strides = (stride,) * (x.ndim - 2) if isinstance(stride, int) else stride
        lhs = jnp.transpose(x, [places.index(letter) for letter in specs[0]])
        h = lax.conv_general_dilated(lhs, params, strides, padding, dimension_numbers=specs, **options)
        return as_logits(jnp.transpose(h, [specs[2].index(letter) for letter in places]))

    return apply


conv = partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


@jax.custom_jvp
def leaky(slope, h):
    return jnp.where(h > 0, h, slope * h)


@leaky.defjvp
def _(primals, tangents):
    # not the derivative of the function, so that taking it shows
    return leaky(*primals), 2.0 * tangents[0] * primals[1] + 3.0 * tangents[1]


@jax.custom_vjp
def scale(factor, h):
    return factor * h


scale.defvjp(
    lambda factor, h: (factor * h, (factor, h)), lambda saved, g: (3.0 * g * saved[1], 2.0 * g * saved[0])
)


def layer_norm(params, x):
    h = x @ params["kernel"]
    h = (h - h.mean(1, keepdims=True)) * lax.rsqrt(h.var(1, keepdims=True) + 1e-5)
    return jnp.tanh(h * params["scale"] + params["bias"])


def batch_norm(params, x):
    h = conv(x, params["kernel"])
    return as_logits((h - 0.3) * (params["scale"] * lax.rsqrt(jnp.float64(0.7))) + params["bias"])


def weight_norm(params, x):
    v = params["direction"]
    return jnp.tanh(x @ (params["length"] * v / jnp.linalg.norm(v, axis=0)))


def standardised_filters(params, x):
    return as_logits(conv(x, (params - params.mean((0, 1, 2))) / params.std((0, 1, 2))))


def embedding(params, x):
    tokens = jnp.abs(2 * x).astype(int) % 5
    return jnp.tanh(params["table"][tokens].sum(1)) @ params["out"]


def attention(params, x):
    h = x[..., None] * params["embedding"]
    weights = jax.nn.softmax((h @ params["query"]) @ (h @ params["key"]).swapaxes(1, 2))
    return (weights @ (h @ params["value"])).mean(1)


def recurrent(params, x):
    def step(h, inputs):
        h = jnp.tanh(h @ params["state"] + inputs[:, None] * params["input"])
        return h, h.sum(1)

    h, sums = lax.scan(step, jnp.zeros((len(x), 3)), x.T)
    return h + sums.T[:, :1]


def branches(params, x):
    def one(row):
        return lax.cond(row.sum() > 0, lambda r: r @ params["a"], lambda r: jnp.sin(r @ params["b"]), row)

    return jax.vmap(one)(x)


def written_by_data(params, x):
    def one(row):
        start = jnp.abs(row[0] * 2).astype(int)
        return lax.dynamic_slice(params, (start, 0), (2, 3)).sum(0) * row[:3]

    return jax.vmap(one)(x)


def mixed_depth(params, x):
    inner = jax.jit(jax.checkpoint(lambda p, h: leaky(p["slope"], jax.jit(jnp.matmul)(h, p["square"]))))
    h = lax.scan(lambda h, _: (inner(params, h), None), inner(params, x), None, length=2)[0]
    return jnp.sin(inner(params, h)) @ params["out"]


NETWORKS = {
    "one product": (lambda p, x: x @ p, OUT, ROWS),
    "dense layers": (
        lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"],
        {"a": WIDE, "b": draw(6), "c": HEAD},
        ROWS,
    ),
    "shared weights": (lambda p, x: jnp.tanh(jnp.tanh(x @ p) @ p.T) @ p, WIDE, ROWS),
    "an unused parameter": (lambda p, x: x @ p["used"], {"used": OUT, "unused": draw(2)}, ROWS),
    "logits that ignore the input": (
        lambda p, x: jnp.tile(p["b"] ** 2, (len(x), 1)),
        {"a": OUT, "b": draw(3)},
        ROWS,
    ),
    "one logit that ignores the input": (
        lambda p, x: jnp.concatenate([x @ p["a"], jnp.tile(jnp.exp(p["b"]), (len(x), 1))], 1),
        {"a": OUT, "b": draw(1)},
        ROWS,
    ),
    "logits that ignore the parameters": (lambda p, x: jnp.sin(x), draw(2), ROWS),
    "a batched product": (lambda p, x: jnp.einsum("nab,abc->nc", x.reshape(-1, 2, 2), p), draw(2, 2, 3), ROWS),
    "select": (
        lambda p, x: jnp.where(x > p["t"], p["a"], x * p["b"]),
        {k: draw(4) for k in "tab"},
        ROWS,
    ),
    "quotient": (lambda p, x: jnp.maximum(x, p["a"]) ** 2 / (1 + p["b"] ** 2), {"a": draw(4), "b": draw(4)}, ROWS),
    "power": (lambda p, x: jnp.abs(x) ** p, draw(4), ROWS),
    "sort": (lambda p, x: lax.sort((x @ p["a"], x @ p["b"]), num_keys=1)[1], {"a": OUT, "b": OTHER}, ROWS),
    "parameters in the order of the data": (lambda p, x: p[jnp.argsort(x, axis=1)], draw(4), ROWS),
    "data in the order of parameters": (
        lambda p, x: x[:, jnp.argsort(p["a"])] * p["b"],
        {"a": draw(4), "b": draw(4)},
        ROWS,
    ),
    "stop_gradient": (
        lambda p, x: x @ lax.stop_gradient(p["a"]) + x @ p["b"] * lax.stop_gradient(p["b"].sum()),
        {"a": OUT, "b": OTHER},
        ROWS,
    ),
    "embedding": (embedding, {"table": draw(5, 4), "out": OUT}, ROWS),
    "layer norm": (layer_norm, {"kernel": OUT, "scale": draw(3), "bias": draw(3)}, ROWS),
    "batch norm": (batch_norm, {"kernel": draw(3, 3, 2, 3), "scale": draw(3), "bias": draw(3)}, IMAGES),
    "weight norm": (weight_norm, {"direction": OUT, "length": draw(3)}, ROWS),
    "standardised filters": (standardised_filters, draw(3, 3, 2, 3), IMAGES),
    "attention": (
        attention,
        {"embedding": draw(3)} | {k: draw(3, 3) for k in ("query", "key", "value")},
        ROWS,
    ),
    "scan over data": (recurrent, {"state": draw(3, 3), "input": draw(3)}, ROWS),
    "scan over layers": (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0],
        draw(3, 4, 4),
        ROWS,
    ),
    "fori_loop": (lambda p, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p) + i, x), SQUARE, ROWS),
    "cond": (branches, {"a": OUT, "b": OTHER}, ROWS),
    "dynamic slice": (written_by_data, draw(9, 3), ROWS),
    "remat": (jax.checkpoint(lambda p, x: jnp.sin(jnp.sin(x @ p) @ p)), SQUARE, ROWS),
    "jit": (
        lambda p, x: jax.jit(jax.jit(lambda q, h: jnp.sin(h @ q)))(p, jax.jit(jnp.matmul)(x, p)),
        SQUARE,
        ROWS,
    ),
    "custom_jvp": (lambda p, x: leaky(p["slope"], x @ p["kernel"]), {"slope": draw(3), "kernel": OUT}, ROWS),
    "jit, remat, scan and custom_jvp": (mixed_depth, {"slope": draw(4), "square": SQUARE, "out": OUT}, ROWS),
    "a derivative inside": (lambda p, x: jax.jvp(lambda q: jnp.tanh(x @ q), (p,), (jnp.cos(p),))[1], OUT, ROWS),
    "a gradient inside": (lambda p, x: jax.vmap(jax.grad(lambda r: jnp.tanh(r @ p).sum()))(x), WIDE, ROWS),
    "pooling": (
        lambda p, x: as_logits(lax.reduce_window(x * p, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")),
        draw(2),
        IMAGES,
    ),
    "filters used twice": (lambda p, x: as_logits(conv(jnp.tanh(conv(x, p)), p)), draw(3, 3, 2, 2), IMAGES),
    "filters made of data": (
        lambda p, x: jax.vmap(lambda z: as_logits(conv(p[None], z[:3, :3, :, None]))[0])(x),
        draw(5, 5, 2),
        IMAGES,
    ),
    "frames in the batch of a convolution": (
        lambda p, x: as_logits(conv(x.reshape(-1, 4, 3, 2), p).reshape(len(x), 2, 4, 3, 3)),
        draw(3, 3, 2, 3),
        draw(3, 2, 4, 3, 2),
    ),
    "a convolution mapped over frames": (
        lambda p, x: as_logits(jax.vmap(lambda frame: conv(frame, p), 1, 1)(x)),
        draw(3, 3, 2, 3),
        draw(3, 2, 4, 3, 2),
    ),
}

CONVOLUTIONS = {
    f"stride {stride}, filters of {size}": (convolution(stride), draw(size, size, 2, 3), IMAGES)
    for stride in (1, 2, 3)
    for size in (1, 2, 3)
} | {
    "oblong filters and strides, valid": (convolution((1, 2), "VALID"), draw(3, 2, 2, 3), IMAGES),
    "uneven and negative padding": (convolution((2, 1), ((-1, 2), (3, -2))), draw(3, 2, 2, 3), IMAGES),
    "dilated filters": (convolution((2, 1), rhs_dilation=(2, 3)), draw(3, 2, 2, 3), IMAGES),
    "transposed": (convolution(1, ((1, 2), (2, 1)), lhs_dilation=(2, 2)), draw(3, 3, 2, 3), IMAGES),
    "grouped": (convolution(feature_group_count=2), draw(3, 3, 2, 4), draw(3, 5, 4, 4)),
    "depthwise": (convolution(2, feature_group_count=2), draw(3, 3, 1, 2), IMAGES),
    "channels first": (convolution((1, 2), specs=("NCHW", "OIHW", "NCHW")), draw(3, 2, 2, 3), IMAGES),
    "every layout another": (convolution((2, 1), specs=("HNWC", "IHOW", "CWNH")), draw(2, 3, 4, 2), IMAGES),
    "one dimension": (convolution(2, specs=("NWC", "WIO", "NWC")), draw(3, 2, 3), IMAGES[:, 0]),
    "three dimensions": (
        convolution((1, 2, 1), specs=("NDHWC", "DHWIO", "NDHWC")),
        draw(2, 2, 1, 2, 3),
        draw(2, 3, 4, 2, 2),
    ),
}


# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def contracted(apply, params, x, tangents, entry_cost):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "ENTRY_COST", entry_cost)
        return contract_gradients(apply, params, x, tangents)


def compute(apply, params, x):
    """Dense Jacobian, gradients and their two contractions with tangents, and the tangents."""
    n_outputs = jax.eval_shape(apply, params, x).shape[1]
    rng = np.random.default_rng(1)
    tangents = jax.tree.map(lambda leaf: rng.normal(size=(n_outputs, N_TANGENTS, *leaf.shape)), params)

    def everything(params, x, tangents):
        dense = jax.jacobian(lambda p: apply(p, x))(params)
        gradients = per_example_gradients(apply, params, x)
        contractions = [contracted(apply, params, x, tangents, cost) for cost in (FORM, AVOID)]
        return dense, gradients, contractions

    return *quickly(everything)(params, x, tangents), tangents


def contracted_densely(dense, tangents):
    def one(j, t):
        return jnp.einsum("ncp,ctp->nt", j.reshape(*j.shape[:2], -1), t.reshape(*t.shape[:2], -1))

    return sum(jax.tree.leaves(jax.tree.map(one, dense, tangents)))


def assert_close(found, expected, rtol=1e-10):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * (1 + np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("name", NETWORKS | CONVOLUTIONS)
def test_gradients_of_each_example_are_the_rows_of_the_dense_jacobian(name):
    apply, params, x = (NETWORKS | CONVOLUTIONS)[name]
    dense, gradients, contractions, tangents = compute(apply, params, x)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    jax.tree.map(assert_close, gradients, dense)
    depends = max(np.abs(leaf).max() for leaf in jax.tree.leaves(dense)) > 0
    assert depends == (name != "logits that ignore the parameters")
    for contraction in contractions:
        assert_close(contraction, contracted_densely(dense, tangents))


def test_a_custom_vjp_is_obeyed_in_gradients_and_refused_in_forward_mode():
    def apply(params, x):
        return scale(jnp.tile(params["factor"], (len(x), 1)), x @ params["kernel"])

    params = {"factor": draw(3), "kernel": OUT}
    gradients = per_example_gradients(apply, params, ROWS)
    jax.tree.map(assert_close, gradients, jax.jacrev(lambda p: apply(p, ROWS))(params))
    with pytest.raises(TypeError, match="custom_vjp"):
        contract_gradients(apply, params, ROWS, tangents=gradients)


def test_inputs_may_be_integers():
    tokens, table = np.array([[0, 2], [1, 1], [2, 0]]), draw(3, 2)
    gradients = quickly(partial(per_example_gradients, lambda p, x: p[x].sum(1)))(table, tokens)
    expected = np.einsum("nk,cd->nckd", np.stack([np.bincount(t, minlength=3) for t in tokens]), np.eye(2))
    np.testing.assert_array_equal(gradients, expected)


def test_filters_of_lower_precision_than_their_products_have_gradients_of_their_own_precision():
    apply = convolution(preferred_element_type=jnp.float64)
    filters, images = draw(3, 3, 2, 3).astype(np.float32), IMAGES.astype(np.float32)
    found = quickly(partial(per_example_gradients, apply))(filters, images)
    expected = quickly(jax.jacrev(apply))(filters, images)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_convolution_is_grouped_by_example():
    apply, params, x = CONVOLUTIONS["stride 2, filters of 3"]

    def two_layers(params, x):
        return apply(params["b"], jnp.tanh(conv(x, params["a"])))

    params = {"a": draw(3, 3, 2, 2), "b": params}
    tangents = jax.tree.map(lambda leaf: np.ones((3, 2, *leaf.shape)), params)
    traces = [
        jax.make_jaxpr(partial(per_example_gradients, two_layers))(params, x),
        jax.make_jaxpr(partial(contract_gradients, two_layers))(params, x, tangents),
    ]
    for trace in traces:
        groups = re.findall(r"(?:batch|feature)_group_count=(\d+)", str(trace))
        assert set(groups) == {"1"}


def test_a_filter_gradient_is_formed_for_many_positions_and_tangents_only():
    assert not structure._forms_gradient(n_positions=1024, n_tangents=1)
    assert not structure._forms_gradient(n_positions=1, n_tangents=100)
    assert structure._forms_gradient(n_positions=1024, n_tangents=10)
    apply, params, x = CONVOLUTIONS["stride 1, filters of 3"]
    tangents = np.ones((3, N_TANGENTS, *params.shape))
    formed, avoided = (
        str(jax.make_jaxpr(partial(contracted, apply, entry_cost=cost))(params, x, tangents))
        for cost in (FORM, AVOID)
    )
    assert formed != avoided
