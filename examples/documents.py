"""Timings, and the tables that scripts put into documents, between two comments that name the script."""

import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

DOCS = Path(__file__).parents[1] / "docs"
BENCHMARKS = DOCS / "benchmarks.md"
HISTORY = DOCS / "results"


def largest_resident() -> int:
    """Return the largest number of bytes that this process has had in memory, since its program began.

    What ``getrusage`` tells begins with the largest size of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Seconds(float):
    """A median of some times, printed with the quartiles around it."""

    def __new__(cls, times):
        """Take the median of times in seconds."""
        return super().__new__(cls, np.median(times))

    def __init__(self, times):
        self.times = np.asarray(times, float)

    def each(self, n: int) -> "Seconds":
        """Return the time that one of n takes."""
        return Seconds(self.times / n)

    def __str__(self) -> str:
        unit, scale = ("s", 1.0) if self >= 1 else ("ms", 1e3)
        low, middle, high = (f"{scale * t:.3g}" for t in np.quantile(self.times, (0.25, 0.5, 0.75)))
        return f"{middle} {unit} ({low} to {high})"


def alternating_seconds(*functions, repeats: int) -> list[Seconds]:
    """Medians of calls in turn, so that whatever else the machine does meets all alike."""
    seconds = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                found.append(time.perf_counter() - start)
    return [Seconds(found) for found in seconds]


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


def write_benchmark(script: str, head: str, lines: list[dict], packages: tuple[str, ...], at: str) -> None:
    """Put a benchmark's table into docs/benchmarks.md, and a line a case into its history in docs/results/.

    A case that was measured again replaces the one of the same run, which ``at`` names by its time. Rows of cases
    that this run has not measured stay in the table.
    """
    title, *measured = table_of_bars(head, lines).splitlines()
    ruler, measured = measured[0], {_case(row): row for row in measured[1:]}
    before = [row for row in read_part(BENCHMARKS, script).splitlines() if row.startswith("| ")][1:]
    also = " (other rows: earlier runs)" if set(map(_case, before)) - set(measured) else ""
    rows = [measured.pop(_case(row), row) for row in before] + list(measured.values())
    table = "\n".join([title, ruler, *rows])
    how = f"`python examples/{script} --write`, {at}{also}, on {machine(packages)}."
    write_part(BENCHMARKS, script, f"{how}\n\n{table}")
    history = HISTORY / f"{Path(script).stem}.jsonl"
    history.parent.mkdir(exist_ok=True)
    before = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
    kept = [entry for entry in before if json.loads(entry)["at"] != at]
    entries = [json.dumps({"at": at, "on": machine(packages), **line}, ensure_ascii=False) for line in lines]
    history.write_text("\n".join([*kept, *entries]) + "\n", encoding="utf-8")


def now() -> str:
    """Return the time to the minute, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine(packages: tuple[str, ...]) -> str:
    """Describe what figures were measured on: processor, and versions of Python and packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} cores, {model}; Python {platform.python_version()}, {versions}"


def _case(row: str) -> str:
    return row.split(" | ")[0]


def _marks(name) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _split(document, name) -> tuple[str, str, str]:
    begin, end = _marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    part, _, after = rest.partition(end)
    return before, part, after
