"""Blocks put in their places in a matrix, in NumPy or on a device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..execution.devices import on_host
from .tiles import transpose


def empty_matrix(size: tuple[int, int], block: Any) -> Any:
    """Return a matrix (*size, ...) for blocks like this one, where they are."""
    shape = (*size, *block.shape[2:])
    in_numpy = isinstance(block, np.ndarray) or on_host(block.devices())
    return np.empty(shape, block.dtype) if in_numpy else jnp.zeros(shape, block.dtype)


def with_block(result: Any, block: Any, i: int, j: int, mirrored: bool) -> Any:
    """Place the part of a block that lies inside the result, and its mirror image where that is wanted."""
    if not isinstance(result, np.ndarray):
        return _place(result, block, i, j, mirrored)
    block = np.asarray(block)[: result.shape[0] - i, : result.shape[1] - j]
    result[i : i + block.shape[0], j : j + block.shape[1]] = block
    if mirrored:
        result[j : j + block.shape[1], i : i + block.shape[0]] = transpose(block)
    return result


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def _place(result, block, i, j, mirrored):
    """Place a block, whole or cut off by the result's ends: two programs serve all tiles of a matrix."""
    result = _place_once(result, block, i, j)
    return _place_once(result, transpose(block), j, i) if mirrored else result


def _place_once(result, block, i, j):
    block = block[: result.shape[0], : result.shape[1]]
    height, width = block.shape[:2]
    # a region of the block's size that lies inside, in whose last rows and columns the first ones of the block are
    top, left = (
        jnp.minimum(at, whole - size)
        for at, whole, size in zip((i, j), result.shape, (height, width), strict=False)
    )
    tail = (0,) * (result.ndim - 2)
    before = jax.lax.dynamic_slice(result, (top, left, *tail), block.shape)
    moved = jnp.roll(block, (i - top, j - left), axis=(0, 1))
    inside = (jnp.arange(height) >= i - top)[:, None] & (jnp.arange(width) >= j - left)
    kept = jnp.where(inside.reshape(height, width, *(1,) * len(tail)), moved, before)
    return jax.lax.dynamic_update_slice(result, kept, (top, left, *tail))
