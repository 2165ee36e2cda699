"""Why an estimator refuses rows: which row and which column of X it is, or that an attack has made them so.

What a step deep inside of a pipeline says counts the columns that this step sees. So the estimator itself is
asked, about fewer rows and with single values replaced, until it is clear what it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import validate_data

from .._validation import brief
from ..sklearn_models.kernel_machines import has_labels_everywhere
from ..tables.frames import Table, as_table

# Rows that are asked about one by one, in search of one that is taken.
TRIED = 16


def explained(estimator: Any, X: Any, error: Exception) -> Exception:
    """Return an error that names the row and the column of X that an estimator refuses, or the error itself."""
    if not isinstance(error, ValueError) or np.ndim(X) != 2 or not len(X):
        return error
    table = as_table(X)
    found = None if table is None else _unknown_category(estimator, table)
    found = found or _refused_value(estimator, np.asarray(X) if table is None else X)
    return (
        ValueError(f"{type(estimator).__name__} refuses X: {found}. It says: {_first_line(error)}")
        if found
        else error
    )


def of_an_attack(estimator: Any, X: Any, error: Exception, X_adv: Any = None) -> Exception:
    """Return an error about adversarial examples that says whether an attack has made what is refused."""
    if not isinstance(error, ValueError) or (X_adv is not None and refusal(estimator, X_adv) is None):
        return error
    if (own := refusal(estimator, X)) is not None:
        return explained(estimator, X, own)
    name, column = type(estimator).__name__, None if X_adv is None else _moved_out(estimator, X, X_adv)
    where = "" if column is None else f", in column {column!r}"
    ways = "Box.from_data(X)" if column is None else f"Box.from_data(X), or {{{column!r}: (low, high)}}"
    return ValueError(
        f"{name} takes X, but refuses what the attack has made of it{where}: {_first_line(error)}. Give "
        f"the attack bounds within which {name} takes all values, such as bounds={ways}"
    )


@contextmanager
def told_of_the_attack(estimator: Any, X: Any, X_adv: Any) -> Iterator[None]:
    """Say of errors about adversarial examples of X whether an attack has made what is refused."""
    try:
        yield
    except ValueError as error:
        raise of_an_attack(estimator, X, error, X_adv) from error


def refusal(estimator: Any, X: Any) -> Exception | None:
    """Return the error that an estimator raises at rows, or one about answers that are not finite, if any."""
    try:
        found = np.asarray(estimator.predict(X))
    except Exception as error:  # whatever a stranger's estimator may raise; it is told to the user
        return error
    lost = found.dtype.kind == "f" and not np.isfinite(found).all()
    return ValueError(f"{type(estimator).__name__}.predict answers numbers that are not finite") if lost else None


def takes_what_is_finite(estimator: Any, X: Any) -> bool:
    """Tell, without asking for its answers, that a support vector machine has one to each of these rows.

    Its answers take as long as an attack, and it has a label wherever its inputs are finite. What is not known to
    be so has to be asked, with :func:`refusal`.

    Examples
    --------
    >>> from sklearn.svm import SVC, SVR
    >>> X, y = np.eye(2), [0, 1]
    >>> [takes_what_is_finite(machine().fit(X, y), X) for machine in (SVC, SVR)]
    [True, False]
    >>> takes_what_is_finite(SVC().fit(X, y), np.full((1, 2), np.inf))
    False
    """
    last = estimator.steps[-1][1] if type(estimator) is Pipeline else estimator
    if not has_labels_everywhere(last):
        return False
    try:
        given = estimator[:-1].transform(X) if type(estimator) is Pipeline and len(estimator) > 1 else X
        validate_data(last, given, reset=False)
    except (TypeError, ValueError):
        return False
    return True


def _unknown_category(estimator, table: Table) -> str | None:
    """Return which value of which column an encoder does not know."""
    # these import what scikit-learn has for tables
    from ..tables.categories import own_values, plain_values
    from ..tables.columns import refusing_encoders

    try:
        encoders = refusing_encoders(estimator, table)
    except ValueError:  # a column that a step looks for is missing, which its own error says
        return None
    for at, (step, known) in encoders.items():
        known, own = plain_values(known), own_values(table, at)
        if unknown := [row for row, value in enumerate(own) if value not in set(known)]:
            return (
                f"column {table.names[at]!r} holds {brief(own[unknown[0]])} in row {unknown[0]}"
                f"{_and_more(len(unknown))}, which is none of the categories that {step} knows: "
                f"{', '.join(map(repr, known[:20]))}"
            )
    return None


def _refused_value(estimator, X) -> str | None:
    """Return which row is refused, and for its value in which column, if some rows are taken."""
    tried = np.unique(np.linspace(0, len(X) - 1, min(len(X), TRIED)).astype(int))
    taken = next((row for row in tried if refusal(estimator, _rows(X, [row])) is None), None)
    if taken is None:
        return None
    least, most = 0, len(X)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if refusal(estimator, _rows(X, range(middle))) else (middle, most)
    named = hasattr(X, "columns")
    for at in range(X.shape[1]):
        if refusal(estimator, _with_column_of(_rows(X, [least]), _rows(X, [taken]), at)) is None:
            value = next(iter(_rows(X, [least])[X.columns[at]])) if named else X[least, at]
            column = f"column {X.columns[at]!r}" if named else f"feature {at}"
            return (
                f"{column} holds {brief(value.item() if isinstance(value, np.generic) else value)} in row {least}"
            )
    return f"row {least}"


def _moved_out(estimator, X, X_adv) -> Any:
    """Return the name of the first column of a frame whose new values alone are refused, if there is one."""
    columns = X.columns if hasattr(X, "columns") and len(X) == len(X_adv) else ()
    refused = (
        name for at, name in enumerate(columns) if refusal(estimator, _with_column_of(X, X_adv, at)) is not None
    )
    return next(refused, None)


def _first_line(error) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _and_more(count) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _rows(X, rows):
    if hasattr(X, "iloc"):
        return X.iloc[list(rows)]
    return X[list(rows)] if hasattr(X, "columns") else np.asarray(X)[list(rows)]


def _with_column_of(X, other, at):
    """Return rows with one column of others, as many."""
    if hasattr(X, "iloc"):
        found = X.copy()
        found[X.columns[at]] = other.iloc[:, at].array
        return found
    if hasattr(X, "columns"):
        return X.with_columns(other.to_series(at))
    found = X.copy()
    found[:, at] = np.asarray(other)[:, at]
    return found
