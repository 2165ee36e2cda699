"""The convolutions of any function, each of their three computations in the form that a CPU is fastest at.

The forms and what they cost are in :mod:`~ntkrobust_sk.execution.convolution_forms`. Here a function's jaxpr is
rewritten, so that all of its ordinary convolutions of images are taken so: forward, and when it is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .convolution_forms import (
    CACHE,
    FORWARD,
    OF_FILTERS,
    OF_IMAGES,
    Convolution,
    by_all_patches,
    by_columns,
    by_kept_patches,
    by_patches,
    by_phases,
    by_rows,
    by_taps,
    cheapest,
    direct,
    of_patches,
)
from .devices import on_host
from .rewriting import equations_of, rewritten

CONVOLUTION = "conv_general_dilated"
_BY_PRODUCTS = ContextVar("by_products", default=False)
# Fewer rows at once leave products too little to do.
FEWEST = 16
# Forms that make patches, which can be kept for the gradient of filters.
PATCHES = {by_patches: Convolution.patches, by_rows: Convolution.patches_by_rows}


def with_fast_convolutions(function: Callable) -> Callable:
    """Return the same function with faster convolutions, and faster gradients of them.

    Parameters
    ----------
    function : callable
        Of arrays, or trees of arrays, to the same.

    Returns
    -------
    callable
        The function itself where it has no ordinary convolution, or where there is something better than a CPU. It
        can be differentiated backward, not forward (``jax.jvp``).

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import CNN, Model
    >>> network = CNN(n_outputs=2, widths=(4,), strides=(2,))
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> x = jax.numpy.ones((1, 8, 8, 1))
    >>> gradients = [jax.grad(lambda x: f(x).sum())(x) for f in (model, with_fast_convolutions(model))]
    >>> bool(abs(gradients[0] - gradients[1]).max() < 1e-5)
    True
    """
    if not on_host():
        return function
    return rewritten(function, lambda eqn: partial(plain_convolution, eqn) if is_plain(eqn) else None)


def loops_well(function: Callable, *args) -> bool:
    """Tell whether a loop over :func:`with_fast_convolutions` of it is as fast as its steps alone.

    It is where all convolutions are plain, or where there is something better than a CPU.
    """
    equations = equations_of(jax.make_jaxpr(function)(*args).jaxpr)
    return not on_host() or all(is_plain(eqn) or CONVOLUTION not in str(eqn) for eqn in equations)


def rows_in_cache(function: Callable, x: jax.Array) -> int:
    """Return how many of the rows (n, ...) a function takes best at once, a divisor of n.

    All of them, but where patches of plain convolutions would leave the cache: there products wait for memory.
    """
    n = x.shape[0]
    equations = equations_of(jax.make_jaxpr(function)(x).jaxpr)
    shapes = (_shapes(eqn, *(var.aval for var in eqn.invars)) for eqn in equations if is_plain(eqn))
    most = max((of.patch_bytes() for of in shapes), default=0)
    if most <= CACHE:
        return n
    fitting = [rows for rows in range(FEWEST, n) if n % rows == 0 and most * rows <= CACHE * n]
    return max(fitting, default=n)


def is_plain(eqn: Any) -> bool:
    """Tell whether it is an ordinary convolution of images, with or without strides, on a CPU.

    One of integers is none, since its sums wrap around, and neither is one of empty arrays.
    """
    if eqn.primitive.name != CONVOLUTION or not on_host():
        return False
    shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
    if any(0 in shape for shape in shapes) or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
        return False
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    plain &= all(d == 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
    plain &= len({var.aval.dtype for var in (*eqn.invars, *eqn.outvars)}) == 1
    return plain and numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)


def is_strided(eqn: Any) -> bool:
    """Tell whether it is a plain one with strides, whose gradient XLA is slow at everywhere."""
    return is_plain(eqn) and max(eqn.params["window_strides"]) > 1


def plain_convolution(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Return the convolution, and its gradients when they are asked for, each in the form that costs least."""
    rhs = _filters(eqn, rhs)
    of = _shapes(eqn, lhs, rhs)
    forward, of_images, of_filters = (cheapest(forms, of) for forms in (FORWARD, OF_IMAGES, OF_FILTERS))
    if forward in PATCHES and of.patch_bytes() <= CACHE:
        of_filters = by_kept_patches
    return _convolve(of, forward, of_images, of_filters, lhs, rhs)


def phased_convolution(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Return the convolution, with the gradient of images by phases, which copies nothing.

    For kernels' features: cotangents of many directions come at once there, for few rows, and copies of all of
    them take longer than what they spare.
    """
    rhs = _filters(eqn, rhs)
    return _convolve(_shapes(eqn, lhs, rhs), direct, by_phases, by_taps, lhs, rhs)


def convolution_by_products(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Return the convolution, and its gradients, as products of matrices.

    XLA has no fast convolution in double precision on a CPU, but fast products, however little it optimises.
    """
    rhs = _filters(eqn, rhs)
    return _convolve(_shapes(eqn, lhs, rhs), by_patches, by_columns, by_all_patches, lhs, rhs)


@contextmanager
def double_by_products() -> Iterator[None]:
    """Take plain convolutions in double precision as products, in gradients read from a network meanwhile."""
    token = _BY_PRODUCTS.set(True)
    try:
        yield
    finally:
        _BY_PRODUCTS.reset(token)


def is_by_products(eqn: Any) -> bool:
    """Tell whether this is a plain one in double precision, in a block of :func:`double_by_products`."""
    return _BY_PRODUCTS.get() and is_plain(eqn) and eqn.outvars[0].aval.dtype == jnp.float64


def _filters(eqn, rhs) -> jax.Array:
    """Return filters as (kh, kw, c, o); in gradients of convolutions they stand as (kh, kw, o, c)."""
    out, into, *places = eqn.params["dimension_numbers"].rhs_spec
    return jnp.transpose(rhs, (*places, into, out))


def _shapes(eqn, lhs, rhs) -> Convolution:
    params = eqn.params
    return Convolution(
        lhs.shape,
        rhs.shape,
        eqn.outvars[0].aval.shape,
        params["window_strides"],
        params["padding"],
        params["precision"],
        lhs.dtype.itemsize,
    )


def _convolve(of: Convolution, forward, of_images, of_filters, lhs, rhs) -> jax.Array:
    @jax.custom_vjp
    def convolve(lhs, rhs):
        return forward(of, lhs, rhs)

    def remember(lhs, rhs):
        if of_filters is by_kept_patches:
            patches = PATCHES[forward](of, lhs)
            return of_patches(of, patches, rhs), (patches, rhs)
        return convolve(lhs, rhs), (lhs, rhs)

    def backward(saved, delta):
        lhs, rhs = saved
        return of_images(of, delta, rhs), of_filters(of, lhs, delta)

    convolve.defvjp(remember, backward)
    return convolve(lhs, rhs)
