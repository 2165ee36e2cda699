"""Kernel ridge regression: dual coefficients of a symmetric system, with weights and several targets."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_numpy_array
from scipy.sparse.linalg import LinearOperator

from .._arrays import AnyArray, as_array_like, gpu_bytes_free
from .._validation import array, brief, flag, number
from .choice import chosen_solver, resolve_solver
from .convergence import SolveReport, together, warn_unless_converged
from .direct import InaccurateSolveError, SingularGramError
from .iterative import IterativeSolver
from .matrices import require_real, require_symmetric, solver_array
from .systems import RidgeSystem
from .units import unit_of


def solve(
    gram: AnyArray,
    targets: AnyArray,
    *,
    alpha: float,
    solver: str | Callable = "cholesky",
    sample_weight: AnyArray | None = None,
    return_report: bool = False,
) -> Any:
    """Compute the dual coefficients of kernel ridge regression, for a trace, class or full kernel.

    Minimises Σ_i w_i ‖y_i - f(x_i)‖² + λ ‖f‖² over f(x) = K(x, X) a, with w_i = 1 without weights
    (Saunders, Gammerman & Vovk 1998). The ridge is relative to the Gram matrix,

        λ = alpha · Σ_i w_i K_ii / Σ_i w_i,

    so one ``alpha`` serves every kernel and network width. ``sklearn.kernel_ridge.KernelRidge`` takes λ itself:
    its ``alpha`` equals ours times the mean diagonal. The solve is in float64 whatever the dtype of ``gram``.

    Parameters
    ----------
    gram : array (n, n), (n, n, C) or (n, n, C, C), or scipy.sparse.linalg.LinearOperator
        Rank 2: one kernel for every column of ``targets``. Rank 3: ``gram[:, :, c]`` for ``targets[:, c]``.
        Rank 4, the full kernel: one system of size nC, K[(i, c), (j, d)] = ``gram[i, j, c, d]``. The mean
        diagonal of ranks 3 and 4 is over all i and c. Not modified; "cholesky" needs one float64 array of
        the size of one system besides it, "eigh" some more, "cg" and "nystrom" one, or none if it is float64. An
        operator is (n, n), or (n C, n C) with rows (i, c) in this order, and has a method ``diagonal()``: see
        :class:`~ntkrobust_sk.solvers.FeatureGram`. The solver is "cg", "nystrom" or "eigenpro" then.
    targets : array (n,) or (n, C)
        (n,) for a rank 2 ``gram`` only.
    alpha : float
        Ridge in units of the mean diagonal, >= 0. A Gram matrix computed in float32 needs up to about 1e-6 n.
    solver : str or callable, default="cholesky"
        "cholesky" and "eigh" are exact, "cg" is exact to a tolerance, "nystrom" solves on landmarks, "eigenpro" on
        rows of features. "auto" takes one of them, by the size and the kind of ``gram``. Or an object such as
        :class:`~ntkrobust_sk.solvers.ConjugateGradient`, or any ``solver(A, B) -> X``.
    sample_weight : array (n,) or None, default=None
        Weights >= 0. A weight of k is the same as k copies of the sample, the ridge included: the dual
        coefficient is then the sum of the copies'. A sample of weight 0 has dual coefficient 0. Of "cg"
        and "eigenpro" this holds to their tolerance. "nystrom" draws its landmarks among the rows: with as many
        landmarks as there are distinct rows this holds too, and else approximately.
    return_report : bool, default=False
        Return the report too: which solver it was, its iterations and its residual.

    Returns
    -------
    dual : array (n,) or (n, C)
        float64, of the shape of ``targets``: NumPy, or CuPy where ``gram`` is on a GPU and CuPy is usable.
    report : SolveReport
        With ``return_report``.

    Raises
    ------
    ValueError
        If ``alpha``, the shapes, the weights or the name of the solver are wrong, or values are not finite.
    SingularGramError
        If the regularised Gram matrix is not positive definite, or the mean diagonal is not positive.
    InaccurateSolveError
        If the solver's backward error is too large.
    MemoryError
        If `gram` is on a GPU that has no room left for what the solver takes; before anything is computed.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If an iterative solver's residual stays above its tolerance. The result is returned as it is.

    Examples
    --------
    >>> import numpy as np
    >>> gram = np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> solve(gram, np.array([1.0, -1.0]), alpha=1.0)  # λ = 1.0 * 2.0
    array([ 0.25, -0.25])
    >>> solve(1e6 * gram, np.array([1.0, -1.0]), alpha=1.0) * 1e6
    array([ 0.25, -0.25])
    """
    found = resolve_solver(solver)
    alpha = number("alpha", alpha, low=0, unit="in units of the mean diagonal")
    flag("return_report", return_report)
    if isinstance(gram, LinearOperator):
        found = found or chosen_solver(gram, alpha)
        dual, report = _operator_solve(gram, targets, alpha, found, sample_weight)
    else:
        gram = solver_array("gram", gram)
        found = found or chosen_solver(gram, alpha)
        dual, report = _matrix_solve(gram, targets, alpha, found, sample_weight)
    if isinstance(found, IterativeSolver):
        warn_unless_converged(report, found.advice)
    return (dual, report) if return_report else dual


def _matrix_solve(gram, targets, alpha, solver, sample_weight):
    """Return the dual coefficients and a report, for a matrix of any rank."""
    targets = as_array_like(solver_array("targets", targets), gram)
    _require_kernel_system(gram, targets)
    xp = array_namespace(gram)
    targets = xp.astype(targets, xp.float64, copy=False)
    weight = None if sample_weight is None else _checked_weight(sample_weight, gram)
    ridge = _ridge(alpha, _mean_diagonal(gram, weight))
    root, own = _root_and_ridge(weight, ridge)

    n, n_outputs = gram.shape[0], gram.shape[-1]
    if gram.ndim == 3:
        systems = [(gram[:, :, c], targets[:, c : c + 1]) for c in range(n_outputs)]
        found = [_ridge_solve(K, y, own, root, solver) for K, y in systems]
        report = together([report for _, report in found])
        return xp.concat([dual for dual, _ in found], axis=1), replace(report, ridge=ridge)
    if gram.ndim == 4:
        gram = xp.permute_dims(gram, (0, 2, 1, 3))
        root = None if root is None else xp.repeat(root, n_outputs)
        n = n * n_outputs
    dual, report = _ridge_solve(gram, xp.reshape(targets, (n, -1)), own, root, solver)
    return xp.reshape(dual, targets.shape), replace(report, ridge=ridge)


def _operator_solve(gram, targets, alpha, solver, sample_weight):
    """Return the dual coefficients and a report, for a linear operator over samples, or samples and outputs."""
    if not isinstance(solver, IterativeSolver):
        raise ValueError(
            f"{brief(solver)} needs the entries of a matrix, but gram is a linear operator; take solver='cg' or "
            "'nystrom', or form the matrix, gram @ np.eye(gram.shape[0])"
        )
    targets = np.asarray(array("targets", targets, finite=True), np.float64)
    size = gram.shape[0]
    per_sample = size // len(targets) if targets.ndim in (1, 2) and len(targets) else 0
    fits = per_sample == 1 or (targets.ndim == 2 and per_sample == targets.shape[1])
    if gram.shape != (size, size) or not fits or size % len(targets) or not targets.size:
        raise ValueError(
            f"gram must be an operator (n, n) and targets (n,) or (n, C), or (n C, n C) and (n, C); got shapes "
            f"{tuple(gram.shape)} and {targets.shape}"
        )
    if not hasattr(gram, "diagonal"):
        raise ValueError(
            f"alpha is in units of the mean diagonal, but {brief(gram)} has no method diagonal(); add one, or add "
            "the ridge to the operator and call ConjugateGradient()(operator, targets)"
        )
    weight = None if sample_weight is None else _checked_weight(sample_weight, targets)
    weight = None if weight is None else np.repeat(weight, per_sample)
    diagonal = np.asarray(gram.diagonal(), np.float64)
    ridge = _ridge(alpha, _positive_scale(_mean(diagonal, weight)))
    root, own = _root_and_ridge(weight, ridge)
    system, rows = RidgeSystem(gram, own, root, diagonal), targets.reshape(size, -1)
    u, report = solver.solve_system(system, rows if root is None else root[:, None] * rows)
    u = _checked_answer(u, rows, solver)
    return (u if root is None else root[:, None] * u).reshape(targets.shape), replace(report, ridge=ridge)


def _ridge(alpha, scale):
    """Return λ, if it is a number."""
    if not math.isfinite(alpha * scale):
        raise ValueError(
            f"alpha times the mean diagonal of gram must be finite, got alpha = {alpha:.3g} and {scale:.3g}"
        )
    return alpha * scale


def _root_and_ridge(weight, ridge):
    """Return roots of weights in their own unit, and the ridge that gives the same dual coefficients with them.

    W^½ (W^½ K W^½ + λI)⁻¹ W^½ is the same for cW and cλ.
    """
    if weight is None:
        return None, ridge
    xp = array_namespace(weight)
    unit = unit_of(weight)
    own = ridge / unit
    if not math.isfinite(own) or (own == 0) != (ridge == 0):
        raise ValueError(
            f"sample_weight goes up to {float(xp.max(weight)):.3g}, beside which the ridge λ = {ridge:.3g} is out "
            "of the range of float64: divide sample_weight by its mean, and choose alpha for that"
        )
    return xp.sqrt(weight / unit), own


def _ridge_solve(gram, targets, ridge, root, solver):
    """Return W^½ u with (W^½ K W^½ + ridge I) u = W^½ y, the form of weighted ridge that takes zero weights."""
    xp = array_namespace(gram)
    size = targets.shape[0]
    _require_room(gram, size, solver)
    if root is not None:
        targets = root[:, None] * targets
    if isinstance(solver, IterativeSolver):
        A = xp.reshape(gram, (size, size))
        if not (is_numpy_array(A) and A.dtype == np.float32):
            A = xp.astype(A, xp.float64, copy=False)
        require_symmetric(A, "the matrix")
        _require_finite_targets(targets)
        u, report = solver.solve_system(RidgeSystem(A, ridge, root), targets)
    else:
        # One assignment casts to float64 and carries out any permutation: the only copy of the Gram matrix here.
        A = xp.empty(gram.shape, dtype=xp.float64, device=device(gram))
        A[...] = gram
        A = xp.reshape(A, (size, size))
        if root is not None:
            A *= root[:, None]
            A *= root[None, :]
        diagonal = xp.reshape(A, (size * size,))[:: size + 1]
        diagonal += ridge
        u, report = getattr(solver, "solve_in_place", solver)(A, targets), SolveReport(solver, ridge=ridge)
    u = _checked_answer(u, targets, solver)
    return (u if root is None else root[:, None] * u), report


def _require_finite_targets(targets):
    xp = array_namespace(targets)
    if not bool(xp.all(xp.isfinite(targets))):
        raise ValueError("targets must be finite, but have NaN or infinity")


def _require_room(gram, size, solver):
    """Raise MemoryError unless a GPU has room for a system in double precision and for what its solver takes."""
    if not is_cupy_array(gram):
        return
    needed, free = 8 * size**2 * getattr(solver, "n_arrays", 1), gpu_bytes_free()
    if needed > free:
        raise MemoryError(
            f"solving a system of {size:,} takes {needed / 2**30:.1f} GiB on the GPU, of which {free / 2**30:.1f} "
            "GiB are free. What JAX has taken it keeps: give it less from the start "
            "(XLA_PYTHON_CLIENT_MEM_FRACTION), solve in another process, or on the host (solve of the matrix as "
            "NumPy array)"
        )


def _checked_answer(u, targets, solver):
    """Return a solver's answer in the library of the targets, if it is a finite array of their shape."""
    wanted = f"solver must return a finite array of shape {tuple(targets.shape)}, but {brief(solver)} returned"
    if not hasattr(u, "shape") or tuple(u.shape) != tuple(targets.shape):
        raise ValueError(f"{wanted} {brief(u)}")
    u = as_array_like(solver_array("what the solver returned", u), targets)
    require_real(u, "what the solver returned")
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
    return _positive_scale(_mean(diagonal, weight))


def _mean(diagonal, weight):
    """Return the weighted mean."""
    xp = array_namespace(diagonal)
    unit = unit_of(diagonal)
    diagonal = diagonal / unit
    if weight is None:
        return xp.mean(diagonal) * unit
    weight = weight / unit_of(weight)
    return xp.sum(weight * diagonal) / xp.sum(weight) * unit


def _positive_scale(scale):
    scale = float(scale)
    if not math.isfinite(scale):
        raise ValueError("gram must be finite, but its diagonal has NaN or infinity")
    if scale <= 0:
        raise SingularGramError(
            f"the mean diagonal of gram must be positive, got {scale:.3g}: no alpha can regularise a kernel "
            "that vanishes, or is negative, at its own samples"
        )
    return scale


def _require_kernel_system(gram, targets):
    require_real(gram, "gram")
    require_real(targets, "targets")
    shape = tuple(gram.shape)
    square = len(shape) in (2, 3, 4) and shape[0] == shape[1] and (len(shape) < 4 or shape[2] == shape[3])
    if not square or 0 in shape:
        raise ValueError(
            "gram must have shape (n, n), (n, n, C) or (n, n, C, C), the kernel of the training samples with "
            f"themselves; got {shape}"
        )
    n, n_outputs = gram.shape[0], gram.shape[-1]
    if len(shape) == 2:
        wanted, fits = f"({n},) or ({n}, C)", targets.ndim in (1, 2) and targets.shape[0] == n
    else:
        wanted, fits = f"({n}, {n_outputs})", tuple(targets.shape) == (n, n_outputs)
    if not fits or 0 in targets.shape:
        raise ValueError(
            f"targets must have shape {wanted} for a gram of shape {shape}; got {tuple(targets.shape)}"
        )


def _checked_weight(sample_weight, gram):
    weight = as_array_like(solver_array("sample_weight", sample_weight), gram)
    xp = array_namespace(weight)
    require_real(weight, "sample_weight")
    if tuple(weight.shape) != (gram.shape[0],):
        raise ValueError(
            f"sample_weight must have shape ({gram.shape[0]},), one a sample; got {tuple(weight.shape)}"
        )
    weight = xp.astype(weight, xp.float64, copy=False)
    if not bool(xp.all(xp.isfinite(weight) & (weight >= 0))) or float(xp.max(weight)) == 0:
        raise ValueError("sample_weight must be finite and >= 0, with at least one weight > 0")
    return weight
