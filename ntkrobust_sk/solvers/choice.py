"""Solvers by name, and the choice of one by size, memory and kind of kernel."""

from collections.abc import Callable
from typing import Any

from scipy.sparse.linalg import LinearOperator

from .._validation import check_choice, function, unknown
from .direct import Cholesky, Eigh
from .eigenpro import EigenPro
from .features import FeatureGram
from .iterative import ConjugateGradient
from .nystrom import Nystrom

SOLVERS = {
    "cholesky": Cholesky(),
    "eigh": Eigh(),
    "cg": ConjugateGradient(),
    "nystrom": Nystrom(),
    "eigenpro": EigenPro(),
}
# Up to so many equations a direct solver takes a few seconds, and is exact.
DIRECT_SIZE = 10_000
# Below, conjugate gradients need many iterations.
SMALL_ALPHA = 1e-5


def resolve_solver(solver: str | Callable) -> Callable | None:
    """Return the solver of a name, or the object itself if it can be called as ``solver(A, B)``.

    Parameters
    ----------
    solver : str or callable
        A key of ``SOLVERS``, "auto", or any callable with the contract of ``Cholesky.__call__``.

    Returns
    -------
    callable, or None for "auto"

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is neither a name nor a callable, or a class that was not instantiated.

    Examples
    --------
    >>> resolve_solver("cholesky")
    Cholesky(max_residual=None)
    """
    otherwise = "an object called as solver(A, B)"
    if isinstance(solver, str):
        check_choice("solver", solver, [*SOLVERS, "auto"], otherwise)
        return SOLVERS.get(solver)
    if not callable(solver):
        raise TypeError(unknown("solver", solver, [*SOLVERS, "auto"], otherwise))
    return function("solver", solver, "solver(A, B)", 2)


def chosen_solver(gram: Any, alpha: float) -> Callable:
    """Return the solver that "auto" stands for, by what holds the kernel, its size and the ridge.

    A matrix of more than 10,000 equations, and any operator, is solved by conjugate gradients; without a ridge, or
    with a very small one, a matrix is solved directly. Rows of features are solved by EigenPro.

    Parameters
    ----------
    gram : array (n, n), (n, n, C) or (n, n, C, C), LinearOperator or FeatureGram
    alpha : float
        Ridge in units of the mean diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> chosen_solver(np.eye(3), 1e-2)
    Cholesky(max_residual=None)
    """
    if isinstance(gram, FeatureGram):
        return SOLVERS["eigenpro"]
    if isinstance(gram, LinearOperator):
        return SOLVERS["cg"]
    size = gram.shape[0] * (gram.shape[2] if len(gram.shape) == 4 else 1)
    return solver_of_matrix(size, alpha)


def solver_of_matrix(size: int, alpha: float) -> Callable:
    """Return the solver that "auto" stands for, of a matrix with so many equations.

    >>> solver_of_matrix(500, 1e-2)
    Cholesky(max_residual=None)
    """
    return SOLVERS["cholesky" if size <= DIRECT_SIZE or alpha < SMALL_ALPHA else "cg"]
