"""Figures, by scikit-learn's convention: ``from_estimator`` or ``from_evolution``, and ``plot(ax=None)``.

``plot`` returns the display, with ``ax_`` and ``figure_`` set. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass, replace

import numpy as np
from sklearn.frozen import FrozenEstimator

from ._validation import array, brief, check_choice, flag, integer, number
from .analysis.metrics import kernel_distance, kernel_specialization
from .attacks.entry import require_attack
from .estimators.inputs import positions
from .estimators.shared import TangentEstimator
from .evolution.results import require_result
from .robustness.report import radii
from .robustness.scoring import robust_accuracy
from .robustness.transfer import transfer_matrix

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


class _Display:
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


class KernelDistanceDisplay(_Display):
    """Kernel distances between all pairs of some kernels, as a matrix of colours.

    Parameters
    ----------
    distances : array (s, s)
    labels : list of str
        One for each kernel.
    groups : list of (str, int), default=None
        Names and sizes of runs of kernels that belong together; they are marked in place of the labels.

    Attributes
    ----------
    ax_, figure_
        Set by :meth:`plot`.
    """

    def __init__(self, distances, labels, groups=None):
        self.distances = _square("distances", distances)
        self.labels = _names("labels", labels, len(self.distances))
        self.groups = None if groups is None else _groups(groups, len(self.distances))

    @classmethod
    def from_evolution(cls, result, *, seed=0, regimes=None, images="clean", ax=None):
        """Of all states of some regimes of a run (an :class:`~ntkrobust_sk.EvolutionResult`)."""
        seed, regimes = integer("seed", seed, low=0), _regimes(result, regimes)
        regimes = [r for r in regimes if result.epochs(seed, r)]
        states = [(seed, regime, epoch) for regime in regimes for epoch in result.epochs(seed, regime)]
        groups = [(regime, len(result.epochs(seed, regime))) for regime in regimes]
        labels = [f"{epoch:g}" for _, _, epoch in states]
        return cls(result.distances(states, images=images), labels, groups).plot(ax)

    @classmethod
    def from_estimator(cls, estimators, X, *, kernel="trace", ax=None):
        """Of some fitted estimators' kernels on inputs X (n, ...); ``estimators`` maps names to them."""
        _mapping("estimators", estimators, "fitted estimators")
        grams = [_gram(estimator, X, kernel) for estimator in estimators.values()]
        distances = [[kernel_distance(a, b) for b in grams] for a in grams]
        return cls(distances, list(estimators)).plot(ax)

    def plot(self, ax=None, *, cmap="magma_r"):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        image = ax.imshow(self.distances, cmap=cmap, vmin=0)
        ax.figure.colorbar(image, ax=ax, shrink=0.8, label="kernel distance")
        if self.groups is None:
            ax.set_xticks(range(len(self.labels)), self.labels, rotation=45, ha="right")
            ax.set_yticks(range(len(self.labels)), self.labels)
            _write_numbers(ax, self.distances, ".3f")
            return self
        ends = np.cumsum([0] + [size for _, size in self.groups])
        for end in ends[1:-1]:
            ax.axhline(end - 0.5, color="white", lw=1.5)
            ax.axvline(end - 0.5, color="white", lw=1.5)
        names = [
            f"{name}\n(epoch {self.labels[a]} to {self.labels[b - 1]})"
            for (name, _), a, b in zip(self.groups, ends[:-1], ends[1:], strict=True)
        ]
        middles = (ends[:-1] + ends[1:] - 1) / 2
        ax.set_xticks(middles, names, fontsize=8)
        ax.set_yticks(middles, names, fontsize=8, rotation=90, va="center")
        ax.tick_params(length=0)
        return self


class EvolutionDisplay(_Display):
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
            name: _curve_of(f"curves[{name!r}]", curve)
            for name, curve in _mapping("curves", curves, "(epochs, values)", at_least=0).items()
        }
        self.label, self.log = str(label), flag("log", log)

    @classmethod
    def from_evolution(cls, result, name="velocity", *, regimes=None, ax=None):
        """Of "velocity", "distance_to_start", or a number measured at each state, such as "robust".

        Seeds that were stopped early are cut to the epochs that all have.
        """
        curves = {}
        for regime in _regimes(result, regimes):
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


class SpectrumDisplay(_Display):
    """Eigenvalues of some kernels, as shares of their sums.

    Parameters
    ----------
    eigenvalues : dict
        From a name to eigenvalues, largest first.
    """

    def __init__(self, eigenvalues):
        self.eigenvalues = {
            name: array(f"eigenvalues[{name!r}]", values, ndim=1, finite=True)
            for name, values in _mapping("eigenvalues", eigenvalues, "eigenvalues").items()
        }
        for name, values in self.eigenvalues.items():
            if not np.sum(values) > 0:
                raise ValueError(f"eigenvalues[{name!r}] must have a positive sum, got {brief(values)}")

    @classmethod
    def from_evolution(cls, result, *, seed=0, regimes=None, epoch=None, images="clean", ax=None):
        """Of the regimes' kernels at an epoch (None is the last), and of the first kernel."""
        found = {}
        for regime in _regimes(result, regimes):
            first, at = _epoch(result, seed, regime, first=True), _epoch(result, seed, regime, epoch)
            found.setdefault("initial", spectrum(result.kernel(seed, regime, first, images)))
            found[regime] = spectrum(result.kernel(seed, regime, at, images))
        return cls(found).plot(ax)

    @classmethod
    def from_estimator(cls, estimator, X, *, kernel="trace", name=None, ax=None):
        """Of a fitted estimator's kernel on inputs X (n, ...)."""
        return cls(
            {type(estimator).__name__ if name is None else str(name): spectrum(_gram(estimator, X, kernel))}
        ).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for place, (name, values) in enumerate(self.eigenvalues.items()):
            color = COLORS.get(name, OTHER_COLORS[place % len(OTHER_COLORS)])
            values = values / np.sum(values)
            ax.loglog(np.arange(1, len(values) + 1), values, color=color, label=name, lw=1.8)
        ax.set(xlabel="index", ylabel="share of the trace", ylim=(1e-7, 1.2))
        legend(ax, "lower left")
        ax.spines[["top", "right"]].set_visible(False)
        return self


class RobustnessCurveDisplay(_Display):
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
            for name, values in _mapping("accuracies", accuracies, "accuracies").items()
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
        _mapping("estimators", estimators, "fitted estimators")
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


class SpecializationDisplay(_Display):
    """How well the kernel of each output meets each class; see ``kernel_specialization``.

    Parameters
    ----------
    matrix : array (C, C)
    title : str, default=""
    """

    def __init__(self, matrix, title=""):
        self.matrix, self.title = _square("matrix", matrix), str(title)

    @classmethod
    def from_evolution(cls, result, regime, *, seed=0, epoch=None, ax=None):
        """Of a state of a run; None is the last epoch."""
        (regime,) = _regimes(result, [regime])
        epoch = _epoch(result, seed, regime, epoch)
        matrix = result.at(seed, regime, epoch)["specialization_matrix"]
        return cls(matrix, f"{regime}, epoch {epoch:g}").plot(ax)

    @classmethod
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Of a fitted classifier's class kernel on X (n, ...) with labels y (n,)."""
        K, held = _gram(estimator, X, "class"), _held(estimator)
        if not hasattr(held, "classes_"):
            raise TypeError(f"estimator must be a classifier, with classes_, got {brief(held)}")
        Y = np.eye(len(held.classes_))[positions(y, held.classes_, len(K))]
        return cls(kernel_specialization(K, Y), type(held).__name__).plot(ax)

    def plot(self, ax=None, *, cmap="PuOr"):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        reach = max(abs(self.matrix - 1).max(), 1e-12)
        image = ax.imshow(self.matrix, cmap=cmap, vmin=1 - reach, vmax=1 + reach)
        ax.figure.colorbar(image, ax=ax, shrink=0.8, label="alignment over that of the mean kernel")
        ticks = range(len(self.matrix)) if len(self.matrix) <= 12 else []
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
        ax.set(xlabel="class", ylabel="kernel of output", title=self.title)
        return self


class TransferDisplay(_Display):
    """Accuracy of each model (column) on the adversarial examples of each (row).

    Parameters
    ----------
    matrix : array (m, m)
    names : list of str
    """

    def __init__(self, matrix, names):
        self.matrix = _square("matrix", matrix)
        self.names = _names("names", names, len(self.matrix))

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
        _write_numbers(ax, self.matrix, ".2f")
        return self


class ImageGridDisplay(_Display):
    """Images in rows, one row for each name.

    Parameters
    ----------
    images : dict
        From a name to images (m, h, w, c) with c = 1 or 3, in [0, 1].
    titles : list of str, default=None
        Of the columns.
    """

    def __init__(self, images, titles=None):
        self.images = {
            name: _pictures(f"images[{name!r}]", values)
            for name, values in _mapping("images", images, "images").items()
        }
        shapes = {values.shape[:3] for values in self.images.values()}
        if len(shapes) > 1:
            raise ValueError(f"images must be as many in each row and of one size, got {sorted(shapes)}")
        ((n_columns, *_),) = shapes
        self.titles = None if titles is None else _names("titles", titles, n_columns)

    @classmethod
    def from_evolution(cls, result, kind="regression", *, seed=0, regimes=None, ax=None):
        """What maximises each class's direction in each regime's kernel: "regression" or "eigenvector"."""
        images = {}
        for regime in _regimes(result, regimes):
            found = result.images(integer("seed", seed, low=0), regime)
            check_choice("kind", kind, found)
            images[regime] = found[kind]
        n_classes = len(next(iter(images.values())))
        return cls(images, [f"class {c}" for c in range(n_classes)]).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        rows = [np.clip(images.astype(float), 0, 1) for images in self.images.values()]
        height, width = rows[0].shape[1:3]
        # a gap of a twelfth, transparent
        gap = max(1, height // 12)
        canvas = np.ones((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 4))
        canvas[..., 3] = 0
        for i, images in enumerate(rows):
            for j, image in enumerate(images):
                at = np.s_[
                    i * (height + gap) : i * (height + gap) + height, j * (width + gap) : j * (width + gap) + width
                ]
                canvas[at][..., :3] = np.broadcast_to(image, (height, width, 3)) if image.shape[-1] == 1 else image
                canvas[at][..., 3] = 1
        ax.imshow(canvas, interpolation="nearest")
        ax.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], list(self.images), fontsize=8)
        titles = self.titles or [""] * len(rows[0])
        ax.set_xticks([j * (width + gap) + width / 2 for j in range(len(titles))], titles, fontsize=8)
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
        ax.spines[:].set_visible(False)
        return self


def legend(ax, loc="best") -> None:
    """The names of what is drawn, if anything is."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc=loc)


def spectrum(K) -> np.ndarray:
    """Eigenvalues of a Gram matrix (n, n), largest first, without the negatives that rounding leaves."""
    return np.maximum(np.linalg.eigvalsh(_square("K", K).astype(np.float64))[::-1], 0)


def _curve(result, seed, regime, name):
    if name == "velocity":
        return result.velocity(seed, regime)
    if name == "distance_to_start":
        epochs = result.epochs(seed, regime)
        first = result.kernel(seed, regime, epochs[0])
        return np.array(epochs), np.array([kernel_distance(first, result.kernel(seed, regime, e)) for e in epochs])
    return result.curve(seed, regime, name)


def _held(estimator):
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def _gram(estimator, X, kernel):
    """The tangent kernel of a fitted estimator's network."""
    estimator = _held(estimator)
    if not isinstance(estimator, TangentEstimator):
        raise TypeError(
            "estimator must be one with a tangent kernel, such as a fitted AdversarialKernelTrainer, got "
            f"{brief(estimator)}"
        )
    return estimator._gram(kernel, X, None, "2GiB")


def _mapping(name, values, what, at_least=1) -> dict:
    if not isinstance(values, dict) or len(values) < at_least:
        raise TypeError(f"{name} must be a dict from names to {what}, got {brief(values)}")
    return values


def _square(name, matrix) -> np.ndarray:
    matrix = array(name, matrix, ndim=2, finite=True)
    if matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1, got {matrix.shape}")
    return matrix


def _names(name, values, n) -> list[str]:
    """One label for each of n."""
    is_series = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    # an array of no axes says that it can be gone through, and cannot
    found = list(values) if is_series and getattr(values, "shape", None) != () else None
    if found is None or len(found) != n:
        raise ValueError(f"{name} must be {n} labels, one for each, got {brief(values)}")
    return [str(value) for value in found]


def _groups(groups, n) -> list[tuple[str, int]]:
    """Names and sizes that sum to n."""
    try:
        found = [(str(label), size) for label, size in groups]
    except (TypeError, ValueError):
        raise ValueError(f"groups must be (name, size) for each run of kernels, got {brief(groups)}") from None
    if sum(integer("each size of groups", size) for _, size in found) != n:
        raise ValueError(f"groups must have sizes that sum to the {n} kernels, got {brief(groups)}")
    return found


def _curve_of(name, curve) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (t,) and values (n_seeds, t)."""
    if not isinstance(curve, tuple | list) or len(curve) != 2:
        raise ValueError(f"{name} must be (epochs (t,), values (n_seeds, t)), got {brief(curve)}")
    epochs, values = array(f"epochs of {name}", curve[0], ndim=1), array(f"values of {name}", curve[1], ndim=2)
    if values.shape[1] != len(epochs) or not values.size:
        raise ValueError(f"{name} must have a value for each of {len(epochs)} epochs, got shape {values.shape}")
    return epochs, values


def _pictures(name, values) -> np.ndarray:
    values = array(name, values, ndim=4, finite=True)
    if values.shape[3] not in (1, 3) or not values.size:
        raise ValueError(f"{name} must be images (m, h, w, c) with c = 1 or 3, got {values.shape}")
    return values


def _regimes(result, regimes) -> list[str]:
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


def _epoch(result, seed, regime, epoch=None, *, first=False) -> float:
    """The epoch that is asked for, or the first or the last one that was measured."""
    if epoch is not None:
        return number("epoch", epoch, low=0)
    epochs = result.epochs(integer("seed", seed, low=0), regime)
    if not epochs:
        raise LookupError(f"{result.path} has no measurement of {regime!r} with seed {seed}")
    return epochs[0 if first else -1]


def _write_numbers(ax, matrix, digits):
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
