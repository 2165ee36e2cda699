"""Attacks: small changes of the input that a model does not survive.

An attack is a frozen dataclass, called as ``attack(model, x, y, key=key) -> x_adv``. All it knows of the
model is that ``model(x)`` gives scores (n, C); what it maximises is the cross-entropy of integer labels ``y``
or, for real targets, the squared error. Example i's randomness depends on ``key`` and i alone; a ``key`` of
shape (n,) holds one for each example. The estimators call attacks like that, so that no example depends on
its batch.

Whoever asked for an attack should not trust it: :func:`~ntkrobust_sk.balls.project_into` puts whatever came
back into ball and bounds again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ._validation import brief, check_choice, function, number
from .balls import (
    Box,
    admitted,
    ball_of,
    check_bounds,
    check_floating,
    plain_bounds,
    project,
    project_into,
    samples,
    settle,
    steepest,
)
from .convolutions import with_fast_gradients
from .loops import as_pytree, on_rows, one_ahead, runs_fused
from .norms import NORMS


@dataclass(frozen=True)
class Clean:
    """No attack: the inputs as they are. The first entry of the paper's two updates per batch."""

    needs_gradients = False
    one_key_each = True

    def __call__(self, model, x, y, *, key):
        """``x`` itself."""
        return x


@dataclass(frozen=True)
class PGD:
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
    needs_gradients = True
    one_key_each = True

    def __post_init__(self):
        number("epsilon", self.epsilon, low=0, unit="in units of the data")
        if self.step_size is not None:
            number("step_size", self.step_size, low=0, unit="in units of the data")
        for name in ("n_steps", "n_restarts"):
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) and value >= 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        check_choice("norm", self.norm, NORMS)
        object.__setattr__(self, "bounds", plain_bounds(self.bounds))

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
        if isinstance(x, np.ndarray):
            check_bounds(self, x)
        x, y = jnp.asarray(x), jnp.asarray(y)
        shape, keys = x.shape, one_key_each(key, x.shape[0])
        model, x = on_rows(as_pytree(model), x)
        ball = ball_of(self, x)
        best = _one_run(self, model, x, y, keys, ball)
        for restart in range(1, self.n_restarts):
            other = _one_run(self, model, x, y, fold_keys(keys, restart), ball)
            best = worse_of(model, best, other, y)
        return best.reshape(shape)


@dataclass(frozen=True)
class FGSM:
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
    needs_gradients = True
    one_key_each = True

    def __post_init__(self):
        object.__setattr__(self, "bounds", self._as_pgd().bounds)

    def _as_pgd(self):
        return PGD(self.epsilon, 1, self.epsilon, self.norm, random_start=False, bounds=self.bounds)

    def __call__(self, model, x, y, *, key):
        """Adversarial examples (n, ...); ``key`` is not used."""
        return self._as_pgd()(model, x, y, key=key)


@dataclass(frozen=True)
class NFGSM:
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
    needs_gradients = True
    one_key_each = True

    def __post_init__(self):
        number("noise", self.noise, low=0, unit="in units of the data")
        object.__setattr__(self, "bounds", PGD(self.epsilon, 1, self.step_size, bounds=self.bounds).bounds)

    def __call__(self, model, x, y, *, key):
        """Inputs to train on (n, ...), from inputs (n, ...), labels (n,) and a key or one for each example."""
        if isinstance(x, np.ndarray):
            check_bounds(self, x)
        x = jnp.asarray(x)
        keys = one_key_each(key, x.shape[0])
        noise = PGD(self.noise * self.epsilon, 1, bounds=self.bounds)
        noisy = _start(NORMS["linf"], x, keys, ball_of(noise, x))
        length = self.epsilon if self.step_size is None else self.step_size
        return PGD(length, 1, length, random_start=False, bounds=self.bounds)(model, noisy, y, key=keys)


def require_attack(attack, name: str = "attack"):
    """Return what can be called as ``attack(model, x, y, key=key)``, or raise a TypeError that says what came.

    >>> require_attack(PGD(0.1)).epsilon
    0.1
    >>> require_attack("pgd")
    Traceback (most recent call last):
    TypeError: attack: an attack is needed, such as PGD(epsilon=8/255), got 'pgd'
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"{name}: an attack is needed, such as PGD(epsilon=8/255), got {brief(attack)}")
    return function(name, attack, "attack(model, x, y, key=key)", 3, "key")


def example_losses(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy (n,) of integer labels, squared error (n,) of real targets.

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
        return _cross_entropy(scores, y)
    if y.shape != scores.shape:
        raise ValueError(f"real targets must be shaped like the scores, {scores.shape}, got {y.shape}")
    return jnp.sum((scores - y.astype(scores.dtype)) ** 2, axis=1)


def _cross_entropy(scores, y):
    """log(1 + Σ_{c ≠ y} exp(s_c − s_y)), which 1 − softmax does not round to zero where the model is sure."""
    right = jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]
    others = jnp.where(jax.nn.one_hot(y, scores.shape[1], dtype=bool), -jnp.inf, scores)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=1) - right)


def attack_in_tiles(attack, model, X: np.ndarray, y: np.ndarray, *, key, rows: int) -> np.ndarray:
    """Adversarial examples of all of ``X``, in tiles of one shape, projected once more, to the last bit.

    Parameters
    ----------
    attack : callable
        ``attack(model, x, y, key=key) -> x_adv``. One that has ``in_tiles`` goes through the examples itself.
    model : callable pytree
    X : array (n, ...)
    y : array (n,) of int labels, or real targets (n, C)
    key : JAX PRNG key, or one for each example (n,)
        Of one key row i gets the key folded with i, so its example does not depend on the other rows.
    rows : int
        Rows of a tile.

    Returns
    -------
    array (n, ...), on the host
    """
    check_floating(X)
    X = admitted(attack, X)
    keys = one_key_each(key, len(X))
    if hasattr(attack, "in_tiles"):
        return attack.in_tiles(model, X, y, key=keys, rows=rows)

    def attacked(start):
        index = np.minimum(np.arange(start, start + rows), len(X) - 1)
        x = jnp.asarray(X[index])
        return project_into(attack(model, x, jnp.asarray(y[index]), key=_at(keys, index)), x, attack)

    result, starts = np.empty_like(X), range(0, len(X), rows)
    for start, x_adv in zip(starts, one_ahead(map(attacked, starts)), strict=True):
        kept = slice(start, min(start + rows, len(X)))
        result[kept] = settle(np.asarray(x_adv)[: kept.stop - start], X[kept], attack)
    return result


@jax.jit
def _at(keys, index):
    return keys[index]


@partial(jax.jit, static_argnames=("norm",))
def _start(norm, x, keys, ball):
    return project(norm, x, x + ball.epsilon * samples(norm, x, keys, ball), ball)


@partial(jax.jit, static_argnames=("norm",))
def _step(norm, model, x, y, x_adv, ball):
    scores = with_fast_gradients(model)
    gradient = jax.grad(lambda z: example_losses(scores(z), y).sum())(x_adv)
    return project(norm, x, x_adv + ball.step_size * steepest(norm, gradient, x_adv, ball), ball)


@partial(jax.jit, static_argnames=("norm",))
def _all_steps(norm, model, x, y, x_adv, ball, n_steps):
    return jax.lax.fori_loop(0, n_steps, lambda _, z: _step(norm, model, x, y, z, ball), x_adv)


def _one_run(attack, model, x, y, keys, ball):
    norm = NORMS[attack.norm]
    x_adv = _start(norm, x, keys, ball) if attack.random_start else x
    if runs_fused(model, x):
        return _all_steps(norm, model, x, y, x_adv, ball, attack.n_steps)
    for _ in range(attack.n_steps):
        x_adv = _step(norm, model, x, y, x_adv, ball)
    return x_adv


@jax.jit
def worse_of(model, first, second, y):
    """Of each example the one that fools the model, of two such or two others the one with the higher loss."""

    def badness(z):
        scores = model(z)
        fooled = scores.argmax(1) != y if jnp.issubdtype(y.dtype, jnp.integer) else False
        return fooled, example_losses(scores, y)

    (fooled, loss), (fooled_2, loss_2) = badness(first), badness(second)
    better = (fooled_2 > fooled) | ((fooled_2 == fooled) & (loss_2 > loss))
    return jnp.where(better[:, None], second, first)


def one_key_each(key, n):
    """A key for each of n examples: those given, or one key folded with each position."""
    if not isinstance(key, jax.Array):
        raise TypeError(f"key must be a JAX PRNG key, such as jax.random.key(0), got {key!r}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return _example_keys(key, n)
    if key.shape != (n,):
        raise ValueError(f"key must be one key, or one for each of {n} examples, got keys of shape {key.shape}")
    return key


@partial(jax.jit, static_argnums=1)
def _example_keys(key, n):
    return fold_keys(key, jnp.arange(n))


@jax.jit
def fold_keys(keys, data):
    axes = (0 if jnp.ndim(keys) else None, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, axes)(keys, data)
