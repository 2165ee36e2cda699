"""Square attack: random search on scores, without gradients (Andriushchenko et al. 2020, arXiv:1912.00049)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .attacks import PGD, fold_keys, one_key_each
from .balls import ball_of, check_bounds
from .loops import as_pytree, runs_fused

# After which query the share of features that a proposal changes is halved once more.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square:
    """Square attack: a black-box attack by random search in the L∞ ball.

    Each query sets a random square of pixels (or, where inputs are no images, a random set of features) to one of
    the two ends of the ball, channel by channel, and keeps it where the margin z_y − max_{c≠y} z_c falls. It sees
    scores only: where it finds what gradients do not, the model hides its gradients.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    n_queries : int, default=5000
        Evaluations of each example, those already fooled too.
    share : float, default=0.8
        Share of the features that the first proposals change; it falls along a fixed schedule.
    bounds : (low, high) or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`; when called, for labels that are not integers.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, Square
    >>> network = MLP(n_outputs=4)
    >>> model = Model(network, network.init(jax.random.key(0), (6,)))
    >>> x, y = jax.numpy.full((3, 6), 0.5), jax.numpy.array([0, 1, 3])
    >>> x_adv = Square(epsilon=0.1, n_queries=20)(model, x, y, key=jax.random.key(1))
    >>> bool(abs(x_adv - x).max() <= 0.1 + 1e-6)
    True
    """

    epsilon: float
    n_queries: int = 5000
    share: float = 0.8
    bounds: tuple | None = (0.0, 1.0)
    norm = "linf"

    def __post_init__(self):
        object.__setattr__(self, "bounds", PGD(self.epsilon, bounds=self.bounds).bounds)
        if not (isinstance(self.n_queries, int | np.integer) and self.n_queries >= 1):
            raise ValueError(f"n_queries must be a positive integer, got {self.n_queries!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")

    def __call__(self, model, x, y, *, key):
        """Adversarial examples (n, ...) of inputs (n, ...) and labels (n,); ``key`` is one, or one for each."""
        if isinstance(x, np.ndarray):
            check_bounds(self, x)
        model, x, y = as_pytree(model), jnp.asarray(x), jnp.asarray(y)
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"the square attack needs integer labels, got {y.dtype}")
        keys, ball = one_key_each(key, x.shape[0]), ball_of(self, x)
        state = _begin(model, x, y, keys, ball)
        queries = np.arange(1, self.n_queries)
        sizes = _sizes(self.n_queries, self.share, x.shape[1:])
        if runs_fused(model, x):
            return _all_queries(model, x, y, keys, ball, state, queries, sizes).x
        for query, size in zip(queries, sizes, strict=True):
            state = _query(model, x, y, keys, ball, state, query, size)
        return state.x


class _State(NamedTuple):
    x: jax.Array
    margin: jax.Array


def margin(scores: jax.Array, y: jax.Array) -> jax.Array:
    """z_y − max_{c≠y} z_c (n,) of scores (n, C) and labels (n,): negative where the answer is wrong.

    >>> margin(jnp.array([[2.0, 0.5, 1.0]]), jnp.array([0])).tolist()
    [1.0]
    """
    right = jax.nn.one_hot(y, scores.shape[1], dtype=bool)
    return jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0] - jnp.where(right, -jnp.inf, scores).max(1)


@jax.jit
def _begin(model, x, y, keys, ball):
    """Stripes: one sign for each column of each channel."""

    def stripes(key):
        shape = (1, *x.shape[2:]) if x.ndim == 4 else x.shape[1:]
        return jax.random.rademacher(key, shape, x.dtype)

    start = _inside(x, x + ball.epsilon * jax.vmap(stripes)(keys), ball)
    return _State(start, margin(model(start), y))


@jax.jit
def _query(model, x, y, keys, ball, state, query, size):
    def propose(key):
        key_where, key_sign = jax.random.split(key)
        if x.ndim == 4:
            height, width, channels = x.shape[1:]
            corner = jax.random.uniform(key_where, (2,))
            top, left = (jnp.floor(c * (n - size + 1)) for c, n in zip(corner, (height, width), strict=True))
            rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
            chosen = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
            return jnp.where(chosen[:, :, None], 2 * jax.random.rademacher(key_sign, (channels,), x.dtype), 0)
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(key_where, x.shape[1:]).ravel())).reshape(x.shape[1:])
        return jnp.where(rank < size, 2 * jax.random.rademacher(key_sign, x.shape[1:], x.dtype), 0)

    change = ball.epsilon * jax.vmap(propose)(fold_keys(keys, query))
    candidate = _inside(x, state.x + change, ball)
    found = margin(model(candidate), y)
    # what is fooled stays as it is
    better = (found < state.margin) & (state.margin >= 0)
    return _State(
        jnp.where(better.reshape(-1, *[1] * (x.ndim - 1)), candidate, state.x),
        jnp.where(better, found, state.margin),
    )


@jax.jit
def _all_queries(model, x, y, keys, ball, state, queries, sizes):
    def body(state, now):
        return _query(model, x, y, keys, ball, state, *now), None

    return jax.lax.scan(body, state, (queries, sizes))[0]


def _inside(x, x_adv, ball):
    return jnp.clip(jnp.clip(x_adv, x - ball.epsilon, x + ball.epsilon), ball.lower, ball.upper)


@lru_cache(maxsize=256)
def _sizes(n_queries: int, share: float, shape: tuple[int, ...]) -> np.ndarray:
    """Side of the square, or number of features, in every query but the first."""
    shares = share / 2.0 ** np.searchsorted(HALVED_AFTER, np.arange(1, n_queries), side="left")
    if len(shape) != 3:
        return np.maximum(np.round(shares * math.prod(shape)), 1).astype(np.int32)
    height, width, _ = shape
    side = np.round(np.sqrt(shares * height * width))
    return np.clip(side, 1, max(min(height, width) - 1, 1)).astype(np.int32)
