"""The part that attacks share which look for the nearest wrongly answered point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..execution.convolutions import with_fast_convolutions
from ..execution.loops import repeat
from .boxes import Box
from .entry import Given, given
from .losses import answers_wrongly, gradient_of, margin
from .norms import LENGTHS
from .planes import ROUNDING, to_plane
from .skeleton import Attack, Outcome
from .threat_model import Ball, in_dtype_of, unusable, usable

# Number of rounds that refine what was found, number of halvings in each, and the share by which it ends beyond.
ROUNDS, HALVINGS, BEYOND = 3, 6, 5e-4


class Found(NamedTuple):
    """The nearest wrongly answered point of each example, its distance, and whether a gradient was not finite."""

    x: jax.Array
    distance: jax.Array
    lost: jax.Array

    def or_nearer(self, at: jax.Array, wrong: jax.Array, distance: jax.Array) -> Found:
        """Return ``at`` (n, d) where it is answered wrongly and nearer, otherwise what was found before."""
        nearer = wrong & (distance < self.distance)
        x, distance = jnp.where(nearer[:, None], at, self.x), jnp.where(nearer, distance, self.distance)
        return self._replace(x=x, distance=distance)

    def having_met(self, gradient: jax.Array, value: jax.Array, ball: Ball) -> tuple[Found, jax.Array]:
        """Note where a gradient (n, d) of values (n,) is not finite, and return what can be used of it.

        Where there are no values at all, nothing is noted.
        """
        lost = self.lost | (unusable(gradient, ball) & jnp.isfinite(value))
        return self._replace(lost=lost), usable(gradient, ball)


class Walk(NamedTuple):
    """The place of a search for each of n examples, the length (n,) that it adapts, and what it has found."""

    x: jax.Array
    length: jax.Array
    found: Found


class MinimumNorm(Attack):
    """An attack that looks for the nearest wrongly answered point, and only then asks whether epsilon holds it."""

    needs_labels = True
    n_steps: int

    @abstractmethod
    def _search(self, given: Given, found: Found) -> Found:
        """Search from checked inputs, and return what is nearer than what was found before."""

    def _walked(self, step: Callable, given: Given, found: Found, length: float, *numbers: float) -> Found:
        """Walk from the inputs by steps that get these numbers, beginning with this length."""
        start = Walk(given.x, jnp.full(len(given.x), length, given.x.dtype), found)
        operands = (given.model, given.x, given.y, given.ball, *in_dtype_of(given.x, *numbers), self.n_steps)
        return repeat(step, self.n_steps, start, *operands, static=(self.norm,)).found

    def _run(self, given: Given) -> Outcome:
        found = self._found(given)
        near = (found.distance <= given.ball.epsilon.reshape(-1))[:, None]
        return Outcome(jnp.where(near, found.x, given.x), found.lost)

    def nearest(self, model: Callable, x: Any, y: Any, *, key: Any) -> tuple[jax.Array, jax.Array]:
        """Return the nearest wrongly answered points (n, ...) that were found, and how far they are (n,).

        An input that is answered wrongly is its own nearest point; one for which nothing was found is infinitely
        far from it.
        """
        checked = given(self, model, x, y, key)
        found = self._found(checked)
        return found.x.reshape(checked.shape), found.distance

    def _found(self, given) -> Found:
        found = self._search(given, _as_they_are(given.model, given.x, given.y))
        found = refined(self.norm, given.model, given.x, given.y, given.ball, found)
        if LENGTHS[self.norm].order == 0 and isinstance(self.bounds, Box) and self.bounds.discrete:
            found = _deepened(given.model, given.x, given.y, given.ball, found, self.bounds.one_hot)
        return found


@jax.jit
def _as_they_are(model, x, y):
    distance = jnp.where(answers_wrongly(model(x), y), 0, jnp.inf).astype(x.dtype)
    return Found(x, distance, jnp.zeros(len(x), bool))


@partial(jax.jit, static_argnames="norm")
def refined(norm: str, model: Callable, x: jax.Array, y: jax.Array, ball: Ball, found: Found) -> Found:
    """Move what was found to the nearest point of the boundary around it.

    In each round the margin is linearised at the point found (at the input where there is none), and the input is
    projected to the plane where it vanishes, within the bounds. The boundary then lies between the input and that
    projection where its answer is wrong already, otherwise between it and the point found; halving finds it there.
    For a linear margin the first round is exact. The result lies a little beyond, so that the rounding of another
    program does not change the answer.
    """
    length = LENGTHS[norm].length

    def wrong(z):
        return answers_wrongly(with_fast_convolutions(model)(z), y)[:, None]

    def beyond(z):
        return jnp.clip(x + (1 + BEYOND) * (z - x), ball.lower, ball.upper)

    def refine(_, found):
        gradient, value, scores = gradient_of(lambda scores: margin(scores, y), model, found.x)
        # in the inputs' precision: networks may compute in a higher one
        value, scores = value.astype(x.dtype), scores.astype(x.dtype)
        found, gradient = found.having_met(gradient, value, ball)
        # that of the scores, and of the terms that they are sums of
        size = jnp.max(jnp.abs(scores), axis=1) + jnp.sum(jnp.abs(gradient * found.x), axis=1)
        rounding = ROUNDING * jnp.finfo(x.dtype).eps * size
        wanted = jnp.sum(gradient * (found.x - x), axis=1) - value - rounding
        plane = beyond(x + to_plane(LENGTHS[norm], gradient, jnp.where(jnp.isfinite(wanted), wanted, 0), x, ball))
        crossed = wrong(plane)
        first, last = jnp.where(crossed, x, plane), jnp.where(crossed, plane, found.x)

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            over = wrong(first + middle * (last - first))
            return jnp.where(over, low, middle), jnp.where(over, middle, high)

        ends = jnp.zeros((len(x), 1), x.dtype), jnp.ones((len(x), 1), x.dtype)
        # the number of changed features does not fall on the way back to the input
        halvings = 0 if LENGTHS[norm].order == 0 else HALVINGS
        share = jax.lax.fori_loop(0, halvings, halve, ends)[1]
        at = jnp.where(share < 1, first + share * (last - first), last)
        ends_wrong = (crossed | jnp.isfinite(found.distance)[:, None])[:, 0]
        return found.or_nearer(at, ends_wrong, length(at - x).reshape(-1))

    found = jax.lax.fori_loop(0, ROUNDS, refine, found)
    at = beyond(found.x)
    moved = wrong(at) & jnp.isfinite(found.distance)[:, None]
    distance = jnp.where(moved[:, 0], length(at - x).reshape(-1), found.distance)
    return found._replace(x=jnp.where(moved, at, found.x), distance=distance)


@partial(jax.jit, static_argnums=5)
def _deepened(model, x, y, ball, found, groups):
    """Move the changed features as far as the bounds let them, so that rounding to valid values undoes nothing."""
    gradient, margins, _ = gradient_of(lambda scores: margin(scores, y), model, found.x)
    gradient = usable(gradient, ball)
    changed = found.x != x
    furthest = jnp.where(gradient > 0, ball.lower, ball.upper)
    ahead = jnp.where(changed & (gradient != 0) & jnp.isfinite(furthest), furthest, found.x)
    for group in groups:
        at = jnp.asarray(group)
        # a changed category becomes the one that lowers the margin most
        own = x[:, at] == x[:, at].max(1, keepdims=True)
        other = jnp.argmin(jnp.where(own, jnp.inf, gradient[:, at]), axis=1)
        category = jax.nn.one_hot(other, len(group), dtype=x.dtype)
        ahead = ahead.at[:, at].set(jnp.where(changed[:, at].any(1, keepdims=True), category, x[:, at]))
    further = margin(model(ahead), y) < margins
    return found._replace(x=jnp.where(further[:, None], ahead, found.x))
