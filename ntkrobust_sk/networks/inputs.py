"""Inputs in the form and dtype in which they reach a network."""

import math
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer

from .._validation import array, brief, brief_with_dtype, fitting, is_finite
from ..execution.devices import on_host

PyTree = Any
SINGLE = np.dtype(np.float32)
# What a network's ``apply`` returns: logits (n, C), and its new state.
LogitsAndState: TypeAlias = tuple[jax.Array, PyTree]


def params_dtype(params: PyTree) -> jnp.dtype:
    """Return the floating dtype of a network's parameters; of several, the one that holds all of them.

    >>> params_dtype({"body": jnp.zeros(2, jnp.float16), "head": jnp.zeros(2, jnp.float32)})
    dtype('float32')
    """
    found = {dtype for _, dtype in map(_shape_of, jax.tree.leaves(params))}
    if found == {SINGLE}:
        return SINGLE
    floating = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else jax.dtypes.canonicalize_dtype(float)


def shapes_of(leaves: list) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    """Return the shape of each leaf of a pytree, and the dtype in which JAX takes it.

    >>> shapes_of([jnp.zeros(2), 1.0])
    (((2,), dtype('float32')), ((), dtype('float32')))
    """
    return tuple([_shape_of(leaf) for leaf in leaves])


def _shape_of(leaf):
    # what JAX makes of a dtype is asked only where that may be another one: it takes longer than all the rest
    aval = getattr(leaf, "aval", None)
    if isinstance(aval, ShapedArray) and aval.dtype == SINGLE:
        return aval.shape, SINGLE
    try:
        return tuple(jnp.shape(leaf)), jnp.result_type(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the variables of a model must be arrays, got {brief(leaf)}") from error


def as_inputs(x, params: PyTree, name: str = "x") -> jax.Array:
    """Convert inputs to what a network with these parameters gets: integers stay, others take its dtype.

    >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
    >>> as_inputs([[1, 2]], params).dtype, as_inputs([[1.0, 2.0]], params).dtype
    (dtype('int32'), dtype(bfloat16))
    """
    is_series = isinstance(x, list | tuple) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
    if not isinstance(x, jax.Array) and not is_series:
        x = host_inputs(name, x, params)
    _require_numbers(name, x)
    return jnp.asarray(x, inputs_dtype(jnp.result_type(x), params))


def finite_inputs(name: str, x, params: PyTree) -> jax.Array:
    """Convert like :func:`as_inputs`; NaN and infinity raise where inputs are known without waiting."""
    x = as_inputs(x, params, name)
    return require_finite(name, x)


def require_finite(name: str, x):
    """Return inputs, or raise for NaN and infinity; those traced, or on an accelerator, are not looked at."""
    known = isinstance(x, np.ndarray) or (not isinstance(x, Tracer) and on_host())
    if known and x.dtype.kind not in "biu" and not is_finite(np.asarray(x)):
        raise ValueError(f"{name} must be finite, but {brief(x)} has NaN or infinity")
    return x


def host_inputs(name: str, X, params: PyTree) -> np.ndarray:
    """Convert like :func:`as_inputs`, in NumPy.

    Raises
    ------
    TypeError
        For what is no dense array of numbers.
    ValueError
        For rows of different lengths, and for numbers that JAX would cut off: integers, and what overflows.
    """
    _require_numbers(name, X)
    is_whole = isinstance(X, jax.Array) or (not isinstance(X, list | tuple) and np.ndim(X) == 0)
    X = np.asarray(X) if is_whole else array(name, X, kinds="biufc")
    if X.dtype.kind not in "biufc" and not jnp.issubdtype(X.dtype, jnp.floating):
        raise TypeError(f"{name} must be an array of numbers, got {brief_with_dtype(X, X.dtype)}")
    return fitting(name, X, inputs_dtype(X.dtype, params))


def _require_numbers(name, x):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must be an array of numbers, got {brief(x)}")


def inputs_dtype(dtype, params: PyTree) -> np.dtype:
    """Return the dtype in which inputs of a given dtype reach a network with these parameters."""
    own = params_dtype(params)
    if dtype is SINGLE and own is SINGLE:
        return SINGLE
    if jnp.issubdtype(dtype, jnp.integer):
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    return np.dtype(jnp.result_type(own, jnp.complex64) if jnp.issubdtype(dtype, jnp.complexfloating) else own)


def n_params(params: PyTree) -> int:
    """Count the scalar parameters P.

    >>> n_params({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})
    8
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def all_finite(leaves) -> bool:
    """Tell whether arrays hold neither NaN nor infinity; those that are being traced are taken for finite."""
    on_device, on_host = [], []
    for leaf in leaves:
        if not isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
            far = isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform != "cpu"
            (on_device if far else on_host).append(leaf)
    # neither way holds an answer for each number, which would take up to a quarter of the numbers' own memory
    return all(is_finite(np.asarray(leaf)) for leaf in on_host) and (not on_device or bool(_finite(on_device)))


def are_finite(params: list) -> bool:
    """Tell what :func:`all_finite` does, of parameters that are asked for again and again.

    Arrays of JAX, which do not change, are looked at once.
    """
    if not all_finite(unknown := [leaf for leaf in params if _FINITE.get(id(leaf)) is not leaf]):
        return False
    known = (leaf for leaf in unknown if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer))
    _FINITE.update((id(leaf), leaf) for leaf in known)
    return True


# Arrays that were found to be finite, by their ids.
_FINITE: WeakValueDictionary[int, jax.Array] = WeakValueDictionary()


@jax.jit
def _finite(leaves):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
