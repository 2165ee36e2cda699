"""The parts that all displays share: colours, labels, the axes, and checks of what is drawn."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.frozen import FrozenEstimator

from .._drawing import STYLED, Axes, axes_of, styled
from .._validation import array, brief, check_choice, flag, integer, number
from ..evolution.experiment import load_evolution
from ..evolution.results import EvolutionResult, require_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

# The regimes of a run that are drawn; None is all.
Regimes = Iterable[str] | None
# A run's results, or its folder.
Run = EvolutionResult | str | os.PathLike
# Keywords for matplotlib.
Style = dict[str, Any] | None
# Numbers that would have to be smaller, in points, are not written into a matrix.
SMALLEST_NUMBER = 5
LABELS = {
    "robust": "robust accuracy",
    "clean": "clean accuracy",
    "velocity": "kernel velocity (per epoch)",
    "distance_to_start": "distance to the first kernel",
    "clean_effective_rank": "effective rank",
    "adversarial_effective_rank": "effective rank, attacked images",
    "clean_participation_ratio": "participation ratio",
    "clean_centered_target_alignment": "centred target alignment",
    "clean_top_mass": "top-10 mass",
    "adversarial_centered_target_alignment": "centred target alignment, attacked images",
    "specialization": "class specialisation",
}


class Display(ABC):
    """A figure in an axes of the caller's, or in one of its own.

    Attributes
    ----------
    ax_, figure_
        Set by ``plot``.
    """

    ax_: Axes
    figure_: Figure | SubFigure

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Self:
        """Draw into the given axes, or into new ones."""

    def _axes(self, ax: Axes | None) -> Axes:
        """Take the caller's axes, or make some."""
        ax = axes_of(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return ax

    def _matrix(
        self, ax: Axes | None, matrix: np.ndarray, label: str, colorbar: Any, im_kw: Style, **colors
    ) -> Axes:
        """Draw a matrix as colours, with a bar that says what they mean."""
        colors = styled("im_kw", im_kw, **colors)
        colorbar, ax = flag("colorbar", colorbar), self._axes(ax)
        image = ax.imshow(matrix, **colors)
        if colorbar:
            ax.figure.colorbar(image, ax=ax, shrink=0.8, label=label)
        return ax

    @classmethod
    def _require_style(cls, style: dict[str, Any]) -> None:
        """Raise a TypeError for keywords that ``plot`` does not take, before anything is computed."""
        known = [name for name in inspect.signature(cls.plot).parameters if name not in ("self", "ax")]
        for name, value in style.items():
            if name not in known:
                raise TypeError(f"{cls.__name__} takes the keywords {', '.join(known)} for plot, got {name!r}")
            if name in STYLED:
                styled(name, value)


def unfrozen(estimator: Any) -> Any:
    """Take a fitted estimator out of a ``FrozenEstimator``."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def mapping_of(name: str, values: Any, what: str, check: Callable[[str, Any], Any], at_least: int = 1) -> dict:
    """Return a dict of some entries, each checked, or raise a TypeError that says what they should be."""
    if not isinstance(values, dict) or len(values) < at_least:
        raise TypeError(f"{name} must be a dict from names to {what}, got {brief(values)}")
    return {key: check(f"{name}[{key!r}]", value) for key, value in values.items()}


def square_matrix(name: str, matrix: ArrayLike) -> np.ndarray:
    """Return a finite matrix (n, n) with n >= 1, or raise."""
    matrix = array(name, matrix, ndim=2, finite=True)
    if matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1, got {matrix.shape}")
    return matrix


def names_of(name: str, values: Any, n: int) -> list[str]:
    """Return one label for each of n, or raise."""
    is_series = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    # an array of no axes says that it can be gone through, and cannot
    found = list(values) if is_series and getattr(values, "shape", None) != () else None
    if found is None or len(found) != n:
        raise ValueError(f"{name} must be {n} labels, one for each, got {brief(values)}")
    return [str(value) for value in found]


def groups_of(groups: Any, n: int) -> list[tuple[str, int]]:
    """Return names and sizes that sum to n, or raise."""
    try:
        found = [(str(label), size) for label, size in groups]
    except (TypeError, ValueError):
        raise ValueError(f"groups must be (name, size) for each run of kernels, got {brief(groups)}") from None
    if sum(integer("each size of groups", size) for _, size in found) != n:
        raise ValueError(f"groups must have sizes that sum to the {n} kernels, got {brief(groups)}")
    return found


def curve_of(name: str, curve: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs (t,) and values (n_seeds, t), or raise."""
    if not isinstance(curve, tuple | list) or len(curve) != 2:
        raise ValueError(f"{name} must be (epochs (t,), values (n_seeds, t)), got {brief(curve)}")
    epochs, values = array(f"epochs of {name}", curve[0], ndim=1), array(f"values of {name}", curve[1], ndim=2)
    if values.shape[1] != len(epochs) or not values.size:
        raise ValueError(f"{name} must have a value for each of {len(epochs)} epochs, got shape {values.shape}")
    return epochs, values


def result_of(result: Run) -> EvolutionResult:
    """Return the results of a run, read from its folder if that is what was given, or raise."""
    return require_result(load_evolution(result) if isinstance(result, str | os.PathLike) else result)


def regimes_of(result: EvolutionResult, regimes: Regimes) -> list[str]:
    """Return the regimes that are asked for, or all that a run has."""
    known = result.experiment.regimes
    if regimes is None:
        return list(known)
    if isinstance(regimes, str) or not isinstance(regimes, Iterable):
        raise ValueError(f"regimes must be a sequence of {', '.join(map(repr, known))}, got {brief(regimes)}")
    regimes = list(regimes)
    for regime in regimes:
        check_choice("regime", regime, known)
    return regimes


def epoch_of(
    result: EvolutionResult, seed: int, regime: str, epoch: float | None = None, *, first: bool = False
) -> float:
    """Return the epoch that is asked for, or the first or the last one that was measured."""
    if epoch is not None:
        return number("epoch", epoch, low=0)
    epochs = result.epochs(integer("seed", seed, low=0), regime)
    if not epochs:
        raise LookupError(f"{result.path} has no measurement of {regime!r} with seed {seed}")
    return epochs[0 if first else -1]


def write_numbers(
    ax: Axes, matrix: np.ndarray, digits: str | Callable[[float], str], text_kw: Style = None
) -> None:
    """Write numbers into the cells of a drawn matrix, as large as the cells let them, or not at all."""
    from matplotlib import rcParams

    try:
        words = [digits(value) if callable(digits) else f"{value:{digits}}" for value in matrix.flat]
    except (TypeError, ValueError):
        raise ValueError(
            f"values_format must be a format of numbers, such as '.2f', got {brief(digits)}"
        ) from None
    text_kw = styled("text_kw", text_kw)
    inches = min(ax.get_window_extent().size) / ax.figure.dpi
    # labels and a bar of colours take about a quarter of that; a digit is 0.65 times as wide as its font is high
    fitting = 0.75 * 72 * inches / len(matrix) / (0.65 * max(map(len, words)))
    if fitting < SMALLEST_NUMBER and "fontsize" not in text_kw:
        return
    size = min(fitting, rcParams["font.size"])
    bright = ax.images[-1].to_rgba(matrix)[..., :3] @ (0.299, 0.587, 0.114)
    for (i, j), word in zip(np.ndindex(matrix.shape), words, strict=True):
        color = "black" if bright[i, j] > 0.55 else "white"
        ax.text(j, i, word, **styled("text_kw", text_kw, ha="center", va="center", fontsize=size, color=color))
