"""Auto-PGD: projected ascent that finds its own step size and keeps whatever fooled the model on the way.

Croce & Hein 2020, arXiv:2003.01690; in the L1 norm 2021, arXiv:2103.01208. Nothing has to be tuned, which is
what makes it fit for evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import check_choice
from ..execution.keys import fold_keys
from ..execution.loops import repeat
from .boxes import Box
from .entry import Given
from .losses import LOSSES, answers_wrongly, check_classes, gradient_of
from .norms import L1, NORMS
from .pgd import known, stronger_example
from .skeleton import Attack, Outcome
from .threat_model import free, project, samples, steepest, unusable, usable

# Share of the momentum term in a step: where the step leads, and where the last one came from.
MOMENTUM = 0.75
# Share of the steps in which the loss must rise for the step size to be kept.
LEAST_RISES = 0.75
# Checkpoints, as shares of all steps: the first interval, its decrement, and the smallest one.
FIRST_WINDOW, DECREMENT, LEAST_WINDOW = 0.22, 0.03, 0.06
# The same interval in the L1 norm, where it does not change.
L1_WINDOW = 0.04
# Radii of the balls in the L1 norm, in units of epsilon, and the share of all steps for each larger one.
L1_RADII, L1_WIDER_SHARE = (3.0, 2.0, 1.0), 0.3
# Number of features that the best point has changed, for each that a step changes.
L1_FEATURES_PER_STEP = 1.5
# Ratio of changed features below which the step size starts anew; divisor of the step size otherwise, and the
# smallest step, in units of epsilon.
L1_RESTART_RATIO, L1_STEP_DIVISOR, L1_LEAST_STEP = 0.95, 1.5, 0.1


@dataclass(frozen=True)
class APGD(Attack):
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
        super().__post_init__()
        check_choice("loss", self.loss, LOSSES)

    def _run(self, given: Given) -> Outcome:
        check_classes(self.loss, given.n_classes, given.y)
        # ranks among the scores of the input; the first is the answer that has to be changed
        ranks = range(2, min(self.n_targets + 1, given.n_classes) + 1) if self.loss == "targeted-dlr" else (1,)
        best, lost = given.x, np.zeros(len(given.x), bool)
        for run, rank in enumerate(rank for rank in ranks for _ in range(self.n_restarts)):
            target = _target(given.model, given.x, rank)
            other, lost = _one_run(self, given._replace(keys=fold_keys(given.keys, run)), target, lost)
            best = stronger_example(given.model, best, other, given.y) if run else other
        return Outcome(best, lost)


class _State(NamedTuple):
    """The place of the ascent, for each of n examples."""

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


def _one_run(attack, given, target, lost):
    """Climb once, through all radii; return examples (n, d), and where a gradient was not finite (n,)."""
    kind, x = (attack.norm, attack.loss), given.x
    state: Any = None
    for radius, n_steps in _radii(attack.n_steps, attack.norm):
        ball = given.ball._replace(epsilon=(radius * given.ball.epsilon).astype(x.dtype))
        start = _surface(attack.norm, x, given.keys, ball) if state is None else state.best
        operands = (given.model, x, given.y, target, ball)
        state = _begin(*kind, *operands, start, lost if state is None else state.lost)
        schedule = partial(_schedule, n_steps, attack.norm)
        state = repeat(_step, n_steps, state, *operands, static=kind, schedule=schedule, length=attack.n_steps)
    return jnp.where(state.fooled[:, None], state.fooling, state.best), state.lost


def _schedule(n_steps, norm, length):
    """Return for each step whether it is the first, whether it ends a window, and the length of the window."""
    parts = (np.arange(n_steps) == 0, *_looks(n_steps, norm))
    return [np.pad(part, (0, length - n_steps)) for part in parts]


def _radii(n_steps: int, norm: str) -> list[tuple[float, int]]:
    """Return radii in units of epsilon, and how many steps are taken in the ball of each."""
    wider = int(L1_WIDER_SHARE * n_steps) if NORMS[norm].is_sparse else 0
    counts = (wider, wider, n_steps - 2 * wider)
    return [(radius, count) for radius, count in zip(L1_RADII, counts, strict=True) if count]


@partial(jax.jit, static_argnames="norm")
def _surface(norm, x, keys, ball):
    """Draw a point of the ball's surface."""
    norm = NORMS[norm]
    noise = samples(norm, x, keys, ball)
    length = norm.length(noise)
    return x + ball.epsilon * noise / jnp.where(length > 0, length, 1)


@partial(jax.jit, static_argnames=("norm", "loss"))
def _begin(norm, loss, model, x, y, target, ball, start, lost):
    start = project(NORMS[norm], x, start, ball)
    value, fooled, gradient = _ascend(loss, model, start, y, target)
    n, changed = len(x), _n_changed(start, x)
    return _State(
        start,
        start,
        gradient,
        jnp.broadcast_to((1 if NORMS[norm].is_sparse else 2) * ball.epsilon.reshape(-1), (n,)),
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
        changed / L1_FEATURES_PER_STEP,
        lost | unusable(gradient, ball),
    )


@partial(jax.jit, static_argnames=("norm", "loss"))
def _step(norm, loss, state, now, model, x, y, target, ball):
    is_first, looks, window = now
    ahead = (
        _sparse_ahead(x, ball, state) if NORMS[norm].is_sparse else _ahead(NORMS[norm], x, ball, state, is_first)
    )
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
    if NORMS[norm].is_sparse:
        return _look_at_sparsity(x, ball, state, looks)
    return _look_at_losses(state, looks, n_rises <= LEAST_RISES * window)


def _ahead(norm, x, ball, state, is_first):
    """Return where a step and its momentum lead."""
    share = jnp.where(is_first, 1.0, MOMENTUM).astype(x.dtype)
    ahead = state.x + state.step_size[:, None] * steepest(norm, state.gradient, state.x, ball)
    ahead = project(norm, x, ahead, ball)
    return state.x + share * (ahead - state.x) + (1 - share) * (state.x - state.previous)


def _sparse_ahead(x, ball, state):
    """Return where a step along few features leads, the steepest of those that can change or have."""
    count = jnp.maximum(jnp.round(state.count), 1)[:, None]
    gradient = usable(state.gradient, ball)
    eligible = free(gradient, state.x, ball) | (state.x != x)
    return state.x + state.step_size[:, None] * L1().steepest(gradient, eligible, count)


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
    changed, epsilon = _n_changed(state.best, x), ball.epsilon.reshape(-1)
    sparser = changed < L1_RESTART_RATIO * state.changed_then
    shorter = jnp.maximum(state.step_size / L1_STEP_DIVISOR, L1_LEAST_STEP * epsilon)
    return _back_to_best(looks & sparser, state)._replace(
        step_size=jnp.where(looks, jnp.where(sparser, epsilon, shorter), state.step_size),
        changed_then=jnp.where(looks, changed, state.changed_then),
        count=jnp.where(looks, changed / L1_FEATURES_PER_STEP, state.count),
    )


def _n_changed(at, x):
    return jnp.sum(at != x, axis=1).astype(x.dtype)


def _back_to_best(back, state):
    return state._replace(
        x=jnp.where(back[:, None], state.best, state.x),
        gradient=jnp.where(back[:, None], state.best_gradient, state.gradient),
    )


def _ascend(loss, model, x, y, target):
    """Return losses (n,), whether the answer is wrong (n,), and the gradient (n, ...)."""
    gradient, values, scores = gradient_of(lambda scores: LOSSES[loss](scores, y, target), model, x)
    has_labels = jnp.issubdtype(y.dtype, jnp.integer)
    fooled = answers_wrongly(scores, y) if has_labels else jnp.zeros(len(x), bool)
    return known(values), fooled, gradient


@jax.jit
def _target(model, x, rank):
    """Return the class (n,) of the rank-th highest score; one program serves all ranks."""
    order = jnp.argsort(model(x), axis=1)
    return jax.lax.dynamic_index_in_dim(order, order.shape[1] - rank, axis=1, keepdims=False)


@lru_cache(maxsize=256)
def _looks(n_steps: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Tell after which steps the step size is looked at, and how many steps each look covers."""
    shares = (L1_WINDOW,) * 2 if NORMS[norm].is_sparse else (FIRST_WINDOW, LEAST_WINDOW)
    window, least = (max(int(share * n_steps), 1) for share in shares)
    decrement = max(int(DECREMENT * n_steps), 1)
    looks, windows, since = np.zeros(n_steps, bool), np.ones(n_steps, np.int32), 0
    for step in range(n_steps):
        since, windows[step] = since + 1, window
        if since == window:
            looks[step], since, window = True, 0, max(window - decrement, least)
    return looks, windows
