"""Robust accuracy over radii, and adversarial examples answered by others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .._drawing import Axes, color_of, finish, styled
from .._validation import array, brief, flag, integer
from ..attacks.entry import require_attack
from ..robustness.report import radii
from ..robustness.scoring import robust_accuracy
from ..robustness.transfer import transfer_matrix
from .drawing import Display, Run, Style, mapping_of, names_of, result_of, square_matrix, write_numbers


class RobustnessCurveDisplay(Display):
    """Robust accuracy over epsilon.

    Parameters
    ----------
    epsilons : array (e,)
    accuracies : dict
        Accuracies (e,) by name.

    Examples
    --------
    >>> display = RobustnessCurveDisplay([0, 0.1], {"benign": [0.9, 0.2], "adversarial": [0.9, 0.7]}).plot()
    >>> [line.get_label() for line in display.ax_.lines]
    ['benign', 'adversarial']
    """

    def __init__(self, epsilons: ArrayLike, accuracies: dict):
        self.epsilons = array("epsilons", epsilons, ndim=1, finite=True)
        self.accuracies = mapping_of("accuracies", accuracies, "accuracies", self._one_for_each)

    def _one_for_each(self, name, values) -> np.ndarray:
        values, n = array(name, values, ndim=1), len(self.epsilons)
        if len(values) != n:
            raise ValueError(f"{name} must have one number for each of {n} epsilons, got {len(values)}")
        return values

    @classmethod
    def from_estimator(
        cls,
        estimators: Any,
        X: ArrayLike,
        y: ArrayLike,
        attack: Any,
        *,
        epsilons: ArrayLike | None = None,
        random_state: Any = 0,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the curve of one fitted estimator, or of several by name, under an attack at several radii.

        Parameters
        ----------
        estimators : estimator or dict of them
        X, y
            What is attacked.
        attack : PGD or another dataclass with ``epsilon``
        epsilons : array (e,), default=None
            None is 0 and nine steps up to twice the attack's own.
        random_state : int, RandomState or None, default=0
        ax : matplotlib Axes, default=None
        **style
            Keywords of ``plot``.
        """
        cls._require_style(style)
        require_attack(attack)
        epsilon = getattr(attack, "epsilon", None)
        if not is_dataclass(attack) or isinstance(attack, type) or epsilon is None:
            raise TypeError(f"attack must be a dataclass with epsilon, such as PGD, got {brief(attack)}")
        if epsilons is None:
            epsilons = np.linspace(0, 2 * epsilon, 10)
        if not isinstance(estimators, dict):
            estimators = {type(estimators).__name__: estimators}
        epsilons = radii("epsilons", epsilons)
        attacks: list[Any] = [replace(attack, epsilon=epsilon) for epsilon in epsilons]

        def curve(name, estimator):
            return [robust_accuracy(estimator, X, y, one, random_state=random_state) for one in attacks]

        accuracies = mapping_of("estimators", estimators, "fitted estimators", curve)
        return cls(epsilons, accuracies).plot(ax, **style)

    def plot(self, ax: Axes | None = None, *, line_kw: Style = None) -> Self:
        """Draw into the given axes, or into new ones; ``line_kw`` are keywords for ``ax.plot``."""
        lines = [
            styled("line_kw", line_kw, marker="o", ms=4, color=color_of(name, place), label=name)
            for place, name in enumerate(self.accuracies)
        ]
        ax = self._axes(ax)
        for values, line in zip(self.accuracies.values(), lines, strict=True):
            ax.plot(self.epsilons, values, **line)
        finish(ax, xlabel="epsilon", ylabel="accuracy", ylim=(0, 1.02))
        return self


class TransferDisplay(Display):
    """Accuracy of each model (column) on the adversarial examples of each (row).

    Parameters
    ----------
    matrix : array (m, m)
    names : list of str

    Examples
    --------
    >>> display = TransferDisplay([[0.1, 0.6], [0.5, 0.2]], ["network", "machine"]).plot()
    >>> display.ax_.get_xlabel(), display.ax_.get_ylabel()
    ('evaluated on', 'examples made on')
    """

    def __init__(self, matrix: ArrayLike, names: Iterable[str]):
        self.matrix = square_matrix("matrix", matrix)
        self.names = names_of("names", names, len(self.matrix))

    @classmethod
    def from_evolution(cls, result: Run, *, seed: int = 0, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the matrix of the models that stage 2 of a run has made.

        ``result`` is a run's results, or its folder; ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        result = result_of(result)
        found = result.of_kind("transfer", seed=integer("seed", seed, low=0))
        if not found:
            raise LookupError(f"{result.path} has no transfer matrix for seed {seed}: stage 2 is not finished")
        return cls(found[0]["matrix"], found[0]["names"]).plot(ax, **style)

    @classmethod
    def from_estimators(
        cls,
        estimators: dict,
        X: ArrayLike,
        y: ArrayLike,
        attack: Any,
        *,
        random_state: Any = 0,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the matrix of fitted classifiers or models by name, as ``transfer_matrix`` takes them.

        ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        found = transfer_matrix(estimators, X, y, attack, random_state=random_state)
        return cls(found.matrix, found.names).plot(ax, **style)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        cmap: Any = "viridis",
        include_values: bool = True,
        values_format: str = ".2f",
        colorbar: bool = True,
        im_kw: Style = None,
        text_kw: Style = None,
    ) -> Self:
        """Draw into the given axes, or into new ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        cmap : str or matplotlib Colormap, default="viridis"
        include_values : bool, default=True
            Write the numbers, where they fit into the cells.
        values_format : str, default=".2f"
        colorbar : bool, default=True
        im_kw, text_kw : dict, default=None
            Keywords for ``ax.imshow`` and for ``ax.text`` of the numbers.
        """
        styled("text_kw", text_kw)
        flag("include_values", include_values)
        ax = self._matrix(ax, self.matrix, "accuracy", colorbar, im_kw, cmap=cmap, vmin=0, vmax=1)
        places = range(len(self.names))
        ax.set_xticks(places, self.names, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(places, self.names)
        ax.set(xlabel="evaluated on", ylabel="examples made on")
        if include_values:
            write_numbers(ax, self.matrix, values_format, text_kw)
        return self
