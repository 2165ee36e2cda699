"""Norms: balls around zero, steepest directions, nearest points.

Each has the same functions, of one or of many examples at once. ``room`` (how far each feature may go) and
``free`` (which may go further) matter to L1 alone: in the others bounds are met by clipping afterwards. NumPy's
``norm`` takes ``order``; ``dual`` names the norm in which gradients have their length; ``is_sparse`` says that the
steepest steps change few features, so that bounds are part of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Real


def flat_norm(v: Real[Any, "n ..."]) -> Real[Any, "n ..."]:
    """Return the Euclidean norm of each example, broadcastable against it, without underflow or overflow."""
    largest = _over_features(jnp.max, jnp.abs(v))
    scaled = v / jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(_over_features(jnp.sum, scaled * scaled))


def _over_features(reduce, v):
    """Reduce each example to one number, broadcastable against it."""
    return reduce(v, axis=tuple(range(1, v.ndim)), keepdims=True)


class Linf:
    """The largest change of any feature."""

    order = jnp.inf
    dual = "l1"
    is_sparse = False

    def sample(self, key: jax.Array, shape: tuple, dtype: Any, epsilon: Any, free: Any = True) -> jax.Array:
        """Draw uniformly from the ball, for one example."""
        return jnp.where(free, jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0), 0) * epsilon

    def length(self, delta: Real[Any, "n ..."]) -> Real[Any, "n ..."]:
        """Return the length of each example's change."""
        return _over_features(jnp.max, jnp.abs(delta))

    def steepest(self, gradient: Real[Any, "*shape"], free: Any = True) -> Real[Any, "*shape"]:
        """Return the steepest direction, for each example."""
        return jnp.sign(gradient)

    def project(self, delta: Real[Any, "*shape"], epsilon: Any, room: Any = jnp.inf) -> Real[Any, "*shape"]:
        """Return the nearest point of the ball, for each example."""
        return jnp.clip(delta, -epsilon, epsilon)


class L2:
    """The Euclidean length of the change of all features."""

    order = 2
    dual = "l2"
    is_sparse = False

    def sample(self, key: jax.Array, shape: tuple, dtype: Any, epsilon: Any, free: Any = True) -> jax.Array:
        """Draw uniformly from the ball, for one example."""
        key_direction, key_radius = jax.random.split(key)
        direction = jnp.where(free, jax.random.normal(key_direction, shape, dtype), 0)
        n_free = jnp.maximum(jnp.sum(jnp.broadcast_to(free, shape)), 1).astype(dtype)
        radius = jax.random.uniform(key_radius, (), dtype) ** (1 / n_free)
        return epsilon * radius * direction / jnp.sqrt(jnp.maximum(jnp.sum(direction**2), jnp.finfo(dtype).tiny))

    def length(self, delta: Real[Any, "n ..."]) -> Real[Any, "n ..."]:
        """Return the length of each example's change."""
        return flat_norm(delta)

    def steepest(self, gradient: Real[Any, "*shape"], free: Any = True) -> Real[Any, "*shape"]:
        """Return the steepest direction, for each example."""
        length = flat_norm(gradient)
        return jnp.where(length > 0, gradient / jnp.where(length > 0, length, 1), 0)

    def project(self, delta: Real[Any, "*shape"], epsilon: Any, room: Any = jnp.inf) -> Real[Any, "*shape"]:
        """Return the nearest point of the ball, for each example."""
        return delta * jnp.minimum(1, epsilon / jnp.maximum(flat_norm(delta), jnp.finfo(delta.dtype).tiny))


class L1:
    """The sum of the changes of all features. Its steepest steps and nearest points are sparse.

    Bounds matter more to it than to the others, since a feature may run into its bound long before epsilon is
    spent: so they are part of its steps and its projection (Croce & Hein 2021, arXiv:2103.01208).
    """

    order = 1
    dual = "linf"
    is_sparse = True

    def sample(self, key: jax.Array, shape: tuple, dtype: Any, epsilon: Any, free: Any = True) -> jax.Array:
        """Draw uniformly from the ball, for one example."""
        key_direction, key_rest = jax.random.split(key)
        direction = jnp.where(free, jax.random.laplace(key_direction, shape, dtype), 0)
        return epsilon * direction / (jnp.sum(jnp.abs(direction)) + jax.random.exponential(key_rest, (), dtype))

    def length(self, delta: Real[Any, "n ..."]) -> Real[Any, "n ..."]:
        """Return the length of each example's change."""
        return _over_features(jnp.sum, jnp.abs(delta))

    def steepest(self, gradient: Real[Any, "*shape"], free: Any = True, count: Any = 1) -> Real[Any, "*shape"]:
        """Return the direction along which a linear function rises most; of unit norm where it can move.

        The ``count`` features (a number, or one of each example (n, 1, ...)) with the largest gradients among
        those that are ``free`` to go that way. Features that are steeper yet and stand at their bound are pushed
        against it, so that projecting takes from others first.
        """
        size = jnp.abs(gradient)
        movable = jnp.where(free, size, 0)

        def few_above(threshold):
            return _over_features(jnp.sum, movable > threshold) < count

        below, _ = bisect(few_above, _over_features(jnp.max, movable))
        n_moved = _over_features(jnp.sum, movable > below)
        return jnp.where(size > below, jnp.sign(gradient), 0) / jnp.maximum(n_moved, 1)

    def project(self, delta: Real[Any, "*shape"], epsilon: Any, room: Any = jnp.inf) -> Real[Any, "*shape"]:
        """Return the nearest point of the ball in which each feature changes by ``room`` at most.

        |u_i| = min(max(|δ_i| − λ, 0), room_i) with the least λ >= 0 at which they sum up to epsilon or less.
        """
        size = jnp.abs(delta)

        def shrunk(rate):
            return jnp.clip(size - rate, 0, room)

        low, high = bisect(lambda rate: self.length(shrunk(rate)) <= epsilon, _over_features(jnp.max, size))
        more, less = shrunk(low), shrunk(high)
        # between the two the sum is linear, up to rounding
        missing, gap = epsilon - self.length(less), self.length(more) - self.length(less)
        share = jnp.where(gap > missing, missing / jnp.where(gap > 0, gap, 1), 1)
        return jnp.sign(delta) * jnp.where(share < 1, less + share * (more - less), more)


def bisect(holds: Callable, most: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return neighbouring numbers in [0, most] of which the lower one fails and the upper one ``holds``.

    ``holds`` is false below some number and true above it, and at ``most``. Where it holds at 0, so does the
    lower one, which is 0. No sorting, and each example's result is its own.
    """

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        true = holds(middle)
        return jnp.where(true, low, middle), jnp.where(true, middle, high)

    return jax.lax.fori_loop(0, jnp.finfo(most.dtype).nmant + 8, halve, (jnp.zeros_like(most), most))


class L0:
    """The number of features that change: no norm to climb in, but a length, and a ball to be projected to."""

    order = 0
    is_sparse = True

    def length(self, delta: Real[Any, "n ..."]) -> Real[Any, "n ..."]:
        """Return how many features of each example change, broadcastable against it."""
        return _over_features(jnp.sum, delta != 0).astype(delta.dtype)

    def project(self, delta: Real[Any, "*shape"], epsilon: Any, room: Any = jnp.inf) -> Real[Any, "*shape"]:
        """Return the nearest point of the ball, for each example: its largest changes, of equal ones the first."""
        size = jnp.abs(delta).reshape(len(delta), -1)
        rank = jnp.argsort(jnp.argsort(-size, axis=1), axis=1).reshape(delta.shape)
        return jnp.where(rank + 1 <= epsilon, delta, 0)


Norm = Linf | L2 | L1
# The norms that attacks know, and what the ball of an attack may be measured in.
NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2(), "l1": L1()}
LENGTHS: dict[str, Norm | L0] = {**NORMS, "l0": L0()}
