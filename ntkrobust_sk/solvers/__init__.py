"""Kernel ridge regression and the direct solvers under it, on NumPy, CuPy, JAX and array API arrays."""

from .direct import SOLVERS as SOLVERS
from .direct import Cholesky as Cholesky
from .direct import Eigh as Eigh
from .direct import InaccurateSolveError as InaccurateSolveError
from .direct import SingularGramError as SingularGramError
from .direct import resolve_solver as resolve_solver
from .matrices import require_symmetric as require_symmetric
from .ridge import solve as solve
