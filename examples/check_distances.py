"""Distances that FMN, DDN and FAB find on linear models, beside the exact ones.

Prints a table of attack, norm, case, how many of 100 points were found, and median and largest ratio of the
distance found to the exact one: ``python examples/check_distances.py``; with ``--quick`` for 6 features alone.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ntkrobust_sk import DDN, FAB, FMN, Box

N = 100
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
# classes and scale of the scores, share of the features at a bound, and share that may not change
CASES = {
    "scores as they are": (2, 1.0, 0.0, 0.0),
    "scores times 2": (2, 2.0, 0.0, 0.0),
    "scores times 1,000": (2, 1000.0, 0.0, 0.0),
    "scores times 0.001": (2, 0.001, 0.0, 0.0),
    "half at bounds": (2, 1.0, 0.5, 0.0),
    "half at bounds, times 1,000": (2, 1000.0, 0.5, 0.0),
    "a third fixed": (2, 1.0, 0.0, 1 / 3),
    "half at bounds, a third fixed": (2, 1.0, 0.5, 1 / 3),
    "4 classes": (4, 1.0, 0.0, 0.0),
    "4 classes, half at bounds": (4, 1000.0, 0.5, 0.0),
}


def exact_distance(norm: str, slope, missing: float, room) -> float:
    """Least length of d with ⟨slope, d⟩ >= missing and |d_i| <= room_i the way of the slope; infinite if none is.

    The features are sorted by where they reach their bound (L∞: room; L2: room / slope), or by how steep they are
    (L1): between two of these the sum is linear, and its root is exact.
    """
    steep = np.abs(slope)
    used = (steep > 0) & (room > 0)
    steep, room = steep[used], room[used]
    if steep @ room < missing:
        return np.inf
    if norm == "l1":
        order = np.argsort(-steep)
        won = np.cumsum((steep * room)[order])
        last = int(np.searchsorted(won, missing))
        before = won[last - 1] if last else 0.0
        return room[order][:last].sum() + (missing - before) / steep[order][last]
    speed = np.ones_like(steep) if norm == "linf" else steep
    order = np.argsort(room / speed)
    steep, room, speed = steep[order], room[order], speed[order]
    # features before the i-th stand at their bounds, the others move on at the same rate
    full = np.concatenate([[0.0], np.cumsum(steep * room)])[:-1]
    moving = np.cumsum((steep * speed)[::-1])[::-1]
    rate = (missing - full) / moving
    at = int(np.argmax(rate <= room / speed))
    change = np.minimum(rate[at] * speed, room)
    return float(np.linalg.norm(change, ORDERS[norm]))


def problem(n_features: int, n_classes: int, scale: float, at_bounds: float, fixed: float, seed: int = 0):
    """Weights, offsets, inputs in [0, 1], labels, and which features may change."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(n_features, n_classes)).astype(np.float32)
    X = rng.uniform(size=(N, n_features)).astype(np.float32)
    ends = rng.uniform(size=X.shape) < at_bounds
    X = np.where(ends, np.round(X), X)
    offset = -(X @ weights).mean(0)
    mask = rng.uniform(size=n_features) >= fixed
    mask[:2] = True
    weights, offset = np.float32(scale) * weights, np.float32(scale) * offset
    return weights, offset, X, (X @ weights + offset).argmax(1).astype(np.int32), mask


def exact_distances(norm, weights, offset, X, y, mask) -> np.ndarray:
    """Compute each input's (n,) distance to the nearest plane where the score of its label meets another's."""
    weights, offset, X = (np.asarray(values, np.float64) for values in (weights, offset, X))
    found = np.full(len(X), np.inf)
    for i, label in enumerate(y):
        for other in set(range(weights.shape[1])) - {label}:
            slope = np.where(mask, weights[:, other] - weights[:, label], 0)
            missing = X[i] @ (weights[:, label] - weights[:, other]) + offset[label] - offset[other]
            room = np.where(slope > 0, 1 - X[i], X[i])
            found[i] = min(found[i], exact_distance(norm, slope, missing, room))
    return found


def attacks(bounds) -> list:
    """All attacks that look for the nearest point, in all their norms."""
    within = [partial(kind, 1e6, bounds=bounds) for kind in (FMN, FAB)]
    return [*(make(norm=norm) for norm in ORDERS for make in within), DDN(1e6, bounds=bounds)]


def linear(weights, offset, x):
    """Scores; one function, so that what is compiled for one case serves the others."""
    return x @ weights + offset


def compare(case: str, n_features: int) -> list[tuple]:
    """Rows of the table: attack, norm, features, case, found, points there are, median and largest ratio."""
    weights, offset, X, y, mask = problem(n_features, *CASES[case])
    model = jax.tree_util.Partial(linear, jnp.asarray(weights), jnp.asarray(offset))
    rows = []
    for attack in attacks(Box(0, 1, mask=mask)):
        exact = exact_distances(attack.norm, weights, offset, X, y, mask)
        points, _ = attack.nearest(model, X, y, key=jax.random.key(0))
        moved = np.asarray(points, np.float64) - X
        wrong = np.asarray(model(points)).argmax(1) != y
        there = np.isfinite(exact) & (exact > 0)
        ratios = np.linalg.norm(moved, ORDERS[attack.norm], axis=1)[wrong & there] / exact[wrong & there]
        row = (wrong & there).sum(), there.sum(), np.median(ratios), ratios.max()
        rows.append((type(attack).__name__, attack.norm, n_features, case, *row))
    return rows


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6 features alone")
    sizes = (6,) if parser.parse_args().quick else (6, 64, 784)
    print("| attack | norm | features | case | found | of | median ratio | largest |")
    print("|---|---|---|---|---|---|---|---|")
    for n_features in sizes:
        for case in CASES:
            for attack, norm, size, name, found, there, median, most in compare(case, n_features):
                print(f"| {attack} | {norm} | {size} | {name} | {found} | {there} | {median:.4f} | {most:.4f} |")


if __name__ == "__main__":
    main()
