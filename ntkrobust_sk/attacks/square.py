"""Square attack: random search on scores, without gradients.

Andriushchenko et al. 2020, arXiv:1912.00049; in the L1 norm Croce & Hein 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import number
from ..execution.convolutions import with_fast_convolutions
from ..execution.keys import fold_keys
from ..execution.loops import prefers_compiled_loop, repeat
from .boxes import Box
from .entry import Given
from .losses import margin
from .norms import NORMS
from .skeleton import Attack, Outcome
from .threat_model import project

# Queries whose random numbers are drawn at once.
BLOCK = 16
# Numbers of queries after which the share of features that a proposal changes is halved once more.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square(Attack):
    """Square attack: a black-box attack by random search (Andriushchenko et al. 2020, arXiv:1912.00049).

    Each query changes a random square of pixels (or, where inputs are no images, a random set of features) and is
    kept where the margin z_y − max_{c≠y} z_c falls. In L∞ the square goes to one of the two ends of the ball,
    channel by channel. In L2, and in L1 (Croce & Hein 2021, arXiv:2103.01208), a bump of either sign is added to
    it, with all the length that another square has to give away; then the change is projected. The attack sees
    scores only: where it finds what gradients do not, the model hides its gradients.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    n_queries : int, default=5000
        Evaluations of each example, those already fooled too.
    norm : {"linf", "l2", "l1"}, default="linf"
    share : float, default=0.8
        Share of the features that the first proposals change; it falls along a fixed schedule.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
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
    norm: str = "linf"
    share: float = 0.8
    bounds: tuple | Box | None = (0.0, 1.0)
    needs_gradients = False
    needs_labels = True
    checks = {"share": partial(number, above=0, high=1)}

    def _run(self, given: Given) -> Outcome:
        kind, n_queries = (self.norm, given.shape[1:]), self.n_queries
        operands = (given.model, given.x, given.y, given.keys, given.ball)
        # a query ends with what the next one asks about; what the last one ends with is not asked about
        sizes = _sizes(n_queries + 1, self.share, given.shape[1:])
        start = _begin(*kind, *operands, sizes[0])
        # in a compiled loop several at a time, so that their random numbers are drawn at once
        block = BLOCK if prefers_compiled_loop(given.model, given.x) else 1
        n_steps = -(-(n_queries - 1) // block)
        numbers = np.arange(2, n_steps * block + 2).reshape(n_steps, block)
        sizes = np.pad(sizes[1:], (0, numbers.size - n_queries + 1), mode="edge").reshape(numbers.shape)
        plan = numbers, sizes, np.minimum(n_queries + 1 - numbers[:, 0], block)
        return Outcome(repeat(_queries, n_steps, start, *operands, static=kind, schedule=lambda _: plan).x)


class _State(NamedTuple):
    """The best points (n, d) so far, their margins (n,), and the points (n, d) that are asked about next.

    These are part of the state so that they are written down: on a CPU, XLA would compute them anew for each place
    where a network pads and copies them.
    """

    x: jax.Array
    margin: jax.Array
    candidate: jax.Array


@partial(jax.jit, static_argnames=("norm", "shape"))
def _begin(norm, shape, model, x, y, keys, ball, size):
    delta = jax.vmap(partial(_stripes if norm == "linf" else _tiles, shape, x.dtype))(keys)
    delta = jnp.broadcast_to(delta, (len(x), *shape)).reshape(x.shape)
    if norm != "linf":
        delta = jnp.where(ball.lower < ball.upper, delta, 0)
        length = NORMS[norm].length(delta)
        delta = delta / jnp.where(length > 0, length, 1)
    start = project(NORMS[norm], x, x + ball.epsilon * delta, ball)
    found = margin(with_fast_convolutions(model)(start), y)
    drawn = _drawn(norm, shape, x.dtype, fold_keys(keys, 1))
    return _State(start, found, _candidate(norm, shape, size, drawn, start, x, ball))


def _stripes(shape, dtype, key):
    """Draw one sign for each column of each channel."""
    return jax.random.rademacher(key, (1, *shape[1:]) if len(shape) == 3 else shape, dtype)


def _tiles(shape, dtype, key):
    """Draw five by five bumps, each of one sign in each channel."""
    if len(shape) != 3:
        return jax.random.rademacher(key, shape, dtype)
    height, width, channels = shape
    side = max(min(height, width) // 5, 1)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    signs = jax.random.rademacher(key, (-(-height // side), -(-width // side), channels), dtype)
    return _bump(rows % side, columns % side, side, shape)[:, :, None] * signs[rows // side, columns // side]


@partial(jax.jit, static_argnames=("norm", "shape"))
def _queries(norm, shape, state, following, model, x, y, keys, ball):
    """Ask some queries, each of which ends with what the next one asks about."""
    numbers, sizes, n_asked = following
    drawn = jax.vmap(lambda number: _drawn(norm, shape, x.dtype, fold_keys(keys, number)))(numbers)

    def query(at, state):
        found = margin(with_fast_convolutions(model)(state.candidate), y)
        # what is fooled stays as it is
        better = (found < state.margin) & (state.margin >= 0)
        best = jnp.where(better[:, None], state.candidate, state.x)
        now = jax.tree.map(lambda part: part[at], drawn)
        candidate = _candidate(norm, shape, sizes[at], now, best, x, ball)
        return _State(best, jnp.where(better, found, state.margin), candidate)

    return query(0, state) if len(numbers) == 1 else jax.lax.fori_loop(0, n_asked, query, state)


def _drawn(norm, shape, dtype, keys):
    """Draw what one query needs of each example: few numbers, or else keys from which it draws itself."""
    if norm != "linf" or len(shape) != 3:
        return keys

    def draw(key):
        key_where, key_sign = jax.random.split(key)
        return jax.random.uniform(key_where, (2,)), jax.random.rademacher(key_sign, shape[2:], dtype)

    return jax.vmap(draw)(keys)


def _candidate(norm, shape, size, drawn, best, x, ball):
    """Return what a query asks about: the best points with a change."""
    if norm == "linf":
        flip = _flip_square if len(shape) == 3 else _flip
        changes = jax.vmap(partial(flip, shape, x.dtype, size))(drawn)
        candidate = best + ball.epsilon * changes.reshape(x.shape)
    else:
        free = jnp.broadcast_to(ball.lower < ball.upper, x.shape).reshape(-1, *shape)
        epsilon = jnp.broadcast_to(ball.epsilon.reshape(-1), len(x))
        move = jax.vmap(partial(_move, NORMS[norm].order, size))
        candidate = x + move(epsilon, drawn, (best - x).reshape(-1, *shape), free).reshape(x.shape)
    return project(NORMS[norm], x, candidate, ball)


def _flip_square(shape, dtype, size, drawn):
    """Return changes, in units of epsilon, that take one square from any point of the ball to its ends."""
    corner, sign = drawn
    chosen, _, _ = _window(corner, shape, size)
    return jnp.where(chosen[:, :, None], 2 * sign, jnp.zeros((), dtype))


def _flip(shape, dtype, size, key):
    """Draw changes, in units of epsilon, that take some features from any point of the ball to its ends."""
    key_where, key_sign = jax.random.split(key)
    return jnp.where(_ranks(key_where, shape) < size, 2 * jax.random.rademacher(key_sign, shape, dtype), 0)


def _move(p, size, epsilon, key, delta, free):
    """Draw changes of one example in which one window has given its length to another, where a bump is added."""
    key_1, key_2, key_sign, key_turn = jax.random.split(key, 4)
    shape, dtype = delta.shape, delta.dtype
    if delta.ndim == 3:
        window, rows, columns = _window(jax.random.uniform(key_1, (2,)), shape, size)
        other, _, _ = _window(jax.random.uniform(key_2, (2,)), shape, size)
        turned = jax.random.bernoulli(key_turn)
        rows, columns = jnp.where(turned, columns, rows), jnp.where(turned, rows, columns)
        window, other = window[:, :, None], other[:, :, None]
        bump = _bump(rows, columns, size, shape)[:, :, None] * jax.random.rademacher(key_sign, shape[2:], dtype)
    else:
        delta, free = delta.reshape(-1, 1), free.reshape(-1, 1)
        ranks = _ranks(key_1, delta.shape, free)
        window, other = ranks < size, (ranks >= size) & (ranks < 2 * size)
        bump = jax.random.rademacher(key_sign, delta.shape, dtype)

    def powers(v):
        """Sum up the powers of each channel."""
        return jnp.sum(jnp.abs(v) ** p, axis=tuple(range(delta.ndim - 1)))

    def unit(v):
        length = powers(v) ** (1 / p)
        return v / jnp.where(length > 0, length, 1)

    unspent = jnp.maximum(epsilon**p - jnp.sum(powers(delta)), 0) / delta.shape[-1]
    available = (powers(jnp.where(window | other, delta, 0)) + unspent) ** (1 / p)
    moved = unit(unit(jnp.where(window & free, bump, 0)) + unit(jnp.where(window, delta, 0))) * available
    return jnp.where(window, moved, jnp.where(other, 0, delta)).reshape(shape)


def _window(corner, shape, size):
    """Return a square of pixels, with the rows and columns counted from its corner, given as shares of its way."""
    top, left = (jnp.floor(c * (n - size + 1)).astype(int) for c, n in zip(corner, shape[:2], strict=True))
    rows, columns = jnp.arange(shape[0])[:, None] - top, jnp.arange(shape[1]) - left
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size), rows, columns


def _ranks(key, shape, free=True):
    """Return the rank of each feature in a random order in which those that are ``free`` come first."""
    order = jnp.where(free, jax.random.uniform(key, shape), 1).ravel()
    return jnp.argsort(jnp.argsort(order)).reshape(shape)


def _bump(rows, columns, size, shape):
    """Return two halves of opposite sign, each of which rises to its middle; 0 outside of the square of this size.

    Σ_{k=0}^{n−d} 1 / (n + 1 − k)², where d is the distance from the middle in the L∞ norm and n = ⌊size / 2⌋.
    """
    sums = jnp.asarray(np.cumsum([0.0, *(1 / np.arange(1, max(shape[:2]) + 2) ** 2)]), jnp.float32)
    half = size // 2
    second = rows >= half
    middle = jnp.where(second, half + (size - half) // 2, half // 2)
    distance = jnp.maximum(abs(rows - middle), abs(columns - half))
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    height = sums[half + 1] - sums[jnp.minimum(distance, half + 1)]
    return jnp.where(inside, jnp.where(second, -height, height), 0)


@lru_cache(maxsize=256)
def _sizes(n_queries: int, share: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return the side of the square, or number of features, in every query but the first."""
    shares = share / 2.0 ** np.searchsorted(HALVED_AFTER, np.arange(1, n_queries), side="left")
    if len(shape) != 3:
        return np.maximum(np.round(shares * math.prod(shape)), 1).astype(np.int32)
    height, width, _ = shape
    side = np.round(np.sqrt(shares * height * width))
    return np.clip(side, 1, max(min(height, width) - 1, 1)).astype(np.int32)
