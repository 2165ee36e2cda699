"""Direct solvers for symmetric positive definite systems, and kernel ridge regression on top of them.

A solver is a frozen dataclass, called as ``solver(A, B) -> X``. NumPy, CuPy, JAX and array API inputs take
one code path. The answer comes back in the library that solved it: CuPy for arrays on a GPU where CuPy is
usable, an array API library for its own arrays, NumPy otherwise.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_numpy_array

from ._backend import as_array_like, cholesky, eigh, solve_triangular, to_solver_array
from ._validation import array, brief, check_choice, function, number

# A Gram matrix made of float32 tiles is symmetric to about 1e-6; a wrong block or permutation misses by O(1).
SYMMETRY_TOLERANCE = 1e-4

# LAPACK's workspace, 1 + 6n + 2n², leaves int32 at n = 32,767, and eigh returns NaN; cuSOLVER fails likewise.
EIGH_MAX_SIZE = 32_766

_ROWS_AT_ONCE = 1024


class SingularGramError(np.linalg.LinAlgError):
    """The matrix is not positive definite to working precision, so no solution of it can be trusted."""


class InaccurateSolveError(np.linalg.LinAlgError):
    """A solver returned, but its answer does not satisfy the equations."""


@dataclass(frozen=True, kw_only=True)
class _DirectSolver:
    max_residual: float | None = None

    def __post_init__(self):
        if self.max_residual is not None:
            number("max_residual", self.max_residual, above=0)


@dataclass(frozen=True, kw_only=True)
class Cholesky(_DirectSolver):
    """Solve A X = B by A = L Lᵀ: n³/3 multiply-adds, and one n×n array besides A.

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

    def __call__(self, A, B):
        """Solve A X = B.

        Parameters
        ----------
        A : array of shape (n, n)
            Symmetric positive definite. Not modified.
        B : array of shape (n, k) or (n,)
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
            If the backward error exceeds `max_residual`.
        """
        return _checked_solve(_cholesky_solve, A, B, self.max_residual)


@dataclass(frozen=True, kw_only=True)
class Eigh(_DirectSolver):
    """Solve A X = B by A = V Λ Vᵀ: ten to thirty times the work of `Cholesky`, and the choice for singular A.

    Refuses n > 32,766, where the 32-bit sizes of LAPACK and cuSOLVER overflow and eigenvectors become NaN.

    Parameters
    ----------
    max_residual : float or None, default=None
        As in `Cholesky`. With `rcond`, B counts only through its projection onto the eigenvectors kept.
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
    ntkrobust_sk.solvers.SingularGramError: ...
    """

    rcond: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.rcond is not None:
            number("rcond", self.rcond, low=0, below=1, unit="of the largest eigenvalue")

    def __call__(self, A, B):
        """Solve A X = B, with the contract of `Cholesky.__call__`; ValueError if n > 32,766."""
        A = _solver_array("A", A)
        if max(A.shape, default=0) > EIGH_MAX_SIZE:
            raise ValueError(
                f"Eigh takes at most n = {EIGH_MAX_SIZE}, because 32-bit LAPACK and cuSOLVER fail above; got "
                f"shape {tuple(A.shape)}. Use Cholesky(), which has no such limit, with alpha > 0."
            )
        return _checked_solve(partial(_eigh_solve, rcond=self.rcond), A, B, self.max_residual)


SOLVERS = {"cholesky": Cholesky(), "eigh": Eigh()}


def resolve_solver(solver):
    """A solver from its name, or the object itself if it can be called as ``solver(A, B)``.

    Parameters
    ----------
    solver : str or callable
        A key of `SOLVERS`, or any callable with the contract of `Cholesky.__call__`.

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
    if isinstance(solver, str):
        check_choice("solver", solver, SOLVERS)
        return SOLVERS[solver]
    if not callable(solver):
        raise TypeError(
            f"solver must be one of {sorted(SOLVERS)} or an object called as solver(A, B), got {brief(solver)}"
        )
    return function("solver", solver, "solver(A, B)", 2)


def solve(gram, targets, *, alpha, solver="cholesky", sample_weight=None):
    """Dual coefficients of kernel ridge regression, for a trace, class or full kernel.

    Minimises Σ_i w_i ‖y_i - f(x_i)‖² + λ ‖f‖² over f(x) = K(x, X) a, with w_i = 1 without weights
    (Saunders, Gammerman & Vovk 1998). The ridge is relative to the Gram matrix,

        λ = alpha · Σ_i w_i K_ii / Σ_i w_i,

    so one `alpha` serves every kernel and network width. ``sklearn.kernel_ridge.KernelRidge`` takes λ itself:
    its ``alpha`` equals ours times the mean diagonal. The solve is in float64 whatever the dtype of `gram`.

    Parameters
    ----------
    gram : array of shape (n, n), (n, n, C) or (n, n, C, C)
        Rank 2: one kernel for every column of `targets`. Rank 3: ``gram[:, :, c]`` for ``targets[:, c]``.
        Rank 4, the full kernel: one system of size nC, K[(i, c), (j, d)] = ``gram[i, j, c, d]``. The mean
        diagonal of ranks 3 and 4 is over all i and c. Not modified; "cholesky" needs two float64 arrays of
        the size of one system besides it.
    targets : array of shape (n,) or (n, C)
        (n,) for a rank 2 `gram` only.
    alpha : float
        Ridge in units of the mean diagonal, >= 0. A Gram matrix computed in float32 needs up to about 1e-6 n.
    solver : str or callable, default="cholesky"
        "cholesky", "eigh", or any ``solver(A, B) -> X``.
    sample_weight : array of shape (n,) or None, default=None
        Weights >= 0. A weight of k is the same as k copies of the sample, the ridge included: the dual
        coefficient is then the sum of the copies'. A sample of weight 0 has dual coefficient 0.

    Returns
    -------
    dual : array of shape (n,) or (n, C)
        float64, of the shape of `targets`: NumPy, or CuPy where `gram` is on a GPU and CuPy is usable.

    Raises
    ------
    ValueError
        If `alpha`, the shapes, the weights or the name of the solver are wrong, or values are not finite.
    SingularGramError
        If the regularised Gram matrix is not positive definite, or the mean diagonal is not positive.
    InaccurateSolveError
        If the solver's backward error is too large.

    Examples
    --------
    >>> import numpy as np
    >>> gram = np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> solve(gram, np.array([1.0, -1.0]), alpha=1.0)  # λ = 1.0 * 2.0
    array([ 0.25, -0.25])
    >>> solve(1e6 * gram, np.array([1.0, -1.0]), alpha=1.0) * 1e6
    array([ 0.25, -0.25])
    """
    solver = resolve_solver(solver)
    alpha = number("alpha", alpha, low=0, unit="in units of the mean diagonal")
    gram = _solver_array("gram", gram)
    targets = as_array_like(_solver_array("targets", targets), gram)
    _require_kernel_system(gram, targets)
    xp = array_namespace(gram)
    targets = xp.astype(targets, xp.float64, copy=False)
    weight = None if sample_weight is None else _checked_weight(sample_weight, gram)
    ridge = alpha * _mean_diagonal(gram, weight)
    root = None if weight is None else xp.sqrt(weight)

    n, n_outputs = gram.shape[0], gram.shape[-1]
    if gram.ndim == 3:
        systems = [(gram[:, :, c], targets[:, c : c + 1]) for c in range(n_outputs)]
        return xp.concat([_ridge_solve(K, y, ridge, root, solver) for K, y in systems], axis=1)
    if gram.ndim == 4:
        gram = xp.permute_dims(gram, (0, 2, 1, 3))
        root = None if root is None else xp.repeat(root, n_outputs)
        n = n * n_outputs
    dual = _ridge_solve(gram, xp.reshape(targets, (n, -1)), ridge, root, solver)
    return xp.reshape(dual, targets.shape)


def _ridge_solve(gram, targets, ridge, root, solver):
    """W^½ u with (W^½ K W^½ + ridge I) u = W^½ y, the form of weighted ridge that takes zero weights."""
    xp = array_namespace(gram)
    size = targets.shape[0]
    # One assignment casts to float64 and carries out any permutation: the only copy of the Gram matrix here.
    A = xp.empty(gram.shape, dtype=xp.float64, device=device(gram))
    A[...] = gram
    A = xp.reshape(A, (size, size))
    if root is not None:
        A *= root[:, None]
        A *= root[None, :]
        targets = root[:, None] * targets
    diagonal = xp.reshape(A, (size * size,))[:: size + 1]
    diagonal += ridge
    u = _checked_answer(solver(A, targets), targets, solver)
    return u if root is None else root[:, None] * u


def _checked_answer(u, targets, solver):
    """What a solver has returned, in the library of the targets, if it is a finite array of their shape."""
    wanted = f"solver must return a finite array of shape {tuple(targets.shape)}, but {brief(solver)} returned"
    if not hasattr(u, "shape") or tuple(u.shape) != tuple(targets.shape):
        raise ValueError(f"{wanted} {brief(u)}")
    u = as_array_like(_solver_array("what the solver returned", u), targets)
    _require_real(u, "what the solver returned")
    xp = array_namespace(u)
    if not bool(xp.all(xp.isfinite(u))):
        raise InaccurateSolveError(f"{wanted} NaN or infinity")
    return u


def _mean_diagonal(gram, weight):
    xp = array_namespace(gram)
    if gram.ndim == 4:
        gram = xp.linalg.diagonal(gram)
    if gram.ndim == 3:
        gram = xp.permute_dims(gram, (2, 0, 1))
    diagonal = xp.astype(xp.linalg.diagonal(gram), xp.float64)
    diagonal = diagonal if diagonal.ndim == 1 else xp.mean(diagonal, axis=0)
    scale = float(xp.mean(diagonal) if weight is None else xp.sum(weight * diagonal) / xp.sum(weight))
    if not math.isfinite(scale):
        raise ValueError("gram must be finite, but its diagonal has NaN or infinity.")
    if scale <= 0:
        raise SingularGramError(
            f"the mean diagonal of gram must be positive, got {scale:.3g}: no alpha can regularise a kernel "
            "that vanishes, or is negative, at its own samples."
        )
    return scale


def _checked_solve(direct_solve, A, B, max_residual):
    """Validate, solve, verify. `direct_solve` returns X and the right-hand side that A X should equal."""
    A, B = _prepare(A, B)
    n = A.shape[0]
    norm, asymmetry = require_symmetric(A, "the matrix")
    X, reachable = direct_solve(A, B if B.ndim == 2 else B[:, None], norm)
    if max_residual is None:
        max_residual = _rounding(n, A) + asymmetry
    residual = _norm(A @ X - reachable)
    scale = norm * _norm(X) + _norm(reachable)
    if not residual <= max_residual * scale:
        raise InaccurateSolveError(
            f"the {n} x {n} solve left a backward error of {residual / scale:.1e}, above {max_residual:.1e}: "
            f"the matrix is too ill-conditioned for {A.dtype}, or the backend failed at this size. Raise "
            "alpha, solve in float64, or accept it with max_residual=."
        )
    return X if B.ndim == 2 else X[:, 0]


def _cholesky_solve(A, B, norm):
    xp = array_namespace(A)
    n = A.shape[0]
    try:
        L = cholesky(A)
    except np.linalg.LinAlgError as error:
        raise _singular(n, str(error).rstrip(".")) from error
    weakest = int(xp.argmin(xp.linalg.diagonal(L)))
    condition = _condition_number(L, norm, weakest)
    if condition * _rounding(n, A) >= 1:
        raise _singular(n, f"its condition number is at least {condition:.1e} (see row {weakest})")
    return solve_triangular(L, solve_triangular(L, B), transposed=True), B


def _condition_number(L, norm, start):
    """Lower bound on ‖A‖_F ‖A⁻¹‖ for A = L Lᵀ, by inverse iteration from the row of the smallest pivot.

    The first step already gives at least ‖A‖_F / L_kk²; but pivots alone can miss a singular A.
    """
    xp = array_namespace(L)
    v = xp.zeros((L.shape[0], 1), dtype=L.dtype, device=device(L))
    v[start, 0] = 1.0
    for _ in range(3):
        v = norm * solve_triangular(L, solve_triangular(L, v), transposed=True)
        growth = _norm(v)
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
        if smallest <= _rounding(n, A) * norm:
            raise _singular(n, found)
        return vectors @ (coefficients / eigenvalues[:, None]), B
    cutoff = max(rcond, _rounding(n, A)) * largest
    if not smallest >= -cutoff:
        raise _singular(n, f"{found}, which rcond={rcond:g} does not cover")
    kept = (eigenvalues > cutoff)[:, None]
    coefficients = xp.where(kept, coefficients, xp.zeros_like(coefficients))
    divisors = xp.where(kept, eigenvalues[:, None], xp.ones_like(eigenvalues[:, None]))
    return vectors @ (coefficients / divisors), vectors @ coefficients


def _rounding(n, A):
    """The largest relative error, of an eigenvalue or a residual, that is put down to rounding."""
    return 10 * math.sqrt(n) * float(array_namespace(A).finfo(A.dtype).eps)


def _singular(n, found):
    return SingularGramError(
        f"the {n} x {n} matrix is not positive definite to working precision: {found}. Raise alpha (a Gram "
        f"matrix computed in float32 needs up to 1e-6 n = {1e-6 * n:.0e}), remove duplicate samples from X, "
        "or use Eigh(rcond=1e-6) for the minimum-norm solution."
    )


def _prepare(A, B):
    A = _solver_array("A", A)
    B = as_array_like(_solver_array("B", B), A)
    _require_real(A, "A")
    _require_real(B, "B")
    _require_square(A, "A")
    if B.ndim not in (1, 2) or B.shape[0] != A.shape[0]:
        raise ValueError(
            f"B must have shape (n,) or (n, k) with n = {A.shape[0]}, the size of A; got {tuple(B.shape)}."
        )
    xp = array_namespace(A)
    dtype = xp.float32 if A.dtype == xp.float32 and B.dtype == xp.float32 else xp.float64
    A, B = xp.astype(A, dtype, copy=False), xp.astype(B, dtype, copy=False)
    if not bool(xp.all(xp.isfinite(B))):
        raise ValueError("B, the right-hand side, must be finite, but has NaN or infinity.")
    return A, B


def _solver_array(name, values):
    """An array of numbers where it is solved; what is no array of some library goes through NumPy's checks."""
    if isinstance(values, np.ma.MaskedArray) or hasattr(values, "tocsr"):
        return array(name, values)
    if str(getattr(values, "dtype", "")).startswith("key"):
        raise TypeError(f"{name} must be an array of numbers, got {brief(values)}")
    found = to_solver_array(values) if hasattr(values, "shape") else values
    # complex numbers have a word of their own
    elsewhere = hasattr(found, "__array_namespace__") and not is_numpy_array(found)
    return found if elsewhere or is_cupy_array(found) else array(name, found, kinds="biufc")


def require_symmetric(A, name):
    """Check that a real matrix is square, finite and symmetric, in one pass without an n×n temporary.

    Parameters
    ----------
    A : array of shape (n, n)
    name : str
        What to call it in an error.

    Returns
    -------
    norm : float
        ‖A‖_F, accumulated in float64.
    asymmetry : float
        ‖A - Aᵀ‖_F / ‖A‖_F, at most 1e-4.

    Raises
    ------
    ValueError
        If `A` is not square, has NaN or infinity, or is further from symmetric than 1e-4.

    Examples
    --------
    >>> import numpy as np
    >>> require_symmetric(np.array([[3.0, 0.0], [0.0, 4.0]]), "K")
    (5.0, 0.0)
    """
    _require_real(A, name)
    _require_square(A, name)
    xp = array_namespace(A)
    total = skew = 0.0
    for start in range(0, A.shape[0], _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, A.shape[0])
        rows = xp.astype(A[start:stop, :], xp.float64, copy=False)
        total += float(xp.sum(rows * rows))
        if not math.isfinite(total):
            raise ValueError(f"{name} must be finite, but has NaN, infinity or entries whose squares overflow.")
        skew += float(xp.sum((rows - xp.astype(A[:, start:stop], xp.float64, copy=False).T) ** 2))
    asymmetry = math.sqrt(skew / total) if total > 0 else 0.0
    if not asymmetry <= SYMMETRY_TOLERANCE:
        raise ValueError(
            f"{name} must be symmetric, but ‖A - Aᵀ‖/‖A‖ = {asymmetry:.1e} exceeds {SYMMETRY_TOLERANCE:.0e}: "
            "was it computed between two different sets of samples? If it is rounding, pass (A + A.T) / 2."
        )
    return math.sqrt(total), asymmetry


def _norm(a):
    """Frobenius norm in double precision, by squares that neither overflow nor vanish; NaN if it is not finite."""
    xp = array_namespace(a)
    a = xp.astype(a, xp.float64, copy=False)
    largest = float(xp.max(xp.abs(a)))
    if not 0 < largest < math.inf:
        return 0.0 if largest == 0 else math.nan
    a = a / largest
    return largest * math.sqrt(float(xp.sum(a * a)))


def _require_square(A, name):
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1; got shape {tuple(A.shape)}.")


def _require_real(a, name):
    if "complex" in str(a.dtype):  # isdtype would do, but NumPy's refuses bfloat16
        raise ValueError(f"{name} must be real, got {a.dtype}: take the real part if the imaginary one is zero.")


def _require_kernel_system(gram, targets):
    _require_real(gram, "gram")
    _require_real(targets, "targets")
    shape = tuple(gram.shape)
    square = len(shape) in (2, 3, 4) and shape[0] == shape[1] and (len(shape) < 4 or shape[2] == shape[3])
    if not square or 0 in shape:
        raise ValueError(
            "gram must have shape (n, n), (n, n, C) or (n, n, C, C), the kernel of the training samples with "
            f"themselves; got {shape}."
        )
    if len(shape) == 2:
        wanted, fits = (
            f"({shape[0]},) or ({shape[0]}, C)",
            targets.ndim in (1, 2) and targets.shape[0] == shape[0],
        )
    else:
        wanted, fits = f"({shape[0]}, {shape[2]})", tuple(targets.shape) == (shape[0], shape[2])
    if not fits or 0 in targets.shape:
        raise ValueError(
            f"targets must have shape {wanted} for a gram of shape {shape}; got {tuple(targets.shape)}."
        )


def _checked_weight(sample_weight, gram):
    weight = as_array_like(_solver_array("sample_weight", sample_weight), gram)
    xp = array_namespace(weight)
    _require_real(weight, "sample_weight")
    if tuple(weight.shape) != (gram.shape[0],):
        raise ValueError(
            f"sample_weight must have shape ({gram.shape[0]},), one a sample; got {tuple(weight.shape)}."
        )
    weight = xp.astype(weight, xp.float64, copy=False)
    if not bool(xp.all(xp.isfinite(weight) & (weight >= 0))) or float(xp.sum(weight)) == 0:
        raise ValueError("sample_weight must be finite and >= 0, with at least one weight > 0.")
    return weight
