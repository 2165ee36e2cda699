"""Arrays of numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from .values import brief, brief_with_dtype, unknown

# Shares of a column's spread that rounding may take: without a word, and at all.
NOTABLE, LOST = 3e-3, 0.5
# Values that differ by fewer of their own last digits are one number that was computed in several ways.
OWN_DIGITS = 16


def require_numbers(name: str, values: Any) -> None:
    """Raise unless NumPy can make numbers of values, before scikit-learn looks at their shape.

    Costs nothing for arrays of numbers; sparse matrices, and None, are left to scikit-learn.

    >>> require_numbers("X", [["1.5", 2]])
    >>> require_numbers("X", [["Rome", 2]])
    Traceback (most recent call last):
    ValueError: X must be an array of numbers, got [['Rome', 2]]: could not convert string to float: 'Rome'
    """
    require_unmasked(name, values)
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    if values is None or hasattr(values, "tocsr") or (isinstance(kind, str) and kind in "biuf"):
        return
    if kind == "c":
        raise ValueError(
            f"Complex data not supported: {name} must be real numbers, such as {name}.real or abs({name})"
        )
    if kind in ("M", "m"):
        raise TypeError(f"{name} must be an array of numbers, got {values.dtype}; write {name}.astype(float)")
    try:
        np.asarray(values, dtype=np.float64)
    except Exception as error:  # whatever a stranger's conversion raises
        kind = ValueError if isinstance(error, ValueError | OverflowError) else TypeError
        raise kind(f"{name} must be an array of numbers, got {brief(values)}: {error}") from None


def require_unmasked(name: str, values: Any) -> None:
    """Raise TypeError for a masked array, of which NumPy would take what is hidden.

    >>> require_unmasked("X", np.ma.array([1, 2], mask=[False, True]))
    Traceback (most recent call last):
    TypeError: X must be a dense array of values, got a masked array; write X.filled(value)
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a dense array of values, got a masked array; write {name}.filled(value)")


def require_regular(name: str, values: Any) -> None:
    """Raise ValueError for sequences of sequences of different lengths.

    >>> require_regular("y", ["Rome", "Oslo"])
    >>> require_regular("y", [[1, 2], [3]])
    Traceback (most recent call last):
    ValueError: y must be an array, but its rows have different lengths
    """
    require_unmasked(name, values)
    if not isinstance(values, list | tuple):
        return
    try:
        np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be an array, but its rows have different lengths") from None


def check_lengths(**arrays: Any) -> int:
    """Return the number of rows that arrays have in common, or raise ValueError that names them.

    >>> check_lengths(X=np.zeros((3, 2)), y=[0, 1])
    Traceback (most recent call last):
    ValueError: X and y must have the same, positive number of rows, got 3 and 2
    """
    lengths = [np.shape(values)[0] if np.ndim(values) else 0 for values in arrays.values()]
    if len(set(lengths)) != 1 or not lengths[0]:
        got = " and ".join(map(str, lengths))
        raise ValueError(f"{' and '.join(arrays)} must have the same, positive number of rows, got {got}")
    return lengths[0]


def floating(name: str, value: Any, known: Iterable[str]) -> str:
    """Return the name of a dtype among ``known`` ones, from whatever NumPy takes for one.

    >>> floating("dtype", np.float64, ("float32", "float64")), floating("dtype", ">f4", ("float32", "float64"))
    ('float64', 'float32')
    >>> floating("dtype", np.float16, ("float32", "float64"))
    Traceback (most recent call last):
    ValueError: unknown dtype <class 'numpy.float16'>; known are 'float32', 'float64'
    """
    known = list(dict.fromkeys(known))
    try:
        found = value if isinstance(value, str) and value in known else np.dtype(value).name
    except Exception:  # np.dtype asks a stranger's attributes
        found = None
    if found not in known or value is None:
        raise ValueError(unknown(name, value, known))
    return found


def array(
    name: str, values: Any, *, ndim: int | None = None, kinds: str = "biuf", finite: bool = False
) -> np.ndarray:
    """Return values as a NumPy array of numbers in this machine's byte order, without a copy where there is a way.

    Parameters
    ----------
    name : str
    values : array-like
        NumPy, JAX, CuPy or nested sequences of numbers.
    ndim : int, default=None
        Wanted number of axes; None is one or more.
    kinds : str, default="biuf"
        NumPy's letters for the kinds of dtype that are taken; bfloat16 counts as floating.
    finite : bool, default=False
        Refuse NaN and infinity.

    Raises
    ------
    TypeError
        For values of another kind: text, objects, complex numbers, sparse or masked arrays.
    ValueError
        For rows of different lengths, another number of axes, and what is not finite.

    Examples
    --------
    >>> array("X", [[1, 2], [3, 4]]).shape
    (2, 2)
    >>> array("X", [[1, 2], [3]])
    Traceback (most recent call last):
    ValueError: X must be an array of numbers, but its rows have different lengths
    """
    require_unmasked(name, values)
    if hasattr(values, "tocsr"):
        raise TypeError(f"{name} must be a dense array of numbers, got a sparse matrix; write {name}.toarray()")
    if hasattr(values, "get") and hasattr(values, "__cuda_array_interface__"):
        values = values.get()
    try:
        found = np.asarray(values)
    except Exception as error:  # whatever a stranger's conversion raises
        if "inhomogeneous" in str(error):
            raise ValueError(f"{name} must be an array of numbers, but its rows have different lengths") from None
        raise TypeError(f"{name} must be an array of numbers, got {brief(values)}: {error}") from None
    kind = "f" if found.dtype.name == "bfloat16" else found.dtype.kind
    if kind not in kinds:
        what = "complex numbers" if kind == "c" else brief_with_dtype(values, found.dtype)
        raise TypeError(f"{name} must be an array of real numbers, got {what}")
    if found.ndim == 0 or (ndim is not None and found.ndim != ndim):
        wanted = "one axis or more" if ndim is None else f"{ndim} ax{'is' if ndim == 1 else 'es'}"
        way = f"; write np.atleast_1d({name}) for a single one" if found.ndim == 0 else ""
        raise ValueError(f"{name} must be an array with {wanted}, got shape {found.shape}{way}")
    found = found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))
    if finite and not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, but {brief(values)} has NaN or infinity")
    return found


def is_finite(values: np.ndarray) -> bool:
    """Tell whether an array holds neither NaN nor infinity.

    >>> is_finite(np.array([1.0, 2.0])), is_finite(np.array([1.0, np.nan]))
    (True, False)
    """
    with np.errstate(all="ignore"):
        # one number for all is quicker than an answer for each, and finite unless they are not, or it overflows
        if values.dtype.char in "fd" and values.flags.forc:
            flat = values.ravel(order="K")
            whole = np.dot(flat, flat)
        else:
            whole = values.sum()
        return bool(np.isfinite(whole)) or bool(np.isfinite(values).all())


def fitting(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Return values in the dtype in which they are computed with, unless some finite ones are too large for it.

    Raises
    ------
    ValueError
        If a finite value overflows, or an integer would be cut off.

    Examples
    --------
    >>> fitting("X", np.array([1.0, 2.0]), np.float32).dtype
    dtype('float32')
    >>> fitting("X", np.array([1.0, 1e300]), np.float32)
    Traceback (most recent call last):
    ValueError: X holds 1e+300, which float32 cannot: it is computed with in float32; scale the data
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and values.dtype.kind in "iu" and values.size and values.dtype != dtype:
        limits, low, high = np.iinfo(dtype), int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise ValueError(
                f"{name} holds integers that do not fit {dtype}, which JAX makes of {values.dtype}: {low} to "
                f'{high}; call jax.config.update("jax_enable_x64", True) first, or give {name} as floats'
            )
    if values.dtype == dtype or values.dtype.kind not in "fcV":
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if not is_finite(found):
        lost = np.isfinite(values) & ~np.isfinite(found)
        if lost.any():
            raise ValueError(
                f"{name} holds {brief(values[lost][0].item())}, which {dtype} cannot: it is computed with in "
                f"{dtype}; scale the data"
            )
    return found


def require_resolution(name: str, values: np.ndarray, dtype: Any, *, targets: bool = False) -> None:
    """Raise ValueError where values that differ are all but equal, or too small, in the dtype of computation.

    What rounding takes of a column is the standard deviation of (rounded - given), as a share of that of the given
    values: 1 where all become equal. A UserWarning says where it is considerable, and of features that vanish
    beside others so large that they would count for nothing in double precision either.

    Parameters
    ----------
    name : str
    values : array (n, ...)
        Finite, in the dtype in which the user gave them. What ``dtype`` holds exactly costs nothing.
    dtype : dtype
        Floating; the one that they are computed with.
    targets : bool, default=False
        Each column is an answer of its own, however small it is beside others.

    Examples
    --------
    >>> require_resolution("y", np.array([2015.0, 2025.5]), np.float32)
    >>> require_resolution("X", 1e9 + np.arange(6.0).reshape(3, 2), np.float32)
    Traceback (most recent call last):
    ValueError: column 0 of X holds 1000000000.0 to 1000000004.0, all but equal in float32, in which it is computed
    with; scale it first: sklearn.preprocessing.StandardScaler()
    """
    dtype = np.dtype(dtype)
    if np.can_cast(values.dtype, dtype) or not values.size:
        return
    columns, about = values.reshape(len(values), -1), ml_dtypes.finfo(dtype)
    eps, tiny = float(about.eps), max(float(about.tiny), float(np.finfo(np.float32).tiny))
    # coefficients are smaller than targets, and compiled programs take subnormal numbers for zero
    floor = tiny / eps if targets else tiny
    low, high = (np.asarray(of(axis=0), np.float64) for of in (columns.min, columns.max))
    # halves, since a difference of two numbers may overflow
    size, spread = np.maximum(abs(low), abs(high)), 2 * np.minimum(high / 2 - low / 2, np.finfo(float).max / 2)
    own = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0
    # a deviation is at least spread / sqrt(2 n), and rounding moves no value further than eps * size + floor
    suspect = (eps * size + floor) * math.sqrt(2 * len(columns)) > NOTABLE * spread
    suspect = np.flatnonzero(suspect & (spread > OWN_DIGITS * own * size))
    if not len(suspect):
        return
    taken = _taken_by_rounding(columns[:, suspect], size[suspect], dtype, floor)
    lost = suspect[taken >= LOST]
    beside = 0 if targets else np.delete(spread, lost).max(initial=0)
    fatal = lost[spread[lost] > eps * beside]
    if not len(fatal) and taken.max() <= NOTABLE:
        return
    at = int(fatal[0] if len(fatal) else suspect[taken.argmax()])
    ends = " to ".join(
        brief(columns[row, at].item()) for row in (columns[:, at].argmin(), columns[:, at].argmax())
    )
    said = f"{name if columns.shape[1] == 1 else f'column {at} of {name}'} holds {ends}"
    way = f"in {dtype}, in which it is computed with; scale it first: sklearn."
    # double precision does not help features: what they have in common outweighs what tells them apart
    way += (
        "compose.TransformedTargetRegressor(regressor, transformer=StandardScaler()), or compute in double "
        'precision: jax.config.update("jax_enable_x64", True), with parameters of float64'
        if targets
        else "preprocessing.StandardScaler()"
    )
    if len(fatal):
        raise ValueError(f"{said}, {'too small' if size[at] < floor else 'all but equal'} {way}")
    warnings.warn(
        f"{said}, and rounding takes {taken.max():.2g} of its deviation {way}", UserWarning, stacklevel=3
    )


def warn_of_lost_columns(name: str, values: np.ndarray, digits: int, where: str) -> None:
    """Warn where rounding to so many binary digits takes half of a column's deviation or more.

    No error: what comes before the rounding may bring columns to a scale.

    Parameters
    ----------
    name : str
    values : array (n, ...)
    digits : int
        Binary digits behind the leading one.
    where : str
        What rounds so, for the message.

    Examples
    --------
    >>> warn_of_lost_columns("X", np.linspace(0, 1, 9)[:, None], 7, "products in bf16")
    """
    columns = values.reshape(len(values), -1)
    low, high = (np.asarray(of(axis=0), np.float64) for of in (columns.min, columns.max))
    size = np.maximum(abs(low), abs(high))
    suspect = np.ldexp(size, -digits) * math.sqrt(len(columns)) > high / 2 - low / 2
    suspect = np.flatnonzero(suspect & (high > low))
    if not len(suspect):
        return
    of_size_one = columns[:, suspect] / size[suspect]
    mantissas, exponents = np.frexp(of_size_one)
    rounded = np.ldexp(np.rint(np.ldexp(mantissas, digits + 1)), exponents - digits - 1)
    taken = np.std(rounded - of_size_one, axis=0) / np.std(of_size_one, axis=0)
    worst = taken.argmax()
    if taken[worst] >= LOST:
        at = suspect[worst]
        warnings.warn(
            f"column {at} of {name} holds {brief(low[at].item())} to {brief(high[at].item())}, and rounding takes "
            f"{taken[worst]:.2g} of its deviation in {where}, unless the network scales it first; scale it: "
            "sklearn.preprocessing.StandardScaler()",
            UserWarning,
            stacklevel=3,
        )


def _taken_by_rounding(columns: np.ndarray, size: np.ndarray, dtype, floor: float) -> np.ndarray:
    """Measure what rounding does to columns (n, k) of sizes (k,), as a share (k,) of their own deviation."""
    with np.errstate(all="ignore"):
        rounded = columns.astype(dtype).astype(np.float64)
        rounded[abs(rounded) < floor] = 0
        # in units in which squares neither overflow nor vanish
        taken = np.std((rounded - columns) / size, axis=0) / np.std(columns / size, axis=0)
    # what overflows is refused elsewhere
    return np.nan_to_num(taken, nan=0, posinf=0)
