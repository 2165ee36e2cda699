"""What an update lowers: the loss of adversarial training, TRADES and MART, and the worst case of weights near by.

A loss in training is a frozen dataclass, called with the scores of a batch's inputs and of its adversarial
examples, ``loss(clean, adversarial, y) -> (n,)``. It says what the attack climbs, ``loss.climbed(model, x, y)``,
and whether it looks at clean scores at all, ``uses_clean``. One of your own subclasses :class:`TrainingLoss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._validation import brief, number
from ..attacks.entry import is_binary, two_columns
from ..attacks.losses import example_losses, log_odds, scores_at
from ..attacks.pgd import FGSM
from ..networks.inputs import PyTree

# Added to the length of a gradient that is divided by.
LEAST_LENGTH = 1e-12


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Divergence:
    """What rises with KL(p ‖ softmax(model(x))): scores (n, 2) whose label 0 has the divergence as its log odds.

    So an attack on label 0 of these scores maximises the divergence, whatever attack it is. The rows of x are
    those of p.
    """

    model: Callable
    log_p: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return zeros and the divergences (n, 2)."""
        scores = self.model(x)
        scores = scores if scores.shape[1] == self.log_p.shape[1] else two_columns(scores)
        found = divergence(self.log_p, jax.nn.log_softmax(scores))
        return jnp.stack([jnp.zeros_like(found), found], axis=1)


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), (n,), of log probabilities (n, C)."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


@dataclass(frozen=True)
class TrainingLoss:
    """The base of losses in training: the attack climbs cross-entropy, and clean scores are not looked at.

    Attributes
    ----------
    uses_clean : bool
        Whether ``clean`` are the scores of the inputs; otherwise it is None, and one forward pass is spared. Such
        a loss has its clean part within, so the estimator makes no clean update before it.
    """

    uses_clean: ClassVar[bool] = False

    def __call__(self, clean: jax.Array | None, adversarial: jax.Array, y: jax.Array) -> jax.Array:
        """Return the loss (n,) of scores (n, C) of inputs and of their adversarial examples."""
        raise NotImplementedError

    def climbed(self, model: Callable, x: jax.Array, y: jax.Array) -> tuple[Callable, jax.Array]:
        """Return the function whose scores the attack climbs at inputs x (n, ...), and its labels."""
        return model, y

    def check(self, attack: Any, y: Any) -> None:
        """Raise ValueError for an attack or for targets that this loss cannot be trained with."""


@dataclass(frozen=True)
class AdversarialTraining(TrainingLoss):
    """The loss of adversarial training: cross-entropy of adversarial examples, or squared error of real targets.

    ℓ(f(x'), y) with x' from the attack, which climbs the same loss (Madry et al. 2018, arXiv:1706.06083). The
    paper's training makes a clean update before it.

    Examples
    --------
    >>> f"{AdversarialTraining()(None, jax.numpy.zeros((1, 2)), jax.numpy.array([0]))[0]:.3f}"
    '0.693'
    """

    def __call__(self, clean: jax.Array | None, adversarial: jax.Array, y: jax.Array) -> jax.Array:
        """Return the loss (n,) of scores (n, C) of adversarial examples."""
        return example_losses(adversarial, y)


@dataclass(frozen=True)
class TRADES(TrainingLoss):
    """The loss of TRADES: right answers to inputs, and the same answers around them.

    CE(f(x), y) + β · KL(p(x) ‖ p(x')), where p is the softmax of the scores f. The attack maximises the divergence
    KL(p(x) ‖ p(x')), and does not ask for labels. It has to start at random, since the divergence has no slope at
    x itself (Zhang et al. 2019, arXiv:1901.08573).

    Parameters
    ----------
    beta : float, default=6.0
        Weight of the divergence, >= 0; 1/λ in the paper. More is more robust, and less accurate on clean inputs.

    Raises
    ------
    ValueError
        For a negative or infinite beta; in training for real targets, and for an attack that starts at the input.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> scores, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
    >>> f"{TRADES()(scores, scores, y)[0]:.3f} {TRADES()(scores, -scores, y)[0]:.3f}"
    '0.127 9.266'
    """

    beta: float = 6.0
    uses_clean: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "beta", number("beta", self.beta, low=0))

    def __call__(self, clean: jax.Array | None, adversarial: jax.Array, y: jax.Array) -> jax.Array:
        """Return the loss (n,) of scores (n, C) of inputs and of their adversarial examples."""
        clean, adversarial = _of_classes(clean, y), _of_classes(adversarial, y)
        apart = divergence(jax.nn.log_softmax(clean), jax.nn.log_softmax(adversarial))
        return example_losses(clean, y) + self.beta * apart

    def climbed(self, model: Callable, x: jax.Array, y: jax.Array) -> tuple[Callable, jax.Array]:
        """Return the divergence from the answers at x as scores, and label 0, for all of them."""
        log_p = jax.nn.log_softmax(_of_classes(model(x), y))
        return Divergence(model, log_p), jnp.zeros(x.shape[0], jnp.int32)

    def check(self, attack: Any, y: Any) -> None:
        """Raise ValueError for real targets, and for an attack that starts at the input."""
        _require_labels(self, y)
        if isinstance(attack, FGSM) or getattr(attack, "random_start", True) is False:
            raise ValueError(
                f"{type(self).__name__} needs an attack that starts at random, since the divergence that it "
                f"climbs "
                f"has no slope at the input itself, got {brief(attack)}; write PGD(..., random_start=True) or "
                f"NFGSM"
            )


@dataclass(frozen=True)
class MART(TrainingLoss):
    """The loss of MART: a sharper cross-entropy, and stability above all where the answer is wrong.

    BCE(f(x'), y) + β · KL(p(x) ‖ p(x')) · (1 − p_y(x)), with BCE = −log p_y(x') − log(1 − max_{c ≠ y} p_c(x')).
    The attack climbs plain cross-entropy (Wang et al. 2020, *Improving adversarial robustness requires revisiting
    misclassified examples*).

    Parameters
    ----------
    beta : float, default=5.0
        Weight of the divergence, >= 0; λ in the paper.

    Raises
    ------
    ValueError
        For a negative or infinite beta; in training for real targets.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sure, y = jnp.array([[4.0, 0.0]]), jnp.array([0])
    >>> f"{MART()(sure, sure, y)[0]:.3f} {MART()(sure, -sure, y)[0]:.2f}"
    '0.036 8.38'
    """

    beta: float = 5.0
    uses_clean: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "beta", number("beta", self.beta, low=0))

    def __call__(self, clean: jax.Array | None, adversarial: jax.Array, y: jax.Array) -> jax.Array:
        """Return the loss (n,) of scores (n, C) of inputs and of their adversarial examples."""
        clean, adversarial = _of_classes(clean, y), _of_classes(adversarial, y)
        others = jnp.where(jax.nn.one_hot(y, adversarial.shape[1], dtype=bool), -jnp.inf, adversarial)
        # −log(1 − p_c), without rounding 1 − p_c to zero
        boosted = example_losses(adversarial, y) + jax.nn.softplus(-log_odds(adversarial, others.argmax(1)))
        log_p = jax.nn.log_softmax(clean)
        apart = divergence(log_p, jax.nn.log_softmax(adversarial))
        return boosted + self.beta * apart * -jnp.expm1(scores_at(log_p, y))

    def check(self, attack: Any, y: Any) -> None:
        """Raise ValueError for real targets."""
        _require_labels(self, y)


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation: gradients are taken at the worst weights near by.

    Each array of weights w with two axes or more is moved by γ ‖w‖ g / ‖g‖, where g is its gradient of the batch's
    loss; the gradient there is then applied to w itself. Biases and scales stay. It flattens the loss as a
    function of the weights, with any loss in training, and costs one more forward and backward pass (Wu et al.
    2020, arXiv:2004.05884).

    Parameters
    ----------
    gamma : float, default=0.005
        Size of the move, relative to the weights, >= 0. The paper takes 0.005 with TRADES and 0.01 with
        adversarial training.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> weights = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
    >>> moved = AWP(0.1).moved(weights, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    >>> f"{moved['kernel'][0, 1]:.4f}", moved["bias"].tolist()
    ('0.0707', [1.0, 1.0])
    """

    gamma: float = 0.005

    def __post_init__(self):
        object.__setattr__(self, "gamma", number("gamma", self.gamma, low=0))

    def moved(self, params: PyTree, gradient: PyTree) -> PyTree:
        """Return the parameters moved along the gradient of the loss, a pytree of the same structure."""

        def move(w, g):
            if jnp.ndim(w) < 2:
                return w
            return (
                w + self.gamma * jnp.linalg.norm(jnp.ravel(w)) / (jnp.linalg.norm(jnp.ravel(g)) + LEAST_LENGTH) * g
            )

        return jax.tree.map(move, params, gradient)


def require_loss(loss: Any, attacks: tuple, y: Any) -> TrainingLoss:
    """Return a loss in training that fits attacks and targets; None is that of adversarial training.

    >>> require_loss("trades", (), None)
    Traceback (most recent call last):
    TypeError: loss must be a loss in training, such as TRADES(beta=6.0), MART() or AdversarialTraining(), got
    'trades'
    """
    loss = AdversarialTraining() if loss is None else loss
    if not isinstance(loss, TrainingLoss):
        raise TypeError(
            "loss must be a loss in training, such as TRADES(beta=6.0), MART() or AdversarialTraining(), got "
            f"{brief(loss)}"
        )
    for attack in attacks:
        loss.check(attack, y)
    return loss


def require_awp(found: Any) -> AWP | None:
    """Return a perturbation of weights, or None for none."""
    if found is not None and not isinstance(found, AWP):
        raise TypeError(f"weight_perturbation must be None or AWP(gamma=0.005), got {brief(found)}")
    return found


def _of_classes(scores: Any, y: Any) -> jax.Array:
    return two_columns(scores) if is_binary(scores.shape, y) else scores


def _require_labels(loss, y):
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{type(loss).__name__} needs integer labels, got real targets of dtype {y.dtype}; regression takes "
            "AdversarialTraining()"
        )
