"""Tables in documents: scripts of ``examples/`` replace their own part, and leave everything else alone."""

import importlib
import json

import numpy as np
import pytest


@pytest.fixture
def documents(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "examples"))
    return importlib.import_module("documents")


def test_a_part_is_replaced_between_its_comments_and_nothing_else_is(documents, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("# Title\n\n<!-- a -->\nold\n<!-- end of a -->\n\nMore.\n")
    assert documents.read_part(document, "a") == "old"
    for _ in range(2):
        documents.write_part(document, "a", "new\nlines\n")
        assert document.read_text() == "# Title\n\n<!-- a -->\nnew\nlines\n<!-- end of a -->\n\nMore.\n"


def test_a_part_that_is_not_there_is_appended(documents, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("# Title\n")
    assert documents.read_part(document, "a") == ""
    documents.write_part(document, "a", "new")
    assert document.read_text() == "# Title\n\n<!-- a -->\nnew\n<!-- end of a -->\n"


def test_the_documents_of_this_repository_stay_as_they_are_when_a_part_is_written_again(documents, tmp_path):
    parts = {
        "attacks.md": ("parity_attacks.py",),
        "benchmarks.md": ("bench_gram.py", "bench_attacks.py"),
        "gpu.md": ("bench_precision.py",),
        "evaluation.md": ("report", "checks", "certificates"),
        "reproduction.md": ("paper_table.py", "attack_run.py"),
    }
    for name, marks in parts.items():
        text = (documents.DOCS / name).read_text(encoding="utf-8")
        copy = tmp_path / name
        copy.write_text(text, encoding="utf-8")
        for mark in marks:
            assert documents.read_part(copy, mark)
            documents.write_part(copy, mark, documents.read_part(copy, mark))
        assert copy.read_text(encoding="utf-8") == text


def test_a_benchmark_writes_its_table_and_its_history(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BENCHMARKS", tmp_path / "benchmarks.md")
    monkeypatch.setattr(documents, "HISTORY", tmp_path / "results")
    (tmp_path / "benchmarks.md").write_text("# Benchmarks\n")
    median = documents.Seconds([0.004, 0.001, 0.002])
    rows = [documents.bar("a", "≥ 2", 1.5, False, f"ours {median}"), documents.bar("b", "≥ 1", 3.0, True, "")]
    documents.write_benchmark("bench_x.py", "case", rows[:1], ("numpy",), "2026-01-01 00:00 UTC")
    for at in ("2026-01-01 00:00 UTC", "2026-01-02 00:00 UTC"):
        documents.write_benchmark("bench_x.py", "case", rows, ("numpy",), at)
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert text.count("| a | ≥ 2 | 1.5 | **falls short** | ours 2 ms (1.5 to 3) |") == 1
    assert f"numpy {np.__version__}" in text and "2026-01-02" in text and "2026-01-01" not in text
    assert "earlier runs" not in text
    kept = [
        json.loads(entry) for entry in (tmp_path / "results" / "bench_x.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(entry["at"][:10], entry["case"], entry["measured"]) for entry in kept] == [
        ("2026-01-01", "a", 1.5),
        ("2026-01-01", "b", 3.0),
        ("2026-01-02", "a", 1.5),
        ("2026-01-02", "b", 3.0),
    ]
    documents.write_benchmark(
        "bench_x.py", "case", [rows[1] | {"measured": 4.0}], ("numpy",), "2026-01-03 00:00 UTC"
    )
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "2026-01-03 00:00 UTC (other rows: earlier runs)" in text
    assert text.count("| b |") == 1 and "| b | ≥ 1 | 4 |" in text and "| a | ≥ 2 | 1.5 |" in text
