"""Conjugate gradients for several right-hand sides, preconditioned by a factor of few columns or few digits."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from scipy.sparse.linalg import LinearOperator

from .._arrays import AnyArray, to_numpy
from .._validation import array, integer, number
from .convergence import SolveReport, warn_unless_converged
from .direct import SingularGramError, prepared
from .matrices import require_symmetric
from .preconditioners import complete, low_rank
from .systems import RidgeSystem
from .units import in_own_units

# Residuals of products in single precision are computed anew, in double precision, when they fall by this.
RELIABLE = 0.03
# Steps of refinement go on while each leaves no more than this of every residual.
CONTRACTS = 0.1
# Directions with less than this of their own, in squares, are left out of a block.
DEPENDENT = 1e-12


@dataclass(frozen=True, kw_only=True)
class IterativeSolver:
    """A solver that takes a linear operator too, and says how far it has come."""

    @abstractmethod
    def run(self, system: RidgeSystem, B: AnyArray) -> tuple[AnyArray, SolveReport]:
        """Return X (n, k) for B (n, k), both in double precision, and what was done; no warning is given."""

    def solve_system(self, system: RidgeSystem, B: AnyArray) -> tuple[AnyArray, SolveReport]:
        """Do the same as :meth:`run` for numbers of any size, each right-hand side in a unit of its own.

        An answer whose residual is not a number has not converged.
        """
        B, units = in_own_units(B)
        system, more = system.within_range()
        X, report = self.run(system, B)
        converged = report.converged and (report.residual is None or math.isfinite(report.residual))
        return X * (units * more), replace(report, converged=converged)

    @property
    def advice(self) -> str:
        """What to do where it does not converge."""
        return ""

    def __call__(self, A: Any, B: Any) -> Any:
        """Solve A X = B.

        Parameters
        ----------
        A : array (n, n) or scipy.sparse.linalg.LinearOperator
            Symmetric positive definite. Not modified.
        B : array (n, k) or (n,)

        Returns
        -------
        X : array of the shape of B

        Raises
        ------
        ValueError
            If A is not square, finite and symmetric, or B is not finite or of another length.
        SingularGramError
            If A is found not to be positive definite.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If the residual stays above the tolerance; the answer is returned all the same.
        """
        if isinstance(A, LinearOperator):
            B = np.asarray(array("B", B, finite=True), np.float64)
            if A.shape[0] != A.shape[1] or B.ndim not in (1, 2) or len(B) != A.shape[0]:
                raise ValueError(
                    f"A must be (n, n) and B (n,) or (n, k), got an operator of shape {A.shape} and {B.shape}"
                )
            dtype = np.float64
        else:
            A, B = prepared(A, B)
            require_symmetric(A, "the matrix")
            dtype = A.dtype
            xp = array_namespace(A)
            A, B = (xp.astype(of, xp.float64, copy=False) for of in (A, B))
        X, report = self.solve_system(RidgeSystem(A), B if B.ndim == 2 else B[:, None])
        warn_unless_converged(report, self.advice)
        X = X if B.ndim == 2 else X[:, 0]
        return array_namespace(X).astype(X, dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(IterativeSolver):
    """Solve A X = B by preconditioned conjugate gradients, for a matrix or a linear operator.

    All right-hand sides go on together, in a block: one product with A an iteration, and each of them is minimised
    over what all have seen. A matrix of NumPy with a ridge and at most 20,000 rows is preconditioned by its own
    Cholesky factor in single precision, which takes half of the time and memory of one in double precision. A few
    steps of iterative refinement mend its rounding; conjugate gradients go on where these do not contract.
    Elsewhere, and with ``rank`` given, the preconditioner is (F Fᵀ + μI)⁻¹ with F a randomly pivoted Cholesky
    factor of ``rank`` columns (Díaz, Epperly, Frangella, Tropp & Webber 2023,
    arXiv:2304.12465).

    Parameters
    ----------
    tol : float, default=1e-6
        Largest accepted relative residual ‖A x - b‖ / ‖b‖ of each right-hand side. It is computed anew at the end.
    max_iter : int, default=1000
    rank : int, default=None
        Most columns of the preconditioner; 0 is none. None is the complete factor where that is taken, and else
        min(1000, n / 8) of a matrix, and min(500, 4 √n) of an operator, whose columns cost more. They end where
        little of the diagonal is left beside the ridge.
        An operator that does not tell its ``diagonal()`` and ``columns(indices)`` has none.
    seed : int, default=0
        Of the pivots.

    Examples
    --------
    >>> import numpy as np
    >>> ConjugateGradient()(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 3.0])).round(6)
    array([1., 1.])
    """

    tol: float = 1e-6
    max_iter: int = 1000
    rank: int | None = None
    seed: int = 0

    def __post_init__(self):
        number("tol", self.tol, above=0, below=1)
        integer("max_iter", self.max_iter, low=1)
        integer("seed", self.seed, low=0)
        if self.rank is not None:
            integer("rank", self.rank, low=0)

    @property
    def advice(self) -> str:
        """What to do where it does not converge."""
        return (
            "Raise alpha, max_iter, tol or the rank of the preconditioner (ConjugateGradient(max_iter=, tol=, "
            "rank=)), or take solver='cholesky' if the matrix fits in memory. An operator in single precision "
            "may not allow so small a tol: gram_operator(..., dtype='float64') does"
        )

    def run(self, system: RidgeSystem, B: AnyArray) -> tuple[AnyArray, SolveReport]:
        """Return X (n, k) and what was done."""
        preconditioner = self._preconditioner(system)
        lengths = _lengths(B)
        targets = self.tol * np.where(lengths > 0, lengths, 1)
        X, R, n_iter, norm = system.empty(*B.shape), B, 0, 0.0
        if preconditioner.is_close:
            X, R, n_iter = _refined(system, preconditioner, B, targets, self.max_iter)
        found = _lengths(R)
        best, smallest = X, found
        while not (done := bool((found <= targets).all())) and n_iter < self.max_iter:
            # all columns, since those that are done help the others
            steps, more, size, within = _recursion(system, preconditioner, R, targets, self.max_iter - n_iter)
            X, n_iter, norm, before = X + steps, n_iter + more, max(norm, size), found
            R = B - system.product(X)
            found = _lengths(R)
            better = found < smallest
            xp = array_namespace(X)
            best = xp.where(system.array(better), X, best)
            smallest = np.where(better, found, smallest)
            # what rounding of the products leaves does not become smaller
            floor = _eps(system) * norm * _lengths(X)
            if done := within and bool((found <= np.maximum(targets, floor)).all()):
                break
            if not (found < before / 2).any():
                break
        if not done:
            X, found = best, smallest
        relative = float((found / np.where(lengths > 0, lengths, 1)).max())
        return X, SolveReport(self, n_iter, relative, done, system.ridge, preconditioner.detail)

    def _preconditioner(self, system):
        whole = complete(system) if self.rank is None else None
        return whole or low_rank(system, self.rank, self.seed)


def _refined(system, preconditioner, B, targets, max_iter):
    """Add P⁻¹ R to X while each step takes most of all residuals R = B - A X, until these are within the targets.

    Then a step costs one product, and R is the residual itself; iterations of conjugate gradients cost the same,
    and one product more in the end. Returns X and R (n, k), and the number of steps.
    """
    X, R, found = np.zeros_like(B), B, _lengths(B)
    for n_iter in range(max_iter):
        if (found <= targets).all():
            return X, R, n_iter
        further = X + preconditioner.apply(R)
        left = B - system.product(further)
        lengths = _lengths(left)
        if not (lengths <= CONTRACTS * found).all():
            return X, R, n_iter
        X, R, found = further, left, lengths
    return X, R, max_iter


def _recursion(system, preconditioner, R, targets, max_iter):
    """Run block conjugate gradients from zero until the recursion's residuals are within the targets (k,).

    Directions are made orthonormal in each iteration, and those that depend on others are left out, so right-hand
    sides may be linearly dependent (O'Leary 1980; Ji & Li 2017 on breakdown).

    Returns steps X (n, k), the number of iterations, the largest ‖A p‖ / ‖p‖, which is at most ‖A‖, and whether
    the targets were reached.
    """
    xp = array_namespace(R)
    precondition = preconditioner.apply
    is_rough = system.is_single and not preconditioner.is_close
    product = system.rough_product if is_rough else system.product
    B, X, norm = R, xp.zeros_like(R), 0.0
    P = _orthonormal(system, precondition(R))
    exact = _lengths(R)
    best, smallest = X, float((exact / targets).max())
    for n_iter in range(1, max_iter + 1):
        Q = product(P)
        curvature = to_numpy(P.T @ Q)
        norm = max(norm, float(np.linalg.norm(to_numpy(Q.T @ Q), 2)) ** 0.5)
        _require_positive(system, curvature, norm)
        step = system.array(np.linalg.solve(curvature, to_numpy(P.T @ R)))
        X, R = X + P @ step, R - Q @ step
        found = _lengths(R)
        if is_rough and ((found <= targets) | (found <= RELIABLE * exact)).any():
            # before rounding in single precision becomes a part of what is left
            R = B - system.product(X)
            found = exact = _lengths(R)
        if (found <= targets).all():
            return X, n_iter, norm, True
        if (worst := float((found / targets).max())) < smallest:
            best, smallest = X, worst
        Z = precondition(R)
        Z = Z - P @ system.array(np.linalg.solve(curvature, to_numpy(Q.T @ Z)))
        P = _orthonormal(system, Z)
    return best, max_iter, norm, False


def _orthonormal(system, V):
    """Return an orthonormal basis (n, <= k) of the columns."""
    lengths = _lengths(V)
    lengths = np.where(lengths > 0, lengths, 1)
    values, vectors = np.linalg.eigh(to_numpy(V.T @ V) / lengths / lengths[:, None])
    kept = values > DEPENDENT * values[-1]
    return V @ system.array(vectors[:, kept] / lengths[:, None] / np.sqrt(values[kept]))


def _require_positive(system, curvature, norm):
    """Raise SingularGramError if A is not positive definite on orthonormal directions, by PᵀA P."""
    n = system.shape[0]
    worst = float(np.linalg.eigvalsh((curvature + curvature.T) / 2)[0])
    eps = float(np.finfo(np.float32).eps) if system.is_single else _eps(system)
    if not worst > eps * norm / 10:
        raise SingularGramError(
            f"the {n} x {n} matrix is not positive definite to working precision: along one direction it is "
            f"{worst:.3g}, of a norm of {norm:.3g} or more. Raise alpha (a Gram matrix computed in float32 needs "
            f"up to 1e-6 n = {1e-6 * n:.0e}), or remove duplicate samples from X"
        )


def _lengths(V) -> np.ndarray:
    """Return the norms (k,) of columns, in NumPy."""
    xp = array_namespace(V)
    return np.sqrt(to_numpy(xp.sum(V * V, axis=0)))


def _eps(system) -> float:
    return float(np.finfo(np.float32 if "32" in str(system.dtype) else np.float64).eps)
