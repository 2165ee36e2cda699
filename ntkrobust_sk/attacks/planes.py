"""The nearest point of a plane within bounds, in each norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .norms import bisect

# By how many last bits the scores of another program may differ.
ROUNDING = 4
# Of Newton's method at most; it passes at least one piece of a piecewise linear function in each.
NEWTON_STEPS = 50


def to_plane(norm: str, w, r, x, ball):
    """The shortest d with ⟨w, d⟩ = r and x + d within the bounds; where there is none, the furthest that way.

    Every feature goes the way that helps, d_i = sign(r w_i) min(λ v_i, p_i), up to the distance p_i of its bound:
    v = 1 for L∞ and |w| for L2. ⟨w, d⟩ grows with λ along a concave, piecewise linear function, on which Newton's
    method comes from below without ever going too far. For L1 the features of the largest |w_i| go all the way to
    their bounds, and the last one as far as is needed.

    Parameters
    ----------
    norm : {"linf", "l2", "l1"}
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
    if norm == "l1":
        return sign * _greedily(weight, room, jnp.abs(r)[:, None])
    speed = jnp.ones_like(w) if norm == "linf" else weight
    wanted = jnp.abs(r)

    def look(rate):
        """What is missing at a rate, in units of the slope; 0 where nothing is, or nothing more can be had."""
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


def _greedily(weight, room, wanted):
    """Changes of the features of the largest weights, as far as there is room, that together make ``wanted``."""
    # what is unbounded never has to go further than this
    room = jnp.where(weight > 0, jnp.minimum(room, wanted / jnp.where(weight > 0, weight, 1)), 0)

    def made(chosen):
        return jnp.sum(jnp.where(chosen, weight * room, 0), axis=1, keepdims=True)

    low, high = bisect(lambda least: made(weight > least) <= wanted, jnp.max(weight, axis=1, keepdims=True))
    # the weights between the two are as good as equal
    whole, shared = weight > high, (weight > low) & (weight <= high)
    share = (wanted - made(whole)) / jnp.maximum(made(shared), jnp.finfo(weight.dtype).tiny)
    return jnp.where(whole, room, jnp.where(shared, jnp.clip(share, 0, 1) * room, 0))
