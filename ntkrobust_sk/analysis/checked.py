"""Gram matrices and targets as the metrics take them: checked, in double precision, centred if asked for."""

from typing import NamedTuple

import numpy as np

from .._arrays import eigvalsh, to_gpu_of, to_numpy
from .._validation import array, flag
from ..solvers.matrices import require_symmetric
from ..solvers.units import near_one, unit_of

# The rounding of a float32 Gram matrix leaves eigenvalues down to about -1e-7 of the largest.
INDEFINITE_TOLERANCE = 1e-4
# Matrices of double precision that eigenvalues take on a GPU, and eigenvectors too.
EIGENVALUE_ARRAYS, EIGENVECTOR_ARRAYS = 3, 5
# Kinds of dtype that are looked at; complex ones are refused in words of their own.
COMPLEX = "biufc"


class CheckedGram(NamedTuple):
    """A validated float64 Gram matrix, in a unit in which squares of its entries neither overflow nor vanish.

    Attributes
    ----------
    K : array (n, n)
    norm : float
        Frobenius, of K in its unit.
    unit : float
        A power of two; one where the matrix is near one as it is.
    """

    K: np.ndarray
    norm: float
    unit: float


def checked_gram(K, name, centered=False) -> CheckedGram:
    """Return a validated Gram matrix with its norm and its unit, centred if asked for."""
    K = array(name, K, kinds=COMPLEX)
    norm, _ = require_symmetric(K, name)
    K = np.asarray(K, dtype=np.float64)
    if norm == 0:
        raise ValueError(f"{name} is zero, so it has no direction to compare")
    unit = squarable_unit(np.array(norm))
    K, norm = K if unit == 1 else K / unit, norm / unit
    if not centered:
        return CheckedGram(K, norm, unit)
    means = K.mean(axis=0)
    K = K - means
    K -= means[:, None]
    K += means.mean()
    centered_norm = float(np.linalg.norm(K))
    if centered_norm <= K.shape[0] * np.finfo(np.float64).eps * norm:
        raise ValueError(f"{name} is constant over the samples, so nothing is left of it after centring")
    return CheckedGram(K, centered_norm, unit)


def squarable_unit(values) -> float:
    """Return a power of two in which squares of numbers are in range; one where they are as they are."""
    unit = unit_of(values)
    return 1.0 if near_one(unit) else unit


def checked_pair(centered=False, **kernels) -> tuple[CheckedGram, CheckedGram]:
    """Return two Gram matrices of the same samples."""
    flag("centered", centered)
    first, second = (checked_gram(K, name, centered) for name, K in kernels.items())
    if first.K.shape != second.K.shape:
        raise ValueError(
            f"{' and '.join(kernels)} must be kernels of the same samples, got shapes {first.K.shape} and "
            f"{second.K.shape}"
        )
    return first, second


def checked_targets(name, y, n, centered, *, by_column):
    """Return targets (n, C) in a power of two in which the largest is about one, of all or of each column.

    No measure sees the unit of all. That of each column is for measures that take columns one by one.
    """
    Y = array(name, y, kinds=COMPLEX, finite=True)
    if np.iscomplexobj(Y):
        raise ValueError(f"{name} must be real")
    Y = np.asarray(Y, dtype=np.float64)
    if Y.ndim not in (1, 2) or Y.shape[0] != n or Y.size == 0:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, C) to match the kernel; got {Y.shape}")
    Y = Y.reshape(n, -1)
    Y = np.ldexp(Y, -np.frexp(np.abs(Y).max(axis=0 if by_column else None))[1])
    if centered:
        Y = np.where(np.ptp(Y, axis=0) > 0, Y - Y.mean(axis=0), 0.0)
    if not np.any(Y):
        raise ValueError(f"{name} is {'constant' if centered else 'zero'}: there is nothing to align with")
    return Y


def spectrum_of(K):
    """Return the eigenvalues in K's unit, ascending, with the negatives that rounding leaves set to zero.

    They are computed in double precision: by CuPy where K is on a GPU and has room there, by NumPy otherwise.
    """
    source, K = K, checked_gram(K, "K").K
    eigenvalues = to_numpy(eigvalsh(to_gpu_of(K, source, EIGENVALUE_ARRAYS)))
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    if not smallest >= -INDEFINITE_TOLERANCE * largest:
        raise ValueError(
            f"K must be positive semidefinite up to rounding, but its eigenvalues go from {smallest:.3g} to "
            f"{largest:.3g}: was it computed in low precision, or is it a difference of kernels?"
        )
    return np.maximum(eigenvalues, 0.0)
