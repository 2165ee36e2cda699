"""A run drawn over its epochs."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from .._drawing import LINE_STYLES, Axes, color_of, finish, styled
from .._validation import check_choice, flag
from ..analysis.metrics import kernel_distance
from .drawing import LABELS, Display, Regimes, Run, Style, curve_of, mapping_of, regimes_of, result_of


class EvolutionDisplay(Display):
    """A quantity over the epochs of stage 1, a line for each regime, the range over seeds shaded.

    Parameters
    ----------
    curves : dict
        Pairs of epochs (t,) and values (n_seeds, t) by regime.
    label : str
        What the values are.
    log : bool, default=False
        Logarithmic values.

    Examples
    --------
    >>> curves = {"benign": ([0, 1, 2], [[0.1, 0.9, 0.9], [0.1, 0.8, 0.9]])}
    >>> display = EvolutionDisplay(curves, "accuracy").plot()
    >>> display.ax_.get_xlabel(), display.ax_.get_ylabel()
    ('epoch', 'accuracy')
    """

    def __init__(self, curves: dict, label: str, log: bool = False):
        self.curves = mapping_of("curves", curves, "(epochs, values)", curve_of, at_least=0)
        self.label, self.log = str(label), flag("log", log)

    @classmethod
    def from_evolution(
        cls,
        result: Run,
        name: str = "velocity",
        *,
        regimes: Regimes = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw "velocity", "distance_to_start", or a number measured at each state, such as "robust".

        Seeds that were stopped early are cut to the epochs that all have.

        Parameters
        ----------
        result : EvolutionResult or path
            A run's results, or its folder.
        name : str, default="velocity"
        regimes : sequence of str, default=None
            None is all of the run.
        ax : matplotlib Axes, default=None
        **style
            Keywords of ``plot``.
        """
        cls._require_style(style)
        result, curves = result_of(result), {}
        for regime in regimes_of(result, regimes):
            seeds = [s for s in range(result.experiment.seeds) if len(result.epochs(s, regime)) > 1]
            found = [_curve(result, seed, regime, name) for seed in seeds]
            if found:
                size = min(len(epochs) for epochs, _ in found)
                curves[regime] = found[0][0][:size], np.stack([values[:size] for _, values in found])
        return cls(curves, LABELS.get(name, name.replace("_", " ")), log=name == "velocity").plot(ax, **style)

    def plot(self, ax: Axes | None = None, *, line_kw: Style = None, fill_between_kw: Style = None) -> Self:
        """Draw into the given axes, or into new ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        line_kw, fill_between_kw : dict, default=None
            Keywords for ``ax.plot`` and ``ax.fill_between``: of the means, and of the ranges over seeds.
        """
        drawn = []
        for place, (regime, curve) in enumerate(self.curves.items()):
            color, ls = color_of(regime, place), LINE_STYLES.get(regime, "-")
            line = styled("line_kw", line_kw, color=color, label=regime, lw=1.8, ls=ls)
            area = styled("fill_between_kw", fill_between_kw, color=line["color"], alpha=0.18, lw=0)
            drawn.append((*curve, line, area))
        ax = self._axes(ax)
        for epochs, values, line, area in drawn:
            ax.plot(epochs, values.mean(0), **line)
            if len(values) > 1:
                ax.fill_between(epochs, values.min(0), values.max(0), **area)
        if self.log:
            ax.set_yscale("log")
        finish(ax, xlabel="epoch", ylabel=self.label)
        return self


def _curve(result, seed, regime, name) -> tuple[np.ndarray, np.ndarray]:
    """Compute epochs (t,) and values (t,) of one seed."""
    if name == "velocity":
        return result.velocity(seed, regime)
    if name == "distance_to_start":
        epochs = result.epochs(seed, regime)
        first = result.kernel(seed, regime, epochs[0])
        return np.array(epochs), np.array([kernel_distance(first, result.kernel(seed, regime, e)) for e in epochs])
    check_choice("name", name, ("velocity", "distance_to_start", *result.measured(seed, regime)))
    return result.curve(seed, regime, name)
