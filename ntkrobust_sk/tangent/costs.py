"""What a gradient costs: when it is formed, in operations, and what its inner products take, in bytes."""

from __future__ import annotations

import math

import jax

from .gradients import DenseGradients, OuterProducts

# The bytes of an array entry, written and read again, take the time of about so many multiply-adds.
ENTRY_COST = 30
# A row's gradient, once formed, is contracted with about so many others: the rows of a tile.
USES_PER_GRADIENT = 64


def forms_gradient(n_positions: int, n_in: int, n_out: int, n_directions: int, all_pairs: bool) -> bool:
    """Tell whether dense gradients are cheaper than outer products, in operations for each pair of rows.

    Dense: o·k for every pair of directions, and s·o·k once a row and direction. As outer products: the products of
    all positions' inputs, s²·k, and for every pair of directions those of the cotangents, s²·o, entries of two
    arrays that are multiplied. Depends on nothing but the network's shapes.
    """
    pairs = n_directions**2 if all_pairs else n_directions
    formed = pairs * n_out * n_in + n_directions * n_positions * n_out * n_in / USES_PER_GRADIENT
    factored = n_positions**2 * (n_in + pairs * (n_out + ENTRY_COST))
    return formed < factored


def contraction_bytes(leaf: DenseGradients | OuterProducts, itemsize: int, all_pairs: bool = False) -> int:
    """Count the bytes that an inner product of two tiles takes at most, in a precision of ``itemsize`` bytes.

    Parameters
    ----------
    leaf : DenseGradients or OuterProducts
        Shapes are enough.
    itemsize : int
        If larger than the features' own, they are copied.
    all_pairs : bool, default=False
        Whether products of different directions are taken.
    """
    arrays = jax.tree.leaves(leaf)
    copied = 2 * sum(math.prod(a.shape) * itemsize for a in arrays if itemsize > a.dtype.itemsize)
    if isinstance(leaf, DenseGradients):
        n_directions, n, _ = leaf.values.shape
        return copied + 2 * n_directions ** (1 + all_pairs) * n**2 * itemsize
    n_directions, n, n_groups, n_positions, _ = leaf.cotangents.shape
    once, blocks = n_groups * (n * n_positions) ** 2 * itemsize, 2 * n_directions ** (1 + all_pairs)
    return copied + (blocks * once if n_positions == 1 else 3 * once + blocks * n**2 * itemsize)
