"""What the estimators answer: predictions in the dtype of the inputs, and finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import is_finite
from .inputs import INTEGERS


def as_answer(values: np.ndarray, X: np.ndarray, what: str = "scores") -> np.ndarray:
    """Return finite scores or features in the inputs' dtype, or in double precision where these are integers."""
    with np.errstate(over="ignore"):
        values = values.astype(X.dtype if X.dtype.kind == "f" else np.float64, copy=False)
    return require_finite_answers(values, what)


def require_finite_answers(values: np.ndarray, what: str = "scores") -> np.ndarray:
    """Return scores or features (n, ...), or raise ValueError: what is not finite is no answer."""
    if not is_finite(values):
        lost = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        said = "NaN" if np.isnan(values).any() else "infinite"
        raise ValueError(
            f"the {what} of {lost.sum()} of {len(values)} inputs are {said} in {values.dtype} (the "
            f"first: row {lost.argmax()}), so there is no answer to them: inputs or targets of training are too "
            "large for it, or weights are not finite. Scale the data"
        )
    return values


def kept_dtypes(X: Any) -> list:
    """Return the dtypes that inputs may have; the first is that of what has another one."""
    floating = [np.float64, np.float32]
    if isinstance(X, list | tuple):
        kinds = {np.asarray(X).dtype.kind}
    else:
        # a frame's columns: pandas' dtypes have a kind, those of polars say it by a method
        dtypes = [X.dtype] if hasattr(X, "dtype") else getattr(X, "dtypes", [None])
        kinds = {getattr(d, "kind", "i" if getattr(d, "is_integer", bool)() else None) for d in dtypes}
    return [np.int64, *INTEGERS, *floating] if kinds and kinds <= {"i", "u"} else floating
