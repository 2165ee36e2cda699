"""The paper at full size: the same program at toy size runs, goes on, keeps to its clock, and predicts itself."""

import importlib
import json

import pytest


@pytest.fixture(scope="module")
def full_size(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "examples"))
        yield importlib.import_module("paper_full_size")


@pytest.mark.slow
def test_a_toy_run_finds_all_figures_and_goes_on_from_its_states(full_size, tmp_path):
    options = ["--precision", "bf16"]
    found = full_size.main(["--toy", "--out", str(tmp_path), *options])
    assert json.loads((tmp_path / "full_size.json").read_text()) == found
    for kernel in ("adversarial", "benign"):
        stages = found[kernel]
        assert stages["stage-1"]["epochs"] == 2 and stages["stage-2"]["epochs"] == 1
        # what one attack has broken stays broken
        robust = [stages[name]["robust accuracy"] for name in ("pgd", "apgd-ce", "apgd-t")]
        assert robust == sorted(robust, reverse=True) and stages["pgd"]["images"] == 32
        assert robust[0] <= stages["stage-2"]["clean accuracy"]
    again = full_size.main(["--toy", "--out", str(tmp_path), *options])
    assert again["adversarial"]["stage-1"]["seconds to the first look"] is None
    assert again["adversarial"]["pgd"] == found["adversarial"]["pgd"]


@pytest.mark.slow
def test_a_clock_that_is_over_ends_a_stage_with_what_there_is(full_size, tmp_path, monkeypatch):
    longer = full_size.Setting(**{**vars(full_size.TOY), "epochs": {"stage-1": 60, "stage-2": 1}})
    monkeypatch.setattr(full_size, "TOY", longer)
    with monkeypatch.context() as patch:
        patch.setattr(full_size.Run, "deadline", lambda run, stage: 0.0)
        found = full_size.main(["--toy", "--fast", "--out", str(tmp_path)])
    # one look at the clock: sixteen batches, of four an epoch; and no time for an attack
    assert found["adversarial"]["stage-1"]["epochs"] == 4 and "pgd" not in found["adversarial"]
    assert (tmp_path / "adversarial-stage-1.safetensors").exists()
    # with time it goes on from there, and tells in advance how long that takes
    stage = full_size.main(["--toy", "--fast", "--out", str(tmp_path)])["adversarial"]["stage-1"]
    assert stage["epochs"] == 60 and 0 < stage["predicted"]["seconds an epoch"] < stage["predicted"]["in all"]
    assert stage["seconds after the prediction"] > 0


def test_a_plan_states_floors_and_runs_nothing(full_size, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert full_size.main(["--plan", "--rate", "100"]) == {}
    text = capsys.readouterr().out
    # ResNet-18 on 32 x 32 images: 0.56 G multiply-adds, less what padding with zeros saves
    assert 0.9 < float(text.split()[0]) < 1.12
    assert "100 TFLOP/s" in text and text.count("\n|") == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--rate", "-1"], ["--precision", "fp8"]])
def test_wrong_options_are_refused(full_size, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        full_size.main(options)
    assert stopped.value.code == 2 and options[0][2:] in capsys.readouterr().err


def test_missing_data_are_named(full_size, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        full_size.main(["--data-dir", str(tmp_path / "nothing_here"), "--out", str(tmp_path)])
