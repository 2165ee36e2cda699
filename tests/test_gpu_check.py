"""The check of a GPU: at toy size on this machine, and its runner against sections that fail, hang and die."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FAKE = """
import json, os, sys, time

def run(names, folder, toy):
    for name in names:
        path = folder / f"{name}.json"
        def write(**content):
            path.with_suffix(".partial").write_text(json.dumps({"figures": {}, "checks": [], **content}))
            os.replace(path.with_suffix(".partial"), path)
        write(status="running")
        if name == "hangs":
            write(status="running", figures={"found before": 1})
            time.sleep(60)
        if name == "dies":
            print("Segmentation fault", flush=True)
            os._exit(139)
        if name == "slow":
            time.sleep(1)
        wrong = [{"what": "one is two", "value": 1, "ok": False}] if name == "wrong" else []
        write(status="failed" if wrong else "passed", seconds=0.1, checks=wrong, figures={"process": os.getpid()})
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The runner, with sections of another file."""
    for name in ("gpu_check.py", "gpu_runner.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "gpu_sections.py").write_text(FAKE)
    spec = importlib.util.spec_from_file_location("gpu_check_copy", tmp_path / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check_copy"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check_copy"]


def found(runner, tmp_path, *sections, seconds=30.0):
    """The exit status and what was written for sections (name, process, seconds)."""
    runner.SECTIONS = tuple(runner.Section(*section) for section in sections)
    # the copy's own command line would refuse sections that it does not know
    source = (tmp_path / "gpu_check.py").read_text()
    names = "SECTIONS = (" + ", ".join(f"Section{section!r}" for section in sections) + ",)\n\n\ndef main("
    before, after = source.split("SECTIONS = (", 1)
    (tmp_path / "gpu_check.py").write_text(before + names + after.split("def main(", 1)[1])
    out = tmp_path / "found.json"
    status = runner.main(["--out", str(out), "--seconds", str(seconds)])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".found")] == []
    return status, json.loads(out.read_text())["sections"]


def test_a_section_that_hangs_or_dies_costs_nothing_after_it(runner, tmp_path):
    sections = [
        ("first", "one", 10),
        ("hangs", "one", 0.5),
        ("dies", "one", 10),
        ("wrong", "one", 10),
        ("last", "two", 10),
    ]
    start = time.monotonic()
    status, results = found(runner, tmp_path, *sections)
    assert time.monotonic() - start < 15
    assert status == 1
    statuses = {name: result["status"] for name, result in results.items()}
    assert statuses == {
        "first": "passed",
        "hangs": "timed out",
        "dies": "crashed",
        "wrong": "failed",
        "last": "passed",
    }
    assert results["hangs"]["figures"] == {"found before": 1}
    assert "Segmentation fault" in results["dies"]["output"]


def test_sections_share_a_process_until_one_is_ended(runner, tmp_path):
    status, results = found(runner, tmp_path, *((name, "one", 10) for name in ("a", "b")), ("c", "two", 10))
    processes = [results[name]["figures"]["process"] for name in ("a", "b", "c")]
    assert status == 0 and processes[0] == processes[1] != processes[2]


def test_when_all_time_is_up_no_section_starts(runner, tmp_path):
    start = time.monotonic()
    status, results = found(
        runner, tmp_path, ("slow", "one", 10), ("hangs", "two", 60), ("last", "three", 9), seconds=5
    )
    assert time.monotonic() - start < 9
    assert results["slow"]["status"] == "passed"
    assert results["last"] == {"status": "not run", "reason": "no time was left"}
    assert results["hangs"]["status"] == "timed out" and "all time was up" in results["hangs"]["reason"]
    assert status == 1


@pytest.mark.parametrize("option", ["--out", "--wheels"])
def test_places_that_do_not_serve_are_refused_before_anything_runs(runner, tmp_path, option):
    place = {"--out": tmp_path, "--wheels": tmp_path / "nowhere"}[option]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=f"{option} must be .*, got {place}"):
        runner.main(["--out", str(tmp_path / "found.json"), option, str(place)])
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """What all sections write at toy size."""
    out = tmp_path_factory.mktemp("toy") / "found.json"
    command = [sys.executable, str(EXAMPLES / "gpu_check.py"), "--toy", "--long", "--out", str(out)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done, json.loads(out.read_text())["sections"]


@pytest.mark.slow
def test_at_toy_size_all_sections_pass_but_those_that_need_a_gpu(toy):
    done, sections = toy
    assert done.returncode == 0, done.stdout
    not_run = {name: result["reason"] for name, result in sections.items() if result["status"] == "not run"}
    assert list(not_run) == ["handover"] and not_run["handover"].startswith("no GPU")
    assert {result["status"] for name, result in sections.items() if name not in not_run} == {"passed"}


@pytest.mark.slow
def test_figures_have_limits_and_timings_their_floors(toy):
    _, sections = toy
    checks = {check["what"]: check for result in sections.values() for check in result["checks"]}
    assert checks["trace, bf16: error"]["value"] > checks["trace, tf32: error"]["value"] > 1e-5
    assert checks["Eigh: error"]["at_most"] == 1e-10
    shares = {
        key: value for result in sections.values() for key, value in result["figures"].items() if "floor" in key
    }
    assert len(shares) >= 6 and all(0 < share < 1 for share in shares.values())
    assert all("memory" in result for result in sections.values())


@pytest.mark.slow
def test_without_a_gpu_full_size_is_not_run_and_says_so(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(EXAMPLES / "gpu_check.py"), "--out", str(out), "--only", "device", "kernels"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    sections = json.loads(out.read_text())["sections"]
    assert done.returncode == 2
    assert {result["status"] for result in sections.values()} == {"not run"}
    assert "no GPU" in done.stdout
