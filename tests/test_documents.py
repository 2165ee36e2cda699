"""Tables in documents: scripts of ``examples/`` replace their own part, and leave everything else alone."""

import importlib

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
        "attacks.md": ("parity_attacks.py", "bench_attacks.py"),
        "benchmarks.md": ("bench_gram.py",),
        "evaluation.md": ("report", "checks", "certificates"),
        "reproduction.md": ("paper_table.py",),
    }
    for name, marks in parts.items():
        text = (documents.DOCS / name).read_text(encoding="utf-8")
        copy = tmp_path / name
        copy.write_text(text, encoding="utf-8")
        for mark in marks:
            assert documents.read_part(copy, mark)
            documents.write_part(copy, mark, documents.read_part(copy, mark))
        assert copy.read_text(encoding="utf-8") == text
