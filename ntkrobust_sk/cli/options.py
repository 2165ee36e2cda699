"""Options of the command line: how they are read, described and, where they are wrong, told of."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn

from .signatures import NONE_STATED, Parameter


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and takes no abbreviations."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with status 2, and one line."""
        message = message.replace(
            "expected at least one argument",
            "expected one value or more, separated by spaces, none of them with a minus sign",
        )
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")

    def refuse(self, unknown: list[str]) -> NoReturn:
        """End because of arguments that are not known, and name what may have been meant."""
        known = [flag for action in self._actions for flag in action.option_strings]
        first = next((one for one in unknown if one.startswith("-")), unknown[0]).partition("=")[0]
        close = difflib.get_close_matches(first, known, n=1)
        self.error(f"unknown argument {first}" + (f"; did you mean {close[0]}?" if close else ""))

    def with_flags(self, message: str) -> str:
        """Write the arguments that a message of the library names as the command has them: --data-dir."""
        flags = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        for name in sorted(flags, key=len, reverse=True):
            # a name of several words is one anywhere; a word is one where it stands as an argument
            where = rf"(?<![\w./'\"-]){name}(?![\w./'\"(-])"
            pattern = where if "_" in name else rf"^{name}(?= )|(?<!the )(?<!an ){where}(?= must\b|=)"
            message = re.sub(pattern, flags[name], message)
        return message

    def describe_with_flags(self) -> None:
        """Name other options in the help as the command has them."""
        for action in self._actions:
            if action.help and "_" in action.help:
                action.help = self.with_flags(f" {action.help}").strip()


def fraction(text: str) -> float:
    """Read a number, or a fraction such as 4/255."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 4/255, got {text!r}") from None


def count_or_text(text: str) -> int | str:
    """Read a count, or a word in its place."""
    try:
        return int(text)
    except ValueError:
        return text


def increasing(flag: str, values: list[float]) -> list[float]:
    """Return radii as they are, or raise ValueError that names the flag.

    >>> increasing("--epsilon", [0.2, 0.1])
    Traceback (most recent call last):
    ValueError: --epsilon must be in ascending order, each radius once, got 0.2 0.1
    """
    for value in values:
        if not 0 <= value < math.inf:
            raise ValueError(f"{flag} must be a finite number >= 0, in units of the data, got {value:g}")
    if any(low >= high for low, high in pairwise(values)):
        given = " ".join(f"{value:g}" for value in values)
        raise ValueError(f"{flag} must be in ascending order, each radius once, got {given}")
    return values


def add_output(parser: Parser, overwrites: bool = False) -> Any:
    """Add the options of what a command prints and writes, and return their group."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, to stdout")
    if overwrites:
        group.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    return group


# How the values of parameters are read, by their annotations.
READERS = {"int": int, "float": fraction, "int | str": count_or_text}


def add_parameters(
    group: Any, given: Iterable[Parameter], defaults: Mapping[str, Mapping[str, Any]], **special: dict[str, Any]
) -> None:
    """Add an option for each parameter of a function or class, as its docstring describes it.

    Parameters
    ----------
    group : group of a parser
    given : iterable of Parameter
    defaults : dict from data sets to dicts
        What suits data sets, in place of a parameter's own default.
    special : dict of options of ``add_argument``
        By parameter, in place of what would follow from its annotation and docstring.
    """
    for one in given:
        of_data = {data: settings[one.name] for data, settings in defaults.items() if one.name in settings}
        options = {"help": help_of(one, of_data), "default": None} | _form(one) | special.get(one.name, {})
        group.add_argument(f"--{one.name.replace('_', '-')}", **options)


def _form(one: Parameter) -> dict[str, Any]:
    kind = one.annotation.removesuffix(" | None")
    if kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    several = re.match(r"tuple\[(\w+), \.\.\.\]$", kind)
    form: dict[str, Any] = {"nargs": "*"} if several else {}
    if one.choices:
        return form | {"choices": one.choices}
    reader = READERS.get(several[1] if several else kind)
    metavar = "VALUE" if reader is None else "NUMBER" if reader is fraction else "N"
    return form | ({"type": reader} if reader else {}) | {"metavar": metavar}


def help_of(one: Parameter, of_data: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Write the help of a parameter: its description in the docstring, and its default."""
    text = re.sub(r"(^|\. )None\b", r"\1The default", one.text or one.name.replace("_", " "))
    return f"{text.replace('; None', '; the default')} {_default(one, of_data)}".strip().replace("%", "%%")


def _default(one: Parameter, of_data: Mapping[str, Any]) -> str:
    """Write a default, and what suits data sets in its place."""
    if one.default is NONE_STATED or (one.default is None and not of_data):
        return ""
    said = [_written(one.default)]
    for value in dict.fromkeys(of_data.values()):
        data = ", ".join(name for name, other in of_data.items() if other == value)
        said += [f"{_written(value)} for {data}"] if value != one.default else []
    return f"[{'; '.join(said)}]"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(_written, value)) or "none"
    if isinstance(value, float) and value != round(value, 4):
        return f"{value * 255:.6g}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)
