"""Where an adversarial example may lie: the ball of a norm around its input, within bounds.

Attacks state ``epsilon``, ``norm`` and ``bounds``; here is what those mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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

    def sample(self, key, shape, dtype, epsilon):
        """Uniform in the ball of radius epsilon, for one example."""
        return jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0) * epsilon

    def length(self, delta):
        """Of each example's change, broadcastable against it."""
        return jnp.max(jnp.abs(delta), axis=tuple(range(1, delta.ndim)), keepdims=True)

    def steepest(self, gradient):
        """Direction of unit norm along which a linear function rises most, for each example."""
        return jnp.sign(gradient)

    def project(self, delta, epsilon):
        """Nearest point of the ball, for each example."""
        return jnp.clip(delta, -epsilon, epsilon)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change of all features."""

    def sample(self, key, shape, dtype, epsilon):
        """Uniform in the ball of radius epsilon, for one example."""
        key_direction, key_radius = jax.random.split(key)
        direction = jax.random.normal(key_direction, shape, dtype)
        radius = jax.random.uniform(key_radius, (), dtype) ** (1.0 / math.prod(shape))
        return epsilon * radius * direction / jnp.sqrt(jnp.sum(direction**2))

    def length(self, delta):
        """Of each example's change, broadcastable against it."""
        return flat_norm(delta)

    def steepest(self, gradient):
        """Direction of unit norm along which a linear function rises most, for each example."""
        length = flat_norm(gradient)
        return jnp.where(length > 0, gradient / jnp.where(length > 0, length, 1), 0)

    def project(self, delta, epsilon):
        """Nearest point of the ball, for each example."""
        return delta * jnp.minimum(1, epsilon / jnp.maximum(flat_norm(delta), jnp.finfo(delta.dtype).tiny))


# Times that examples are moved inwards at most; once or twice is enough.
SETTLING = 8
NORMS = {"linf": Linf(), "l2": L2()}


class Ball(NamedTuple):
    """The numbers of an attack, arrays so that other values do not compile again."""

    epsilon: jax.Array
    step_size: jax.Array
    lower: jax.Array
    upper: jax.Array


def project(norm, x, x_adv, ball):
    """``x_adv`` moved to the ball around ``x``, and then to the bounds."""
    return jnp.clip(x + norm.project(x_adv - x, ball.epsilon), ball.lower, ball.upper)


def project_into(x_adv, x, attack):
    """``x_adv`` moved to the attack's ball around ``x`` and to its bounds; ``x`` itself for :class:`Clean`.

    Attacks that state no ``epsilon`` are left as they are; those that do state ``norm`` and ``bounds`` too.
    """
    if not hasattr(attack, "epsilon"):
        return x_adv
    return project(NORMS[attack.norm], x, x_adv, ball_of(attack, x))


def settle(x_adv: np.ndarray, x: np.ndarray, attack) -> np.ndarray:
    """``x_adv`` (n, ...) moved by the last bits by which rounding took it out of the ball around ``x``.

    Afterwards the distance, computed in double precision, is at most the attack's epsilon. What lies in bounds
    with ``x`` stays in them.

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
    for _ in range(SETTLING):
        delta = x_adv.astype(np.float64) - x
        if attack.norm == "linf":
            sizes = np.abs(delta)
        else:
            sizes = np.sqrt((delta.reshape(len(delta), -1) ** 2).sum(1)).reshape(-1, *[1] * (delta.ndim - 1))
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
