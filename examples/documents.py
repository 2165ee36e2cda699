"""Timings, and the tables that scripts put into documents, between two comments that name the script."""

import time
from pathlib import Path

import jax
import numpy as np

DOCS = Path(__file__).parents[1] / "docs"


def alternating_seconds(*functions, repeats: int) -> list[float]:
    """Medians of calls in turn, so that whatever else the machine does meets all alike."""
    seconds = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                found.append(time.perf_counter() - start)
    return [float(np.median(found)) for found in seconds]


def read_part(document: Path, name: str) -> str:
    """Return the text between the comments ``<!-- name -->`` and ``<!-- end of name -->``, or ""."""
    return _split(document, name)[1].strip()


def write_part(document: Path, name: str, text: str) -> None:
    """Replace the text between the comments, or append text and comments."""
    before, _, after = _split(document, name)
    begin, end = _marks(name)
    after = after.lstrip("\n")
    text = f"{before.rstrip()}\n\n{begin}\n{text.strip()}\n{end}\n" + (f"\n{after}" if after else "")
    document.write_text(text, encoding="utf-8")


def bar(case: str, bar: str, measured: str | float, holds: bool, detail: str) -> dict:
    """Make a row of :func:`table_of_bars`."""
    return {"case": case, "bar": bar, "measured": measured, "holds": holds, "detail": detail}


def table_of_bars(head: str, lines: list[dict]) -> str:
    """Write measured cases as Markdown, each with the bar that it should reach and whether it does."""
    rows = [f"| {head} | bar | measured | | context |", "|---|---|---|---|---|"]
    for line in lines:
        measured = line["measured"] if isinstance(line["measured"], str) else f"{line['measured']:.3g}"
        verdict = "holds" if line["holds"] else "**falls short**"
        rows.append(f"| {line['case']} | {line['bar']} | {measured} | {verdict} | {line['detail']} |")
    return "\n".join(rows)


def _marks(name) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _split(document, name) -> tuple[str, str, str]:
    begin, end = _marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    part, _, after = rest.partition(end)
    return before, part, after
