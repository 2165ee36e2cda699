"""Kernel regression with every filter from one eigendecomposition, and its answers to rows that are left out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .._arrays import eigh, to_numpy
from .direct import EIGH_MAX_SIZE, SingularGramError
from .filters import Filter
from .matrices import require_symmetric, rounding, solver_array
from .ridge import _checked_weight, _mean_diagonal, _require_kernel_system

# Columns of a product of eigenvectors at once: few would have the eigenvectors read again and again.
COLUMNS = 1024
# Numbers of a block of rows that are divided at once.
BLOCK = 2**18
# What is left out of the series in the rows' own ridges, relative to its sum, and from what ratio of two terms on
# each row takes divisions of its own.
LEFT_OF_SERIES, SLOW_SERIES = 1e-13, 0.05


class System(NamedTuple):
    """One system of kernel regression, W^½ K W^½ = V Λ Vᵀ.

    Attributes
    ----------
    eigenvalues : array (N,)
        Ascending.
    vectors : array (N, N)
        V: example by example, each with its b outputs.
    targets : array (N, t)
        Vᵀ W^½ y.
    ones : array (N, b)
        Vᵀ W^½ 1, with a column for each of the b outputs.
    norm : float
        Of the matrix, Frobenius.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    ones: np.ndarray
    norm: float


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigendecomposition of kernel regression on weighted mean and kernel, from which everything follows.

    The regression is that of the estimators: targets less their weighted mean, ridge (or time) in units of the
    weighted mean diagonal, and the mean added to what is predicted.

    Attributes
    ----------
    systems : list of System
        One; of a class kernel one for each class.
    targets : array (n, T)
    weight : array (n,)
    diagonal : array (n,)
        K_ii, of class and full kernels the mean over outputs.
    unseen : array
        Kernel between rows of weight zero and the others, as the Gram matrix has it.
    """

    systems: list[System]
    targets: np.ndarray
    weight: np.ndarray
    diagonal: np.ndarray
    unseen: np.ndarray

    @property
    def offset(self) -> np.ndarray:
        """The weighted mean of the targets (T,)."""
        return self.weight @ self.targets / self.weight.sum()

    @property
    def scale(self) -> float:
        """The weighted mean diagonal."""
        return float(self.weight @ self.diagonal / self.weight.sum())

    def holds(self, of: Filter) -> bool:
        """Tell whether a filter is defined on these eigenvalues, which are known to rounding."""
        return all(self._holds(of, system) for system in self.systems)

    def _holds(self, of, system):
        scales = self._scales_left_out() if np.count_nonzero(self.weight) > 1 else np.array([self.scale])
        unsure = rounding(len(system.eigenvalues), system.vectors) * system.norm
        return all(of.holds(float(system.eigenvalues[0]), s, unsure) for s in (scales.min(), scales.max()))

    def require(self, of: Filter) -> None:
        """Raise SingularGramError unless a filter is defined on these eigenvalues."""
        for system in self.systems:
            if not self._holds(of, system):
                smallest = float(system.eigenvalues[0])
                raise SingularGramError(
                    f"{of} is too little regularisation for this Gram matrix: its smallest eigenvalue is "
                    f"{smallest:.3g}, the largest {system.eigenvalues[-1]:.3g}, the mean diagonal {self.scale:.3g}"
                    ". Leave it out, or take a larger alpha (a shorter time); a Gram matrix computed in float32 "
                    f"needs alphas up to 1e-6 n = {1e-6 * len(self.targets):.0e}"
                )

    def dual(self, of: Filter) -> np.ndarray:
        """Return the dual coefficients (n, T) of all rows; those of weight zero have zeros.

        Raises
        ------
        SingularGramError
            If the filter is not defined here.
        """
        self.require(of)
        scale, offset = self.scale, self._columns(self.offset)
        found = []
        for system, own in zip(self.systems, offset, strict=True):
            centred = system.targets - system.ones @ own
            found.append(system.vectors @ (of(system.eigenvalues, scale)[:, None] * centred))
        return self._in_rows([np.sqrt(self._seen)[:, None, None] * self._by_example(part) for part in found])

    def leaves_freedom(self, of: Filter) -> bool:
        """Tell whether a filter does not fit all targets whatever they are, as a ridge of zero does."""
        return any(of.left(system.eigenvalues, self.scale).sum() > 0 for system in self.systems)

    def gcv(self, of: Filter) -> float:
        """Return the generalised cross-validation score: the mean squared error over the freedom left.

        GCV = (Σ w_i ‖y_i - f(x_i)‖² / T Σ w_i) / (tr(I - H) / N)², where H is what makes fitted values of targets,
        the mean included (Golub, Heath & Wahba 1979).
        """
        self.require(of)
        scale, offset = self.scale, self._columns(self.offset)
        error = left = size = 0.0
        for system, own in zip(self.systems, offset, strict=True):
            share = of.left(system.eigenvalues, scale)
            error += ((share[:, None] * (system.targets - system.ones @ own)) ** 2).sum()
            left += share.sum() - share @ (system.ones**2).sum(1) / self._seen.sum()
            size += len(share)
        freedom = left / size
        if not freedom > 0:
            raise SingularGramError(f"{of} leaves no freedom: the targets are fitted whatever they are")
        return float(error / (self.targets.shape[1] * self._seen.sum()) / freedom**2)

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
        nearest = abs(system.eigenvalues + zeta * self.scale).min()
        ratio = float(abs(zeta) * abs(scales - self.scale).max() / nearest)
        if ratio > SLOW_SERIES:
            return None
        return 1 if ratio < LEFT_OF_SERIES else math.ceil(math.log(LEFT_OF_SERIES) / math.log(ratio))

    def _residuals_by_series(self, at, resolvents, scales, mean) -> Iterator[np.ndarray]:
        """Yield z_i less what the others predict (n, 1, t), by products of matrices alone.

        With d_i = ζ (s_i - s), by which a row's own ridge differs, and r = 1 / (λ + ζ s),
        1 / (λ + ζ s + d_i) = Σ_m (-d_i)^m r^(m + 1).
        """
        system = self.systems[at]
        right = np.concatenate([system.targets, system.ones], axis=1)
        n, width = right.shape
        powers = [
            (1 / (system.eigenvalues + zeta * self.scale))[:, None] ** np.arange(1, n_terms + 1)
            for zeta, n_terms in resolvents
        ]
        joined = np.concatenate(powers, axis=1)
        diagonals = _real_product(self._squares[at], joined)
        both = _real_product(system.vectors, (joined[:, :, None] * right[:, None, :]).reshape(n, -1))
        start = 0
        for zeta, n_terms in resolvents:
            steps = (-zeta * (scales - self.scale))[:, None] ** np.arange(n_terms)
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
        for rows in _blocks(len(mean), vectors[0].size):
            V = vectors[rows]
            weighed = V / (system.eigenvalues + zeta * scales[rows, None])[:, None, :]
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
        """Return the weighted mean diagonal of all others (n,), for each row that has a weight."""
        weight, diagonal = self._seen, self.diagonal[self.weight > 0]
        return (weight @ diagonal - weight * diagonal) / (weight.sum() - weight)

    def _means_left_out(self):
        weight, targets = self._seen[:, None], self._seen_targets
        return ((weight * targets).sum(0) - weight * targets) / (weight.sum() - weight)

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
            result[self.weight == 0] = self.offset + _product(self.unseen, dual[self.weight > 0])
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
    _mean_diagonal(gram, weight)
    diagonal = np.asarray(np.moveaxis(np.diagonal(gram), -1, 0), np.float64)
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
        systems.append(_decomposed(matrix, columns, root))
    unseen = gram[np.ix_(~seen, seen)] if not seen.all() else gram[:0]
    return Spectrum(systems, targets, weight, diagonal.reshape(n, -1).mean(1), unseen)


def _decomposed(matrix, targets, root) -> System:
    """Return the eigendecomposition of one system (n, n) or (n, n, C, C) with its right-hand sides."""
    n, b = len(matrix), matrix.shape[2] if matrix.ndim == 4 else 1
    if n * b > EIGH_MAX_SIZE:
        raise ValueError(
            f"an eigendecomposition takes at most {EIGH_MAX_SIZE} rows and outputs, because 32-bit LAPACK fails "
            f"above; got {n * b}. Choose alpha by GridSearchCV, or on fewer rows"
        )
    A = np.empty((n, b, n, b))
    A[...] = matrix.transpose(0, 2, 1, 3) if matrix.ndim == 4 else matrix[:, None, :, None]
    A *= root[:, None, None, None]
    A *= root[None, None, :, None]
    A = A.reshape(n * b, n * b)
    norm, _ = require_symmetric(A, "gram")
    eigenvalues, vectors = eigh(A)
    if not np.isfinite(eigenvalues).all():
        raise SingularGramError("the eigenvalues of the Gram matrix are not finite")
    right = (root[:, None] * targets).reshape(n * b, -1)
    ones = (root[:, None, None] * np.eye(b)).reshape(n * b, b)
    return System(eigenvalues, vectors, vectors.T @ right, vectors.T @ ones, norm)


def _real_product(A, B):
    """Return the product of a real matrix with one that may be complex."""
    return A @ B.real + 1j * (A @ B.imag) if np.iscomplexobj(B) else A @ B


def _product(block, dual):
    equation = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}[block.ndim]
    return np.einsum(equation, block.astype(np.float64), dual, optimize=True)


def _blocks(n: int, numbers: int) -> Iterator[slice]:
    """Yield slices of n rows of so many numbers, each of about ``BLOCK`` numbers."""
    rows = max(1, math.ceil(BLOCK / max(numbers, 1)))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
