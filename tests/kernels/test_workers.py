"""Gram matrices by several processes, and over several devices in one: the same matrix, also when one dies."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import product

import jax
import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from ntkrobust_sk import CNN, MLP, ClassNTK, Model, TraceNTK, gram
from ntkrobust_sk.kernels.plan import fixed_plan
from ntkrobust_sk.kernels.workers import pieces_for

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


@pytest.mark.slow
def test_each_dask_worker_sees_a_gpu_of_its_own(request, monkeypatch, capsys):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.syspath_prepend(request.config.rootpath / "examples")
    dask_gpus = importlib.import_module("dask_gpus")
    K = dask_gpus.main(["--gpus", "2", "--n", "21"])
    assert capsys.readouterr().out.splitlines() == ["GPUs that workers see: 0 1", "a matrix of shape (21, 21)"]
    network = CNN(n_outputs=3, widths=(4,), strides=(2,))
    model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    rows = np.random.default_rng(0).random((21, 8, 8, 1), dtype=np.float32)
    np.testing.assert_allclose(K, gram("trace", model, rows), rtol=0, atol=2e-6 * K.max())


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
import sys, threading
import jax, numpy as np
from ntkrobust_sk import CNN, Model, gram
from ntkrobust_sk.execution import devices
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels import KERNELS, workers
from ntkrobust_sk.kernels.plan import fixed_plan, make_plan

assert len(jax.devices()) == 4
network = CNN(n_outputs=3, widths=(3,), strides=(1,))
model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
X = np.random.default_rng(0).normal(size=(61, 4, 4, 1)).astype(np.float32)
assert len(make_plan(KERNELS["trace"], model, (4, 4, 1), "1MiB").devices) == 4

def plan_of(name):
    return fixed_plan(KERNELS[name], model, (4, 4, 1), 4, 3)

# every device has begun before one of them goes on
compute, all_there, seen, tiles = workers.compute_tiles, None, {}, []

def watched(job, piece):
    device, = job.plan.devices
    if device not in seen:
        seen[device] = threading.get_ident()
        all_there.wait(timeout=120)
    tiles.extend(piece)
    return compute(job, piece)

def on_all(*arguments, **options):
    global all_there
    all_there = threading.Barrier(4)
    seen.clear(), tiles.clear()
    K = gram(*arguments, plan=plan_of(arguments[0]), **options)
    assert set(seen) == set(jax.devices()) and len(set(seen.values())) == 4
    assert len(set(tiles)) == len(tiles)
    return K

workers.compute_tiles = watched
results = {name: on_all(name, model, X) for name in KERNELS}
results["part"] = on_all("trace", model, X[:29], X[20:])
results["stored"] = on_all("trace", model, X, store=sys.argv[1] + ".zarr")
layers = on_all("trace", model, X, by_layer=True)
results["layers"] = sum(layers.values())
with enable_x64(True):
    double = jax.tree.map(lambda leaf: leaf.astype("float64"), model)
    results["double"] = on_all("trace", double, X.astype(float))
assert results["double"].dtype == float
workers.compute_tiles = compute
with jax.default_device(jax.devices()[2]):
    assert make_plan(KERNELS["trace"], model, (4, 4, 1), "1MiB").devices == (jax.devices()[2],)
    for name in KERNELS:
        results["one " + name] = gram(name, model, X, plan=plan_of(name))
    results["one part"] = gram("trace", model, X[:29], X[20:], plan=plan_of("trace"))

def fails(job, piece):
    found = watched(job, piece)
    if job.plan.devices == (jax.devices()[1],):
        raise ValueError("device 1 has failed")
    return found

workers.compute_tiles, before = fails, set(threading.enumerate())
try:
    on_all("trace", model, X)
except ValueError as error:
    assert str(error) == "device 1 has failed"
else:
    raise AssertionError("the failure of a device was not told")
assert set(threading.enumerate()) <= before

# as accelerators do it
devices.HOST_PLATFORMS = ()
workers.compute_tiles = watched
from ntkrobust_sk.kernels import abstract_features, plan as planning
for cached in (abstract_features.compiled_features, abstract_features._shapes, planning._plan):
    cached.cache_clear()
jax.clear_caches()
for dtype in (None, "float64"):
    for name in ("trace", "class"):
        K = on_all(name, model, X, dtype=dtype)
        assert isinstance(K, jax.Array) and K.devices() == {jax.devices()[0]}
        assert K.dtype == (dtype or "float32")
        results[f"{name} {dtype}"] = np.asarray(K)
np.savez(sys.argv[1], **results)
"""


@pytest.mark.slow
def test_four_devices_share_the_tiles_and_compute_the_matrix_of_one(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "found.npz")]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, check=True)
    found = np.load(tmp_path / "found.npz")
    for name in ("trace", "class", "full", "pseudo"):
        np.testing.assert_array_equal(found[name], found[f"one {name}"])
        expected = gram(name, MODEL, X)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(found["part"], found["one part"])
    np.testing.assert_array_equal(found["stored"], found["trace"])
    trace = found["trace"].astype(float)
    for name in ("layers", "double", "trace None", "trace float64"):
        np.testing.assert_allclose(found[name], trace, rtol=0, atol=2e-6 * trace.max())
        np.testing.assert_array_equal(found[name], found[name].T)
    np.testing.assert_allclose(found["class None"], found["class"], rtol=0, atol=2e-6 * found["class"].max())


def test_pieces_hold_every_tile_once_and_begin_on_the_diagonal():
    for n_tiles, panel, n_workers in product((1, 2, 7, 30), (1, 3, 100), (1, 2, 8)):
        tiles = [(i, j) for i in range(n_tiles) for j in range(i, n_tiles)]
        pieces = pieces_for(tiles[::-1], panel, n_workers)
        assert sorted(tile for piece in pieces for tile in piece) == tiles
        for piece in pieces:
            assert len({i for i, _ in piece}) <= panel
            # a worker finds a diagonal tile of its piece by that
            if any(i == j for i, j in piece):
                assert min(i for i, _ in piece) == min(j for _, j in piece)
        assert len(pieces) >= min(len(tiles), n_workers)


@pytest.mark.slow
def test_models_come_to_workers_whole():
    network = MLP(n_outputs=2, widths=(3,))
    model = Model(network, network.init(jax.random.key(0), (4,)))
    rows = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(gram("full", model, rows, n_jobs=2), gram("full", model, rows), rtol=1e-6)
