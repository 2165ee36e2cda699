"""A run takes over from another one what the settings in which they differ have no say in, and nothing else."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from ntkrobust_sk import APGD, MLP, KernelEvolution, load_evolution
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution.dependencies import NAMED, SELECTING
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.evolution.run_settings import FREE, going_on, settings_of
from ntkrobust_sk.evolution.running import splits_of
from ntkrobust_sk.evolution.taking_over import take_over

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("zarr", reason="zarr is not installed")

FIRST = KernelEvolution(
    network=MLP(widths=(8,)),
    n_train=60,
    n_test=20,
    n_kernel=20,
    epochs=2,
    flip_epoch=1,
    fractions=(),
    train_steps=2,
    test_steps=2,
    stage2_epochs=1,
    dynamics=("centered",),
    stage2=("benign",),
    n_features=2,
    batch_size=32,
)
STATES, KERNELS, MODELS, RESULTS = "states of training", "kernels", "models of stage 2", "results"
# For each setting another value, and how many parts of each kind are then taken: states, kernels, models, results.
CHANGES = {
    "data": ("moved.npz", (0, 0, 0, 0)),
    "network": (MLP(widths=(9,)), (0, 0, 0, 0)),
    "n_train": (50, (0, 0, 0, 0)),
    "n_test": (30, (0, 0, 0, 0)),
    "n_kernel": (30, (7, 0, 2, 2)),
    "epsilon": (0.1, (3, 3, 1, 1)),
    "attack": (APGD(0.15, n_steps=2), (3, 6, 1, 7)),
    "norm": ("l2", (3, 3, 1, 1)),
    "train_steps": (1, (3, 6, 1, 7)),
    "test_steps": (3, (7, 7, 2, 3)),
    "clean_step": (False, (3, 6, 1, 7)),
    "regimes": (("benign", "adversarial"), (6, 12, 2, 15)),
    "epochs": (3, (7, 14, 0, 7)),
    "flip_epoch": (0, (6, 12, 2, 15)),
    "fractions": ((0.5,), (7, 14, 2, 18)),
    "learning_rate": (0.1, (0, 0, 0, 0)),
    "momentum": (0.5, (0, 0, 0, 0)),
    "optimizer": ("adam", (0, 0, 0, 0)),
    "batch_size": (16, (0, 0, 0, 0)),
    "normalize": (True, (0, 0, 0, 0)),
    "average_decay": (0.5, (0, 0, 0, 0)),
    "n_validation": (10, (0, 0, 0, 0)),
    "stage2_from": ((("benign", 1.0), ("adversarial", 2.0)), (7, 14, 1, 15)),
    "stage2_epochs": (2, (7, 14, 0, 15)),
    "stage2_learning_rate": (0.02, (7, 14, 0, 15)),
    "dynamics": (("standard", "centered"), (7, 14, 2, 17)),
    "stage2": (("adversarial",), (7, 14, 0, 15)),
    "freeze_state": (False, (7, 14, 0, 15)),
    "alpha": (0.1, (7, 14, 2, 15)),
    "n_features": (3, (7, 14, 2, 15)),
    "memory": ("1GiB", (7, 0, 2, 2)),
    "precision": ("bf16", (0, 0, 0, 0)),
    "seeds": (2, (7, 14, 2, 18)),
    "random_state": (1, (0, 0, 0, 0)),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return FIRST.run(tmp_path_factory.mktemp("first") / "run", progress=False)


def test_every_setting_is_changed_and_known_to_what_depends_on_it():
    names = {field.name for field in fields(KernelEvolution)}
    assert names == {*CHANGES, "data_dir", "image_size", "patience"}
    assert names == (set(NAMED) | set(SELECTING) | set(FREE)) - {"sha256_data"}


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


def changed(name, tmp_path):
    value = CHANGES[name][0]
    if name == "data":
        splits = load_splits("digits", n_train=60, n_test=20, random_state=3)
        np.savez(tmp_path / value, **splits._asdict())
        value = str(tmp_path / value)
    if name == "optimizer":
        return replace(FIRST, optimizer=value, learning_rate=0.05, momentum=None)
    return replace(FIRST, **{name: value} | ({"patience": 5} if name == "n_validation" else {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, taken) in CHANGES.items() if not any(taken)])
def test_a_setting_that_all_depends_on_leaves_nothing_to_take_over(first, tmp_path, name):
    experiment, splits = changed(name, tmp_path), splits_of(changed(name, tmp_path), None)
    settings, more = settings_of(experiment, splits), going_on(experiment, splits, False, tmp_path / "run")
    with RunDirectory.session(tmp_path / "run", settings, more) as run:
        taken = take_over(run, experiment, splits, first.path)
    assert not taken.taken and len(taken.left) == taken.parts[RESULTS] and name in str(taken)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["settings.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, taken) in CHANGES.items() if any(taken)])
def test_what_is_taken_over_is_what_a_fresh_run_computes_to_the_byte(first, tmp_path, capsys, name):
    experiment = changed(name, tmp_path)
    experiment.run(tmp_path / "taken", from_=first.path, progress=False)
    printed = " ".join(capsys.readouterr().err.split())
    experiment.run(tmp_path / "fresh", progress=False)
    assert contents(tmp_path / "taken") == contents(tmp_path / "fresh")
    counts = dict(zip((STATES, KERNELS, MODELS, RESULTS), CHANGES[name][1], strict=True))
    for kind, n in counts.items():
        assert f"{kind}: {n} of " in printed, printed
    if name not in FREE:
        assert f"{name}" in printed


@pytest.mark.slow
def test_nothing_of_a_run_with_early_stopping_is_taken_wrongly(tmp_path, capsys):
    patient = replace(FIRST, patience=1, n_validation=10, epochs=3, learning_rate=1e-4, stage2_from=())
    patient.run(tmp_path / "first", progress=False)
    for name, other in {"patience": 2, "epochs": 4, "test_steps": 1, "alpha": 0.1}.items():
        experiment = replace(patient, **{name: other})
        experiment.run(tmp_path / f"taken-{name}", from_=tmp_path / "first", progress=False)
        experiment.run(tmp_path / f"fresh-{name}", progress=False)
        assert contents(tmp_path / f"taken-{name}") == contents(tmp_path / f"fresh-{name}")
    assert "results: 0 of 0" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_gives_what_it_has_and_what_was_taken_stays_when_the_new_one_stops(first, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(first.path, other)
    lines = (other / "results.jsonl").read_bytes().splitlines(keepends=True)
    (other / "results.jsonl").write_bytes(b"".join(lines[:4]))
    experiment = replace(FIRST, alpha=0.1)
    experiment.run(tmp_path / "fresh", progress=False)
    experiment.run(tmp_path / "run", from_=other, progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_a_damaged_part_is_computed_with_a_word(first, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(first.path, other)
    for file in other.rglob("0002.000.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    experiment = replace(FIRST, alpha=0.1)
    with pytest.warns(RuntimeWarning, match="is computed, not taken over"):
        experiment.run(tmp_path / "run", from_=other, progress=False)
    experiment.run(tmp_path / "fresh", progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_a_run_whose_memory_nobody_knows_gives_no_kernels(first, tmp_path, capsys):
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(first.path, other)
    stated = json.loads((other / "settings.json").read_text())
    del stated["going_on"]
    (other / "settings.json").write_text(json.dumps(stated))
    replace(FIRST, alpha=0.1).run(tmp_path / "run", from_=other, progress=False)
    printed = capsys.readouterr().err
    assert "states of training: 7 of 7" in printed and "kernels: 0 of 14" in printed


@pytest.mark.slow
def test_the_folder_itself_and_one_that_is_no_run_are_refused(first, tmp_path):
    with pytest.raises(ValueError, match="from_ is the folder of the run itself"):
        FIRST.run(first.path, from_=first.path, progress=False)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        FIRST.run(tmp_path / "new", from_=tmp_path, progress=False)
    assert not (tmp_path / "new" / "results.jsonl").exists()
    assert load_evolution(first.path) == first
