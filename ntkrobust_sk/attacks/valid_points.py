"""Valid values of features: whole numbers, one-hot groups, and the last bits of a ball."""

from __future__ import annotations

import numpy as np

from .threat_model import limits_of

# Times that examples are moved inwards at most; once or twice is enough.
SETTLING = 8


def settle(x_adv: np.ndarray, x: np.ndarray, attack) -> np.ndarray:
    """``x_adv`` (n, ...) at valid values, and by the last bits back where rounding took it out of the ball.

    Afterwards the distance from ``x``, computed in double precision, is at most the attack's epsilon, ``x_adv``
    lies in bounds, and the discrete features of a :class:`Box` have values that they may have.

    >>> from ntkrobust_sk import PGD
    >>> x = np.array([[0.7]], np.float32)
    >>> x_adv = x + np.float32(0.1)
    >>> float(x_adv[0, 0]) - float(x[0, 0]) > 0.1
    True
    >>> float(settle(x_adv, x, PGD(0.1))[0, 0]) - float(x[0, 0]) <= 0.1
    True
    """
    x_adv = np.asarray(x_adv).astype(x.dtype)
    if not hasattr(attack, "epsilon"):
        return x_adv
    x_adv, given = np.clip(x_adv, *limits_of(attack.bounds, x)), np.zeros((1, *x.shape[1:]), bool)
    if positions := getattr(attack.bounds, "discrete", ()):
        given.ravel()[list(positions)] = True
        x_adv = np.where(given, _discretised(x_adv, x, attack), x_adv)
    axes, power = tuple(range(1, x.ndim)), POWERS[attack.norm]
    # a little less, since sums are rounded too
    epsilon = attack.epsilon * (1 - 1e-14)
    for _ in range(SETTLING):
        delta = x_adv.astype(np.float64) - x
        sizes, room = np.where(given, 0, np.abs(delta)), epsilon
        if power is not None:
            spent = np.sum(np.where(given, np.abs(delta), 0) ** power, axes, keepdims=True)
            sizes = np.sum(sizes**power, axes, keepdims=True) ** (1 / power)
            room = np.maximum(epsilon**power - spent, 0) ** (1 / power)
        out = (sizes > room) & (delta != 0) & ~given
        if not out.any():
            break
        share = room / np.where(sizes > 0, sizes, 1)
        x_adv = np.where(out, np.nextafter((x + delta * share).astype(x.dtype), x), x_adv)
    return x_adv


# Of what is summed up in a norm; None is the largest.
POWERS = {"linf": None, "l2": 2, "l1": 1}


def _discretised(x_adv, x, attack):
    """The discrete features at the valid values nearest to ``x_adv`` in ball and bounds, others at the input.

    One by one, as long as epsilon lasts; what does not fit stays with the input.
    """
    box, power, n = attack.bounds, POWERS[attack.norm], len(x)
    wanted, own = x_adv.reshape(n, -1), x.reshape(n, -1)
    lower, upper = (np.broadcast_to(b, x.shape).reshape(n, -1) for b in limits_of(box, x))
    found = own.copy()

    def lengths(points):
        sizes = np.abs(points.astype(np.float64) - own)
        return sizes.max(1, initial=0) if power is None else np.sum(sizes**power, 1) ** (1 / power)

    def put(positions, values):
        """Values (n, k) at positions (n, k), where the ball holds them."""
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
    integers = list(box.integers)
    nearest = np.clip(np.rint(wanted), np.ceil(lower), np.floor(upper))[:, integers] - own[:, integers]
    # the larger changes first
    for rank in np.argsort(-np.abs(nearest), axis=1, kind="stable").T[:, :, None]:
        at, step = np.asarray(integers)[rank], np.take_along_axis(nearest, rank, 1).astype(np.float64)
        left = attack.epsilon
        if power is not None:
            left = np.maximum(left**power - lengths(found) ** power, 0) ** (1 / power)
        longest = np.floor(np.broadcast_to(left, n))[:, None]
        put(at, np.take_along_axis(own, at, 1) + np.sign(step) * np.minimum(np.abs(step), longest))
    return found.reshape(x.shape)
