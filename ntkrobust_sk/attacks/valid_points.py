"""Valid values of features: whole numbers, one-hot groups, and the last bits of a ball."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .boxes import Box
from .capabilities import InBall
from .norms import LENGTHS
from .threat_model import limits_of, radii

# Largest number of times that examples are moved inwards; once or twice is enough.
MAX_INWARD_MOVES = 8


def move_to_valid_points(x_adv: Any, x: np.ndarray, attack: Any) -> np.ndarray:
    """Move ``x_adv`` (n, ...) to values that its features may take, and back inside the ball after rounding.

    Afterwards the distance from ``x``, computed in double precision, is at most the attack's epsilon, ``x_adv``
    lies in bounds, and the discrete features of a :class:`Box` have values that they may have.

    >>> from ntkrobust_sk import PGD
    >>> x = np.array([[0.7]], np.float32)
    >>> x_adv = x + np.float32(0.1)
    >>> float(x_adv[0, 0]) - float(x[0, 0]) > 0.1
    True
    >>> float(move_to_valid_points(x_adv, x, PGD(0.1))[0, 0]) - float(x[0, 0]) <= 0.1
    True
    """
    x_adv = np.asarray(x_adv).astype(x.dtype)
    if not isinstance(attack, InBall):
        return x_adv
    x_adv, given = np.clip(x_adv, *limits_of(attack.bounds, x)), np.zeros((1, *x.shape[1:]), bool)
    if isinstance(attack.bounds, Box) and (positions := attack.bounds.discrete):
        given.ravel()[list(positions)] = True
        x_adv = np.where(given, _discretised(x_adv, x, attack), x_adv)
    axes, order = tuple(range(1, x.ndim)), LENGTHS[attack.norm].order
    epsilon = radii(attack.epsilon, x.ndim)
    if order == 0:
        return _with_fewest_changes(x_adv, x, given, np.reshape(epsilon, (-1, 1)))
    # a little less, since sums are rounded too
    epsilon = epsilon * (1 - 1e-14)
    for _ in range(MAX_INWARD_MOVES):
        delta = x_adv.astype(np.float64) - x
        sizes, room = np.where(given, 0, np.abs(delta)), epsilon
        if order < np.inf:
            spent = np.sum(np.where(given, np.abs(delta), 0) ** order, axes, keepdims=True)
            sizes = np.sum(sizes**order, axes, keepdims=True) ** (1 / order)
            room = np.maximum(epsilon**order - spent, 0) ** (1 / order)
        out = (sizes > room) & (delta != 0) & ~given
        if not out.any():
            break
        share = room / np.where(sizes > 0, sizes, 1)
        x_adv = np.where(out, np.nextafter((x + delta * share).astype(x.dtype), x), x_adv)
    return x_adv


def _with_fewest_changes(x_adv, x, given, epsilon):
    """Return ``x_adv`` with its largest changes alone, as many as epsilon leaves beside those ``given``."""
    size = np.abs(x_adv.astype(np.float64) - x).reshape(len(x), -1)
    given = np.broadcast_to(given, x.shape).reshape(size.shape)
    left = epsilon - np.sum(given & (size > 0), axis=1, keepdims=True)
    rank = np.argsort(np.argsort(-np.where(given, -1, size), axis=1, kind="stable"), axis=1)
    return np.where(given | (rank + 1 <= left), x_adv.reshape(size.shape), x.reshape(size.shape)).reshape(x.shape)


def lengths_of(norm: str, points: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the lengths (n,) of the changes from X (n, ...) to points, in double precision.

    >>> lengths_of("l0", np.array([[1.0, 0.5, 0.0]]), np.zeros((1, 3)))
    array([2.])
    """
    changes = (points.astype(float) - X).reshape(len(X), math.prod(X.shape[1:]))
    return np.linalg.norm(changes, LENGTHS[norm].order, axis=1)


def _discretised(x_adv, x, attack):
    """Return the discrete features at the valid values nearest to ``x_adv``, others at the input.

    They move one by one, as long as epsilon lasts; what ball and bounds do not hold stays with the input.
    """
    box, order, n = attack.bounds, LENGTHS[attack.norm].order, len(x)
    wanted, own = x_adv.reshape(n, -1), x.reshape(n, -1)
    lower, upper = (np.broadcast_to(b, x.shape).reshape(n, -1) for b in limits_of(box, x))
    found = own.copy()

    def lengths(points):
        return lengths_of(attack.norm, points, own)

    def put(positions, values):
        """Set values (n, k) at positions (n, k), where the ball holds them."""
        candidate = found.copy()
        np.put_along_axis(candidate, positions, values.astype(x.dtype), 1)
        fits = lengths(candidate) <= attack.epsilon
        found[fits] = candidate[fits]

    for group in box.one_hot:
        at = np.broadcast_to(group, (n, len(group)))
        low, high = lower[:, group], upper[:, group]
        one, zero = (low <= 1) & (high >= 1), (low <= 0) & (high >= 0)
        possible = one & (zero.sum(1, keepdims=True) - zero == len(group) - 1)
        value = np.where(possible, wanted[:, group], -np.inf)
        # of two equally near ones the input's own
        stays = np.take_along_axis(value, own[:, group].argmax(1)[:, None], 1) >= value.max(1, keepdims=True)
        put(at, np.where(stays, own[:, group], np.eye(len(group))[value.argmax(1)]))
    integers = list(box.integers or ())
    nearest = np.clip(np.rint(wanted), np.ceil(lower), np.floor(upper))[:, integers] - own[:, integers]
    # the larger changes first
    for rank in np.argsort(-np.abs(nearest), axis=1, kind="stable").T[:, :, None]:
        at, step = np.asarray(integers)[rank], np.take_along_axis(nearest, rank, 1).astype(np.float64)
        left = attack.epsilon
        if 0 < order < np.inf:
            left = np.maximum(left**order - lengths(found) ** order, 0) ** (1 / order)
        longest = np.floor(np.broadcast_to(np.inf if order == 0 else left, n))[:, None]
        put(at, np.take_along_axis(own, at, 1) + np.sign(step) * np.minimum(np.abs(step), longest))
    return found.reshape(x.shape)
