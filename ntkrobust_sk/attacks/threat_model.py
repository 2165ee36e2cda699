"""Where an adversarial example may lie: the ball of a norm around its input, within bounds.

Attacks state ``epsilon``, ``norm`` and ``bounds``; here is what those mean for arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .boxes import Box
from .capabilities import InBall
from .norms import L0, LENGTHS, Norm

# How far rounding may have put data outside of the bounds, as a share of these, by the bytes of the data's dtype:
# what a scaler computes is wrong by some multiples of the last bit where the range is small against the values.
ROUNDING = {2: 4e-3, 4: 1e-5, 8: 1e-9}


class Ball(NamedTuple):
    """The ball of an attack, in arrays, so that other values do not compile again.

    ``epsilon`` is one number, or one for each of n examples and broadcastable against these.
    """

    epsilon: Any
    lower: Any
    upper: Any


def project(norm: Norm | L0, x: jax.Array, x_adv: jax.Array, ball: Ball) -> jax.Array:
    """Return ``x_adv`` moved to the ball around ``x``, and then to the bounds."""
    room = jnp.where(x_adv > x, ball.upper - x, x - ball.lower)
    return jnp.clip(x + norm.project(x_adv - x, ball.epsilon, room), ball.lower, ball.upper)


def steepest(norm: Norm, gradient: jax.Array, at: jax.Array, ball: Ball) -> jax.Array:
    """Return the direction of unit norm along which the loss rises most, of features that may change."""
    gradient = usable(gradient, ball)
    return norm.steepest(gradient, free(gradient, at, ball))


def usable(gradient: jax.Array, ball: Ball) -> jax.Array:
    """Return the gradient, zero for features that may not change and where it is no finite number."""
    return jnp.where((ball.lower < ball.upper) & jnp.isfinite(gradient), gradient, 0)


def unusable(gradient: jax.Array, ball: Ball | None = None) -> jax.Array:
    """Tell where a gradient is not finite at a feature that may change (n,)."""
    wrong = ~jnp.isfinite(gradient)
    wrong = wrong if ball is None else wrong & (ball.lower < ball.upper)
    return wrong.any(tuple(range(1, gradient.ndim)))


def free(gradient: jax.Array, at: jax.Array, ball: Ball) -> jax.Array:
    """Tell which features can still go the way of the gradient."""
    # projected to its bound, a feature may be a rounding error short of it
    nothing = 16 * jnp.finfo(at.dtype).eps * jnp.maximum(jnp.abs(at), ball.epsilon)
    return jnp.where(gradient > 0, ball.upper - at, at - ball.lower) > nothing


def samples(norm: Norm, x: jax.Array, keys: jax.Array, ball: Ball) -> jax.Array:
    """Draw uniformly from the ball of radius 1 of the features that may change, for each row of ``x`` (n, ...)."""
    free = jnp.broadcast_to(ball.lower < ball.upper, x.shape)
    return jax.vmap(lambda k, f: norm.sample(k, x.shape[1:], x.dtype, jnp.ones((), x.dtype), f))(keys, free)


def project_into(x_adv: jax.Array, x: jax.Array, attack: Any) -> jax.Array:
    """Move ``x_adv`` to the attack's ball around ``x`` and to its bounds, if the attack states any."""
    if not isinstance(attack, InBall):
        return x_adv
    return _project(LENGTHS[attack.norm], x, x_adv, ball_around(x, attack.epsilon, attack.bounds))


_project = jax.jit(project, static_argnames="norm")


def admitted(attack: Any, X: np.ndarray, dtype: Any = None, names: Sequence | None = None) -> np.ndarray:
    """Return the inputs, at bounds or integers where rounding alone has put them outside or beside.

    Parameters
    ----------
    attack : callable
        One without a ball takes all inputs as they are.
    X : array (n, ...)
    dtype : dtype, default=None
        In which the data were computed, where it is not that of X.
    names : sequence, default=None
        Names of the features, for messages.

    Raises
    ------
    ValueError
        For inputs outside of the bounds by more than rounding, and for integers and groups that are none.

    Examples
    --------
    >>> from ntkrobust_sk import PGD
    >>> float(admitted(PGD(0.1), np.array([[0.5, 1 + 2e-16]])).max())
    1.0
    >>> admitted(PGD(0.1), np.array([[0.5, 1.001]]))
    Traceback (most recent call last):
    ValueError: the attack's bounds are (0.0, 1.0), but X ranges from 0.5 to 1.001: 1 of 1 rows are outside...
    """
    bounds = attack.bounds if isinstance(attack, InBall) else None
    if bounds is None or len(X) == 0:
        return X
    # in the dtype of the data: float32(-0.1) is below -0.1
    lower, upper = limits_of(bounds, X)
    if _reach_beyond(X, lower, upper):
        X = _clipped(bounds, X, lower, upper, ROUNDING[np.dtype(dtype or X.dtype).itemsize], names)
    if isinstance(bounds, Box) and bounds.discrete:
        rounding = ROUNDING[np.dtype(dtype or X.dtype).itemsize]
        X = _with_discrete(bounds, X.reshape(len(X), -1), rounding, names).reshape(X.shape)
    return X


def _reach_beyond(X, lower, upper) -> bool:
    """Tell whether some of X lies outside of limits."""
    if lower.ndim or upper.ndim or not X.size:
        return bool((lower > X).any() or (upper < X).any())
    # two numbers tell it of all, without an answer for each
    return bool(X.min() < lower or X.max() > upper)


def _clipped(bounds, X, lower, upper, rounding, names):
    """Return X at its bounds where it is outside of them by rounding."""
    clipped = np.clip(X, lower, upper)
    ends = [np.where(np.isfinite(limit), np.abs(limit), 0) for limit in (lower, upper)]
    sizes = np.maximum(np.maximum(*ends), np.abs(X).max(0, keepdims=True))
    if (beyond := np.abs(X - clipped) > rounding * sizes).any():
        raise ValueError(_told_of_bounds(bounds, X, clipped, beyond, names))
    return clipped


def _told_of_bounds(bounds, X, clipped, beyond, names) -> str:
    """Return which feature of which row is furthest outside of its bounds, how many rows are, and what to do."""
    at = np.unravel_index(np.abs(X - clipped).argmax(), X.shape)
    feature = int(at[1]) if X.ndim == 2 else tuple(map(int, at[1:]))
    called = f"feature {feature}" if names is None else _called(feature, names)
    where = int(np.ravel_multi_index(at[1:], X.shape[1:]))
    flat, wrong = X.reshape(len(X), -1)[:, where], beyond.reshape(len(X), -1)
    ends = [end if np.ndim(end) == 0 else np.ravel(end)[where] for end in bounds]
    own = names is not None or any(map(np.ndim, bounds))
    way = "scale the data into the bounds, or give the attack bounds=(low, high) or bounds=None"
    if own:
        by_name = (
            "" if names is None else f", or widen them by name, as in bounds={{{names[at[1]]!r}: (low, high)}}"
        )
        way = f"take the bounds from all rows, those under attack too, by Box.from_data{by_name}; or bounds=None"
    ranging = flat if own else X
    others = int(wrong.any(0).sum()) - 1
    return (
        f"the attack's bounds are ({float(ends[0])}, {float(ends[1])}){f' in {called}' * own}, but X ranges from "
        f"{ranging.min():.6g} to {ranging.max():.6g}{' there' * own}: {wrong.any(1).sum()} of {len(X)} rows are "
        f"outside of the bounds{f', in {others} other features too' * (others > 0)} ({called} of row {at[0]} is "
        f"{X[at]} where it must be {clipped[at]} at {'most' if X[at] > clipped[at] else 'least'}); {way}"
    )


def _with_discrete(box, X, rounding, names):
    """Return rows X (n, d) with integers and groups rounded where they are wrong by rounding alone."""
    if max(box.discrete) >= X.shape[1]:
        raise ValueError(
            f"integers and one_hot must be positions below {X.shape[1]}, the number of features, got "
            f"{max(box.discrete)}; positions count from 0"
        )
    discrete = list(box.discrete)
    values, nearest = X[:, discrete], np.rint(X[:, discrete])
    near = np.abs(values - nearest) <= rounding * np.maximum(np.abs(values), 1)
    if (values != nearest).any():
        X = X.copy()
        X[:, discrete] = np.where(near, nearest, values)
    for position in box.integers or ():
        wrong = X[:, position] != np.rint(X[:, position])
        if wrong.any():
            raise ValueError(
                f"{_called(position, names)} is one of the attack's integers, but X holds "
                f"{X[wrong, position][0]:.6g} there; round it, or take it out of Box(integers=...)"
            )
    for group in box.one_hot:
        values = X[:, group]
        wrong = ~(((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1))
        if wrong.any():
            raise ValueError(
                f"{_called(group, names)} are a one-hot group of the attack, but X holds "
                f"{values[wrong][0].tolist()} there; exactly one must be 1 and the others 0, "
                "before any scaling (put scalers into a Pipeline)"
            )
    return X


def _called(feature, names) -> str:
    """Return a feature, or a group of them, as a message calls it."""
    many = isinstance(feature, tuple)
    if names is None:
        return f"feature{'s' * many} {feature}"
    return f"columns {tuple(names[at] for at in feature)}" if many else f"column {names[feature]!r}"


def radii(epsilon: Any, ndim: int) -> Any:
    """Return a radius as it is, or one for each example (n,) broadcastable against examples of so many axes."""
    return np.reshape(epsilon, (-1, *[1] * (ndim - 1))) if np.ndim(epsilon) == 1 else epsilon


def ball_around(x: Any, epsilon: Any, bounds: tuple | Box | None) -> Ball:
    """Return the ball of an attack in the dtype of the inputs ``x`` (n, ...); radii of each example are (n,)."""
    return Ball(*in_dtype_of(x, radii(epsilon, x.ndim)), *limits_of(bounds, x))


def in_dtype_of(x: Any, *lengths: Any) -> list[np.ndarray]:
    """Return an attack's numbers in the dtype of its inputs, or raise ValueError if they are none there."""
    dtype = np.dtype(x.dtype)
    with np.errstate(over="ignore"):
        found = [np.asarray(length).astype(dtype) for length in lengths]
    if not np.isfinite(found).all():
        raise ValueError(f"epsilon and steps must be numbers in {dtype}, got {', '.join(map(str, lengths))}")
    return found


def limits_of(bounds: tuple | Box | None, x: Any) -> list:
    """Return lower and upper bounds in the dtype of ``x`` that fit its shape; of fixed features ``x`` itself."""
    if isinstance(bounds, Box):
        bounds.require_positions(f"x is an array of shape {tuple(x.shape)}")
    limits = [_bound(b, x).astype(np.dtype(x.dtype)) for b in ((-np.inf, np.inf) if bounds is None else bounds)]
    if not isinstance(bounds, Box) or (bounds.mask is None and not bounds.categories):
        return limits
    free = _per_feature("the attack's mask has", bounds.free(math.prod(x.shape[1:])), x)
    where = np.where if isinstance(x, np.ndarray) else jnp.where
    return [where(free, limit, x) for limit in limits]


def check_floating(x: Any) -> None:
    """Raise TypeError unless inputs are floating."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x: inputs must be floating, to be changed by less than one, got {x.dtype}; write x.astype(float)"
        )


def _bound(bound, x) -> np.ndarray:
    """Return a bound broadcastable against the examples: a number, or ``(1, *features)``."""
    bound = np.asarray(bound)
    return bound if bound.ndim == 0 else _per_feature("bounds have", bound, x)


def _per_feature(what, values, x):
    if values.size != math.prod(x.shape[1:]):
        raise ValueError(
            f"{what} {values.size} numbers, but inputs have {math.prod(x.shape[1:])} features (shape "
            f"{x.shape[1:]}); give one for each feature"
        )
    return values.reshape(1, *x.shape[1:])


@partial(jax.jit, static_argnames=("norm",))
def start_in_ball(norm: Norm, x: jax.Array, keys: jax.Array, ball: Ball) -> jax.Array:
    """Draw a start from the ball and move it into the bounds, for each example."""
    return project(norm, x, x + ball.epsilon * samples(norm, x, keys, ball), ball)
