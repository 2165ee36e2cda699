"""Minimum-norm attacks by gradients, which ask how far the nearest wrongly answered point is.

Both walk along the decision boundary: the radius of the ball that holds the iterate shrinks while the answer is
wrong and grows while it is right. They take a few gradients where :class:`~ntkrobust_sk.FAB` takes some for each
class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .boxes import Box
from .losses import answers_wrongly, gradient_of, log_odds, margin
from .minimum_norm import MinimumNorm, Walk
from .norms import NORMS
from .threat_model import free, project

# Where steps end, as a share of the first one, and where the relative change of the radius ends.
LEAST_STEP, LEAST_GAMMA = 0.01, 1e-4


@dataclass(frozen=True)
class FMN(MinimumNorm):
    """Fast minimum-norm attack (Pintor et al. 2021, arXiv:2102.12827).

    Descends the margin z_y − max_{c≠y} z_c by steps of Euclidean length α_k, each projected to the ball of radius
    ε_k and to the bounds. ε_k grows or shrinks by γ_k; before a first wrong answer it reaches by γ_k beyond where
    the margin's linearisation vanishes, ‖δ‖ + margin / ‖∇margin‖ in the dual norm. α and γ fall like a cosine. Of
    each example the nearest point found is returned if it lies within epsilon, otherwise the input.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data. Points beyond it do not count; the search does not know it.
    n_steps : int, default=100
    norm : {"linf", "l2", "l1"}, default="linf"
    step_size : float, default=1.0
        Euclidean length of the first step, in units of the data; the last one is a hundredth of it.
    gamma : float, default=0.05
        First relative change of the radius, in (0, 1); the last one is 1e-4.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`; for gamma outside of (0, 1); when called, for labels that are not
        integers.

    Notes
    -----
    It draws nothing: ``key`` is not used.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import FMN
    >>> across = jax.tree_util.Partial(lambda x: jax.numpy.stack([x[:, 0], 1 - x[:, 0]], 1))
    >>> x, y = jax.numpy.array([[0.9, 0.5], [0.3, 0.5]]), jax.numpy.array([0, 1])
    >>> points, distances = FMN(epsilon=1.0, n_steps=50).nearest(across, x, y, key=jax.random.key(0))
    >>> [f"{distance:.2f}" for distance in distances]
    ['0.40', '0.20']
    """

    epsilon: float
    n_steps: int = 100
    norm: str = "linf"
    step_size: float = 1.0
    gamma: float = 0.05
    bounds: tuple | Box | None = (0.0, 1.0)

    def _search(self, given, found):
        return self._walked(_fmn_step, given, found, jnp.inf, self.step_size, self.gamma)


@dataclass(frozen=True)
class DDN(MinimumNorm):
    """Decoupled direction and norm (Rony et al. 2019, arXiv:1811.09600), in the Euclidean norm.

    The direction follows the gradient of the cross-entropy, δ ← δ + α_k ∇/‖∇‖; the length is set apart from it,
    δ ← ε_k δ/‖δ‖, by a radius that falls by the factor 1 − γ while the answer is wrong and grows by 1 + γ while it
    is right. Of each example the nearest point found is returned if it lies within epsilon, otherwise the input.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data. Points beyond it do not count; the search does not know it.
    n_steps : int, default=100
    step_size : float, default=1.0
        Length of the first step, in units of the data; it falls to a hundredth like a cosine.
    radius : float, default=1.0
        First length of the change, in units of the data.
    gamma : float, default=0.05
        Relative change of the radius in each step, in (0, 1), and so the precision of what is found.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.FMN`.

    Notes
    -----
    It draws nothing: ``key`` is not used.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import DDN
    >>> across = jax.tree_util.Partial(lambda x: jax.numpy.stack([x[:, 0], 1 - x[:, 0]], 1))
    >>> x, y = jax.numpy.array([[0.9, 0.5], [0.3, 0.5]]), jax.numpy.array([0, 1])
    >>> points, distances = DDN(epsilon=1.0).nearest(across, x, y, key=jax.random.key(0))
    >>> [bool(exact <= distance < 1.06 * exact) for distance, exact in zip(distances, (0.4, 0.2))]
    [True, True]
    """

    epsilon: float
    n_steps: int = 100
    step_size: float = 1.0
    radius: float = 1.0
    gamma: float = 0.05
    bounds: tuple | Box | None = (0.0, 1.0)
    norm = "l2"

    def _search(self, given, found):
        return self._walked(_ddn_step, given, found, self.radius, self.step_size, self.gamma)


@partial(jax.jit, static_argnames="norm")
def _fmn_step(norm, state, number, model, x, y, ball, first_step, gamma, n_steps):
    now = number / n_steps
    gradient, margins, _ = gradient_of(lambda scores: margin(scores, y), model, state.x)
    # in the inputs' precision: networks may compute in a higher one
    margins = margins.astype(x.dtype)
    before, gradient = state.found.having_met(gradient, margins, ball)
    gradient = jnp.where(free(-gradient, state.x, ball), gradient, 0)
    wrong, distance = margins < 0, NORMS[norm].length(state.x - x).reshape(-1)
    ever, found = jnp.isfinite(before.distance), before.or_nearer(state.x, wrong, distance)
    gamma = cosine(gamma, LEAST_GAMMA, now)
    slope = NORMS[NORMS[norm].dual].length(gradient).reshape(-1)
    # a little beyond the linearisation's zero too, on which rounding would let the iterate rest
    outwards = jnp.where(ever, state.length, distance + margins / slope) * (1 + gamma)
    radius = jnp.where(wrong, jnp.minimum(state.length * (1 - gamma), found.distance), outwards)
    ahead = state.x - cosine(first_step, LEAST_STEP * first_step, now) * NORMS["l2"].steepest(gradient)
    # within bounds first, so that no length is spent on what they take away
    ahead = jnp.clip(ahead, ball.lower, ball.upper)
    return Walk(project(NORMS[norm], x, ahead, ball._replace(epsilon=radius[:, None])), radius, found)


@partial(jax.jit, static_argnames="norm")
def _ddn_step(norm, state, number, model, x, y, ball, first_step, gamma, n_steps):
    now = number / n_steps
    gradient, losses, scores = gradient_of(lambda scores: log_odds(scores, y), model, state.x)
    found, gradient = state.found.having_met(gradient, losses, ball)
    gradient = jnp.where(free(gradient, state.x, ball), gradient, 0)
    wrong, distance = answers_wrongly(scores, y), NORMS[norm].length(state.x - x).reshape(-1)
    radius = state.length * jnp.where(wrong, 1 - gamma, 1 + gamma)
    step_size = cosine(first_step, LEAST_STEP * first_step, now)
    direction = NORMS[norm].steepest(state.x - x + step_size * NORMS[norm].steepest(gradient))
    ahead = jnp.clip(x + radius[:, None] * direction, ball.lower, ball.upper)
    return Walk(ahead, radius, found.or_nearer(state.x, wrong, distance))


def cosine(first: jax.Array, last: Any, share: Any) -> jax.Array:
    """Return what falls like a cosine from the first value to the last one as the share goes from 0 to 1."""
    return (last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2).astype(first.dtype)
