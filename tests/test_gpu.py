"""What a GPU would run, run on a CPU device; arrays as CuPy's; what its memory must hold."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from cupy_like import CupyLike

import ntkrobust_sk
from ntkrobust_sk import MLP, EmpiricalNTKClassifier, Model, ResNet18, gram, ntk_features
from ntkrobust_sk import _arrays as _backend
from ntkrobust_sk.execution import devices
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


# Memory


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
    monkeypatch.setattr("ntkrobust_sk.estimators.tangent_machine.gram_of", None)
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
