"""The two-stage experiment: what it finds, and that it goes on where it was stopped."""

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ntkrobust_sk import (
    PGD,
    Clean,
    KernelEvolution,
    effective_rank,
    gram,
    kernel_distance,
    kernel_velocity,
    load_evolution,
    polar_dynamics,
    train,
    write_report,
)
from ntkrobust_sk.cli.command import main
from ntkrobust_sk.datasets.splits import Splits, load_splits
from ntkrobust_sk.evolution.claims import check_claims
from ntkrobust_sk.evolution.experiment import settings_of
from ntkrobust_sk.evolution.presets import preset
from ntkrobust_sk.evolution.run_directory import RunDirectory, RunMismatchError
from ntkrobust_sk.evolution.states import States
from ntkrobust_sk.evolution.tasks import Measurements, class_correlations

# An MLP, because it compiles in no time.
SMALL = KernelEvolution(
    network="mlp",
    n_train=120,
    n_test=40,
    n_kernel=30,
    epochs=4,
    flip_epoch=2,
    fractions=(0.5,),
    train_steps=2,
    test_steps=3,
    stage2_epochs=2,
    dynamics=("standard", "centered"),
    n_features=2,
    batch_size=32,
    seeds=2,
)
# the same, as options of the command
GIVEN = {
    "network": "mlp",
    "n-train": "120",
    "n-test": "40",
    "n-kernel": "30",
    "epochs": "4",
    "flip-epoch": "2",
    "fractions": "0.5",
    "train-steps": "2",
    "test-steps": "3",
    "stage2-epochs": "2",
    "n-features": "2",
    "batch-size": "32",
    "seeds": "2",
}
OPTIONS = ["--dynamics", "standard", "centered"]
OPTIONS += [part for name, value in GIVEN.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole run, of which no warning is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SMALL.run(tmp_path_factory.mktemp("evolution") / "run", progress=False)


def final_bytes(path):
    return (Path(path) / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_every_state_regime_and_stage_is_measured(result):
    epochs = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0]
    assert SMALL.checkpoints == tuple(epochs)
    for seed in (0, 1):
        assert result.epochs(seed, "benign") == result.epochs(seed, "adversarial") == epochs
        assert result.epochs(seed, "flip") == epochs
    assert [r["epoch"] for r in result.of_kind("checkpoint", seed=0, regime="flip")] == [3.0, 4.0]
    assert len(result.of_kind("stage 2")) == 2 * 2 * 2 * 2
    assert len(result.of_kind("closed form")) == 2 * 2
    assert len(result.of_kind("transfer")) == 2 and len(result.of_kind("images")) == 6
    for found in result.of_kind("checkpoint") + result.of_kind("stage 2") + result.of_kind("closed form"):
        assert 0 <= found["robust"] <= found["clean"] <= 1
    assert all(r["robust_restarts"] <= r["robust"] for r in result.of_kind("stage 2"))


@pytest.mark.slow
def test_results_hold_nothing_that_json_does_not(result):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for line in final_bytes(result.path).splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_tidy_table_has_a_row_for_each_result_and_a_column_for_each_number(result):
    frame = result.to_frame()
    assert len(frame) == 2 * (6 + 6 + 2)
    assert {"seed", "regime", "epoch", "clean", "robust", "clean_effective_rank"} <= set(frame.columns)
    assert frame.select_dtypes("number").notna().drop(columns="loss").all().all()
    stage2 = result.to_frame("stage 2")
    assert stage2.groupby(["dynamics", "training"]).size().eq(4).all()


def test_all_regimes_of_a_seed_start_from_the_same_network_and_seeds_differ(result):
    first = [result.kernel(seed, regime, 0.0) for seed in (0, 1) for regime in ("benign", "adversarial", "flip")]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])
    assert kernel_distance(first[0], first[3]) > 1e-4


def test_a_stored_kernel_is_that_of_the_state_it_names(result):
    measurements = measurements_of(result)
    model = measurements.model(0, "adversarial", 2.0)
    K = gram("trace", model, measurements.states.examples.kernel[0])
    np.testing.assert_allclose(result.kernel(0, "adversarial", 2.0), K, rtol=1e-5, atol=1e-5 * K.max())
    measured = result.at(0, "adversarial", 2.0)
    assert measured["clean_effective_rank"] == pytest.approx(effective_rank(K), rel=1e-4)
    assert sum(layer["share"] for layer in measured["layers"].values()) == pytest.approx(1, abs=1e-5)


def measurements_of(result):
    splits = load_splits("digits", n_train=SMALL.n_train, n_test=SMALL.n_test)
    return Measurements(States(result.experiment, RunDirectory(result.path), splits), result.results)


def test_flip_is_the_benign_network_before_and_the_adversarial_training_of_it_after(result):
    np.testing.assert_array_equal(result.kernel(0, "flip", 2.0), result.kernel(0, "benign", 2.0))
    assert kernel_distance(result.kernel(0, "flip", 4.0), result.kernel(0, "benign", 4.0)) > 1e-6


def test_flip_trains_on_from_the_benign_state_clean_step_then_adversarial(result):
    states = measurements_of(result).states
    benign, flipped = states.at(0, "benign", 2.0), states.at(0, "flip", 3.0)
    stage = states.stage("adversarial", SMALL.learning_rate)
    X, y = states.examples.training
    options = {"optimizer": stage.transformation, "attacks": (Clean(), SMALL.train_attack), "batch_size": 32}
    (expected,) = train(benign, X, y, epochs=(3.0,), **options)
    params = (jax.tree.leaves(state.model.variables.params) for state in (expected, flipped))
    for a, b in zip(*params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_state_of_stage_2_is_trained_again(result):
    measurements = measurements_of(result)
    states, model = measurements.states, measurements.model(0, "benign", 4.0)
    arguments = (0, "benign/4/centered/benign", model, "centered", "benign")
    before = states.after_stage_two(*arguments)
    (file,) = result.path.joinpath(*states.folder(0, "stage2/benign/4/centered/benign")).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    with pytest.warns(RuntimeWarning, match="damaged"):
        after = states.after_stage_two(*arguments)
    for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert file.read_bytes() == whole


def test_velocity_and_polar_dynamics_are_those_of_the_stored_kernels(result):
    epochs = result.epochs(0, "benign")
    kernels = [result.kernel(0, "benign", epoch) for epoch in epochs]
    at, velocity = result.velocity(0, "benign")
    np.testing.assert_allclose(at, [0.25, 0.75, 1.5, 2.5, 3.5])
    assert velocity[1] == kernel_velocity(kernels[1], kernels[2], 0.5)
    _, radius, angle = result.polar(0, "benign")
    assert (radius[3], angle[3]) == polar_dynamics(kernels[3], kernels[0], kernels[-1])
    assert radius[0] == angle[0] == 0 and radius[-1] == pytest.approx(1)


def test_a_transfer_matrix_has_each_models_own_robust_accuracy_on_its_diagonal(result):
    transfer = result.of_kind("transfer", seed=0)[0]
    own = dict(zip(transfer["names"], np.diag(transfer["matrix"]), strict=True))
    assert len(own) == 2 * (2 + 4)
    for found in result.of_kind("stage 2", seed=0):
        name = f"{found['regime']}/{found['epoch']:g}/{found['dynamics']}/{found['training']}"
        assert own[name] == found["robust"]
    for found in result.of_kind("closed form", seed=0):
        assert own[f"{found['regime']}/{found['epoch']:g}/closed-form"] == found["robust"]
    for regime in ("benign", "adversarial"):
        assert own[f"{regime}/4/network"] == result.at(0, regime, 4.0)["robust"]


@pytest.mark.slow
def test_centred_stage_2_starts_from_nothing_and_linearised_from_the_network(tmp_path):
    experiment = replace(
        SMALL,
        dynamics=("standard", "linearized", "centered"),
        stage2=("benign",),
        stage2_epochs=0,
        seeds=1,
        epochs=1,
        flip_epoch=1,
        fractions=(),
        stage2_from=None,
        regimes=("benign",),
    )
    result = experiment.run(tmp_path / "run", progress=False)
    scores = {r["dynamics"]: r["clean"] for r in result.of_kind("stage 2", training="benign")}
    assert scores["linearized"] == scores["standard"] == result.at(0, "benign", 1.0)["clean"]
    labels = load_splits("digits", n_train=120, n_test=40).y_test
    assert scores["centered"] == np.mean(labels == 0)


def test_running_again_changes_nothing(result):
    before = final_bytes(result.path)
    again = SMALL.run(result.path, progress=False)
    assert final_bytes(result.path) == before and again.results == result.results


@pytest.mark.slow
@pytest.mark.parametrize("n_results", [pytest.param(1, marks=pytest.mark.sweep), 20])
def test_a_run_that_is_killed_and_started_again_finds_the_same_to_the_bit(result, tmp_path, n_results):
    out = tmp_path / "run"
    # tasks go seed by seed, so one seed's results are the first of two's
    expected = b"".join(line for line in final_bytes(result.path).splitlines(True) if b'"seed": 0' in line)
    assert final_bytes(result.path).startswith(expected)

    def found():
        return final_bytes(out).count(b"\n") if (out / "results.jsonl").exists() else 0

    command = [sys.executable, "-m", "ntkrobust_sk", "evolve", "--out", str(out), *OPTIONS, "--seeds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while found() < n_results and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert n_results <= found() < expected.count(b"\n")
    replace(SMALL, seeds=1).run(out, progress=False)
    assert final_bytes(out) == expected


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_computed_again_from_the_last_good_one(result, tmp_path):
    experiment = replace(SMALL, seeds=1, stage2=(), regimes=("benign",), stage2_from=(), n_features=0)
    out = tmp_path / "run"
    whole = final_bytes(experiment.run(out, progress=False).path)
    file = out / "checkpoints" / "seed-0" / "benign" / "0002.000.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-3] + b"abc")
    (out / "results.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match=r"0002\.000\.safetensors is damaged"):
        experiment.run(out, progress=False)
    assert final_bytes(out) == whole and file.read_bytes() == kept


TINY = replace(
    SMALL, seeds=1, regimes=("benign",), epochs=1, flip_epoch=1, fractions=(0.5,), stage2_epochs=1, n_features=1,
    dynamics=("centered",), stage2=("benign",),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.run(tmp_path_factory.mktemp("tiny") / "run", progress=False)


@pytest.fixture
def copied(tiny, tmp_path):
    """The folder of a finished run, to be ruined."""
    return Path(shutil.copytree(tiny.path, tmp_path / "run"))


def swap(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second), b.write_bytes(first)


@pytest.mark.slow
def test_states_at_each_other_s_places_are_found_and_trained_again(tiny, copied):
    states = copied / "checkpoints" / "seed-0" / "benign"
    before = [(states / f"000{epoch}00.safetensors").read_bytes() for epoch in ("0.5", "1.0")]
    swap(states / "0000.500.safetensors", states / "0001.000.safetensors")
    (copied / "results.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match=r"0000\.500\.safetensors is of something else: .*0001\.000"):
        TINY.run(copied, progress=False)
    assert final_bytes(copied) == final_bytes(tiny.path)
    assert [(states / f"000{epoch}00.safetensors").read_bytes() for epoch in ("0.5", "1.0")] == before


@pytest.mark.slow
def test_states_and_images_of_another_run_are_not_taken_for_this_one(copied, tmp_path):
    other = replace(TINY, random_state=1).run(tmp_path / "other", progress=False)
    state = Path("checkpoints", "seed-0", "benign", "0001.000.safetensors")
    image = Path("images", "seed-0", "benign.safetensors")
    for file in (state, image):
        shutil.copy(other.path / file, copied / file)
    states = measurements_of(load_evolution(copied)).states
    with pytest.warns(RuntimeWarning, match=r"0001\.000\.safetensors is of something else"):
        states.at(0, "benign", 1.0)
    with pytest.raises(OSError, match=r"benign\.safetensors is of something else"):
        load_evolution(copied).images(0, "benign")
    with pytest.warns(RuntimeWarning, match="the task 0/benign/images is done again"):
        TINY.run(copied, progress=False)
    assert set(load_evolution(copied).images(0, "benign")) == {"regression", "eigenvector"}


@pytest.mark.slow
def test_a_kernel_that_is_not_the_one_that_was_measured_is_found_and_computed_again(tiny, copied):
    kernels = [copied / "kernels" / f"seed-0-benign-000{epoch}00-clean.zarr" for epoch in ("0.0", "1.0")]
    kernels[0].rename(copied / "aside")
    kernels[1].rename(kernels[0])
    (copied / "aside").rename(kernels[1])
    result = load_evolution(copied)
    with pytest.raises(OSError, match=r"0000\.000-clean\.zarr does not hold the kernel that was measured"):
        result.kernel(0, "benign", 0.0)
    with pytest.warns(RuntimeWarning, match="0000.000-clean.zarr does not hold"):
        again = TINY.run(copied, progress=False)
    np.testing.assert_array_equal(again.kernel(0, "benign", 0.0), tiny.kernel(0, "benign", 0.0))
    assert sorted(final_bytes(copied).splitlines()) == sorted(final_bytes(tiny.path).splitlines())


@pytest.mark.slow
def test_damaged_adversarial_examples_are_made_again(tiny, copied):
    (file,) = (copied / "adversarial" / "seed-0").glob("*closed-form*")
    whole = file.read_bytes()
    for content in (whole[:-1] + b"x", whole[:50], b""):
        file.write_bytes(content)
        lines = final_bytes(tiny.path).splitlines(keepends=True)
        (copied / "results.jsonl").write_bytes(
            b"".join(line for line in lines if b'"kind": "transfer"' not in line)
        )
        with pytest.warns(RuntimeWarning, match="closed-form.safetensors .*/closed-form is done again"):
            TINY.run(copied, progress=False)
        assert file.read_bytes() == whole
        assert sorted(final_bytes(copied).splitlines()) == sorted(final_bytes(tiny.path).splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["adversarial", "checkpoints", "images"])
def test_any_damaged_file_of_a_finished_run_is_found_and_made_again(tiny, copied, folder):
    files = sorted((copied / folder).rglob("*.safetensors"))
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(RuntimeWarning, match="is done again") as told:
        TINY.run(copied, progress=False)
    said = " ".join(str(one.message) for one in told)
    for file, content in zip(files, whole, strict=True):
        assert file.name in said and file.read_bytes() == content
    assert sorted(final_bytes(copied).splitlines()) == sorted(final_bytes(tiny.path).splitlines())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TINY.run(copied, progress=False)


def test_states_that_were_deleted_to_make_room_are_no_damage(tiny, copied):
    shutil.rmtree(copied / "checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TINY.run(copied, progress=False)
    assert not (copied / "checkpoints").exists() and final_bytes(copied) == final_bytes(tiny.path)


def table_and_images(n=45):
    """Rows of a table in three classes, and the same as images."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    X = np.clip(rng.normal(size=(n, 4)) / 8 + y[:, None] / 3, 0, 1).astype(np.float32)
    return Splits(X[15:], y[15:], X[:15], y[:15])


@pytest.mark.slow
def test_rows_of_a_table_are_reported_without_images(tmp_path):
    page = write_report(TINY.run(tmp_path / "run", splits=table_and_images(), progress=False)).read_text()
    assert "each leading eigenfeature" in page and "started from grey" not in page


@pytest.mark.slow
def test_kernels_of_all_examples_are_estimated_and_those_of_some_are_kept(tmp_path):
    few = replace(TINY, stage2=(), stage2_from=(), n_features=0, regimes=("benign",), epochs=1, fractions=())
    splits = table_and_images()
    every = replace(few, n_kernel="all").run(tmp_path / "all", splits=splits, progress=False)
    # so few that the matrices hold all of them too
    matrix = replace(few, n_kernel=30).run(tmp_path / "matrix", splits=splits, progress=False)
    assert every.experiment.n_kernel == "all" and load_evolution(every.path) == every
    for found, exact in zip(every.of_kind("checkpoint"), matrix.of_kind("checkpoint"), strict=True):
        assert found["n_kernel"] == found["n_train"] == 30 and "standard_errors" not in exact
        for name, error in found["standard_errors"].items():
            # the attack on all examples starts elsewhere than that on some
            share = 1e-4 if name.startswith("clean") else 0.1
            assert abs(found[name] - exact[name]) <= 4 * error + share * abs(exact[name]), name
        assert len(found["standard_errors"]) == 10
    np.testing.assert_array_equal(every.kernel(0, "benign", 0.0), matrix.kernel(0, "benign", 0.0))
    write_report(every)


@pytest.mark.parametrize("n", ["some", 0, 1.5, None])
def test_a_number_of_kernel_examples_is_a_count_or_all(n):
    with pytest.raises(ValueError, match="n_kernel must be a positive integer"):
        replace(TINY, n_kernel=n)


@pytest.mark.slow
def test_more_than_there_is_of_kernel_examples_and_eigenfeatures_is_told_of_and_not_stated(tmp_path):
    experiment = replace(TINY, n_kernel=99_999, n_features=10_000, stage2=(), stage2_from=())
    with pytest.warns(RuntimeWarning) as told:
        result = experiment.run(tmp_path / "run", splits=table_and_images(), progress=False)
    assert [str(one.message) for one in told] == [
        "n_kernel=99,999, but there are 30 training examples: n_kernel is 30 here",
        "n_features=10,000, but there are 30 eigenvectors of the kernel: n_features is 30 here",
    ]
    assert (result.experiment.n_kernel, result.experiment.n_features) == (30, 30)
    assert result.kernel(0, "benign", 0.0).shape == (30, 30)
    # as a number of its own, which digits of a drawing are not
    assert not re.search(r"(?<![\d.])99,?999\b", write_report(result).read_text())


def test_examples_held_out_must_leave_some_to_train_on(tmp_path):
    for n in (28, 30, 1000):
        with pytest.raises(
            ValueError, match=f"n_validation={n:,} leaves {max(30 - n, 0)} of 30 training examples"
        ):
            replace(TINY, patience=1, n_validation=n).run(tmp_path / "run", splits=table_and_images())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_run_of_no_epochs_is_reported_without_a_word(tmp_path):
    experiment = replace(TINY, epochs=0, flip_epoch=0, fractions=(), stage2=(), n_features=0)
    page = write_report(experiment.run(tmp_path / "run", splits=table_and_images(), progress=False))
    assert page.stat().st_size > 10_000


def test_a_result_that_is_gone_before_others_is_told_of_and_a_run_that_was_stopped_is_none_such(copied):
    file = copied / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for n in (0, 1, len(lines) // 2, len(lines) - 1):
        file.write_bytes(b"".join(lines[:n]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(load_evolution(copied).results) == n
    for at in (0, len(lines) // 2, len(lines) - 2):
        file.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
        task = json.loads(lines[at])["task"]
        with pytest.warns(
            RuntimeWarning, match=rf"results\.jsonl lacks 1 results .* '{task}'; run the experiment again"
        ):
            load_evolution(copied)


@pytest.mark.slow
def test_reading_a_run_writes_nothing(tiny, copied):
    with (copied / "results.jsonl").open("ab") as file:
        file.write(b'{"task": "torn')
    before = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in copied.rglob("*")}
    with pytest.warns(RuntimeWarning, match="was not finished"):
        result = load_evolution(copied)
    assert result.results == tiny.results
    result.velocity(0, "benign"), result.images(0, "benign"), result.to_frame()
    write_report(result, copied.parent / "report.html")
    after = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in copied.rglob("*")}
    assert after == before


@pytest.mark.slow
def test_two_evolutions_in_one_folder_leave_one_whole_run(tiny, tmp_path):
    out = tmp_path / "run"
    options = "--regimes benign --epochs 1 --flip-epoch 1 --fractions 0.5 --stage2-epochs 1 --n-features 1"
    options += " --seeds 1 --dynamics centered --stage2 benign"
    options = shlex.split(options)
    command = [sys.executable, "-m", "ntkrobust_sk", "evolve", "--out", str(out), *OPTIONS, *options]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2])
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or f"{out} is in use by process" in error
    assert load_evolution(out).results == tiny.results
    held = RunDirectory.session(out, settings_of(TINY, load_splits("digits", n_train=120, n_test=40)))
    with held, pytest.raises(OSError, match=f"in use by process {os.getpid()}"):
        TINY.run(out, progress=False)


def test_another_experiment_in_the_same_folder_is_refused_with_the_difference(result):
    before = final_bytes(result.path)
    with pytest.raises(RunMismatchError, match=r"learning_rate: 0\.05 there, 0\.1 here"):
        replace(SMALL, learning_rate=0.1).run(result.path, progress=False)
    X, y, X_test, y_test = load_splits("digits", n_train=120, n_test=40)
    with pytest.raises(RunMismatchError, match="sha256_data"):
        SMALL.run(result.path, splits=Splits(X * 0.9, y, X_test, y_test), progress=False)
    assert final_bytes(result.path) == before


def test_an_epoch_that_was_never_kept_is_refused_with_those_that_are(result):
    with pytest.raises(LookupError, match=r"no epoch 1\.5 of 'benign' with seed 0; there are 0, 0\.5, 1"):
        result.kernel(0, "benign", 1.5)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_evolution(result.path / "checkpoints")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"regimes": ("benign", "hostile")}, "unknown entry of regimes 'hostile'"),
        ({"regimes": ("flip",)}, "'flip' starts from the benign network"),
        ({"network": "vgg"}, "unknown network 'vgg'"),
        ({"attack": "cw"}, "unknown attack 'cw'"),
        ({"dynamics": ("lazy",)}, "unknown entry of dynamics 'lazy'"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number >= 0"),
        ({"epsilon": -0.1}, "epsilon must be a finite number >= 0"),
        ({"n_train": 0}, "n_train must be a positive integer"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0"),
        ({"n_test": "5"}, "n_test must be a positive integer, got '5'"),
        ({"epochs": [1]}, r"epochs must be an integer >= 0, got \[1\]"),
        ({"epochs": 2.5}, "epochs must be an integer >= 0"),
        ({"epochs": 10**400}, "epochs must be an integer >= 0"),
        ({"seeds": 0}, "seeds must be a positive integer"),
        ({"seeds": True}, "seeds must be a positive integer"),
        ({"fractions": 0.5}, "fractions must be a sequence"),
        ({"fractions": "0.5"}, "fractions must be a sequence"),
        ({"fractions": ("x",)}, "each of fractions must be a finite number"),
        ({"fractions": (float("nan"),)}, "each of fractions must be a finite number"),
        ({"regimes": "benign"}, "regimes must be a sequence"),
        ({"regimes": None}, "regimes must be a sequence"),
        ({"regimes": ()}, "regimes must name a training of stage 1 or more"),
        ({"regimes": [], "epochs": 0}, "regimes must name a training of stage 1 or more"),
        ({"regimes": ([],)}, "unknown entry of regimes"),
        ({"momentum": 1.0}, "momentum must be a finite number >= 0 and < 1"),
        ({"average_decay": "0.9"}, "average_decay must be a finite number"),
        ({"clean_step": "yes"}, "clean_step must be"),
        ({"random_state": -1}, "random_state must be an integer >= 0"),
        ({"patience": 0, "n_validation": 20}, "patience must be a positive integer"),
        ({"data": ""}, "data must be the path"),
        ({"stage2_from": 3}, "stage2_from must be a sequence"),
        ({"stage2_from": ("benign",)}, r"each of stage2_from must be \(regime, epoch\), got 'benign'"),
        ({"stage2_from": (("benign", "x"),)}, "epoch in stage2_from must be a finite number"),
        ({"fractions": (200,)}, r"fractions must be epochs of stage 1, 0 to 20, got .*200"),
        ({"flip_epoch": 30}, "flip_epoch must be an epoch that is kept"),
        ({"stage2_from": (("benign", 1.7),)}, r"stage2_from asks for epoch 1\.7, but kept are 0, "),
        ({"stage2_from": (("other", 1.0),)}, "unknown regime in stage2_from 'other'"),
        ({"patience": 2}, "patience and n_validation go together"),
        ({"n_validation": 20}, "patience and n_validation go together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KernelEvolution(**settings)


@pytest.mark.parametrize("wrong", [5, None, b"x", np.zeros(2)], ids=repr)
def test_what_is_no_path_data_or_result_is_named(wrong, tmp_path):
    with pytest.raises(TypeError, match="path must be a path"):
        load_evolution(wrong)
    with pytest.raises(TypeError, match="out must be a path"):
        TINY.run(wrong)
    with pytest.raises(TypeError, match="result must be an EvolutionResult"):
        write_report(wrong)
    with pytest.raises(TypeError, match="result must be an EvolutionResult"):
        check_claims(wrong)
    with pytest.raises(TypeError, match="data must be a path"):
        KernelEvolution(data=wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="splits must be Splits"):
            TINY.run(tmp_path / "run", splits=wrong)


def test_fewer_images_than_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="5 examples cannot hold one of each of the 10 classes"):
        replace(SMALL, n_kernel=5).run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_early_stopping_ends_a_regime_and_stage_2_takes_its_best_network(tmp_path):
    experiment = replace(
        SMALL, seeds=1, regimes=("benign",), epochs=6, flip_epoch=3, learning_rate=1e-6, patience=2,
        n_validation=30, stage2_epochs=0, stage2=("benign",), dynamics=("standard",), n_features=0,
    )  # fmt: skip
    result = experiment.run(tmp_path / "run", progress=False)
    # a learning rate that changes nothing: the first state is the best
    assert result.epochs(0, "benign") == [0.0, 0.5, 1.0, 2.0]
    assert {r["best"] for r in result.of_kind("stopped")} == {0.0}
    assert result.of_kind("stage 2")[0]["clean"] == result.at(0, "benign", 0.0)["clean"]


@pytest.mark.slow
def test_averaged_normalised_networks_are_trained_and_measured(result, tmp_path):
    experiment = replace(
        SMALL, seeds=1, stage2=(), stage2_from=(), regimes=("benign",), n_features=0, epochs=2, flip_epoch=1,
        average_decay=0.9, normalize=True, attack="n-fgsm",
    )  # fmt: skip
    plain, result = result, experiment.run(tmp_path / "run", progress=False)
    ranks = [found.at(0, "benign", 2.0)["clean_effective_rank"] for found in (plain, result)]
    assert ranks[0] != ranks[1]
    model = measurements_of(result).model(0, "benign", 2.0)
    X = load_splits("digits", n_train=120, n_test=40).X
    assert model.network.mean == pytest.approx([X.mean()], rel=1e-5)
    assert model.network.std == pytest.approx([X.std()], rel=1e-5)


def test_images_of_classes_are_correlated_with_the_classes_means():
    rng = np.random.default_rng(0)
    means = rng.uniform(size=(4, 6, 6, 1))
    y = np.repeat(np.arange(4), 5)
    X = means[y] + rng.normal(size=(20, 6, 6, 1)) / 100
    images = rng.uniform(size=(4, 6, 6, 1))
    own = np.stack([X[y == c].mean(0) for c in range(4)])
    found = class_correlations(images, X, y)
    for i, j in ((0, 0), (1, 3)):
        a, b = (images[i] - images.mean(0)).ravel(), (own[j] - own.mean(0)).ravel()
        assert found[i, j] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert np.diag(class_correlations(means, X, y)).min() > 0.99
    assert class_correlations(means[[1, 0, 2, 3]], X, y).argmax(1).tolist() == [1, 0, 2, 3]
    assert np.diag(class_correlations(3 - 2 * means, X, y)).max() < -0.99


def test_presets_give_way_to_what_is_given():
    assert preset("cifar10").epsilon == 4 / 255 and preset("cifar10", epsilon=0.1).epsilon == 0.1
    assert preset("mine.npz", seeds=None) == KernelEvolution(data="mine.npz")


@pytest.mark.slow
def test_a_file_of_ones_own_runs_from_the_command_line_and_bad_input_is_told_in_a_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = np.clip(rng.normal(size=(60, 4, 4, 1)) / 8 + y[:, None, None, None] / 3, 0, 1).astype(np.float32)
    np.savez(tmp_path / "mine.npz", X=X, y=np.array(["a", "b", "c"])[y])
    out = str(tmp_path / "run")
    command = [
        "evolve",
        "--data",
        str(tmp_path / "mine.npz"),
        "--out",
        out,
        *OPTIONS,
        "--seeds",
        "1",
        "--n-test",
        "15",
        "--n-train",
        "40",
        "--n-kernel",
        "12",
        "--epochs",
        "2",
        "--flip-epoch",
        "1",
        "--dynamics",
        "centered",
        "--stage2",
        "benign",
        "--stage2-from",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"Report: {tmp_path.resolve() / 'run' / 'report.html'}" in printed
    assert load_evolution(out).experiment.data == str(tmp_path / "mine.npz")
    assert main([*command, "--epsilon", "0.2"]) == 2
    assert "epsilon: 0.15 there, 0.2 here" in capsys.readouterr().err
    assert main(["evolve", "--out", out, "--data", "nothing"]) == 2
    assert "unknown data 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--epsilon", "4/0"], ["--epsilon", "big"], ["--stage2-from", "benign"]])
def test_options_that_cannot_be_read_are_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evolve", "--out", "x", *option])
    assert "expected" in capsys.readouterr().err


def test_a_fraction_is_read_as_one(tmp_path, monkeypatch):
    seen = {}

    def run(self, out):
        seen["experiment"] = self
        raise ValueError("enough")

    monkeypatch.setattr(KernelEvolution, "run", run)
    assert main(["evolve", "--out", str(tmp_path / "x"), "--epsilon", "4/255", "--stage2-from", "benign:2.5"]) == 2
    assert seen["experiment"].epsilon == 4 / 255 and seen["experiment"].stage2_from == (("benign", 2.5),)


def test_the_attack_in_scoring_is_the_paper_s_with_these_steps():
    assert SMALL.test_attack == PGD(0.15, n_steps=3)


def test_everything_that_takes_memory_is_given_the_experiments():
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules["ntkrobust_sk.evolution.tasks"])))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("gram", "gram_operator", "make_predictor", "ntk_features")
    ]
    assert len(calls) >= 7
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("memory", "").endswith("experiment.memory"), ast.unparse(call)


def test_a_run_may_go_on_with_another_amount_of_memory():
    splits = load_splits("digits", n_train=100, n_test=20)
    assert settings_of(KernelEvolution(memory="8GiB"), splits) == settings_of(KernelEvolution(), splits)
    assert preset(memory="8GiB").memory == "8GiB"
    for memory in ("much", None, -1, float("inf")):
        with pytest.raises(ValueError, match="memory must be"):
            KernelEvolution(memory=memory)
