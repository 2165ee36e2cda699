"""The fewest features whose change makes an answer wrong (Cinà et al. 2025, arXiv:2402.01879).

The number of changed features has no gradient. σ-zero descends a smooth stand-in for it together with the margin,
and puts small changes back to zero after each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from .._validation import number
from ..execution.convolutions import with_fast_convolutions
from .boxes import Box
from .entry import Given
from .fmn import cosine
from .losses import margin
from .minimum_norm import Found, MinimumNorm, Walk
from .norms import LENGTHS

# The last step, as a share of the first one, and the change of the threshold, as a share of a step.
LAST_STEP, THRESHOLD_RATE = 0.1, 0.01


@dataclass(frozen=True)
class SigmaZero(MinimumNorm):
    """σ-zero: the fewest changed features (Cinà et al. 2025, arXiv:2402.01879), ``norm="l0"``.

    Descends max(z_y − max_{c≠y} z_c, 0) + (1/d) Σ_i δ_i² / (δ_i² + σ) by steps of L∞ length η, and puts changes
    below a threshold τ back to zero. τ rises by 0.01 η while the answer is wrong and falls by as much while it is
    right; η falls like a cosine. Of each example the point with the fewest changes is returned if these are at
    most epsilon, otherwise the input. Features of the input count one by one: the channels of a pixel are several,
    and another category of a one-hot group is two.

    Parameters
    ----------
    epsilon : float
        Number of features that may change. Points beyond it do not count; the search does not know it.
    n_steps : int, default=100
    step_size : float, default=1.0
        L∞ length of the first step, in units of the data; the last one is a tenth of it.
    sigma : float, default=1e-3
        Smoothness of the stand-in, in units of the data squared.
    threshold : float, default=0.3
        First value of τ, in units of the data.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`. Without bounds one feature may be enough.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`; for sigma <= 0; when called, for labels that are not integers.

    Notes
    -----
    It draws nothing: ``key`` is not used.

    Examples
    --------
    >>> import jax
    >>> weight = jnp.array([3.0, 1.0, 0.5])
    >>> model = jax.tree_util.Partial(lambda w, x: jnp.stack([x @ w, 1.6 + 0 * x[:, 0]], 1), weight)
    >>> x, y = jnp.array([[0.9, 0.9, 0.9], [0.5, 0.6, 0.9]]), jnp.array([0, 0])
    >>> points, counts = SigmaZero(epsilon=2).nearest(model, x, y, key=jax.random.key(0))
    >>> counts.tolist(), (points != x).sum(1).tolist()
    ([1.0, 1.0], [1, 1])
    """

    epsilon: float
    n_steps: int = 100
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    bounds: tuple | Box | None = (0.0, 1.0)
    norm = "l0"
    norms = ("l0",)
    checks = {
        "epsilon": partial(number, low=0, unit="features"),
        "sigma": partial(number, above=0),
        "threshold": partial(number, low=0, unit="in units of the data"),
    }

    def _search(self, given: Given, found: Found) -> Found:
        return self._walked(_step, given, found, self.threshold, self.step_size, self.sigma)


@partial(jax.jit, static_argnames="norm")
def _step(norm, state, number, model, x, y, ball, first_step, sigma, n_steps):
    def total(z):
        margins = margin(with_fast_convolutions(model)(z), y)
        squares = (z - x) ** 2
        size = jnp.mean(squares / (squares + sigma), axis=1)
        return (jnp.maximum(margins, 0) + size).sum(), margins.astype(z.dtype)

    gradient, margins = jax.grad(total, has_aux=True)(state.x)
    wrong, count = margins < 0, LENGTHS[norm].length(state.x - x).reshape(-1)
    found, gradient = state.found.having_met(gradient, margins, ball)
    largest = jnp.max(jnp.abs(gradient), axis=1, keepdims=True)
    step_size = cosine(first_step, LAST_STEP * first_step, number / n_steps)
    ahead = state.x - step_size * gradient / jnp.where(largest > 0, largest, 1)
    ahead = jnp.clip(ahead, ball.lower, ball.upper)
    threshold = jnp.maximum(state.length + THRESHOLD_RATE * step_size * jnp.where(wrong, 1, -1), 0)
    ahead = jnp.where(jnp.abs(ahead - x) < threshold[:, None], x, ahead)
    return Walk(ahead, threshold, found.or_nearer(state.x, wrong, count))
