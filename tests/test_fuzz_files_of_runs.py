"""Mutated run folders, saved models and files of adversarial examples: a sample of examples/fuzz_files.py."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[1] / "examples" / "fuzz_files.py"
    spec = importlib.util.spec_from_file_location("fuzz_files", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind, n", [("run", 20), ("model", 40), ("adversarial", 60)])
def test_no_mutated_file_is_wrong_without_a_word(kind, n, fuzz):
    cases = fuzz.run_kind(kind, range(50_000, 50_000 + n), seed=0)
    assert [str(case) for case in cases if case.outcome in fuzz.FAULTS] == []
    assert sum(case.outcome == "refused" for case in cases) >= n // 3


@pytest.mark.slow
def test_a_reader_that_checks_nothing_is_found_out(fuzz, monkeypatch):
    kind = fuzz.KINDS["adversarial"]

    def careless(folder):
        found = fuzz.np.load(folder / "adversarial.npz")["X_adv"]
        return found

    monkeypatch.setitem(fuzz.KINDS, "adversarial", fuzz.Kind(kind.make, careless))
    cases = fuzz.run_kind("adversarial", range(60), seed=0)
    assert any(case.outcome in fuzz.FAULTS for case in cases)
