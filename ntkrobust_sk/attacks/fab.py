"""Fast adaptive boundary attack: the least change that crosses over (Croce & Hein 2020, arXiv:1907.02044).

Unlike ascent on a loss it looks for the *nearest* point of the decision boundary, by projections onto its
linearisation. It needs no step size, and a model's scale of logits does not matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ..execution.convolutions import with_fast_convolutions
from ..execution.keys import fold_keys
from ..execution.loops import repeat
from .boxes import Box
from .losses import answers_wrongly, gradient_of, scores_at
from .minimum_norm import MinimumNorm
from .norms import NORMS
from .planes import to_plane
from .threat_model import samples

# Largest share of a step that goes towards the input, α_max in the paper.
ALPHA_MAX = 0.1
# Length of a step, in units of the way to the boundary: η in the paper.
ETA = 1.05
# Share of the way from the input at which the search goes on after a wrong answer: β in the paper.
BETA = 0.9


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

    def _search(self, given, found):
        model, x, y, keys, ball = given.model, given.x, given.y, given.keys, given.ball
        order = _order(model, x)
        for target in range(min(self.n_targets, order.shape[1] - 1)):
            operands = (model, x, y, order[:, -2 - target], ball)
            for restart in range(self.n_restarts):
                number = target * self.n_restarts + restart
                start = _around(self.norm, x, fold_keys(keys, number), ball, found) if restart else x
                _, found = repeat(_step, self.n_steps, (start, found), *operands, static=(self.norm,))
        return found


@jax.jit
def _order(model, x):
    return jnp.argsort(model(x), axis=1)


@partial(jax.jit, static_argnames="norm")
def _around(norm, x, keys, ball, found):
    norm = NORMS[norm]
    noise = samples(norm, x, keys, ball)
    length = norm.length(noise)
    radius = jnp.minimum(found.distance, ball.epsilon.reshape(-1))[:, None] / 2
    return jnp.clip(x + radius * noise / jnp.where(length > 0, length, 1), ball.lower, ball.upper)


@partial(jax.jit, static_argnames="norm")
def _step(norm, state, now, model, x, y, target, ball):
    (at, found), norm = state, NORMS[norm]

    def ahead(scores):
        return scores_at(scores, target) - scores_at(scores, y)

    gradient, difference, _ = gradient_of(ahead, model, at)
    difference = difference.astype(at.dtype)
    found, gradient = found.having_met(gradient, difference, ball)
    difference = jnp.where(jnp.isfinite(difference), difference, 0)
    # the plane where the linearisation at the iterate vanishes, seen from the iterate and from the input
    behind = jnp.sum(gradient * (x - at), axis=1)
    wanted = jnp.concatenate([-difference, -difference - behind])
    twice = ball._replace(lower=_twice(ball.lower, x), upper=_twice(ball.upper, x))
    both = to_plane(norm, _twice(gradient, x), wanted, jnp.concatenate([at, x]), twice)
    from_at, from_x = jnp.split(both, 2)
    lengths = [jnp.maximum(norm.length(step), 1e-8) for step in (from_at, from_x)]
    alpha = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), ALPHA_MAX)
    mixed = (at + ETA * from_at) * (1 - alpha) + (x + ETA * from_x) * alpha
    at = jnp.clip(mixed, ball.lower, ball.upper)
    scores, distance = with_fast_convolutions(model)(at), norm.length(at - x).reshape(-1)
    wrong = answers_wrongly(scores, y)
    # where there are no scores there is no plane either
    back = wrong | jnp.isnan(scores).any(1)
    return jnp.where(back[:, None], x + BETA * (at - x), at), found.or_nearer(at, wrong, distance)


def _twice(values, x):
    return jnp.tile(jnp.broadcast_to(values, x.shape), (2, 1))
