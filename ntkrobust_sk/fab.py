"""Fast adaptive boundary attack: the least change that crosses over (Croce & Hein 2020, arXiv:1907.02044).

Unlike ascent on a loss it looks for the *nearest* point of the decision boundary, by projections onto its
linearisation. It needs no step size, and a model's scale of logits does not matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._validation import integer
from .attacks import Climbing, answers_wrongly, set_common, set_plain
from .balls import Box, samples, unusable, usable
from .entry import given
from .execution.convolutions import with_fast_gradients
from .execution.keys import fold_keys
from .execution.loops import runs_fused
from .norms import NORMS, bisect
from .square import margin

# At most so much of a step goes back towards the input; beyond the boundary by so much; back from it by so much.
ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
# Rounds in which what was found is refined, halvings in each, and how far beyond the boundary it is left.
ROUNDS, HALVINGS, BEYOND = 3, 6, 5e-4
# By how many last bits the scores of another program may differ.
ROUNDING = 4
# Of Newton's method at most; it passes at least one piece of a piecewise linear function in each.
NEWTON_STEPS = 50


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


@dataclass(frozen=True)
class FAB(MinimumNorm):
    """Targeted fast adaptive boundary attack (Croce & Hein 2020, arXiv:1907.02044; with targets: 2003.01690).

    For one target class after the other: linearise z_y − z_t, project the iterate and the input onto the plane
    where it vanishes (within the bounds), go a little beyond a mixture of both, and, once the answer is wrong,
    back towards the input. Of each example the nearest point found is returned if it lies within epsilon,
    otherwise the input.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data. Points beyond it do not count.
    n_steps : int, default=100
        For each target and restart.
    norm : {"linf", "l2", "l1"}, default="linf"
    n_restarts : int, default=1
        The first starts at the input, others around it.
    n_targets : int, default=9
        Target classes: those of the highest scores besides the first. Fewer if there are fewer classes.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`; when called, for labels that are not integers.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import FAB, MLP, Model
    >>> network = MLP(n_outputs=4)
    >>> model = Model(network, network.init(jax.random.key(0), (6,)))
    >>> x = jax.random.uniform(jax.random.key(1), (3, 6))
    >>> y = model(x).argmax(1)
    >>> x_adv = FAB(epsilon=1.0, n_steps=20)(model, x, y, key=jax.random.key(2))
    >>> bool((model(x_adv).argmax(1) != y).any())
    True
    """

    epsilon: float
    n_steps: int = 100
    norm: str = "linf"
    n_restarts: int = 1
    n_targets: int = 9
    bounds: tuple | Box | None = (0.0, 1.0)

    def __post_init__(self):
        set_common(self)
        set_plain(self, n_targets=integer("n_targets", self.n_targets))

    def _search(self, model, x, y, keys, ball, found):
        order = _order(model, x)
        n_targets = min(self.n_targets, order.shape[1] - 1)
        for target in range(n_targets):
            for restart in range(self.n_restarts):
                run_keys = fold_keys(keys, target * self.n_restarts + restart) if restart else None
                found = _one_run(self, model, x, y, order[:, -2 - target], run_keys, ball, found)
        return found


def _one_run(attack, model, x, y, target, keys, ball, found):
    at = x if keys is None else _around(attack.norm, x, keys, ball, found)
    if runs_fused(model, x):
        return _all_steps(attack.norm, model, x, y, target, ball, at, found, attack.n_steps)[1]
    for _ in range(attack.n_steps):
        at, found = _step(attack.norm, model, x, y, target, ball, at, found)
    return found


@jax.jit
def _order(model, x):
    return jnp.argsort(model(x), axis=1)


@partial(jax.jit, static_argnames="norm")
def _around(norm, x, keys, ball, found):
    norm = NORMS[norm]
    noise = samples(norm, x, keys, ball)
    length = norm.length(noise)
    radius = jnp.minimum(found.distance, ball.epsilon)[:, None] / 2
    return jnp.clip(x + radius * noise / jnp.where(length > 0, length, 1), ball.lower, ball.upper)


@partial(jax.jit, static_argnames="norm")
def _step(norm, model, x, y, target, ball, at, found):
    name, norm = norm, NORMS[norm]

    def differences(z):
        scores = with_fast_gradients(model)(z)
        ahead = jnp.take_along_axis(scores, target[:, None], 1) - jnp.take_along_axis(scores, y[:, None], 1)
        return ahead.sum(), ahead[:, 0].astype(z.dtype)

    gradient, difference = jax.grad(differences, has_aux=True)(at)
    found = found.having_met(gradient, difference, ball)
    gradient, difference = usable(gradient, ball), jnp.where(jnp.isfinite(difference), difference, 0)
    # the plane where the linearisation at the iterate vanishes, seen from the iterate and from the input
    behind = jnp.sum(gradient * (x - at), axis=1)
    wanted = jnp.concatenate([-difference, -difference - behind])
    twice = ball._replace(lower=_twice(ball.lower, x), upper=_twice(ball.upper, x))
    both = to_plane(name, _twice(gradient, x), wanted, jnp.concatenate([at, x]), twice)
    from_at, from_x = jnp.split(both, 2)
    lengths = [jnp.maximum(norm.length(step), 1e-8) for step in (from_at, from_x)]
    alpha = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), ALPHA_MAX)
    mixed = (at + ETA * from_at) * (1 - alpha) + (x + ETA * from_x) * alpha
    at = jnp.clip(mixed, ball.lower, ball.upper)
    scores, distance = model(at), norm.length(at - x).reshape(-1)
    wrong = answers_wrongly(scores, y)
    # where there are no scores there is no plane either
    back = wrong | jnp.isnan(scores).any(1)
    return jnp.where(back[:, None], x + BETA * (at - x), at), found.or_nearer(at, wrong, distance)


def _twice(values, x):
    return jnp.tile(jnp.broadcast_to(values, x.shape), (2, 1))


@partial(jax.jit, static_argnames="norm")
def _all_steps(norm, model, x, y, target, ball, at, found, n_steps):
    def body(_, state):
        return _step(norm, model, x, y, target, ball, *state)

    return jax.lax.fori_loop(0, n_steps, body, (at, found))


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
