"""
How much faster is an experiment with two processes?
====================================================

A shortened experiment on the digits, by the command: once by one process that has one core, once by ``--jobs 2``
on two. Whole commands are timed, imports and compilation included, each in a fresh folder and without programs
that were compiled before. Then all files of the two folders are compared, byte for byte.

Needs a system on which a process can be held to a core (Linux). Run ``python examples/bench_evolution.py``;
``--write`` puts the table into ``docs/benchmarks.md``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from documents import bar, now, table_of_bars, write_benchmark

HEAD = "experiment"
OPTIONS = {
    "n-train": 500,
    "n-test": 100,
    "n-kernel": 100,
    "train-steps": 5,
    "test-steps": 10,
    "stage2-epochs": 1,
    "dynamics": "centered",
    "n-features": 2,
    "fractions": 0.5,
}


def run(out: Path, cores: set[int], *options: str) -> float:
    """Run the command on some cores, and return the seconds that it took."""
    given = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "ntkrobust_sk", "evolve", "--data", "digits", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    # XLA's pool of threads has two, also on one core: sums are then added up in the same way
    environment["NPROC"] = "2"
    start = time.perf_counter()
    subprocess.run(
        [*command, *given, *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    return time.perf_counter() - start


def content(out: Path) -> dict[str, bytes]:
    """Read all files of a run but the report, which states the time and the machine."""
    files = (file for file in out.rglob("*") if file.is_file() and file.name != "report.html")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for both runs; one that is there is not done again")
    parser.add_argument("--only", choices=("one", "two"), help="processes; the other run is done at another time")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md, too")
    options = parser.parse_args()
    at, cores = now(), sorted(os.sched_getaffinity(0))[:2]
    given = ["--epochs", str(options.epochs), "--seeds", str(options.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        folder = options.keep or Path(folder)
        for name, on, jobs in (("one", {cores[0]}, "1"), ("two", set(cores), "2")):
            if not (folder / f"{name}.seconds").exists() and options.only in (None, name):
                seconds = run(folder / name, on, *given, "--jobs", jobs)
                (folder / f"{name}.seconds").write_text(str(seconds))
        if not all((folder / f"{name}.seconds").exists() for name in ("one", "two")):
            return
        alone, shared = (float((folder / f"{name}.seconds").read_text()) for name in ("one", "two"))
        same = content(folder / "one") == content(folder / "two")
    detail = f"{alone:.0f} s and {shared:.0f} s, one run of each; epochs: {options.epochs}, seeds: {options.seeds}"
    ratio = alone / shared
    lines = [
        bar("seconds of one process on one core / of `--jobs 2`", "≥ 1.6", ratio, ratio >= 1.6, detail),
        bar("files of both", "the same bytes", "the same" if same else "others", same, "all but the report"),
    ]
    print(table_of_bars(HEAD, lines))
    if options.write:
        write_benchmark("bench_evolution.py", HEAD, lines, ("jax", "numpy", "joblib"), at)


if __name__ == "__main__":
    main()
