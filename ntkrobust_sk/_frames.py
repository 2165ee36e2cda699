"""Data frames of pandas and polars, read column by column; neither library is imported here unless it is there."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

# Above it, neighbouring integers are one number in double precision.
LARGEST_INTEGER = 2**53


class Column(NamedTuple):
    """A column of a data frame.

    Attributes
    ----------
    name : hashable
    values : float array (n,) or None
        Numbers, NaN where they are missing; of booleans 0 and 1; None of anything else, and of booleans of which
        some are missing.
    dtype : str
    is_number : bool
        Whether these are numbers: booleans, dates and categories are none.
    is_integer : bool
    """

    name: Any
    values: np.ndarray | None
    dtype: str
    is_number: bool
    is_integer: bool

    @property
    def limits(self) -> tuple[float, float]:
        """Return the least and the largest of the integers that its dtype and double precision hold.

        >>> Column("n", None, "uint8", True, True).limits
        (0.0, 255.0)
        """
        unsigned, bits = re.findall(r"(u?)int(\d+)", self.dtype.lower())[0]
        most = 2 ** (int(bits) - (not unsigned)) - 1
        least = 0 if unsigned else -most - 1
        return float(max(least, -LARGEST_INTEGER)), float(min(most, LARGEST_INTEGER))


def read_frame(X: Any) -> list[Column] | None:
    """Return the columns of a data frame of pandas or polars, and None of what is none.

    Raises
    ------
    TypeError
        For a polars LazyFrame, and frames of other libraries.

    Examples
    --------
    >>> import pandas as pd
    >>> [column.is_number for column in read_frame(pd.DataFrame({"age": [31, 45], "city": ["Rome", "Oslo"]}))]
    [True, False]
    """
    pandas, polars = (sys.modules.get(name) for name in ("pandas", "polars"))
    if pandas is not None and isinstance(X, pandas.DataFrame):
        return [_pandas_column(name, X.iloc[:, at]) for at, name in enumerate(X.columns.tolist())]
    if polars is not None and isinstance(X, polars.DataFrame):
        return [_polars_column(column) for column in X.iter_columns()]
    if hasattr(X, "collect_schema") or hasattr(X, "__dataframe__") or hasattr(X, "column_names"):
        raise TypeError(
            f"X must be an array or a data frame of pandas or polars, got {type(X).__module__}."
            f"{type(X).__name__}; write X.to_pandas() (or, of a LazyFrame, X.collect())"
        )
    return None


def require_own_names(names: list) -> None:
    """Raise ValueError for columns of one name."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"X has several columns named {twice[0]!r}; give each column a name of its own")


def _pandas_column(name, column) -> Column:
    import pandas as pd

    types, dtype = pd.api.types, column.dtype
    if types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        numbers = None if column.isna().any() else column.to_numpy(dtype=float)
        return Column(name, numbers, str(dtype), False, False)
    if not types.is_numeric_dtype(dtype) or types.is_complex_dtype(dtype):
        return Column(name, None, str(dtype), False, False)
    numbers = column.to_numpy(dtype=float, na_value=np.nan)
    return Column(name, numbers, str(dtype), True, bool(types.is_integer_dtype(dtype)))


def _polars_column(column) -> Column:
    import polars as pl

    dtype = column.dtype
    if dtype == pl.Boolean and not column.null_count():
        return Column(column.name, column.cast(pl.Float64).to_numpy(), "bool", False, False)
    if not dtype.is_numeric():
        return Column(column.name, None, str(dtype), False, False)
    return Column(column.name, column.cast(pl.Float64).to_numpy(), str(dtype), True, bool(dtype.is_integer()))
