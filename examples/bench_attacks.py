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


# %%
# Timing: alternating runs, so that whatever else the machine does meets both alike.


def seconds(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(calls, n_runs):
    """Seconds of each call in each run, the first one of all being left out: it compiles."""
    for call in calls.values():
        seconds(call)
    return {name: list(times) for name, times in zip(calls, zip(*(
        [seconds(call) for call in calls.values()] for _ in range(n_runs)
    ), strict=True), strict=True)}


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

    ours, by_hand = (call() for call in calls.values())
    differing = float((jnp.abs(ours - by_hand) > 1e-5).mean())
    times = measure(calls, options.runs)
    medians = {name: statistics.median(runs) for name, runs in times.items()}
    ratio = medians["ntkrobust_sk.PGD"] / medians["one jit by hand"]
