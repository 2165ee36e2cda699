"""Comparisons of what a kernel gave with what it should be; an AssertionError has the worst entry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import number

ROUNDING = 64
INDEFINITENESS = 10


def require_finite_block(name: str, K: np.ndarray) -> np.ndarray:
    """Return what a kernel called ``name`` gave, or raise AssertionError unless all of it is finite."""
    if K.dtype.kind not in "biuf" and not jnp.issubdtype(K.dtype, jnp.floating):
        raise AssertionError(f"{name} must give real numbers, got dtype {K.dtype}")
    wrong = np.argwhere(~np.isfinite(K))
    if len(wrong):
        entry = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{name} is not finite: entry {entry} is {K[entry]}, and so are {len(wrong)} of {K.size} entries"
        )
    return K


def require_close(
    claim: str,
    found: np.ndarray,
    expected: np.ndarray,
    rtol: float | None,
    *,
    scale: Any = None,
    way: str = "",
) -> None:
    """Raise AssertionError with a claim where entries differ by more than rtol of the largest, or of ``scale``."""
    if found.shape != expected.shape:
        raise AssertionError(f"{claim}: shape {found.shape} instead of {expected.shape}")
    rtol = ROUNDING * max(_eps(found), _eps(expected)) if rtol is None else number("rtol", rtol, low=0)
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    scale = np.abs(expected).max() if scale is None else scale
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - expected)
    # written so that NaN fails
    if not (difference <= rtol * scale).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
        entry, share = tuple(int(i) for i in worst), difference[worst] / scale if scale else np.inf
        raise AssertionError(
            f"{claim}: entry {entry} is {found[worst]:.7g} instead of {expected[worst]:.7g}, off by {share:.2g} "
            f"of the largest entry where {rtol:.2g} is allowed{way}"
        )


def require_positive_semidefinite(kernel: Any, K: np.ndarray, tol: float | None) -> None:
    """Raise AssertionError if an eigenvalue is below −tol times the largest absolute one."""
    for name, matrix in _matrices(K):
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        largest = np.abs(values).max()
        allowed = INDEFINITENESS * len(matrix) * _eps(K) if tol is None else tol
        if not values[0] >= -allowed * largest:
            shown = kernel if isinstance(kernel, str) else repr(kernel)
            raise AssertionError(
                f"{shown} is not positive semidefinite{name}: its least eigenvalue is {values[0]:.3g} at a "
                f"largest of {largest:.3g}, below the −{allowed:.2g} of the largest that rounding explains"
            )


def _matrices(K):
    """Return (name, matrix in float64) of every matrix in a Gram matrix."""
    n, K = len(K), K.astype(float)
    if K.ndim == 2:
        return [("", K)]
    if K.ndim == 3:
        return [(f" for class {c}", K[..., c]) for c in range(K.shape[2])]
    return [("", K.transpose(0, 2, 1, 3).reshape(n * K.shape[2], -1))]


def _eps(array) -> float:
    return float(jnp.finfo(jnp.result_type(float, jax.dtypes.canonicalize_dtype(array.dtype))).eps)
