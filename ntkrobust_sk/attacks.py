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

from ._validation import array, brief, check_choice, check_lengths, fitting, flag, integer, number
from .balls import (
    Box,
    admitted,
    ball_of,
    check_floating,
    plain_bounds,
    project,
    project_into,
    samples,
    settle,
    steepest,
    unusable,
)
from .entry import (
    check_finite,
    checked_examples,
    checked_model,
    given,
    is_binary,
    keys_for,
    labels_of,
    require_attack,
    two_columns,
)
from .execution.convolutions import with_fast_gradients
from .execution.keys import fold_keys, keys_of
from .execution.loops import runs_fused
from .execution.tiles import one_ahead
from .norms import NORMS

# Of the examples of a call at most, for gradients that are not finite.
LOOKED_AT = 32


class Climbing:
    """Attacks that go by gradients, and tell at which examples these were not finite.

    They have ``examples(model, x, y, key)``, which returns adversarial examples (n, ...) and whether at some point
    on the way a gradient was not finite (n,).
    """

    needs_gradients = True
    one_key_each = True

    def __call__(self, model, x, y, *, key):
        """Adversarial examples.

        Parameters
        ----------
        model : callable
            ``x -> scores`` (n, C). A pytree (a Model, a predictor) shares compiled code with others of its
            structure; a bare function is compiled for itself.
        x : array (n, ...)
        y : array (n,) of int labels 0..C-1, or array of real targets shaped like the scores
        key : JAX PRNG key, or one for each example (n,)

        Returns
        -------
        array (n, ...)
        """
        return self.examples(model, x, y, key)[0]


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
        noisy = _start(NORMS["linf"], at.x, at.keys, ball_of(noise, at.x))
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


def example_losses(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy (n,) of integer labels, squared error (n,) of real targets.

    One column of scores is that of label 1 against label 0, whose score is zero.

    Raises
    ------
    ValueError
        If there is not one label for each row of scores, or real targets are not shaped like the scores.
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != scores.shape[:1]:
            raise ValueError(
                f"integer labels must be of shape {scores.shape[:1]}, one for each row of scores, got {y.shape}; "
                "one-hot or other real targets must be floating"
            )
        return _cross_entropy(two_columns(scores) if is_binary(scores.shape, y) else scores, y)
    if y.shape != scores.shape:
        raise ValueError(f"real targets must be shaped like the scores, {scores.shape}, got {y.shape}")
    return jnp.sum((scores - y.astype(scores.dtype)) ** 2, axis=1)


def _cross_entropy(scores, y):
    """log(1 + Σ_{c ≠ y} exp(s_c − s_y)), which 1 − softmax does not round to zero where the model is sure."""
    return jax.nn.softplus(log_odds(scores, y))


def log_odds(scores, y):
    """log Σ_{c ≠ y} exp(s_c − s_y) (n,), which rises with the cross-entropy.

    Its gradient has the direction of the cross-entropy's, without the factor that rounds to zero where the model
    is very sure: the probability of a wrong answer.
    """
    right = jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]
    others = jnp.where(jax.nn.one_hot(y, scores.shape[1], dtype=bool), -jnp.inf, scores)
    return jax.nn.logsumexp(others, axis=1) - right


def ascent_losses(scores, y):
    """What rises with :func:`example_losses`, for attacks that ask for its order and direction alone."""
    return log_odds(scores, y) if jnp.issubdtype(y.dtype, jnp.integer) else example_losses(scores, y)


def answers_wrongly(scores, y):
    """Whether the highest score is another's (n,). Scores of which one is NaN are no answer, so no wrong one."""
    return (scores.argmax(1) != y) & ~jnp.isnan(scores).any(1)


def attack_in_tiles(
    attack, model, X: np.ndarray, y: np.ndarray, *, key, rows: int, look: bool = True
) -> np.ndarray:
    """Adversarial examples of all of ``X``, in tiles of one shape, projected once more, to the last bit.

    Parameters
    ----------
    attack : callable
        ``attack(model, x, y, key=key) -> x_adv``. One that has ``in_tiles`` goes through the examples itself.
    model : callable
    X : array (n, ...)
    y : array (n,) of int labels, or real targets (n, C)
    key : JAX PRNG key, or one for each example (n,)
        Of one key row i gets the key folded with i, so its example does not depend on the other rows. An attack
        without ``one_key_each`` gets that of a tile's first row.
    rows : int
        Rows of a tile.
    look : bool, default=True
        Whether to tell of gradients that are not finite: those that the attack has met, if it says which these
        were, as this library's do, otherwise those at some of the inputs.

    Returns
    -------
    array (n, ...), on the host
        Finite: where an attack has found no numbers it is the input.

    Raises
    ------
    TypeError, ValueError
        For what is no attack, no model, no inputs or no labels; for inputs that are not finite, or outside of the
        bounds; when the attack returns something else than floating numbers shaped like its inputs.

    Warns
    -----
    UserWarning
        If examples were not finite, with their number; if gradients were not, as :func:`warn_of_gradients` says.
    """
    require_attack(attack)
    model, rows = checked_model(model), integer("rows", rows)
    X, y, keys = checked_data(attack, X, y, key)
    in_tiles = hasattr(attack, "in_tiles")
    # one whose call is its own does not tell
    tells = not in_tiles and isinstance(attack, Climbing) and type(attack).__call__ is Climbing.__call__
    if in_tiles:
        result = checked_examples(attack, attack.in_tiles(model, X, y, key=keys, rows=rows), X)
    else:
        result, lost = _all_tiles(attack, tells, model, X, y, keys, rows)
    if look and tells:
        _tell_of_gradients(np.flatnonzero(lost), len(X), "examples", stacklevel=4)
    elif look:
        warn_of_gradients(attack, model, X, y, keys, rows)
    return _finite(attack, result, X)


def _all_tiles(attack, tells, model, X, y, keys, rows):
    """Examples, and whether a gradient was not finite (n,), as far as the attack tells."""

    def attacked(start):
        index = np.minimum(np.arange(start, start + rows), len(X) - 1)
        x, labels, key = jnp.asarray(X[index]), jnp.asarray(y[index]), keys_for(attack, keys, index)
        if tells:
            found, met = attack.examples(model, x, labels, key)
        else:
            found, met = attack(model, x, labels, key=key), False
        return project_into(checked_examples(attack, found, x), x, attack), met

    result, lost, starts = np.empty_like(X), np.zeros(len(X), bool), range(0, len(X), rows)
    for start, (x_adv, met) in zip(starts, one_ahead(map(attacked, starts)), strict=True):
        kept = slice(start, min(start + rows, len(X)))
        result[kept] = settle(np.asarray(x_adv)[: kept.stop - start], X[kept], attack)
        lost[kept] = np.broadcast_to(met, rows)[: kept.stop - start]
    return result, lost


def warn_of_gradients(attack, model, X, y, keys, rows, stacklevel=4):
    """Warn if an attack that needs gradients meets some that are not finite numbers.

    Looked at are up to ``LOOKED_AT`` of the examples, evenly spread, at their inputs and, for attacks that do not
    look for the nearest point, at a random point of the ball too: one gradient of one tile at most, beside one for
    each step and tile. Attacks take for zero what is not finite.
    """
    if not (getattr(attack, "needs_gradients", False) and len(X)):
        return
    n = min(LOOKED_AT, max(rows // 2, 1))
    at = np.linspace(0, len(X) - 1, n).astype(int)
    x = moved = jnp.asarray(X[at])
    ball = ball_of(attack, x) if hasattr(attack, "epsilon") else None
    if ball is not None and not hasattr(attack, "nearest"):
        moved = _start(NORMS[attack.norm], x, keys[at].on_device(), ball)
    lost = np.unique(at[np.asarray(_lost(model, x, moved, jnp.asarray(y[at]), ball))])
    _tell_of_gradients(lost, len(np.unique(at)), "examples looked at", stacklevel + 1)


def _tell_of_gradients(lost, n, what, stacklevel):
    """Warn of gradients that are not finite at the rows ``lost``, of n examples."""
    if len(lost):
        warnings.warn(
            f"the gradients are not finite at {len(lost)} of {n} {what} (first: row {lost[0]}): there the attack "
            "could not use them, so robustness may be overestimated. Attack with Square, which needs none, or "
            "mend the model: jnp.where before a norm, a square root or a logarithm of what may be 0",
            UserWarning,
            stacklevel=stacklevel,
        )


@jax.jit
def _lost(model, x, moved, y, ball):
    """Whether a gradient at the inputs (n, ...) or at the points moved is not finite, for each example (n,)."""

    def total(z):
        scores, labels = with_fast_gradients(model)(z), jnp.concatenate([y, y])
        return ascent_losses(two_columns(scores) if is_binary(scores.shape, labels) else scores, labels).sum()

    gradients = jnp.split(jax.grad(total)(jnp.concatenate([x, moved])), 2)
    return unusable(gradients[0], ball) | unusable(gradients[1], ball)


def checked_data(attack, X, y, key):
    """Inputs (n, ...) on the host, as they may be attacked, with labels (or targets) and keys."""
    X = array("X", X)
    check_floating(X)
    fitting("X", X, jax.dtypes.canonicalize_dtype(X.dtype))
    check_finite(X)
    y = np.asarray(labels_of(y))
    if len(X):
        check_lengths(X=X, y=y)
    return admitted(attack, X), y, keys_of(key, len(X))


def _finite(attack, found, X):
    """Examples, or the inputs where these are not finite, with a warning that counts them."""
    lost = ~np.isfinite(found).all(tuple(range(1, X.ndim)))
    if lost.any():
        warnings.warn(
            f"{lost.sum()} of {len(X)} adversarial examples of {brief(attack)} were not finite. The inputs stand "
            "in their place, so these were not attacked: look at the model's gradients there, or let Square "
            "attack it, which needs none",
            UserWarning,
            stacklevel=3,
        )
        found = np.where(lost.reshape(-1, *[1] * (X.ndim - 1)), X, found)
    return found


@partial(jax.jit, static_argnames=("norm",))
def _start(norm, x, keys, ball):
    return project(norm, x, x + ball.epsilon * samples(norm, x, keys, ball), ball)


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
    start = _start(norm, x, keys, ball) if attack.random_start else x
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
