"""Per-example gradients of networks of every form, against the dense Jacobian in float64."""

import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.tangent import contractions
from ntkrobust_sk.tangent import per_example as structure
from ntkrobust_sk.tangent.gradient_lists import split_biases
from ntkrobust_sk.tangent.gradients import AffineOuterProducts, DenseGradients, Layout, OuterProducts
from ntkrobust_sk.tangent.per_example import contract_gradients, layer_gradients, per_example_gradients

N_TANGENTS = 3
# Orders of contraction, and whether directions are kept apart.
WAYS = [
    (contractions.by_inputs, False),
    (contractions.by_inputs, True),
    (contractions.by_outputs, True),
    (contractions.by_gradients, False),
]


@pytest.fixture(autouse=True)
def double_precision():
    with enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def not_warned(monkeypatch):
    monkeypatch.setattr(structure, "_WARNED", set())


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


def conv(h, filters, strides=(1, 1), padding="SAME", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(h, filters, strides, padding, dimension_numbers=numbers, **options)


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

# The gradients of a convolution's input are needed only where there are parameters below it.
STRIDED = {
    f"strides {strides}, filters {size}, {padding}": (strides, size, padding)
    for strides in ((2, 2), (3, 2), (1, 3))
    for size in ((1, 1), (2, 2), (3, 3), (3, 2), (4, 5))
    for padding in ("SAME", "VALID")
} | {
    "strides wider than filters, padded": ((4, 5), (2, 3), ((1, 2), (0, 1))),
    "uneven padding": ((2, 3), (3, 2), ((2, 0), (0, 3))),
    "negative padding": ((2, 3), (2, 2), ((-1, 0), (1, -2))),
    "much padding": ((2, 2), (3, 3), ((5, 4), (3, 6))),
    "one output": ((9, 9), (5, 5), "VALID"),
    "pixels that no filter sees": ((3, 4), (1, 1), ((0, -2), (0, 0))),
}


def above_a_layer(strides, size, padding):
    """A network of a strided convolution of images times parameters, pixel by pixel."""

    def apply(params, x):
        return as_logits(conv(jnp.tanh(params["pixels"] * x), params["filters"], strides, padding))

    return apply, {"pixels": draw(5, 7, 2), "filters": draw(*size, 2, 3)}, IMAGES


STRIDED = {name: above_a_layer(*options) for name, options in STRIDED.items()}

TOKENS = RNG.integers(0, 5, size=(3, 6))


def tokens_read(**options):
    """A network that looks up tokens, some of them beyond a table of four rows."""
    return lambda p, x: as_logits(p.at[x].get(**options))


# Networks whose gradients are outer products, and for each such parameter array its groups and positions.
LINEAR_LAYERS = {
    "dense": (
        lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"],
        {"a": WIDE, "b": HEAD, "bias": draw(6)},
        ROWS,
        {"a": (1, 1), "b": (1, 1)},
    ),
    "dense, of tokens": (
        lambda p, x: as_logits(jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]),
        {"a": WIDE, "b": HEAD, "bias": draw(6)},
        draw(3, 5, 4),
        {"a": (1, 5), "b": (1, 5)},
    ),
    "dense, of tokens in two axes": (lambda p, x: as_logits(x @ p), OUT, draw(3, 2, 5, 4), (1, 10)),
    "dense, mapped over tokens": (
        lambda p, x: as_logits(jax.vmap(lambda h: h @ p, 1, 1)(x)),
        OUT,
        draw(3, 5, 4),
        (1, 5),
    ),
    "dense, inside of jit and remat": (jax.checkpoint(lambda p, x: jax.jit(jnp.matmul)(x, p)), OUT, ROWS, (1, 1)),
    "weights of each head": (
        lambda p, x: as_logits(jnp.einsum("nhd,hde->nhe", x.reshape(-1, 2, 2), p)),
        draw(2, 2, 3),
        ROWS,
        (2, 1),
    ),
    "weights of each head, of tokens": (
        lambda p, x: as_logits(jnp.einsum("nthd,hde->nthe", x, p)),
        draw(2, 3, 4),
        draw(3, 5, 2, 3),
        (2, 5),
    ),
    "weights of each head, on the left": (
        lambda p, x: as_logits(jnp.einsum("hed,nthd->nthe", p, x)),
        draw(2, 4, 3),
        draw(3, 5, 2, 3),
        (2, 5),
    ),
    "weights that contract two axes": (
        lambda p, x: jnp.einsum("nhd,hde->ne", x.reshape(-1, 2, 2), p),
        draw(2, 2, 3),
        ROWS,
        (1, 1),
    ),
    "weights of two layers": (lambda p, x: jnp.tanh(x @ p) @ p, SQUARE, ROWS, (1, 2)),
    "weights of three layers, of tokens": (
        lambda p, x: as_logits(jnp.tanh(jnp.tanh(x @ p) @ p) @ p),
        SQUARE,
        draw(3, 5, 4),
        (1, 15),
    ),
    "NTK parametrisation": (
        lambda p, x: jnp.tanh(x @ (p["a"] / jnp.sqrt(4.0))) @ (p["b"] * 6**-0.5),
        {"a": WIDE, "b": HEAD},
        ROWS,
        {"a": (1, 1), "b": (1, 1)},
    ),
    "NTK parametrisation, of weights of two layers": (
        lambda p, x: jnp.tanh(x @ (2.0 * p)) @ (p / 3.0),
        SQUARE,
        ROWS,
        (1, 2),
    ),
    "negative weights": (lambda p, x: x @ -p, OUT, ROWS, (1, 1)),
    "transposed weights": (lambda p, x: x @ p.T, draw(3, 4), ROWS, (1, 1)),
    "weights on the left": (lambda p, x: (p @ x.T).T, draw(3, 4), ROWS, (1, 1)),
    "reshaped, transposed and scaled weights": (
        lambda p, x: x @ (0.5 * p.reshape(3, 1, 4)).transpose(2, 1, 0)[:, 0],
        draw(12),
        ROWS,
        (1, 1),
    ),
    "embedding by table[tokens]": (lambda p, x: as_logits(p[x]), draw(5, 3), TOKENS, (1, 6)),
    "embedding by a table counted from its end": (lambda p, x: as_logits(p[x - 3]), draw(5, 3), TOKENS, (1, 6)),
    "embedding by a transposed and scaled table": (
        lambda p, x: as_logits((0.5 * p.T)[x]),
        draw(3, 5),
        TOKENS,
        (1, 6),
    ),
    "embedding of matrices": (
        lambda p, x: as_logits(p[x].reshape(len(x), -1, 2)),
        draw(5, 3, 2),
        TOKENS,
        (1, 6),
    ),
    "embedding twice by one table": (
        lambda p, x: as_logits(jnp.concatenate([p[x], jnp.sin(p[x[:, ::2]])], 1)),
        draw(5, 3),
        TOKENS,
        (1, 9),
    ),
    "embedding of tokens that are missing": (
        tokens_read(mode="fill", fill_value=0.0),
        draw(4, 3),
        TOKENS,
        (1, 6),
    ),
    "embedding of the last token for missing ones": (tokens_read(mode="clip"), draw(4, 3), TOKENS, (1, 6)),
    "filters of two layers": (
        lambda p, x: as_logits(conv(jnp.tanh(conv(x, p)), p)),
        draw(3, 3, 2, 2),
        IMAGES,
        (1, 70),
    ),
    "NTK parametrisation of filters": (
        lambda p, x: as_logits(conv(x, p / np.sqrt(18))),
        draw(3, 3, 2, 3),
        IMAGES,
        (1, 35),
    ),
    "a convolution of frames": (
        lambda p, x: as_logits(conv(x.reshape(-1, 4, 3, 2), p).reshape(len(x), 2, 4, 3, 3)),
        draw(3, 3, 2, 3),
        draw(3, 2, 4, 3, 2),
        (1, 24),
    ),
}
LINEAR_LAYERS |= {
    name: (*CONVOLUTIONS[name], shape)
    for name, shape in {
        "stride 2, filters of 3": (1, 12),
        "dilated filters": (1, 21),
        "transposed": (1, 140),
        "grouped": (2, 20),
        "depthwise": (2, 12),
        "channels first": (1, 20),
        "every layout another": (1, 21),
        "three dimensions": (1, 12),
    }.items()
}
# Those whose gradients are not, or not of one and the same layout.
OTHER_LAYERS = {
    "layer norm": {"scale", "bias"},
    "weight norm": {"direction", "length"},
    "shared weights": None,
    "standardised filters": None,
    "filters made of data": None,
    "scan over layers": None,
    "tied embeddings": None,
}
NETWORKS |= {
    "tied embeddings": (lambda p, x: jnp.tanh(p[x].sum(1)) @ p.T, draw(5, 3), TOKENS),
    **{name: case[:3] for name, case in LINEAR_LAYERS.items() if name not in CONVOLUTIONS},
}
# Primitives that hide layers, of which users are warned.
HIDING = {
    "scan over data": {"scan"},
    "scan over layers": {"scan"},
    "fori_loop": {"scan"},
    "custom_jvp": {"custom_jvp_call"},
    "jit, remat, scan and custom_jvp": {"scan", "custom_jvp_call"},
}


# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def contracted(apply, params, x, tangents, order, each=False):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contractions, "order", lambda sizes: order)
        return contract_gradients(apply, params, x, tangents, each=each)


def compute(apply, params, x):
    """Dense Jacobian, gradients and their contractions with tangents, and the tangents."""
    n_outputs = jax.eval_shape(apply, params, x).shape[1]
    rng = np.random.default_rng(1)
    tangents = jax.tree.map(lambda leaf: rng.normal(size=(n_outputs, N_TANGENTS, *leaf.shape)), params)

    def everything(params, x, tangents):
        dense = jax.jacobian(lambda p: apply(p, x))(params)
        gradients = per_example_gradients(apply, params, x)
        found = [contracted(apply, params, x, tangents, *way) for way in WAYS]
        return dense, gradients, found

    return *quickly(everything)(params, x, tangents), tangents


def contracted_densely(dense, tangents, each):
    def one(j, t):
        equation = "ncp,ctp->nct" if each else "ncp,ctp->nt"
        return np.einsum(equation, np.reshape(j, (*j.shape[:2], -1)), t.reshape(*t.shape[:2], -1))

    return sum(jax.tree.leaves(jax.tree.map(one, dense, tangents)))


def assert_close(found, expected, rtol=1e-10):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * (1 + np.abs(expected).max(initial=0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS | CONVOLUTIONS | STRIDED)
def test_gradients_of_each_example_are_the_rows_of_the_dense_jacobian(name):
    apply, params, x = (NETWORKS | CONVOLUTIONS | STRIDED)[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dense, gradients, found, tangents = compute(apply, params, x)
    assert {str(warning.message).split("`")[1] for warning in caught} == HIDING.get(name, set())
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    jax.tree.map(assert_close, gradients, dense)
    depends = max(np.abs(leaf).max() for leaf in jax.tree.leaves(dense)) > 0
    assert depends == (name != "logits that ignore the parameters")
    for (_, each), contraction in zip(WAYS, found, strict=True):
        assert_close(contraction, contracted_densely(dense, tangents, each))


def leaf_gradients(name, form=None):
    """Gradients of every parameter array by its name, not computed: dense or outer products, of shapes only."""
    apply, params, x = (NETWORKS | CONVOLUTIONS)[name]
    directions = np.eye(jax.eval_shape(apply, params, x).shape[1])[:2]
    with pytest.MonkeyPatch.context() as patch:
        if form is not None:
            patch.setattr(structure, "forms_gradient", lambda *shape: form)
        found = jax.eval_shape(lambda *args: split_biases(layer_gradients(apply, *args)), params, x, directions)
    return dict(zip(sorted(params), found, strict=True)) if isinstance(params, dict) else {None: found[0]}


def expected_shapes(shapes):
    return shapes if isinstance(shapes, dict) else {None: shapes}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_linear_layers_have_their_gradients_as_outer_products(name):
    shapes, n = expected_shapes(LINEAR_LAYERS[name][3]), len(LINEAR_LAYERS[name][2])
    factors, formed, chosen = (leaf_gradients(name, form) for form in (False, True, None))
    for leaf, (groups, positions) in shapes.items():
        assert type(factors[leaf]) is OuterProducts
        assert factors[leaf].inputs.shape[:3] == (n, groups, positions)
        assert factors[leaf].cotangents.shape[:4] == (2, n, groups, positions)
        # a look-up's are never formed; those pulled back have the parameter array's own layout
        assert type(formed[leaf]) is (OuterProducts if factors[leaf].inputs.dtype.kind == "i" else DenseGradients)
        assert formed[leaf].layout == factors[leaf].layout == chosen[leaf].layout
        assert formed[leaf].layout.steps
    for leaf in factors.keys() - shapes.keys():
        # a bias is with its weights while those are factors
        assert type(formed[leaf]) is DenseGradients
        assert formed[leaf].layout.steps == ()


@pytest.mark.filterwarnings("ignore:this network has parameters inside a `scan`")
@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_other_gradients_are_pulled_back_to_the_parameters(name):
    found = leaf_gradients(name, form=False)
    for leaf in OTHER_LAYERS[name] or {None}:
        assert type(found[leaf]) is DenseGradients
        assert found[leaf].layout.steps == ()


B = draw(3)
AFFINE = {
    "dense": (lambda w, b, x: jnp.tanh(x @ w + b), OUT, B, ROWS),
    "bias first": (lambda w, b, x: jnp.tanh(b + x @ w), OUT, B, ROWS),
    "inside of jit": (lambda w, b, x: jax.jit(lambda x: jnp.tanh(x @ w + b))(x), OUT, B, ROWS),
    "positions": (lambda w, b, x: as_logits(x @ w + b), draw(2, 3), B, IMAGES),
    "convolution": (lambda w, b, x: as_logits(conv(x, w) + b), draw(3, 3, 2, 3), B, IMAGES),
    "a row as bias": (lambda w, b, x: jnp.tanh(x @ w + b), OUT, draw(1, 3), ROWS),
}
NOT_AFFINE = {
    "after the activation": (lambda w, b, x: jnp.tanh(x @ w) + b, OUT, B, ROWS),
    "output used elsewhere": (lambda w, b, x: (lambda h: jnp.tanh(h + b) + h)(x @ w), OUT, B, ROWS),
    "output returned too": (lambda w, b, x: (lambda h: h * jnp.cos(h + b))(x @ w), OUT, B, ROWS),
    "bias used twice": (lambda w, b, x: jnp.tanh(x @ w + b) * b, OUT, B, ROWS),
    "weights used twice": (lambda w, b, x: jnp.tanh(x @ w + b) + jnp.sin(x @ w), OUT, B, ROWS),
    "scaled weights": (lambda w, b, x: jnp.tanh(x @ (0.5 * w) + b), OUT, B, ROWS),
    "scaled bias": (lambda w, b, x: jnp.tanh(x @ w + 0.5 * b), OUT, B, ROWS),
    "subtracted": (lambda w, b, x: jnp.tanh(x @ w - b), OUT, B, ROWS),
    "one number for all outputs": (lambda w, b, x: jnp.tanh(x @ w + b), OUT, draw(1), ROWS),
    "a number for each position": (
        lambda w, b, x: as_logits(conv(x, w) + b),
        draw(3, 3, 2, 3),
        draw(7, 1),
        IMAGES,
    ),
    "groups": (
        lambda w, b, x: as_logits(conv(x, w, feature_group_count=2) + b),
        draw(3, 3, 1, 4),
        draw(4),
        IMAGES,
    ),
    "channels first": (
        lambda w, b, x: as_logits(
            lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NCHW")) + b
        ),
        draw(3, 3, 2, 5),
        draw(7),
        IMAGES,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINE | NOT_AFFINE)
def test_a_bias_is_kept_with_the_weights_that_it_is_added_to(name, monkeypatch):
    affine, *params, x = (AFFINE | NOT_AFFINE)[name]
    monkeypatch.setattr(structure, "forms_gradient", lambda *shape: False)

    def everything(params, x):
        logits = affine(*params, x)
        directions = jnp.eye(logits.shape[1])
        features = layer_gradients(lambda p, z: affine(*p, z), params, x, directions)
        kernel = sum(leaf.inner_all(leaf) for leaf in features)
        gradients = [leaf.layout.inverse(leaf.dense().values) for leaf in split_biases(features)]
        return features, kernel, gradients, jax.jacobian(lambda p: affine(*p, x))(params)

    features, *found = quickly(everything)(params, x)
    kernel, gradients, dense = jax.tree.map(np.asarray, found)
    assert [type(leaf) is AffineOuterProducts for leaf in features] == (
        [True] if name in AFFINE else [False, False]
    )
    # the kernel (n, C, m, D) of both together
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in dense]
    assert_close(kernel.transpose(1, 0, 3, 2), sum(np.einsum("ncp,mdp->ncmd", r, r) for r in rows))
    for leaf, expected in zip(gradients, dense, strict=True):
        assert_close(leaf.swapaxes(0, 1), expected)


@pytest.mark.slow
def test_what_a_table_gives_for_missing_tokens_has_no_gradient():
    apply, params, _ = NETWORKS["embedding of tokens that are missing"]
    missing = np.array([[7, 4, 100], [0, 9, 0], [4, 4, 4]])
    gradients = np.asarray(quickly(partial(per_example_gradients, apply))(params, missing))
    assert not gradients[[0, 2]].any()
    assert gradients[1, :, 0].any()
    assert not gradients[1, :, 1:].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this network has parameters inside a `custom_vjp")
def test_a_custom_vjp_is_obeyed_in_gradients_and_refused_in_forward_mode():
    def apply(params, x):
        return scale(jnp.tile(params["factor"], (len(x), 1)), x @ params["kernel"])

    params = {"factor": draw(3), "kernel": OUT}
    gradients = quickly(partial(per_example_gradients, apply))(params, ROWS)
    jax.tree.map(assert_close, gradients, quickly(jax.jacrev(apply))(params, ROWS))
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


def test_strided_convolutions_that_give_more_precision_than_they_take_have_gradients_below_them():
    def apply(params, x):
        h = jnp.tanh(params["pixels"] * x).astype(np.float32)
        return as_logits(conv(h, params["filters"], (2, 2), preferred_element_type=jnp.float64))

    params = {"pixels": draw(5, 7, 2), "filters": draw(3, 3, 2, 3).astype(np.float32)}
    found = quickly(partial(per_example_gradients, apply))(params, IMAGES)
    expected = quickly(jax.jacrev(apply))(params, IMAGES)
    for name in params:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_weights_of_lower_precision_than_their_products_have_gradients_of_their_own_precision():
    weights, rows = OUT.astype(np.float32), ROWS
    found = quickly(partial(per_example_gradients, lambda p, x: x @ p.astype(x.dtype)))(weights, rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.einsum("nk,oc->ncko", rows, np.eye(3)), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        "int32",
        "int8",
        "bool",
        "bfloat16",
        "float32",
    ],
)
def test_inputs_of_a_product_may_be_of_another_kind_than_its_weights(dtype):
    def apply(params, x):
        dimensions = (((1,), (0,)), ((), ()))
        return lax.dot_general(x.astype(dtype), params, dimensions, preferred_element_type=jnp.float64)

    rows = np.round(4 * ROWS)
    found = quickly(partial(per_example_gradients, apply))(OUT, rows)
    expected = np.einsum("nk,oc->ncko", jnp.asarray(rows).astype(dtype).astype(float), np.eye(3))
    np.testing.assert_array_equal(found, expected)


def hidden_layers(params, x):
    return NETWORKS["scan over layers"][0](params, x)


def unrolled_by_python(params, x):
    for weights in params:
        x = jnp.tanh(x @ weights)
    return x


def test_control_flow_that_hides_layers_is_warned_of_once_with_its_name_and_cost():
    params = draw(3, 4, 4)
    with pytest.warns(UserWarning) as caught:
        for apply in (hidden_layers, lambda p, x: hidden_layers(2 * p, x)):
            for x in (ROWS, ROWS[:2]):
                jax.eval_shape(partial(per_example_gradients, apply), params, x)
        jax.eval_shape(partial(per_example_gradients, NETWORKS["custom_jvp"][0]), *NETWORKS["custom_jvp"][1:])
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    for message, name in zip(messages, ("scan", "custom_jvp_call"), strict=True):
        assert f"parameters inside a `{name}`, whose layers cannot be seen" in message
        assert f"one backward pass through the whole `{name}` for every example and output" in message
        assert "ten to a thousand times slower than layer by layer" in message


def test_layers_unrolled_as_the_warning_says_are_seen():
    params = draw(3, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(partial(per_example_gradients, unrolled_by_python), params, ROWS)
    assert not caught


def test_no_convolution_is_grouped_by_example():
    apply, params, x = CONVOLUTIONS["stride 2, filters of 3"]

    def two_layers(params, x):
        return apply(params["b"], jnp.tanh(conv(x, params["a"])))

    params = {"a": draw(3, 3, 2, 2), "b": params}
    tangents = jax.tree.map(lambda leaf: np.ones((3, 2, *leaf.shape)), params)
    for function, *arguments in ((per_example_gradients, params, x), (contract_gradients, params, x, tangents)):
        compiled = quickly(partial(function, two_layers)).lower(*arguments).compile().as_text()
        assert "convolution(" in compiled
        assert re.findall(r"(?:batch|feature)_group_count=\d+", compiled) == []


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("order", [contractions.by_inputs, contractions.by_outputs, contractions.by_gradients])
def test_all_orders_of_contraction_give_the_sums_of_their_definition(order, each, monkeypatch):
    monkeypatch.setattr(contractions, "order", lambda sizes: order)
    h, delta, tangents = draw(5, 2, 6, 3), draw(4, 5, 2, 6, 7), draw(4, 3, 3, 2, 7)  # k, then groups and outputs
    layout = Layout((3, 2, 7)).followed_by("transpose", (1, 2, 0))
    gradients = OuterProducts(h, delta, layout)
    found = contractions.contract_outer_products(gradients, tangents, np.float64, each=each)
    expected = np.einsum("rngso,ngsk,rtkgo->nrt" if each else "rngso,ngsk,rtkgo->nt", delta, h, tangents)
    assert_close(found, expected)


def test_a_layers_gradient_is_formed_for_many_positions_and_tangents_only():
    def order(positions, tangents, directions=10):
        sizes = contractions.Sizes(positions, 288, 32, directions, tangents, each=False)
        return contractions.order(sizes).__name__

    assert order(1024, 10) == "by_gradients"
    assert order(1, 100) == "by_inputs"
    assert order(4, 10) == "by_inputs"
    assert order(1024, 1, directions=1) != "by_gradients"


@pytest.mark.parametrize(
    ("layout", "is_one"),
    [
        (Layout((4, 3)).followed_by("transpose", (1, 0)).followed_by("reshape", (1, 3, 4)), True),
        (Layout((1, 3, 1)).followed_by("transpose", (1, 0, 2)).followed_by("reshape", (1, 3, 1)), True),
        (Layout((3, 2, 7)).followed_by("transpose", (1, 2, 0)), True),
        (Layout((4, 6)).followed_by("reshape", (2, 2, 6)).followed_by("transpose", (0, 2, 1)), False),
        (Layout((4, 6)).followed_by("reshape", (2, 2, 6)), False),
        (Layout((6, 4)).followed_by("transpose", (1, 0)).followed_by("reshape", (2, 2, 6)), False),
        (Layout((4, 6)), False),
    ],
)
def test_a_layout_that_is_one_transposition_names_its_axes(layout, is_one):
    found = layout.axes()
    assert (found is not None) == is_one
    if found is not None:
        array = draw(*layout.shape)
        sizes = [int(np.prod([layout.shape[axis] for axis in some])) for some in found]
        np.testing.assert_array_equal(
            array.transpose([axis for some in found for axis in some]).reshape(sizes), layout.view(array)
        )
