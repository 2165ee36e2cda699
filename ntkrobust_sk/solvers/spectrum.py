"""Kernel regression with every filter from one eigendecomposition, and its answers to rows that are left out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import to_numpy
from .._validation import brief
from .decomposed_system import System, decomposed
from .direct import InaccurateSolveError, SingularGramError
from .filters import Filter
from .matrices import rounding, solver_array
from .ridge import _checked_weight, _mean_diagonal, _require_kernel_system
from .rows import blocks, kernel_scores, real_product, sums_of_others
from .units import unit_of

# Columns of a product of eigenvectors at once: few would have the eigenvectors read again and again.
COLUMNS = 1024
# What is left out of the series in the rows' own ridges, relative to its sum, and from what ratio of two terms on
# each row takes divisions of its own.
LEFT_OF_SERIES, SLOW_SERIES = 1e-13, 0.05


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigendecomposition of kernel regression on weighted mean and kernel, from which everything follows.

    The regression is that of the estimators: targets less their weighted mean, ridge (or time) in units of the
    weighted mean diagonal, and the mean added to what is predicted. Kernel and weights are in units of their own,
    in which they are near one: so answers are the same at any size of both.

    Attributes
    ----------
    systems : list of System
        One; of a class kernel one for each class.
    targets : array (n, T)
    weight : array (n,)
        In ``weight_unit``.
    diagonal : array (n,)
        K_ii, of class and full kernels the mean over outputs, in ``kernel_unit``.
    unseen : array
        Kernel between rows of weight zero and the others, as the Gram matrix has it.
    kernel_unit, weight_unit : float
        Powers of four.
    """

    systems: list[System]
    targets: np.ndarray
    weight: np.ndarray
    diagonal: np.ndarray
    unseen: np.ndarray
    kernel_unit: float
    weight_unit: float

    @property
    def offset(self) -> np.ndarray:
        """The weighted mean of the targets (T,)."""
        return self.weight @ self.targets / self.weight.sum()

    @property
    def scale(self) -> float:
        """The weighted mean diagonal."""
        return float(self.weight @ self.diagonal / self.weight.sum()) * self.kernel_unit

    @property
    def _scale(self) -> float:
        """The weighted mean diagonal in units of the systems, whose kernel has weights on both sides."""
        return float(self.weight @ self.diagonal / self.weight.sum()) / self.weight_unit

    def in_range(self, of: Filter) -> bool:
        """Tell whether a filter's ridges are numbers here."""
        return all(map(of.in_range, (self.scale, *self._extreme_scales)))

    def holds(self, of: Filter) -> bool:
        """Tell whether a filter is defined on these eigenvalues, which are known to rounding."""
        return self.in_range(of) and all(self._holds(of, system) for system in self.systems)

    @cached_property
    def _extreme_scales(self):
        scales = self._scales_left_out() if np.count_nonzero(self.weight) > 1 else np.array([self._scale])
        return float(scales.min()), float(scales.max())

    def _holds(self, of, system):
        unsure = rounding(len(system.eigenvalues), system.vectors) * system.norm
        return all(of.holds(float(system.eigenvalues[0]), s, unsure) for s in self._extreme_scales)

    def require(self, of: Filter) -> None:
        """Raise unless a filter is defined on these eigenvalues.

        Raises
        ------
        ValueError
            If its ridges are out of range.
        SingularGramError
            If it regularises too little.
        """
        if not self.in_range(of):
            raise ValueError(f"{self.out_of_range([of])}: take a smaller alpha (a longer time)")
        for system in self.systems:
            if not self._holds(of, system):
                smallest = float(system.eigenvalues[0]) * self.kernel_unit * self.weight_unit
                largest = float(system.eigenvalues[-1]) * self.kernel_unit * self.weight_unit
                raise SingularGramError(
                    f"{of} is too little regularisation for this Gram matrix: its smallest eigenvalue is "
                    f"{smallest:.3g}, the largest {largest:.3g}, the mean diagonal {self.scale:.3g}"
                    ". Leave it out, or take a larger alpha (a shorter time); a Gram matrix computed in float32 "
                    f"needs alphas up to 1e-6 n = {1e-6 * len(self.targets):.0e}"
                )

    def out_of_range(self, filters: Sequence[Filter]) -> str:
        """Say why filters are refused whose ridges are no numbers."""
        return (
            f"{brief(list(filters))}: alpha (or one over the time) times the mean diagonal of the Gram matrix, "
            f"{self.scale:.3g}, over weights up to {self.weight.max() * self.weight_unit:.3g} is beyond float64"
        )

    def dual(self, of: Filter) -> np.ndarray:
        """Return the dual coefficients (n, T) of all rows; those of weight zero have zeros.

        Raises
        ------
        ValueError, SingularGramError
            If the filter is not defined here.
        InaccurateSolveError
            If the coefficients are beyond float64.
        """
        self.require(of)
        scale, offset = self._scale, self._columns(self.offset)
        found = []
        for system, own in zip(self.systems, offset, strict=True):
            centred = system.targets - system.ones @ own
            found.append(system.vectors @ (of(system.eigenvalues, scale)[:, None] * centred))
        found = [np.sqrt(self._seen)[:, None, None] * self._by_example(part) for part in found]
        with np.errstate(over="ignore"):
            dual = self._in_rows(found) / self.kernel_unit
        if not np.isfinite(dual).all():
            raise InaccurateSolveError(
                f"the dual coefficients of {of} are beyond float64: targets up to {abs(self.targets).max():.3g} "
                f"beside a mean diagonal of {self.scale:.3g}. Divide the targets by their deviation"
            )
        return dual

    def leaves_freedom(self, of: Filter) -> bool:
        """Tell whether a filter does not fit all targets whatever they are, as a ridge of zero does."""
        return any(of.left(system.eigenvalues, self._scale).sum() > 0 for system in self.systems)

    def gcv(self, of: Filter, unit: float = 1.0) -> float:
        """Return the generalised cross-validation score: the mean squared error over the freedom left.

        GCV = (Σ w_i ‖y_i - f(x_i)‖² / T Σ w_i) / (tr(I - H) / N)², where H is what makes fitted values of targets,
        the mean included (Golub, Heath & Wahba 1979). Targets and errors are in the ``unit`` given.
        """
        self.require(of)
        offset, total = self._columns(self.offset), self._seen.sum()
        shares = [of.left(system.eigenvalues, self._scale) for system in self.systems]
        # both sums are in the unit of the largest share, which may be too small to be squared
        largest = max(share.max() for share in shares)
        error = left = size = 0.0
        for system, own, share in zip(self.systems, offset, shares, strict=True):
            relative = share / largest if largest > 0 else share
            error += ((relative[:, None] * ((system.targets - system.ones @ own) / unit)) ** 2).sum()
            left += relative.sum() - relative @ (system.ones**2).sum(1) / total
            size += len(share)
        freedom = left / size
        if not freedom > 0:
            raise SingularGramError(f"{of} leaves no freedom: the targets are fitted whatever they are")
        return float(error / (self.targets.shape[1] * total) / freedom**2)

    def left_out(self, of: Filter) -> np.ndarray:
        """Return what is predicted for each row (n, T) by the regression on all other rows.

        Exactly that of a fit to the other rows: their own weighted mean and mean diagonal, so the ridge is
        ``alpha`` of *that* diagonal. A row is left out whole, whatever its weight. Rows of weight zero are
        predicted by all others together.

        With A = W^½ K W^½ and the resolvent R = (A + ζ)⁻¹, the row i of it gives for the targets z = W^½ (y - μ)
        what the others predict: z_i - (R_ii)⁻¹ (R z)_i, in blocks for the outputs of a full kernel. ζ and μ are
        those of the others, and so differ a little from row to row, for which a series has a few more terms.

        Raises
        ------
        ValueError
            If fewer than two rows have a weight.
        SingularGramError
            If the filter is not defined here.
        """
        return self.left_out_each([of])[0]

    def left_out_each(self, filters: Sequence[Filter]) -> list[np.ndarray]:
        """Return :meth:`left_out` of several filters, by fewer and larger products."""
        if np.count_nonzero(self.weight) < 2:
            raise ValueError(
                "leaving one sample out needs two of positive weight or more, got n_samples = "
                f"{len(self.weight)}, {np.count_nonzero(self.weight)} of them with a weight"
            )
        for of in filters:
            self.require(of)
        scales, means = self._scales_left_out(), self._means_left_out()
        found = [[] for _ in filters]
        for at in range(len(self.systems)):
            mean = self._columns(means)[at]
            root = np.sqrt(self._seen)[:, None, None]
            own = root * (self._columns(self._seen_targets)[at] - mean)
            totals = [np.zeros(mean.shape) for _ in filters]
            parts = [(k, gamma, zeta) for k, of in enumerate(filters) for gamma, zeta in of.resolvents()]
            residuals = self._residuals(at, [zeta for _, _, zeta in parts], scales, mean)
            for (k, gamma, _), residual in zip(parts, residuals, strict=True):
                totals[k] += (gamma * (own - residual)).real
            for k, total in enumerate(totals):
                found[k].append(mean + total / root)
        duals = [self.dual(of) if len(self.unseen) else None for of in filters]
        return [self._in_rows(parts, dual) for parts, dual in zip(found, duals, strict=True)]

    def _residuals(self, at, zetas, scales, mean) -> Iterator[np.ndarray]:
        """Yield z_i less what the others predict (n, b, t) for each resolvent of one system."""
        system = self.systems[at]
        width = system.targets.shape[1] + 1
        waiting: list[tuple[complex, int]] = []
        for zeta in zetas:
            n_terms = self._terms(system, zeta, scales) if system.ones.shape[1] == 1 else None
            if waiting and (n_terms is None or width * (n_terms + sum(n for _, n in waiting)) > COLUMNS):
                yield from self._residuals_by_series(at, waiting, scales, mean)
                waiting = []
            if n_terms is None:
                yield self._residual_by_rows(system, zeta, scales, mean)
            else:
                waiting.append((zeta, n_terms))
        if waiting:
            yield from self._residuals_by_series(at, waiting, scales, mean)

    def _terms(self, system, zeta, scales) -> int | None:
        """Return how many terms a series in the differences of rows' own ridges takes, or None if it is slow."""
        ratio = float(abs(zeta) / self._nearest(system, zeta) * abs(scales - self._scale).max())
        if ratio > SLOW_SERIES:
            return None
        return 1 if ratio < LEFT_OF_SERIES else math.ceil(math.log(LEFT_OF_SERIES) / math.log(ratio))

    def _nearest(self, system, zeta):
        """Return the least |λ + ζ s|, the unit in which resolvents have no entries above one."""
        return abs(system.eigenvalues + zeta * self._scale).min()

    def _residuals_by_series(self, at, resolvents, scales, mean) -> Iterator[np.ndarray]:
        """Yield z_i less what the others predict (n, 1, t), by products of matrices alone.

        With d_i = ζ (s_i - s), by which a row's own ridge differs, and r = 1 / (λ + ζ s),
        1 / (λ + ζ s + d_i) = Σ_m (-d_i)^m r^(m + 1), all of it in units in which the largest r is one.
        """
        system = self.systems[at]
        right = np.concatenate([system.targets, system.ones], axis=1)
        n, width = right.shape
        units = [self._nearest(system, zeta) for zeta, _ in resolvents]
        powers = [
            (unit / (system.eigenvalues + zeta * self._scale))[:, None] ** np.arange(1, n_terms + 1)
            for unit, (zeta, n_terms) in zip(units, resolvents, strict=True)
        ]
        joined = np.concatenate(powers, axis=1)
        diagonals = real_product(self._squares[at], joined)
        both = real_product(system.vectors, (joined[:, :, None] * right[:, None, :]).reshape(n, -1))
        start = 0
        for unit, (zeta, n_terms) in zip(units, resolvents, strict=True):
            steps = (-zeta / unit * (scales - self._scale))[:, None] ** np.arange(n_terms)
            own = both[:, start * width : (start + n_terms) * width].reshape(n, n_terms, width)
            own = np.einsum("nm,nmc->nc", steps, own)[:, None, :]
            diagonal = np.einsum("nm,nm->n", steps, diagonals[:, start : start + n_terms])[:, None, None]
            start += n_terms
            yield (own[..., :-1] - own[..., -1:] * mean) / diagonal

    @cached_property
    def _squares(self):
        return [system.vectors**2 for system in self.systems]

    def _residual_by_rows(self, system, zeta, scales, mean):
        """Return z_i less what the others predict (n, b, t), with divisions for each row."""
        b = system.ones.shape[1]
        vectors = system.vectors.reshape(len(mean), b, -1)
        right = np.concatenate([system.targets, system.ones], axis=1)
        residual = np.empty(mean.shape, np.result_type(zeta, float))
        unit = self._nearest(system, zeta)
        for rows in blocks(len(mean), vectors[0].size):
            V = vectors[rows]
            weighed = V * (unit / (system.eigenvalues + zeta * scales[rows, None]))[:, None, :]
            both = (weighed.reshape(-1, len(right)) @ right).reshape(len(V), b, -1)
            beside = both[..., :-b] - both[..., -b:] @ mean[rows]
            residual[rows] = np.linalg.solve(weighed @ V.transpose(0, 2, 1), beside)
        return residual

    @property
    def _seen(self):
        return self.weight[self.weight > 0]

    @property
    def _seen_targets(self):
        return self.targets[self.weight > 0]

    def _scales_left_out(self):
        """Return the weighted mean diagonal of all others (n,), as ``_scale``, for each row that has a weight."""
        weight, diagonal = self._seen, self.diagonal[self.weight > 0]
        return sums_of_others(weight * diagonal) / sums_of_others(weight) / self.weight_unit

    def _means_left_out(self):
        weight = self._seen[:, None]
        return sums_of_others(weight * self._seen_targets) / sums_of_others(weight)

    def _columns(self, values):
        """Return values (..., T) by system, as (..., b, t): b outputs that a system mixes, t that it does not."""
        b = self.systems[0].ones.shape[1]
        if len(self.systems) > 1:
            return [values[..., c, None, None] for c in range(len(self.systems))]
        return [values[..., None] if b > 1 else values[..., None, :]]

    def _by_example(self, columns):
        b = self.systems[0].ones.shape[1]
        return columns.reshape(-1, b, columns.shape[1])

    def _in_rows(self, found, dual=None):
        """Return results (r, b, t) of each system as (n, T); rows without weight are answered by a dual (n, T)."""
        joined = np.concatenate(found, axis=2)
        joined = joined.reshape(len(joined), -1)
        result = np.zeros(self.targets.shape)
        result[self.weight > 0] = joined
        if dual is not None:
            result[self.weight == 0] = self.offset + kernel_scores(self.unseen, dual[self.weight > 0])
        return result


def spectrum(gram, targets, sample_weight=None) -> Spectrum:
    """Decompose the Gram matrix of kernel regression, once for all filters.

    Parameters
    ----------
    gram : array (n, n), (n, n, C) or (n, n, C, C)
        As for :func:`~ntkrobust_sk.solve`. Not modified; two float64 arrays of the size of one system are taken
        besides it, for a class kernel one for each class.
    targets : array (n,) or (n, T)
        Not centred.
    sample_weight : array (n,), default=None
        A weight of k is the same as k copies.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        As ``solve``; for n (of a full kernel n C) above 32,766.
    SingularGramError
        If the mean diagonal is not positive.

    Examples
    --------
    >>> from .filters import Ridge
    >>> K, y = np.diag([1.0, 1.0, 1.0]), np.array([0.0, 3.0, 6.0])
    >>> found = spectrum(K, y)
    >>> found.left_out(Ridge(0.1))[:, 0]  # the mean of the others, which is all that they know
    array([4.5, 3. , 1.5])
    """
    gram, targets = to_numpy(solver_array("gram", gram)), to_numpy(solver_array("targets", targets))
    _require_kernel_system(gram, targets)
    n = len(gram)
    targets = targets.astype(np.float64).reshape(n, -1)
    if not np.isfinite(targets).all():
        raise ValueError("targets must be finite, but have NaN or infinity")
    weight = np.ones(n) if sample_weight is None else to_numpy(_checked_weight(sample_weight, gram))
    # so that the mean diagonal is below one
    unit, weight_unit = min(4 * unit_of(np.array(_mean_diagonal(gram, weight))), 2.0**1022), unit_of(weight)
    weight = weight / weight_unit
    diagonal = np.asarray(np.moveaxis(np.diagonal(gram), -1, 0), np.float64) / unit
    if gram.ndim == 4:
        diagonal = np.diagonal(diagonal, axis1=1, axis2=2)
    seen = weight > 0
    root, matrices = np.sqrt(weight[seen]), [gram]
    if gram.ndim == 3:
        matrices = [gram[..., c] for c in range(gram.shape[2])]
    systems = []
    for c, matrix in enumerate(matrices):
        matrix = matrix if seen.all() else matrix[np.ix_(seen, seen)]
        columns = targets[seen, c, None] if gram.ndim == 3 else targets[seen]
        systems.append(decomposed(matrix, columns, root, unit))
    unseen = gram[np.ix_(~seen, seen)] if not seen.all() else gram[:0]
    diagonal = diagonal.reshape(n, -1).mean(1)
    return Spectrum(systems, targets, weight, diagonal, unseen, unit, weight_unit)
