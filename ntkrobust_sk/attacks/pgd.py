"""Attacks: small changes of the input that a model does not survive.

An attack is a frozen dataclass, called as ``attack(model, x, y, key=key) -> x_adv``. All it knows of the
model is that ``model(x)`` gives scores (n, C); what it maximises is the cross-entropy of integer labels ``y``
or, for real targets, the squared error. One column of scores is that of label 1 against label 0, whose score is
zero. Example i's randomness depends on ``key`` and i alone; a ``key`` of shape (n,) holds one for each example.

An attack of your own
---------------------
is any callable of this form: a function, or better a frozen dataclass, which can be compared, printed and saved.
It gets inputs ``x`` (n, ...) and labels ``y`` (n,) of one tile as JAX arrays, and returns floating numbers shaped
like ``x``. Whoever asked for it does not trust it: what comes back is put into ball and bounds again, and where it
is not finite the input stands in its place. It may declare, as attributes:

``epsilon``, ``norm``, ``bounds``
    Its ball; all three or none. Without them what it returns is taken as it is.
``needs_gradients``
    False if scores are all it needs, so that it may attack estimators that have no gradients. True if not stated.
``one_key_each``
    True if ``key`` is an array (n,) of keys, one for each example, so that no example depends on its tile. If not
    stated it is one key, which differs from tile to tile.

>>> from sklearn.datasets import load_iris
>>> from sklearn.linear_model import LogisticRegression
>>> from ntkrobust_sk import robust_accuracy
>>> @dataclass(frozen=True)
... class RandomSigns:
...     epsilon: float
...     norm: str = "linf"
...     bounds: tuple | None = None
...     needs_gradients = False
...
...     def __call__(self, model, x, y, *, key):
...         return x + self.epsilon * jax.random.rademacher(key, x.shape, x.dtype)
>>> X, y = load_iris(return_X_y=True)
>>> classifier = LogisticRegression(max_iter=1000).fit(X, y)
>>> 0.8 < robust_accuracy(classifier, X, y, RandomSigns(0.3)) <= classifier.score(X, y)
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import number
from ..execution.convolutions import with_fast_convolutions
from ..execution.keys import fold_keys
from ..execution.loops import repeat
from .boxes import Box
from .entry import Given
from .losses import answers_wrongly, ascent_losses, gradient_of
from .norms import NORMS
from .skeleton import Attack, Outcome
from .threat_model import ball_around, in_dtype_of, project, start_in_ball, steepest, unusable


@dataclass(frozen=True)
class Clean:
    """No attack: the inputs as they are. The first entry of the paper's two updates per batch.

    Examples
    --------
    >>> Clean()(None, [[0.2, 0.8]], [1], key=None)
    [[0.2, 0.8]]
    """

    needs_gradients = False
    one_key_each = True

    def __call__(self, model: Any, x: Any, y: Any, *, key: Any) -> Any:
        """Return ``x`` itself."""
        return x


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the loss (Madry et al. 2018, arXiv:1706.06083).

    x ← Π(x + step_size · steepest(∇_x loss)), from a random point of the ball; Π projects to the ball of
    radius epsilon around the input and then to the bounds.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data (4/255 for images in [0, 1]).
    n_steps : int, default=20
    step_size : float, default=None
        Length of a step in the norm, in units of the data. None is 2 · epsilon / n_steps.
    norm : {"linf", "l2", "l1"}, default="linf"
    random_start : bool, default=True
        Start uniformly in the ball, otherwise at the input.
    n_restarts : int, default=1
        Independent runs; of each example the one with a wrong answer, then with the highest loss, is kept.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        Range of valid inputs; low and high are numbers, or one number for each feature. None is unbounded. A
        :class:`~ntkrobust_sk.Box` also says which features may change, and which hold integers or categories.

    Raises
    ------
    ValueError
        For epsilon < 0 or NaN, n_steps or n_restarts < 1, an unknown norm, bounds out of order, and
        (when called with NumPy data) inputs outside of the bounds.
    TypeError
        When called with inputs that are not floating, or with something else than a key.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, PGD
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> x, y = jax.numpy.full((3, 4), 0.5), jax.numpy.array([0, 1, 1])
    >>> x_adv = PGD(epsilon=0.1, n_steps=5)(model, x, y, key=jax.random.key(1))
    >>> bool(abs(x_adv - x).max() <= 0.1 + 1e-6)
    True
    """

    epsilon: float
    n_steps: int = 20
    step_size: float | None = None
    norm: str = "linf"
    random_start: bool = True
    n_restarts: int = 1
    bounds: tuple | Box | None = (0.0, 1.0)

    def _run(self, given: Given) -> Outcome:
        best = self._ascended(given)
        for restart in range(1, self.n_restarts):
            other = self._ascended(given._replace(keys=fold_keys(given.keys, restart)), best.lost)
            best = Outcome(stronger_example(given.model, best.x, other.x, given.y), other.lost)
        return best

    def _ascended(self, given, lost=None) -> Outcome:
        start = start_in_ball(NORMS[self.norm], given.x, given.keys, given.ball) if self.random_start else given.x
        length = 2 * given.epsilon / self.n_steps if self.step_size is None else self.step_size
        return pgd_steps(self.norm, given, start, length, self.n_steps, lost)


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length epsilon from the input (Goodfellow et al. 2015, arXiv:1412.6572).

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    norm : {"linf", "l2", "l1"}, default="linf"
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`PGD`.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(widths=(8,), n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> x = jax.numpy.full((3, 4), 0.5)
    >>> x_adv = FGSM(0.1)(model, x, jax.numpy.zeros(3, int), key=jax.random.key(1))
    >>> f"{abs(x_adv - x).max():.3f}"
    '0.100'
    """

    epsilon: float
    norm: str = "linf"
    bounds: tuple | Box | None = (0.0, 1.0)

    def _run(self, given: Given) -> Outcome:
        return pgd_steps(self.norm, given, given.x, given.epsilon, 1)


@dataclass(frozen=True)
class NFGSM(Attack):
    """One step from a noisy input, for training only: N-FGSM (de Jorge et al. 2022, arXiv:2202.01181).

    z = clip(x + η), η uniform in ±noise · epsilon, and then clip(z + step_size · sign ∇_z loss(z)). The change is
    *not* projected to the ball of radius epsilon, which is what avoids catastrophic overfitting: it reaches
    noise · epsilon + step_size. Scores project it as they do every attack; it is a weak one.

    Parameters
    ----------
    epsilon : float
        Radius of the L∞ ball that training is meant for, in units of the data.
    noise : float, default=2.0
        Largest noise, in units of epsilon.
    step_size : float, default=None
        None is epsilon.
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`PGD`.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> x, y = jax.numpy.full((3, 4), 0.5), jax.numpy.array([0, 1, 1])
    >>> x_adv = NFGSM(epsilon=0.1)(model, x, y, key=jax.random.key(1))
    >>> bool(abs(x_adv - x).max() <= 0.3 + 1e-6)
    True
    """

    epsilon: float
    noise: float = 2.0
    step_size: float | None = None
    bounds: tuple | Box | None = (0.0, 1.0)
    norm = "linf"
    checks = {"noise": partial(number, low=0, unit="in units of epsilon")}

    def _run(self, given: Given) -> Outcome:
        noise = ball_around(given.x, self.noise * given.epsilon, self.bounds)
        noisy = start_in_ball(NORMS[self.norm], given.x, given.keys, noise)
        length = given.epsilon if self.step_size is None else self.step_size
        ball = ball_around(noisy, length, self.bounds)
        return pgd_steps(self.norm, given._replace(x=noisy, ball=ball), noisy, length, 1)


def pgd_steps(norm: str, given: Given, start: jax.Array, length: Any, n_steps: int, lost: Any = None) -> Outcome:
    """Climb the loss from ``start`` (n, d) by steps of a length, each projected to the ball.

    ``lost`` (n,) says where a gradient was not finite before.
    """
    state = start, np.zeros(len(start), bool) if lost is None else lost
    operands = (given.model, given.x, given.y, given.ball, *in_dtype_of(given.x, length))
    return Outcome(*repeat(_step, n_steps, state, *operands, static=(norm,)))


@partial(jax.jit, static_argnames="norm")
def _step(norm, state, now, model, x, y, ball, length):
    x_adv, lost = state
    gradient, _, _ = gradient_of(lambda scores: ascent_losses(scores, y), model, x_adv)
    ahead = x_adv + length * steepest(NORMS[norm], gradient, x_adv, ball)
    return project(NORMS[norm], x, ahead, ball), lost | unusable(gradient, ball)


@jax.jit
def stronger_example(model: Callable, first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    """Return the stronger of two candidates (n, d) of each example.

    One that fools the model comes before one that does not, then the one with the higher loss.
    """

    def badness(z):
        scores = with_fast_convolutions(model)(z)
        fooled = answers_wrongly(scores, y) if jnp.issubdtype(y.dtype, jnp.integer) else False
        return fooled, known(ascent_losses(scores, y))

    (fooled, loss), (fooled_2, loss_2) = badness(first), badness(second)
    better = (fooled_2 > fooled) | ((fooled_2 == fooled) & (loss_2 > loss))
    return jnp.where(better[:, None], second, first)


def known(losses: jax.Array) -> jax.Array:
    """Return losses (n,), with those that are NaN as the lowest of all."""
    return jnp.where(jnp.isnan(losses), -jnp.inf, losses)
