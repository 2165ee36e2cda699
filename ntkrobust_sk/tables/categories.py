"""Columns of categories that attacks may move: which values a fitted estimator knows in them, and their codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._validation import brief
from ..attacks.boxes import Box
from .columns import known_categories
from .frames import Categories, Table


def with_categories(table: Table, estimator: Any, asked: tuple) -> Table:
    """Return a table of which these columns hold categories that may change.

    Parameters
    ----------
    table : Table
    estimator : fitted estimator
        Its encoders say which categories there are.
    asked : tuple of (int or str, tuple or None)
        As in ``Box.categories``.

    Raises
    ------
    ValueError
        For unknown columns; where neither an encoder, nor the dtype, nor ``asked`` says which categories there
        are; for categories that the encoder does not know.
    """
    columns = table.by_position(Box(categories=asked)).categories if asked else ()
    if not columns:
        return table
    if beyond := [at for at, _ in columns if at >= len(table.reasons)]:
        raise ValueError(f"categories must be columns of X, which has {len(table.reasons)}, got {beyond[0]}")
    encoders, found = known_categories(estimator, table), {}
    for at, wanted in columns:
        own = own_values(table, at)
        known = _known(table, at, wanted, encoders.get(at, []))
        values = (*known, *(value for value in dict.fromkeys(own) if value not in set(known)))
        position = {value: code for code, value in enumerate(values)}
        codes = np.array([position[value] for value in own], int)
        found[at] = Categories(values, len(known), codes)
    reasons = dict.fromkeys(found, "categories")
    return replace(table.holding(reasons), categories=found)


def _known(table, at, wanted, encoders) -> tuple:
    """Return the categories that a column may be moved to."""
    name, sources = table.names[at], [*encoders]
    if (declared := _declared(table, at)) is not None:
        sources.append(("its dtype", declared))
    if not sources:
        if wanted is None:
            raise ValueError(
                f"no encoder of the estimator knows the categories of column {name!r}: name them, as in "
                f"Box(categories={{{name!r}: [...]}}), or convert the column to a categorical dtype"
            )
        return wanted
    known = [value for value in plain_values(sources[0][1]) if value is not None]
    for _, others in sources[1:]:
        known = [value for value in known if value in set(plain_values(others))]
    if unknown := [value for value in wanted or () if value not in known]:
        raise ValueError(
            f"Box(categories=...): {brief(unknown[0])} is no category of column {name!r} that "
            f"{' and '.join(source for source, _ in sources)} knows: these are {', '.join(map(repr, known[:20]))}"
        )
    return tuple(known if wanted is None else wanted)


def plain_values(values) -> tuple:
    """Return values as Python has them, None for what is missing."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    return tuple(None if value is None or value != value else value for value in values)


def own_values(table, at) -> tuple:
    """Return what stands in a column, None for what is missing."""
    given = table.part(np.array([at]))
    if not table.has_names:
        return plain_values(given[:, 0])
    if hasattr(given, "iloc"):
        column = given.iloc[:, 0]
        return plain_values(column.astype(object).where(column.notna(), None))
    return plain_values(given.to_series(0).to_list())


def _declared(table, at):
    """Return the categories that a frame's column is declared to have, or None."""
    if not table.has_names:
        return None
    if hasattr(table.given, "iloc"):
        dtype = table.given.dtypes.iloc[at]
        return getattr(dtype, "categories", None) if str(dtype) == "category" else _booleans(str(dtype))
    dtype = table.given.dtypes[at]
    return getattr(dtype, "categories", None) if str(dtype).startswith("Enum") else _booleans(str(dtype).lower())


def _booleans(dtype):
    return (False, True) if dtype.startswith("bool") else None
