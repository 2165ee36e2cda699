"""Figures of kernels: distances between them, their spectra, what they are specialised on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .._drawing import Axes, color_of, finish, styled
from .._validation import array, brief, flag, integer, number
from ..analysis.metrics import kernel_distance, kernel_specialization
from ..analysis.sketches import PROBES, Probes, is_operator
from ..analysis.spectra import kernel_trace, top_eigenpairs
from ..estimators.shared import TangentEstimator
from ..targets.labels import encode_labels
from . import drawing
from .drawing import Display, Regimes, Run, Style, mapping_of, square_matrix


class KernelDistanceDisplay(Display):
    """Kernel distances between all pairs of some kernels, as a matrix of colours.

    Parameters
    ----------
    distances : array (s, s)
    labels : list of str
        One for each kernel.
    groups : list of (str, int), default=None
        Names and sizes of runs of kernels that belong together; they are marked in place of the labels.

    Examples
    --------
    >>> display = KernelDistanceDisplay([[0, 0.2], [0.2, 0]], ["before", "after"]).plot()
    >>> [label.get_text() for label in display.ax_.get_xticklabels()]
    ['before', 'after']
    """

    def __init__(
        self, distances: ArrayLike, labels: Iterable[str], groups: Iterable[tuple[str, int]] | None = None
    ):
        self.distances = square_matrix("distances", distances)
        self.labels = drawing.names_of("labels", labels, len(self.distances))
        self.groups = None if groups is None else drawing.groups_of(groups, len(self.distances))

    @classmethod
    def from_evolution(
        cls,
        result: Run,
        *,
        seed: int = 0,
        regimes: Regimes = None,
        images: str = "clean",
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the distances between all states of some regimes of a run.

        ``result`` is a run's results, or its folder; ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        result = drawing.result_of(result)
        seed, regimes = integer("seed", seed, low=0), drawing.regimes_of(result, regimes)
        regimes = [r for r in regimes if result.epochs(seed, r)]
        states = [(seed, regime, epoch) for regime in regimes for epoch in result.epochs(seed, regime)]
        groups = [(regime, len(result.epochs(seed, regime))) for regime in regimes]
        labels = [f"{epoch:g}" for _, _, epoch in states]
        return cls(result.distances(states, images=images), labels, groups).plot(ax, **style)

    @classmethod
    def from_estimator(
        cls, estimators: dict, X: ArrayLike, *, kernel: Any = "trace", ax: Axes | None = None, **style: Any
    ) -> Self:
        """Draw the distances between fitted estimators' kernels on inputs X (n, ...), from a dict by name.

        ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)

        def kernel_of(name, estimator):
            return _gram(estimator, X, kernel)

        return cls.from_kernels(
            mapping_of("estimators", estimators, "fitted estimators", kernel_of), ax=ax, **style
        )

    @classmethod
    def from_kernels(cls, kernels: dict, *, probes: Probes = PROBES, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the distances between kernels of the same samples, from a dict by name.

        Parameters
        ----------
        kernels : dict
            Matrices or operators (n, n) by name.
        probes : Probes
            With which operators are measured.
        ax : matplotlib Axes, default=None
        **style
            Keywords of ``plot``.
        """
        cls._require_style(style)
        found = list(mapping_of("kernels", kernels, "Gram matrices or operators", _kernel_of).values())
        distances = np.zeros((len(found), len(found)))
        for i, j in zip(*np.triu_indices(len(found), 1), strict=True):
            distances[i, j] = distances[j, i] = kernel_distance(found[i], found[j], probes=probes)
        return cls(distances, list(kernels)).plot(ax, **style)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        cmap: Any = "magma_r",
        include_values: bool = True,
        values_format: str = ".3f",
        colorbar: bool = True,
        im_kw: Style = None,
        text_kw: Style = None,
    ) -> Self:
        """Draw into the given axes, or into new ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        cmap : str or matplotlib Colormap, default="magma_r"
        include_values : bool, default=True
            Write the numbers, where they fit into the cells and kernels have no groups.
        values_format : str, default=".3f"
        colorbar : bool, default=True
        im_kw, text_kw : dict, default=None
            Keywords for ``ax.imshow`` and for ``ax.text`` of the numbers.
        """
        styled("text_kw", text_kw)
        flag("include_values", include_values)
        ax = self._matrix(ax, self.distances, "kernel distance", colorbar, im_kw, cmap=cmap, vmin=0)
        if self.groups is None:
            ax.set_xticks(range(len(self.labels)), self.labels, rotation=45, ha="right")
            ax.set_yticks(range(len(self.labels)), self.labels)
            if include_values:
                drawing.write_numbers(ax, self.distances, values_format, text_kw)
            return self
        ends = np.cumsum([0] + [size for _, size in self.groups])
        for end in ends[1:-1]:
            ax.axhline(end - 0.5, color="white", lw=1.5)
            ax.axvline(end - 0.5, color="white", lw=1.5)
        names = [
            f"{name}\nepoch {self.labels[a]} to {self.labels[b - 1]}"
            for (name, _), a, b in zip(self.groups, ends[:-1], ends[1:], strict=True)
        ]
        middles = (ends[:-1] + ends[1:] - 1) / 2
        ax.set_xticks(middles, names)
        ax.set_yticks(middles, names, rotation=90, va="center")
        ax.tick_params(length=0)
        return self


class SpectrumDisplay(Display):
    """Eigenvalues of some kernels, as shares of their sums.

    The axis goes down to the smallest of them, but no lower than the rounding of the largest: what is left
    below that, relative to the largest 1e-7 in single precision, is no property of a kernel.

    Parameters
    ----------
    eigenvalues : dict
        Eigenvalues by name, largest first.
    traces : dict, default=None
        The sums of all eigenvalues by name, where only the first of them are there.

    Examples
    --------
    >>> display = SpectrumDisplay({"benign": [4, 1], "adversarial": [3, 2]}).plot()
    >>> display.ax_.lines[0].get_ydata()
    array([0.8, 0.2])
    """

    def __init__(self, eigenvalues: dict, traces: dict | None = None):
        self.eigenvalues = mapping_of("eigenvalues", eigenvalues, "eigenvalues", _spectrum_of)
        sums = {name: float(np.sum(values)) for name, values in self.eigenvalues.items()}
        if traces is not None:
            sums |= mapping_of("traces", traces, "numbers", lambda name, value: number(name, value, above=0))
        self.traces = sums

    @classmethod
    def from_evolution(
        cls,
        result: Run,
        *,
        seed: int = 0,
        regimes: Regimes = None,
        epoch: float | None = None,
        images: str = "clean",
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the spectra of the regimes' kernels at an epoch (None is the last), and of the first kernel.

        ``result`` is a run's results, or its folder; ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        result = drawing.result_of(result)
        found = {}
        for regime in drawing.regimes_of(result, regimes):
            first, at = (
                drawing.epoch_of(result, seed, regime, first=True),
                drawing.epoch_of(result, seed, regime, epoch),
            )
            found.setdefault("initial", spectrum(result.kernel(seed, regime, first, images)))
            found[regime] = spectrum(result.kernel(seed, regime, at, images))
        return cls(found).plot(ax, **style)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        kernel: Any = "trace",
        name: str | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the spectrum of a fitted estimator's kernel on inputs X (n, ...).

        ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        name = type(estimator).__name__ if name is None else str(name)
        return cls({name: spectrum(_gram(estimator, X, kernel))}).plot(ax, **style)

    @classmethod
    def from_kernels(
        cls, kernels: dict, *, k: int = 50, probes: Probes = PROBES, ax: Axes | None = None, **style: Any
    ) -> Self:
        """Draw the spectra of kernels, from a dict by name.

        Parameters
        ----------
        kernels : dict
            Matrices (n, n) by name, of which all eigenvalues are drawn, or operators.
        k : int, default=50
            So many eigenvalues are drawn of an operator, as shares of its trace.
        probes : Probes
            With which the trace is estimated of operators that have no diagonal.
        ax : matplotlib Axes, default=None
        **style
            Keywords of ``plot``.
        """
        cls._require_style(style)
        k, eigenvalues, traces = integer("k", k), {}, {}
        for name, K in mapping_of("kernels", kernels, "Gram matrices or operators", _kernel_of).items():
            if is_operator(K):
                found = top_eigenpairs(K, min(k, K.shape[0]), probes=probes).eigenvalues
                eigenvalues[name], traces[name] = np.maximum(found, 0), float(kernel_trace(K, probes=probes))
            else:
                eigenvalues[name] = spectrum(K)
                traces[name] = float(np.sum(eigenvalues[name], dtype=np.float64))
        return cls(eigenvalues, traces).plot(ax, **style)

    def plot(self, ax: Axes | None = None, *, line_kw: Style = None) -> Self:
        """Draw into the given axes, or into new ones; ``line_kw`` are keywords for ``ax.loglog``."""
        lines = [
            styled("line_kw", line_kw, color=color_of(name, place), label=name, lw=1.8)
            for place, name in enumerate(self.eigenvalues)
        ]
        ax, known = self._axes(ax), []
        for (name, values), line in zip(self.eigenvalues.items(), lines, strict=True):
            shares, index = values / self.traces[name], np.arange(1, len(values) + 1)
            ax.loglog(index, shares, **line)
            rounding = np.finfo(np.result_type(values, np.float32)).eps
            known.append(shares[shares > rounding * shares.max()])
        drawn = np.concatenate(known)
        limits = drawn.min() / 1.5, drawn.max() * 1.5
        finish(ax, "lower left", xlabel="index", ylabel="share of the trace", ylim=limits)
        return self


class SpecializationDisplay(Display):
    """A matrix of how well the kernel of each output meets each class; see ``kernel_specialization``.

    Parameters
    ----------
    matrix : array (C, C)
    title : str, default=""

    Examples
    --------
    >>> display = SpecializationDisplay([[1.2, 0.8], [0.9, 1.1]]).plot()
    >>> display.ax_.get_xlabel(), display.ax_.get_ylabel()
    ('class', 'kernel of output')
    """

    def __init__(self, matrix: ArrayLike, title: str = ""):
        self.matrix, self.title = square_matrix("matrix", matrix), str(title)

    @classmethod
    def from_evolution(
        cls,
        result: Run,
        regime: str,
        *,
        seed: int = 0,
        epoch: float | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the matrix of a state of a run; None is the last epoch.

        ``result`` is a run's results, or its folder; ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        result = drawing.result_of(result)
        (regime,) = drawing.regimes_of(result, [regime])
        epoch = drawing.epoch_of(result, seed, regime, epoch)
        matrix = result.at(seed, regime, epoch)["specialization_matrix"]
        return cls(matrix, f"{regime}, epoch {epoch:g}").plot(ax, **style)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, ax: Axes | None = None, **style: Any
    ) -> Self:
        """Draw the matrix of a fitted classifier's class kernel on X (n, ...) with labels y (n,).

        ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        K, held = _gram(estimator, X, "class"), drawing.unfrozen(estimator)
        if not hasattr(held, "classes_"):
            raise TypeError(f"estimator must be a classifier, with classes_, got {brief(held)}")
        Y = np.eye(len(held.classes_))[encode_labels(y, held.classes_, len(K))]
        return cls(kernel_specialization(K, Y), type(held).__name__).plot(ax, **style)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        cmap: Any = "PuOr",
        colorbar: bool = True,
        im_kw: Style = None,
    ) -> Self:
        """Draw into the given axes, or into new ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        cmap : str or matplotlib Colormap, default="PuOr"
        colorbar : bool, default=True
        im_kw : dict, default=None
            Keywords for ``ax.imshow``.
        """
        reach = max(abs(self.matrix - 1).max(), 1e-12)
        # in two lines: one is longer than the bar
        label = "alignment over that\nof the mean kernel"
        ax = self._matrix(ax, self.matrix, label, colorbar, im_kw, cmap=cmap, vmin=1 - reach, vmax=1 + reach)
        ticks = range(len(self.matrix)) if len(self.matrix) <= 12 else []
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
        ax.set(xlabel="class", ylabel="kernel of output", title=self.title)
        return self


def spectrum(K: ArrayLike) -> np.ndarray:
    """Compute the eigenvalues of a Gram matrix (n, n) in its precision, largest first; negative ones become 0."""
    K = square_matrix("K", K)
    eigenvalues = np.linalg.eigvalsh(K.astype(np.float64))[::-1]
    return np.maximum(eigenvalues, 0).astype(np.result_type(K, np.float32))


def _kernel_of(name, K):
    return K if is_operator(K) else square_matrix(name, K)


def _spectrum_of(name, values) -> np.ndarray:
    values = array(name, values, ndim=1, finite=True)
    if not np.sum(values) > 0:
        raise ValueError(f"{name} must have a positive sum, got {brief(values)}")
    return values


def _gram(estimator, X, kernel):
    """Compute the tangent kernel of a fitted estimator's network."""
    estimator = drawing.unfrozen(estimator)
    if not isinstance(estimator, TangentEstimator):
        raise TypeError(
            "estimator must be one with a tangent kernel, such as a fitted AdversarialKernelTrainer, got "
            f"{brief(estimator)}"
        )
    return estimator._gram(kernel, X, None, "2GiB")
