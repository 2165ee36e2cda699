"""A check of what the library promises on a GPU, how fast, and in how much memory: one command, JSON out.

    python examples/gpu_check.py --out gpu_check.json             # at most 4 minutes
    python examples/gpu_check.py --out gpu_check.json --long      # training, attacks and larger kernels too
    python examples/gpu_check.py --toy                            # the same at toy size, on whatever there is

Sections run one after the other in processes of their own, so that one which fails, hangs or runs out of memory
loses nothing after it: it is ended when its time is up, and what it had found by then is kept. A process serves
several sections, since starting one takes seconds, but large factorisations get a fresh GPU. The JSON file is
written after each section, whole or not at all. This file needs nothing but Python; the runner is
``gpu_runner.py``, the sections are in ``gpu_sections.py``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from gpu_runner import Section, carried_out

SECTIONS = (
    Section("device", "first", 60),
    Section("handover", "first", 30),
    Section("solvers", "first", 40),
    Section("rates", "first", 40),
    Section("kernels", "first", 90),
    Section("estimators", "first", 60),
    Section("cholesky", "factorisation", 60),
    Section("attacks", "second", 70),
    Section("resnet", "second", 200),
    Section("training", "training", 240, is_long=True),
    Section("steps", "training", 200, is_long=True),
    Section("gram", "large", 240, is_long=True),
)


def main(arguments=None) -> int:
    """Run what was asked for; 0 if nothing has failed, 2 if there is no GPU."""
    options = parsed(arguments)
    if options.results:
        import gpu_sections

        gpu_sections.run(options.only, Path(options.results), options.toy)
        return 0
    sections = [section for section in SECTIONS if section.name in options.only]
    if options.toy:  # there is no memory to be given back, and processes take longer to start than sections
        sections = [replace(section, process="toy") for section in sections]
    return carried_out(Path(__file__).resolve(), sections, options, {})


def parsed(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu_check.json")
    parser.add_argument("--toy", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--long", action="store_true", help="training, attacks and larger kernels too")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS])
    parser.add_argument("--seconds", type=float, help="in all; default 235, with --long 580")
    parser.add_argument("--cache", help="folder of compiled programs, kept between runs")
    parser.add_argument("--wheels", help="folder of wheels of pure Python that are not installed")
    parser.add_argument("--results", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.seconds is not None and not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    options.seconds = options.seconds or (580.0 if options.long else 235.0)
    wanted = [section.name for section in SECTIONS if options.long or not section.is_long]
    options.only = options.only or wanted
    return options


if __name__ == "__main__":
    sys.exit(main())
