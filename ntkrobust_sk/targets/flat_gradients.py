"""A look at the gradients where an attack has ended: where they are zero, it could not go on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ..attacks.capabilities import Reports, needs_gradients
from ..attacks.losses import ascent_losses, gradient_of
from ..execution.tiles import as_pytree

if TYPE_CHECKING:
    from .target import AttackTarget

# Largest number of examples that are looked at; the share of those that still stand, and the number, to tell of.
LOOKED_AT, SHARE, FEWEST = 100, 0.1, 3


def warn_of_flat_gradients(target: AttackTarget, attack: Any, X_adv: np.ndarray, stacklevel: int = 4) -> None:
    """Warn if the gradient of the loss is exactly zero where an attack that needs gradients has ended.

    Looked at are those that still stand of up to ``LOOKED_AT`` examples, evenly spread: one gradient of one
    tile. The loss is the logarithm of the odds of a wrong answer, which does not saturate where a model of logits
    is sure.
    AutoAttack and its like, which report what their parts have found, ask for scores alone too.

    Parameters
    ----------
    target : AttackTarget
    attack : callable
    X_adv : array (n, ...)
        What the attack has found.
    """
    if not needs_gradients(attack) or isinstance(attack, Reports) or not target.free.any():
        return
    at = np.linspace(0, len(X_adv) - 1, min(LOOKED_AT, len(X_adv))).astype(int)
    standing = target.stands(target.answers(X_adv[at]), at)
    if (n := standing.sum()) < FEWEST:
        return
    with target.precision():
        # of all of them, so that no number of examples that stand compiles anew
        flat = _flat(as_pytree(target.model), X_adv[at], target.y[at], target.free)
    n_flat = (np.asarray(flat) & standing).sum()
    if n_flat < max(FEWEST, SHARE * n):
        return
    warnings.warn(
        f"the gradient is exactly zero at {n_flat} of {n} examples that were looked at and that the attack has "
        f"left right ({n_flat / n:.0%}): the model is flat there, so its gradients are no guide "
        "and robustness may be overestimated. Attack with Square or AutoAttack too; where the attack left the "
        "range of the data, random_start=False and bounds=Box.from_data(X) keep it nearer",
        UserWarning,
        stacklevel=stacklevel,
    )


@jax.jit
def _flat(model, x, y, free):
    """Tell at which of the inputs (n, ...) no feature that may change has a gradient (n,)."""
    gradient, _, _ = gradient_of(lambda scores: ascent_losses(scores, y), model, x)
    return ~((gradient != 0) & free).reshape(len(x), -1).any(1)
