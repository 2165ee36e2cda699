"""Pipelines on tables as differentiable functions: of the columns of numbers, with the others as they stand.

What a transformer makes of fixed columns alone (categories as one-hot columns, text as counts) is known before any
attack: it is the transformer's own answer for each row, and is looked up by the row's number. So every encoder
with every option is right by construction, and gradients pass to the columns that may change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jax.tree_util import Partial
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline

from ..sklearn_models.arrays import namespace
from ..sklearn_models.compositions import joined
from ..sklearn_models.conversion import model_on
from ..sklearn_models.ensembles import ENSEMBLES
from ..sklearn_models.remembered_rows import members_of, unwrap
from ..sklearn_models.transformers import chosen
from .frames import Table

# Bytes that a table of known answers may take.
LARGEST_BLOCK = 2**28
# Rows times combinations of their categories that are asked for beforehand.
MOST_COMBINATIONS = 2**17


def encoded_columns(estimator: Any, table: Table) -> dict[int, str]:
    """Return positions of the columns that the estimator reads as categories, with the reason.

    Of a Pipeline, ColumnTransformer or FeatureUnion those that an encoder takes; a change by less than one would
    make unknown categories of them.
    """
    found = _encoded(estimator, table, np.arange(len(table.reasons)))
    return {int(at): f"categories of {type(step).__name__}" for at, step, _ in found}


def known_categories(estimator: Any, table: Table) -> dict[int, list[tuple[str, Any]]]:
    """Return the categories that encoders know, with the encoders' names, by position of the column."""
    known: dict[int, list] = {}
    for at, step, categories in _encoded(estimator, table, np.arange(len(table.reasons))):
        if categories is not None:
            known.setdefault(int(at), []).append((type(step).__name__, categories))
    return known


def refusing_encoders(estimator: Any, table: Table) -> dict[int, tuple[str, Any]]:
    """Return by position of a column the first encoder that refuses other categories, and those that it knows."""
    found: dict[int, tuple[str, Any]] = {}
    for at, step, known in _encoded(estimator, table, np.arange(len(table.reasons))):
        if getattr(step, "handle_unknown", None) == "error" and known is not None:
            found.setdefault(int(at), (type(step).__name__, known))
    return found


def _encoded(step, table, columns):
    step = unwrap(step)
    if isinstance(step, str) or step is None:
        return []
    if hasattr(step, "categories_"):
        return [(at, step, known) for at, known in zip(columns, step.categories_, strict=True)]
    if getattr(step, "is_categorical_", None) is not None and len(step.is_categorical_) == len(columns):
        columns = columns[step.is_categorical_]
        # of gradient boosting, which hides its encoder
        first = getattr(step, "_preprocessor", None)
        encoder = getattr(first, "named_transformers_", {}).get("encoder")
        known = getattr(encoder, "categories_", [None] * len(columns))
        return [(at, step, each) for at, each in zip(columns, known, strict=True)]
    if isinstance(step, Pipeline):
        # an imputer of complete columns changes nothing
        first = [s for _, s in step.steps if not (_passes(s) or isinstance(s, SimpleImputer))][:1]
        inner = [(s, columns) for s in first]
    elif isinstance(step, ColumnTransformer):
        inner = [(s, at) for _, s, at in _parts(step, table, columns)]
    elif type(step).__name__ in ENSEMBLES:
        inner = [(s, columns if at is None else columns[at]) for s, at in members_of(step)]
    else:
        inner = [(s, columns) for _, s in getattr(step, "transformer_list", ()) if hasattr(s, "transform")]
    return [entry for s, at in inner for entry in _encoded(s, table, at)]


def table_model(estimator: Any, table: Table) -> Callable:
    """Return the estimator's scores as a function of :meth:`~ntkrobust_sk.tables.Table.coded` rows, a pytree.

    Raises
    ------
    TypeError
        If a part of the estimator that sees columns of numbers has no differentiable form.
    """
    return _form(estimator, table, np.arange(len(table.reasons)))


def _form(step, table, columns):
    """Return what the step makes of the table's columns, of rows of the whole table."""
    step = unwrap(step)
    fixed = table.fixed[columns]
    if _passes(step):
        return _values(table, columns)
    if fixed.all() and hasattr(step, "transform") and len(columns):
        if _moving(table, columns):
            return _by_combination(step, table, columns)
        return _looked_up(table, columns[0], step.transform(table.part(columns)))
    if isinstance(step, Pipeline):
        return _pipeline(step, table, columns)
    if isinstance(step, ColumnTransformer):
        return _side_by_side(step, table, columns)
    if fixed.any() and isinstance(step, FeatureUnion):
        weights = step.transformer_weights or {}
        kept = [(weights.get(name, 1.0), s) for name, s in step.transformer_list if s != "drop"]
        return _joined([(weight, _form(s, table, columns)) for weight, s in kept])
    if type(step).__name__ in ENSEMBLES and (fixed.any() or table.has_names):
        return ENSEMBLES[type(step).__name__](step, partial(_member, table, columns))
    if fixed.any() and isinstance(step, SimpleImputer):
        return _imputed(step, table, columns)
    return Partial(_after, _without_door(step), _values(table, columns))


def _member(table, columns, estimator, own=None):
    columns = columns if own is None else columns[own]
    return _values(table, columns) if estimator is None else _form(estimator, table, columns)


def _without_door(step):
    """Return what a step computes, of arrays of NumPy too, since it is compared with its own answers there."""
    return model_on(None, step).args[0]


def _pipeline(estimator, table, columns):
    steps = [(name, step) for name, step in estimator.steps if not _passes(step)]
    if not steps:
        return _values(table, columns)
    (_, first), rest = steps[0], steps[1:]
    form = _form(first, table, columns)
    if not rest:
        return form
    return Partial(_after, _without_door(rest[0][1] if len(rest) == 1 else Pipeline(rest)), form)


def _side_by_side(estimator, table, columns):
    parts = list(_parts(estimator, table, columns))
    blocks, weights = [], estimator.transformer_weights or {}
    known = [table.fixed[at].all() and not _moving(table, at) for _, _, at in parts]
    needs_own = any(known)
    own = _dense(estimator.transform(table.part(columns))) if needs_own else np.zeros((0, 0))
    for (name, step, at), is_known in zip(parts, known, strict=True):
        if is_known:
            # weights included
            blocks.append((1.0, _looked_up(table, at[0], own[:, estimator.output_indices_[name]])))
        else:
            weight = weights.get(name)
            blocks.append((1.0 if weight is None else float(weight), _form(step, table, at)))
    return _joined(blocks)


def _parts(estimator, table, columns):
    """Yield names, transformers and the positions of their columns in the table."""
    known, names = getattr(estimator, "feature_names_in_", None), [table.names[at] for at in columns]
    for name, step, _ in estimator.transformers_:
        index = np.asarray(estimator._transformer_to_input_indices[name], int)
        if len(index) and not (isinstance(step, str) and step == "drop"):
            if known is not None and table.has_names:
                index = [names.index(known[at]) for at in index]
            yield name, step, columns[index]


def _imputed(step, table, columns):
    """Return complete columns as they are, between what the imputer makes of those with missing values."""
    own = _dense(step.transform(table.part(columns)))
    # columns without any value in training are left out
    kept = np.array([at for at, column in enumerate(columns) if step.keep_empty_features or _is_known(step, at)])
    free = np.flatnonzero(~table.fixed[columns[kept]])
    _require_held(table, columns)
    lookup = _looked_up(table, columns[table.fixed[columns]][0], own)
    return Partial(_put, lookup, free, columns[kept][free])


def _is_known(imputer, at):
    value = imputer.statistics_[at]
    return value == value and value is not None


def _values(table, columns):
    """Return the columns' numbers."""
    fixed = table.fixed[columns]
    if not fixed.any():
        return Partial(chosen, columns)
    _require_held(table, columns)
    numbers = table.numbers[:, columns]
    if not np.isfinite(numbers).all():
        raise TypeError("columns without numbers, or with missing values, reach a step that has no form for them")
    lookup = _looked_up(table, columns[fixed][0], numbers)
    return Partial(_put, lookup, np.flatnonzero(~fixed), columns[~fixed])


def _moving(table, columns) -> list[int]:
    """Return those of the columns whose categories may change."""
    return [int(at) for at in columns if int(at) in table.categories]


def _require_held(table, columns) -> None:
    if moving := _moving(table, columns):
        raise TypeError(f"categories of column {table.names[moving[0]]!r} reach a step that has no form for them")


def _by_combination(step, table, columns):
    """Return what a step makes of columns, looked up by row and by the combination of the codes of categories."""
    moving = _moving(table, columns)
    held = [at for at in columns if at not in moving]
    sizes = [len(table.categories[at].values) for at in moving]
    n_rows, n_combinations = len(table.numbers) if held else 1, math.prod(sizes)
    if n_rows * n_combinations > MOST_COMBINATIONS:
        raise TypeError(f"{n_combinations:,} combinations of categories for {n_rows:,} rows are too many")
    coded = np.repeat(table.coded()[:n_rows], n_combinations, axis=0)
    grid = np.stack(np.unravel_index(np.arange(n_combinations), sizes), 1)
    coded[:, moving] = np.tile(grid, (n_rows, 1))
    block = step.transform(replace(table, given=table.decoded(coded)).part(columns))
    strides = np.array([math.prod(sizes[at + 1 :]) for at in range(len(sizes))])
    places = [*held[:1], *moving]
    steps = [*[n_combinations][: len(held)], *strides]
    return Partial(_combination_of, _padded(block), np.array(places), np.array(steps, float))


def _combination_of(block, places, steps, x):
    xp = namespace(x)
    at = xp.rint(x[:, places]) @ xp.asarray(steps, x.dtype)
    return xp.asarray(block, x.dtype)[xp.rint(at).astype(int)]


def _looked_up(table, column, block):
    return Partial(_row_of, _padded(block), np.int32(column))


def _padded(block) -> np.ndarray:
    """Return a table of answers, with rows that nobody looks up."""
    block = _dense(block)
    # by powers of two, so that tables of other lengths seldom compile anew
    rows = 1 << (len(block) - 1).bit_length()
    if rows * block.shape[1] * 8 > LARGEST_BLOCK:
        raise TypeError(f"fixed columns become {block.shape[1]:,} features of {len(block):,} rows, too many")
    padded = np.zeros((rows, block.shape[1]))
    padded[: len(block)] = block
    return padded


def _row_of(block, column, x):
    xp = namespace(x)
    return xp.asarray(block, x.dtype)[xp.rint(x[:, column]).astype(int)]


def _put(lookup, places, columns, x):
    block = lookup(x)
    if isinstance(x, np.ndarray):
        block[:, places] = x[:, columns]
        return block
    return block.at[:, places].set(x[:, columns])


def _after(model, before, x):
    return model(before(x))


def _joined(blocks):
    return Partial(joined, [form for _, form in blocks], [None] * len(blocks), [weight for weight, _ in blocks])


def _dense(found) -> np.ndarray:
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    try:
        return found.astype(np.float64).reshape(len(found), -1)
    except (TypeError, ValueError):
        raise TypeError("columns that are no numbers reach a step that has no form for them") from None


def _passes(step) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")
