"""Where an adversarial example may lie: the ball of a norm around its input, within bounds.

Attacks state ``epsilon``, ``norm`` and ``bounds``; here is what those mean. Bounds may be a :class:`Box`, which
also says which features may change, and to which values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import array, brief
from .capabilities import InBall
from .norms import L0, LENGTHS, Norm

# How far rounding may have put data outside of the bounds, as a share of these, by the bytes of the data's dtype:
# what a scaler computes is wrong by some multiples of the last bit where the range is small against the values.
ROUNDING = {2: 4e-3, 4: 1e-5, 8: 1e-9}


@dataclass(frozen=True)
class Box:
    """Bounds of an attack that also say which features may change, and to which values.

    Wherever an attack takes ``bounds=(low, high)``, it takes a Box. Fixed features are bounded by the input
    itself, so every attack keeps to them and spends nothing on them. Integer and one-hot features are attacked as
    if they were real; what comes back from the estimators, ``perturb``, ``robust_accuracy``, ``AutoAttack`` and
    :func:`~ntkrobust_sk.attacks.attack_in_tiles` has valid values: the nearest ones that ball and bounds hold.
    They come first, groups before integers; in the L1 and L2 norms the other features then have what is left of
    epsilon. Another category of a one-hot group is 1 away in L∞, 2 in L1 and √2 in L2.

    Parameters
    ----------
    low, high : float or array (n_features,), default=0.0 and 1.0
        Range of what may change; infinite where there is none.
    mask : array of bool (n_features,), default=None
        Which features may change; None is all.
    integers : sequence of int, default=()
        Positions of features (of the flattened input) that hold integers.
    one_hot : sequence of sequences of int, default=()
        Groups of positions of which exactly one feature is 1 and the others are 0.

    Raises
    ------
    ValueError
        For bounds out of order, a mask that is not boolean, groups that overlap or have one member; when an attack
        is called, for a mask or positions that do not fit the inputs, and inputs that are not valid themselves.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import PGD, Box
    >>> from ntkrobust_sk.attacks import attack_in_tiles
    >>> box = Box(0, 10, mask=[True, True, False], integers=[1])
    >>> model = jax.tree_util.Partial(lambda x: jax.numpy.stack([x.sum(1), -x.sum(1)], 1))
    >>> X, y = np.array([[2.0, 5.0, 7.0]], np.float32), np.array([0])
    >>> attack_in_tiles(PGD(1.5, bounds=box), model, X, y, key=jax.random.key(0), rows=1).round(3)
    array([[0.5, 4. , 7. ]], dtype=float32)
    """

    low: float | tuple = 0.0
    high: float | tuple = 1.0
    mask: tuple[bool, ...] | None = None
    integers: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        low, high = plain_bounds((self.low, self.high)) or (self.low, self.high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        if self.mask is not None:
            try:
                mask = np.asarray(self.mask)
            except Exception:  # rows of different lengths, and whatever a stranger's conversion raises
                mask = np.empty(0)
            if mask.dtype != bool:
                raise ValueError(
                    f"mask must hold a boolean for each feature, True where it may change, got {brief(self.mask)}"
                )
            object.__setattr__(self, "mask", tuple(mask.ravel().tolist()))
        object.__setattr__(self, "integers", _positions("integers", self.integers))
        if np.ndim(self.one_hot) == 0 and not isinstance(self.one_hot, tuple | list):
            raise ValueError(
                f"one_hot must be groups of positions, such as ((4, 5, 6),), got {brief(self.one_hot)}"
            )
        groups = tuple(_positions("each group of one_hot", group) for group in self.one_hot)
        object.__setattr__(self, "one_hot", groups)
        if any(len(group) < 2 for group in groups):
            raise ValueError(f"each group of one_hot must have two positions or more, got {groups}")
        if len(set(self.discrete)) < len(self.discrete):
            raise ValueError(
                f"a feature has one kind of values, but integers={self.integers} and one_hot={groups} overlap"
            )

    def __iter__(self):
        """Go through its bounds, low and high."""
        return iter((self.low, self.high))

    @property
    def discrete(self) -> tuple[int, ...]:
        """Return the positions of all integer and one-hot features."""
        return (*self.integers, *(position for group in self.one_hot for position in group))


def _positions(name, values) -> tuple[int, ...]:
    try:
        found = np.asarray(values)
    except Exception:  # rows of different lengths, and whatever a stranger's conversion raises
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and not (np.issubdtype(found.dtype, np.integer) and found.min() >= 0)):
        raise ValueError(f"{name} must be positions of features, integers >= 0, got {brief(values)}")
    return tuple(map(int, found))


class Ball(NamedTuple):
    """The ball of an attack, in arrays, so that other values do not compile again."""

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


def admitted(attack: Any, X: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Return the inputs, at bounds or integers where rounding alone has put them outside or beside.

    Parameters
    ----------
    attack : callable
        One without a ball takes all inputs as they are.
    X : array (n, ...)
    dtype : dtype, default=None
        In which the data were computed, where it is not that of X.

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
    ValueError: the attack's bounds are (0.0, 1.0), but X ranges from 0.5 to 1.001 (feature 1 is 1.001...
    """
    bounds = attack.bounds if isinstance(attack, InBall) else None
    if bounds is None or len(X) == 0:
        return X
    # in the dtype of the data: float32(-0.1) is below -0.1
    lower, upper = limits_of(bounds, X)
    if _reach_beyond(X, lower, upper):
        X = _clipped(bounds, X, lower, upper, ROUNDING[np.dtype(dtype or X.dtype).itemsize])
    if isinstance(bounds, Box) and bounds.discrete:
        rounding = ROUNDING[np.dtype(dtype or X.dtype).itemsize]
        X = _with_discrete(bounds, X.reshape(len(X), -1), rounding).reshape(X.shape)
    return X


def _reach_beyond(X, lower, upper) -> bool:
    """Tell whether some of X lies outside of limits."""
    if lower.ndim or upper.ndim or not X.size:
        return bool((lower > X).any() or (upper < X).any())
    # two numbers tell it of all, without an answer for each
    return bool(X.min() < lower or X.max() > upper)


def _clipped(bounds, X, lower, upper, rounding):
    """Return X at its bounds where it is outside of them by rounding."""
    clipped = np.clip(X, lower, upper)
    ends = [np.where(np.isfinite(limit), np.abs(limit), 0) for limit in (lower, upper)]
    sizes = np.maximum(np.maximum(*ends), np.abs(X).max(0, keepdims=True))
    if (np.abs(X - clipped) > rounding * sizes).any():
        at = np.unravel_index(np.abs(X - clipped).argmax(), X.shape)
        feature = int(at[1]) if X.ndim == 2 else tuple(map(int, at[1:]))
        bounded = X[np.broadcast_to(lower < upper, X.shape) | (clipped != X)]
        raise ValueError(
            f"the attack's bounds are {_brief(bounds)}, but X ranges from {bounded.min():.6g} to "
            f"{bounded.max():.6g} (feature {feature} is {X[at]} where it must be {clipped[at]} at "
            f"{'most' if X[at] > clipped[at] else 'least'}); "
            "scale the data into the bounds, or give the attack bounds=(low, high) or bounds=None"
        )
    return clipped


def _with_discrete(box, X, rounding):
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
    for position in box.integers:
        wrong = X[:, position] != np.rint(X[:, position])
        if wrong.any():
            raise ValueError(
                f"feature {position} is one of the attack's integers, but X holds {X[wrong, position][0]:.6g} "
                "there; round it, or take it out of Box(integers=...)"
            )
    for group in box.one_hot:
        values = X[:, group]
        wrong = ~(((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1))
        if wrong.any():
            raise ValueError(
                f"features {group} are a one-hot group of the attack, but X holds {values[wrong][0].tolist()} "
                "there; exactly one must be 1 and the others 0, before any scaling (put scalers into a Pipeline)"
            )
    return X


def ball_around(x: Any, epsilon: float, bounds: tuple | Box | None) -> Ball:
    """Return the ball of an attack in the dtype of the inputs ``x`` (n, ...)."""
    return Ball(*in_dtype_of(x, epsilon), *limits_of(bounds, x))


def in_dtype_of(x: Any, *lengths: float) -> list[np.ndarray]:
    """Return an attack's numbers in the dtype of its inputs, or raise ValueError if they are none there."""
    dtype = np.dtype(x.dtype)
    with np.errstate(over="ignore"):
        found = [np.asarray(length).astype(dtype) for length in lengths]
    if not np.isfinite(found).all():
        raise ValueError(f"epsilon and steps must be numbers in {dtype}, got {', '.join(map(str, lengths))}")
    return found


def limits_of(bounds: tuple | Box | None, x: Any) -> list:
    """Return lower and upper bounds in the dtype of ``x`` that fit its shape; of fixed features ``x`` itself."""
    limits = [_bound(b, x).astype(np.dtype(x.dtype)) for b in ((-np.inf, np.inf) if bounds is None else bounds)]
    if not isinstance(bounds, Box) or bounds.mask is None:
        return limits
    free = _per_feature("the attack's mask has", np.asarray(bounds.mask), x)
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


def plain_bounds(bounds: Any) -> tuple | Box | None:
    """Return bounds as plain values: None, a Box, or (low, high) of float or tuples of float."""
    if bounds is None or isinstance(bounds, Box):
        return bounds
    try:
        if isinstance(bounds, str | bytes | dict | set | frozenset):
            raise TypeError
        low, high = (array("bounds", np.atleast_1d(b)).astype(float).reshape(np.shape(b)) for b in bounds)
        ordered = ((low.ravel() <= high.ravel()) & (low.ravel() < np.inf) & (high.ravel() > -np.inf)).all()
    except Exception:  # whatever a stranger raises when it is gone through
        raise ValueError(
            "bounds must be None or (low, high), each a number or one number for each feature, or a Box, got "
            f"{brief(bounds)}"
        ) from None
    if not ordered:
        raise ValueError(f"bounds must be (low, high) with low <= high and no NaN, got {_brief(bounds)}")
    return tuple(b.item() if b.ndim == 0 else tuple(b.ravel().tolist()) for b in (low, high))


def _brief(bounds):
    return tuple(b if np.ndim(b) == 0 else f"<{np.size(b)} numbers>" for b in bounds)


@partial(jax.jit, static_argnames=("norm",))
def start_in_ball(norm: Norm, x: jax.Array, keys: jax.Array, ball: Ball) -> jax.Array:
    """Draw a start from the ball and move it into the bounds, for each example."""
    return project(norm, x, x + ball.epsilon * samples(norm, x, keys, ball), ball)
