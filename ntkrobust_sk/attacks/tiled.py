"""An attack on many examples, in tiles of one shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, check_lengths, fitting, flag, integer, job_count
from ..execution.keys import Keys, keys_of
from ..execution.threads import in_threads, shown
from ..execution.tiles import one_ahead, pad_rows
from .capabilities import FindsNearest, GoesThroughTiles, InBall, needs_gradients
from .categories import categories_of, search_categories
from .each import NOTHING, Each, reach_of, towards
from .entry import (
    check_finite,
    checked_examples,
    checked_model,
    fitting_model,
    is_binary,
    keys_for,
    labels_of,
    require_attack,
    trusted,
    two_columns,
)
from .losses import ascent_losses, gradient_of
from .norms import NORMS
from .skeleton import Attack, Outcome
from .threat_model import admitted, ball_around, check_floating, project_into, start_in_ball, unusable
from .valid_points import move_to_valid_points

# Largest number of the examples of a call that are looked at for gradients that are not finite.
LOOKED_AT = 32


@dataclass(frozen=True, eq=False)
class Work:
    """How tiles are attacked: what each example has of its own, how many at a time, and whether a bar is shown."""

    each: Each = NOTHING
    n_jobs: int | None = None
    progress: bool = False

    def options_for(self, attack: Any, function: Callable) -> dict[str, Any]:
        """Return the options by name for an attack's own way through the tiles, as far as that takes any.

        Raises
        ------
        TypeError
            If it does not take radii or aims, and there are some.
        """
        taken = signature(function).parameters
        options = {"each": self.each, "n_jobs": self.n_jobs, "progress": self.progress}
        if self.each and "each" not in taken:
            raise TypeError(f"{brief(attack)} takes neither targets nor epsilon for each example")
        return {name: value for name, value in options.items() if name in taken}


def attack_in_tiles(
    attack: Callable,
    model: Callable,
    X: ArrayLike,
    y: ArrayLike,
    *,
    key: Any,
    rows: int,
    look: bool = True,
    each: Each | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return adversarial examples of all of ``X``, made in tiles of one shape and projected to the last bit.

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
    each : :class:`~ntkrobust_sk.attacks.Each`, default=None
        Radii and aims of the examples.
    n_jobs : int, default=None
        Tiles attacked at a time, by threads, as joblib takes it. The tiles are the same, and so are the examples.
    progress : bool, default=False
        Show a progress bar on stderr.

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
    work = Work(each or NOTHING, job_count(n_jobs), flag("progress", progress))
    if categories_of(attack):

        def attack_numbers(inner, x, at):
            options = {"each": work.each.at(at), "n_jobs": n_jobs, "progress": progress}
            return attack_in_tiles(inner, model, x, y[at], key=keys[at], rows=rows, look=look, **options)

        return search_categories(attack, attack_numbers, model, X, y, work.each, rows)
    tells = False
    if isinstance(attack, GoesThroughTiles):
        options = work.options_for(attack, attack.in_tiles)
        result = checked_examples(attack, attack.in_tiles(model, X, y, key=keys, rows=rows, **options), X)
    else:
        tells, n_classes = tells_of_gradients(attack), 0
        if tells and len(X):
            first = jnp.asarray(pad_rows(X[:rows], rows))
            model, n_classes = fitting_model(attack, model, first, y, len(X))
        result, lost = all_tiles(attack, model, X, y, keys, rows, n_classes, work)
        if look and tells:
            tell_of_gradients(np.flatnonzero(lost), len(X), "examples", stacklevel=4)
    if look and not tells:
        warn_of_gradients(attack, model, X, y, keys, rows)
    return finite_or_inputs(attack, result, X)


def all_tiles(
    attack: Callable,
    model: Callable,
    X: np.ndarray,
    y: np.ndarray,
    keys: Keys,
    rows: int,
    n_classes: int,
    work: Work,
) -> tuple[np.ndarray, np.ndarray]:
    """Attack checked data in tiles.

    Returns
    -------
    x_adv : array (n, ...)
    lost : bool array (n,)
        Where a gradient on the way was not finite, as far as the attack tells.
    """

    def attacked(start):
        index = np.minimum(np.arange(start, start + rows), len(X) - 1)
        x, key, own = jnp.asarray(X[index]), keys_for(attack, keys, index), work.each.at(index)
        asked, labels, count = model, jnp.asarray(y[index]), n_classes
        if own.aims is not None:
            asked, labels, count = towards(model, own.aims), jnp.zeros(rows, jnp.int32), 2
        if tells_of_gradients(attack):
            found = attack._run(trusted(attack, asked, x, labels, key, count, own.epsilon))
        else:
            own.require_one_radius(attack)
            found = Outcome(checked_examples(attack, attack(asked, x, labels, key=key), x))
        return project_into(found.x.reshape(x.shape), x, reach_of(attack, own)), found.lost

    result, lost, starts = np.empty_like(X), np.zeros(len(X), bool), range(0, len(X), rows)
    tiles = one_ahead(in_threads(attacked, starts, work.n_jobs))
    tiles = shown(tiles, type(attack).__name__, len(starts), work.progress)
    for start, (x_adv, met) in zip(starts, tiles, strict=True):
        kept = slice(start, min(start + rows, len(X)))
        reach = reach_of(attack, work.each.at(kept))
        result[kept] = move_to_valid_points(np.asarray(x_adv)[: kept.stop - start], X[kept], reach)
        lost[kept] = np.broadcast_to(met, rows)[: kept.stop - start]
    return result, lost


def tells_of_gradients(attack: Callable) -> TypeGuard[Attack]:
    """Tell whether an attack may be run on checked inputs, and says where gradients were not finite.

    One whose call is its own is called as it says.
    """
    return isinstance(attack, Attack) and type(attack).__call__ is Attack.__call__


def tell_of_gradients(lost: np.ndarray, n: int, what: str, stacklevel: int) -> None:
    """Warn of gradients that are not finite at the rows ``lost``, of n examples."""
    if len(lost):
        warnings.warn(
            f"the gradients are not finite at {len(lost)} of {n} {what} (first: row {lost[0]}): there the attack "
            "could not use them, so robustness may be overestimated. Attack with Square, which needs none, or "
            "mend the model: jnp.where before a norm, a square root or a logarithm of what may be 0",
            UserWarning,
            stacklevel=stacklevel,
        )


def warn_of_gradients(
    attack: Any, model: Callable, X: np.ndarray, y: np.ndarray, keys: Keys, rows: int, stacklevel: int = 4
) -> None:
    """Warn if an attack that needs gradients meets some that are not finite numbers.

    Looked at are up to ``LOOKED_AT`` of the examples, evenly spread, at their inputs and, for attacks that do not
    look for the nearest point, at a random point of the ball too: one gradient of one tile at most, beside one for
    each step and tile. Attacks take for zero what is not finite.
    """
    if not (needs_gradients(attack) and len(X)):
        return
    n = min(LOOKED_AT, max(rows // 2, 1))
    at = np.linspace(0, len(X) - 1, n).astype(int)
    x = moved = jnp.asarray(X[at])
    ball = ball_around(x, attack.epsilon, attack.bounds) if isinstance(attack, InBall) else None
    if ball is not None and attack.norm in NORMS and not isinstance(attack, FindsNearest):
        moved = start_in_ball(NORMS[attack.norm], x, keys[at].on_device(), ball)
    lost = np.unique(at[np.asarray(_lost(model, x, moved, jnp.asarray(y[at]), ball))])
    tell_of_gradients(lost, len(np.unique(at)), "examples looked at", stacklevel + 1)


@jax.jit
def _lost(model, x, moved, y, ball):
    """Tell where a gradient at the inputs (n, ...) or at the points moved is not finite (n,)."""
    labels = jnp.concatenate([y, y])

    def losses(scores):
        return ascent_losses(two_columns(scores) if is_binary(scores.shape, labels) else scores, labels)

    gradients = jnp.split(gradient_of(losses, model, jnp.concatenate([x, moved]))[0], 2)
    return unusable(gradients[0], ball) | unusable(gradients[1], ball)


def checked_data(attack: Any, X: Any, y: Any, key: Any) -> tuple[np.ndarray, np.ndarray, Keys]:
    """Return inputs (n, ...) on the host, as they may be attacked, with labels (or targets) and keys."""
    X = array("X", X)
    check_floating(X)
    fitting("X", X, jax.dtypes.canonicalize_dtype(X.dtype))
    check_finite(X)
    y = np.asarray(labels_of(y))
    if len(X):
        check_lengths(X=X, y=y)
    return admitted(attack, X), y, keys_of(key, len(X))


def finite_or_inputs(attack: Any, found: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return examples, or the inputs where these are not finite, with a warning that counts them."""
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
