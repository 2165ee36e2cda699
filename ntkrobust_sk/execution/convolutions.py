"""Gradients of convolutions' inputs, as a CPU computes them fast.

XLA has a fast convolution on a CPU for images with channels last and filters (h, w, in, out). It brings others
into that form, but not inside of a loop, where the input gradient of an ordinary convolution takes several times
longer; and that of a strided one, a convolution of images widened by zeros, is slow everywhere. So here it
is written down in the fast form: every stride-th pixel is an ordinary convolution with every stride-th tap,
turned around. The convolutions of any function are taken so by rewriting its jaxpr.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .devices import on_host
from .rewriting import bind, equations_of, rewritten

CONVOLUTION = "conv_general_dilated"


def with_fast_gradients(function: Callable) -> Callable:
    """Return the same function with faster gradients: those of convolutions' inputs are taken phase by phase.

    Parameters
    ----------
    function : callable
        Of arrays, or trees of arrays, to the same.

    Returns
    -------
    callable
        The function itself where it has no such convolution, or where there is something better than a CPU. It can
        be differentiated backward, not forward (``jax.jvp``).

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import CNN, Model
    >>> network = CNN(n_outputs=2, widths=(4,), strides=(2,))
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> x = jax.numpy.ones((1, 8, 8, 1))
    >>> gradients = [jax.grad(lambda x: f(x).sum())(x) for f in (model, with_fast_gradients(model))]
    >>> bool(abs(gradients[0] - gradients[1]).max() < 1e-5)
    True
    """
    if not on_host():
        return function
    return rewritten(function, lambda eqn: partial(plain_convolution, eqn) if is_plain(eqn) else None)


def loops_well(function: Callable, *args) -> bool:
    """Tell whether a loop over :func:`with_fast_gradients` of it is as fast as its steps alone.

    It is where all convolutions are plain, or where there is something better than a CPU.
    """
    equations = equations_of(jax.make_jaxpr(function)(*args).jaxpr)
    return not on_host() or all(is_plain(eqn) or CONVOLUTION not in str(eqn) for eqn in equations)


def is_plain(eqn: Any) -> bool:
    """Tell whether it is an ordinary convolution of images, with or without strides, on a CPU."""
    if eqn.primitive.name != CONVOLUTION or not on_host():
        return False
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    plain &= all(d == 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
    plain &= len({var.aval.dtype for var in (*eqn.invars, *eqn.outvars)}) == 1
    channels_last = numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2) and numbers.rhs_spec == (3, 2, 0, 1)
    return plain and channels_last


def is_strided(eqn: Any) -> bool:
    """Tell whether it is a plain one with strides, whose gradient XLA is slow at everywhere."""
    return is_plain(eqn) and max(eqn.params["window_strides"]) > 1


def plain_convolution(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Return the convolution, with the gradient of its input taken phase by phase."""

    @jax.custom_vjp
    def convolve(lhs, rhs):
        return bind(eqn, [lhs, rhs])[0]

    def backward(saved, delta):
        lhs, rhs = saved
        (of_filter,) = jax.linear_transpose(lambda rhs: bind(eqn, [lhs, rhs])[0], rhs)(delta)
        return _by_phases(eqn, delta, rhs, lhs.shape).astype(lhs.dtype), of_filter

    convolve.defvjp(lambda lhs, rhs: (convolve(lhs, rhs), (lhs, rhs)), backward)
    return convolve(lhs, rhs)


def _by_phases(eqn, delta, rhs, shape):
    """Return cotangents ``(n, *out, o)`` of the output as those (n, h, w, c) of the input."""
    strides, padding = eqn.params["window_strides"], eqn.params["padding"]
    first = [low // s for (low, _), s in zip(padding, strides, strict=True)]
    last = [-(-(low + size) // s) for (low, _), size, s in zip(padding, shape[1:3], strides, strict=True)]

    def phase(p, q):
        taps = jnp.flip(rhs[p :: strides[0], q :: strides[1]], (0, 1)).swapaxes(2, 3)
        if 0 in taps.shape:
            return jnp.zeros((len(delta), last[0] - first[0], last[1] - first[1], shape[3]), delta.dtype)
        around = [(taps.shape[d] - 1 - first[d], last[d] - delta.shape[1 + d]) for d in (0, 1)]
        return jax.lax.conv_general_dilated(
            delta,
            taps,
            (1, 1),
            around,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=eqn.params["precision"],
        )

    rows = [jnp.stack([phase(p, q) for q in range(strides[1])], axis=3) for p in range(strides[0])]
    interleaved = jnp.stack(rows, axis=2)  # (n, h / s, s, w / t, t, c)
    n, height, s, width, t, c = interleaved.shape
    image = interleaved.reshape(n, height * s, width * t, c)
    start = [low - f * s for (low, _), f, s in zip(padding, first, strides, strict=True)]
    return image[:, start[0] : start[0] + shape[1], start[1] : start[1] + shape[2]]
