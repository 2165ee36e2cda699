"""Kernel ridge regression on landmarks: the Nyström method."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from .._arrays import AnyArray, cholesky_factor, solve_triangular, to_numpy
from .._validation import integer, number
from .convergence import SolveReport
from .direct import SingularGramError
from .iterative import IterativeSolver
from .pivoting import pivoted_cholesky
from .systems import RidgeSystem

# Kernel values between all rows and the landmarks take no more than this at once.
WHOLE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Nystrom(IterativeSolver):
    """Solve kernel ridge regression over the span of landmarks: a function Σ_j K(x, x_j) β_j of few x_j.

    It minimises Σ_i w_i ‖y_i - f(x_i)‖² + λ ‖f‖² over such f, (K_mnW K_nm + λ K_mm) β = K_mn W y, the equations of
    Falkon (Rudi, Carratino & Rosasco 2017, arXiv:1705.10958), solved directly in coordinates in which ‖f‖ is the
    Euclidean norm. Landmarks are the pivots of a randomly pivoted Cholesky factor. Time n m² and memory n m; the
    dual coefficients of rows that are no landmarks are zero.

    Parameters
    ----------
    n_landmarks : int, default=None
        m. None is min(n, 10 √n), at most 1,000.
    tol : float, default=1e-8
        Largest accepted relative residual of these equations.
    seed : int, default=0
        Of the landmarks.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkrobust_sk import solve
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> K = np.exp(-((X - X.T) ** 2))
    >>> dual = solve(K, np.sin(X), alpha=1e-6, solver=Nystrom(n_landmarks=20))
    >>> int(np.count_nonzero(dual)) <= 20, bool(abs(K @ dual - np.sin(X)).max() < 1e-2)
    (True, True)
    """

    n_landmarks: int | None = None
    tol: float = 1e-8
    seed: int = 0

    def __post_init__(self):
        number("tol", self.tol, above=0, below=1)
        integer("seed", self.seed, low=0)
        if self.n_landmarks is not None:
            integer("n_landmarks", self.n_landmarks, low=1)

    @property
    def advice(self) -> str:
        """What to do where it does not converge."""
        return "Raise alpha, or take fewer landmarks: Nystrom(n_landmarks=)"

    def run(self, system: RidgeSystem, B: AnyArray) -> tuple[AnyArray, SolveReport]:
        """Return X (n, k), zero but for the landmarks, and what was done."""
        if not system.ridge > 0:
            raise ValueError(
                "Nystrom needs the ridge apart from the matrix: call solve(K, y, alpha=..., solver=Nystrom()) "
                "with alpha > 0"
            )
        if not system.has_columns:
            raise ValueError(
                f"Nystrom needs entries of the kernel, but {system.gram!r} has no diagonal() and "
                "columns(indices); take solver='cg'"
            )
        n = system.shape[0]
        rank = min(n, max(1, min(1000, round(10 * n**0.5))) if self.n_landmarks is None else self.n_landmarks)
        # of the trace; also where the ridge is larger than it, what is left must be small beside the rest
        end = 1e-6 * min(1.0, system.ridge / float(system.diagonal().sum()))
        if 8 * n * rank > WHOLE_BYTES and hasattr(system.gram, "block"):
            return self._streamed(system, B, rank, end)
        factor, pivots = pivoted_cholesky(system, rank, tol=end, seed=self.seed)
        _require_semidefinite(system, factor, pivots)
        xp = array_namespace(factor)
        corner = xp.take(factor, system.array(pivots), axis=0)
        coefficients, residual = _small_ridge(system, factor.T @ factor, factor.T @ B)
        left = 1 - float(xp.sum(factor * factor)) / float(system.diagonal().sum())
        return self._answer(system, B, pivots, corner, coefficients, residual, left)

    def _streamed(self, system, B, rank, end):
        """Choose landmarks among some rows, and add up the equations block by block."""
        gram, n = system.gram, system.shape[0]
        few = min(n, WHOLE_BYTES // (16 * rank))
        chance = None if system.weight is None else system.weight / system.weight.sum()
        some = np.sort(np.random.default_rng(self.seed).choice(n, few, replace=False, p=chance))
        part = RidgeSystem(gram.subset(some), system.ridge)
        factor, pivots = pivoted_cholesky(part, rank, tol=end, seed=self.seed)
        if system.root is None:
            _require_semidefinite(part, factor, pivots)
        corner, pivots = factor[pivots], some[pivots]
        left = 1 - float((factor**2).sum() / part.diagonal().sum())
        square, right = np.zeros((len(pivots), len(pivots))), np.zeros((len(pivots), B.shape[1]))
        size = max(1, WHOLE_BYTES // (32 * len(pivots)))
        for start in range(0, n, size):
            at = slice(start, min(start + size, n))
            rows = solve_triangular(corner, np.asarray(gram.block(at, pivots), np.float64).T).T
            if system.root is not None:
                rows *= system.root[at, None]
            square += rows.T @ rows
            right += rows.T @ B[at]
        coefficients, residual = _small_ridge(system, square, right)
        if system.root is not None:
            # the corner of W^½ K W^½
            corner = system.root[pivots, None] * corner
        return self._answer(system, B, pivots, corner, coefficients, residual, left)

    def _answer(self, system, B, pivots, corner, coefficients, residual, left):
        X = np.zeros(tuple(B.shape))
        X[pivots] = to_numpy(solve_triangular(corner, coefficients, transposed=True))
        detail = f"{len(pivots)} landmarks, which leave {max(left, 0.0):.1e} of the trace"
        return system.array(X), SolveReport(self, 1, residual, residual <= self.tol, system.ridge, detail)


def _require_semidefinite(system, factor, pivots):
    """Raise SingularGramError where landmarks leave a row less than -λ, and an eigenvalue is below -λ indeed.

    What is left of a row i is vᵀK v, of a v that is one at i and else zero but for landmarks.
    """
    left = system.diagonal() - to_numpy(array_namespace(factor).sum(factor * factor, axis=1))
    worst = int(np.argmin(left))
    if left[worst] >= -system.ridge or len(left) < 3:
        return
    factor = to_numpy(factor)
    start = np.zeros(len(left))
    start[pivots] = -np.linalg.solve(factor[pivots].T, factor[worst])
    start[worst] = 1.0

    def product(v):
        return to_numpy(system.product(system.array(v.reshape(-1, 1))))[:, 0]

    like: Any = LinearOperator
    operator = like(system.shape, matvec=product, dtype=np.dtype(np.float64))
    find: Any = eigsh
    try:
        smallest = float(find(operator, 1, which="SA", v0=start, tol=1e-2, return_eigenvectors=False)[0])
    except ArpackNoConvergence:
        return
    if smallest <= 0:
        raise SingularGramError(
            f"the {len(left)} x {len(left)} matrix is not positive definite: with the ridge λ = "
            f"{system.ridge:.3g} it has an eigenvalue of {smallest:.3g}. Raise alpha, or take a kernel that is "
            "positive semidefinite"
        )


def _small_ridge(system, square: Any, right: Any) -> tuple[Any, float]:
    """Solve (FᵀF + λI) C = FᵀB; return C and the relative residual."""
    xp = array_namespace(square)
    square = square + system.ridge * xp.eye(square.shape[0], dtype=square.dtype)
    triangle = cholesky_factor(square)
    found = solve_triangular(triangle, solve_triangular(triangle, right), transposed=True)
    scale = float(xp.sum(right * right)) ** 0.5
    error = float(xp.sum((square @ found - right) ** 2)) ** 0.5
    return found, error / scale if scale else 0.0
