"""The paper at full size: the same program at toy size runs, goes on, keeps to its clock, and predicts itself."""

import importlib
import json
import runpy
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from quick import OneBlock


@pytest.fixture(scope="module")
def full_size(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "examples"))
        module = importlib.import_module("paper_full_size")
        patch.setattr(module, "TOY", replace(module.TOY, network=OneBlock(10, width=2)))
        yield module


@pytest.fixture(autouse=True)
def own_cache():
    """Programs are not kept where these tests have put them."""
    kept = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    jax.config.update("jax_compilation_cache_dir", kept[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept[1])
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_a_toy_run_finds_all_figures_and_does_nothing_twice(full_size, tmp_path, monkeypatch):
    options = ["--precision", "bf16"]
    found = full_size.main(["--toy", "--out", str(tmp_path), *options])
    assert json.loads((tmp_path / "full_size.json").read_text()) == found
    for kernel in ("adversarial", "benign"):
        stages = found[kernel]
        assert stages["stage-1"]["epochs"] == 4 and stages["stage-2"]["epochs"] == 4
        for name in ("stage-1", "stage-2", "pgd"):
            assert stages[name]["predicted"]["in all"] > 0 and stages[name]["seconds after the prediction"] > 0
        # what one attack has broken stays broken
        robust = [stages[name]["robust accuracy"] for name in ("pgd", "apgd-ce", "apgd-t")]
        assert robust == sorted(robust, reverse=True) and stages["pgd"]["images"] == 32
        assert robust[0] <= stages["stage-2"]["clean accuracy"]
    monkeypatch.setattr(full_size, "train", None)
    monkeypatch.setattr(full_size, "answers_of", None)
    assert full_size.main(["--toy", "--out", str(tmp_path), *options]) == found


@pytest.mark.slow
def test_a_clock_that_is_over_ends_a_stage_with_what_there_is(full_size, tmp_path, monkeypatch, capsys):
    longer = replace(full_size.TOY, epochs={"stage-1": 12, "stage-2": 1})
    monkeypatch.setattr(full_size, "TOY", longer)
    with monkeypatch.context() as patch:
        patch.setattr(full_size.Run, "deadline", lambda run, stage: 0.0)
        found = full_size.main(["--toy", "--fast", "--out", str(tmp_path)])
    # one look at the clock: four batches, of four an epoch; and no time for an attack
    assert found["adversarial"]["stage-1"]["epochs"] == 1 and "pgd" not in found["adversarial"]
    assert (tmp_path / "adversarial-stage-1.safetensors").exists()
    # with time it goes on from there, and tells in advance how long that takes
    capsys.readouterr()
    stage = full_size.main(["--toy", "--fast", "--out", str(tmp_path)])["adversarial"]["stage-1"]
    # stage 2 does not, since its kernel is another one
    said = capsys.readouterr().out
    assert "from epoch 1.0" in said and "stage-2 begins again" in said and "stage-1 begins again" not in said
    assert stage["epochs"] == 12 and 0 < stage["predicted"]["seconds an epoch"] < stage["predicted"]["in all"]
    assert stage["seconds after the prediction"] > 0


def test_a_damaged_file_of_figures_is_named_and_stays(full_size, tmp_path):
    for written in ("{", "[]", '{"settings": {}}'):
        (tmp_path / "full_size.json").write_text(written)
        with pytest.raises(ValueError, match=r"full_size\.json is damaged"):
            full_size.main(["--toy", "--out", str(tmp_path)])
        assert (tmp_path / "full_size.json").read_text() == written


@pytest.mark.slow
def test_a_plan_states_floors_and_runs_nothing(full_size, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert full_size.main(["--plan", "--rate", "100"]) == {}
    text = capsys.readouterr().out
    # ResNet-18 on 32 x 32 images: 0.56 G multiply-adds, less what padding with zeros saves
    assert 0.9 < float(text.split()[0]) < 1.12
    assert "100 TFLOP/s" in text and text.count("\n|") == 7
    rows = {
        row.split(" | ")[0].strip("| "): row.strip(" |").split(" | ") for row in text.splitlines() if "GiB" in row
    }
    for name in ("stage-1", "stage-2", "PGD", "APGD-CE", "APGD-T"):
        _, _, _, floor, predicted, memory = next(row for key, row in rows.items() if key.startswith(name))
        assert 0 < float(floor) < float(predicted) and 0.1 < float(memory.split()[0]) < 78
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--rate", "-1"], ["--precision", "fp8"]])
def test_wrong_options_are_refused(full_size, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        full_size.main(options)
    assert stopped.value.code == 2 and options[0][2:] in capsys.readouterr().err


def test_missing_data_are_named(full_size, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        full_size.main(["--data-dir", str(tmp_path / "nothing_here"), "--out", str(tmp_path)])
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"data_batch_2\.bin"):
        full_size.main(["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_data_names_the_option(monkeypatch, tmp_path, full_size):
    folder = tmp_path / "data_dir"
    monkeypatch.setattr(sys, "argv", ["", "--data-dir", str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=rf"FileNotFoundError: .* in {folder}, found .* or leave --data-dir out"):
        runpy.run_path(full_size.__file__, run_name="__main__")


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(full_size, tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "train", None)
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(OSError, match=rf"--out must be a folder that can be written, got .*{place}: "):
            full_size.main(["--toy", "--out", str(tmp_path / place)])
    assert (tmp_path / "file").read_text() == "mine"

    def closed(*given):
        raise PermissionError("closed")

    monkeypatch.setattr(full_size, "write_atomically", closed)
    with pytest.raises(OSError, match=r"--out must be a folder that can be written, got .*closed"):
        full_size.main(["--toy", "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_a_device_without_the_memory_is_refused_before_anything_runs(full_size, tmp_path, monkeypatch):
    needed = full_size.bytes_needed(full_size.TOY, full_size.TOY.network)
    assert needed["stage-1"] < needed["stage-2"]
    monkeypatch.setattr(full_size, "free_bytes", lambda device: needed["stage-1"] - 1)
    monkeypatch.setattr(full_size, "Run", None)
    with pytest.raises(MemoryError, match=r"stage-1 takes about .* take a larger device"):
        full_size.main(["--toy", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(full_size, "free_bytes", lambda device: needed["stage-2"])
    with pytest.raises(MemoryError, match=r"attacks takes about .* take --rows 500"):
        full_size.main(["--toy", "--rows", "1000", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused_and_stays_as_it_is(full_size, tmp_path):
    written = '{"settings": {"of": "something else"}}'
    (tmp_path / "full_size.json").write_text(written)
    with pytest.raises(ValueError, match="of other settings, which stays as it is: something else"):
        full_size.main(["--toy", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["full_size.json"]
    assert (tmp_path / "full_size.json").read_text() == written


@pytest.mark.slow
def test_a_budget_of_less_than_an_epoch_is_refused_with_the_prediction_and_keeps_what_was_trained(
    full_size, tmp_path, monkeypatch
):
    # sixteen batches an epoch, a second for each, and seven seconds
    monkeypatch.setattr(full_size, "TOY", replace(full_size.TOY, look=1, batch_size=4))
    monkeypatch.setattr(full_size, "time", SimpleNamespace(monotonic=map(float, count()).__next__))
    found = full_size.main(["--toy", "--fast", "--minutes", "0.25", "--out", str(tmp_path)])
    stage = found["adversarial"]["stage-1"]
    assert stage["refused"] == "not one epoch fits" and stage["predicted"]["seconds an epoch"] == 16
    assert (tmp_path / "adversarial-stage-1.safetensors").exists() and "stage-2" not in found["adversarial"]
