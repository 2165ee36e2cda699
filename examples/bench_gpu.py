"""Timings of the library on a GPU beside what the device can do: one command, at most 10 minutes, JSON out.

    python examples/bench_gpu.py --plan                   # what would run, in how many seconds; nothing runs
    python examples/bench_gpu.py --out bench_gpu.json     # the default sections
    python examples/bench_gpu.py --only class --minutes 5 --cache DIR
    python examples/bench_gpu.py --toy                    # the same at toy size, on whatever there is

Kernels of a ResNet-18 at 1,000 to 10,000 rows as shares of the product rate, which is measured in the same
process, and what 50,000 rows would take by that; the same kernels by `jax.jacrev` and by neural-tangents, where
these fit; a path of ridges with leave-one-out errors; training and attacks in single precision and in bf16.
Whatever is timed is also checked. As in ``gpu_check.py`` sections run in processes of their own, and lose nothing
if one is ended. This file needs nothing but Python; the runner is ``gpu_runner.py``, the sections are in
``bench_gpu_sections.py``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from gpu_runner import ENVIRONMENT, Section, carried_out

# In the order in which they matter, should time run out.
SECTIONS = (
    Section("device", "first", 60),
    Section("small", "first", 90),
    Section("pseudo", "kernels", 200),
    Section("class", "kernels", 240),
    Section("training", "networks", 240),
    Section("leave_one_out", "solutions", 100),
    Section("tiles", "tiles", 60, is_long=True),
    Section("peers", "peers", 240, is_long=True),
)


def main(arguments=None) -> int:
    """Run what was asked for; 0 if nothing has failed, 2 if there is no GPU."""
    options = parsed(arguments)
    if options.results or options.plan:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import bench_gpu_sections
        import gpu_sections

        if options.plan:
            table, seconds = bench_gpu_sections.plan(SECTIONS, options)
            print(table)
            require_time(seconds, options.seconds)
        else:
            gpu_sections.run(options.only, Path(options.results), options.toy, vars(bench_gpu_sections))
        return 0
    sections = [section for section in SECTIONS if section.name in options.only]
    if options.toy:  # there is no memory to be given back, and processes take longer to start than sections
        sections = [replace(section, process="toy") for section in sections]
    return carried_out(Path(__file__).resolve(), sections, options, {})


def require_time(predicted: dict[str, float], allowed: float) -> None:
    """End with an error where sections are predicted to take longer than is allowed, and say which ones fit."""
    total = sum(predicted.values())
    if total <= allowed:
        return
    ends = zip(predicted, accumulate(predicted.values()), strict=True)
    fitting = [name for name, end in ends if end <= allowed]
    only = f", or --only {' '.join(fitting)}" if fitting else ""
    sys.exit(
        f"{total:.0f} s are predicted, but --minutes {allowed / 60:g} allows {allowed:.0f}: the last sections "
        f"would not run. Give --minutes {math.ceil(total / 6) / 10:g}{only}"
    )


def parsed(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="bench_gpu.json")
    parser.add_argument("--minutes", type=float, default=9.8, help="in all, starting processes included")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS])
    parser.add_argument("--long", action="store_true", help="peers and sizes of tiles too; give it 15 minutes")
    parser.add_argument("--toy", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--plan", action="store_true", help="print floors, predictions and time-outs; run nothing")
    parser.add_argument("--cache", help="folder of compiled programs, kept between runs")
    parser.add_argument("--wheels", help="folder of wheels of pure Python that are not installed")
    parser.add_argument("--results", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be positive, got {options.minutes:g}")
    options.seconds = 60 * options.minutes
    options.only = options.only or [section.name for section in SECTIONS if options.long or not section.is_long]
    return options


if __name__ == "__main__":
    sys.exit(main())
