"""EigenPro: stochastic gradient descent on rows of features, preconditioned by the leading eigenvectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from .._validation import integer, number
from .convergence import SolveReport
from .direct import InaccurateSolveError
from .features import FeatureGram, in_double
from .iterative import IterativeSolver
from .systems import RidgeSystem

# How often the step is made smaller before it is said that nothing helps.
RETRIES = 4


@dataclass(frozen=True, kw_only=True)
class EigenPro(IterativeSolver):
    """Solve kernel ridge regression on rows of features by preconditioned stochastic gradient descent.

    The leading eigenvectors of a sample of rows damp the directions in which steps would have to be small, so a
    batch may take long ones (Ma & Belkin 2019, arXiv:1806.06144; Abedsoltan, Belkin & Pandit 2023,
    arXiv:2302.02605). The noise of the batches vanishes at the solution, since the errors that rows had before
    are remembered (Defazio, Bach & Lacoste-Julien 2014, arXiv:1407.0202). It takes the memory of one batch of
    features, of the eigenvectors, and of two numbers for each row and target: for a million rows.

    Parameters
    ----------
    tol : float, default=1e-3
        Largest accepted ‖Φᵀ(Φ w - y) + λ w‖ / ‖Φᵀ y‖, the relative residual of the equations for the features'
        weights w = Φᵀ a. It is computed anew at the end.
    max_epochs : int, default=20
        Passes over the rows, at most.
    batch_size : int, default=None
        None is an eighth of the rows, from 64 to 4,096, or fewer where there are very many features.
    n_eigenvectors : int, default=None
        None is as many as steps with such batches need, at most a fifth of the sample.
    n_sample : int, default=2000
        Rows from which eigenvectors are computed.
    seed : int, default=0
        Of the sample and of the batches.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkrobust_sk import solve
    >>> features = np.random.default_rng(0).normal(size=(2000, 20))
    >>> y = features[:, 0]
    >>> K = FeatureGram(features)
    >>> weights = features.T @ solve(K, y, alpha=1e-2, solver=EigenPro())
    >>> bool(abs(weights[0] - 1) < 1e-2)
    True
    """

    tol: float = 1e-3
    max_epochs: int = 20
    batch_size: int | None = None
    n_eigenvectors: int | None = None
    n_sample: int = 2000
    seed: int = 0

    def __post_init__(self):
        number("tol", self.tol, above=0, below=1)
        integer("max_epochs", self.max_epochs, low=1)
        integer("n_sample", self.n_sample, low=2)
        integer("seed", self.seed, low=0)
        for name in ("batch_size", "n_eigenvectors"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), low=1)

    @property
    def advice(self) -> str:
        """What to do where it does not converge."""
        return (
            "Raise alpha, max_epochs, tol or the number of eigenvectors (EigenPro(max_epochs=, tol=, "
            "n_eigenvectors=, n_sample=))"
        )

    def run(self, system: RidgeSystem, B: np.ndarray) -> tuple[np.ndarray, SolveReport]:
        """Return the dual coefficients X (n, k) and what was done."""
        gram = system.gram
        if not isinstance(gram, FeatureGram):
            raise ValueError(
                "EigenPro needs rows of features: call solve(FeatureGram(features), y, alpha=..., "
                "solver='eigenpro'); for a matrix or another operator take solver='cg'"
            )
        preconditioner = _Preconditioner(self, system)
        for attempt in range(RETRIES):
            found = self._descend(system, B, preconditioner, 4.0**-attempt)
            if found is not None:
                dual, residual, n_epochs = found
                detail = f"{preconditioner.n_eigenvectors} eigenvectors, batches of {preconditioner.batch_size}"
                return dual, SolveReport(self, n_epochs, residual, residual <= self.tol, system.ridge, detail)
        squares = system.diagonal()
        longest = squares.max() / squares.mean()
        raise InaccurateSolveError(
            f"EigenPro diverges, also with steps of {4.0 ** (1 - RETRIES):.0e} of what its sample of "
            f"{preconditioner.n_sample} rows says. The largest squared length of a row of features, with its "
            f"weight, is {longest:.2g} times the mean: scale rows or columns that are much longer than others, "
            "raise alpha or n_sample, or take solver='nystrom'"
        )

    def _descend(self, system, B, preconditioner, scale):
        """Return dual coefficients, residual and the number of epochs; None if it diverges.

        In each step w falls by P((n/m) Φ_Bᵀ(e_B - h_B) + H + λ w) times a step length, with errors e = Φ w - y of
        the batch, those h that each row had when it was last seen, and H = Φᵀ h.
        """
        n, size = system.shape[0], preconditioner.batch_size
        draw = np.random.default_rng([self.seed, 1])
        seen, weights = -B, np.zeros((system.gram.n_features, B.shape[1]))
        seen_gradient = system.gram.fold(_rooted(system, seen))
        right = np.linalg.norm(seen_gradient)
        dual = _Dual(system, B.shape, preconditioner, scale)
        residual = 1.0 if right else 0.0
        for epoch in range(1, self.max_epochs + 1):
            order = draw.permutation(n)
            for first in range(0, n, size):
                at = np.sort(order[first : first + size])
                error, of_batch = _errors(system, B, weights, at, seen)
                gradient = (n / size) * of_batch + seen_gradient + system.ridge * weights
                along = preconditioner.directions.T @ gradient
                weights -= dual.length * (gradient - preconditioner.to_weights @ along)
                dual.move(at, seen[at], (n / size) * (error - seen[at]), along)
                seen[at] = error
                seen_gradient += of_batch
            found = np.linalg.norm(seen_gradient + system.ridge * weights)
            if not found <= 10 * right:
                return None
            if epoch == self.max_epochs or found <= self.tol * right:
                residual = _residual(system, B, weights)
                if residual <= self.tol:
                    break
        # zeros would be a better answer
        return (dual.finished(seen), residual, epoch) if residual <= 1 else None


class _Dual:
    """Dual coefficients a with w = Φᵀ a, which fall by h + λ a in each step, and in more places at the batch.

    What all rows do alike is done when a row is seen again: h has not changed meanwhile. What the rows of the
    sample do besides is kept as coefficients of the eigenvectors.
    """

    def __init__(self, system, shape, preconditioner, scale):
        self.length = scale * preconditioner.step * preconditioner.batch_size / shape[0]
        # below one, so that its powers have logarithms
        self._decay = min(self.length * system.ridge, 1 - np.finfo(float).epsneg)
        self._coefficients, self._last, self._now = np.zeros(shape), np.zeros(shape[0], int), 0
        self._along, self._preconditioner = np.zeros((preconditioner.n_eigenvectors, shape[1])), preconditioner

    def move(self, at, seen, change, along):
        """Take a step at rows ``at``, whose errors were ``seen`` and ``change``, and along the eigenvectors."""
        self._coefficients[at] = self._at_present(at, seen, 1) - self.length * change
        self._now += 1
        self._last[at] = self._now
        self._along = (1 - self._decay) * self._along + self.length * along

    def _at_present(self, at, seen, more=0):
        """Return the coefficients of rows after the steps that they have not been told of."""
        steps = (self._now + more - self._last[at])[:, None].astype(float)
        if self._decay:
            lost = -np.expm1(steps * np.log1p(-self._decay))
            return (1 - lost) * self._coefficients[at] - self.length * (lost / self._decay) * seen
        return self._coefficients[at] - self.length * steps * seen

    def finished(self, seen):
        """Return all coefficients (n, T)."""
        found = self._at_present(slice(None), seen)
        found[self._preconditioner.sample] += self._preconditioner.to_dual @ self._along
        return found


def _rooted(system, V, at: Any = slice(None)):
    """Compute W^½ V of some rows (m, T)."""
    return V if system.root is None else system.root[at, None] * V


def _errors(system, B, weights, at, seen):
    """Return the errors e = W^½ Φ w - B (m, T) of rows, and Φᵀ W^½ (e - h) with those that they had, h."""
    errors, gradient = np.empty((len(at), B.shape[1])), np.zeros_like(weights)
    for part, rows in in_double(system.gram.rows(at)):
        errors[part] = _rooted(system, rows @ weights, at[part]) - B[at[part]]
        gradient += rows.T @ _rooted(system, errors[part] - seen[at[part]], at[part])
    return errors, gradient


def _residual(system, B, weights) -> float:
    """Compute the largest ‖Φᵀ(Φ w - y) + λ w‖ / ‖Φᵀ y‖ of all targets, in one pass."""
    gradient, right = system.ridge * weights, np.zeros_like(weights)
    for at, rows in system.gram.double_blocks():
        gradient += rows.T @ (
            rows @ weights if system.root is None else system.root[at, None] ** 2 * (rows @ weights)
        )
        right += rows.T @ _rooted(system, B[at], at)
    scale = np.linalg.norm(right, axis=0)
    return float((np.linalg.norm(gradient - right, axis=0) / np.where(scale > 0, scale, 1)).max())


def _leading(rows):
    """Return eigenvalues of rows (s, k) times their transpose, and eigenvectors (s, r).

    From the smaller of both matrices, the largest first, without those that are zero to rounding.
    """
    n, n_features = rows.shape
    values, vectors = scipy.linalg.eigh(rows @ rows.T if n <= n_features else rows.T @ rows)
    kept = values > 1e-10 * max(values[-1], np.finfo(float).tiny)
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    return values, vectors if n <= n_features else rows @ (vectors / np.sqrt(values))


class _Preconditioner:
    """The leading eigenvectors of a sample of rows, and the batch and the step that they allow."""

    def __init__(self, solver: EigenPro, system: RidgeSystem):
        gram, n = system.gram, system.shape[0]
        draw = np.random.default_rng(solver.seed)
        usable = np.arange(n) if system.weight is None else np.flatnonzero(system.weight)
        self._n_usable = len(usable)
        self.n_sample = min(solver.n_sample, len(usable))
        self.sample = np.sort(draw.choice(usable, self.n_sample, replace=False))
        rows = _rooted(system, gram.rows(self.sample).astype(np.float64), self.sample)
        own, vectors = _leading(rows)
        values = own * (len(usable) / self.n_sample)
        most = max(64, min(n // 8, 4096, 2**27 // (8 * gram.n_features)))
        self.batch_size = batch = min(n, most if solver.batch_size is None else solver.batch_size)
        q = min(self._wanted(solver, system, rows, values), len(values))
        self.n_eigenvectors = q
        vectors = vectors[:, :q] / np.sqrt(own[:q])
        self.directions = rows.T @ vectors
        # other rows than those that the eigenvectors were fitted to
        others = np.setdiff1d(draw.choice(usable, min(1000, len(usable)), replace=False), self.sample)
        more = _rooted(system, gram.rows(others).astype(np.float64), others) if len(others) else rows[:0]
        seen = np.concatenate([rows, more])
        parts = (seen @ self.directions) ** 2
        short = np.maximum(np.sum(seen * seen, axis=1) - parts.sum(axis=1), 0)
        # the leading eigenvalues become this: a batch's products with them are then no larger than with one row;
        # not less than the smallest of all, beside which there would be rounding alone
        smallest = values[min(q, len(values) - 1)] if len(values) else 0.0
        level = max(float(smallest), (float(short.max()) + system.ridge) * n / batch)
        kept = np.minimum((level + system.ridge) / (values[:q] + system.ridge), 1)
        self.to_dual = vectors * (1 - kept)
        self.to_weights = self.directions * (1 - kept)
        largest = float((short + parts @ kept).max())
        # half of it, where the other rows' errors are those of earlier steps
        self.step = (1.0 if batch == n else 0.5) / (largest + system.ridge + (batch - 1) * level / n)

    def _wanted(self, solver, system, rows, values):
        """Return how many eigenvectors are of use: further ones would allow larger batches than there are."""
        if solver.n_eigenvectors is not None:
            return solver.n_eigenvectors
        # what is left of a row, without the leading ones
        before = (np.cumsum(values) - values) / (values.sum() or 1.0)
        short = np.maximum(1 - before, 0) * np.mean(np.sum(rows * rows, axis=1))
        enough = int((values > (short + system.ridge) * system.shape[0] / self.batch_size).sum())
        # those of all rows are no estimates
        is_whole = self.n_sample == self._n_usable
        return min(enough, max(self.n_sample // 5, 100) if is_whole else self.n_sample // 5)
