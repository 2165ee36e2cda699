"""Functions and paths."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

from .scalars import brief

# Bytes of one component of a path, on the file systems in use.
LONGEST_NAME = 255
# What a URL begins with, also where a Path has made one slash of two; one letter is a drive.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def function(name: str, value, call: str, n_arguments: int, *keywords: str) -> Callable:
    """Return what can be called with so many arguments and these keywords.

    Parameters
    ----------
    name : str
    value : callable
        No class: what is wanted is an instance.
    call : str
        How it is called, for the error.
    n_arguments : int
        By position.
    *keywords : str

    Raises
    ------
    TypeError
        For anything else. What states no signature is believed.

    Examples
    --------
    >>> import numpy as np
    >>> function("solver", np.linalg.solve, "solver(A, B)", 2) is np.linalg.solve
    True
    >>> function("solver", lambda A: A, "solver(A, B)", 2)
    Traceback (most recent call last):
    TypeError: solver must be callable as solver(A, B), but <function <lambda> at ...> takes (A)
    """
    if isinstance(value, type):
        raise TypeError(f"{name} must be an instance: write {value.__name__}(...), not {value.__name__}")
    if not callable(value):
        raise TypeError(f"{name} must be callable as {call}, got {brief(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return value
    try:
        signature.bind(*range(n_arguments), **dict.fromkeys(keywords))
    except TypeError:
        raise TypeError(f"{name} must be callable as {call}, but {brief(value)} takes {signature}") from None
    return value


def path(name: str, value) -> Path:
    """Return a path with ``~`` expanded.

    Raises
    ------
    TypeError
        For anything but a str or an ``os.PathLike`` of one.
    ValueError
        For a path that no file system here can have: a URL, empty, with a null character, with a component of
        over 255 bytes, or of a user that does not exist.

    Examples
    --------
    >>> path("store", "runs/K.zarr").name
    'K.zarr'
    >>> path("store", 5)
    Traceback (most recent call last):
    TypeError: store must be a path, a str or pathlib.Path, got 5
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, a str or pathlib.Path, got {brief(value)}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be the path of a file or folder, got {brief(value)}")
    if SCHEME.match(text):
        raise ValueError(
            f"{name} must be the path of a file or folder of this machine, got the URL {brief(text)}; give a path "
            "here, and copy between it and there"
        )
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}={text!r} begins with the home of a user that does not exist: {error}") from None
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in found.parts):
        raise ValueError(f"{name} has a component of over {LONGEST_NAME} bytes: {brief(text)}")
    return found
