"""Damaged files are refused by name, or give what they gave before: a short run of ``examples/fuzz_files.py``."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr", reason="zarr is not installed")

FILE = Path(__file__).resolve().parents[1] / "examples" / "fuzz_files.py"
SPEC = importlib.util.spec_from_file_location("fuzz_files", FILE)
fuzz_files = importlib.util.module_from_spec(SPEC)
# dataclasses look their module up
sys.modules[SPEC.name] = fuzz_files
SPEC.loader.exec_module(fuzz_files)

# Cases of each kind, of which some are slow to read.
OF_RUNS = {"run": 20, "model": 40, "adversarial": 60, "saved": 120, "saved-forged": 120}
CASES = OF_RUNS | {"store": 60, "store-resumed": 30, "store-unfinished": 30, "npz": 150, "npz-large": 60}
OF_OTHERS = 25


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz_files.KINDS)
def test_no_damaged_file_is_taken_for_a_whole_one_without_a_word(kind):
    cases = fuzz_files.run_kind(kind, range(CASES.get(kind, OF_OTHERS)), seed=1)
    faults = [str(case) for case in cases if case.outcome in fuzz_files.FAULTS]
    assert not faults, "\n".join(faults)
    assert any(case.outcome in ("refused", "warned") for case in cases)
    assert kind not in OF_RUNS or sum(case.outcome == "refused" for case in cases) >= len(cases) // 3


def test_what_is_returned_without_a_look_is_found_out(tmp_path, monkeypatch):
    def make(folder):
        (folder / "a.bin").write_bytes(bytes(100))

    careless = fuzz_files.Kind(make, lambda folder: (folder / "a.bin").read_bytes())
    monkeypatch.setitem(fuzz_files.KINDS, "careless", careless)
    outcomes = {case.outcome for case in fuzz_files.run_kind("careless", range(20), seed=0)}
    assert "wrong" in outcomes and outcomes <= {"wrong", "right", "refused"}
    unnamed = fuzz_files.Kind(
        make, lambda folder: np.frombuffer((folder / "a.bin").read_bytes(), "f4").reshape(5, 5)
    )
    monkeypatch.setitem(fuzz_files.KINDS, "unnamed", unnamed)
    assert "obscure" in {case.outcome for case in fuzz_files.run_kind("unnamed", range(20), seed=0)}


def test_a_reader_that_runs_code_or_writes_is_found_out(tmp_path, monkeypatch):
    def make(folder):
        (folder / "a.py").write_text("1 + 1")

    readers = {
        "runs": lambda folder: eval((folder / "a.py").read_text()),
        "writes": lambda folder: (folder / "b.txt").write_text((folder / "a.py").read_text()),
    }
    for name, read in readers.items():
        kind = fuzz_files.Kind(make, read, lambda found, expected: True, runs_code=False)
        monkeypatch.setitem(fuzz_files.KINDS, name, kind)
        assert "executed" in {case.outcome for case in fuzz_files.run_kind(name, range(10), seed=0)}


def test_two_results_are_the_same_to_the_bit_only():
    one = {"a": [np.arange(3), "x"], "b": (1.5, None)}
    assert fuzz_files.same({"b": (1.5, None), "a": [np.arange(3), "x"]}, one)
    for other in ({"a": [np.arange(3.0), "x"], "b": (1.5, None)}, {"a": [np.arange(3), "x"]}, None, 3):
        assert not fuzz_files.same(other, one)
    assert not fuzz_files.same(np.float32([0.0]), np.float32([-0.0]))
