"""Moves among categories: the worst of a few combinations, beside any attack on the numbers.

Categories have no gradient and no distance, so they are tried: all combinations where these are few, otherwise one
change after the other, each the one that lowers the margin most. What counts is the number of columns changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np

from ..execution.tiles import evaluate
from .boxes import Box
from .each import Each

# Combinations that are all tried; with more of them changes are made one by one.
MOST_COMBINATIONS = 256
# Times that numbers and categories are attacked in turn.
ROUNDS = 3


def categories_of(*attacks: Any) -> tuple:
    """Return the columns of categories, with their values, that the bounds of attacks name.

    >>> from ntkrobust_sk import PGD, Box
    >>> categories_of(PGD(0.1), PGD(0.1, bounds=Box(categories=["sex"])))
    (('sex', None),)
    """
    boxes = [box for attack in attacks if isinstance(box := getattr(attack, "bounds", None), Box)]
    found: dict = {}
    for column, values in (pair for box in boxes for pair in box.categories):
        both = column in found and None not in (found[column], values)
        found[column] = tuple(dict.fromkeys((*found[column], *values))) if both else values
    return tuple(found.items())


def search_categories(
    attack: Any,
    attack_numbers: Callable[..., np.ndarray],
    model: Callable,
    X: np.ndarray,
    y: np.ndarray,
    each: Each,
    rows: int,
) -> np.ndarray:
    """Return the worst points found (n, d) with other categories, and with other numbers inside of the ball.

    Numbers are attacked with the input's own categories, and up to ``ROUNDS`` times with the worst ones found; in
    between, categories are searched anew. So the result is never weaker than the attack on numbers alone, nor than
    the search over categories at the input itself.

    Parameters
    ----------
    attack : attack with ``bounds``, a Box with ``categories``
        Their values are numbers in X.
    attack_numbers : callable
        ``attack_numbers(attack, X, at) -> x_adv`` of the rows ``at``, for an attack without categories.
    model : callable
    X : array (n, d)
    y : int array (n,), or real targets (n, C)
    each : Each
    rows : int
        Rows of a tile.
    """
    box, (n, d) = attack.bounds, _checked(attack, X)
    free = box.free(d)
    inner = replace(attack, bounds=replace(box, mask=tuple(free.tolist()), categories=(), n_changes=None))

    def weigh(points, at):
        scores, aims = evaluate(model, points, rows), each.at(at).aims
        if aims is None:
            return _margins(scores, y[at])
        found = -_margins(scores, aims)
        # scores that are NaN are no answer at all
        return np.where(np.isneginf(found), np.inf, found)

    best, margins = X.copy(), weigh(X, np.arange(n))
    _keep_worse(best, margins, np.arange(n), *_worst_categories(box, X, X, weigh, np.arange(n)))
    start = X.copy()
    at = np.flatnonzero(_stands(margins, y))
    for _ in range(ROUNDS if free.any() else 0):
        if not len(at):
            break
        found = attack_numbers(inner, start[at], at)
        _keep_worse(best, margins, at, found, weigh(found, at))
        _keep_worse(best, margins, at, *_worst_categories(box, X[at], best[at], weigh, at))
        # only where categories have moved is there another point to start from
        positions = [position for position, _ in box.categories]
        other = start.copy()
        other[:, positions] = best[:, positions]
        moved = (other != start).any(1) & _stands(margins, y)
        start, at = other, np.flatnonzero(moved)
    return best


def _checked(attack, X):
    """Return the shape (n, d) of inputs whose categories an attack may move."""
    if not is_dataclass(attack) or "bounds" not in {field.name for field in fields(attack)}:
        raise TypeError(f"categories move in attacks that are dataclasses with bounds, got {attack!r}")
    if X.ndim != 2:
        raise ValueError(f"categories are columns of a table (n, d), got inputs of shape {X.shape}")
    bounds: Any = getattr(attack, "bounds")  # noqa: B009 - dataclasses say nothing of their fields
    for column, values in bounds.categories:
        if isinstance(column, str) or values is None or column >= X.shape[1]:
            raise ValueError(
                f"Box(categories=...): of an array of {X.shape[1]} columns give positions with their values, such "
                f"as {{2: (0, 1)}}, got {column!r}: {values!r}; names go with a data frame and robust_accuracy"
            )
    return X.shape


def _stands(margins, y):
    """Tell which rows are still answered rightly; a regressor's answer can always be worse."""
    return margins >= 0 if y.ndim == 1 else np.ones(len(margins), bool)


def _margins(scores, y):
    """Return margins (n,), lower for worse answers: of real targets the squared error with a minus."""
    if y.ndim > 1:
        return -np.sum((scores - y) ** 2, axis=1)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    others = scores.copy()
    others[np.arange(len(y)), y] = -np.inf
    found = scores[np.arange(len(y)), y] - others.max(1)
    return np.where(np.isnan(found), np.inf, found)


def _keep_worse(best, margins, at, points, found):
    """Put points with lower margins in place, at the rows ``at``."""
    worse = found < margins[at]
    best[at[worse]], margins[at[worse]] = points[worse], found[worse]


def _worst_categories(box, X, points, weigh, at):
    """Return the points (m, d) with the categories that are worst, and their margins (m,)."""
    columns = [(position, np.asarray(values, X.dtype)) for position, values in box.categories]
    positions = [position for position, _ in columns]
    n_changes = len(columns) if box.n_changes is None else min(box.n_changes, len(columns))
    best, every = points.copy(), np.arange(len(points))
    best[:, positions] = X[:, positions]
    start, margins = best.copy(), weigh(best, at)
    if _count(columns, n_changes) <= MOST_COMBINATIONS:
        for changes in _combinations(columns, n_changes):
            candidate = start.copy()
            for position, value in changes:
                candidate[:, position] = value
            _keep_worse(best, margins, every, candidate, weigh(candidate, at))
        return best, margins
    # each turn lowers margins by one more change, or ends
    for _ in range(2 * n_changes):
        start, before = best.copy(), margins.copy()
        for position, value in _single_changes(columns):
            candidate = start.copy()
            candidate[:, position] = value
            within = (candidate[:, positions] != X[:, positions]).sum(1) <= n_changes
            found = np.where(within, weigh(candidate, at), np.inf)
            _keep_worse(best, margins, every, candidate, found)
        if (margins == before).all():
            break
    return best, margins


def _single_changes(columns) -> Iterator[tuple[int, Any]]:
    return ((position, value) for position, values in columns for value in values)


def _count(columns, n_changes) -> int:
    """Return the number of combinations of values in up to so many columns."""
    sizes = [len(values) for _, values in columns]
    return sum(math.prod(some) for k in range(1, n_changes + 1) for some in combinations(sizes, k))


def _combinations(columns, n_changes) -> Iterator[list[tuple[int, Any]]]:
    for k in range(1, n_changes + 1):
        for some in combinations(columns, k):
            for values in product(*(values for _, values in some)):
                yield [(position, value) for (position, _), value in zip(some, values, strict=True)]
