"""A million adversarial examples, and not one of them outside of ball and bounds.

Every attack in every norm, under bounds that are numbers, differ between features, are missing, or are a Box with
fixed and integer features; data in single and in double precision, and data in double precision attacked in
single precision; epsilons from 1e-5 to 0.7. The examples are written to a file and read again, and then looked at
in double precision: distance <= epsilon, low <= x <= high, fixed features as they were, integers integer, all to
the last bit.

    python examples/check_attacks_stay_inside.py            # minutes; most of them compile
    python examples/check_attacks_stay_inside.py -n 20000   # a taste

Ends with an error if one example is outside. With JAX 0.10.2 none of 1,000,224 was, and the largest distance was
0.99999999999999 epsilon.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntkrobust_sk import APGD, DDN, FAB, FGSM, FMN, MLP, NFGSM, PGD, AutoAttack, Box, Model, Square, Variables
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.precision import enable_x64

N_FEATURES, N_CLASSES, ROWS = 10, 4, 250
EPSILONS = (8 / 255, 0.1, 1e-5, 0.7)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
LOW, HIGH = np.linspace(-0.3, 0.1, N_FEATURES), np.linspace(0.9, 3.7, N_FEATURES)
BOUNDS = {
    "scalar": (0.0, 1.0),
    "per feature": (LOW, HIGH),
    "none": None,
    "box": Box(LOW, HIGH, mask=np.arange(N_FEATURES) % 4 != 1, integers=(8, 9)),
}
# of the data, and whether the attack computes in double precision
DTYPES = {"float32": ("float32", False), "float64": ("float64", True), "float64 as float32": ("float64", False)}
ATTACKS = {
    "FGSM": FGSM,
    "PGD": partial(PGD, n_steps=5),
    "APGD": partial(APGD, n_steps=10),
    "FAB": partial(FAB, n_steps=5, n_targets=2),
    "FMN": partial(FMN, n_steps=10),
    "Square": partial(Square, n_queries=20),
    "AutoAttack": partial(AutoAttack, n_steps=5, n_queries=10, n_targets=1),
    "NFGSM": NFGSM,
    "DDN": partial(DDN, n_steps=10),
}
ONLY = {"NFGSM": "linf", "DDN": "l2"}


def cases(attacks=ATTACKS, norms=ORDERS, bounds=BOUNDS, dtypes=DTYPES):
    """Names of attack, norm, bounds and dtype; the norms that an attack has."""
    everything = itertools.product(attacks, norms, bounds, dtypes)
    return [case for case in everything if ONLY.get(case[0], case[1]) == case[1]]


def victim() -> Model:
    """A network with large weights, whose answers change within a short way."""
    network = MLP(n_outputs=N_CLASSES, widths=(8,), activation="tanh")
    params, state = network.init(jax.random.key(0), (N_FEATURES,))
    return Model(network, Variables(jax.tree.map(lambda leaf: 5 * leaf, params), state))


def inputs(bounds, n: int, dtype: str, seed: int) -> np.ndarray:
    """Inputs (n, d), many of them on a bound."""
    low, high = (np.asarray(b).astype(dtype) for b in ((-2, 3) if bounds is None else bounds))
    X = np.random.default_rng(seed).uniform(-0.6, 4.0, (n, N_FEATURES)).astype(dtype)
    if isinstance(bounds, Box):
        integers = list(bounds.integers)
        X[:, integers] = np.clip(np.rint(X[:, integers]), np.ceil(low[integers]), np.floor(high[integers]))
    return np.clip(X, low, high)


def outside(x_adv: np.ndarray, x: np.ndarray, attack) -> tuple[int, float]:
    """Count examples that are where they must not be, and measure the largest distance in units of epsilon.

    Parameters
    ----------
    x_adv, x : array (n, n_features)
    attack : attack with epsilon, norm and bounds
    """
    distance = np.linalg.norm(x_adv.astype(np.float64) - x.astype(np.float64), axis=1, ord=ORDERS[attack.norm])
    wrong = ~(distance <= attack.epsilon)
    if attack.bounds is not None:
        # a bound is one in the dtype of the data
        low, high = (np.asarray(b).astype(x.dtype) for b in attack.bounds)
        wrong |= ~((x_adv >= low) & (x_adv <= high)).all(1)
    if isinstance(attack.bounds, Box):
        integers, fixed = list(attack.bounds.integers), ~np.asarray(attack.bounds.mask)
        wrong |= (x_adv[:, integers] != np.rint(x_adv[:, integers])).any(1) | (x_adv != x)[:, fixed].any(1)
    return int(wrong.sum()), float(distance.max() / attack.epsilon)


def check(case, n: int, folder, model, seed=0) -> tuple[int, float, int]:
    """Attack n inputs; how many are outside, the largest distance in units of epsilon, how many have moved."""
    name, norm, kind, dtype = case
    n_outside, furthest, n_moved = 0, 0.0, 0
    data_dtype, x64 = DTYPES[dtype]
    for number, epsilon in enumerate(EPSILONS):
        X = inputs(BOUNDS[kind], n // len(EPSILONS), data_dtype, seed + number)
        attack = ATTACKS[name](epsilon, bounds=BOUNDS[kind], **{} if name in ONLY else {"norm": norm})
        with enable_x64(x64):
            y = np.asarray(model(jnp.asarray(X)).argmax(1), np.int32)
            x_adv = attack_in_tiles(attack, model, X, y, key=jax.random.key(seed + number), rows=ROWS)
        path = Path(folder) / "examples.npz"
        np.savez(path, x_adv=x_adv, x=X)
        with np.load(path) as read:
            x_adv, x = read["x_adv"], read["x"]
        assert x_adv.dtype == x.dtype == np.dtype(data_dtype) and x_adv.shape == x.shape
        wrong, far = outside(x_adv, x, attack)
        n_outside, furthest, n_moved = n_outside + wrong, max(furthest, far), n_moved + (x_adv != x).any(1).sum()
    return n_outside, furthest, int(n_moved)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=1_000_000, help="examples in all, at least")
    n = parser.parse_args(arguments).n
    everything, model, failed = cases(), victim(), []
    each = len(EPSILONS) * -(-n // (len(everything) * len(EPSILONS)))
    total, started = 0, time.perf_counter()
    print(
        f"{'attack':12}{'norm':6}{'examples':>10}{'moved':>10}{'outside':>9}  largest distance / epsilon   seconds"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, norm in dict.fromkeys(case[:2] for case in everything):
            before, group = time.perf_counter(), cases([name], [norm])
            found = [check(case, each, folder, model, seed) for seed, case in enumerate(group)]
            failed += [case for case, (wrong, _, _) in zip(group, found, strict=True) if wrong]
            total += each * len(group)
            wrong, furthest, moved = sum(f[0] for f in found), max(f[1] for f in found), sum(f[2] for f in found)
            seconds = time.perf_counter() - before
            print(
                f"{name:12}{norm:6}{each * len(group):10,}{moved:10,}{wrong:9,}  {furthest:<21.16f}{seconds:8.1f}",
                flush=True,
            )
    print(f"{total:,} examples in {time.perf_counter() - started:.0f} s")
    if failed:
        sys.exit("OUTSIDE: " + "; ".join(", ".join(case) for case in failed))
    print("every one in ball and bounds, to the last bit")


if __name__ == "__main__":
    main()
