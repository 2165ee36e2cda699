"""``ntkrobust demo``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .answer import Answer
from .options import Parser, add_output, add_parameters
from .signatures import constant, parameters
from .sources import require_new, say_where_from

HELP = "benign and adversarial training, their kernels, and regression and training on them"
DESCRIPTION = (
    "Train a small network benignly and adversarially, take both empirical NTKs, regress on each in closed form, "
    "train adversarially on the frozen kernel, and print what is robust. In brackets: defaults."
)
GROUPS = {
    "data": ("data_dir", "n_train", "n_test", "n_kernel"),
    "network and training": ("network", "max_epochs", "alpha", "random_state"),
    "attack": ("epsilon", "train_steps", "test_steps"),
}


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust demo``."""
    described = parameters("reports/demo.py", "Demo")
    presets, sizes = constant("evolution/presets.py", "PRESETS"), constant("reports/demo.py", "SIZES")
    defaults = {data: presets[data] | sizes[data] for data in presets}
    special = {"network": {"choices": constant("cli/evolve.py", "NETWORKS")}}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        if title == "data":
            group.add_argument("--data", choices=sorted(presets), default="digits", help="data set [digits]")
        add_parameters(group, [described[name] for name in names], defaults, **special)
    group = add_output(parser, overwrites=True)
    group.add_argument("--out", default="demo-output", help="folder for results.json and figure.png [demo-output]")
    group.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="exit with status 1 when a claim does not hold [for digits only]",
    )


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust demo``."""
    from .._validation import check_path
    from ..reports.demo import run_demo, settings_for

    out, strict, data = Path(options.pop("out")), options.pop("strict"), options.pop("data")
    require_new(check_path("--out", out) / "results.json", options.pop("overwrite"))
    say_where_from("demo", data, options["data_dir"])
    held = run_demo(settings_for(data, **options), out)
    # the claims are stated for the digits; elsewhere they are a finding, not a requirement
    strict = data == "digits" if strict is None else strict
    if strict and not held:
        print("ntkrobust demo: a claim does not hold or has no verdict, see above", file=sys.stderr)
    return Answer("", lambda: json.loads((out / "results.json").read_text()), status=int(strict and not held))
