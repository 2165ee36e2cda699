"""What a GPU would run, run on a CPU device; arrays as CuPy's; what its memory must hold."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from cupy_like import CupyLike, pretend_cupy

import ntkrobust_sk
from ntkrobust_sk import (
    MLP,
    Eigh,
    EmpiricalNTKClassifier,
    Model,
    ResNet18,
    effective_rank,
    gram,
    ntk_features,
    solve,
    top_mass,
)
from ntkrobust_sk import _arrays as _backend
from ntkrobust_sk.analysis.eigenfeatures import leading_eigenpairs
from ntkrobust_sk.execution import devices
from ntkrobust_sk.execution import tiles as tiles_of_rows
from ntkrobust_sk.kernels import blocks, gram_matrix, room
from ntkrobust_sk.kernels.ntk import KERNELS, TraceNTK
from ntkrobust_sk.kernels.predictors import DualPredictor, make_predictor, require_room
from ntkrobust_sk.networks.model import Variables

ROOT = Path(__file__).parent.parent
SHAPE, C = (5,), 3
NETWORK = MLP(n_outputs=C, widths=(8,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), SHAPE))
X = np.random.default_rng(0).normal(size=(11, *SHAPE)).astype(np.float32)
Y = np.eye(C)[np.arange(len(X)) % C]


def cupy_like(monkeypatch):
    """Let the stand-in be taken for what CuPy makes."""
    monkeypatch.setattr(_backend, "is_cupy_array", lambda a: isinstance(a, CupyLike))


# Arrays of CuPy


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_predictor_takes_coefficients_that_live_in_cupy(kernel, monkeypatch):
    cupy_like(monkeypatch)
    offset = np.full(C, 0.1)
    expected = make_predictor(KERNELS[kernel], MODEL, X, Y, offset)(X)
    found = make_predictor(KERNELS[kernel], MODEL, CupyLike(X), CupyLike(Y), CupyLike(offset))(X)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_features_take_a_kernel_that_lives_in_cupy(monkeypatch):
    cupy_like(monkeypatch)
    K, labels = np.asarray(gram("trace", MODEL, X)), np.arange(len(X)) % C

    def attack(model, x, y, *, key):
        return x

    given = ("trace", MODEL, X, labels, X, labels, attack)
    expected = ntk_features(*given, n_features=2, key=jax.random.key(0), K=K)
    found = ntk_features(*given, n_features=2, key=jax.random.key(0), K=CupyLike(K))
    np.testing.assert_array_equal(found.usefulness, expected.usefulness)


def test_spectra_of_a_matrix_in_cupy_are_computed_there_in_double_precision(monkeypatch):
    K = random_gram(40).astype(np.float32)
    expected = effective_rank(K), top_mass(K, 3), leading_eigenpairs(K, 5)
    asked = pretend_cupy(monkeypatch, free=10 * 8 * 40**2)
    assert (effective_rank(CupyLike(K)), top_mass(CupyLike(K), 3)) == expected[:2]
    found = leading_eigenpairs(CupyLike(K), 5)
    for ours, theirs in zip(found, expected[2], strict=True):
        assert type(ours) is np.ndarray
        np.testing.assert_array_equal(ours, theirs)
    assert [type(A) for A in asked] == [CupyLike] * 3 and {A.dtype.name for A in asked} == {"float64"}
    # what lives on the host stays there
    assert effective_rank(K) == expected[0] and len(asked) == 3


def test_spectra_that_find_no_room_in_cupy_are_computed_on_the_host(monkeypatch):
    K = random_gram(40)
    expected = effective_rank(K)
    asked = pretend_cupy(monkeypatch, free=2 * 8 * 40**2)
    assert effective_rank(CupyLike(K)) == expected and not asked


def random_gram(n):
    factors = np.random.default_rng(0).normal(size=(n, 2 * n))
    return factors @ factors.T / n


# Memory


@pytest.fixture
def accelerator(monkeypatch):
    """Set what JAX may take of the device, in bytes."""

    def set_free(free):
        monkeypatch.setattr(room, "free_bytes", lambda device: free)

    return set_free


def amount_named(error) -> int:
    return int(str(error.value).split("memory=")[1].split(" ")[0].replace(",", ""))


@pytest.mark.slow
def test_a_matrix_without_room_on_the_device_is_refused_before_anything_runs(accelerator, monkeypatch, tmp_path):
    rows = np.random.default_rng(0).normal(size=(600, *SHAPE)).astype(np.float32)
    matrix = 4 * 600**2
    accelerator(matrix + 200_000)
    expected = gram("trace", MODEL, rows, memory=200_000)
    computed = gram_matrix.finished_tiles
    monkeypatch.setattr(gram_matrix, "finished_tiles", None)
    with pytest.raises(
        MemoryError, match=r"the matrix 1\.373 MiB, but JAX has only .*XLA_PYTHON_CLIENT"
    ) as caught:
        gram("trace", MODEL, rows, memory=300_000)
    # at a megabyte less there is no room for the matrix alone; a store has it on disk
    accelerator(matrix - 100_000)
    with pytest.raises(MemoryError, match="store="):
        gram("trace", MODEL, rows, memory=200_000)
    accelerator(matrix + 200_000)
    with pytest.raises(MemoryError, match=r"the matrix 4\.12 MiB"):
        gram("class", MODEL, rows, memory=200_000)
    monkeypatch.setattr(gram_matrix, "finished_tiles", computed)
    np.testing.assert_array_equal(gram("trace", MODEL, rows, memory=amount_named(caught)), expected)
    accelerator(matrix - 100_000)
    np.testing.assert_array_equal(gram("trace", MODEL, rows, memory=200_000, store=tmp_path / "K.zarr"), expected)


def test_the_working_space_of_a_small_matrix_is_not_that_of_the_whole_budget(accelerator):
    accelerator(2**22)
    # panels of many rows would fit in two gibibytes, but there are eleven
    np.testing.assert_array_equal(gram("trace", MODEL, X, memory="2GiB"), gram("trace", MODEL, X))


def test_a_solution_without_room_on_the_gpu_is_refused_before_anything_runs(monkeypatch):
    K, targets = random_gram(50), np.ones((50, 1))
    monkeypatch.setattr("ntkrobust_sk.solvers.ridge.is_cupy_array", lambda a: True)
    for solver, n_arrays in (("cholesky", 2), (Eigh(), 5)):
        for free, fits in ((n_arrays * 8 * 50**2, True), (n_arrays * 8 * 50**2 - 1, False)):
            monkeypatch.setattr("ntkrobust_sk.solvers.ridge.gpu_bytes_free", lambda free=free: free)
            if fits:
                assert solve(K, targets, alpha=0.1, solver=solver).shape == (50, 1)
                continue
            with pytest.raises(MemoryError, match=r"a system of 50 takes 0\.0 GiB on the GPU"):
                solve(K, targets, alpha=0.1, solver=solver)


def test_a_machine_whose_solution_finds_no_room_is_refused_before_its_kernel_is_computed(accelerator, monkeypatch):
    labels = np.arange(len(X)) % C
    accelerator(2**30)
    monkeypatch.setattr(room, "on_host", lambda devices: False)
    monkeypatch.setattr(room, "cupy_or_none", lambda: object())
    monkeypatch.setattr(room, "pool_bytes", lambda device: 2**30)
    monkeypatch.setattr(room, "gpu_bytes_free", lambda: 2 * 8 * len(X) ** 2)
    assert EmpiricalNTKClassifier(MODEL).fit(X, labels).score(X, labels) > 0
    monkeypatch.setattr(room, "gpu_bytes_free", lambda: 2 * 8 * len(X) ** 2 - 1)
    monkeypatch.setattr("ntkrobust_sk.estimators.closed_form.gram_of", None)
    with pytest.raises(MemoryError, match=r"solving takes 1\.891 KiB on the GPU in double precision"):
        EmpiricalNTKClassifier(MODEL).fit(X, labels)


def test_free_memory_is_what_the_device_states():
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    assert devices.free_bytes(Device()) is None and devices.free_bytes(jax.devices("cpu")[0]) is None
    device = Device(bytes_limit=100, bytes_in_use=30, pool_bytes=50)
    assert devices.free_bytes(device) == 70 and devices.pool_bytes(device) == 20


# Tiles of rows


def test_accelerators_take_more_rows_of_machines_at_once_where_their_gradients_are_small(monkeypatch):
    model, of = tiles_of_rows.as_pytree(MODEL), (SHAPE, np.float32)
    assert (tiles_of_rows.network_rows(), tiles_of_rows.machine_rows(model, *of, 2**31)) == (128, 50)
    monkeypatch.setattr(devices, "HOST_PLATFORMS", ())
    assert tiles_of_rows.network_rows() == 512
    rows = [tiles_of_rows.machine_rows(model, *of, memory) for memory in (1, 2**16, 2**17, 2**31)]
    assert rows == sorted(rows) and rows[0] == 50 and rows[-1] == 512
    # a row's bytes: the weights are not among them
    wide = MLP(n_outputs=C, widths=(64,))
    wide = Model(wide, wide.init(jax.random.key(0), SHAPE))
    small, large = (
        tiles_of_rows._gradient_bytes(m, (2, *SHAPE), np.dtype("float32"))
        - tiles_of_rows._gradient_bytes(m, (1, *SHAPE), np.dtype("float32"))
        for m in (MODEL, wide)
    )
    assert 4 < large / small < 9
    of_integers = tiles_of_rows.as_pytree(lambda x: 1.0 * x)
    assert tiles_of_rows._gradient_bytes(of_integers, (2, 3), np.dtype("int32")) > 0


@pytest.mark.parametrize("tail", [(), (2,), (2, 2)], ids=len)
def test_blocks_are_placed_by_two_programs_whole_or_cut_off(tail):
    rng, rows = np.random.default_rng(0), 4
    blocks._place.clear_cache()
    for n in (11, 3):
        found = jax.numpy.zeros((n, n, *tail))
        expected = np.zeros((n, n, *tail), np.float32)
        before = blocks._place._cache_size()
        for i in range(0, n, rows):
            for j in range(i, n, rows):
                block = rng.normal(size=(rows, rows, *tail)).astype(np.float32)
                found = blocks.with_block(found, jax.numpy.asarray(block), i, j, i < j)
                expected = blocks.with_block(expected, block, i, j, i < j)
        np.testing.assert_array_equal(found, expected)
        assert blocks._place._cache_size() - before == (2 if n > rows else 1)


def shapes_of(network, shape):
    """The model of a network whose numbers nobody needs."""
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    return Model(network, Variables(*(jax.tree.map(lambda leaf: leaf, part) for part in variables)))


@pytest.mark.slow
def test_the_trace_machine_of_a_resnet_says_what_it_needs_instead_of_running_out_of_memory():
    model = shapes_of(ResNet18(n_outputs=10), (32, 32, 3))
    with pytest.raises(MemoryError, match=r"4\.2 GiB of tangents, or 53\.\d GiB of features of the 500 training"):
        require_room(TraceNTK(), model, (32, 32, 3), (500, 10), 2 * 2**30)
    require_room(TraceNTK(), model, (32, 32, 3), (500, 10), 8 * 2**30)
    # the features of ten points fit
    require_room(TraceNTK(), model, (32, 32, 3), (10, 10), 2 * 2**30)
    require_room(KERNELS["pseudo"], model, (32, 32, 3), (50_000, 10), 2 * 2**30)


@pytest.mark.slow
def test_a_machine_without_room_for_its_predictor_is_refused_before_its_kernel_is_computed(monkeypatch):
    labels, wide = np.arange(len(X)) % C, MLP(n_outputs=C, widths=(64,))
    model = Model(wide, wide.init(jax.random.key(0), SHAPE))
    with pytest.raises(MemoryError, match="give memory="):
        make_predictor(TraceNTK(), model, X, Y, np.zeros(C), memory="10kB")
    monkeypatch.setattr("ntkrobust_sk.estimators.closed_form.gram_of", None)
    with pytest.raises(MemoryError, match="give memory="):
        EmpiricalNTKClassifier(model, memory="10kB").fit(X, labels)


@pytest.mark.slow
def test_a_predictor_keeps_the_dual_form_where_only_that_fits():
    wide = MLP(n_outputs=C, widths=(64,))
    model = Model(wide, wide.init(jax.random.key(0), SHAPE))
    predictor = make_predictor(TraceNTK(), model, X, Y, np.zeros(C), memory="18kB")
    assert type(predictor) is DualPredictor


# Devices


@pytest.mark.slow
@pytest.mark.parametrize("one", ["cpu", jax.local_devices(backend="cpu")[0]], ids=["by name", "itself"])
def test_a_default_device_is_where_everything_is_computed(one):
    expected = gram("trace", MODEL, X)
    with jax.default_device(one):
        assert devices.default_devices() == (jax.local_devices(backend="cpu")[0],)
        assert devices.on_host()
        np.testing.assert_array_equal(gram("trace", MODEL, X), expected)


def test_devices_are_the_hosts_only_if_all_are(monkeypatch):
    class Device:
        def __init__(self, platform):
            self.platform = platform

    assert devices.on_host([Device("cpu"), Device("cpu")])
    assert not devices.on_host([Device("gpu")]) and not devices.on_host([Device("cpu"), Device("gpu")])
    monkeypatch.setattr(devices, "HOST_PLATFORMS", ())
    assert not devices.on_host()


@pytest.mark.slow
def test_the_version_is_known_without_an_installation():
    code = (
        "import importlib.metadata as m\n"
        "def version(name, known=m.version):\n"
        "    if 'ntkrobust' in name: raise m.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "m.version = version\n"
        "import ntkrobust_sk, ntkrobust_sk.cli as cli\n"
        "cli.main(['--version'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == ["ntkrobust_sk", ntkrobust_sk.__version__], found.stderr
    for path in (ROOT / "ntkrobust_sk").glob("*.py"):
        assert 'version("ntkrobust_sk")' not in path.read_text(), path
