"""What bounds of attacks are given as: numbers and features, by position or by the names of columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._frames import Column, require_own_names
from .._validation import array, brief


def ordered_bounds(bounds: Any) -> tuple:
    """Return bounds (low, high) as two floats or tuples of floats."""
    try:
        if isinstance(bounds, str | bytes | dict | set | frozenset):
            raise TypeError
        low, high = (array("bounds", np.atleast_1d(b)).astype(float).reshape(np.shape(b)) for b in bounds)
        ordered = ((low.ravel() <= high.ravel()) & (low.ravel() < np.inf) & (high.ravel() > -np.inf)).all()
    except Exception:  # whatever a stranger raises when it is gone through
        raise ValueError(
            "bounds must be None or (low, high), each a number or one number for each feature, a dict from names "
            f"of columns to (low, high), or a Box, got {brief(bounds)}"
        ) from None
    if not ordered:
        raise ValueError(f"bounds must be (low, high) with low <= high and no NaN, got {brief_bounds(bounds)}")
    return tuple(b.item() if b.ndim == 0 else tuple(b.ravel().tolist()) for b in (low, high))


def brief_bounds(bounds: Any) -> tuple:
    """Return bounds for a message, with many numbers as their number."""
    return tuple(b if np.ndim(b) == 0 else f"<{np.size(b)} numbers>" for b in bounds)


def are_named(limits: Any) -> bool:
    """Tell whether limits are numbers by name."""
    return isinstance(limits, Mapping) or (
        isinstance(limits, tuple) and bool(limits) and isinstance(limits[0], tuple)
    )


def named_bounds(low: Any, high: Any) -> tuple:
    """Return bounds of which one at least is by name, as pairs or a number for all columns."""
    low, high = _by_name("low", low), _by_name("high", high)
    for name in {**low, **high}:
        least, most = low.get(name, low.get(None, -np.inf)), high.get(name, high.get(None, np.inf))
        if not (least <= most and least < np.inf and most > -np.inf):
            raise ValueError(
                f"bounds{'' if name is None else f' of the column {name!r}'} must be low <= high and no NaN, got "
                f"({least:g}, {most:g})"
            )
    return tuple(end[None] if None in end else tuple(end.items()) for end in (low, high))


def _by_name(what, limits) -> dict:
    """Return numbers by name; a number for all columns stands at None."""
    try:
        if are_named(limits):
            found = {name: float(value) for name, value in dict(limits).items()}
        else:
            found = {None: float(limits)}
    except (TypeError, ValueError):
        found = {0: np.nan}
    if not all(name is None or isinstance(name, str) for name in found):
        raise ValueError(
            f"{what} must be a dict from names of columns to numbers, or a number for all, got {brief(limits)}"
        )
    return found


def checked_mask(mask: Any) -> tuple | None:
    """Return a mask as booleans, or as names of columns."""
    if mask is None or (isinstance(mask, list | tuple) and not mask):
        return mask if mask is None else ()
    names = _names(mask)
    if names:
        return names
    try:
        found = np.asarray(mask)
    except Exception:  # rows of different lengths, and whatever a stranger's conversion raises
        found = np.empty(0)
    if found.dtype != bool:
        raise ValueError(
            f"mask must hold a boolean for each feature, True where it may change, got {brief(mask)}; "
            f"{_as_list('mask', mask) or 'names of columns must be strings'}"
        )
    return tuple(found.ravel().tolist())


def _as_list(name, value) -> str:
    """Return how to name one column, if that is what was tried."""
    return f"write {name}=[{value!r}]" if isinstance(value, str) else ""


def _names(values) -> tuple[str, ...]:
    """Return names of columns, of whatever holds strings alone, and otherwise nothing."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return ()
    try:
        values = list(values)
    except TypeError:  # arrays without axes
        return ()
    return tuple(map(str, values)) if values and all(isinstance(each, str) for each in values) else ()


def checked_features(name: str, values: Any) -> tuple:
    """Return positions or names of features."""
    if isinstance(values, list | tuple) and any(isinstance(each, str) for each in values):
        rest = iter(checked_features(name, [each for each in values if not isinstance(each, str)]))
        return tuple(str(each) if isinstance(each, str) else next(rest) for each in values)
    if names := _names(values):
        return names
    try:
        found = np.asarray(values)
    except Exception:  # rows of different lengths, and whatever a stranger's conversion raises
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and not (np.issubdtype(found.dtype, np.integer) and found.min() >= 0)):
        raise ValueError(
            f"{name} must be positions of features, integers >= 0, or names of columns, got {brief(values)}"
            f"{'; ' * isinstance(values, str)}{_as_list(name, values)}"
        )
    return tuple(map(int, found))


def checked_categories(given: Any) -> tuple:
    """Return pairs of a column and its values, or None for those that are known elsewhere."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ValueError(
            f"categories must be columns, or a dict from columns to values, got {brief(given)}"
            f"{'; ' * isinstance(given, str)}{_as_list('categories', given)}"
        )
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
    if pairs and all(isinstance(each, tuple) and len(each) == 2 and _is_pair(each) for each in pairs):
        columns, values = checked_features("categories", [pair[0] for pair in pairs]), [pair[1] for pair in pairs]
    else:
        columns, values = checked_features("categories", pairs), [None] * len(pairs)
    return tuple((column, _values_of(column, found)) for column, found in zip(columns, values, strict=True))


def _is_pair(each) -> bool:
    return each[1] is None or (isinstance(each[1], Iterable) and not isinstance(each[1], str | bytes))


def _values_of(column, values):
    if values is None:
        return None
    found = tuple(v.item() if isinstance(v, np.generic) else v for v in values)
    try:
        distinct = set(found)
    except TypeError:
        distinct = set()
    if not distinct or len(distinct) < len(found):
        raise ValueError(f"categories of {column!r} must be distinct values, one at least, got {brief(values)}")
    return found


def numbers_of_frame(columns: list[Column], others: bool) -> tuple[dict, list]:
    """Return the columns of numbers (n,) by name, and the names of those of an integer dtype.

    There must be one, unless ``others`` may change.
    """
    names = [column.name for column in columns]
    require_own_names(names)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"names of columns must be strings, got {odd[0]!r}; write X.rename(columns=str)")
    known = [c for c in columns if c.is_number and c.values is not None and not np.isnan(c.values).all()]
    if not (known or others):
        raise ValueError("X has no column of numbers from which bounds could be taken")
    for column in known:
        _require_finite(f"column {column.name!r} of X", column.values)
    return {c.name: c.values for c in known}, [c.name for c in known if c.is_integer]


def numbers_of_array(X: Any) -> tuple[dict, list]:
    """Return the features (n,) of an array (n, ...) by position, and the positions of integers."""
    given = array("X", X)
    if given.ndim < 2 or not given.size:
        raise ValueError(f"X must be an array (n, ...) with rows and features, got shape {given.shape}")
    flat = given.reshape(len(given), -1).astype(float)
    _require_finite("X", flat)
    if (empty := np.isnan(flat).all(0)).any():
        raise ValueError(f"feature {empty.argmax()} of X holds missing values alone, so it has no range")
    return dict(enumerate(flat.T)), list(range(flat.shape[1])) if given.dtype.kind in "iu" else []


def require_numbers_by_name(uses: dict[str, str], columns: list[Column], numbers: dict) -> None:
    """Raise ValueError for names of columns in which numbers shall change but that have no range."""
    kinds = {column.name: "missing values alone" if column.is_number else column.dtype for column in columns}
    for name, use in uses.items():
        if use != "categories" and name not in numbers:
            raise ValueError(
                f"Box.from_data: {use} names the column {name!r}, but it holds {kinds[name]}, no numbers that may "
                f"change; leave it out, or let it move among its categories: categories=[{name!r}]"
            )


def require_width(mask: Any, positions: Iterable, n_features: int) -> None:
    """Raise ValueError for a mask by position of another width, and for positions beyond it."""
    if mask and isinstance(mask[0], bool) and len(mask) != n_features:
        raise ValueError(f"mask has {len(mask)} booleans, but X has {n_features} features; give one for each")
    if beyond := [at for at in positions if not isinstance(at, str) and at >= n_features]:
        raise ValueError(
            f"features must be positions below {n_features}, the number of those of X, got {beyond[0]}; "
            "positions count from 0"
        )


def require_integers(features: tuple, numbers: dict) -> None:
    """Raise ValueError for features that are no integers in the data."""
    for feature in features:
        values = numbers.get(feature, np.zeros(0))
        wrong = (values != np.rint(values)) & ~np.isnan(values)
        if wrong.any():
            raise ValueError(
                f"{feature!r} is one of integers, but X holds {values[wrong][0]:.6g} there; round it, or "
                "take it out"
            )


def _require_finite(what, values) -> None:
    if np.isinf(values).any():
        raise ValueError(f"{what} holds infinite values, which are no bounds: replace them first")
