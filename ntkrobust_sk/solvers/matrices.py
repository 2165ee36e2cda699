"""What a matrix must be for a solver: square, real, finite, symmetric."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

from .._arrays import AnyArray, to_solver_array
from .._validation import array, brief
from .units import unit_of

# A Gram matrix made of float32 tiles is symmetric to about 1e-6; a wrong block or permutation misses by O(1).
SYMMETRY_TOLERANCE = 1e-4
# Below this a sum of squares has lost digits.
SMALLEST_SUM = 1e-280
_ROWS_AT_ONCE = 1024
# Tiles of this side, and their mirror images, stay in a core's cache; more threads only wait for memory.
_TILE = 256
_THREADS = min(4, os.cpu_count() or 1)


def rounding(n, A):
    """Return the largest relative error, of an eigenvalue or a residual, that is put down to rounding."""
    return 10 * math.sqrt(n) * float(array_namespace(A).finfo(A.dtype).eps)


def solver_array(name, values):
    """Return an array of numbers where it is solved, with NumPy's checks for what is no array of some library."""
    if isinstance(values, np.ma.MaskedArray) or hasattr(values, "tocsr"):
        return array(name, values)
    if str(getattr(values, "dtype", "")).startswith("key"):
        raise TypeError(f"{name} must be an array of numbers, got {brief(values)}")
    found = to_solver_array(values) if hasattr(values, "shape") else values
    # complex numbers have a word of their own
    elsewhere = hasattr(found, "__array_namespace__") and not is_numpy_array(found)
    return found if elsewhere or is_cupy_array(found) else array(name, found, kinds="biufc")


def require_symmetric(A: AnyArray, name: str) -> tuple[AnyArray, float]:
    """Check that a real matrix is square, finite and symmetric, in one pass without an n×n temporary.

    Parameters
    ----------
    A : array (n, n)
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
        If ``A`` is not square, has NaN or infinity, or is further from symmetric than 1e-4.

    Examples
    --------
    >>> import numpy as np
    >>> require_symmetric(np.array([[3.0, 0.0], [0.0, 4.0]]), "K")
    (5.0, 0.0)
    """
    require_real(A, name)
    require_square(A, name)
    unit, (total, skew) = 1.0, _squares(A, 1.0)
    if not SMALLEST_SUM < total < math.inf:
        xp = array_namespace(A)
        unit = unit_of(xp.astype(xp.stack([xp.min(A), xp.max(A)]), xp.float64))
        total, skew = _squares(A, unit)
    if not math.isfinite(math.sqrt(total) * unit):
        raise ValueError(f"{name} must be finite, but has NaN, infinity or a norm beyond float64")
    asymmetry = math.sqrt(skew / total) if total > 0 else 0.0
    if not asymmetry <= SYMMETRY_TOLERANCE:
        raise ValueError(
            f"{name} must be symmetric, but ‖A - Aᵀ‖/‖A‖ = {asymmetry:.1e} exceeds {SYMMETRY_TOLERANCE:.0e}: "
            "was it computed between two different sets of samples? If it is rounding, pass (A + A.T) / 2"
        )
    return math.sqrt(total) * unit, asymmetry


def _squares(A, unit):
    """Return ‖A‖² and ‖A - Aᵀ‖² in squares of a unit; ‖A‖² is infinite or NaN where it is no number."""
    total = skew = 0.0
    for squares, skewed in _squares_of_tiles(A, unit) if is_numpy_array(A) else _squares_of_rows(A, unit):
        total += squares
        skew += skewed
        if not math.isfinite(total):
            break
    return total, skew


def _squares_of_rows(A, unit):
    """Yield ‖A‖² and ‖A - Aᵀ‖² of some rows after the others."""
    xp = array_namespace(A)
    for start in range(0, A.shape[0], _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, A.shape[0])
        rows = xp.astype(A[start:stop, :], xp.float64, copy=False) / unit
        with np.errstate(over="ignore", invalid="ignore"):
            skew = xp.sum((rows - xp.astype(A[:, start:stop], xp.float64, copy=False).T / unit) ** 2)
            found = float(xp.sum(rows * rows)), float(skew)
        yield found


def _squares_of_tiles(A, unit):
    """Yield the same of rows of tiles with their mirror images, of which a CPU's cache holds a pair at a time."""
    tiles = [slice(start, start + _TILE) for start in range(0, A.shape[0], _TILE)]
    rows = [(A, unit, tile, tiles[i:]) for i, tile in enumerate(tiles)]
    if len(tiles) <= 4:
        yield from (_squares_of_row(*row) for row in rows)
        return
    # in the order of the tiles, so that the sum is the same for any number of threads
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(lambda row: _squares_of_row(*row), rows)


def _squares_of_row(A, unit, rows, tiles):
    squares = skew = 0.0
    for columns in tiles:
        upper = A[rows, columns].astype(np.float64, order="C").ravel()
        lower = A[columns, rows].T.astype(np.float64, order="C").ravel()
        if unit != 1:
            upper /= unit
            lower /= unit
        times = 1 if rows == columns else 2
        squares += _square(upper) + (times - 1) * _square(lower)
        with np.errstate(over="ignore", invalid="ignore"):
            lower -= upper
        skew += times * _square(lower)
    return squares, skew


def _square(v):
    """Sum the squares, in this thread alone: BLAS would wake its own."""
    return float(np.einsum("i,i->", v, v))


def frobenius(a):
    """Compute the Frobenius norm in double precision, without over- or underflow; NaN if it is not finite."""
    xp = array_namespace(a)
    a = xp.astype(a, xp.float64, copy=False)
    largest = float(xp.max(xp.abs(a)))
    if not 0 < largest < math.inf:
        return 0.0 if largest == 0 else math.nan
    a = a / largest
    return largest * math.sqrt(float(xp.sum(a * a)))


def require_square(A, name: str) -> None:
    """Raise ValueError unless a matrix is square, and not empty."""
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1; got shape {tuple(A.shape)}")


def require_real(a, name: str) -> None:
    """Raise ValueError for complex numbers."""
    if "complex" in str(a.dtype):  # isdtype would do, but NumPy's refuses bfloat16
        raise ValueError(f"{name} must be real, got {a.dtype}: take the real part if the imaginary one is zero")
