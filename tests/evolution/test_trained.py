"""Networks read from a run's folder: the ones that were measured, or an error that says what there is."""

import shutil
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from ntkrobust_sk import MLP, KernelEvolution, load_trained
from ntkrobust_sk.datasets.splits import Splits, load_splits
from ntkrobust_sk.evolution import own_objects
from ntkrobust_sk.evolution.run_directory import RunMismatchError
from ntkrobust_sk.training import DamagedCheckpointError

FEW = KernelEvolution(
    network="mlp",
    normalize=True,
    n_train=60,
    n_test=40,
    n_kernel=20,
    epochs=2,
    flip_epoch=1,
    fractions=(),
    train_steps=1,
    test_steps=2,
    stage2_epochs=1,
    dynamics=("standard", "linearized"),
    n_features=0,
    batch_size=32,
)


OWN = MLP(widths=(16,), n_outputs=10)


@dataclass(frozen=True)
class FewerRelus:
    """A network of a user's own, with the parameters of an MLP."""

    scale: float = 1.0

    def init(self, key, input_shape):
        return OWN.init(key, input_shape)

    def apply(self, params, state, x, *, train=False):
        return OWN.apply(params, state, self.scale * jax.nn.relu(x), train=train)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return FEW.run(tmp_path_factory.mktemp("trained") / "run", progress=False)


def test_networks_are_those_that_were_scored(run):
    splits = load_splits("digits", n_train=60, n_test=40)

    def accuracy(model):
        return float(np.mean(np.argmax(model(splits.X_test), 1) == splits.y_test))

    for record in run.of_kind("checkpoint"):
        model = load_trained(run.path, record["regime"], record["epoch"])
        assert accuracy(model) == pytest.approx(record["clean"])
    assert accuracy(load_trained(run.path, "flip")) == pytest.approx(run.at(0, "flip", 2.0)["clean"])
    for record in run.of_kind("stage 2"):
        how = {"dynamics": record["dynamics"], "training": record["training"]}
        model = load_trained(run.path, record["regime"], record["epoch"], **how)
        assert accuracy(model) == pytest.approx(record["clean"])


def test_states_before_the_flip_are_the_benign_ones(run):
    X = np.full((1, 8, 8, 1), 0.5, np.float32)
    early, benign = (load_trained(run.path, regime, 1.0)(X) for regime in ("flip", "benign"))
    np.testing.assert_array_equal(early, benign)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"regime": "benign", "epoch": 1.5}, LookupError, r"0, 1, 2 of 'benign' with seed 0; stage 2 starts from"),
        ({"regime": "benign", "seed": 3}, LookupError, "no epoch of 'benign' with seed 3"),
        ({"regime": "trades"}, ValueError, "unknown regime 'trades'"),
        ({"regime": "benign", "epoch": -1}, ValueError, "epoch"),
        ({"regime": "benign", "epoch": "last"}, ValueError, "epoch"),
        ({"regime": "benign", "seed": -1}, ValueError, "seed"),
        ({"regime": "benign", "dynamics": "standard"}, ValueError, "dynamics and training go together"),
        (
            {"regime": "benign", "dynamics": "centered", "training": "benign"},
            ValueError,
            "unknown dynamics",
        ),
        ({"regime": "benign", "dynamics": "standard", "training": "fast"}, ValueError, "unknown training"),
        (
            {"regime": "flip", "epoch": 2.0, "dynamics": "standard", "training": "benign"},
            LookupError,
            "stage 2 starts from",
        ),
        ({"regime": "benign", "splits": 5}, TypeError, "splits must be Splits"),
    ],
)
def test_what_is_not_there_is_told(run, given, error, message):
    with pytest.raises(error, match=message):
        load_trained(run.path, **given)


def test_data_of_another_run_are_refused(run):
    X, y, X_test, y_test = load_splits("digits", n_train=60, n_test=40)
    with pytest.raises(RunMismatchError, match="the data are not those"):
        load_trained(run.path, "benign", splits=Splits(X / 2, y, X_test, y_test))


@pytest.mark.parametrize(
    "network, message",
    [
        (MLP(widths=(16,), activation="tanh"), "activation: 'relu' there, 'tanh' here"),
        (MLP(widths=(8,)), "widths"),
        ("mlp", "network: .* there, 'mlp' here"),
        (FewerRelus(), "network"),
    ],
)
def test_another_network_is_refused_even_one_with_the_same_parameters(tmp_path, network, message):
    own = MLP(widths=(16,))
    result = replace(FEW, network=own, regimes=("benign",), stage2_from=()).run(tmp_path / "run", progress=False)
    X = np.full((1, 8, 8, 1), 0.5, np.float32)
    again = load_trained(result.path, "benign", network=own)
    np.testing.assert_array_equal(again(X), load_trained(result.path, "benign")(X))
    with pytest.raises(RunMismatchError, match=message):
        load_trained(result.path, "benign", network=network)


def test_code_of_another_version_of_jax_is_taken_on_trust(tmp_path, monkeypatch):
    own = FewerRelus()
    result = replace(FEW, network=own, regimes=("benign",), stage2_from=()).run(tmp_path / "run", progress=False)
    monkeypatch.setattr(jax, "__version__", "0.0")
    monkeypatch.setattr(own_objects, "fingerprint", lambda *_: ("another way to write it down", None))
    load_trained(result.path, "benign", network=own)


def test_a_damaged_file_is_not_read_and_a_deleted_one_not_made_again(run, tmp_path):
    there = tmp_path / "run"
    shutil.copytree(run.path, there)
    file = there / "checkpoints" / "seed-0" / "benign" / "0002.000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        load_trained(there, "benign")
    file.unlink()
    with pytest.raises(LookupError, match="Run the experiment again"):
        load_trained(there, "benign")
    assert not file.exists()


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_trained(tmp_path, "benign")


def test_an_average_is_what_was_measured(tmp_path):
    experiment = replace(FEW, regimes=("benign",), average_decay=0.5, stage2_from=(), normalize=False)
    result = experiment.run(tmp_path / "run", progress=False)
    splits = load_splits("digits", n_train=60, n_test=40)
    model = load_trained(result.path, "benign")
    found = np.mean(np.argmax(model(splits.X_test), 1) == splits.y_test)
    assert found == pytest.approx(result.at(0, "benign", 2.0)["clean"])
