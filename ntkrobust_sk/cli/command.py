"""The command ``ntkrobust``."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .. import __version__
from .._files import explained, require_file
from .._validation import check_path
from ..evolution.experiment import ATTACKS, PRESETS, REGIMES, STAGE2, KernelEvolution, preset
from ..execution.interrupts import heard
from ..networks.named import NETWORKS
from ..networks.precision import PRECISIONS
from ..reports.demo import run_demo, settings_for
from ..reports.run_report import write_report
from ..tangent.linearization import DYNAMICS
from .attack import ATTACKS as SAVED_ATTACKS
from .attack import KNOWN_NORMS, attack_examples, load_estimator, load_test_examples, make_attack, write_examples

# Errors that happen without the library being wrong: told in one line.
EXPECTED = (ValueError, ArithmeticError, OSError, ImportError, MemoryError)
# Status of what Ctrl-C has ended.
STOPPED = 128 + signal.SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    options = vars(_parser().parse_args(arguments))
    command, run = options.pop("command"), options.pop("run")
    try:
        with heard(), _one_line_each(command):
            return run(options)
    except EXPECTED as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())]) or type(error).__name__
        print(f"ntkrobust {command}: {_in_a_line(said)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ntkrobust {command}: stopped", file=sys.stderr)
        return STOPPED


def process() -> None:
    """Run the command as a process of its own, which ends here."""
    status = main()
    if status == STOPPED:
        # a program that is still being compiled in another thread would crash Python's orderly end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _in_a_line(error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _one_line_each(command):
    """Show warnings as lines of the command, without places in a program that its user has not written."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"ntkrobust {command}: {_in_a_line(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def demo(options: dict[str, Any]) -> int:
    """Run ``ntkrobust demo``."""
    out, strict, data = options.pop("out"), options.pop("strict"), options.pop("data")
    _say_where_from("demo", data, options["data_dir"])
    held = run_demo(settings_for(data, **options), Path(out))
    # the claims are stated for the digits; elsewhere they are a finding, not a requirement
    strict = data == "digits" if strict is None else strict
    if strict and not held:
        print("ntkrobust demo: a claim does not hold, see above", file=sys.stderr)
        return 1
    return 0


def evolve(options: dict[str, Any]) -> int:
    """Run ``ntkrobust evolve``."""
    start, out, n_jobs = time.perf_counter(), options.pop("out"), options.pop("jobs")
    _say_where_from("evolve", options["data"], options["data_dir"])
    experiment = preset(**options)
    if missing := [name for name in ("safetensors", "zarr", "matplotlib", "jinja2") if find_spec(name) is None]:
        # the report, which comes last, needs them too
        raise ImportError(f"evolve needs {', '.join(missing)}: pip install 'ntkrobust_sk[evolution]'")
    require_file(check_path("--out", out) / "report.html")
    result = experiment.run(out) if n_jobs is None else experiment.run(out, n_jobs=n_jobs)
    report = write_report(result)
    print(f"{len(result.results)} results in {time.perf_counter() - start:.0f} s. Report: {report.resolve()}")
    return 0


def attack(options: dict[str, Any]) -> int:
    """Run ``ntkrobust attack``."""
    bounds = options["bounds"] and tuple(options["bounds"])
    chosen = make_attack(
        options["attack"], options["epsilon"], norm=options["norm"], n_steps=options["steps"], bounds=bounds
    )
    out = _output_file(options["out"], options["model"], options["data"])
    _say_where_from("attack", options["data"], options["data_dir"])
    estimator = load_estimator(options["model"], lambda line: print(f"ntkrobust attack: {line}", file=sys.stderr))
    seed = options["random_state"]
    X, y = load_test_examples(options["data"], options["data_dir"], n_test=options["n_test"], random_state=seed)
    if bounds is not None and (X.min() < bounds[0] or X.max() > bounds[1]):
        raise ValueError(
            f"the data range from {X.min():.6g} to {X.max():.6g}, out of the bounds {bounds[0]:g} to "
            f"{bounds[1]:g}; give --bounds LOW HIGH or --no-bounds"
        )
    try:
        found = attack_examples(estimator, X, y, chosen, random_state=seed)
    except EXPECTED:
        raise
    except Exception as error:  # what cannot be attacked, and whatever a stranger's estimator raises
        kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        raise ValueError(f"{options['model']} cannot be attacked: {kind}{said}") from error
    write_examples(out, found, options | {"attack": repr(chosen), "norm": chosen.norm})
    print(f"{options['model']}, {chosen!r}")
    print(found)
    print(f"Examples: {out.resolve()}")
    return 0


def _output_file(out, *inputs) -> Path:
    """Return the file that a command is to write, refused before the work where it cannot be."""
    out = check_path("--out", out)
    for name in inputs:
        if Path(name).exists() and out.exists() and Path(name).samefile(out):
            raise ValueError(f"--out {out} would overwrite what is attacked; give another file")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file, such as {out / 'adversarial.npz'}")
    with explained(out):
        require_file(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return out


def _say_where_from(command, data, data_dir):
    if data in PRESETS and data != "digits" and data_dir is None:
        print(f"ntkrobust {command}: no --data-dir, so {data} is fetched from OpenML", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ntkrobust", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ntkrobust_sk {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_evolve(commands)
    _add_attack(commands)
    return parser


def _add_demo(commands):
    parser = commands.add_parser(
        "demo",
        help="benign and adversarial training, their kernels, and regression and training on them",
        description="Train a small network benignly and adversarially, take both empirical NTKs, regress on each "
        "in closed form, train adversarially on the frozen kernel, and print what is robust.",
    )
    parser.set_defaults(run=demo)
    parser.add_argument("--data", choices=sorted(PRESETS), default="digits")
    parser.add_argument("--data-dir", help="folder with the data set's canonical files (not for digits)")
    parser.add_argument("--network", choices=tuple(NETWORKS))
    parser.add_argument("--n-train", type=int, help="training images, balanced over the classes")
    parser.add_argument("--n-test", type=int, help="test images, all of them attacked")
    parser.add_argument("--n-kernel", type=int, help="training images for kernels and closed-form regression")
    parser.add_argument("--epsilon", type=_fraction, help="L-infinity radius in [0, 1] pixel units, such as 4/255")
    parser.add_argument("--train-steps", type=int, help="PGD steps in training")
    parser.add_argument("--test-steps", type=int, help="PGD steps in scoring")
    parser.add_argument("--max-epochs", type=int, help="epochs of each stage")
    parser.add_argument("--alpha", type=float, help="ridge, relative to the kernel's mean diagonal")
    parser.add_argument("--random-state", type=int, help="seed")
    parser.add_argument("--out", default="demo-output", help="folder for results.json and figure.png")
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="exit with status 1 when a claim does not hold (default: for digits only)",
    )


def _add_evolve(commands):
    parser = commands.add_parser(
        "evolve",
        help="the two-stage experiment: kernels over the epochs, training on them, claims, a report",
        description="Train benignly, adversarially, and first one and then the other; measure the kernel at every "
        "epoch; train what the kernels can do; write a report. A stopped run goes on where it was when the same "
        "command is given again.",
    )
    parser.set_defaults(run=evolve)
    parser.add_argument("--data", default="digits", help="digits, cifar10, fashion-mnist, mnist, or an .npz file")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--jobs", type=int, help="processes that share the work; -1 is all cores")
    given = {
        "data_dir": {"help": "folder with the data set's canonical files"},
        "network": {"choices": tuple(NETWORKS)},
        "attack": {"choices": ATTACKS, "help": "in training"},
        "regimes": {"nargs": "+", "choices": REGIMES, "help": "of stage 1"},
        "dynamics": {"nargs": "*", "choices": DYNAMICS, "help": "of stage 2"},
        "stage2": {"nargs": "*", "choices": STAGE2, "help": "training of stage 2"},
        "stage2_from": {"nargs": "*", "type": _start, "metavar": "REGIME:EPOCH", "help": "where stage 2 starts"},
        "epsilon": {"type": _fraction, "help": "L-infinity radius in units of the data, such as 4/255"},
        "clean_step": {
            "action": argparse.BooleanOptionalAction,
            "help": "a clean update before each adversarial one",
        },
        "normalize": {"action": argparse.BooleanOptionalAction, "help": "normalise inputs inside of the network"},
        "freeze_state": {
            "action": argparse.BooleanOptionalAction,
            "help": "keep batch-norm statistics in stage 2",
        },
        "n_kernel": {"type": _count_or_all, "help": "training examples for kernels, or 'all'"},
        "memory": {"help": "for kernels and regression, such as 8GiB"},
        "precision": {"choices": PRECISIONS, "help": "of products; float32 if it is left out"},
        "fractions": {"nargs": "*", "type": float, "help": "epochs, besides whole ones, at which states are kept"},
    }
    types = get_type_hints(KernelEvolution)
    for field in fields(KernelEvolution):
        if field.name == "data":
            continue
        options = given.get(field.name) or {"type": _number_type(types[field.name])}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=None, **options)


def _add_attack(commands):
    parser = commands.add_parser(
        "attack",
        help="attack a saved estimator and write the adversarial examples",
        description="Attack a fitted classifier on the test examples of a data set, print its clean and robust "
        "accuracy, and write the adversarial examples to an .npz file. Loading a file of joblib runs whatever "
        "code is in it: attack only models that you trust. One of an estimator's save, or of skops, runs none.",
    )
    parser.set_defaults(run=attack)
    parser.add_argument(
        "--model",
        required=True,
        help="fitted estimator: a file of its own save method (.ntk; best), of skops.io.dump (.skops), or of "
        "joblib.dump (loading runs code in it, so it must be trusted)",
    )
    parser.add_argument(
        "--data", required=True, help="digits, cifar10, fashion-mnist, mnist, or an .npz file with X and y"
    )
    parser.add_argument("--data-dir", help="folder with the data set's canonical files")
    parser.add_argument("--attack", choices=sorted(SAVED_ATTACKS), default="autoattack")
    parser.add_argument(
        "--epsilon", type=_fraction, required=True, help="radius in units of the data, such as 4/255"
    )
    parser.add_argument("--norm", choices=KNOWN_NORMS, help="default: linf, or the only one of the attack")
    parser.add_argument("--n-test", type=int, default=500, help="test examples at most, all of them attacked")
    parser.add_argument("--steps", type=int, help="steps of the attack, queries of square")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--bounds", nargs=2, type=_fraction, metavar=("LOW", "HIGH"), default=(0.0, 1.0))
    given.add_argument("--no-bounds", dest="bounds", action="store_const", const=None, help="any number is valid")
    parser.add_argument("--random-state", type=int, default=0, help="seed of the attack and of the test examples")
    parser.add_argument("--out", default="adversarial.npz", help="file for the adversarial examples")


def _count_or_all(text: str) -> int | str:
    return text if text == "all" else int(text)


def _number_type(annotation: Any) -> type:
    """Return the one type, int or float, of a setting that may also be None."""
    (number,) = {annotation, *get_args(annotation)} & {int, float}
    return number


def _start(text: str) -> tuple[str, float]:
    regime, _, epoch = text.partition(":")
    try:
        return regime, float(epoch)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected REGIME:EPOCH, such as adversarial:20, got {text!r}") from None


def _fraction(text: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 4/255, got {text!r}") from None


if __name__ == "__main__":
    process()
