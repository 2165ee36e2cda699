"""Networks that are named as ``module:name``, where they are imported from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from .._validation import brief
from ..networks.model import Model, Network, advice

FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_named_by_module(text: str) -> bool:
    """Tell whether a text is meant as ``module:name``.

    >>> is_named_by_module("lab.networks:small"), is_named_by_module("cnn")
    (True, False)
    """
    return ":" in text


def check_form(text: str) -> None:
    """Raise ValueError unless a text is of the form ``module:name``.

    >>> check_form("networks.py:small.")
    Traceback (most recent call last):
    ValueError: network must be 'module:name', such as 'lab.networks:small' for small in lab/networks.py, got ...
    """
    if not FORM.fullmatch(text) or text.partition(":")[0].endswith((".", ".py")) or text.endswith("."):
        raise ValueError(
            "network must be 'module:name', such as 'lab.networks:small' for small in lab/networks.py, got "
            f"{text!r}"
        )


@cache
def imported_network(text: str) -> Network | Model:
    """Import the network or Model that is named as ``module:name``, or make it by calling what is.

    Raises
    ------
    ImportError
        If there is no such module, or it cannot be imported; the message has the cause.
    ValueError
        If the module has no such name, or that is no network, and makes none when it is called without arguments.
    """
    check_form(text)
    module, _, name = text.partition(":")
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever a stranger's module raises
        raise ImportError(
            f"network {text!r}: the module {module} cannot be imported ({type(error).__name__}: {error}); write "
            "'module:name', with the module's folder on PYTHONPATH or the current one"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [n for n in dir(found) if not n.startswith("_")], n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"network {text!r}: {module} has no {part}{meant}")
        found = getattr(found, part)
    if isinstance(found, type) or (callable(found) and not isinstance(found, Network | Model)):
        found = _made(text, found)
    if isinstance(found, type) or not isinstance(found, Network | Model):
        raise ValueError(
            f"network {text!r} is {brief(found)}, which is no network: it must be an object with init and apply, "
            f"a Model, or a function without arguments that returns one{advice(found)}"
        )
    return found


def _made(text: str, factory: Callable) -> Any:
    try:
        return factory()
    except Exception as error:  # whatever a stranger's function raises
        raise ValueError(
            f"network {text!r} was called without arguments, to make a network, and raised "
            f"{type(error).__name__}: {error}"
        ) from error


def resolved(network: Any) -> Any:
    """Return a network as it is, imported if it is named as ``module:name``."""
    is_text = isinstance(network, str) and is_named_by_module(network)
    return imported_network(network) if is_text else network
