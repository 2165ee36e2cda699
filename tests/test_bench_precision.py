"""The script that says what few digits cost: at toy size all of its figures are there, and make sense."""

import importlib
import re

import pytest


@pytest.fixture(scope="module")
def bench(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "examples"))
        yield importlib.import_module("bench_precision")


def largest_and_median(cell):
    return [float(part.strip("()")) for part in cell.split()]


@pytest.mark.slow
def test_a_toy_run_prints_every_figure(bench, capsys):
    found = bench.main(["--toy"])
    printed = capsys.readouterr().out
    cells = [cell for rows in found.values() for row in rows for cell in row.values()]
    assert all(cell in printed for cell in cells) and "nan" not in printed
    assert [(row["network"], row["precision"]) for row in found["errors"]] == [
        (network, precision) for network in ("MLP", "CNN") for precision in bench.PRECISIONS
    ]
    for bf16, tf32 in zip(found["errors"][::2], found["errors"][1::2], strict=True):
        for name in ("logits", "pseudo kernel"):
            (most, half), (most_bf16, half_bf16) = largest_and_median(tf32[name]), largest_and_median(bf16[name])
            assert 1e-6 < half < half_bf16 < most_bf16 < 0.1 and half < most
    pairs = [(row["attacked in"], row["answers in"]) for row in found["evaluation"]]
    assert pairs == [("float32", "float32"), *[(p, judge) for p in bench.PRECISIONS for judge in (p, "float32")]]
    for row in found["training"]:
        for name in ("clean", "robust"):
            assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d %", row[name])


def test_toy_figures_are_not_for_the_documents(bench, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--toy", "--write"])
    assert "not for the documents" in capsys.readouterr().err
