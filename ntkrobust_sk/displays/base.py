"""What all displays share: colours, labels, the axes, and checks of what is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from sklearn.frozen import FrozenEstimator

from .._validation import array, brief, check_choice, integer, number
from ..evolution.results import require_result

COLORS = {
    "benign": "#2f6db3",
    "adversarial": "#c44e36",
    "flip": "#7a4fa3",
    "clean": "#8fa8bf",
    "robust": "#22507a",
    "initial": "#8a8a8a",
}
OTHER_COLORS = ("#2f6db3", "#c44e36", "#3a8f5c", "#7a4fa3", "#b8860b", "#5a5a5a")
LABELS = {
    "velocity": "kernel velocity (per epoch)",
    "distance_to_start": "distance to the first kernel",
    "clean": "clean accuracy",
    "robust": "robust accuracy",
    "clean_effective_rank": "effective rank",
    "adversarial_effective_rank": "effective rank, attacked images",
    "clean_participation_ratio": "participation ratio",
    "clean_top_mass": "top-10 mass",
    "clean_centered_target_alignment": "centred target alignment",
    "adversarial_centered_target_alignment": "centred target alignment, attacked images",
    "specialization": "class specialisation",
}


class Display:
    """What the displays share: an axes of the caller's or of their own."""

    def _axes(self, ax):
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("figures need matplotlib: pip install 'ntkrobust_sk[plot]'") from error
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        if not isinstance(ax, plt.Axes):
            raise TypeError(f"ax must be a matplotlib Axes, such as plt.gca(), or None, got {brief(ax)}")
        self.ax_, self.figure_ = ax, ax.figure
        return ax


def legend(ax, loc="best") -> None:
    """The names of what is drawn, if anything is."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc=loc)


def unfrozen(estimator):
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def mapping_of(name, values, what, at_least=1) -> dict:
    if not isinstance(values, dict) or len(values) < at_least:
        raise TypeError(f"{name} must be a dict from names to {what}, got {brief(values)}")
    return values


def square_matrix(name, matrix) -> np.ndarray:
    matrix = array(name, matrix, ndim=2, finite=True)
    if matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1, got {matrix.shape}")
    return matrix


def names_of(name, values, n) -> list[str]:
    """One label for each of n."""
    is_series = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    # an array of no axes says that it can be gone through, and cannot
    found = list(values) if is_series and getattr(values, "shape", None) != () else None
    if found is None or len(found) != n:
        raise ValueError(f"{name} must be {n} labels, one for each, got {brief(values)}")
    return [str(value) for value in found]


def groups_of(groups, n) -> list[tuple[str, int]]:
    """Names and sizes that sum to n."""
    try:
        found = [(str(label), size) for label, size in groups]
    except (TypeError, ValueError):
        raise ValueError(f"groups must be (name, size) for each run of kernels, got {brief(groups)}") from None
    if sum(integer("each size of groups", size) for _, size in found) != n:
        raise ValueError(f"groups must have sizes that sum to the {n} kernels, got {brief(groups)}")
    return found


def curve_of(name, curve) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (t,) and values (n_seeds, t)."""
    if not isinstance(curve, tuple | list) or len(curve) != 2:
        raise ValueError(f"{name} must be (epochs (t,), values (n_seeds, t)), got {brief(curve)}")
    epochs, values = array(f"epochs of {name}", curve[0], ndim=1), array(f"values of {name}", curve[1], ndim=2)
    if values.shape[1] != len(epochs) or not values.size:
        raise ValueError(f"{name} must have a value for each of {len(epochs)} epochs, got shape {values.shape}")
    return epochs, values


def regimes_of(result, regimes) -> list[str]:
    """The regimes that are asked for, or all that a run has."""
    known = require_result(result).experiment.regimes
    if regimes is None:
        return list(known)
    if isinstance(regimes, str) or not isinstance(regimes, Iterable):
        raise ValueError(f"regimes must be a sequence of {', '.join(map(repr, known))}, got {brief(regimes)}")
    regimes = list(regimes)
    for regime in regimes:
        check_choice("regime", regime, known)
    return regimes


def epoch_of(result, seed, regime, epoch=None, *, first=False) -> float:
    """The epoch that is asked for, or the first or the last one that was measured."""
    if epoch is not None:
        return number("epoch", epoch, low=0)
    epochs = result.epochs(integer("seed", seed, low=0), regime)
    if not epochs:
        raise LookupError(f"{result.path} has no measurement of {regime!r} with seed {seed}")
    return epochs[0 if first else -1]


def write_numbers(ax, matrix, digits):
    """Numbers into the cells of a matrix that is small enough for them."""
    if len(matrix) > 20:
        return
    norm = ax.images[-1].norm
    for i, j in np.ndindex(matrix.shape):
        red, green, blue, _ = ax.images[-1].cmap(norm(matrix[i, j]))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        size = 9 if len(matrix) <= 6 else 6
        ax.text(
            j,
            i,
            f"{matrix[i, j]:{digits}}",
            ha="center",
            va="center",
            fontsize=size,
            color="black" if bright > 0.55 else "white",
        )
