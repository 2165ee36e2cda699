"""EigenPro: stochastic gradient descent on rows of features, preconditioned by the leading eigenvectors."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from .._validation import integer, number
from .convergence import SolveReport
from .direct import InaccurateSolveError
from .features import FeatureGram
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
        step = 1.0
        for _ in range(RETRIES):
            found = self._descend(system, B, preconditioner, step)
            if found is not None:
                dual, residual, n_epochs = found
                detail = f"{preconditioner.n_eigenvectors} eigenvectors, batches of {preconditioner.batch_size}"
                return dual, SolveReport(self, n_epochs, residual, residual <= self.tol, system.ridge, detail)
            step /= 4
        raise InaccurateSolveError(
            f"EigenPro diverges, also with steps of {step:.0e} of what its sample of {preconditioner.n_sample} "
            "rows says: the features' lengths differ too much. Raise n_sample, or scale the features"
        )

    def _descend(self, system, B, preconditioner, scale):
        """Return dual coefficients, residual and the number of epochs; None if it diverges.

        In each step w falls by P((n/m) Φ_Bᵀ(e_B - h_B) + H + λ w) times a step length, with errors e = Φ w - y of
        the batch, those h that each row had when it was last seen, and H = Φᵀ h.
        """
        gram, n, size = system.gram, system.shape[0], preconditioner.batch_size
        draw = np.random.default_rng([self.seed, 1])
        seen, weights = -B, np.zeros((gram.n_features, B.shape[1]))
        seen_gradient = _folded(system, seen)
        right = np.linalg.norm(seen_gradient)
        dual = _Dual(system, B.shape, preconditioner, scale)
        length, residual = dual.length, 1.0 if right else 0.0
        for epoch in range(1, self.max_epochs + 1):
            order = draw.permutation(n)
            for first in range(0, n, size):
                at = np.sort(order[first : first + size])
                rows = _rooted_rows(system, at)
                error = (rows @ weights.astype(rows.dtype)) - B[at]
                change = error - seen[at]
                of_batch = (rows.T @ change.astype(rows.dtype)).astype(np.float64)
                gradient = (n / size) * of_batch + seen_gradient + system.ridge * weights
                along = preconditioner.directions.T @ gradient
                weights -= length * (gradient - preconditioner.to_weights @ along)
                dual.move(at, seen[at], (n / size) * change, along)
                seen[at] = error
                seen_gradient += of_batch
            found = np.linalg.norm(seen_gradient + system.ridge * weights)
            if not found <= 10 * right:
                return None
            if epoch == self.max_epochs or found <= self.tol * right:
                residual = _residual(system, B, weights)
                if residual <= self.tol:
                    break
        return dual.finished(seen), residual, epoch


class _Dual:
    """Dual coefficients a with w = Φᵀ a, which fall by h + λ a in each step, and in more places at the batch.

    What all rows do alike is done when a row is seen again: h has not changed meanwhile.
    """

    def __init__(self, system, shape, preconditioner, scale):
        self.length = scale * preconditioner.step * preconditioner.batch_size / shape[0]
        self._shrink = 1 - self.length * system.ridge
        self._coefficients, self._last, self._now = np.zeros(shape), np.zeros(shape[0], int), 0
        self._of_sample, self._preconditioner = np.zeros((preconditioner.n_sample, shape[1])), preconditioner

    def move(self, at, seen, change, along):
        """Take a step at rows ``at``, whose errors were ``seen`` and ``change``, and along the eigenvectors."""
        self._coefficients[at] = self._at_present(at, seen, 1) - self.length * change
        self._now += 1
        self._last[at] = self._now
        self._of_sample = self._shrink * self._of_sample + self.length * (self._preconditioner.to_dual @ along)

    def _at_present(self, at, seen, more=0):
        """Return the coefficients of rows after the steps that they have not been told of."""
        factor = self._shrink ** (self._now + more - self._last[at])[:, None]
        steps = (self._now + more - self._last[at])[:, None].astype(float)
        if self._shrink != 1:
            steps = (1 - factor) / (1 - self._shrink)
        return factor * self._coefficients[at] - self.length * steps * seen

    def finished(self, seen):
        """Return all coefficients (n, T)."""
        found = self._at_present(slice(None), seen)
        found[self._preconditioner.sample] += self._of_sample
        return found


def _rooted_rows(system, at):
    """Return rows of W^½ Φ."""
    rows = system.gram.rows(at)
    return rows if system.root is None else rows * system.root[at, None].astype(rows.dtype)


def _folded(system, V):
    """Compute Φᵀ W^½ V in one pass."""
    return system.gram.fold(V if system.root is None else system.root[:, None] * V).astype(np.float64)


def _residual(system, B, weights) -> float:
    """Compute ‖Φᵀ(Φ w - y) + λ w‖ / ‖Φᵀ y‖ in one pass."""
    gradient, right = system.ridge * weights, np.zeros_like(weights)
    for at, rows in system.gram.blocks():
        if system.root is not None:
            rows = rows * system.root[at, None]
        rows = rows.astype(np.float64, copy=False)
        gradient = gradient + rows.T @ (rows @ weights)
        right += rows.T @ B[at]
    scale = np.linalg.norm(right)
    return float(np.linalg.norm(gradient - right) / scale) if scale else float(np.linalg.norm(gradient))


def _leading(rows):
    """Return eigenvalues of rows (s, k) times their transpose, and eigenvectors (s, r) and (k, r) on both sides.

    From the smaller of both matrices, the largest first, without those that are zero to rounding.
    """
    n, n_features = rows.shape
    values, vectors = scipy.linalg.eigh(rows @ rows.T if n <= n_features else rows.T @ rows)
    kept = values > 1e-10 * max(values[-1], np.finfo(float).tiny)
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    if n <= n_features:
        return values, vectors, rows.T @ (vectors / np.sqrt(values))
    return values, rows @ (vectors / np.sqrt(values)), vectors


class _Preconditioner:
    """The leading eigenvectors of a sample of rows, and the batch and the step that they allow."""

    def __init__(self, solver: EigenPro, system: RidgeSystem):
        gram, n = system.gram, system.shape[0]
        draw = np.random.default_rng(solver.seed)
        usable = np.arange(n) if system.weight is None else np.flatnonzero(system.weight)
        self.n_sample = min(solver.n_sample, len(usable))
        self.sample = np.sort(draw.choice(usable, self.n_sample, replace=False))
        rows = gram.rows(self.sample).astype(np.float64)
        if system.root is not None:
            rows = rows * system.root[self.sample, None]
        lengths = np.sum(rows * rows, axis=1)
        values, vectors, directions = _leading(rows)
        values = values * (len(usable) / self.n_sample)
        most = max(64, min(n // 8, 4096, 2**27 // (8 * gram.n_features)))
        batch = min(n, most if solver.batch_size is None else solver.batch_size)
        rank = len(values)
        if solver.n_eigenvectors is None:
            # further ones would allow larger batches than this: what is left of a row, without the leading ones
            short = np.maximum(lengths.mean() - (np.cumsum(values) - values) / len(usable), 0)
            wanted = min(int((values > (short + system.ridge) * n / batch).sum()), self.n_sample // 5)
        else:
            wanted = solver.n_eigenvectors
        self.n_eigenvectors = q = min(wanted, rank)
        own = values[:q] * self.n_sample / len(usable)
        self.directions = directions[:, :q]
        # other rows than those that the eigenvectors were fitted to
        others = np.setdiff1d(draw.choice(usable, min(1000, len(usable)), replace=False), self.sample)
        seen = rows
        if len(others):
            more = gram.rows(others).astype(np.float64)
            seen = np.concatenate([rows, more if system.root is None else more * system.root[others, None]])
        squares = np.sum(seen * seen, axis=1)
        parts = (seen @ self.directions) ** 2
        short = float(np.maximum(squares - parts.sum(axis=1), 0).max())
        # the leading eigenvalues become this: a batch's products with them are then no larger than with one row
        level = max(float(values[q]) if q < rank else 0.0, (short + system.ridge) * n / batch)
        damping = np.maximum(1 - (level + system.ridge) / (values[:q] + system.ridge), 0)
        self.to_dual = vectors[:, :q] * (damping / np.sqrt(own))
        self.to_weights = self.directions * damping
        largest = float(np.maximum(squares - parts @ damping, 0).max())
        self.batch_size = batch
        self.step = 1 / (largest + system.ridge + (batch - 1) * level / n)
