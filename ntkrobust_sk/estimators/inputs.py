"""Inputs as rows or images, labels and weights, as the estimators take them, and answers as they give them."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import _check_sample_weight

from .._validation import array, brief, is_finite, positive_tuple, require_resolution, warn_of_lost_columns
from ..execution.precision import DIGITS
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..networks.precision import precision_of
from ..networks.wrappers import is_normalized

# What reaches networks as it is, besides floating numbers.
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


def require_one_kind(y: np.ndarray) -> None:
    """Raise ValueError for labels that have no order: missing ones, and text among numbers.

    >>> require_one_kind(np.array(["Rome", None], dtype=object))
    Traceback (most recent call last):
    ValueError: Unknown label type: y must hold labels of one kind, text or numbers, got None among them (the...
    """
    if y.dtype.kind != "O":
        return
    labels = y.tolist()
    is_text = [isinstance(label, str) for label in labels]
    odd = [label is None or text != is_text[0] for label, text in zip(labels, is_text, strict=True)]
    if any(odd):
        at = odd.index(True)
        raise ValueError(
            "Unknown label type: y must hold labels of one kind, text or numbers, got "
            f"{brief(labels[at])} among them (the first: row {at}); write a label for what is missing, or "
            "leave these rows out"
        )


def require_resolved(X: np.ndarray, model: Model) -> None:
    """Raise or warn where what tells rows of X (n, ...) apart is lost in a network's dtype, or in its products."""
    require_resolution("X", X, params_dtype(model.variables.params))
    precision = precision_of(model.network)
    if precision is not None and not is_normalized(model.network):
        warn_of_lost_columns("X", X, DIGITS[precision], f"products in {precision}")


def require_finite_targets(y: ArrayLike) -> None:
    """Raise ValueError for targets that hold NaN or infinity."""
    if not np.isfinite(np.asarray(y, dtype=float)).all():
        raise ValueError("y must hold finite targets, but has NaN or infinity")


def checked_weights(sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray:
    """Return weights (n,) of the samples X (n, ...), each finite and >= 0; None is one for each."""
    if sample_weight is not None:
        sample_weight = array("sample_weight", sample_weight, ndim=1)
    weights = _check_sample_weight(sample_weight, X.reshape(len(X), -1), ensure_non_negative=True)
    if not weights.any():
        raise ValueError("sample_weight must hold at least one non-zero weight, all are zero")
    return weights


def as_rows(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Return flat rows, and the shape of the images that they were, or None."""
    if isinstance(X, np.ndarray | jax.Array) and X.ndim > 2:
        X = np.asarray(X)
        return X.reshape(len(X), math.prod(X.shape[1:])), X.shape[1:]
    return X, None


def input_shape(
    given: Any, image_shape: tuple[int, ...] | None, known_shape: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    """Return the shape of one input, from the parameter, the images, the kernel's source or the row length."""
    shape = image_shape or known_shape if given is None else positive_tuple("input_shape", given)
    if shape is None:
        return (n_features,)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"input_shape={shape} stands for {math.prod(shape)} features, but X has {n_features} for each sample"
        )
    if given is not None and image_shape is not None and shape != image_shape:
        raise ValueError(f"input_shape={shape}, but X holds images of shape {image_shape}")
    # a network that was fitted on rows may take them as images, but images of one shape are not those of another
    if known_shape is not None and len(known_shape) > 1 and shape != known_shape:
        raise ValueError(f"inputs are of shape {shape}, but the estimator takes images of shape {known_shape}")
    return shape


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
