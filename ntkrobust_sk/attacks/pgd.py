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

import warnings
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import check_choice, flag, integer, number
from ..execution.convolutions import with_fast_gradients
from ..execution.keys import fold_keys
from ..execution.loops import runs_fused
from .climbing import Climbing
from .entry import given
from .losses import answers_wrongly, ascent_losses
from .norms import NORMS
from .threat_model import Box, ball_of, plain_bounds, project, start_in_ball, steepest, unusable


@dataclass(frozen=True)
class Clean:
    """No attack: the inputs as they are. The first entry of the paper's two updates per batch."""

    needs_gradients = False
    one_key_each = True

    def __call__(self, model, x, y, *, key):
        """``x`` itself."""
        return x


@dataclass(frozen=True)
class PGD(Climbing):
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

    def __post_init__(self):
        check_choice("norm", self.norm, NORMS)
        set_plain(
            self,
            epsilon=number("epsilon", self.epsilon, low=0, unit="in units of the data"),
            n_steps=integer("n_steps", self.n_steps),
            n_restarts=integer("n_restarts", self.n_restarts),
            random_start=flag("random_start", self.random_start),
            bounds=plain_bounds(self.bounds),
        )
        if self.step_size is not None:
            set_plain(self, step_size=number("step_size", self.step_size, low=0, unit="in units of the data"))

    def examples(self, model, x, y, key):
        """Adversarial examples (n, ...), and whether a gradient on the way was not finite (n,)."""
        at = given(self, model, x, y, key)
        best, lost = _one_run(self, at.model, at.x, at.y, at.keys, at.ball)
        for restart in range(1, self.n_restarts):
            keys = fold_keys(at.keys, restart)
            other, lost = _one_run(self, at.model, at.x, at.y, keys, at.ball, lost)
            best = worse_of(at.model, best, other, at.y)
        return best.reshape(at.shape), lost


@dataclass(frozen=True)
class FGSM(Climbing):
    """One step of length epsilon from the input (Goodfellow et al. 2015, arXiv:1412.6572).

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    norm : {"linf", "l2", "l1"}, default="linf"
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`PGD`.
    """

    epsilon: float
    norm: str = "linf"
    bounds: tuple | Box | None = (0.0, 1.0)

    def __post_init__(self):
        plain = self._as_pgd()
        set_plain(self, epsilon=plain.epsilon, bounds=plain.bounds)

    def _as_pgd(self):
        return PGD(self.epsilon, 1, self.epsilon, self.norm, random_start=False, bounds=self.bounds)

    def examples(self, model, x, y, key):
        """Adversarial examples (n, ...), and whether the gradient was not finite (n,); ``key`` is not used."""
        return self._as_pgd().examples(model, x, y, key)


@dataclass(frozen=True)
class NFGSM(Climbing):
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

    def __post_init__(self):
        plain = PGD(self.epsilon, 1, self.step_size, bounds=self.bounds)
        noise = number("noise", self.noise, low=0, unit="in units of epsilon")
        set_plain(self, epsilon=plain.epsilon, noise=noise, step_size=plain.step_size, bounds=plain.bounds)

    def examples(self, model, x, y, key):
        """Inputs to train on (n, ...), and whether the gradient was not finite (n,)."""
        at = given(self, model, x, y, key)
        noise = PGD(self.noise * self.epsilon, 1, bounds=self.bounds)
        noisy = start_in_ball(NORMS["linf"], at.x, at.keys, ball_of(noise, at.x))
        length = self.epsilon if self.step_size is None else self.step_size
        step = PGD(length, 1, length, random_start=False, bounds=self.bounds)
        found, lost = _one_run(step, at.model, noisy, at.y, at.keys, ball_of(step, noisy))
        return found.reshape(at.shape), lost


def set_common(attack):
    """Check the fields that an attack has in common with :class:`PGD`, and make plain values of them."""
    names = ("epsilon", "n_steps", "norm", "n_restarts", "bounds")
    stated = {name: getattr(attack, name) for name in names if hasattr(attack, name)}
    plain = PGD(**stated)
    set_plain(attack, **{name: getattr(plain, name) for name in stated if name != "norm"})


def set_plain(attack, **values):
    """Set fields of a frozen dataclass, to what checks have made of them."""
    for name, value in values.items():
        object.__setattr__(attack, name, value)


def tell_of_gradients(lost, n, what, stacklevel):
    """Warn of gradients that are not finite at the rows ``lost``, of n examples."""
    if len(lost):
        warnings.warn(
            f"the gradients are not finite at {len(lost)} of {n} {what} (first: row {lost[0]}): there the attack "
            "could not use them, so robustness may be overestimated. Attack with Square, which needs none, or "
            "mend the model: jnp.where before a norm, a square root or a logarithm of what may be 0",
            UserWarning,
            stacklevel=stacklevel,
        )


@partial(jax.jit, static_argnames=("norm",))
def _step(norm, model, x, y, state, ball):
    x_adv, lost = state
    scores = with_fast_gradients(model)
    gradient = jax.grad(lambda z: ascent_losses(scores(z), y).sum())(x_adv)
    ahead = project(norm, x, x_adv + ball.step_size * steepest(norm, gradient, x_adv, ball), ball)
    return ahead, lost | unusable(gradient, ball)


@partial(jax.jit, static_argnames=("norm",))
def _all_steps(norm, model, x, y, state, ball, n_steps):
    return jax.lax.fori_loop(0, n_steps, lambda _, now: _step(norm, model, x, y, now, ball), state)


def _one_run(attack, model, x, y, keys, ball, lost=None):
    """Where the ascent ends (n, d), and whether a gradient was not finite (n,), here or ``lost`` before."""
    norm = NORMS[attack.norm]
    start = start_in_ball(norm, x, keys, ball) if attack.random_start else x
    state = start, np.zeros(len(x), bool) if lost is None else lost
    if runs_fused(model, x):
        return _all_steps(norm, model, x, y, state, ball, attack.n_steps)
    for _ in range(attack.n_steps):
        state = _step(norm, model, x, y, state, ball)
    return state


@jax.jit
def worse_of(model, first, second, y):
    """Of each example the one that fools the model, of two such or two others the one with the higher loss."""

    def badness(z):
        scores = model(z)
        fooled = answers_wrongly(scores, y) if jnp.issubdtype(y.dtype, jnp.integer) else False
        return fooled, known(ascent_losses(scores, y))

    (fooled, loss), (fooled_2, loss_2) = badness(first), badness(second)
    better = (fooled_2 > fooled) | ((fooled_2 == fooled) & (loss_2 > loss))
    return jnp.where(better[:, None], second, first)


def known(losses):
    """Losses (n,), of which the lowest of all are those that are NaN."""
    return jnp.where(jnp.isnan(losses), -jnp.inf, losses)
