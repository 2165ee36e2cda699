"""How a fitted estimator is read: as a differentiable function, or as a black box."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from textwrap import shorten
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_array

from .._validation import require_numbers
from ..execution.loops import without_numbers
from ..sklearn_models.conversion import model_on
from ..sklearn_models.guard import compare
from ..sklearn_models.registry import DifferentiableEstimator
from ..sklearn_models.remembered_rows import unwrap
from ..tables.frames import Table, require_free
from .black_box import BlackBox
from .refusals import explained, refusal

# On which an estimator's scores are looked at before it is attacked.
LOOKED_AT = 32


class Reading(NamedTuple):
    """An estimator as it can be attacked.

    Attributes
    ----------
    X : float array (n, ...)
        Numbers like those that the model takes.
    table : Table or None
        The data frame that they stand for, or an array of which some columns are fixed.
    model : callable pytree
    no_gradient_because : str or None
    box : BlackBox or None
        What the model asks, where it has no gradients.
    """

    X: np.ndarray
    table: Table | None
    model: Callable
    no_gradient_because: str | None = None
    box: BlackBox | None = None


def through_scikit_learn(estimator: Any, X: Any, table: Table | None, categories: tuple = ()) -> Reading:
    """Read an estimator as a differentiable function of X, or of a table of it, or else as a black box.

    ``categories`` are the columns whose categories may move, as in ``Box.categories``.
    """
    if table is None:
        require_numbers("X", X)
        # scikit-learn's stubs know a name of one dtype alone
        options: Any = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan"}
        checked = check_array(X, allow_nd=True, input_name="X", estimator=estimator, **options)
        if checked.ndim == 2:
            _check_width(estimator, checked.shape[1])
        missing = np.isnan(checked)
        if missing.any() or checked.ndim != 2:
            # whether it takes missing values, or images, an estimator knows best
            estimator.predict(X if missing.any() else X[:1])
        flat, lost = (values.reshape(len(checked), -1) for values in (checked, missing))
        flat = flat.astype(float, copy=False)
        # as in frames, whose columns with missing values stay as they are
        known = Table(flat, flat, tuple("missing values" if any_lost else None for any_lost in lost.any(0)))
    elif not len(table.numbers):
        raise ValueError(f"X has no rows (shape {np.shape(X)}) while a minimum of 1 is required")
    else:
        known, checked = table, table.numbers
    try:
        if checked.ndim == 2:
            from ..tables.columns import encoded_columns

            known = known.holding(encoded_columns(estimator, known))
        if categories:
            from ..tables.categories import with_categories

            known = with_categories(known, estimator, categories)
        table = _needed(known)
        model = own_arrays(_model_of(estimator, checked, table))
    except Exception as error:
        # whatever scikit-learn itself says of these columns, types and values, it says here
        if (refused := refusal(estimator, X)) is not None:
            raise explained(estimator, X, refused) from error
        if not isinstance(error, TypeError):
            raise
        if not is_classifier(estimator):
            error.add_note("Only classifiers are attacked as black boxes.")
            raise
        table = known.holding(_unmovable(estimator, known))
        require_free(table)
        box = _black_box(estimator, table, checked)
        table = _needed(table)
        return Reading(checked if table is None else table.coded(), table, box.model, str(error), box)
    if table is not None:
        require_free(table)
    return Reading(checked if table is None else table.coded(), table, model)


def _needed(table) -> Table | None:
    """Return a table that has names or fixed columns, and None in place of one that is a mere array."""
    return table if table.has_names or table.fixed.any() else None


def _check_width(estimator, width) -> None:
    wanted = getattr(estimator, "n_features_in_", None)
    if wanted not in (None, width):
        raise ValueError(f"X has {width} features, but {type(estimator).__name__} was fitted on {wanted}")


def _looked_at(n) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int))


def _moved(X, columns) -> np.ndarray:
    """Return rows (m, d) with other values in some columns, well inside of a usual attack's reach."""
    moved = X.copy()
    moved[:, columns] += 0.0123 * np.where(np.ptp(X, 0) > 0, np.ptp(X, 0), 1)[columns]
    return moved


def _with_moved(table) -> np.ndarray:
    """Return some of a table's coded rows, and the same with other values in what may change."""
    X = table.coded()[_looked_at(len(table.numbers))]
    moved = _moved(X, ~table.fixed)
    for at, column in table.categories.items():
        moved[:, at] = (X[:, at] + np.arange(1, len(X) + 1)) % column.n_known
    return np.concatenate([X, moved])


def _unmovable(estimator, table) -> dict[int, str]:
    """Return the columns of which the estimator refuses values not seen in training, with the reasons."""
    X, free = table.coded()[_looked_at(len(table.numbers))], np.flatnonzero(~table.fixed)

    def refusal(columns):
        try:
            estimator.predict(table.decoded(_moved(X, columns)))
        except Exception as error:  # whatever an estimator may raise; the user hears of it
            return error

    whole = refusal(free)
    if whole is None:
        return {}
    found = {int(at): error for at in free if (error := refusal([at])) is not None}
    if not found:
        raise whole
    return {
        at: f"other values are refused: {shorten(str(error), 90, placeholder=' ...')}"
        for at, error in found.items()
    }


def _black_box(estimator, table, checked):
    X = _with_moved(table)
    if table.has_names or checked.ndim == 2:
        return BlackBox(estimator, table.decoded, X)
    return BlackBox(estimator, lambda x: x.reshape(-1, *checked.shape[1:]), X)


def _model_of(estimator, X, table):
    """Return the estimator's differentiable form, of arrays X or of a table's coded rows."""
    if table is None:
        return model_on(X if X.ndim == 2 else None, estimator)
    if not table.fixed.any() and _in_order(estimator, table):
        _check_width(estimator, len(table.names))
        return model_on(None, estimator)
    from ..tables.columns import table_model

    model = table_model(estimator, table)
    if isinstance(last_step(estimator), DifferentiableEstimator):
        # as accurate as its own precision, and its answers are its highest scores
        return model
    compare(estimator, model, _with_moved(table), table.decoded)
    return model


def _in_order(estimator, table) -> bool:
    known = getattr(estimator, "feature_names_in_", None)
    return known is None or list(known) == table.names


@lru_cache(maxsize=256)
def scores_of(form: Any) -> Any:
    """Return what a model of this form gives, without computing it; found once for all calls with it."""
    return jax.eval_shape(lambda m, x: m(x), *without_numbers(form))


def last_step(estimator: Any) -> Any:
    """Return the last step of a Pipeline, unwrapped, and of something else itself."""
    return unwrap(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator


def own_arrays(model: Any) -> Any:
    """Return the model with copies of its NumPy arrays: JAX keeps in mind in which precision it has traced one."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, model)
