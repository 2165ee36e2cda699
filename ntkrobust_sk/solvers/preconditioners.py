"""Preconditioners of conjugate gradients: a factor of few columns, and a complete one with half of the digits."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .._arrays import AnyArray, cholesky_factor, cholesky_solve, is_numpy_array, solve_triangular
from .direct import SingularGramError
from .pivoting import pivoted_cholesky
from .systems import RidgeSystem, together


class Preconditioner(NamedTuple):
    """V ↦ P⁻¹ V, a word on P, and whether it is so close that products of few digits would spoil an iteration."""

    apply: Callable[[AnyArray], AnyArray]
    detail: str
    is_close: bool = False


# Up to so many rows a complete factor in single precision takes less time than the iterations that it saves.
COMPLETE_SIZE = 20_000
# A preconditioner's ridge is no smaller than this part of its largest eigenvalue.
SMALLEST_SHIFT = 1e-12
# A factor that leaves no more than this of the ridge, on average of the diagonal, has enough columns.
ENOUGH = 0.1


def complete(system: RidgeSystem) -> Preconditioner | None:
    """Factor the whole of a matrix on the host in single precision, which takes half of the time and memory.

    Iterations then only mend its rounding, as in iterative refinement with two precisions (Higham & Mary 2022,
    doi:10.1017/S0962492922000022, section 5). Where rounding makes it indefinite, its ridge is raised.

    Returns
    -------
    Preconditioner, or None where there is no such factor
        Of an operator, of a matrix on a device, without a ridge, with more than 20,000 rows, or of one that is
        indefinite beyond rounding.
    """
    n = system.shape[0]
    if not is_numpy_array(system.gram) or system.ridge == 0 or n > COMPLETE_SIZE:
        return None
    scale = float(system.diagonal().sum()) / n + system.ridge
    rounding = n * float(np.finfo(np.float32).eps)
    for more in (0.0, rounding, 10 * rounding):
        narrow = system.narrow(scale)
        narrow.flat[:: n + 1] += np.float32(system.ridge / scale + more)
        try:
            triangle = cholesky_factor(narrow, overwrite=True)
        except np.linalg.LinAlgError:
            continue

        def precondition(V, triangle=triangle):
            # each column in its own units
            units = np.maximum(np.abs(V).max(axis=0), np.finfo(float).tiny)
            return cholesky_solve(triangle, together((V / units).astype(np.float32))) * (units / scale)

        return Preconditioner(precondition, "preconditioner: a Cholesky factor in single precision", is_close=True)
    return None


def low_rank(system: RidgeSystem, rank: int | None, seed: int) -> Preconditioner:
    """Make (F Fᵀ + μI)⁻¹ of a randomly pivoted Cholesky factor F (arXiv:2304.12465).

    Raises
    ------
    SingularGramError
        If the factor shows that a system without a ridge has no unique solution.
    """
    n = system.shape[0]
    if rank is not None:
        rank = min(rank, n)
    elif system.is_operator:
        rank = min(500, math.ceil(4 * math.sqrt(n)), n)
    else:
        rank = min(1000, math.ceil(n / 8))
    if rank == 0 or not system.has_columns:
        why = "" if rank == 0 else ": the operator has no diagonal() and columns(indices)"
        return Preconditioner(lambda V: V, f"no preconditioner{why}")
    diagonal = system.diagonal()
    trace = float(diagonal.sum())
    enough = ENOUGH * system.ridge * n / trace if trace > 0 else 0.0
    factor, pivots = pivoted_cholesky(system, rank, tol=enough, seed=seed)
    xp = array_namespace(factor)
    left = max(trace - float(xp.sum(factor * factor)), 0.0)
    if len(pivots) < min(rank, n - 1) and system.ridge == 0:
        raise SingularGramError(
            f"the {n} x {n} matrix has rank {len(pivots)} to working precision, so without a ridge there is "
            "no unique solution. Raise alpha, or remove duplicate samples from X"
        )
    if not len(pivots):
        return Preconditioner(lambda V: V, "no preconditioner: the ridge outweighs the matrix")
    square = factor.T @ factor
    largest = float(xp.linalg.trace(square))
    shift = max(system.ridge + left / n, SMALLEST_SHIFT * largest)
    triangle = cholesky_factor(square + shift * xp.eye(len(pivots), dtype=square.dtype))
    factor = solve_triangular(triangle, factor.T).T
    detail = f"preconditioner of rank {len(pivots)}, without {left / trace:.1e} of the trace"
    return Preconditioner(lambda V: (V - factor @ (factor.T @ together(V))) / shift, detail)
