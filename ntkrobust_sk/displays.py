"""Figures, by scikit-learn's convention: ``from_estimator`` or ``from_evolution``, and ``plot(ax=None)``.

``plot`` returns the display, with ``ax_`` and ``figure_`` set. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from .evaluation import transfer_matrix
from .gram import gram
from .metrics import kernel_distance, kernel_specialization
from .scoring import robust_accuracy

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
        self.distances, self.labels, self.groups = np.asarray(distances), list(labels), groups

    @classmethod
    def from_evolution(cls, result, *, seed=0, regimes=None, images="clean", ax=None):
        """Of all states of some regimes of a run (an :class:`~ntkrobust_sk.EvolutionResult`)."""
        regimes = [r for r in (regimes or result.experiment.regimes) if result.epochs(seed, r)]
        states = [(seed, regime, epoch) for regime in regimes for epoch in result.epochs(seed, regime)]
        groups = [(regime, len(result.epochs(seed, regime))) for regime in regimes]
        labels = [f"{epoch:g}" for _, _, epoch in states]
        return cls(result.distances(states, images=images), labels, groups).plot(ax)

    @classmethod
    def from_estimator(cls, estimators, X, *, kernel="trace", ax=None):
        """Of some fitted estimators' kernels on inputs X (n, ...); ``estimators`` maps names to them."""
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
        self.curves, self.label, self.log = curves, label, log

    @classmethod
    def from_evolution(cls, result, name="velocity", *, regimes=None, ax=None):
        """Of "velocity", "distance_to_start", or a number measured at each state, such as "robust".

        Seeds that were stopped early are cut to the epochs that all have.
        """
        curves = {}
        for regime in result.experiment.regimes if regimes is None else regimes:
            seeds = [s for s in range(result.experiment.seeds) if len(result.epochs(s, regime)) > 1]
            found = [_curve(result, seed, regime, name) for seed in seeds]
            if found:
                size = min(len(epochs) for epochs, _ in found)
                curves[regime] = found[0][0][:size], np.stack([values[:size] for _, values in found])
        return cls(curves, LABELS.get(name, name.replace("_", " ")), log=name == "velocity").plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for number, (regime, (epochs, values)) in enumerate(self.curves.items()):
            color = COLORS.get(regime, OTHER_COLORS[number % len(OTHER_COLORS)])
            ax.plot(epochs, values.mean(0), color=color, label=regime, lw=1.8)
            if len(values) > 1:
                ax.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18, lw=0)
        if self.log:
            ax.set_yscale("log")
        ax.set(xlabel="epoch", ylabel=self.label)
        ax.legend(frameon=False, fontsize=8)
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
        self.eigenvalues = eigenvalues

    @classmethod
    def from_evolution(cls, result, *, seed=0, regimes=None, epoch=None, images="clean", ax=None):
        """Of the regimes' kernels at an epoch (None is the last), and of the first kernel."""
        found = {}
        for regime in result.experiment.regimes if regimes is None else regimes:
            epochs = result.epochs(seed, regime)
            found.setdefault("initial", spectrum(result.kernel(seed, regime, epochs[0], images)))
            at = epochs[-1] if epoch is None else epoch
            found[regime] = spectrum(result.kernel(seed, regime, at, images))
        return cls(found).plot(ax)

    @classmethod
    def from_estimator(cls, estimator, X, *, kernel="trace", name=None, ax=None):
        """Of a fitted estimator's kernel on inputs X (n, ...)."""
        return cls({name or type(estimator).__name__: spectrum(_gram(estimator, X, kernel))}).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for number, (name, values) in enumerate(self.eigenvalues.items()):
            color = COLORS.get(name, OTHER_COLORS[number % len(OTHER_COLORS)])
            values = np.asarray(values) / np.sum(values)
            ax.loglog(np.arange(1, len(values) + 1), values, color=color, label=name, lw=1.8)
        ax.set(xlabel="index", ylabel="share of the trace", ylim=(1e-7, 1.2))
        ax.legend(frameon=False, fontsize=8, loc="lower left")
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
        self.epsilons, self.accuracies = np.asarray(epsilons), accuracies

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
        if epsilons is None:
            epsilons = np.linspace(0, 2 * attack.epsilon, 10)
        if not isinstance(estimators, dict):
            estimators = {type(estimators).__name__: estimators}
        attacks = [replace(attack, epsilon=float(epsilon)) for epsilon in epsilons]
        accuracies = {
            name: np.array([robust_accuracy(estimator, X, y, one, random_state=random_state) for one in attacks])
            for name, estimator in estimators.items()
        }
        return cls(epsilons, accuracies).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        for number, (name, values) in enumerate(self.accuracies.items()):
            color = COLORS.get(name, OTHER_COLORS[number % len(OTHER_COLORS)])
            ax.plot(self.epsilons, values, marker="o", ms=4, color=color, label=name)
        ax.set(xlabel="epsilon", ylabel="accuracy", ylim=(0, 1.02))
        ax.legend(frameon=False, fontsize=8)
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
        self.matrix, self.title = np.asarray(matrix), title

    @classmethod
    def from_evolution(cls, result, regime, *, seed=0, epoch=None, ax=None):
        """Of a state of a run; None is the last epoch."""
        epoch = result.epochs(seed, regime)[-1] if epoch is None else epoch
        matrix = result.at(seed, regime, epoch)["specialization_matrix"]
        return cls(matrix, f"{regime}, epoch {epoch:g}").plot(ax)

    @classmethod
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Of a fitted classifier's class kernel on X (n, ...) with labels y (n,)."""
        Y = (np.asarray(y)[:, None] == estimator.classes_).astype(float)
        return cls(kernel_specialization(_gram(estimator, X, "class"), Y), type(estimator).__name__).plot(ax)

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
        self.matrix, self.names = np.asarray(matrix), list(names)

    @classmethod
    def from_evolution(cls, result, *, seed=0, ax=None):
        """Of the models that stage 2 of a run has made."""
        found = result.of_kind("transfer", seed=seed)
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
        self.images, self.titles = images, titles

    @classmethod
    def from_evolution(cls, result, kind="regression", *, seed=0, regimes=None, ax=None):
        """What maximises each class's direction in each regime's kernel: "regression" or "eigenvector"."""
        regimes = result.experiment.regimes if regimes is None else regimes
        images = {regime: result.images(seed, regime)[kind] for regime in regimes}
        n_classes = len(next(iter(images.values())))
        return cls(images, [f"class {c}" for c in range(n_classes)]).plot(ax)

    def plot(self, ax=None):
        """Draw into an axes, or a new one; returns the display."""
        ax = self._axes(ax)
        rows = [np.clip(np.asarray(images, float), 0, 1) for images in self.images.values()]
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


def spectrum(K) -> np.ndarray:
    """Eigenvalues of a Gram matrix (n, n), largest first, without the negatives that rounding leaves."""
    return np.maximum(np.linalg.eigvalsh(np.asarray(K, np.float64))[::-1], 0)


def _curve(result, seed, regime, name):
    if name == "velocity":
        return result.velocity(seed, regime)
    if name == "distance_to_start":
        epochs = result.epochs(seed, regime)
        first = result.kernel(seed, regime, epochs[0])
        return np.array(epochs), np.array([kernel_distance(first, result.kernel(seed, regime, e)) for e in epochs])
    return result.curve(seed, regime, name)


def _gram(estimator, X, kernel):
    """The tangent kernel of a fitted estimator's network."""
    estimator = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
    check_is_fitted(estimator)
    return np.asarray(gram(kernel, estimator.model_, np.reshape(X, (-1, *estimator.input_shape_))))


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
