"""Randomly pivoted Cholesky factors: a few columns of a matrix that stand for all of it."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .._arrays import AnyArray, solve_triangular, to_numpy
from .._validation import integer
from .direct import SingularGramError
from .systems import RidgeSystem, as_system

# Of the trace: what is left after rounding.
NOTHING = 1e-14


def pivoted_cholesky(
    A: Any, rank: int, *, block_size: int | None = None, tol: float = NOTHING, seed: int = 0
) -> tuple[AnyArray, np.ndarray]:
    """Factor a positive semidefinite matrix approximately, A ≈ F Fᵀ, from few of its columns.

    Pivots are drawn with probabilities proportional to the diagonal of what is left, A - F Fᵀ (Chen, Epperly,
    Tropp & Webber 2023, arXiv:2207.06503), a block at a time: each proposal of a block is accepted with the
    probability that leaves the distribution as if they had been drawn one by one (arXiv:2410.03969, algorithm 2).

    Parameters
    ----------
    A : array (n, n), or LinearOperator with ``diagonal()`` and ``columns(indices)``
    rank : int
        Most pivots, 1 to n.
    block_size : int, default=None
        Proposals at once. None is a fifth of the rank for a matrix, and a third for an operator, of which each
        call costs much, however few columns are wanted.
    tol : float, default=1e-14
        The pivots end where what is left has no more than this part of the trace.
    seed : int, default=0

    Returns
    -------
    factor : array (n, r)
        r <= rank.
    pivots : array (r,) of int
        The rows of ``factor`` that they name are a lower triangle.

    Raises
    ------
    SingularGramError
        If the diagonal is negative somewhere, or zero everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> features = np.random.default_rng(0).normal(size=(50, 3))
    >>> factor, pivots = pivoted_cholesky(features @ features.T, 10)
    >>> factor.shape, bool(np.allclose(factor @ factor.T, features @ features.T))
    ((50, 3), True)
    """
    system = as_system(A)
    n = system.shape[0]
    rank = min(integer("rank", rank, low=1), n)
    left = _checked_diagonal(system)
    end = max(tol, NOTHING) * left.sum()
    if block_size is None:
        block_size = max(1, rank // 3 if system.is_operator else rank // 5)
    draw = np.random.default_rng(seed)
    factor, pivots = system.empty(n, rank), np.zeros(0, int)
    while len(pivots) < rank and left.sum() > end:
        proposals, chances = _proposals(draw, left, block_size)
        columns = _remaining_columns(system, factor, len(pivots), proposals)
        corner = np.array(to_numpy(array_namespace(columns).take(columns, system.array(proposals), axis=0)))
        taken, triangle = _accepted(corner, chances * left[proposals], rank - len(pivots))
        if not len(taken):
            break
        xp = array_namespace(columns)
        columns = xp.take(columns, system.array(taken), axis=1)
        columns = solve_triangular(system.array(triangle), columns.T).T
        factor[:, len(pivots) : len(pivots) + len(taken)] = columns
        left = np.maximum(left - np.array(to_numpy(xp.sum(columns * columns, axis=1))), 0)
        pivots = np.concatenate([pivots, proposals[taken]])
        left[pivots] = 0
    return factor[:, : len(pivots)], pivots


def _checked_diagonal(system: RidgeSystem) -> np.ndarray:
    diagonal = system.diagonal()
    if not np.isfinite(diagonal).all():
        raise ValueError("the matrix must be finite, but its diagonal has NaN or infinity")
    if diagonal.min() < 0 or not diagonal.any():
        raise SingularGramError(
            f"the matrix is not positive semidefinite: its diagonal goes from {diagonal.min():.3g} to "
            f"{diagonal.max():.3g}"
        )
    return diagonal


def _proposals(draw, left, size):
    """Draw rows in proportion to what is left of them, each once, and the chances by which they are accepted."""
    reached = np.cumsum(left)
    drawn = np.searchsorted(reached, draw.random(size) * reached[-1], side="right")
    drawn = np.minimum(drawn, np.flatnonzero(left)[-1])
    # a row that comes again has nothing left by then
    _, first = np.unique(drawn, return_index=True)
    order = np.sort(first)
    return drawn[order], draw.random(size)[order]


def _remaining_columns(system, factor, rank, indices):
    """Compute columns of A - F Fᵀ."""
    columns = system.columns(indices)
    if not rank:
        return columns
    xp = array_namespace(columns)
    known = factor[:, :rank]
    return columns - known @ xp.take(known, system.array(indices), axis=0).T


def _accepted(corner, bounds, most):
    """Return which proposals are accepted, in turn, and the Cholesky factor of their corner of what is left."""
    triangle, taken = np.zeros((len(corner), 0)), []
    for i in range(len(corner)):
        if len(taken) == most:
            break
        pivot = corner[i, i] - triangle[i] @ triangle[i]
        if not pivot > max(bounds[i], 0):
            continue
        column = (corner[:, i] - triangle @ triangle[i]) / np.sqrt(pivot)
        # rows of those before it, whose elimination is complete
        column[taken] = 0
        triangle, taken = np.column_stack([triangle, column]), [*taken, i]
    return np.array(taken, int), triangle[taken]
