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
        Training inputs of positive weight.
    root : array (m,)
        Roots of their weights.
    factor : array (S, N, N)
        L with L Lᵀ = W^½ K W^½ + λ, of each system.
    """

    kernel: Callable = field(metadata={"static": True})
    model: Model
    x_fit: jax.Array | np.ndarray
    root: jax.Array | np.ndarray
    factor: jax.Array | np.ndarray

    def both(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute prior and posterior variances of inputs (n, ...)."""
        prior = PriorVariance(self.kernel, self.model)(x)
        right = _by_system(self.kernel(self.model, x, self.x_fit), self.root)
        solved = jax.scipy.linalg.solve_triangular(self.factor, right, lower=True)
        explained = (solved**2).sum(1).reshape(len(self.factor), len(x), -1)
        return prior, _posterior(jnp, prior, explained)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the variances of inputs (n, ...)."""
        return self.both(x)[1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PosteriorDeviation(Portable):
    """The standard deviations x ↦ (n, T) of each target's function, a callable pytree.

    Attributes
    ----------
    variance : PosteriorVariance
    scale : array (T,)
        Of each target: the variance in units of the kernel's.
    """

    variance: PosteriorVariance
    scale: jax.Array | np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the deviations of inputs (n, ...)."""
        return jnp.sqrt(self.variance(x) * self.scale)


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
        prior, posterior = self.variance.both(x)
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

    Attributes
    ----------
    factor : array (S, N, N)
    root : array (m,)
    ridge : float
        λ, the noise variance of a row of weight one in units of the prior's scale.
    seen : bool array (n,)
        Rows of positive weight.
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
            With all training inputs; those of weight zero are left out here.
        """
        right = _by_system(np.asarray(block[:, self.seen], np.float64), self.root)
        options = {"lower": True, "check_finite": False}
        explained = [
            (scipy.linalg.solve_triangular(factor, of, **options) ** 2).sum(0)
            for factor, of in zip(self.factor, right, strict=True)
        ]
        return _posterior(np, prior, np.reshape(explained, (len(self.factor), len(prior), -1)))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Shares (m,) of the prior variance that the others leave of each training row.

        Of A = W^½ K W^½ + λ, the inverse of the i-th diagonal block of A⁻¹ is the variance of row i's target given
        all others; less λ it is that of its function. λ stays that of the fit.
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

    def pytree(self, kernel: Callable, model: Model, x_fit: np.ndarray, dtype) -> PosteriorVariance:
        """Return the same as a function of inputs in the precision of a network."""
        arrays = x_fit[self.seen], self.root.astype(dtype), self.factor.astype(dtype)
        return PosteriorVariance(kernel, model, *map(jnp.asarray, arrays))


def make_posterior(gram: np.ndarray, ridge: float, sample_weight: np.ndarray | None = None) -> Posterior:
    """Return the posterior of a Gaussian process with this Gram matrix and noise variance.

    Parameters
    ----------
    gram : array (n, n), (n, n, C) or (n, n, C, C)
        Prior covariance of the training rows; of the class kernel outputs are independent.
    ridge : float
        Noise variance λ of a row of weight one; that of a row of weight w is λ/w.
    sample_weight : array (n,), default=None

    Raises
    ------
    SingularGramError
        If the matrix with the noise is not positive definite to working precision.
    """
    weight = np.ones(len(gram)) if sample_weight is None else sample_weight
    seen, root = weight > 0, np.sqrt(weight[weight > 0])
    systems = _by_system(_by_rows(np.asarray(gram[seen][:, seen], np.float64), root), root)
    factors = []
    for system in systems:
        system = np.ascontiguousarray(system)
        system[np.diag_indices(len(system))] += ridge
        try:
            factors.append(scipy.linalg.cholesky(system, lower=True, overwrite_a=True, check_finite=False))
        except np.linalg.LinAlgError as error:
            raise SingularGramError(
                f"the Gram matrix with the noise variance {ridge:.3g} is not positive definite: {error}; take a "
                "larger alpha"
            ) from error
    return Posterior(np.stack(factors), root, ridge, seen)


def _by_rows(block, root):
    return block * root.reshape(-1, *[1] * (block.ndim - 1))


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
