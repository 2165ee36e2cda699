"""Is a robust accuracy to be believed? Checks of an attack on a model, after Carlini et al. 2019.

Attacks are compared on the same examples. A weaker one may break what a stronger one does not by chance: with b
examples broken by the weaker alone and c by the stronger alone, a check fails if P(Binomial(b + c, 1/2) >= b) is
less than 1 − confidence. A share that should be nearly zero fails if the lower end of its Clopper–Pearson interval
is above ``NEGLIGIBLE``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .._validation import brief, integer, number
from ..attacks.boxes import Box
from ..attacks.capabilities import InBall
from ..attacks.categories import categories_of
from ..attacks.entry import require_attack
from ..attacks.losses import example_losses, margin
from ..attacks.norms import NORMS
from ..attacks.pgd import PGD
from ..attacks.square import Square
from ..attacks.valid_points import move_to_valid_points
from ..execution.keys import example_keys, key_of, keys_of
from ..targets.target import Seed
from .intervals import clopper_pearson
from .target import classifier_under_attack

# How much stronger an attack is made; how many times more it is started anew.
STEP_FACTOR, RESTARTS = 4, 2
# Share of the examples that more steps and restarts may break, or that may stand in a ball that holds everything.
NEGLIGIBLE = 0.01
# Largest acceptable share of inputs whose gradient is exactly zero, and of inputs whose gradient disagrees with
# finite differences.
ZERO_GRADIENTS, WRONG_SLOPES = 0.01, 0.1


@dataclass(frozen=True)
class Check:
    """One check of an evaluation.

    Attributes
    ----------
    name : str
        What should be so.
    passed : bool
    detail : str
        What was found.
    """

    name: str
    passed: bool
    detail: str

    def __str__(self):
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


class Checks(tuple):
    """The checks of an evaluation in their order; printed, they have one line each."""

    __slots__ = ()

    @property
    def passed(self) -> bool:
        """Return whether all have passed."""
        return all(check.passed for check in self)

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the names of those that have not passed."""
        return tuple(check.name for check in self if not check.passed)

    def __str__(self):
        return "\n".join(map(str, self))


def check_evaluation(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    attack: Any,
    *,
    n_queries: int = 1000,
    confidence: float = 0.99,
    random_state: Seed = 0,
) -> Checks:
    """Check whether an attack's robust accuracy is what a defence is worth, or what hides it.

    A defence that only hides its gradients, such as rounding before the network, looks robust to an attack by
    gradients and fails here. What passes everything may still fall to an attack made for it.

    Parameters
    ----------
    estimator : fitted classifier, or callable
        As for :func:`~ntkrobust_sk.robust_accuracy`, but no regressor; or a function from inputs to scores.
    X : array (n, n_features), data frame, or (n, h, w, c)
        A few hundred examples: they are attacked about ten times.
    y : array (n,)
    attack : attack with ``epsilon``, ``norm`` and ``bounds``
        The one on which the robust accuracy rests.
    n_queries : int, default=1000
        Of Square, the attack without gradients.
    confidence : float in (0.5, 1), default=0.99
        Of each check: with what is sound, one of them fails by chance with probability 1 − confidence at most.
    random_state : int, RandomState or None, default=0

    Returns
    -------
    Checks
        A tuple of :class:`Check`; ``passed`` and ``failed`` sum it up, and it prints as a table. Checks that need
        gradients, or something else than Square to compare Square with, are left out where there is none; and
        that nothing stands without a limit, where some features may not change.

    Raises
    ------
    NotFittedError, TypeError, ValueError
        As for :func:`~ntkrobust_sk.robust_accuracy`; TypeError for a regressor, and for an attack without epsilon.

    References
    ----------
    Carlini et al. 2019, arXiv:1902.06705; Athalye et al. 2018, arXiv:1802.00420.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ntkrobust_sk import PGD, check_evaluation
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = LogisticRegression(max_iter=1000).fit(X, y)
    >>> checks = check_evaluation(classifier, X, y, PGD(0.5, bounds=(0, 8)), n_queries=50)
    >>> checks.passed
    True
    """
    confidence, n_queries = number("confidence", confidence, above=0.5, below=1), integer("n_queries", n_queries)
    _require_ball(attack)
    target = classifier_under_attack("check_evaluation", estimator, X, y, categories=categories_of(attack))
    attack, keys = target.attack_for(attack), keys_of(key_of(random_state), len(target.X))
    right = target.answers(target.X) == target.y
    X_adv = target.perturb(attack, keys)
    fell = ~right | (target.answers(X_adv) != target.y)

    def falls(attack, keys=keys):
        """Return which examples (n,) are wrong after an attack, or before."""
        return ~right | (target.answers(target.perturb(attack, keys)) != target.y)

    stronger = falls(_strengthened(attack))
    again = [falls(attack, keys.folded(1 + number)) for number in range(RESTARTS)]
    by_radius = {
        factor * attack.epsilon: fell
        if factor == 1
        else falls(dataclasses.replace(attack, epsilon=factor * attack.epsilon))
        for factor in (0.5, 1.0, 2.0)
    }
    noise = falls(_Noise(attack.epsilon, attack.norm, attack.bounds))
    checks = [
        _deterministic(target),
        _inside(target, attack, X_adv),
        _falls_with_radius(by_radius, confidence),
        _not_beaten("more steps do not help the defender", "fewer steps", fell, stronger, confidence),
        _converged(fell, [stronger, *again], confidence),
        _beats_noise(fell, noise),
    ]
    if not isinstance(attack.bounds, Box) or attack.bounds.mask is None:
        checks.append(_all_fall(falls(_everywhere(attack, target.X)), confidence))
    if target.no_gradient_because is None:
        checks += _gradients(target)
    if not isinstance(attack, Square):
        blind = falls(Square(attack.epsilon, n_queries, norm=attack.norm, bounds=attack.bounds))
        name = "an attack without gradients breaks no more"
        checks.append(_not_beaten(name, f"Square of {n_queries} queries", blind, fell | stronger, confidence))
    return Checks(checks)


@dataclass(frozen=True)
class _Noise:
    """A random corner of the cube, scaled to the surface of the ball."""

    epsilon: float
    norm: str
    bounds: tuple | None
    needs_gradients = False
    one_key_each = True

    def __call__(self, model, x, y, *, key):
        signs = jax.vmap(lambda k: jax.random.rademacher(k, x.shape[1:], x.dtype))(example_keys(key, len(x)))
        return x + jnp.asarray(self.epsilon, x.dtype) * signs / NORMS[self.norm].length(signs)


def _require_ball(attack):
    require_attack(attack)
    in_norm = isinstance(attack, InBall) and attack.norm in NORMS
    if not in_norm or not dataclasses.is_dataclass(attack):
        raise TypeError(
            f"check_evaluation needs an attack in a ball of {', '.join(NORMS)}, such as PGD(epsilon=8/255), got "
            f"{brief(attack)}"
        )


def _strengthened(attack):
    """Return the attack with more steps or queries; several steps in place of a single one."""
    stated = {field.name for field in dataclasses.fields(attack)}
    for name in ("n_steps", "n_queries"):
        if name in stated:
            return dataclasses.replace(attack, **{name: STEP_FACTOR * getattr(attack, name)})
    return PGD(attack.epsilon, norm=attack.norm, bounds=attack.bounds)


def _everywhere(attack, X):
    """Return the attack in a ball that holds everything within the bounds, or everything like the data."""
    low, high = (-np.inf, np.inf) if attack.bounds is None else attack.bounds
    low, high = np.where(np.isfinite(low), low, X.min()), np.where(np.isfinite(high), high, X.max())
    widths = np.broadcast_to((high - low).ravel(), X[0].size)
    whole = dataclasses.replace(attack, epsilon=float(np.linalg.norm(widths, NORMS[attack.norm].order)))
    # a step that was chosen for a small ball does not cross a large one, which its default would
    defaults = {field.name: field.default for field in dataclasses.fields(attack)}
    return dataclasses.replace(whole, step_size=None) if defaults.get("step_size", 1) is None else whole


def _deterministic(target):
    x = jnp.asarray(target.X[: target.rows])
    with target.precision():
        # not compiled: what draws anew in every call of a bare function would draw once
        first, second = np.asarray(target.model(x)), np.asarray(target.model(x))
    largest = np.abs(first - second).max()
    passed = bool(largest <= 1e-4 * max(np.abs(first).max(), 1e-30))
    return Check("the model is deterministic", passed, f"two evaluations differ by {largest:.2g} at most")


def _inside(target, attack, X_adv):
    # categories that have moved have no length
    X_adv = np.where(target.free, X_adv, target.X)
    lengths = np.asarray(NORMS[attack.norm].length(X_adv.astype(float) - target.X))
    out = (move_to_valid_points(X_adv, target.X, attack) != X_adv).reshape(len(X_adv), -1).any(1)
    detail = (
        f"{type(attack).__name__}, lengths up to {lengths.max():.6g} of {attack.epsilon:.6g}; {out.sum()} of "
        f"{len(out)} are not inside"
    )
    return Check("adversarial examples lie in ball and bounds", not out.any(), detail)


def _all_fall(fell, confidence):
    low, _ = clopper_pearson(np.sum(~fell), len(fell), confidence)
    detail = (
        f"{np.mean(~fell):.3f} stand in a ball that holds everything; noise at {confidence:.0%} reaches {low:.3f}"
    )
    return Check("nothing stands without a limit to epsilon", bool(low <= NEGLIGIBLE), detail)


def _falls_with_radius(by_radius, confidence):
    found = list(by_radius.items())
    pairs = zip(found[:-1], found[1:], strict=True)
    passed = not any(_beats(smaller, larger, confidence) for (_, smaller), (_, larger) in pairs)
    curve = ", ".join(f"{np.mean(~fell):.3f} at {epsilon:.4g}" for epsilon, fell in found)
    return Check("accuracy does not rise with epsilon", passed, curve)


def _not_beaten(name, weaker_name, weaker, stronger, confidence):
    """Check that the weaker of two attacks breaks nothing that the stronger one leaves, but by chance."""
    alone = np.sum(weaker & ~stronger)
    detail = f"{alone} examples fall to {weaker_name} alone, {np.sum(stronger & ~weaker)} to the other alone"
    return Check(name, not _beats(weaker, stronger, confidence), detail)


def _beats(weaker, stronger, confidence) -> bool:
    alone, other = np.sum(weaker & ~stronger), np.sum(stronger & ~weaker)
    return bool(scipy.stats.binom.sf(alone - 1, alone + other, 0.5) < 1 - confidence)


def _converged(fell, others, confidence):
    more = np.any(others, axis=0) & ~fell
    low, _ = clopper_pearson(np.sum(more), len(more), confidence)
    share = np.mean(more)
    detail = f"{STEP_FACTOR} times the steps and {RESTARTS} restarts break {share:.3f} more of the examples"
    return Check("the attack has converged", bool(low <= NEGLIGIBLE), detail)


def _beats_noise(fell, noise):
    detail = f"{np.mean(~fell):.3f} stand under the attack, {np.mean(~noise):.3f} under noise of the same size"
    return Check("the attack beats random noise", bool(fell.sum() > noise.sum() or noise.all()), detail)


def _gradients(target):
    """Check that gradients are there, and are the slopes of the scores."""
    X, y = target.X[: target.rows], target.y[: target.rows]
    step = 1e-3 * (float(np.ptp(X[:, target.free])) or 1.0)
    with target.precision():
        flat, slope, difference, scores = map(np.asarray, _slopes(target.model, X, y, X.dtype.type(step)))
    rounding = 8 * np.finfo(X.dtype).eps * np.abs(scores).max() / step
    wrong = np.abs(slope - difference) > 0.1 * np.abs(slope) + rounding
    return (
        Check(
            "gradients are not zero",
            bool(flat.mean() <= ZERO_GRADIENTS),
            f"that of the cross-entropy is at {flat.sum()} of {len(X)} inputs",
        ),
        Check(
            "gradients are the slopes of the scores",
            bool(wrong.mean() <= WRONG_SLOPES),
            f"differences of the margin along its gradient are others at {wrong.sum()} of {len(X)} inputs",
        ),
    )


@jax.jit
def _slopes(model, x, y, step):
    """Return where the loss is flat, the margin's slope as gradient and as difference (n,), and scores (n, C)."""

    def margins(z):
        scores = model(z)
        return margin(scores, y).sum(), (margin(scores, y), scores)

    axes = tuple(range(1, x.ndim))
    gradient, (_, scores) = jax.grad(margins, has_aux=True)(x)
    direction = NORMS["l2"].steepest(gradient)
    ahead, behind = (margins(x + sign * step * direction)[1][0] for sign in (1, -1))
    of_loss = jax.grad(lambda z: example_losses(model(z), y).sum())(x)
    return (
        jnp.all(of_loss == 0, axis=axes),
        jnp.sum(gradient * direction, axis=axes),
        (ahead - behind) / (2 * step),
        scores,
    )
