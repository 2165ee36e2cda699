"""In which form a kernel goes to its solver: a matrix, an operator, or rows of features; and which solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ..kernels.feature_rows import FeatureRows
from ..kernels.gram_rows import GramRows
from ..kernels.ntk import Kernel
from ..kernels.operator import gram_operator
from ..kernels.projected import ProjectedNTK
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..solvers.choice import SOLVERS, resolve_solver, solver_of_matrix
from ..solvers.eigenpro import EigenPro
from ..solvers.features import FeatureGram
from ..solvers.iterative import IterativeSolver
from ..solvers.nystrom import Nystrom

# Above so many examples each product with a kernel of all of them takes too long.
OPERATOR_SIZE = 100_000
# Rows of a tile of features.
ROWS = 128


@dataclass(frozen=True)
class KernelForm:
    """A solver, and what it is given.

    Attributes
    ----------
    solver : callable
    form : {"matrix", "operator", "features"}
    """

    solver: Callable
    form: str


def kernel_form(
    solver: str | Callable, kernel: Kernel, rank: int, n: int, n_outputs: int, *, alpha: float, memory: int
) -> KernelForm:
    """Choose the solver for "auto", and the form in which it takes the kernel.

    Parameters
    ----------
    solver : str or callable
        As of the estimators, without "sgd".
    kernel : Kernel
    rank : int
        Of its blocks: 2, 3 or 4.
    n : int
        Examples.
    n_outputs : int
        C of a kernel of rank 3 or 4.
    alpha : float
    memory : int
        Bytes that the matrix and its copy in double precision may take; where they take more, iterative solvers
        get the kernel as an operator.

    Raises
    ------
    ValueError
        If the solver is unfit for the kind of kernel, or for an ``alpha`` of zero.
    """
    found = resolve_solver(solver)
    size = n * (n_outputs if rank == 4 else 1)
    fits = matrix_bytes(rank, n, n_outputs) + 8 * size**2 <= memory
    has_rows = rank == 2 and kernel.is_tangent
    if found is None:
        if fits:
            found = solver_of_matrix(size, alpha)
        elif n <= OPERATOR_SIZE or not has_rows:
            found = SOLVERS["cg"]
        else:
            found = SOLVERS["eigenpro" if isinstance(kernel, ProjectedNTK) else "nystrom"]
    require_ridge(found, alpha)
    if isinstance(found, EigenPro):
        if not has_rows:
            raise ValueError(
                f"solver='eigenpro' takes tangent features of one row an example, which {kernel!r} has not; take "
                "kernel='pseudo', 'trace' or ProjectedNTK(), or another solver"
            )
        return KernelForm(found, "features")
    if isinstance(found, IterativeSolver) and not fits:
        return KernelForm(found, "operator")
    return KernelForm(found, "matrix")


def rank_of(kernel: Kernel, model: Model, X: Any) -> int:
    """Return the rank of the kernel's blocks, as stated or found without computing one."""
    if kernel.rank is not None:
        return kernel.rank
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    return jax.eval_shape(kernel, model, x, x).ndim


def matrix_bytes(rank: int, n: int, n_outputs: int) -> int:
    """Count the bytes of the Gram matrix of n rows in single precision."""
    return 4 * n**2 * n_outputs ** (rank - 2)


def require_ridge(solver: Callable, alpha: float) -> None:
    """Raise ValueError for a solver on landmarks without a ridge."""
    if isinstance(solver, Nystrom) and not alpha > 0:
        raise ValueError(
            "alpha must be > 0 with solver='nystrom', whose equations on landmarks need a ridge, got "
            f"alpha={alpha!r}; give a small one, such as alpha=1e-6, or take solver='cholesky'"
        )


def not_formed(form: KernelForm, kernel: Kernel, rank: int, model: Model, X: Any, memory: int) -> Any:
    """Return the kernel as a linear operator, which computes what it is asked for within ``memory``."""
    is_nystrom = isinstance(form.solver, Nystrom)
    if form.form == "features":
        rows = FeatureRows(kernel, model, X, memory, min(ROWS, len(X)))
        kept = len(X) * rows.n_features * params_dtype(model.variables.params).itemsize <= memory / 2
        return FeatureGram(rows(X)) if kept else FeatureGram(X, rows)
    if is_nystrom and rank == 2:
        return GramRows(kernel, model, X, memory)
    # products in single precision would let conjugate gradients end at a residual of 1e-4
    return gram_operator(kernel, model, X, memory=memory, dtype=None if is_nystrom else "float64")
