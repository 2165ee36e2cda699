"""The nearest point of a plane within bounds, in each norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .norms import L0, Norm, bisect
from .threat_model import Ball

# Number of last bits by which the scores of another program may differ.
ROUNDING = 4
# Largest number of Newton's steps, each of which passes one piece or more of a piecewise linear function.
NEWTON_STEPS = 50


def to_plane(
    norm: Norm | L0, w: Float[Any, "n d"], r: Float[Any, " n"], x: Float[Any, "n d"], ball: Ball
) -> Float[Any, "n d"]:
    """Return the shortest d with ⟨w, d⟩ = r and x + d within the bounds; where there is none, the furthest.

    Every feature goes the way that helps, d_i = sign(r w_i) min(λ v_i, p_i), up to the distance p_i of its bound:
    v = 1 for L∞ and |w| for L2. ⟨w, d⟩ grows with λ along a concave, piecewise linear function, on which Newton's
    method comes from below without ever going too far. For L1 the features of the largest |w_i| go all the way to
    their bounds, and the last one as far as is needed. For L0 those that help most go to their bounds.

    Parameters
    ----------
    norm : Norm or L0
    w, x : array (n, d)
    r : array (n,)
    ball : Ball
    """
    # the plane is the same, and squares of very small or large gradients are numbers
    largest = jnp.max(jnp.abs(w), axis=1)
    largest = jnp.where(largest > 0, largest, 1)
    w, r = w / largest[:, None], r / largest
    sign = jnp.where(r[:, None] >= 0, 1, -1) * jnp.sign(w)
    room = jnp.where(sign > 0, ball.upper - x, jnp.where(sign < 0, x - ball.lower, 0))
    weight = jnp.abs(w)
    if norm.order == 0:
        return sign * _by_few(weight, room, jnp.abs(r)[:, None])
    if norm.is_sparse:
        return sign * _greedily(weight, room, jnp.abs(r)[:, None])
    speed = jnp.ones_like(w) if norm.order == jnp.inf else weight
    wanted = jnp.abs(r)

    def look(rate):
        """Return what is missing at a rate, in units of the slope; 0 where nothing is or can be had."""
        step = rate[:, None] * speed
        missing = wanted - jnp.sum(weight * jnp.minimum(step, room), axis=1)
        slope = jnp.sum(jnp.where(step < room, weight * speed, 0), axis=1)
        short = (missing > 4 * jnp.finfo(x.dtype).eps * wanted) & (slope > 0)
        return jnp.where(short, missing / jnp.where(short, slope, 1), 0)

    def newton(state):
        n_steps, rate, missing = state
        return n_steps + 1, rate + missing, look(rate + missing)

    start = jnp.zeros_like(wanted)
    state = (0, start, look(start))
    _, rate, _ = jax.lax.while_loop(lambda s: (s[0] < NEWTON_STEPS) & jnp.any(s[2] > 0), newton, state)
    return sign * jnp.minimum(rate[:, None] * speed, room)


def _by_few(weight, room, wanted):
    """Return changes of the fewest features that together make ``wanted``, each as far as there is room."""
    # what is unbounded goes no further than it has to by itself
    room = jnp.where(weight > 0, jnp.minimum(room, wanted / jnp.where(weight > 0, weight, 1)), 0)
    gain = weight * room
    order = jnp.argsort(-gain, axis=1)
    before = jnp.cumsum(jnp.take_along_axis(gain, order, 1), axis=1) - jnp.take_along_axis(gain, order, 1)
    chosen = jnp.take_along_axis(before < wanted, jnp.argsort(order, axis=1), 1)
    return jnp.where(chosen, room, 0)


def _greedily(weight, room, wanted):
    """Return changes of the features of the largest weights, within their room, that together make ``wanted``."""
    # what is unbounded never has to go further than this
    room = jnp.where(weight > 0, jnp.minimum(room, wanted / jnp.where(weight > 0, weight, 1)), 0)

    def made(chosen):
        return jnp.sum(jnp.where(chosen, weight * room, 0), axis=1, keepdims=True)

    low, high = bisect(lambda least: made(weight > least) <= wanted, jnp.max(weight, axis=1, keepdims=True))
    # the weights between the two are as good as equal
    whole, shared = weight > high, (weight > low) & (weight <= high)
    share = (wanted - made(whole)) / jnp.maximum(made(shared), jnp.finfo(weight.dtype).tiny)
    return jnp.where(whole, room, jnp.where(shared, jnp.clip(share, 0, 1) * room, 0))
