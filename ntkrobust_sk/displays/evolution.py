"""A run drawn over its epochs."""

from __future__ import annotations

import numpy as np

from .._validation import flag
from ..analysis.metrics import kernel_distance
from .base import COLORS, LABELS, OTHER_COLORS, Display, curve_of, legend, mapping_of, regimes_of


class EvolutionDisplay(Display):
    """A quantity over the epochs of stage 1, a line for each regime, the range over seeds shaded.

    Parameters
    ----------
    curves : dict
        From a regime's name to (epochs (t,), values (n_seeds, t)).
    label : str
        What the values are.
    log : bool, default=False
        Logarithmic values.
    """

    def __init__(self, curves, label, log=False):
        self.curves = {
            name: curve_of(f"curves[{name!r}]", curve)
            for name, curve in mapping_of("curves", curves, "(epochs, values)", at_least=0).items()
        }
        self.label, self.log = str(label), flag("log", log)

    @classmethod
    def from_evolution(cls, result, name="velocity", *, regimes=None, ax=None):
        """Of "velocity", "distance_to_start", or a number measured at each state, such as "robust".

        Seeds that were stopped early are cut to the epochs that all have.
        """
        curves = {}
        for regime in regimes_of(result, regimes):
            seeds = [s for s in range(result.experiment.seeds) if len(result.epochs(s, regime)) > 1]
            found = [_curve(result, seed, regime, name) for seed in seeds]
            if found:
                size = min(len(epochs) for epochs, _ in found)
                curves[regime] = found[0][0][:size], np.stack([values[:size] for _, values in found])
        return cls(curves, LABELS.get(name, name.replace("_", " ")), log=name == "velocity").plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for place, (regime, (epochs, values)) in enumerate(self.curves.items()):
            color = COLORS.get(regime, OTHER_COLORS[place % len(OTHER_COLORS)])
            ax.plot(epochs, values.mean(0), color=color, label=regime, lw=1.8)
            if len(values) > 1:
                ax.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18, lw=0)
        if self.log:
            ax.set_yscale("log")
        ax.set(xlabel="epoch", ylabel=self.label)
        legend(ax)
        ax.spines[["top", "right"]].set_visible(False)
        return self


def _curve(result, seed, regime, name):
    if name == "velocity":
        return result.velocity(seed, regime)
    if name == "distance_to_start":
        epochs = result.epochs(seed, regime)
        first = result.kernel(seed, regime, epochs[0])
        return np.array(epochs), np.array([kernel_distance(first, result.kernel(seed, regime, e)) for e in epochs])
    return result.curve(seed, regime, name)
