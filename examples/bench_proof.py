"""The cost of checking that a network is read rightly, beside the first Gram matrix and later ones.

    python examples/bench_proof.py

The proof is made once for a network's structure, shapes and kind of gradients, in whatever process uses it. Prints
processor time, which other processes on the machine change little, and shares of it.
"""

import argparse
import time

import jax
import numpy as np

from ntkrobust_sk import CNN, MLP, Model, ResNet18, gram
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.verification import verify

CASES = {
    "MLP": (MLP(n_outputs=10), (64,), ("trace", "class", "pseudo"), 256),
    "CNN": (CNN(n_outputs=10), (16, 16, 3), ("trace", "class", "pseudo"), 256),
    "ResNet-18": (ResNet18(n_outputs=10), (32, 32, 3), ("pseudo",), 32),
}


def seconds(function) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"{'network':10} {'kernel':7} {'rows':>5} {'proof':>9} {'of first gram':>14} {'later gram':>11}")
    for name, (network, shape, kernels, n) in CASES.items():
        model = Model(network, network.init(jax.random.key(0), shape))
        X = np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)
        for kernel in kernels:
            proof = seconds(lambda: verify(KERNELS[kernel], model, X))  # noqa: B023
            first, later = (seconds(lambda: gram(kernel, model, X)) for _ in range(2))  # noqa: B023
            share = proof / (proof + first)
            print(f"{name:10} {kernel:7} {n:5} {proof:7.2f} s {share:13.0%} {later:9.3f} s", flush=True)


if __name__ == "__main__":
    main()
