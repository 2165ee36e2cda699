"""How far the nearest wrongly answered point is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._validation import brief
from ..attacks.boxes import Box
from ..attacks.capabilities import FindsNearest
from ..attacks.each import towards
from ..attacks.entry import require_attack
from ..attacks.fab import FAB
from ..attacks.tiled import warn_of_gradients
from ..attacks.valid_points import lengths_of, move_to_valid_points
from ..execution.keys import Keys, key_of, keys_of
from ..execution.threads import in_threads, shown
from ..targets.target import AttackTarget, Seed
from .target import classifier_under_attack

# How far out, in units of the distance found, a wrong answer is looked for where rounding has taken it away: that
# of scores, and that of values to those that features may have.
SMALL_FACTORS = (1 + 1e-5, 1 + 1e-4, 1 + 1e-3, 1.01)
SEARCH_FACTORS = (1.0, *SMALL_FACTORS, 1.1, 1.25, 1.5, 2.0, 3.0)


def minimal_perturbations(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    attack: Any = None,
    *,
    norm: str = "linf",
    bounds: Any = (0.0, 1.0),
    random_state: Seed = 0,
    targets: Any = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return distances to the nearest wrongly answered points that a minimum-norm attack finds.

    Each is an upper bound of the true distance.

    Parameters
    ----------
    estimator, X, y, random_state
        As for :func:`robustness_report`.
    attack : attack with ``nearest``, default=None
        :class:`~ntkrobust_sk.FMN`, :class:`~ntkrobust_sk.DDN`, or (None) :class:`~ntkrobust_sk.FAB` in this norm
        and these bounds.
    norm : {"linf", "l2", "l1"}, default="linf"
    bounds : (low, high) or None, default=(0.0, 1.0)
        Of the default attack.
    targets, n_jobs, progress
        As for :func:`~ntkrobust_sk.robust_accuracy`.

    Returns
    -------
    array (n,)
        In units of X; 0 for what is answered wrongly as it is, infinity where nothing was found. With targets
        "wrongly" means by the target.

    Raises
    ------
    TypeError
        If the attack finds no nearest points, or the estimator has no differentiable form.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import LinearSVC
    >>> from ntkrobust_sk import minimal_perturbations
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[:100], y[:100]
    >>> svc = LinearSVC().fit(X, y)
    >>> exact = abs(svc.decision_function(X)) / abs(svc.coef_).sum()
    >>> bool(abs(minimal_perturbations(svc, X, y, bounds=None) / exact - 1).max() < 0.01)
    True
    """
    default = FAB(1.0, norm=norm, bounds=bounds)
    attack = default if attack is None else require_nearest(attack, "attack")
    target = classifier_under_attack("minimal_perturbations", estimator, X, y)
    target = target.asked(targets, n_jobs=n_jobs, progress=progress)
    if target.no_gradient_because is not None:
        raise TypeError(f"{target.no_gradient_because}, but minimal perturbations need gradients")
    keys = keys_of(key_of(random_state), len(target.X))
    attack = target.within(attack)
    found = distances_by(target, attack, keys)
    with target.precision():
        warn_of_gradients(attack, target.model, target.X, target.y, keys, target.rows)
    return found


def require_nearest(attack: Any, name: str) -> FindsNearest:
    """Return an attack that finds nearest points, or raise TypeError."""
    require_attack(attack, name)
    if not isinstance(attack, FindsNearest):
        raise TypeError(
            f"{name}: minimal perturbations need an attack with nearest, such as FAB, got {brief(attack)}"
        )
    return attack


def distances_by(target: AttackTarget, attack: Any, keys: Keys) -> np.ndarray:
    """Return distances (n,) to the nearest points found that are answered wrongly (with targets: by these)."""
    require_nearest(attack, "attack")
    X, n = target.inputs(attack), len(target.X)
    points = X.copy()

    def near(start):
        index = np.minimum(np.arange(start, start + target.rows), n - 1)
        model, y, aims = target.model, jnp.asarray(target.y[index]), target.each.at(index).aims
        if aims is not None:
            model, y = towards(model, aims), jnp.zeros(len(index), jnp.int32)
        return attack.nearest(model, jnp.asarray(X[index]), y, key=keys[index].on_device())[0]

    starts = range(0, n, target.rows)
    found = shown(in_threads(near, starts, target.n_jobs), type(attack).__name__, len(starts), target.progress)
    with target.precision():
        for start, nearest in zip(starts, found, strict=True):
            points[start : start + target.rows] = np.asarray(nearest)[: n - start]
    return _valid_distances(target, attack, points)


def _valid_distances(target, attack, points):
    """Return distances to points with values that features may have, as far as they are answered wrongly.

    Rounding, of scores or of values, may bring a point back over the boundary: then one further out in the same
    direction is taken.
    """
    reach = SimpleNamespace(epsilon=1e30, norm=attack.norm, bounds=attack.bounds)
    distances, X = np.full(len(points), np.inf), target.X
    for factor in (
        SEARCH_FACTORS if isinstance(attack.bounds, Box) and attack.bounds.discrete else (1.0, *SMALL_FACTORS)
    ):
        if factor > 1 and not ((distances == np.inf) & (points != X).any(tuple(range(1, X.ndim)))).any():
            break
        moved = move_to_valid_points(X + X.dtype.type(factor) * (points - X) if factor > 1 else points, X, reach)
        wrong = ~target.stands(target.answers(moved)) & (distances == np.inf)
        distances[wrong] = lengths_of(attack.norm, moved[wrong], X[wrong])
    return distances
