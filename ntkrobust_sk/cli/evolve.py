"""``ntkrobust evolve``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer import Answer
from .options import Parser, add_output, add_parameters
from .signatures import constant, parameters
from .sources import say_where_from

if TYPE_CHECKING:
    from ..evolution.experiment import KernelEvolution

HELP = "the two-stage experiment: kernels over the epochs, training on them, claims, a report"
DESCRIPTION = (
    "Train benignly, adversarially, and first one and then the other; measure the kernel at every epoch; train "
    "what the kernels can do; write a report. A stopped run goes on where it was with --out alone. In brackets: "
    "defaults."
)
NETWORKS = ("mlp", "cnn", "resnet18")
OPTIMIZERS = ("sgd", "adam", "adamw")
# Settings that are shown where a run begins.
SHOWN = ("data", "network", "n_train", "n_test", "regimes", "epochs", "epsilon", "seeds")
GROUPS = {
    "data": ("data", "data_dir", "image_size", "n_train", "n_test", "n_kernel", "normalize"),
    "network and training": (
        "network",
        "regimes",
        "epochs",
        "flip_epoch",
        "fractions",
        "optimizer",
        "learning_rate",
        "momentum",
        "batch_size",
        "average_decay",
        "patience",
        "n_validation",
        "clean_step",
    ),
    "attack": ("attack", "epsilon", "norm", "train_steps", "test_steps"),
    "stage 2": ("stage2_from", "stage2_epochs", "stage2_learning_rate", "dynamics", "stage2", "freeze_state"),
}


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust evolve``: the settings of the experiment, by groups."""
    described = parameters("evolution/experiment.py", "KernelEvolution")
    in_groups = {name for names in GROUPS.values() for name in names}
    rest = {"measures, and how they are computed": tuple(name for name in described if name not in in_groups)}
    described["epsilon"] = replace(
        described["epsilon"],
        default=constant("evolution/setting_checks.py", "EPSILON"),
        text="Radius, in units of the data.",
    )
    special = {
        "image_size": {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")},
        "network": {
            "type": _network,
            "metavar": "NETWORK",
            "help": f"{', '.join(NETWORKS)}, or MODULE:NAME of one of your own, an object or a function without "
            "arguments that makes it; modules of the current folder are found. [cnn]",
        },
        "optimizer": {"choices": OPTIMIZERS, "help": "Of both stages. [sgd]"},
        "stage2_from": {"nargs": "*", "type": _start, "metavar": "REGIME:EPOCH"},
        "attack": {"choices": constant("evolution/setting_checks.py", "ATTACKS"), "help": "In training. [pgd]"},
    }
    for title, names in (GROUPS | rest).items():
        group = parser.add_argument_group(title)
        given = [described[name] for name in names]
        add_parameters(group, given, constant("evolution/presets.py", "PRESETS"), **special)
    group = add_output(parser)
    group.add_argument("--out", required=True, help="folder of the run")
    group.add_argument(
        "--from",
        dest="from_",
        metavar="RUN",
        help="folder of another run: its settings, with those given here in their place, and all of its results "
        "that do not depend on these",
    )
    group.add_argument(
        "--jobs", dest="n_jobs", type=int, metavar="N", help="processes that share the work; -1 is all cores [1]"
    )


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust evolve``."""
    from .._files import require_file
    from .._validation import check_path
    from ..reports.evidence import learning_of
    from ..reports.run_report import write_report

    start, out, n_jobs = time.perf_counter(), options.pop("out"), options.pop("n_jobs")
    more = {} if n_jobs is None else {"n_jobs": n_jobs}
    if (from_ := options.pop("from_")) is not None:
        more["from_"] = from_
    if os.getcwd() not in sys.path:
        # as python -m has it, so that networks of one's own are found
        sys.path.insert(0, os.getcwd())
    experiment = _experiment(check_path("--out", out), from_, options)
    say_where_from("evolve", experiment.data, experiment.data_dir)
    if missing := [name for name in ("safetensors", "zarr", "matplotlib", "jinja2") if find_spec(name) is None]:
        # the report, which comes last, needs them too
        raise ImportError(f"evolve needs {', '.join(missing)}: pip install 'ntkrobust_sk[evolution]'")
    require_file(check_path("--out", out) / "report.html")
    result = experiment.run(out, **more)
    report = write_report(result)
    seconds, n_results, why_not = time.perf_counter() - start, len(result.results), learning_of(result).why_not
    stated = {"run": out, "results": n_results, "seconds": seconds, "report": str(report.resolve())}
    return Answer(
        f"{n_results} results in {seconds:.0f} s. Report: {report.resolve()}"
        + (f"\nNo verdicts: {why_not}" if why_not else ""),
        lambda: stated | {"counts": why_not is None, "reason": why_not},
    )


def _experiment(out: Path, from_: str | None, options: dict[str, Any]) -> KernelEvolution:
    """Return the experiment of the folder, or of the one to take over from, with what is given in its place."""
    from ..evolution.experiment import load_experiment
    from ..evolution.presets import preset

    given = {name: value for name, value in options.items() if value is not None}
    is_run = (out / "settings.json").exists()
    folder = out if is_run else from_
    if folder is None:
        return _said(out, preset(**({"data": "digits"} | given)))
    objects = {name: given[name] for name in ("network", "optimizer") if name in given}
    there = load_experiment(folder, **objects)
    if given.get("data", there.data) != there.data:
        given.setdefault("data_dir", None)
    return replace(there, **given) if is_run else _said(out, replace(there, **given))


def _said(out: Path, experiment: KernelEvolution) -> KernelEvolution:
    """Say on stderr that a run begins anew, so that a misspelt folder is not taken for one to go on with."""
    shown = ", ".join(f"{name}={getattr(experiment, name)}" for name in SHOWN)
    print(f"no run in {out} yet: a new one begins, with these settings: {shown}", file=sys.stderr)
    return experiment


def _network(text: str) -> str:
    """Read the name of a network, or MODULE:NAME."""
    if text not in NETWORKS and ":" not in text:
        from .._validation import unknown

        raise argparse.ArgumentTypeError(unknown("network", text, NETWORKS, "MODULE:NAME"))
    return text


def _start(text: str) -> tuple[str, float]:
    regime, _, epoch = text.partition(":")
    try:
        return regime, float(epoch)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected REGIME:EPOCH, such as adversarial:20, got {text!r}") from None
