"""What functions and classes say of their parameters, read from their source: nothing is imported for it."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
SECTION = re.compile(r"^(?:Parameters|Attributes)\n-+\n(.*?)(?=^\w[\w ]*\n-+$|\Z)", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^(\w[\w, ]*?)(?: : (.*))?\n((?:(?: .*)?\n)*)", re.MULTILINE)
# In the place of a default that there is none of.
NONE_STATED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """A parameter as its function or class describes it.

    Attributes
    ----------
    name, annotation : str
    default : object
    stated : str
        Its type in the docstring, such as ``{"mlp", "cnn"}, default="cnn"``.
    text : str
        Its description there, without markup.
    """

    name: str
    annotation: str
    default: Any
    stated: str = ""
    text: str = ""

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Return the values that it may have, if the docstring lists them all."""
        found = re.match(r"(?:tuple of )?\{([^}]*)\}(?:, default=.*)?$", self.stated)
        return tuple(re.findall(r'"([^"]*)"', found[1])) if found else None


def parameters(file: str, name: str) -> dict[str, Parameter]:
    """Read the parameters of a function, or the fields of a dataclass.

    Parameters
    ----------
    file : str
        Where it is defined, seen from the package.
    name : str

    Examples
    --------
    >>> alpha = parameters("evolution/experiment.py", "KernelEvolution")["alpha"]
    >>> alpha.annotation, alpha.default, alpha.text
    ('float', 0.01, 'Ridge of closed-form regression on the kernel set.')
    """
    body = _tree(file).body
    node = next(n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name)
    given = _fields(node) if isinstance(node, ast.ClassDef) else _arguments(node)
    described = _described(ast.get_docstring(node) or "")
    return {
        name: Parameter(name, ast.unparse(kind) if kind else "", _value(default, file), *described.get(name, ()))
        for name, kind, default in given
    }


def constant(file: str, name: str) -> Any:
    """Read a constant of a module: literals, and what is composed of them and of other constants.

    >>> constant("evolution/setting_checks.py", "REGIMES")
    ('benign', 'adversarial', 'flip')
    """
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return _value(node.value, file)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return constant(_imported(node, file), name)
    return NONE_STATED


def _imported(node, file) -> str:
    above = Path(file).parents[node.level - 1]
    return str(above.joinpath(*node.module.split(".")).with_suffix(".py"))


@cache
def _tree(file) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def _value(node, file) -> Any:
    if node is None:
        return NONE_STATED
    names = {inner.id: constant(file, inner.id) for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    if NONE_STATED in names.values() or any(isinstance(inner, ast.Call) for inner in ast.walk(node)):
        return NONE_STATED
    return eval(compile(ast.Expression(node), file, "eval"), {"__builtins__": {}}, names)


def _fields(node):
    return [(ast.unparse(a.target), a.annotation, a.value) for a in node.body if isinstance(a, ast.AnnAssign)]


def _arguments(node):
    of = node.args
    without = [None] * (len(of.args) - len(of.defaults))
    placed = zip(of.args + of.kwonlyargs, without + of.defaults + of.kw_defaults, strict=True)
    return [(argument.arg, argument.annotation, default) for argument, default in placed]


def _described(docstring) -> dict[str, tuple[str, str]]:
    """Return types and descriptions by names, from the sections of a docstring in numpydoc's form."""
    found = {}
    for section in SECTION.findall(docstring + "\n"):
        for names, stated, text in ENTRY.findall(section):
            for name in names.split(", "):
                found[name] = stated, _plain(text)
    return found


def _plain(text) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())
