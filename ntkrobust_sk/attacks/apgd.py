"""Auto-PGD: projected ascent that finds its own step size and keeps whatever fooled the model on the way.

Croce & Hein 2020, arXiv:2003.01690; in the L1 norm 2021, arXiv:2103.01208. Nothing has to be tuned, which is
what makes it fit for evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import check_choice, integer
from ..execution.convolutions import with_fast_gradients
from ..execution.keys import fold_keys
from ..execution.loops import runs_fused
from .climbing import Climbing
from .entry import given
from .losses import LOSSES, answers_wrongly, check_classes
from .norms import NORMS
from .pgd import known, set_common, set_plain, worse_of
from .threat_model import Box, free, project, samples, steepest, unusable, usable

# Share of the momentum term in a step: where the step leads, and where the last one came from.
MOMENTUM = 0.75
# A step size is kept as long as the loss rises in more than this share of the steps.
RHO = 0.75
# The first window between two looks at the step size, by how much it shrinks, and its least: shares of all steps.
FIRST_WINDOW, DECREMENT, LEAST_WINDOW = 0.22, 0.03, 0.06
# The window in the L1 norm.
SPARSE_WINDOW = 0.04
# Its radii, in units of epsilon, and the share of all steps that each of the larger ones gets.
RADII, WIDER_SHARE = (3.0, 2.0, 1.0), 0.3
# Of the features that the best point has changed, one in so many is changed by a step; where they have become
# fewer by this ratio the step size starts anew, otherwise it shrinks, down to a share of epsilon.
SPARSER, FEWER, SHRINK, LEAST_STEP = 1.5, 0.95, 1.5, 0.1


@dataclass(frozen=True)
class APGD(Climbing):
    """Auto-PGD (Croce & Hein 2020, arXiv:2003.01690; in the L1 norm 2021, arXiv:2103.01208).

    Starts on the surface of the ball with a step of 2 · epsilon and halves it, from the best point so far, where
    the loss has stopped to rise. In the L1 norm a step is one of epsilon along the k largest entries of the
    gradient that are changed already or that bounds leave free, without momentum, and is projected to the nearest
    point of ball and bounds at once; k follows the number of features that the best point changes. There the first
    three tenths of the steps are of 3 epsilon in the ball of that radius, the next three of 2 epsilon, each from
    the best point of the one before, projected; only what is found within epsilon counts. Of each example a point
    that fooled the model is returned if there was one, otherwise the one with the highest loss.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    n_steps : int, default=100
    norm : {"linf", "l2", "l1"}, default="linf"
    loss : {"ce", "dlr", "targeted-dlr"}, default="ce"
        "ce" is the cross-entropy (or the squared error of real targets). "dlr", the difference of logits ratio
        (max_{c≠y} z_c − z_y) / (z_(1) − z_(3)), is invariant to shifts and scales of the logits z, which hide
        the gradient of the cross-entropy; it needs three classes. "targeted-dlr", (z_t − z_y) / (z_(1) −
        (z_(3) + z_(4)) / 2), drives towards one class t after the other; it needs four.
    n_restarts : int, default=1
        Independent runs, for each target if there are targets.
    n_targets : int, default=9
        Target classes: those of the highest scores besides the first. Fewer if there are fewer classes.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`; when called, for a loss that needs more classes than there are, or
        integer labels.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import APGD, MLP, Model
    >>> network = MLP(n_outputs=4)
    >>> model = Model(network, network.init(jax.random.key(0), (6,)))
    >>> x, y = jax.numpy.full((3, 6), 0.5), jax.numpy.array([0, 1, 3])
    >>> x_adv = APGD(epsilon=0.1, n_steps=10, loss="dlr")(model, x, y, key=jax.random.key(1))
    >>> bool(abs(x_adv - x).max() <= 0.1 + 1e-6)
    True
    """

    epsilon: float
    n_steps: int = 100
    norm: str = "linf"
    loss: str = "ce"
    n_restarts: int = 1
    n_targets: int = 9
    bounds: tuple | Box | None = (0.0, 1.0)

    def __post_init__(self):
        set_common(self)
        check_choice("loss", self.loss, LOSSES)
        set_plain(self, n_targets=integer("n_targets", self.n_targets))

    def examples(self, model, x, y, key):
        """Adversarial examples (n, ...), and whether a gradient on the way was not finite (n,)."""
        model, x, y, keys, ball, shape, n_classes = given(self, model, x, y, key)
        check_classes(self.loss, n_classes, y)
        # ranks among the scores of the input; the first is the answer that has to be changed
        ranks = range(2, min(self.n_targets + 1, n_classes) + 1) if self.loss == "targeted-dlr" else (1,)
        best, lost = None, np.zeros(len(x), bool)
        for run, rank in enumerate(rank for rank in ranks for _ in range(self.n_restarts)):
            target = _target(model, x, rank)
            other, lost = _one_run(self, model, x, y, target, fold_keys(keys, run), ball, lost)
            best = other if best is None else worse_of(model, best, other, y)
        return best.reshape(shape), lost


class _State(NamedTuple):
    """Where the ascent is, for each of n examples."""

    x: jax.Array
    previous: jax.Array
    gradient: jax.Array
    step_size: jax.Array
    loss: jax.Array
    # the point of the highest loss, and one that fooled the model
    best: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    fooling: jax.Array
    fooled: jax.Array
    # since the last look at the step size
    n_rises: jax.Array
    loss_then: jax.Array
    halved_then: jax.Array
    # in the L1 norm, how many features the best point had changed then, and how many a step changes
    changed_then: jax.Array
    count: jax.Array
    # whether a gradient was not finite
    lost: jax.Array


def _one_run(attack, model, x, y, target, keys, ball, lost):
    kind, fused, start = (attack.norm, attack.loss), runs_fused(model, x), None
    for radius, n_steps in _radii(attack.n_steps, attack.norm):
        within = ball._replace(epsilon=(radius * ball.epsilon).astype(x.dtype))
        start = _surface(attack.norm, x, keys, within) if start is None else start
        state = _begin(*kind, model, x, y, target, start, within, lost)
        looks, windows = _looks(n_steps, attack.norm)
        schedule = (np.arange(n_steps) == 0, looks, windows)
        if fused:
            padded = [np.pad(part, (0, attack.n_steps - n_steps)) for part in schedule]
            state = _all_steps(*kind, model, x, y, target, within, state, padded, n_steps)
        else:
            for now in zip(*schedule, strict=True):
                state = _step(*kind, model, x, y, target, within, state, now)
        start, lost = state.best, state.lost
    return jnp.where(state.fooled[:, None], state.fooling, state.best), lost


def _radii(n_steps: int, norm: str) -> list[tuple[float, int]]:
    """Radii in units of epsilon, and how many steps are taken in the ball of each."""
    wider = int(WIDER_SHARE * n_steps) if norm == "l1" else 0
    counts = (wider, wider, n_steps - 2 * wider)
    return [(radius, count) for radius, count in zip(RADII, counts, strict=True) if count]


@partial(jax.jit, static_argnames="norm")
def _surface(norm, x, keys, ball):
    """A random point of the ball's surface."""
    norm = NORMS[norm]
    noise = samples(norm, x, keys, ball)
    length = norm.length(noise)
    return x + ball.epsilon * noise / jnp.where(length > 0, length, 1)


@partial(jax.jit, static_argnames=("norm", "loss"))
def _begin(norm, loss, model, x, y, target, start, ball, lost):
    start = project(NORMS[norm], x, start, ball)
    value, fooled, gradient = _ascend(loss, model, start, y, target)
    n, changed = len(x), _n_changed(start, x)
    return _State(
        start,
        start,
        gradient,
        jnp.broadcast_to(ball.epsilon if norm == "l1" else 2 * ball.epsilon, (n,)),
        jnp.zeros_like(value),
        start,
        gradient,
        value,
        start,
        fooled,
        jnp.zeros(n, jnp.int32),
        value,
        jnp.ones(n, bool),
        changed,
        changed / SPARSER,
        lost | unusable(gradient, ball),
    )


@partial(jax.jit, static_argnames=("norm", "loss"))
def _step(norm, loss, model, x, y, target, ball, state, now):
    is_first, looks, window = now
    ahead = _sparse_ahead(x, ball, state) if norm == "l1" else _ahead(NORMS[norm], x, ball, state, is_first)
    at = project(NORMS[norm], x, ahead, ball)
    value, fooled, gradient = _ascend(loss, model, at, y, target)
    better, newly = value > state.best_loss, fooled & ~state.fooled
    n_rises = state.n_rises + (value > state.loss)
    state = state._replace(
        x=at,
        previous=state.x,
        gradient=gradient,
        loss=value,
        best=jnp.where(better[:, None], at, state.best),
        best_gradient=jnp.where(better[:, None], gradient, state.best_gradient),
        best_loss=jnp.where(better, value, state.best_loss),
        fooling=jnp.where(newly[:, None], at, state.fooling),
        fooled=state.fooled | fooled,
        n_rises=jnp.where(looks, 0, n_rises),
        lost=state.lost | unusable(gradient, ball),
    )
    if norm == "l1":
        return _look_at_sparsity(x, ball, state, looks)
    return _look_at_losses(state, looks, n_rises <= RHO * window)


def _ahead(norm, x, ball, state, is_first):
    """A step and its momentum."""
    share = jnp.where(is_first, 1.0, MOMENTUM).astype(x.dtype)
    ahead = state.x + state.step_size[:, None] * steepest(norm, state.gradient, state.x, ball)
    ahead = project(norm, x, ahead, ball)
    return state.x + share * (ahead - state.x) + (1 - share) * (state.x - state.previous)


def _sparse_ahead(x, ball, state):
    """A step along few features, the steepest of those that can change or have."""
    count = jnp.maximum(jnp.round(state.count), 1)[:, None]
    gradient = usable(state.gradient, ball)
    eligible = free(gradient, state.x, ball) | (state.x != x)
    return state.x + state.step_size[:, None] * NORMS["l1"].steepest(gradient, eligible, count)


def _look_at_losses(state, looks, seldom):
    """Halve where the loss rose too seldom, or where since the last look, with this step size, nothing was won."""
    stuck = ~state.halved_then & (state.loss_then >= state.best_loss)
    halve = looks & (seldom | stuck)
    return _back_to_best(halve, state)._replace(
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        loss_then=jnp.where(looks, state.best_loss, state.loss_then),
        halved_then=jnp.where(looks, halve, state.halved_then),
    )


def _look_at_sparsity(x, ball, state, looks):
    """Start anew with long steps where the best point has become sparser, otherwise shorten them."""
    changed = _n_changed(state.best, x)
    sparser = changed < FEWER * state.changed_then
    shorter = jnp.maximum(state.step_size / SHRINK, LEAST_STEP * ball.epsilon)
    return _back_to_best(looks & sparser, state)._replace(
        step_size=jnp.where(looks, jnp.where(sparser, ball.epsilon, shorter), state.step_size),
        changed_then=jnp.where(looks, changed, state.changed_then),
        count=jnp.where(looks, changed / SPARSER, state.count),
    )


def _n_changed(at, x):
    return jnp.sum(at != x, axis=1).astype(x.dtype)


def _back_to_best(back, state):
    return state._replace(
        x=jnp.where(back[:, None], state.best, state.x),
        gradient=jnp.where(back[:, None], state.best_gradient, state.gradient),
    )


@partial(jax.jit, static_argnames=("norm", "loss"))
def _all_steps(norm, loss, model, x, y, target, ball, state, schedule, n_steps):
    def body(step, state):
        now = [part[step] for part in schedule]
        return _step(norm, loss, model, x, y, target, ball, state, now)

    return jax.lax.fori_loop(0, n_steps, body, state)


def _ascend(loss, model, x, y, target):
    """Losses (n,), whether the answer is wrong (n,), and the gradient (n, ...)."""

    def total(z):
        scores = with_fast_gradients(model)(z)
        values = LOSSES[loss](scores, y, target)
        return values.sum(), (values, scores)

    gradient, (values, scores) = jax.grad(total, has_aux=True)(x)
    has_labels = jnp.issubdtype(y.dtype, jnp.integer)
    fooled = answers_wrongly(scores, y) if has_labels else jnp.zeros(len(x), bool)
    return known(values), fooled, gradient


@jax.jit
def _target(model, x, rank):
    """The class (n,) of the rank-th highest score; one program serves all ranks."""
    order = jnp.argsort(model(x), axis=1)
    return jax.lax.dynamic_index_in_dim(order, order.shape[1] - rank, axis=1, keepdims=False)


@lru_cache(maxsize=256)
def _looks(n_steps: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """After which steps the step size is looked at, and how many steps each look covers."""
    shares = (SPARSE_WINDOW,) * 2 if norm == "l1" else (FIRST_WINDOW, LEAST_WINDOW)
    window, least = (max(int(share * n_steps), 1) for share in shares)
    decrement = max(int(DECREMENT * n_steps), 1)
    looks, windows, since = np.zeros(n_steps, bool), np.ones(n_steps, np.int32), 0
    for step in range(n_steps):
        since, windows[step] = since + 1, window
        if since == window:
            looks[step], since, window = True, 0, max(window - decrement, least)
    return looks, windows
