"""Gram matrix by JAX, kernel ridge regression by CuPy, on whatever device there is.

Names the device, times both phases (medians), checks the Gram matrix against a float64 block computed on its own
and the dual coefficients against NumPy, and writes everything as JSON:

    python examples/bench_gpu.py --n 4096 --out bench_gpu.json

Without a GPU the same code runs on the CPU and says so.
"""

from __future__ import annotations

import argparse
import json
import os

# JAX would take most of the GPU's memory at its start and leave none for CuPy.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from gpu_sections import drawn, images, relative, seconds_of

from ntkrobust_sk import CNN, PGD, Model, gram, solve
from ntkrobust_sk._arrays import cupy_or_none, to_numpy
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.predictors import make_predictor


def describe() -> dict:
    """The devices and versions that the figures belong to."""
    cupy = cupy_or_none()
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cpu_cores": os.cpu_count(),
        "jax": jax.__version__,
        "cupy": None if cupy is None else cupy.__version__,
        "cupy_device": None if cupy is None else cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
    }


def bench(n: int, kernel: str, memory: str, repeats: int) -> dict:
    """One kernel at one size."""
    model, X, y = drawn(CNN(n_outputs=10), (32, 32, 3)), images(n, 32), np.random.default_rng(1).integers(0, 10, n)
    targets = np.eye(10)[y] - 0.1
    _, seconds_gram, K = seconds_of(lambda: gram(kernel, model, X, memory=memory), repeats)
    _, seconds_solve, dual = seconds_of(lambda: solve(K, targets, alpha=1e-2), repeats)

    few = min(n, 32)
    # on a CPU, since GPUs lack algorithms for convolutions in double precision
    with jax.default_device(jax.devices("cpu")[0]), enable_x64(True):
        exact_model = Model(model.network, jax.tree.map(lambda leaf: leaf.astype("float64"), model.variables))
        exact = np.asarray(gram(kernel, exact_model, X[:few].astype("float64"), memory=memory))
    K_host = np.asarray(K, dtype=float)
    reference = np.linalg.solve(K_host + 1e-2 * np.diag(K_host).mean() * np.eye(n), targets)

    predictor = make_predictor(KERNELS[kernel], model, X, to_numpy(dual), np.full(10, 0.1), memory=memory)
    queries, labels, attack = X[:256], y[:256].astype(np.int32), PGD(4 / 255, n_steps=10)
    _, seconds_attack, _ = seconds_of(
        lambda: attack_in_tiles(attack, predictor, queries, labels, key=jax.random.key(1), rows=64), repeats
    )
    return {
        "kernel": kernel,
        "n": n,
        "seconds_gram": seconds_gram,
        "seconds_solve": seconds_solve,
        "seconds_pgd10_on_256": seconds_attack,
        "solved_by": type(dual).__module__.split(".")[0],
        "gram_error": relative(K_host[:few, :few], exact),
        "dual_error": float(np.linalg.norm(to_numpy(dual) - reference) / np.linalg.norm(reference)),
    }


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--kernels", nargs="+", default=["trace", "pseudo"])
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    machine = describe()
    solver = machine["cupy_device"] or "no GPU seen, SciPy solves"
    print(f"{machine['device']} ({machine['backend']}), CuPy: {solver}")
    rows = [bench(options.n, kernel, options.memory, options.repeats) for kernel in options.kernels]
    for row in rows:
        print("  ".join(f"{name}={_short(value)}" for name, value in row.items()))
        if row["gram_error"] > 1e-4 or row["dual_error"] > 1e-6:
            raise SystemExit(f"the results of {row['kernel']!r} are off: {row}")
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"machine": machine, "memory": options.memory, "results": rows}, file, indent=2)


if __name__ == "__main__":
    main()
