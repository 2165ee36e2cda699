"""The timings of a GPU and what is counted before: at toy size and on paper, on this machine."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntkrobust_sk import CNN

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def paper():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("plan_gram")


@pytest.fixture
def bench(monkeypatch):
    """The benchmark in this process, for what starts no other one."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("bench_gpu")
    # which it sets; they are taken back
    for name, value in module.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return module


def run(*arguments):
    """What the benchmark prints, and its exit status."""
    command = [sys.executable, str(EXAMPLES / "bench_gpu.py"), *arguments]
    return subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


@pytest.mark.slow
def test_at_toy_size_all_sections_pass_and_state_what_was_asked(tmp_path):
    done = run("--toy", "--long", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout
    sections = json.loads((tmp_path / "found.json").read_text())["sections"]
    assert {result["status"] for result in sections.values()} == {"passed"}
    assert all(result["checks"] for result in sections.values())
    for kernel in ("pseudo", "class"):
        figures = sections[kernel]["figures"]
        assert 0 < figures["24 rows: share of its floor"] < 1
        assert figures["40 rows: seconds, by 24 rows"] == pytest.approx(
            figures["24 rows: seconds"] * (40 / 24) ** 2
        )
        assert sections["peers"]["figures"][f"{kernel}: share of the time of jax.jacrev"] > 0
    rates = sections["training"]["figures"]
    assert all(
        rates[f"{name}: {what}/s"] > 0 for name in ("default", "bf16") for what in ("updates", "steps of an image")
    )
    assert sections["leave_one_out"]["figures"]["40 rows, 3 ridges: seconds"] > 0


@pytest.mark.slow
def test_without_a_gpu_full_size_is_not_run_and_says_so(tmp_path):
    done = run("--only", "device", "pseudo", "--out", str(tmp_path / "found.json"))
    sections = json.loads((tmp_path / "found.json").read_text())["sections"]
    assert done.returncode == 2 and "no GPU" in done.stdout
    assert {result["status"] for result in sections.values()} == {"not run"}


@pytest.mark.slow
def test_a_plan_states_floors_and_predictions_and_runs_nothing(bench, capsys, tmp_path):
    assert bench.main(["--toy", "--plan", "--out", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr().out
    names = [line.split()[0] for line in printed.splitlines()[1:] if " s  " in line]
    assert names == ["device", "small", "pseudo", "class", "training", "leave_one_out"]
    assert "left out: tiles, peers" in printed and "predicted in all:" in printed
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
def test_a_plan_that_takes_longer_than_is_allowed_says_what_fits(bench, capsys, tmp_path):
    said = r"\d+ s are predicted, but --minutes 1 allows 60: .* Give --minutes ([\d.]+), or --only (.*)"
    with pytest.raises(SystemExit, match=f"^{said}$") as stopped:
        bench.main(["--plan", "--minutes", "1", "--out", str(tmp_path / "found.json")])
    assert "predicted in all: " in capsys.readouterr().out
    minutes, only = re.fullmatch(said, str(stopped.value)).groups()
    # what it advises fits
    for way in (["--minutes", minutes], ["--minutes", "1", "--only", *only.split()]):
        assert bench.main(["--plan", *way]) == 0
    with pytest.raises(SystemExit, match=f"Give --minutes {minutes}$"):
        bench.main(["--plan", "--minutes", "0.1"])


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--only", "nothing"]])
def test_wrong_options_are_refused(bench, options, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        bench.main([*options, "--out", str(tmp_path / "found.json")])
    assert options[0] in capsys.readouterr().err and not (tmp_path / "found.json").exists()


def test_sizes_on_paper_are_those_of_the_librarys_plans(paper, monkeypatch):
    monkeypatch.setattr(paper, "WORKING", 1e4)
    shape = (8, 8, 3)
    model = paper.shapes_of(CNN(n_outputs=4, widths=(8, 8), strides=(1, 2)), shape)
    one = paper.size_of("trace", model, shape, 1e6, 8192, 2**31, "fp32", 1)
    assert one.plan.rows == 1024 and one.plan.peak_bytes <= 2**31 and one.plan.devices == (paper.Card(),)
    assert one.matrix == 4 * 8192**2 and one.solution == 16 * 8192**2
    # eight tiles a side; one panel holds them all, and the features of each are computed once
    assert one.products == pytest.approx(36 * 1024**2 * paper.pair_operations("trace", model, shape), rel=1e-12)
    assert one.features == 8192 * (1 + 2 * 4) * 1e6
    # of eight cards each computes features of its own
    alone, shared = (paper.size_of("trace", model, shape, 1e6, 65_536, 2**31, "fp32", cards) for cards in (1, 8))
    assert shared.products == alone.products and alone.features < shared.features <= 8 * alone.features
    assert alone.seconds("fp32", 1) / 8 < shared.seconds("fp32", 8)
    classes = paper.size_of("class", model, shape, 1e6, 8192, 2**31, "fp32", 1)
    assert classes.matrix == 4 * one.matrix and classes.solving == 4 * one.solving
    # fewer bits take less room
    assert paper.plan_on_paper("trace", model, shape, 2**31, "bf16").row_bytes == one.plan.row_bytes // 2
