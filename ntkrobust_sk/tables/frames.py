"""Tables as numbers and back: data frames of pandas and polars, of which attacks change the columns of numbers.

An attack sees rows of numbers, one for each column of the table. A column that may not change is *fixed*: it holds
the number of the row that it came from, which leads back to whatever stands there, text or dates included.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .._frames import LARGEST_INTEGER, read_frame, require_own_names
from .._validation import brief, require_regular
from ..attacks.boxes import Box

# Why columns of numbers stay as they are.
MISSING, TOO_LARGE = "missing or infinite values", "integers above 2**53"


class Categories(NamedTuple):
    """What stands in a column of categories.

    Attributes
    ----------
    values : tuple
        What may be moved to first, and then what else stands in the column.
    n_known : int
        Number of those that may be moved to.
    codes : int array (n,)
        Positions in ``values`` of what stands in each row.
    """

    values: tuple
    n_known: int
    codes: np.ndarray

    def at(self, codes: np.ndarray) -> np.ndarray:
        """Return the values (m,) of codes, as objects."""
        values = np.empty(len(self.values), object)
        values[:] = self.values
        return values[np.rint(codes).astype(int)]

    def codes_of(self, values: tuple | None) -> tuple[int, ...]:
        """Return the codes of values, or of all that may be moved to."""
        known = self.values[: self.n_known]
        return tuple(range(self.n_known)) if values is None else tuple(map(known.index, values))


@dataclass(frozen=True, eq=False)
class Table:
    """An array of numbers (n, d) of which some columns are fixed.

    Attributes
    ----------
    given : array or data frame
    numbers : float array (n, d)
        NaN in columns that hold something else.
    reasons : tuple of (str or None)
        Why each column is fixed; None where its numbers may change.
    categories : dict from int to Categories
        Fixed columns that hold categories which may change, by position.
    integers : dict from int to (float, float)
        Columns of a frame of an integer dtype, by position, with the least and the largest that this holds.
    """

    given: Any
    numbers: np.ndarray
    reasons: tuple[str | None, ...]
    categories: dict[int, Categories] = field(default_factory=dict)
    integers: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def fixed(self) -> np.ndarray:
        """Return which columns are no numbers that may change, bool (d,)."""
        return np.array([reason is not None for reason in self.reasons])

    @property
    def held(self) -> np.ndarray:
        """Return which columns stay as they are, bool (d,)."""
        found = self.fixed
        found[list(self.categories)] = False
        return found

    @property
    def has_names(self) -> bool:
        """Tell whether the columns have names of their own."""
        return hasattr(self.given, "columns")

    @property
    def names(self) -> list:
        """Return the columns' names; of an array their positions."""
        return list(self.given.columns) if self.has_names else list(range(self.numbers.shape[1]))

    @property
    def named(self) -> str:
        """Return the columns that stay as they are with the reasons, for a message."""
        found = zip(self.names, self.reasons, self.held, strict=True)
        return ", ".join(f"{name!r} ({reason})" for name, reason, held in found if held)

    def holding(self, reasons: dict[int, str]) -> Table:
        """Return the table with more columns fixed, by position."""
        found = tuple(old or reasons.get(at) for at, old in enumerate(self.reasons))
        return replace(self, reasons=found)

    def coded(self) -> np.ndarray:
        """Return numbers (n, d) to attack; of categories their codes, in columns that stay those of the rows."""
        found = np.where(self.held, np.arange(len(self.numbers), dtype=float)[:, None], self.numbers)
        for at, column in self.categories.items():
            found[:, at] = column.codes
        return found

    def in_original_form(self, X: np.ndarray, rows: np.ndarray | None = None) -> Any:
        """Return numbers (m, d) as a table of this kind, with what stands in fixed columns of ``rows`` (m,).

        Without ``rows`` they are all the table's, or, where nothing is fixed, of nobody.
        """
        if rows is None and (len(X) == len(self.numbers) or self.held.any()):
            rows = np.arange(len(self.numbers))
        return self._assembled(X, rows)

    def decoded(self, X: np.ndarray) -> Any:
        """Return numbers (m, d) like :meth:`coded`, which tell the rows of what is fixed, as a table."""
        rows = np.rint(X[:, self.held][:, 0]).astype(int) if self.held.any() else None
        return self.in_original_form(X, rows)

    def part(self, columns: np.ndarray) -> Any:
        """Return the columns at these positions, as they came."""
        return self.given[:, columns.tolist()]

    def within(self, attack: Any) -> Any:
        """Return the attack with bounds that keep to the columns that may change, if it is one with bounds."""
        if "bounds" not in fields_of(attack):
            return attack
        bounds = (-np.inf, np.inf) if attack.bounds is None else attack.bounds
        box = bounds if isinstance(bounds, Box) else Box(bounds[0], bounds[1])
        stated = isinstance(attack.bounds, Box) or self.fixed.any() or self.integers
        return replace(attack, bounds=self._kept_to(self._coded_box(self.by_position(box)))) if stated else attack

    def _kept_to(self, box):
        """Return a Box by position that keeps to the columns that may change, and to the dtypes of integers."""
        free = ~self.fixed if box.mask is None else np.asarray(box.mask, bool) & self._of_our_width(box.mask)
        held = [group for group in box.one_hot if not free[[at for at in group if at < len(free)]].all()]
        free[[at for group in held for at in group]] = False
        if box.mask is not None and any(box.mask) and not free.any() and not box.categories:
            raise ValueError(
                f"the attack's mask leaves no column that may change: {self.named}. Let columns of numbers "
                "change, or name columns of categories in Box(categories=...)"
            )
        groups = [group for group in box.one_hot if group not in held]
        own = {*self.integers} - {at for group in groups for at in group}
        asked = sorted(own) if box.integers is None else box.integers
        integers = [at for at in asked if at >= len(free) or free[at]]
        mask = None if free.all() else free
        return replace(self._within_dtypes(box, integers), mask=mask, integers=integers, one_hot=groups)

    def _within_dtypes(self, box, integers):
        """Return a Box of which columns stay among the integers that their dtypes hold."""
        d, limits = len(self.reasons), {at: self.integers[at] for at in integers if at in self.integers}
        if not limits or any(np.size(end) not in (1, d) for end in (box.low, box.high)):
            return box
        low, high = (np.broadcast_to(end, d).copy() for end in (box.low, box.high))
        at, dtypes = list(limits), np.array(list(limits.values()))
        low[at], high[at] = np.maximum(low[at], dtypes[:, 0]), np.minimum(high[at], dtypes[:, 1])
        return replace(box, low=low, high=high)

    def by_position(self, box: Box) -> Box:
        """Return a Box by the positions of the columns that it names."""
        if not self.has_names:
            box.require_positions("X is an array")
        found = box.for_columns(self.names) if box.names or box.mask == () else box
        for name, use in box.names.items():
            at = self.names.index(name)
            what = self.reasons[at]
            holds_numbers = what in (MISSING, TOO_LARGE) or not np.isnan(self.numbers[:, at]).any()
            if use not in ("mask", "categories") and not holds_numbers:
                raise ValueError(
                    f"the attack's Box names the column {name!r} in {use}, but it holds {what}, no numbers"
                )
        return found

    def _coded_box(self, box):
        """Return a Box whose categories are codes."""
        coded = []
        for at, values in box.categories:
            if at not in self.categories:
                raise TypeError(
                    f"categories of column {self.names[at]!r} do not move here: robust_accuracy, perturb, "
                    "robustness_report and check_evaluation move them, for scikit-learn's estimators on tables; "
                    "leave it out of Box(categories=...)"
                )
            coded.append((at, self.categories[at].codes_of(values)))
        return replace(box, categories=tuple(coded))

    def _of_our_width(self, mask):
        if len(mask) != len(self.reasons):
            raise ValueError(
                f"the attack's mask has {len(mask)} numbers, but X has {len(self.reasons)} columns; "
                "give one for each"
            )
        return ~self.fixed

    def _assembled(self, X, rows):
        result = np.array(X)
        if self.held.any():
            result[:, self.held] = self.given[rows][:, self.held]
        for at, column in self.categories.items():
            result[:, at] = column.at(X[:, at])
        return result


def as_table(X: Any) -> Table | None:
    """Return a data frame as a Table, and None of what is none.

    Raises
    ------
    TypeError
        For a polars LazyFrame, and frames of other libraries.
    ValueError
        For columns of one name, and frames without rows or columns.

    Examples
    --------
    >>> import pandas as pd
    >>> table = as_table(pd.DataFrame({"age": [31, 45], "city": pd.Categorical(["Rome", "Oslo"])}))
    >>> table.named
    "'city' (category)"
    >>> table.in_original_form(table.coded() + [[1.5, 0]]).to_dict("list")
    {'age': [32.5, 46.5], 'city': ['Rome', 'Oslo']}
    """
    if isinstance(X, Table):
        return X
    columns = read_frame(X)
    if columns is None:
        return None
    require_own_names([column.name for column in columns])
    kind = PandasTable if hasattr(X, "iloc") else PolarsTable
    read_columns = [_checked(column) for column in columns]
    numbers = [np.full(len(X), np.nan) if found is None else found for found, _ in read_columns]
    numbers = np.stack(numbers, 1) if numbers else np.zeros((len(X), 0))
    integers = {at: column.limits for at, column in enumerate(columns) if column.is_integer}
    return kind(X, numbers, tuple(reason for _, reason in read_columns), integers=integers)


def _checked(column):
    """Return a column's numbers, or None and why it stays as it is."""
    if not column.is_number:
        return column.values, column.dtype
    values = column.values
    if not np.isfinite(values).all():
        return None, MISSING
    if column.is_integer and len(values) and np.abs(values).max() > LARGEST_INTEGER:
        return None, TOO_LARGE
    return values, None


class PandasTable(Table):
    """A table that is a pandas.DataFrame."""

    def part(self, columns: np.ndarray) -> Any:
        """Return the columns at these positions, as they came."""
        return self.given.iloc[:, columns]

    def _assembled(self, X, rows):
        import pandas as pd

        frame, held, dtypes = self.given, self.held, self.given.dtypes.tolist()
        index = pd.RangeIndex(len(X)) if rows is None else frame.index[rows]
        free, by_dtype, blocks = np.flatnonzero(~self.fixed), {}, []
        for at in free.tolist():
            by_dtype.setdefault(_pandas_dtype(dtypes[at], X[:, at]), []).append(at)
        for dtype, columns in by_dtype.items():
            values = X[:, columns]
            if rows is not None:
                values = _rounded_inwards(values, self.numbers[np.ix_(rows, columns)], dtype)
            blocks.append(pd.DataFrame(values).astype(dtype))
        for at, column in self.categories.items():
            blocks.append(pd.Series(column.at(X[:, at]), dtype=dtypes[at]).to_frame())
        if held.any():
            blocks.append(frame.iloc[rows, np.flatnonzero(held)].reset_index(drop=True))
        if len(blocks) > 1:
            order = [at for columns in by_dtype.values() for at in columns]
            order += [*self.categories, *np.flatnonzero(held)]
            result = pd.concat(blocks, axis=1).iloc[:, np.argsort(order)]
        else:
            result = blocks[0]
        result.columns, result.index = frame.columns, index
        return result


def _pandas_dtype(dtype, values):
    """Return the dtype of a column's new values: its own, but floating where integers have become others."""
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        return dtype
    import pandas as pd

    if isinstance(dtype, pd.SparseDtype):
        dtype = dtype.subtype
    if not pd.api.types.is_integer_dtype(dtype) or _are_integers(values, dtype):
        return dtype
    if isinstance(dtype, np.dtype):
        return np.dtype(float)
    return pd.ArrowDtype(_arrow_double()) if isinstance(dtype, pd.ArrowDtype) else pd.Float64Dtype()


def _arrow_double():
    import pyarrow  # pyright: ignore[reportMissingImports]  (there where a column is of pandas' Arrow types)

    return pyarrow.float64()


def _are_integers(values, dtype) -> bool:
    """Return whether numbers are integers that a dtype (a NumPy one, or one with that name) holds."""
    plain = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    limits = np.iinfo(plain)
    return bool((values == np.rint(values)).all() and ((values >= limits.min) & (values <= limits.max)).all())


def _rounded_inwards(values, own, dtype):
    """Return values that a dtype holds, and not further away from the table's own than they were."""
    if not isinstance(dtype, np.dtype) or dtype.kind != "f" or dtype.itemsize >= 8:
        return values
    found = values.astype(dtype)
    further = np.abs(found.astype(float) - own) > np.abs(values - own)
    return np.where(further, np.nextafter(found, own.astype(dtype)), found)


class PolarsTable(Table):
    """A table that is a polars.DataFrame."""

    def _assembled(self, X, rows):
        import polars as pl

        columns = []
        for at in np.flatnonzero(~self.held).tolist():
            dtype, values = self.given.dtypes[at], X[:, at]
            if at in self.categories:
                found = self.categories[at].at(values).tolist()
                columns.append(pl.Series(self.names[at], found, dtype, strict=False))
                continue
            if dtype == pl.Float32 and rows is not None:
                values = _rounded_inwards(values, self.numbers[rows, at], np.dtype(np.float32))
            found = pl.Series(self.names[at], values)
            if not dtype.is_integer():
                columns.append(found.cast(dtype))
                continue
            whole = found.cast(dtype, strict=False) if (values == np.rint(values)).all() else None
            columns.append(found if whole is None or whole.null_count() else whole)
        if rows is None:
            return pl.DataFrame(columns)
        return self.given[np.asarray(rows)].with_columns(columns)


def require_free(table: Table) -> None:
    """Raise ValueError for a table of which attacks may change no column."""
    if table.held.all():
        raise ValueError(
            f"attacks may change no column of X: {table.named}; cast columns of numbers to float, and leave out "
            "rows with missing values, or fill them"
        )


def warn_of_fixed(table: Table) -> None:
    """Say which columns stay as they are, if any does, and why."""
    if table.held.any():
        warnings.warn(
            f"attacks leave these columns of X as they are: {table.named}. They change columns of numbers",
            UserWarning,
            stacklevel=3,
        )


def check_rows(X: Any) -> None:
    """Raise TypeError for what is neither an array nor a frame, with advice."""
    require_regular("X", X)
    if np.iscomplexobj(X):
        raise TypeError("X must be an array of real numbers, got complex numbers; write X.real or abs(X)")
    if isinstance(X, str | bytes | dict | set) or X is None:
        raise TypeError(f"X must be an array (n, ...) or a data frame, got {brief(X)}")


def fields_of(attack: Any) -> set[str]:
    """Return the names of an attack's settings, if it is a dataclass, and otherwise none."""
    named = dataclasses.is_dataclass(attack) and not isinstance(attack, type)
    return {field.name for field in dataclasses.fields(attack)} if named else set()
