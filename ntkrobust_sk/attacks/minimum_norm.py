"""What attacks share that look for the nearest wrongly answered point."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..execution.convolutions import with_fast_gradients
from .climbing import Climbing
from .entry import given
from .losses import answers_wrongly, margin
from .norms import NORMS
from .planes import ROUNDING, to_plane
from .threat_model import unusable, usable

# Rounds in which what was found is refined, halvings in each, and how far beyond the boundary it is left.
ROUNDS, HALVINGS, BEYOND = 3, 6, 5e-4


class Found(NamedTuple):
    """The nearest wrongly answered point of each example, its distance, and whether a gradient was not finite."""

    x: jax.Array
    distance: jax.Array
    lost: jax.Array

    def or_nearer(self, at, wrong, distance):
        """``at`` (n, d) where it is answered wrongly and nearer, otherwise what was found before."""
        nearer = wrong & (distance < self.distance)
        x, distance = jnp.where(nearer[:, None], at, self.x), jnp.where(nearer, distance, self.distance)
        return self._replace(x=x, distance=distance)

    def having_met(self, gradient, value, ball):
        """The same after a gradient (n, d) of values (n,). The search may go where there are no values at all."""
        return self._replace(lost=self.lost | (unusable(gradient, ball) & jnp.isfinite(value)))


class MinimumNorm(Climbing):
    """Attacks that look for the nearest wrongly answered point, and only then ask whether epsilon holds it.

    They have ``_search(model, x, y, keys, ball, found)`` on flat rows x (n, d), which returns what it has found.
    """

    def examples(self, model, x, y, key):
        """Adversarial examples (n, ...), and whether a gradient on the way was not finite (n,)."""
        at = given(self, model, x, y, key, labels=True)
        found = self._found(at)
        near = (found.distance <= at.ball.epsilon)[:, None]
        return jnp.where(near, found.x, at.x).reshape(at.shape), found.lost

    def nearest(self, model, x, y, *, key):
        """The nearest wrongly answered points (n, ...) that were found, and how far they are (n,).

        An input that is answered wrongly is its own nearest point; one for which nothing was found is infinitely
        far from it.
        """
        at = given(self, model, x, y, key, labels=True)
        found = self._found(at)
        return found.x.reshape(at.shape), found.distance

    def _found(self, at):
        found = self._search(at.model, at.x, at.y, at.keys, at.ball, _as_they_are(at.model, at.x, at.y))
        return refined(self.norm, at.model, at.x, at.y, at.ball, found)


@jax.jit
def _as_they_are(model, x, y):
    distance = jnp.where(answers_wrongly(model(x), y), 0, jnp.inf).astype(x.dtype)
    return Found(x, distance, jnp.zeros(len(x), bool))


@partial(jax.jit, static_argnames="norm")
def refined(norm, model, x, y, ball, found):
    """What was found, moved to the nearest point of the boundary around it.

    In each round the margin is linearised at the point found (at the input where there is none), and the input is
    projected to the plane where it vanishes, within the bounds. The boundary then lies between the input and that
    projection where its answer is wrong already, otherwise between it and the point found; halving finds it there.
    For a linear margin the first round is exact. The result lies a little beyond, so that the rounding of another
    program does not change the answer.
    """
    length = NORMS[norm].length

    def margins(z):
        scores = with_fast_gradients(model)(z)
        values = margin(scores, y)
        size = jnp.max(jnp.abs(scores), axis=1)
        # in the inputs' precision: networks may compute in a higher one
        return values.sum(), (values.astype(z.dtype), size.astype(z.dtype))

    def wrong(z):
        return answers_wrongly(model(z), y)[:, None]

    def beyond(z):
        return jnp.clip(x + (1 + BEYOND) * (z - x), ball.lower, ball.upper)

    def refine(_, found):
        gradient, (value, size) = jax.grad(margins, has_aux=True)(found.x)
        found = found.having_met(gradient, value, ball)
        gradient = usable(gradient, ball)
        # that of the scores, and of the terms that they are sums of
        size = size + jnp.sum(jnp.abs(gradient * found.x), axis=1)
        rounding = ROUNDING * jnp.finfo(x.dtype).eps * size
        wanted = jnp.sum(gradient * (found.x - x), axis=1) - value - rounding
        plane = beyond(x + to_plane(norm, gradient, jnp.where(jnp.isfinite(wanted), wanted, 0), x, ball))
        crossed = wrong(plane)
        first, last = jnp.where(crossed, x, plane), jnp.where(crossed, plane, found.x)

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            over = wrong(first + middle * (last - first))
            return jnp.where(over, low, middle), jnp.where(over, middle, high)

        ends = jnp.zeros((len(x), 1), x.dtype), jnp.ones((len(x), 1), x.dtype)
        share = jax.lax.fori_loop(0, HALVINGS, halve, ends)[1]
        at = jnp.where(share < 1, first + share * (last - first), last)
        ends_wrong = (crossed | jnp.isfinite(found.distance)[:, None])[:, 0]
        return found.or_nearer(at, ends_wrong, length(at - x).reshape(-1))

    found = jax.lax.fori_loop(0, ROUNDS, refine, found)
    at = beyond(found.x)
    moved = wrong(at) & jnp.isfinite(found.distance)[:, None]
    distance = jnp.where(moved[:, 0], length(at - x).reshape(-1), found.distance)
    return found._replace(x=jnp.where(moved, at, found.x), distance=distance)
