"""Rows that come more than once: one row with the weight of all, which is the same machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .filters import Filter
from .spectrum import Spectrum, spectrum


@dataclass(frozen=True, eq=False)
class Copies:
    """Which rows of a data set are copies of which.

    Kernel ridge regression on copies of a row is that on the row once, with the sum of their weights and the
    weighted mean of their targets. So leaving a row out leaves all of its copies out: one that stayed would tell
    the answer. A row of weight two and a row that is written twice are the same.

    Attributes
    ----------
    first : int array (k,)
        The first copy of each distinct row, in the order of the rows.
    of : int array (n,)
        The distinct row, 0, ..., k - 1, of each row.

    Examples
    --------
    >>> copies = find_copies(np.array([[1.0], [0.0], [1.0]]))
    >>> copies.first, copies.of
    (array([0, 1]), array([0, 1, 0]))
    >>> copies.weights(np.array([1.0, 1.0, 2.0])), copies.means(np.array([[3.0], [5.0], [0.0]]), np.ones(3))[:, 0]
    (array([3., 1.]), array([1.5, 5. ]))
    """

    first: np.ndarray
    of: np.ndarray

    def weights(self, weight: np.ndarray) -> np.ndarray:
        """Return the sum of weights (n,) of each distinct row (k,)."""
        return np.bincount(self.of, weight, len(self.first))

    def means(self, targets: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the weighted mean of targets (n, T) of each distinct row (k, T); any where weights are zero."""
        total = self.weights(weight)[:, None]
        share = weight[:, None] / np.where(total > 0, total, 1)[self.of]
        sums = np.zeros((len(self.first), targets.shape[1]))
        np.add.at(sums, self.of, share * targets)
        return np.where(total > 0, sums, targets[self.first])


@dataclass(frozen=True, eq=False)
class DistinctSpectrum:
    """The :class:`.Spectrum` of distinct rows, whose answers are those of all rows.

    Attributes
    ----------
    found : Spectrum
        Of the distinct rows, with the weights of all copies and their mean targets.
    copies : Copies
    targets : array (n, T)
    weight : array (n,)
    """

    found: Spectrum
    copies: Copies
    targets: np.ndarray
    weight: np.ndarray

    def left_out(self, of: Filter) -> np.ndarray:
        """Return what is predicted for each row (n, T) by all rows that are no copies of it."""
        return self.left_out_each([of])[0]

    def left_out_each(self, filters: Sequence[Filter]) -> list[np.ndarray]:
        """Return :meth:`left_out` of several filters."""
        found = np.count_nonzero(self.found.weight)
        if found < 2:
            raise ValueError(
                "rows that are equal are left out together, which needs two different rows of positive weight or "
                f"more, got n_samples = {len(self.weight)} with {found} of them: was X filled with one value?"
            )
        return [each[self.copies.of] for each in self.found.left_out_each(filters)]

    def dual(self, of: Filter) -> np.ndarray:
        """Return the dual coefficients (n, T) of all rows: those of a distinct row, shared by its copies.

        Copies differ by their targets, of which the kernel knows nothing: w_i φ(0) (y_i - ȳ), φ being the filter.
        """
        total = self.copies.weights(self.weight)[self.copies.of]
        share = self.weight / np.where(total > 0, total, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            unseen = float(of(np.zeros(1), self.found.scale)[0])
        apart = self.targets - self.copies.means(self.targets, self.weight)[self.copies.of]
        apart = self.weight[:, None] * (unseen if np.isfinite(unseen) else 0.0) * apart
        return share[:, None] * self.found.dual(of)[self.copies.of] + apart


def distinct_spectrum(
    gram: np.ndarray, rows: np.ndarray, targets: np.ndarray, sample_weight: np.ndarray | None = None
) -> Spectrum | DistinctSpectrum:
    """Decompose the Gram matrix of rows (n, ...), of which each is taken once, as :func:`.spectrum` does it.

    Parameters
    ----------
    gram : array (n, n), (n, n, C) or (n, n, C, C)
    rows : array (n, ...)
        Equal ones are copies.
    targets : array (n, T)
    sample_weight : array (n,), default=None
    """
    copies = find_copies(rows)
    if len(copies.first) == len(copies.of):
        return spectrum(gram, targets, sample_weight)
    weight = np.ones(len(rows)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    once = np.ascontiguousarray(gram[np.ix_(copies.first, copies.first)])
    found = spectrum(once, copies.means(targets, weight), copies.weights(weight))
    return DistinctSpectrum(found, copies, targets, weight)


def find_copies(rows: np.ndarray) -> Copies:
    """Find rows (n, ...) that are equal to the bit."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    _, first, of = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Copies(first[order], place[of.reshape(-1)])
