"""Where an adversarial example may lie: the ball of a norm around its input, within bounds.

Attacks state ``epsilon``, ``norm`` and ``bounds``; here is what those mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def flat_norm(v):
    """Euclidean norm of each example, broadcastable against it; its squares neither underflow nor overflow."""
    axes = tuple(range(1, v.ndim))
    largest = jnp.max(jnp.abs(v), axis=axes, keepdims=True)
    scaled = v / jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(scaled * scaled, axis=axes, keepdims=True))


@dataclass(frozen=True)
class Linf:
    """The largest change of any feature."""

    def sample(self, key, shape, dtype, epsilon, free=True):
        """Uniform in the ball of radius epsilon of the features that are ``free``, for one example."""
        return jnp.where(free, jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0), 0) * epsilon

    def length(self, delta):
        """Of each example's change, broadcastable against it."""
        return jnp.max(jnp.abs(delta), axis=tuple(range(1, delta.ndim)), keepdims=True)

    def steepest(self, gradient, free=True):
        """Direction of unit norm along which a linear function rises most, for each example."""
        return jnp.sign(gradient)

    def project(self, delta, epsilon, room=jnp.inf):
        """Nearest point of the ball, for each example."""
        return jnp.clip(delta, -epsilon, epsilon)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change of all features."""

    def sample(self, key, shape, dtype, epsilon, free=True):
        """Uniform in the ball of radius epsilon of the features that are ``free``, for one example."""
        key_direction, key_radius = jax.random.split(key)
        direction = jnp.where(free, jax.random.normal(key_direction, shape, dtype), 0)
        n_free = jnp.maximum(jnp.sum(jnp.broadcast_to(free, shape)), 1).astype(dtype)
        radius = jax.random.uniform(key_radius, (), dtype) ** (1 / n_free)
        return epsilon * radius * direction / jnp.sqrt(jnp.maximum(jnp.sum(direction**2), jnp.finfo(dtype).tiny))

    def length(self, delta):
        """Of each example's change, broadcastable against it."""
        return flat_norm(delta)

    def steepest(self, gradient, free=True):
        """Direction of unit norm along which a linear function rises most, for each example."""
        length = flat_norm(gradient)
        return jnp.where(length > 0, gradient / jnp.where(length > 0, length, 1), 0)

    def project(self, delta, epsilon, room=jnp.inf):
        """Nearest point of the ball, for each example."""
        return delta * jnp.minimum(1, epsilon / jnp.maximum(flat_norm(delta), jnp.finfo(delta.dtype).tiny))


@dataclass(frozen=True)
class L1:
    """The sum of the changes of all features. Its steepest steps and nearest points are sparse.

    Bounds matter more to it than to the others, since a feature may run into its bound long before epsilon is
    spent: so they are part of its steps and its projection (Croce & Hein 2021, arXiv:2103.01208).
    """

    def sample(self, key, shape, dtype, epsilon, free=True):
        """Uniform in the ball of radius epsilon of the features that are ``free``, for one example."""
        key_direction, key_rest = jax.random.split(key)
        direction = jnp.where(free, jax.random.laplace(key_direction, shape, dtype), 0)
        return epsilon * direction / (jnp.sum(jnp.abs(direction)) + jax.random.exponential(key_rest, (), dtype))

    def length(self, delta):
        """Of each example's change, broadcastable against it."""
        return jnp.sum(jnp.abs(delta), axis=tuple(range(1, delta.ndim)), keepdims=True)

    def steepest(self, gradient, free=True, count=1):
        """Direction along which a linear function rises most, for each example; of unit norm where it can move.

        The ``count`` features (a number, or one of each example (n, 1, ...)) with the largest gradients among
        those that are ``free`` to go that way. Features that are steeper yet and stand at their bound are pushed
        against it, so that projecting takes from others first.
        """
        size = jnp.abs(gradient)
        movable = jnp.where(free, size, 0)

        def few_above(threshold):
            return jnp.sum(movable > threshold, axis=axes, keepdims=True) < count

        axes = tuple(range(1, gradient.ndim))
        below, _ = bisect(few_above, jnp.max(movable, axis=axes, keepdims=True))
        n_moved = jnp.sum(movable > below, axis=axes, keepdims=True)
        return jnp.where(size > below, jnp.sign(gradient), 0) / jnp.maximum(n_moved, 1)

    def project(self, delta, epsilon, room=jnp.inf):
        """Nearest point of the ball in which each feature changes by ``room`` at most, for each example.

        |u_i| = min(max(|δ_i| − λ, 0), room_i) with the least λ >= 0 at which they sum up to epsilon or less.
        """
        size = jnp.abs(delta)

        def shrunk(rate):
            return jnp.clip(size - rate, 0, room)

        low, high = bisect(
            lambda rate: self.length(shrunk(rate)) <= epsilon,
            jnp.max(size, axis=tuple(range(1, delta.ndim)), keepdims=True),
        )
        more, less = shrunk(low), shrunk(high)
        # between the two the sum is linear, up to rounding
        missing, gap = epsilon - self.length(less), self.length(more) - self.length(less)
        share = jnp.where(gap > missing, missing / jnp.where(gap > 0, gap, 1), 1)
        return jnp.sign(delta) * jnp.where(share < 1, less + share * (more - less), more)


def bisect(holds, most):
    """Neighbouring numbers in [0, most] of which the lower one fails and the upper one ``holds``.

    ``holds`` is false below some number and true above it, and at ``most``. Where it holds at 0, so does the
    lower one, which is 0. No sorting, and each example's result is its own.
    """

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        true = holds(middle)
        return jnp.where(true, low, middle), jnp.where(true, middle, high)

    return jax.lax.fori_loop(0, jnp.finfo(most.dtype).nmant + 8, halve, (jnp.zeros_like(most), most))


# Times that examples are moved inwards at most; once or twice is enough.
SETTLING = 8
NORMS = {"linf": Linf(), "l2": L2(), "l1": L1()}


class Ball(NamedTuple):
    """The numbers of an attack, arrays so that other values do not compile again."""

    epsilon: jax.Array
    step_size: jax.Array
    lower: jax.Array
    upper: jax.Array


@partial(jax.jit, static_argnames="norm")
def project(norm, x, x_adv, ball):
    """``x_adv`` moved to the ball around ``x``, and then to the bounds."""
    room = jnp.where(x_adv > x, ball.upper - x, x - ball.lower)
    return jnp.clip(x + norm.project(x_adv - x, ball.epsilon, room), ball.lower, ball.upper)


def steepest(norm, gradient, at, ball, **count):
    """Direction of unit norm along which a linear function of the features that may change rises most."""
    gradient = jnp.where(ball.lower < ball.upper, gradient, 0)
    # projected to its bound, a feature may be a rounding error short of it
    nothing = 16 * jnp.finfo(at.dtype).eps * jnp.maximum(jnp.abs(at), ball.epsilon)
    free = jnp.where(gradient > 0, ball.upper - at, at - ball.lower) > nothing
    return norm.steepest(gradient, free, **count)


def samples(norm, x, keys, ball):
    """Uniform in the ball of radius 1 of the features that may change, for each example of ``x`` (n, ...)."""
    free = jnp.broadcast_to(ball.lower < ball.upper, x.shape)
    return jax.vmap(lambda k, f: norm.sample(k, x.shape[1:], x.dtype, jnp.ones((), x.dtype), f))(keys, free)


def project_into(x_adv, x, attack):
    """``x_adv`` moved to the attack's ball around ``x`` and to its bounds; ``x`` itself for :class:`Clean`.

    Attacks that state no ``epsilon`` are left as they are; those that do state ``norm`` and ``bounds`` too.
    """
    if not hasattr(attack, "epsilon"):
        return x_adv
    return project(NORMS[attack.norm], x, x_adv, ball_of(attack, x))


def settle(x_adv: np.ndarray, x: np.ndarray, attack) -> np.ndarray:
    """``x_adv`` (n, ...) moved by the last bits by which rounding took it out of the ball around ``x``.

    Afterwards the distance, computed in double precision, is at most the attack's epsilon, and ``x_adv`` lies in
    bounds.

    >>> from ntkrobust_sk import PGD
    >>> x = np.array([[0.7]], np.float32)
    >>> x_adv = x + np.float32(0.1)
    >>> float(x_adv[0, 0]) - float(x[0, 0]) > 0.1
    True
    >>> float(settle(x_adv, x, PGD(0.1))[0, 0]) - float(x[0, 0]) <= 0.1
    True
    """
    x_adv = np.asarray(x_adv).astype(x.dtype)
    if not hasattr(attack, "epsilon"):
        return x_adv
    if attack.bounds is not None:
        x_adv = np.clip(x_adv, *(_bound(b, x).astype(x.dtype) for b in attack.bounds))
    for _ in range(SETTLING):
        delta = x_adv.astype(np.float64) - x
        axes = tuple(range(1, delta.ndim))
        if attack.norm == "linf":
            sizes = np.abs(delta)
        elif attack.norm == "l1":
            sizes = np.abs(delta).sum(axes, keepdims=True)
        else:
            sizes = np.sqrt((delta**2).sum(axes, keepdims=True))
        # a little less, since the sum of squares is rounded too
        share = attack.epsilon * (1 - 1e-14) / np.where(sizes > 0, sizes, 1)
        out = (share < 1) & (delta != 0) & (sizes > 0)
        if not out.any():
            break
        x_adv = np.where(out, np.nextafter((x + delta * share).astype(x.dtype), x), x_adv)
    return x_adv


def check_bounds(attack, X) -> None:
    """Raise ValueError when inputs lie outside of the attack's bounds."""
    if getattr(attack, "bounds", None) is None or len(X) == 0:
        return
    # In the dtype of the data: float32(-0.1) is below -0.1.
    lower, upper = (_bound(b, X).astype(X.dtype) for b in attack.bounds)
    if (lower > X).any() or (upper < X).any():
        raise ValueError(
            f"the attack's bounds are {_brief(attack.bounds)}, but X ranges from {X.min():.6g} to {X.max():.6g}; "
            "scale the data into the bounds, or give the attack bounds=(low, high) or bounds=None"
        )


def ball_of(attack, x) -> Ball:
    """An attack's numbers in the dtype of the inputs ``x`` (n, ...)."""
    check_floating(x)
    dtype = np.dtype(x.dtype)
    n_steps = getattr(attack, "n_steps", 1)
    step_size = getattr(attack, "step_size", None)
    step_size = 2 * attack.epsilon / n_steps if step_size is None else step_size
    lower, upper = (-np.inf, np.inf) if attack.bounds is None else attack.bounds
    numbers = (np.asarray(attack.epsilon), np.asarray(step_size), _bound(lower, x), _bound(upper, x))
    return Ball(*(number.astype(dtype) for number in numbers))


def check_floating(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"inputs must be floating, to be changed by less than one, got {x.dtype}; cast them first")


def _bound(bound, x) -> np.ndarray:
    """A bound broadcastable against the examples: a number, or (1, *features)."""
    bound = np.asarray(bound)
    if bound.ndim == 0:
        return bound
    if bound.size != math.prod(x.shape[1:]):
        raise ValueError(
            f"bounds have {bound.size} numbers, but inputs have {math.prod(x.shape[1:])} features (shape "
            f"{x.shape[1:]}); give one number, or one for each feature"
        )
    return bound.reshape(1, *x.shape[1:])


def plain_bounds(bounds):
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(b, dtype=float) for b in bounds)
        ordered = (low.ravel() <= high.ravel()).all()
    except (TypeError, ValueError):
        raise ValueError(
            f"bounds must be None or (low, high), each a number or one number for each feature, got {bounds!r}"
        ) from None
    if not ordered:
        raise ValueError(f"bounds must be (low, high) with low <= high and no NaN, got {_brief(bounds)}")
    return tuple(b.item() if b.ndim == 0 else tuple(b.ravel().tolist()) for b in (low, high))


def _brief(bounds):
    return tuple(b if np.ndim(b) == 0 else f"<{np.size(b)} numbers>" for b in bounds)


def check_nonnegative(name, value):
    if not (isinstance(value, int | float | np.number) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0 in units of the data, got {value!r}")
