"""Variances of the Gaussian process whose prior covariance is a kernel: callable pytrees, and on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from .._portable import Portable
from ..networks.model import Model
from ..solvers.direct import SingularGramError
from ..solvers.rows import SCORES_OF
from .edited_functions import told_apart
from .ntk import Kernel


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PriorVariance(Portable):
    """The prior variances x ↦ k(x, x) (n, C) of each output, or (n, 1) of a kernel for all outputs."""

    kernel: Callable = field(metadata={"static": True})
    model: Model

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the variances of inputs (n, ...)."""
        block = jnp.moveaxis(jnp.diagonal(self.kernel(self.model, x, x)), -1, 0)
        return jnp.diagonal(block, axis1=1, axis2=2) if block.ndim == 3 else block.reshape(len(x), -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PosteriorVariance(Portable):
    """The posterior variances x ↦ k(x, x) - k(x, X) (K + λ W⁻¹)⁻¹ k(X, x), as for :class:`PriorVariance`.

    Attributes
    ----------
    kernel : callable
    model : Model
    x_fit : array (m, ...)
        Distinct training inputs of positive weight.
    root : array (m,)
        Roots of their weights, those of all copies together.
    factor : array (S, N, N)
        L with L Lᵀ = W^½ K W^½ + λ, of each system.
    """

    kernel: Callable = field(metadata={"static": True})
    model: Model
    x_fit: jax.Array | np.ndarray
    root: jax.Array | np.ndarray
    factor: jax.Array | np.ndarray

    def parts(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute prior and posterior variances of inputs (n, ...), and their kernel with training's."""
        prior, block = PriorVariance(self.kernel, self.model)(x), self.kernel(self.model, x, self.x_fit)
        solved = jax.scipy.linalg.solve_triangular(self.factor, _by_system(block, self.root), lower=True)
        explained = (solved**2).sum(1).reshape(len(self.factor), len(x), -1)
        return prior, _posterior(jnp, prior, explained), block

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the variances of inputs (n, ...)."""
        return self.parts(x)[1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PosteriorDeviation(Portable):
    """The standard deviations x ↦ (n, T) of each target's function from what is predicted, a callable pytree.

    Attributes
    ----------
    variance : PosteriorVariance
    scale : array (T,)
        Of each target: the variance in units of the kernel's.
    gap : array (m, T), default=None
        Dual coefficients of the posterior mean less what is predicted, where these are not the same.
    """

    variance: PosteriorVariance
    scale: jax.Array | np.ndarray
    gap: jax.Array | np.ndarray | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the deviations of inputs (n, ...)."""
        _, posterior, block = self.variance.parts(x)
        squares = posterior * self.scale
        if self.gap is not None:
            off = jnp.einsum(SCORES_OF[block.ndim], block, self.gap, precision=jax.lax.Precision.HIGHEST)
            squares = squares + off**2
        return jnp.sqrt(squares)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OutOfDistribution(Portable):
    """Scores x ↦ (n, 2) of "like the training data" and "unlike it", a callable pytree.

    The first is 0, the second logit(r) - logit(threshold), where r is the share of the prior variance that the
    training data leave. So an attack on label 0 raises r, and one on label 1 lowers it.

    Attributes
    ----------
    variance : PosteriorVariance
    threshold : array ()
    """

    variance: PosteriorVariance
    threshold: jax.Array | np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the scores of inputs (n, ...)."""
        prior, posterior, _ = self.variance.parts(x)
        share = _share(jnp, prior, posterior)
        tiny = jnp.finfo(share.dtype).eps

        def logit(share):
            share = jnp.clip(share, tiny, 1 - tiny)
            return jnp.log(share) - jnp.log1p(-share)

        unlike = logit(share) - logit(self.threshold.astype(share.dtype))
        return jnp.stack([jnp.zeros_like(unlike), unlike], axis=1)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of a fitted machine in double precision, on the host.

    A row that is written several times is one row with the weight of all, which is the same process.

    Attributes
    ----------
    factor : array (S, N, N)
        L with L Lᵀ = W^½ K W^½ + λ, of each system.
    root : array (m,)
        Roots of the weights of distinct training rows.
    ridge : float
        λ, the noise variance of a row of weight one in units of the prior's scale.
    seen : int array (m,)
        These rows, all of positive weight, among the n training rows.
    """

    factor: np.ndarray
    root: np.ndarray
    ridge: float
    seen: np.ndarray

    def variances(self, prior: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Return the posterior variances of inputs, from prior ones (n, C) and their kernel with training's.

        Parameters
        ----------
        prior : array (n, 1) or (n, C)
        block : array (n, m), (n, m, C) or (n, m, C, C)
            With the distinct training rows.
        """
        right = _by_system(np.asarray(block, np.float64), self.root)
        options = {"lower": True, "check_finite": False}
        explained = [
            (scipy.linalg.solve_triangular(factor, of, **options) ** 2).sum(0)
            for factor, of in zip(self.factor, right, strict=True)
        ]
        return _posterior(np, prior, np.reshape(explained, (len(self.factor), len(prior), -1)))

    def regression(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return α = (K + λ W⁻¹)⁻¹ y of the mean (m, T) and yᵀα (T,), of the full kernel an equal share of it.

        Parameters
        ----------
        targets : array (m, T)
            y, of the distinct training rows.
        """
        size, (m, n_targets) = self.factor.shape[-1], targets.shape
        right = self.root[:, None] * targets
        systems = right.T[:, :, None] if len(self.factor) > 1 else right.reshape(1, size, -1)
        pairs = zip(self.factor, systems, strict=True)
        found = [scipy.linalg.cho_solve((of, True), b, check_finite=False) for of, b in pairs]
        products = np.concatenate([(x * b).sum(0) for x, b in zip(found, systems, strict=True)])
        dual = np.hstack(found) if len(found) > 1 else found[0].reshape(m, n_targets)
        return self.root[:, None] * dual, np.repeat(products, n_targets // len(products)) * len(
            products
        ) / n_targets

    @cached_property
    def left_out(self) -> np.ndarray:
        """Shares (m,) of the prior variance that the others leave of each distinct training row.

        Of A = W^½ K W^½ + λ, the inverse of the i-th diagonal block of A⁻¹ is the variance of row i's target given
        all others; less λ it is that of its function. λ stays that of the fit. No copy of a row is left in.
        """
        size, m = self.factor.shape[-1], len(self.root)
        posterior = prior = np.zeros(m)
        for factor in self.factor:
            inverse = scipy.linalg.solve_triangular(factor, np.eye(size), lower=True, check_finite=False)
            by_row = inverse.reshape(size, m, -1)
            inner = np.einsum("kic,kid->icd", by_row, by_row, optimize=True)
            given = np.trace(np.linalg.inv(inner), axis1=1, axis2=2)
            own = np.einsum("ik,ik->i", factor, factor).reshape(m, -1)
            posterior = posterior + given - self.ridge * own.shape[1]
            prior = prior + own.sum(1) - self.ridge * own.shape[1]
        return _share(np, prior[:, None], posterior[:, None])

    def threshold(self, level: float) -> float:
        """Return the least share that is not passed by a share ``level`` of the training rows, by their weights.

        So a row of weight two counts as a row that is written twice.
        """
        # sums of weights that reach it but for rounding do
        level = level * (1 - 1e-9)
        return float(np.quantile(self.left_out, level, weights=self.root**2, method="inverted_cdf"))

    def pytree(self, kernel: Kernel, model: Model, x_fit: np.ndarray, dtype) -> PosteriorVariance:
        """Return the same as a function of inputs in the precision of a network."""
        arrays = x_fit[self.seen], self.root.astype(dtype), self.factor.astype(dtype)
        kernel = told_apart(kernel, model, x_fit.shape[1:], x_fit.dtype)
        return PosteriorVariance(kernel, model, *map(jnp.asarray, arrays))


def make_posterior(gram: np.ndarray, ridge: float, weight: np.ndarray, seen: np.ndarray) -> Posterior:
    """Return the posterior of a Gaussian process with this Gram matrix and noise variance.

    Parameters
    ----------
    gram : array (m, m), (m, m, C) or (m, m, C, C)
        Prior covariance of the distinct training rows; of the class kernel outputs are independent.
    ridge : float
        Noise variance λ of a row of weight one; that of a row of weight w is λ/w.
    weight : array (m,)
        Positive.
    seen : int array (m,)
        Which of the training rows these are.

    Raises
    ------
    SingularGramError
        If the matrix with the noise is not positive definite to working precision.
    """
    root, m = np.sqrt(weight), len(gram)
    size = m * (gram.shape[3] if gram.ndim == 4 else 1)
    factors = np.empty((gram.shape[2] if gram.ndim == 3 else 1, size, size))
    for i, A in enumerate(factors):
        A[...] = (
            gram[:, :, i]
            if gram.ndim == 3
            else gram.swapaxes(1, 2).reshape(size, size)
            if gram.ndim == 4
            else gram
        )
        A *= np.repeat(root, size // m)[:, None]
        A *= np.repeat(root, size // m)
        A[np.diag_indices(size)] += ridge
        try:
            # the upper factor of what LAPACK sees as the transposed matrix is the lower one of this: in place
            A[...] = scipy.linalg.cholesky(A.T, lower=False, overwrite_a=True, check_finite=False).T
        except np.linalg.LinAlgError as error:
            raise SingularGramError(
                f"the Gram matrix with the noise variance {ridge:.3g} is not positive definite: {error}; take a "
                "larger alpha"
            ) from error
    return Posterior(factors, root, ridge, seen)


def _by_system(block, root):
    """Return kernels (n, m, ...) of queries with weighed training rows as right-hand sides (S, N, queries)."""
    m = block.shape[1]
    block = block * root.reshape(1, m, *[1] * (block.ndim - 2))
    if block.ndim == 2:
        return block.T[None]
    if block.ndim == 3:
        return block.transpose(2, 1, 0)
    return block.transpose(1, 3, 0, 2).reshape(1, m * block.shape[3], -1)


def _posterior(xp, prior, explained):
    """Return variances (n, C) of prior ones and what training explains (S, n, c), never below rounding."""
    explained = explained[0] if len(explained) == 1 else explained[..., 0].T
    return xp.maximum(prior - explained, xp.finfo(prior.dtype).eps * prior)


def _share(xp, prior, posterior):
    """Return the share (n,) of the prior variance that is left, 1 where the kernel vanishes."""
    prior, posterior = prior.sum(1), posterior.sum(1)
    known = prior > 0
    return xp.clip(xp.where(known, posterior / xp.where(known, prior, 1), 1), 0, 1)
