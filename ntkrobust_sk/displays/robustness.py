"""Robust accuracy over radii, and adversarial examples answered by others."""

from __future__ import annotations

from dataclasses import is_dataclass, replace

import numpy as np

from .._validation import array, brief, integer
from ..attacks.entry import require_attack
from ..evolution.results import require_result
from ..robustness.report import radii
from ..robustness.scoring import robust_accuracy
from ..robustness.transfer import transfer_matrix
from .base import COLORS, OTHER_COLORS, Display, legend, mapping_of, names_of, square_matrix, write_numbers


class RobustnessCurveDisplay(Display):
    """Robust accuracy over epsilon.

    Parameters
    ----------
    epsilons : array (e,)
    accuracies : dict
        From a name to accuracies (e,).
    """

    def __init__(self, epsilons, accuracies):
        self.epsilons = array("epsilons", epsilons, ndim=1, finite=True)
        self.accuracies = {
            name: array(f"accuracies[{name!r}]", values, ndim=1)
            for name, values in mapping_of("accuracies", accuracies, "accuracies").items()
        }
        for name, values in self.accuracies.items():
            if len(values) != len(self.epsilons):
                raise ValueError(
                    f"accuracies[{name!r}] must have one number for each of {len(self.epsilons)} epsilons, got "
                    f"{len(values)}"
                )

    @classmethod
    def from_estimator(cls, estimators, X, y, attack, *, epsilons=None, random_state=0, ax=None):
        """Of one fitted estimator, or of several by name, under an attack at several radii.

        Parameters
        ----------
        estimators : estimator or dict of them
        X, y
            What is attacked.
        attack : PGD or another dataclass with ``epsilon``
        epsilons : array (e,), default=None
            None is 0 and nine steps up to twice the attack's own.
        """
        require_attack(attack)
        if not is_dataclass(attack) or not hasattr(attack, "epsilon"):
            raise TypeError(f"attack must be a dataclass with epsilon, such as PGD, got {brief(attack)}")
        if epsilons is None:
            epsilons = np.linspace(0, 2 * attack.epsilon, 10)
        if not isinstance(estimators, dict):
            estimators = {type(estimators).__name__: estimators}
        mapping_of("estimators", estimators, "fitted estimators")
        epsilons = radii("epsilons", epsilons)
        attacks = [replace(attack, epsilon=epsilon) for epsilon in epsilons]
        accuracies = {
            name: np.array([robust_accuracy(estimator, X, y, one, random_state=random_state) for one in attacks])
            for name, estimator in estimators.items()
        }
        return cls(epsilons, accuracies).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for place, (name, values) in enumerate(self.accuracies.items()):
            color = COLORS.get(name, OTHER_COLORS[place % len(OTHER_COLORS)])
            ax.plot(self.epsilons, values, marker="o", ms=4, color=color, label=name)
        ax.set(xlabel="epsilon", ylabel="accuracy", ylim=(0, 1.02))
        legend(ax)
        ax.spines[["top", "right"]].set_visible(False)
        return self


class TransferDisplay(Display):
    """Accuracy of each model (column) on the adversarial examples of each (row).

    Parameters
    ----------
    matrix : array (m, m)
    names : list of str
    """

    def __init__(self, matrix, names):
        self.matrix = square_matrix("matrix", matrix)
        self.names = names_of("names", names, len(self.matrix))

    @classmethod
    def from_evolution(cls, result, *, seed=0, ax=None):
        """Of the models that stage 2 of a run has made."""
        found = require_result(result).of_kind("transfer", seed=integer("seed", seed, low=0))
        if not found:
            raise LookupError(f"{result.path} has no transfer matrix for seed {seed}: stage 2 is not finished")
        return cls(found[0]["matrix"], found[0]["names"]).plot(ax)

    @classmethod
    def from_estimators(cls, estimators, X, y, attack, *, random_state=0, ax=None):
        """Of fitted classifiers or models by name, as :func:`~ntkrobust_sk.transfer_matrix` takes them."""
        found = transfer_matrix(estimators, X, y, attack, random_state=random_state)
        return cls(found.matrix, found.names).plot(ax)

    def plot(self, ax=None, *, cmap="viridis"):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        image = ax.imshow(self.matrix, cmap=cmap, vmin=0, vmax=1)
        ax.figure.colorbar(image, ax=ax, shrink=0.8, label="accuracy")
        ax.set_xticks(
            range(len(self.names)), self.names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8
        )
        ax.set_yticks(range(len(self.names)), self.names, fontsize=8)
        ax.set(xlabel="evaluated on", ylabel="examples made on")
        write_numbers(ax, self.matrix, ".2f")
        return self
