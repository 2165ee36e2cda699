"""Convolutions in several forms: equal to XLA's, fast in loops, and used where they are wanted."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import OneBlock

from ntkrobust_sk import APGD, CNN, DDN, FAB, FMN, PGD, Model, TraceNTK, linearize
from ntkrobust_sk.execution import convolutions
from ntkrobust_sk.execution.convolution_forms import FORWARD, OF_FILTERS, OF_IMAGES, Convolution, cheapest
from ntkrobust_sk.execution.convolutions import rows_in_cache, with_fast_convolutions
from ntkrobust_sk.training.optimizers import sgd
from ntkrobust_sk.training.state import initial_state
from ntkrobust_sk.training.step import Step, update

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolve(stride, padding, x, w):
    return jax.lax.conv_general_dilated(x, w, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def padding_of(stride, padding, x, w):
    """Padding in numbers, as JAX hands it on."""
    (eqn,) = jax.make_jaxpr(partial(convolve, stride, padding))(x, w).jaxpr.eqns
    return eqn.params["padding"]


def count_widened(function, *args) -> int:
    """Convolutions of images widened by zeros in what XLA is given."""
    return str(jax.make_jaxpr(function)(*args)).count("lhs_dilation=(2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stride, window, padding, size",
    [
        ((1, 1), (3, 3), "SAME", (8, 8)),
        ((1, 1), (2, 5), ((2, 0), (0, 3)), (9, 7)),
        ((2, 2), (3, 3), "SAME", (9, 7)),
        ((2, 2), (1, 1), "VALID", (8, 8)),
        ((3, 1), (2, 5), "SAME", (8, 8)),
        ((3, 1), (1, 1), ((-1, 0), (1, -1)), (9, 7)),
        ((2, 3), (3, 3), "VALID", (8, 8)),
        ((2, 3), (2, 5), ((2, 0), (0, 3)), (9, 7)),
        ((4, 3), (3, 2), "SAME", (11, 8)),
    ],
)
def test_every_form_computes_what_xla_does(stride, window, padding, size):
    x, w = draw(2, *size, 3), draw(*window, 3, 4, seed=1)
    delta = draw(*jax.eval_shape(partial(convolve, stride, padding), x, w).shape, seed=2)
    of = Convolution(x.shape, w.shape, delta.shape, stride, padding_of(stride, padding, x, w))

    @jax.jit
    def all_forms(x, w, delta):
        out, pull = jax.vjp(partial(convolve, stride, padding), x, w)
        of_images, of_filters = pull(delta)
        return [
            (expected, {form.compute.__name__: form.compute(of, *operands) for form in forms})
            for forms, operands, expected in (
                (FORWARD, (x, w), out),
                (OF_IMAGES, (delta, w), of_images),
                (OF_FILTERS, (x, delta), of_filters),
            )
        ]

    for expected, found in all_forms(x, w, delta):
        for name, result in found.items():
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape, window",
    [
        ((0, 8, 8, 3), (3, 3, 3, 4)),
        ((2, 2, 2, 3), (5, 5, 3, 4)),
        ((2, 4, 4, 0), (3, 3, 0, 4)),
        ((2, 4, 4, 3), (3, 3, 3, 0)),
    ],
    ids=["no images", "no pixels out", "no channels in", "no channels out"],
)
def test_convolutions_of_nothing_are_left_to_xla(shape, window, stride):
    function = partial(convolve, (stride, stride), "VALID")
    x, w = jnp.zeros(shape), jnp.zeros(window)
    out, pull = jax.vjp(with_fast_convolutions(function), x, w)
    assert out.shape == function(x, w).shape
    assert [gradient.shape for gradient in pull(out)] == [shape, window]


@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_sums_of_integers_wrap_around_as_they_do(dtype):
    x = np.full((1, 4, 4, 1), np.iinfo(dtype).max - 3, dtype)
    w, function = np.ones((3, 3, 1, 1), dtype), partial(convolve, (1, 1), "SAME")
    np.testing.assert_array_equal(with_fast_convolutions(function)(x, w), function(x, w))


@pytest.mark.slow
@pytest.mark.parametrize("stride", [(1, 1), (3, 2)])
@pytest.mark.parametrize("padding", ["SAME", ((-1, 0), (1, -1))])
def test_a_function_with_fast_convolutions_has_the_gradients_of_the_function(stride, padding):
    x, w = draw(2, 8, 7, 3), draw(3, 3, 3, 4, seed=1)
    function = partial(convolve, stride, padding)
    delta = draw(*jax.eval_shape(function, x, w).shape, seed=2)

    def with_gradients(function, x, w):
        out, pull = jax.vjp(function, x, w)
        return out, pull(delta)

    (ours, found), (out, expected) = (
        jax.jit(partial(with_gradients, f))(x, w) for f in (with_fast_convolutions(function), function)
    )
    np.testing.assert_allclose(ours, out, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_convolutions_inside_of_other_functions_are_found(wrap):
    w = draw(3, 3, 1, 4)

    def convolve(x):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def total(function, x):
        return jnp.tanh(function(x)).sum()

    x = draw(2, 8, 8, 1)
    plain, fast = (
        jax.grad(partial(total, wrap(convolve))),
        jax.grad(partial(total, with_fast_convolutions(wrap(convolve)))),
    )
    assert count_widened(plain, x) == 1
    assert count_widened(fast, x) == 0
    np.testing.assert_allclose(jax.jit(fast)(x), jax.jit(plain)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="forms for a CPU")
def test_convolutions_inside_of_gradients_are_found_too():
    """There filters have their channels in another order, as kernel machines meet them."""
    w, numbers = draw(3, 3, 2, 4), ("NHWC", "HWIO", "NHWC")

    def gradient(x):
        return jax.grad(
            lambda x: (jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers) ** 3).sum()
        )(x)

    x = draw(2, 8, 8, 2)
    orders = [
        set(re.findall(r"rhs_spec=(\(.*?\))", str(jax.make_jaxpr(function)(x))))
        for function in (gradient, with_fast_convolutions(gradient))
    ]
    assert len(orders[0]) == 2
    assert orders[1] <= {"(3, 2, 0, 1)"}
    np.testing.assert_allclose(with_fast_convolutions(gradient)(x), gradient(x), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, out", [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")])
def test_convolutions_of_several_precisions_have_gradients(dtype, out):
    x, w = jnp.asarray(draw(2, 8, 8, 1), dtype), jnp.asarray(draw(3, 3, 1, 4), dtype)

    def convolve(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=numbers, preferred_element_type=out
        )

    fast, plain = (
        jax.jit(jax.grad(lambda x, f=f: f(x).astype(float).sum()))(x)
        for f in (with_fast_convolutions(convolve), convolve)
    )
    assert fast.dtype == x.dtype
    np.testing.assert_allclose(fast.astype(float), plain.astype(float), rtol=0.03, atol=0.03)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA's form of convolutions for a CPU")
@pytest.mark.parametrize("strides", [(1, 1), (1, 2)])
def test_in_a_loop_all_convolutions_have_the_form_that_is_fast_on_a_cpu(strides):
    network = CNN(n_outputs=3, widths=(4, 8), strides=strides)
    model = Model(network, network.init(KEY, (8, 8, 1)))

    def forms(function):
        def step(_, model_and_x):
            return jax.grad(lambda args: function(*args).sum())(model_and_x)

        loop = jax.jit(lambda *args: jax.lax.fori_loop(0, 3, step, args))
        return set(re.findall("dim_labels=(\\S+)->", loop.lower(model, draw(2, 8, 8, 1)).compile().as_text()))

    def scores(model, x):
        return model(x)

    assert forms(with_fast_convolutions(scores)) <= {"b01f_01io"}
    assert forms(scores) > {"b01f_01io"}


@pytest.mark.parametrize(
    "n, size, channels, stride, expected",
    [
        (128, 32, (3, 32), 1, ("by_rows", "by_columns", "by_all_patches")),
        (128, 32, (32, 32), 1, ("direct", "by_phases", "by_shifts")),
        (16, 8, (256, 512), 2, ("by_patches", "by_columns", "by_all_patches")),
        # patches would take 1.3 GB
        (4096, 32, (9, 32), 1, ("direct", "by_phases", "by_taps")),
    ],
    ids=["few channels", "many pixels", "many channels", "too large"],
)
def test_the_form_depends_on_shapes(n, size, channels, stride, expected):
    c, o = channels
    out = size // stride
    of = Convolution((n, size, size, c), (3, 3, c, o), (n, out, out, o), (stride, stride), ((1, 1), (1, 1)))
    assert tuple(cheapest(forms, of).__name__ for forms in (FORWARD, OF_IMAGES, OF_FILTERS)) == expected


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (2, 3), (4, 3)])
@pytest.mark.parametrize("window", [(3, 3), (2, 5), (1, 1), (3, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3)), ((-1, 0), (1, -1))])
def test_patches_put_together_by_rows_are_the_patches(stride, window, padding):
    x, w = draw(2, 9, 7, 3), draw(*window, 3, 4)
    out = jax.eval_shape(partial(convolve, stride, padding), x, w)
    of = Convolution(x.shape, w.shape, out.shape, stride, padding_of(stride, padding, x, w))
    np.testing.assert_array_equal(of.patches_by_rows(x), of.patches(x))


@pytest.mark.parametrize("n, expected", [(128, 32), (100, 50), (50, 50), (127, 127)])
def test_rows_at_once_divide_the_batch_and_their_patches_stay_in_the_cache(n, expected):
    network = CNN(n_outputs=10)
    model = Model(network, network.init(KEY, (32, 32, 3)))
    assert rows_in_cache(model, jax.ShapeDtypeStruct((n, 32, 32, 3), np.float32)) == expected


def test_a_function_without_convolutions_takes_all_rows():
    assert rows_in_cache(jnp.tanh, jax.ShapeDtypeStruct((4096, 30_000), np.float32)) == 4096


@pytest.mark.parametrize("stride", [1, 2])
def test_checkpoints_stay_checkpoints(stride):
    w = draw(3, 3, 2, 2)

    def block(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.tanh(jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=numbers))

    def count(block):
        fast = with_fast_convolutions(lambda x: block(block(x)))
        text = str(jax.make_jaxpr(jax.grad(lambda x: fast(x).sum()))(draw(1, 8, 8, 2)))
        return len(re.findall(r"= tanh\b", text))

    everything, nothing = jax.checkpoint_policies.everything_saveable, jax.checkpoint_policies.nothing_saveable
    assert count(block) == 2
    # what came forward is computed again on the way back
    assert count(jax.checkpoint(block, policy=nothing)) > count(jax.checkpoint(block, policy=everything))


def test_kernels_features_take_strides_by_phases(monkeypatch):
    """Copies for the cotangents of all directions would take longer."""
    network = CNN(n_outputs=3, widths=(4, 8), strides=(1, 2))
    model, x = Model(network, network.init(KEY, (8, 8, 1))), draw(2, 8, 8, 1)
    monkeypatch.delattr(convolutions, "cheapest")
    traced = jax.jit(lambda x: TraceNTK().features(model, x, jnp.eye(3))).trace(x)
    assert "lhs_dilation=(2" not in str(traced.jaxpr)
    features = traced.lower().compile()(x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(features))


def test_a_function_without_convolutions_is_left_as_it_is():
    called = []

    def function(x):
        called.append(x)
        return x * 2

    assert with_fast_convolutions(function)(3.0) == 6.0
    assert called[-1] == 3.0  # itself, not its jaxpr


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, shape",
    [(CNN(n_outputs=3, widths=(4, 8), strides=(1, 2)), (8, 8, 1)), (OneBlock(n_outputs=3, width=2), (16, 16, 3))],
    ids=["cnn", "resnet"],
)
@pytest.mark.parametrize("linear", [False, True])
def test_attacks_and_training_use_them(network, shape, linear):
    model = Model(network, network.init(KEY, shape))
    model = linearize(model) if linear else model
    x, y = draw(2, *shape).clip(0, 1), np.array([0, 1])
    assert count_widened(jax.grad(lambda x: model(x).sum()), x) > 0
    for attack in (PGD(0.1), APGD(0.1), FAB(0.1), FMN(0.1), DDN(1.0)):
        assert count_widened(lambda x, attack=attack: attack(model, x, y, key=KEY), x) == 0
    state = initial_state(model, KEY, sgd())
    assert count_widened(partial(update, Step(sgd())), state, x, x, y, np.ones(2, np.float32), KEY) == 0


@pytest.mark.slow
def test_gradients_have_their_functions_structure():
    def function(tree):
        return {"a": tree[0] * 2, "b": (tree[1],)}

    out = with_fast_convolutions(function)((1.0, 2.0))
    assert jax.tree.structure(out) == jax.tree.structure({"a": 0, "b": (0,)})
