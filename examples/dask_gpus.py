"""A Gram matrix by the Dask workers of one machine, each of which sees one GPU alone.

    python examples/dask_gpus.py --gpus 8

Without GPUs the same workers compute on the CPU, and the matrix is the same.
"""

from __future__ import annotations

import argparse
import os

import jax
import joblib
import numpy as np
from distributed import Client, Nanny, Scheduler, SpecCluster

from ntkrobust_sk import CNN, Model, gram


def cluster_of(n_gpus: int) -> SpecCluster:
    """Start one worker for each GPU; each has one thread, and its environment names the one GPU that it sees."""
    workers = {
        gpu: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "host": "127.0.0.1",
                "env": {"CUDA_VISIBLE_DEVICES": str(gpu), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            },
        }
        for gpu in range(n_gpus)
    }
    return SpecCluster(
        workers, {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}
    )


def main(arguments=None) -> np.ndarray:
    """Compute a small matrix, and print which GPU each worker sees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--n", type=int, default=64)
    options = parser.parse_args(arguments)
    network = CNN(n_outputs=3, widths=(4,), strides=(2,))
    model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    X = np.random.default_rng(0).random((options.n, 8, 8, 1), dtype=np.float32)
    with cluster_of(options.gpus) as cluster, Client(cluster) as client:
        client.wait_for_workers(options.gpus)
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        print("GPUs that workers see:", *sorted(seen.values()))
        with joblib.parallel_config(backend="dask"):
            K = gram("trace", model, X, memory="1GiB")
    print("a matrix of shape", K.shape)
    return K


if __name__ == "__main__":
    main()
