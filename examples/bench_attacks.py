"""
How fast is PGD?
================

One attack, PGD with 40 steps on 256 inputs of 784 features through a network with one hidden layer of 256
units, as the library runs it and as one function written by hand and compiled as a whole. Both must find the
same adversarial examples; the library may take at most 1.3 times as long.

Run ``python examples/bench_attacks.py``; ``--out FILE`` also writes the numbers as JSON.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntkrobust_sk import MLP, PGD, Model

N, N_FEATURES, WIDTH, N_CLASSES = 256, 784, 256, 10
ATTACK = PGD(epsilon=0.1, n_steps=40)
BAR = 1.3

# %%
# The attack by hand: one ``jit``, one loop, nothing that could be left out.


@jax.jit
def pgd_by_hand(params, x, y, key):
    epsilon, step_size = ATTACK.epsilon, 2 * ATTACK.epsilon / ATTACK.n_steps

    def loss(z):
        hidden = jax.nn.relu(z @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        scores = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1).sum()

    def step(_, z):
        z = z + step_size * jnp.sign(jax.grad(loss)(z))
        return jnp.clip(x + jnp.clip(z - x, -epsilon, epsilon), 0.0, 1.0)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    noise = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], minval=-epsilon, maxval=epsilon))(keys)
    return jax.lax.fori_loop(0, ATTACK.n_steps, step, jnp.clip(x + noise, 0.0, 1.0))


def fraction_that_differs(model, y, first, second):
    """Fraction of features; SystemExit unless the two attacks found the same examples.

    The sign of a gradient that is nearly zero depends on rounding, so a few features in ten thousand may go
    the other way, and nothing else may.
    """
    differing = float((jnp.abs(first - second) > 1e-5).mean())
    losses = [optax.softmax_cross_entropy_with_integer_labels(model(z), y) for z in (first, second)]
    gap = float(jnp.abs(losses[0] / losses[1] - 1).max())
    if differing > 5e-3 or gap > 1e-2:
        raise SystemExit(f"the attacks differ in {differing:.1%} of the features and by {gap:.1%} in the loss")
    return differing


# %%
# Timing: alternating runs, so that whatever else the machine does meets both alike.


def seconds(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(calls, n_runs):
    """Seconds of ``n_runs`` runs of each call; the run before them, which compiles, is left out."""
    for call in calls.values():
        seconds(call)
    times = {name: [] for name in calls}
    for _ in range(n_runs):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--runs", type=int, default=15, help="alternating runs of each attack, at least 9")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    if options.runs < 9:
        parser.error(f"--runs must be at least 9 for a median worth reporting, got {options.runs}")

    network = MLP(n_outputs=N_CLASSES, widths=(WIDTH,))
    model = Model(network, network.init(jax.random.key(0), (N_FEATURES,)))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(N, N_FEATURES)), jnp.float32)
    y = jnp.asarray(rng.integers(N_CLASSES, size=N))
    key = jax.random.key(1)
    calls = {
        "ntkrobust_sk.PGD": lambda: ATTACK(model, x, y, key=key),
        "one jit by hand": lambda: pgd_by_hand(model.variables.params, x, y, key),
    }

    differing = fraction_that_differs(model, y, *(call() for call in calls.values()))
    times = measure(calls, options.runs)
    medians = {name: statistics.median(runs) for name, runs in times.items()}
    ratio = medians["ntkrobust_sk.PGD"] / medians["one jit by hand"]

    print(
        f"PGD, {ATTACK.n_steps} steps, {N} inputs of {N_FEATURES} features, MLP {N_FEATURES}-{WIDTH}-{N_CLASSES}"
    )
    print(f"{'':<20}{'median':>10}{'fastest':>10}   of {options.runs} runs, in ms")
    for name, runs in times.items():
        print(f"{name:<20}{1e3 * medians[name]:>10.1f}{1e3 * min(runs):>10.1f}")
    print(f"ratio of medians     {ratio:.3f} (bar: at most {BAR})")
    print(f"features that differ {differing:.2e}")
    if options.out is not None:
        numbers = {
            "seconds": times,
            "ratio_of_medians": ratio,
            "bar": BAR,
            "fraction_of_features_that_differ": differing,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "platform": platform.platform(),
        }
        options.out.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
