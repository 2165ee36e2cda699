"""Memory while the number of rows changes: 200 fits and attacks, each on another number of them.

Prints the resident memory after 20, 60, 100, 150 and 200: ``python examples/check_memory.py``. What is compiled by
the number of rows would let it rise for ever.
"""

import argparse

import jax
import numpy as np

from ntkrobust_sk import MLP, PGD, EmpiricalNTKClassifier, Model, gram

LOOKS = (20, 60, 100, 150, 200)


def resident_mib() -> float:
    """Resident memory of this process, in MiB, as Linux tells it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def main():
    """Fit, attack, predict and compute a Gram matrix on ever other numbers of rows."""
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(600, 8)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 1).astype(int)
    network = MLP(n_outputs=2, widths=(32,))
    model = Model(network, network.init(jax.random.key(0), (8,)))
    sizes = 150 + rng.permutation(400)[: max(LOOKS)]
    print("| different numbers of rows | resident, MiB |\n|---|---|")
    for count, n in enumerate(sizes.tolist(), 1):
        machine = EmpiricalNTKClassifier(model, random_state=0).fit(X[:n], y[:n])
        machine.robust_score(X[:n], y[:n], PGD(0.1, 3))
        machine.predict(X[:n])
        gram("trace", model, X[:n])
        if count in LOOKS:
            print(f"| {count} | {resident_mib():.0f} |", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
