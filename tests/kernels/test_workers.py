"""Gram matrices by several processes, and over several devices in one: the same matrix, also when one dies."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from ntkrobust_sk import CNN, MLP, ClassNTK, Model, TraceNTK, gram
from ntkrobust_sk.kernels.plan import fixed_plan

SHAPE = (4, 4, 1)
NETWORK = CNN(n_outputs=3, widths=(3,), strides=(1,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), SHAPE))
X = np.random.default_rng(0).normal(size=(61, *SHAPE)).astype(np.float32)
PLAN = fixed_plan(TraceNTK(), MODEL, SHAPE, 4, 3)


@pytest.mark.slow
def test_two_processes_compute_the_matrix_of_one(tmp_path):
    expected, part = gram("trace", MODEL, X, plan=PLAN), gram("trace", MODEL, X[:9], X[20:], plan=PLAN)
    np.testing.assert_array_equal(gram("trace", MODEL, X, plan=PLAN, n_jobs=2), expected)
    np.testing.assert_array_equal(gram("trace", MODEL, X[:9], X[20:], plan=PLAN, n_jobs=2), part)
    with joblib.parallel_config(n_jobs=2):
        stored = gram("trace", MODEL, X, plan=PLAN, store=tmp_path / "K.zarr")
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.slow
def test_two_processes_take_several_passes_and_keep_layers_apart():
    plan = fixed_plan(ClassNTK(), MODEL, SHAPE, 4, 3, 2)
    np.testing.assert_array_equal(
        gram("class", MODEL, X[:21], plan=plan, n_jobs=2), gram("class", MODEL, X[:21], plan=plan)
    )
    expected = gram("trace", MODEL, X[:21], plan=PLAN, by_layer=True)
    found = gram("trace", MODEL, X[:21], plan=PLAN, by_layer=True, n_jobs=2)
    for path, K in expected.items():
        np.testing.assert_array_equal(found[path], K)


def slowly(model, x1, x2):
    def wait(product):
        time.sleep(0.04)
        return product

    product = model(x1) @ model(x2).T
    return jax.pure_callback(wait, product, product)


def killed_soon(pid, after=1.0):
    thread = threading.Timer(after, os.kill, (pid, signal.SIGKILL))
    thread.start()
    return thread


# Dask computes a dead worker's tasks again by itself, unless their inputs died with it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:a worker was lost:RuntimeWarning")
def test_a_dask_cluster_computes_the_same_although_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    expected = gram("trace", MODEL, X, plan=PLAN)
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "local_directory": str(tmp_path),
    }
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        with joblib.parallel_config(backend="dask"):
            np.testing.assert_array_equal(gram("trace", MODEL, X, plan=PLAN), expected)
        plan = fixed_plan(slowly, MODEL, SHAPE, 4, 3)
        alone = gram(slowly, MODEL, X, plan=plan)
        pid = next(iter(client.run(os.getpid).values()))
        with joblib.parallel_config(backend="dask"):
            killer = killed_soon(pid)
            found = gram(slowly, MODEL, X, plan=plan)
        assert not killer.is_alive(), "the matrix was finished before the worker was killed"
        assert pid not in client.run(os.getpid).values()
    np.testing.assert_array_equal(found, alone)


def dies_once(model, x1, x2):
    """The logits' kernel, in whose first use in another process that process dies."""

    def die(product):
        mark = os.environ["NTKROBUST_TEST_MARK"]
        if os.getpid() != int(os.environ["NTKROBUST_TEST_PARENT"]) and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return product

    product = model(x1) @ model(x2).T
    return jax.pure_callback(die, product, product)


@pytest.mark.slow
def test_tiles_of_a_process_that_dies_are_computed_again_with_a_warning(tmp_path, monkeypatch):
    # workers that are there already would not see the environment
    get_reusable_executor().shutdown(wait=True)
    monkeypatch.setenv("NTKROBUST_TEST_MARK", str(tmp_path / "died"))
    monkeypatch.setenv("NTKROBUST_TEST_PARENT", str(os.getpid()))
    plan = fixed_plan(dies_once, MODEL, SHAPE, 4, 3)
    with (
        joblib.parallel_config(backend="loky", inner_max_num_threads=1),
        pytest.warns(RuntimeWarning, match="lost"),
    ):
        found = gram(dies_once, MODEL, X[:21], plan=plan, n_jobs=2)
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(found, gram(dies_once, MODEL, X[:21], plan=plan))


DEVICES = """
import jax, numpy as np, sys
from ntkrobust_sk import CNN, Model, gram
from ntkrobust_sk.kernels import KERNELS
from ntkrobust_sk.kernels.plan import make_plan
assert len(jax.devices()) == 4
network = CNN(n_outputs=3, widths=(3,), strides=(1,))
model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
X = np.random.default_rng(0).normal(size=(61, 4, 4, 1)).astype(np.float32)
plan = make_plan(KERNELS["trace"], model, (4, 4, 1), 100_000)
assert len(plan.devices) == 4 and plan.rows % 4 == 0 and 61 % plan.rows
results = {name: gram(name, model, X, memory=100_000) for name in KERNELS}
results |= {"part": gram("trace", model, X[:9], X[20:], memory=100_000)}
with jax.default_device(jax.devices()[2]):
    assert make_plan(KERNELS["trace"], model, (4, 4, 1), 100_000).devices == (jax.devices()[2],)
    results |= {"one": gram("trace", model, X, memory=100_000)}
np.savez(sys.argv[1], **results)
"""


@pytest.mark.slow
def test_four_devices_compute_the_matrix_of_one_whatever_the_number_of_rows(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "found.npz")]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, check=True)
    found = np.load(tmp_path / "found.npz")
    for name in ("trace", "class", "full", "pseudo"):
        expected = gram(name, MODEL, X)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    trace = gram("trace", MODEL, X)
    np.testing.assert_allclose(found["part"], trace[:9, 20:], rtol=0, atol=2e-6 * trace.max())
    np.testing.assert_allclose(found["one"], trace, rtol=0, atol=2e-6 * trace.max())


@pytest.mark.slow
def test_models_come_to_workers_whole():
    network = MLP(n_outputs=2, widths=(3,))
    model = Model(network, network.init(jax.random.key(0), (4,)))
    rows = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(gram("full", model, rows, n_jobs=2), gram("full", model, rows), rtol=1e-6)
