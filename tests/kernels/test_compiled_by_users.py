"""Kernels inside of a user's own jit: the numbers of `gram`, at all sizes that XLA fuses in other ways."""

import jax
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, ClassNTK, Model, PseudoNTK, TraceNTK, gram, gram_operator

SIZES = (2, 25, 30, 48, 50, 64)
NETWORK = MLP(n_outputs=2, widths=(3,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (4,)))


@pytest.mark.parametrize("kernel", [TraceNTK(), ClassNTK(), PseudoNTK()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize(
    "network, shape",
    [
        (MLP(n_outputs=10, widths=(64,)), (64,)),
        (MLP(n_outputs=7, widths=(100,)), (64,)),
        (MLP(n_outputs=2, widths=(16, 16)), (5,)),
        (MLP(n_outputs=1, widths=(64,)), (20,)),
        (CNN(n_outputs=3, widths=(4,), strides=(1,)), (6, 6, 1)),
    ],
    ids=["ten-outputs", "seven-outputs", "two-layers", "one-output", "convolution"],
)
def test_a_kernel_in_a_program_of_ones_own_is_that_of_gram(kernel, network, shape):
    model, draw = Model(network, network.init(jax.random.key(0), shape)), np.random.default_rng(0)
    compiled = jax.jit(lambda model, a, b: kernel(model, a, b))
    sizes = SIZES if len(shape) == 1 else SIZES[:2]
    for n in sizes:
        a, b = (draw.random((rows, *shape), np.float32) for rows in (n, max(n // 2, 1)))
        for other in (a, b)[: 1 + (n == 50)]:
            expected = gram(kernel, model, a, other, dtype="float64")
            found, scale = compiled(model, a, other), abs(expected).max()
            np.testing.assert_allclose(found / scale, expected / scale, atol=3e-5, err_msg=f"{n} rows")


@pytest.mark.parametrize("what", ["model", "X", "Y"])
@pytest.mark.parametrize("function", [gram, gram_operator])
def test_a_matrix_that_is_asked_for_inside_of_a_transformation_is_refused_with_the_way_out(function, what):
    given = {"model": MODEL, "X": np.ones((3, 4), np.float32), "Y": np.ones((2, 4), np.float32)}

    def asked(traced):
        return function("trace", **(given | {what: traced}))

    for transformed in (jax.jit(asked), jax.grad(lambda traced: asked(traced).sum())):
        with pytest.raises(TypeError, match=rf"^{what} is traced .* TraceNTK\(\)\(model, x1, x2\)"):
            transformed(given[what])
