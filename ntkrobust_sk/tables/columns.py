"""Pipelines on tables as differentiable functions: of the columns of numbers, with the others as they stand.

What a transformer makes of fixed columns alone (categories as one-hot columns, text as counts) is known before any
attack: it is the transformer's own answer for each row, and is looked up by the row's number. So every encoder
with every option is right by construction, and gradients pass to the columns that may change.
"""

from __future__ import annotations

from collections.abc import Callable
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


def encoded_columns(estimator: Any, table: Table) -> dict[int, str]:
    """Return positions of the columns that the estimator reads as categories, with the reason.

    Of a Pipeline, ColumnTransformer or FeatureUnion those that an encoder takes; a change by less than one would
    make unknown categories of them.
    """
    found = _encoded(estimator, table, np.arange(len(table.reasons)))
    return {int(at): f"categories of {type(step).__name__}" for at, step in found}


def _encoded(step, table, columns):
    step = unwrap(step)
    if isinstance(step, str) or step is None:
        return []
    if hasattr(step, "categories_"):
        return [(at, step) for at in columns]
    if getattr(step, "is_categorical_", None) is not None and len(step.is_categorical_) == len(columns):
        return [(at, step) for at in columns[step.is_categorical_]]
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
    needs_own = any(table.fixed[at].all() for _, _, at in parts)
    own = _dense(estimator.transform(table.part(columns))) if needs_own else np.zeros((0, 0))
    for name, step, at in parts:
        if table.fixed[at].all():
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
    numbers = table.numbers[:, columns]
    if not np.isfinite(numbers).all():
        raise TypeError("columns without numbers, or with missing values, reach a step that has no form for them")
    lookup = _looked_up(table, columns[fixed][0], numbers)
    return Partial(_put, lookup, np.flatnonzero(~fixed), columns[~fixed])


def _looked_up(table, column, block):
    block = _dense(block)
    # by powers of two, so that tables of other lengths seldom compile anew
    rows = 1 << (len(block) - 1).bit_length()
    if rows * block.shape[1] * 8 > LARGEST_BLOCK:
        raise TypeError(f"fixed columns become {block.shape[1]:,} features of {len(block):,} rows, too many")
    padded = np.zeros((rows, block.shape[1]))
    padded[: len(block)] = block
    return Partial(_row_of, padded, np.int32(column))


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
