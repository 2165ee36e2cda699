"""Direct solvers for symmetric positive definite systems, and kernel ridge regression on top of them.

A solver is a frozen dataclass, called as ``solver(A, B) -> X``. NumPy, CuPy, JAX and array API inputs take
one code path. The answer comes back in the library that solved it: CuPy for arrays on a GPU where CuPy is
usable, an array API library for its own arrays, NumPy otherwise.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from .._arrays import as_array_like, cholesky_factor, eigh, solve_triangular, symmetric_product
from .._validation import number
from .matrices import frobenius, require_real, require_square, require_symmetric, rounding, solver_array
from .units import near_one, unit_of

# LAPACK's workspace, 1 + 6n + 2n², leaves int32 at n = 32,767, and eigh returns NaN; cuSOLVER fails likewise.
EIGH_MAX_SIZE = 32_766


class SingularGramError(np.linalg.LinAlgError):
    """The error of a matrix that is not positive definite to working precision: no solution can be trusted.

    >>> import numpy as np
    >>> Cholesky()(np.ones((2, 2)), np.ones(2))
    Traceback (most recent call last):
    ntkrobust_sk.solvers.direct.SingularGramError: ...
    """


class InaccurateSolveError(np.linalg.LinAlgError):
    """The error of a solver whose answer does not satisfy the equations.

    >>> import numpy as np
    >>> Cholesky(max_residual=1e-30)(np.eye(50) + 0.1, np.linspace(0, 1, 50))
    Traceback (most recent call last):
    ntkrobust_sk.solvers.direct.InaccurateSolveError: ...
    """


@dataclass(frozen=True, kw_only=True)
class _DirectSolver:
    max_residual: float | None = None
    # arrays of the size of A that a solution takes, A among them
    n_arrays: ClassVar[int] = 2

    def __post_init__(self):
        if self.max_residual is not None:
            number("max_residual", self.max_residual, above=0)

    def solve_in_place(self, A: Any, B: Any) -> Any:
        """Solve A X = B, where A may be overwritten."""
        return cast(Any, self)(A, B)


@dataclass(frozen=True, kw_only=True)
class Cholesky(_DirectSolver):
    """A solver of A X = B by A = L Lᵀ: n³/3 multiply-adds, and one n×n array besides A.

    There is no jitter: a matrix that is not positive definite to working precision, with an eigenvalue
    <= 10 √n eps ‖A‖_F (found by inverse iteration), is an error. Only one triangle of A is factored.

    Parameters
    ----------
    max_residual : float or None, default=None
        Largest accepted backward error ‖AX - B‖_F / (‖A‖_F ‖X‖_F + ‖B‖_F) (Higham 2002, *Accuracy and
        Stability of Numerical Algorithms*, §7.1). None: 10 √n eps of the dtype, plus ‖A - Aᵀ‖_F / ‖A‖_F,
        because a matrix symmetric only to rounding is solved only to that rounding.

    Examples
    --------
    >>> import numpy as np
    >>> Cholesky()(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 3.0]))
    array([1., 1.])
    """

    def __call__(self, A: Any, B: Any) -> Any:
        """Solve A X = B.

        Parameters
        ----------
        A : array (n, n)
            Symmetric positive definite. Not modified.
        B : array (n, k) or (n,)
            Not modified. Brought to the library and device of A.

        Returns
        -------
        X : array of the shape of B
            float32 if A and B both are, else float64.

        Raises
        ------
        ValueError
            If A is not square, finite and symmetric, or B is not finite or of another length.
        SingularGramError
            If A is not positive definite to working precision.
        InaccurateSolveError
            If the backward error exceeds ``max_residual``.
        """
        return _checked_solve(_cholesky_solve, A, B, self.max_residual)

    def solve_in_place(self, A: Any, B: Any) -> Any:
        """Solve A X = B with no other array of the size of A on the host: half of it is overwritten by L."""
        return _checked_solve(partial(_cholesky_solve, overwrite=True), A, B, self.max_residual)


@dataclass(frozen=True, kw_only=True)
class Eigh(_DirectSolver):
    """A solver of A X = B by A = V Λ Vᵀ: ten to thirty times the work of :class:`Cholesky`, also for singular A.

    Refuses n > 32,766, where the 32-bit sizes of LAPACK and cuSOLVER overflow and eigenvectors become NaN.

    Parameters
    ----------
    max_residual : float or None, default=None
        As in :class:`Cholesky`. With ``rcond``, B counts only through its projection onto the eigenvectors kept.
    rcond : float or None, default=None
        None: A must be positive definite; an eigenvalue <= 10 √n eps ‖A‖_F is an error. A number in [0, 1):
        the minimum-norm solution X = Σ_{λ_i > rcond λ_max} v_i v_iᵀ B / λ_i, by the pseudo-inverse of a
        positive semidefinite A; an eigenvalue < -rcond λ_max is still an error. Values under 10 √n eps act as
        10 √n eps.

    Examples
    --------
    >>> import numpy as np
    >>> singular = np.ones((2, 2))
    >>> Eigh(rcond=1e-10)(singular, np.array([1.0, 1.0])).round(12)
    array([0.5, 0.5])
    >>> Eigh()(singular, np.array([1.0, 1.0]))
    Traceback (most recent call last):
    ...
    ntkrobust_sk.solvers.direct.SingularGramError: ...
    """

    rcond: float | None = None
    # eigenvectors, and the work space of a divide-and-conquer
    n_arrays: ClassVar[int] = 5

    def __post_init__(self):
        super().__post_init__()
        if self.rcond is not None:
            number("rcond", self.rcond, low=0, below=1, unit="of the largest eigenvalue")

    def __call__(self, A: Any, B: Any) -> Any:
        """Solve A X = B, with the contract of ``Cholesky.__call__``; ValueError if n > 32,766."""
        A = solver_array("A", A)
        if max(A.shape, default=0) > EIGH_MAX_SIZE:
            raise ValueError(
                f"Eigh takes at most n = {EIGH_MAX_SIZE}, because 32-bit LAPACK and cuSOLVER fail above; got "
                f"shape {tuple(A.shape)}. Use Cholesky(), which has no such limit, with alpha > 0"
            )
        return _checked_solve(partial(_eigh_solve, rcond=self.rcond), A, B, self.max_residual)


def _checked_solve(direct_solve, A, B, max_residual):
    """Validate, solve, verify. ``direct_solve`` returns X, A X and the right-hand side that it should equal."""
    A, B = prepared(A, B)
    n = A.shape[0]
    norm, asymmetry = require_symmetric(A, "the matrix")
    X, product, reachable = direct_solve(A, B if B.ndim == 2 else B[:, None], norm)
    if max_residual is None:
        max_residual = rounding(n, A) + asymmetry
    residual = frobenius(product - reachable)
    scale = norm * frobenius(X) + frobenius(reachable)
    if not residual <= max_residual * scale:
        raise InaccurateSolveError(
            f"the {n} x {n} solve left a backward error of {residual / scale:.1e}, above {max_residual:.1e}: "
            f"the matrix is too ill-conditioned for {A.dtype}, or the backend failed at this size. Raise "
            "alpha, solve in float64, or accept it with max_residual="
        )
    return X if B.ndim == 2 else X[:, 0]


def _cholesky_solve(A, B, norm, *, overwrite=False):
    xp = array_namespace(A)
    n = A.shape[0]
    overwrite = overwrite and is_numpy_array(A)
    diagonal = xp.linalg.diagonal(A).copy() if overwrite else None
    try:
        L = cholesky_factor(A, overwrite=overwrite)
    except np.linalg.LinAlgError as error:
        raise _singular(n, str(error).rstrip(".")) from error
    weakest = int(xp.argmin(xp.linalg.diagonal(L)))
    condition = _condition_number(L, norm, weakest)
    if condition * rounding(n, A) >= 1:
        raise _singular(n, f"its condition number is at least {condition:.1e} (see row {weakest})")
    X = solve_triangular(L, solve_triangular(L, B), transposed=True)
    return X, A @ X if diagonal is None else symmetric_product(L, diagonal, X), B


def _condition_number(L, norm, start):
    """Return a lower bound on ‖A‖_F ‖A⁻¹‖, A = L Lᵀ, by inverse iteration from the row of the smallest pivot.

    The first step already gives at least ‖A‖_F / L_kk²; but pivots alone can miss a singular A.
    """
    xp = array_namespace(L)
    v = xp.zeros((L.shape[0], 1), dtype=L.dtype, device=device(L))
    v[start, 0] = 1.0
    for _ in range(3):
        v = norm * solve_triangular(L, solve_triangular(L, v), transposed=True)
        growth = frobenius(v)
        v = v / growth
    return growth


def _eigh_solve(A, B, norm, *, rcond):
    xp = array_namespace(A)
    n = A.shape[0]
    eigenvalues, vectors = eigh(A)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    found = f"the smallest eigenvalue is {smallest:.3g}, the largest {largest:.3g}"
    coefficients = vectors.T @ B
    if rcond is None:
        if smallest <= rounding(n, A) * norm:
            raise _singular(n, found)
        X = vectors @ (coefficients / eigenvalues[:, None])
        return X, A @ X, B
    cutoff = max(rcond, rounding(n, A)) * largest
    if not smallest >= -cutoff:
        raise _singular(n, f"{found}, which rcond={rcond:g} does not cover")
    kept = (eigenvalues > cutoff)[:, None]
    coefficients = xp.where(kept, coefficients, xp.zeros_like(coefficients))
    divisors = xp.where(kept, eigenvalues[:, None], xp.ones_like(eigenvalues[:, None]))
    X = vectors @ (coefficients / divisors)
    return X, A @ X, vectors @ coefficients


def _singular(n, found):
    return SingularGramError(
        f"the {n} x {n} matrix is not positive definite to working precision: {found}. Raise alpha (a Gram "
        f"matrix computed in float32 needs up to 1e-6 n = {1e-6 * n:.0e}), remove duplicate samples from X, "
        "or use Eigh(rcond=1e-6) for the minimum-norm solution."
    )


def prepared(A: Any, B: Any) -> tuple[Any, Any]:
    """Return a matrix and right-hand sides of one library and precision, if they fit each other."""
    A = solver_array("A", A)
    B = as_array_like(solver_array("B", B), A)
    require_real(A, "A")
    require_real(B, "B")
    require_square(A, "A")
    if B.ndim not in (1, 2) or B.shape[0] != A.shape[0]:
        raise ValueError(
            f"B must have shape (n,) or (n, k) with n = {A.shape[0]}, the size of A; got {tuple(B.shape)}"
        )
    xp = array_namespace(A)
    dtype = xp.float32 if A.dtype == xp.float32 and B.dtype == xp.float32 else xp.float64
    A, B = xp.astype(A, dtype, copy=False), xp.astype(B, dtype, copy=False)
    if not bool(xp.all(xp.isfinite(B))):
        raise ValueError("B, the right-hand side, must be finite, but has NaN or infinity")
    unit = unit_of(xp.linalg.diagonal(A))
    # both sides, so that the answer is the same
    return (A, B) if near_one(unit) else (A / unit, B / unit)
