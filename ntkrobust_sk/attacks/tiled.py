"""An attack on many examples, in tiles of one shape."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import array, brief, check_lengths, fitting, integer
from ..execution.convolutions import with_fast_gradients
from ..execution.keys import keys_of
from ..execution.tiles import one_ahead
from .climbing import Climbing
from .entry import (
    check_finite,
    checked_examples,
    checked_model,
    is_binary,
    keys_for,
    labels_of,
    require_attack,
    two_columns,
)
from .losses import ascent_losses
from .norms import NORMS
from .pgd import tell_of_gradients
from .threat_model import admitted, ball_of, check_floating, project_into, start_in_ball, unusable
from .valid_points import settle

# Of the examples of a call at most, for gradients that are not finite.
LOOKED_AT = 32


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
        tell_of_gradients(np.flatnonzero(lost), len(X), "examples", stacklevel=4)
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
        moved = start_in_ball(NORMS[attack.norm], x, keys[at].on_device(), ball)
    lost = np.unique(at[np.asarray(_lost(model, x, moved, jnp.asarray(y[at]), ball))])
    tell_of_gradients(lost, len(np.unique(at)), "examples looked at", stacklevel + 1)


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
