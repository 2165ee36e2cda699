"""Labels as positions among classes, and the weights of a score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, number, require_regular

# Relative difference below which a target is the true value itself: float32 does not tell them apart for long.
SAME = 1e-6


def encode_labels(y: ArrayLike, classes: np.ndarray, n_samples: int, name: str = "y") -> np.ndarray:
    """Return the positions of labels y (n,) in ``classes`` (C,), int32 (n,); messages call them by a name.

    Raises
    ------
    TypeError
        For a masked array, and for what is no array.
    ValueError
        For another number of labels than samples, and for labels that are not in ``classes``.

    Examples
    --------
    >>> encode_labels(["b", "a"], np.array(["a", "b"]), 2).tolist()
    [1, 0]
    """
    if isinstance(y, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must hold one label for each sample, got a masked array; leave masked samples out"
        )
    try:
        y = np.asarray(y)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold one label for each sample, got {brief(y)}: {error}") from None
    # one column of a data frame
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (n_samples,):
        raise ValueError(
            f"{name} must hold one label for each of the {n_samples} samples of X, got shape {y.shape}"
        )
    # not by sorting, which would take the strings "0", "1" for the numbers and fails on mixed types
    position = {label: i for i, label in enumerate(classes.tolist())}
    labels = y.tolist()
    if unseen := [label for label in dict.fromkeys(labels) if label not in position]:
        raise ValueError(f"{name} contains labels that were not seen in fit: {unseen[:5]}")
    return np.array([position[label] for label in labels], dtype=np.int32)


def encode_targets(targets: Any, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the positions (n,) of the classes that answers shall become, for labels of positions y (n,).

    Parameters
    ----------
    targets : array (n,) of labels, or one label for all
    y : int array (n,)
    classes : array (C,)

    Raises
    ------
    TypeError, ValueError
        As for :func:`encode_labels`; ValueError for a target that is its example's label.

    Examples
    --------
    >>> encode_targets("b", np.array([0, 2]), np.array(["a", "b", "c"])).tolist()
    [1, 1]
    >>> encode_targets(["b", "c"], np.array([0, 2]), np.array(["a", "b", "c"]))
    Traceback (most recent call last):
    ValueError: targets must not be the labels themselves, but 1 of 2 are (first: row 1, 'c'); leave such rows out
    """
    aims = encode_labels([targets] * len(y) if _is_one(targets) else targets, classes, len(y), "targets")
    _require_others(aims == y, classes[y])
    return aims


def target_values(targets: Any, like: np.ndarray) -> np.ndarray:
    """Return the values (n, T) that a regressor's answers shall become, of targets (n,), (n, T) or one number.

    Raises
    ------
    TypeError, ValueError
        For another shape than that of the true values ``like`` (n, T), for what is no finite number, and for a
        target that is its example's true value, to six digits.

    Examples
    --------
    >>> target_values(3, np.zeros((2, 1))).tolist()
    [[3.0], [3.0]]
    """
    found = array("targets", [targets] if _is_one(targets) else targets, finite=True)
    if _is_one(targets):
        found = np.full(like.shape, found[0], like.dtype)
    if len(found) != len(like) or found.size != like.size:
        raise ValueError(f"targets must hold one value for each of y, {like.shape}, got shape {found.shape}")
    found = found.reshape(like.shape).astype(like.dtype)
    near = np.abs(found - like) <= SAME * np.abs(like)
    _require_others(np.asarray(near).reshape(len(like), -1).min(1), like)
    return found


def _require_others(same: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError, naming the first row, if targets are the labels or values y (n, ...) where ``same``."""
    if same.any():
        first = int(np.argmax(same))
        raise ValueError(
            f"targets must not be the labels themselves, but {same.sum()} of {len(y)} are (first: row {first}, "
            f"{y[first].tolist() if y[first].size > 1 else y[first].item()!r}); leave such rows out"
        )


def example_radii(epsilon: Any, n: int) -> np.ndarray:
    """Return a radius for each of n examples, of an array (n,) or one number for all.

    Raises
    ------
    TypeError, ValueError
        For another number of them, and for what is no finite number >= 0.

    Examples
    --------
    >>> example_radii([0.1, -1], 2)
    Traceback (most recent call last):
    ValueError: epsilon must hold finite numbers >= 0 in units of the data, but row 1 is -1.0
    """
    if _is_one(epsilon):
        return np.full(n, number("epsilon", epsilon, low=0, unit="in units of the data"))
    found = array("epsilon", epsilon).astype(float)
    if found.shape != (n,):
        raise ValueError(
            f"epsilon must be one number, or one for each of the {n} samples of X, got shape {found.shape}"
        )
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        raise ValueError(
            f"epsilon must hold finite numbers >= 0 in units of the data, but row {wrong[0]} is {found[wrong[0]]}"
        )
    return found


def _is_one(values: Any) -> bool:
    """Tell whether this is one value, for all examples."""
    return isinstance(values, str | bytes) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0


def weights_to_score(y: ArrayLike, n: int, sample_weight: ArrayLike | None) -> np.ndarray | None:
    """Check the weights (n,) of a score of n answers.

    Raises
    ------
    ValueError
        Naming ``y`` or ``sample_weight``, whichever does not fit n answers; for weights that are negative or leave
        nothing.
    """
    require_regular("y", y)
    shape = np.shape(y) if isinstance(y, list | tuple) else getattr(y, "shape", ())
    if shape and shape[0] != n:
        raise ValueError(f"y must hold one label or target for each of {n} samples, got {shape[0]}")
    if sample_weight is None:
        return None
    weights = array("sample_weight", sample_weight, ndim=1)
    if len(weights) != n:
        raise ValueError(f"sample_weight must hold one weight for each of {n} samples, got {len(weights)}")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            "sample_weight must hold finite weights >= 0, at least one of them above 0, got weights from "
            f"{weights.min()} to {weights.max()}"
        )
    return weights
