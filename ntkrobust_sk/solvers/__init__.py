"""Kernel ridge regression, and direct and iterative solvers under it, on NumPy, CuPy, JAX and array API arrays."""

from .choice import SOLVERS as SOLVERS
from .choice import chosen_solver as chosen_solver
from .choice import resolve_solver as resolve_solver
from .convergence import SolveReport as SolveReport
from .direct import Cholesky as Cholesky
from .direct import Eigh as Eigh
from .direct import InaccurateSolveError as InaccurateSolveError
from .direct import SingularGramError as SingularGramError
from .eigenpro import EigenPro as EigenPro
from .features import FeatureGram as FeatureGram
from .iterative import ConjugateGradient as ConjugateGradient
from .iterative import IterativeSolver as IterativeSolver
from .matrices import require_symmetric as require_symmetric
from .nystrom import Nystrom as Nystrom
from .pivoting import pivoted_cholesky as pivoted_cholesky
from .ridge import solve as solve
from .systems import RidgeSystem as RidgeSystem
