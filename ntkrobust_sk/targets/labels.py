"""Labels as positions among classes, and the weights of a score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, require_regular


def encode_labels(y: ArrayLike, classes: np.ndarray, n_samples: int) -> np.ndarray:
    """Return the positions of labels y (n,) in ``classes`` (C,), int32 (n,).

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
        raise TypeError("y must hold one label for each sample, got a masked array; leave masked samples out")
    try:
        y = np.asarray(y)
    except (TypeError, ValueError) as error:
        raise TypeError(f"y must hold one label for each sample, got {brief(y)}: {error}") from None
    # one column of a data frame
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (n_samples,):
        raise ValueError(f"y must hold one label for each of the {n_samples} samples of X, got shape {y.shape}")
    # not by sorting, which would take the strings "0", "1" for the numbers and fails on mixed types
    position = {label: i for i, label in enumerate(classes.tolist())}
    labels = y.tolist()
    if unseen := [label for label in dict.fromkeys(labels) if label not in position]:
        raise ValueError(f"y contains labels that were not seen in fit: {unseen[:5]}")
    return np.array([position[label] for label in labels], dtype=np.int32)


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
