"""Products and sums over rows, as answers to rows that are left out take them."""

import math
from collections.abc import Iterator

import numpy as np

# Scores of a kernel's block and dual coefficients, by the block's rank.
SCORES_OF = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}
# Numbers of a block of rows that are divided at once.
BLOCK = 2**18


def sums_of_others(values):
    """Return for each row the sum of all others, without the rounding of a difference.

    >>> sums_of_others(np.array([1e200, 1.0, 2.0]))
    array([3.e+000, 1.e+200, 1.e+200])
    """
    before, after = np.cumsum(values, axis=0), np.cumsum(values[::-1], axis=0)[::-1]
    nothing = np.zeros_like(values[:1])
    added = np.concatenate([nothing, before[:-1]]) + np.concatenate([after[1:], nothing])
    # where a row is a small part, its difference from the sum is as exact, and sums of equal rows are equal
    return np.where(abs(values) < abs(values).sum(0) / 2, values.sum(0) - values, added)


def real_product(A, B):
    """Return the product of a real matrix with one that may be complex."""
    return A @ B.real + 1j * (A @ B.imag) if np.iscomplexobj(B) else A @ B


def kernel_scores(block: np.ndarray, dual_coef: np.ndarray) -> np.ndarray:
    """Return Σ_j K(x_i, x_j) dual_j (n, T) in double precision, of a kernel's block of rank 2, 3 or 4."""
    return np.einsum(SCORES_OF[block.ndim], block.astype(np.float64, copy=False), dual_coef, optimize=True)


def blocks(n: int, numbers: int) -> Iterator[slice]:
    """Yield slices of n rows of so many numbers, each of about ``BLOCK`` numbers."""
    rows = max(1, math.ceil(BLOCK / max(numbers, 1)))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
