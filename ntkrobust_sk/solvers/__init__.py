"""Kernel ridge regression and the direct solvers under it, on NumPy, CuPy, JAX and array API arrays."""

from .direct import SOLVERS, Cholesky, Eigh, InaccurateSolveError, SingularGramError, resolve_solver
from .matrices import require_symmetric
from .ridge import solve

__all__ = [
    "SOLVERS",
    "Cholesky",
    "Eigh",
    "InaccurateSolveError",
    "SingularGramError",
    "require_symmetric",
    "resolve_solver",
    "solve",
]
