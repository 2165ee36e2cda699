"""The command ``ntkrobust``: which part of it is asked for, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

from .. import __version__
from .answer import EXPECTED
from .options import Parser

COMMANDS = ("demo", "evolve", "report", "gram", "attack", "evaluate", "certify", "info")
DESCRIPTION = "Empirical neural tangent kernels under attack."
STATUS = (
    "exit status: 0 where all went well; 1 where a claim does not hold or a check fails; 2 for wrong use or bad "
    "input; 130 when stopped by Ctrl-C"
)
# Status of what Ctrl-C has ended.
STOPPED = 128 + signal.SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    options, parser = read_arguments(arguments)
    command, as_json = options.pop("command"), options.pop("json")
    try:
        # JAX is imported from here on, and not for --help
        from ..execution.interrupts import heard

        # with --json nothing but the object goes to stdout, whatever prints
        with heard(), _one_line_each(parser), redirect_stdout(sys.stderr if as_json else sys.stdout):
            answer = _module(command).run(options)
            said = answer.json if as_json else answer.text
        if said:
            print(said)
        return answer.status
    except EXPECTED as error:
        # JAX's own note is for those who look for faults in JAX
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX_TRACEBACK_FILTERING" not in note]
        said = "; ".join([str(error), *notes]) or type(error).__name__
        print(f"{parser.prog}: {parser.with_flags(_in_a_line(said))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
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


def read_arguments(arguments: list[str] | None = None) -> tuple[dict[str, Any], Parser]:
    """Read the command line: options, with the name of the command, and the command's parser."""
    parser = Parser(prog="ntkrobust", description=DESCRIPTION, epilog=STATUS)
    parser.add_argument("--version", action="version", version=f"ntkrobust_sk {__version__}")
    parts = parser.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")
    commands = {}
    for name in COMMANDS:
        module = _module(name)
        commands[name] = parts.add_parser(name, help=module.HELP, description=module.DESCRIPTION, epilog=STATUS)
        module.add_arguments(commands[name])
        commands[name].describe_with_flags()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[options.command].refuse(unknown)
    return vars(options), commands[options.command]


def _module(command) -> Any:
    return import_module(f"{__package__}.{command}")


def _in_a_line(error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _one_line_each(parser):
    """Show warnings as lines of the command, without places in a program that its user has not written."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{parser.prog}: {parser.with_flags(_in_a_line(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    process()
