"""``precision=`` of an experiment: its networks and kernels round, and folders from before go on as they are."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ntkrobust_sk import KernelEvolution, MixedPrecision, Normalized, gram, load_evolution
from ntkrobust_sk.cli.command import main
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution import running
from ntkrobust_sk.evolution.run_directory import RunDirectory, RunMismatchError
from ntkrobust_sk.evolution.states import States
from ntkrobust_sk.evolution.tasks import Measurements
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.networks.precision import precision_of

EXACT = KernelEvolution(
    network="mlp", n_train=120, n_test=40, n_kernel=30, epochs=1, flip_epoch=1, fractions=(0.5,), n_features=1,
    train_steps=2, test_steps=3, stage2_epochs=1, regimes=("benign",), dynamics=("standard",), stage2=("benign",),
)  # fmt: skip
ROUNDED = replace(EXACT, precision="bf16")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The same experiment in float32 and in bf16."""
    folder = tmp_path_factory.mktemp("precision")
    return [each.run(folder / str(each.precision), progress=False) for each in (EXACT, ROUNDED)]


@pytest.mark.slow
def test_networks_and_kernels_of_a_run_are_in_its_precision(results):
    exact, rounded = results
    assert rounded.experiment.precision == "bf16" and exact.experiment.precision is None
    measurements = Measurements(
        States(rounded.experiment, RunDirectory(rounded.path), load_splits("digits", n_train=120, n_test=40)),
        rounded.results,
    )
    model = measurements.model(0, "benign", 1.0)
    assert isinstance(model.network, MixedPrecision) and model.network.precision == "bf16"
    X, _ = measurements.states.examples.kernel
    # written in tiles, which sum in another order than the one program of a small matrix
    np.testing.assert_allclose(rounded.kernel(0, "benign", 1.0), gram("trace", model, X, dtype="bf16"), rtol=1e-6)
    # the same weights to begin with, and rounding from there on
    K, K_rounded = (result.kernel(0, "benign", 0.0) for result in results)
    assert 1e-4 < np.abs(K - K_rounded).max() / K.max() < 2e-2
    for kind in ("checkpoint", "stage 2", "closed form"):
        for a, b in zip(exact.of_kind(kind), rounded.of_kind(kind), strict=True):
            assert abs(a["clean"] - b["clean"]) <= 2 / 40 and abs(a["robust"] - b["robust"]) <= 2 / 40


@pytest.mark.slow
def test_a_folder_without_the_setting_goes_on_in_float32_and_in_nothing_else(results, tmp_path, monkeypatch):
    """As an earlier version has left it, in the middle of its work."""
    settings_of = running.settings_of

    def as_before(experiment, splits):
        settings = settings_of(experiment, splits)
        return {name: value for name, value in settings.items() if name != "precision"}

    with monkeypatch.context() as patch:
        patch.setattr(running, "settings_of", as_before)
        EXACT.run(tmp_path / "run", progress=False)
    file = tmp_path / "run" / "settings.json"
    before = file.read_bytes()
    assert "precision" not in json.loads(before)
    lines = (tmp_path / "run" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_bytes(b"".join(lines[:2]))
    assert load_evolution(tmp_path / "run").experiment == EXACT
    with pytest.raises(RunMismatchError, match=r"precision: None there, 'bf16' here"):
        ROUNDED.run(tmp_path / "run", progress=False)
    again = EXACT.run(tmp_path / "run", progress=False)
    assert again.results == results[0].results and file.read_bytes() == before
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.slow
def test_a_run_in_another_precision_is_refused_with_the_difference(results):
    for experiment, message in (
        (EXACT, "'bf16' there, None here"),
        (replace(EXACT, precision="tf32"), "'tf32' here"),
    ):
        with pytest.raises(RunMismatchError, match=f"precision: .*{message}"):
            experiment.run(results[1].path, progress=False)


def test_a_normalised_network_rounds_too_and_double_precision_is_refused(tmp_path):
    splits = load_splits("digits", n_train=120, n_test=40)
    states = States(replace(ROUNDED, normalize=True), RunDirectory(tmp_path), splits)
    network = states.first_model(0).network
    assert precision_of(network) == "bf16" and isinstance(network.network, Normalized)
    with enable_x64(True), pytest.raises(ValueError, match=r"rounds products of float32.*are in float64"):
        states.first_model(0)


@pytest.mark.parametrize("precision", ["fp8", "float32", 16, ["bf16"]])
def test_another_is_refused_with_those_that_are_known(precision):
    with pytest.raises(ValueError, match=r"unknown precision .*; known are 'bf16', 'tf32', or None"):
        KernelEvolution(precision=precision)


def test_the_command_takes_it_and_names_those_that_it_knows(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(KernelEvolution, "run", lambda self, out: seen.append(self) or 1 / 0)
    assert main(["evolve", "--out", str(tmp_path / "x"), "--precision", "tf32"]) == 2
    assert main(["evolve", "--out", str(tmp_path / "x")]) == 2
    assert [experiment.precision for experiment in seen] == ["tf32", None]
    with pytest.raises(SystemExit, match="2"):
        main(["evolve", "--out", "x", "--precision", "fp8"])
    error = capsys.readouterr().err
    assert "--precision: invalid choice: 'fp8'" in error and "bf16" in error
