"""Single values: numbers, flags, choices, seeds, functions and paths."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# What a seed may be at most: NumPy's legacy generators take 32 bits.
LARGEST_SEED = 2**32 - 1
# What is counted is counted in 32 bits, in compiled loops and in the shapes of arrays.
LARGEST_COUNT = 2**31 - 1
# Bytes of one component of a path, on the file systems in use.
LONGEST_NAME = 255
# What a URL begins with, also where a Path has made one slash of two; one letter is a drive.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def brief(value: Any) -> str:
    """Show a value in an error message: its repr, cut where it is long, or an array's shape and dtype.

    >>> brief("x"), brief(np.zeros((100, 3)))
    ("'x'", 'an array of shape (100, 3) and dtype float64')
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(value, "dtype"):
        return f"an array of shape {shape} and dtype {value.dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever a stranger's repr raises: an integer of 5,000 digits has none either
        text = f"<{type(value).__name__}>"
    if len(text) <= 100:
        return text
    name = getattr(value, "__name__", None)
    return (
        f"{type(value).__name__} {name}" if isinstance(name, str) else f"{text[:80]} ... ({type(value).__name__})"
    )


def brief_with_dtype(values: Any, dtype: Any) -> str:
    """Describe a value like :func:`brief`, with the dtype that NumPy makes of it.

    >>> brief_with_dtype(["a"], np.dtype("<U1")), brief_with_dtype(np.array(["a"]), np.dtype("<U1"))
    ("['a'], of dtype <U1", 'an array of shape (1,) and dtype <U1')
    """
    text = brief(values)
    return text if "dtype" in text else f"{text}, of dtype {dtype}"


def unknown(name: str, value: Any, known: Iterable, otherwise: str = "") -> str:
    """Return the one wording of errors about choices: what came, what is known, what else may be given.

    >>> unknown("solver", 5, ["cholesky", "eigh"], "an object called as solver(A, B)")
    "unknown solver 5; known are 'cholesky', 'eigh', or an object called as solver(A, B)"
    """
    what_else = f", or {otherwise}" if otherwise else ""
    return f"unknown {name} {brief(value)}; known are {', '.join(map(repr, known))}{what_else}"


def check_choice(name: str, value: Any, known: Iterable, otherwise: str = "") -> None:
    """Raise ValueError that lists ``known`` unless ``value`` is one of them.

    >>> check_choice("norm", "l3", ("linf", "l2"))
    Traceback (most recent call last):
    ValueError: unknown norm 'l3'; known are 'linf', 'l2'
    """
    known = list(known)
    try:
        found = value in set(known)
    except TypeError:  # what has no hash is no choice
        found = False
    if not found:
        raise ValueError(unknown(name, value, known, otherwise))


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    unit: str = "",
) -> float:
    """Return a finite real number as a float.

    Parameters
    ----------
    name : str
        Of the argument, for the error.
    value : real number
        Of Python, NumPy or JAX; no bool.
    low, high, above, below : float
        It must be >= low, <= high, > above and < below.
    unit : str, default=""
        Said after the range, such as "in units of the data".

    Raises
    ------
    ValueError
        For anything else.

    Examples
    --------
    >>> number("epsilon", np.float32(0.5), low=0)
    0.5
    >>> number("epsilon", "x", low=0)
    Traceback (most recent call last):
    ValueError: epsilon must be a finite number >= 0, got 'x'
    """
    found = _as_float(value)
    inside = found is not None and low <= found <= high and above < found < below
    if found is None or not math.isfinite(found) or not inside:
        limits = [(">=", low), (">", above), ("<=", high), ("<", below)]
        said = [f"{sign} {limit:g}" for sign, limit in limits if math.isfinite(limit)]
        wanted = " ".join(["a finite number", " and ".join(said), unit]).replace("  ", " ").strip()
        raise ValueError(f"{name} must be {wanted}, got {brief(value)}")
    return found


def _as_float(value):
    """Convert a real number to a float; None for anything else."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return None
    if not isinstance(value, numbers.Real) and not _is_real_scalar(value):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _is_real_scalar(value) -> bool:
    """Tell whether an array of no axes holds a real number; bfloat16 is one to NumPy's names alone."""
    if isinstance(value, type) or not hasattr(value, "dtype") or np.ndim(value) != 0:
        return False
    return getattr(value.dtype, "kind", "") in ("i", "u", "f") or str(value.dtype) == "bfloat16"


def flag(name: str, value: Any) -> bool:
    """Return True or False, of Python or NumPy.

    >>> flag("centered", np.True_)
    True
    >>> flag("centered", "no")
    Traceback (most recent call last):
    ValueError: centered must be True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {brief(value)}")
    return bool(value)


def integer(name: str, value: Any, *, low: int = 1, high: int = LARGEST_COUNT) -> int:
    """Return a whole number from ``low`` to ``high`` as an int.

    Raises
    ------
    ValueError
        For what is no integer (a bool is none), and outside of the range.

    Examples
    --------
    >>> integer("n_steps", np.int64(3))
    3
    >>> integer("n_steps", 0)
    Traceback (most recent call last):
    ValueError: n_steps must be a positive integer, got 0
    """
    found = _as_int(value)
    if found is None or not low <= found <= high:
        wanted = {0: "an integer >= 0", 1: "a positive integer"}.get(low, f"an integer >= {low}")
        wanted += f", at most {high}" if high != LARGEST_COUNT or (found or 0) > high else ""
        raise ValueError(f"{name} must be {wanted}, got {brief(value)}")
    return found


def job_count(n_jobs: Any) -> int | None:
    """Return ``n_jobs`` as joblib takes it: None, or an integer other than 0, of which -1 means all cores.

    >>> job_count(0)
    Traceback (most recent call last):
    ValueError: n_jobs must be None or an integer other than 0 (-1 is all cores), got 0
    """
    found = _as_int(n_jobs)
    if n_jobs is not None and (found is None or not 0 < abs(found) <= LARGEST_COUNT):
        raise ValueError(f"n_jobs must be None or an integer other than 0 (-1 is all cores), got {brief(n_jobs)}")
    return found


def _as_int(value) -> int | None:
    """Convert a whole number to an int; None for anything else."""
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return None


def positive_tuple(name: str, values: Any) -> tuple[int, ...]:
    """Return ``values`` as a tuple of positive int.

    >>> positive_tuple("widths", [16, 8])
    (16, 8)
    """
    try:
        found = [_as_int(value) for value in values]
    except Exception:  # whatever a stranger raises when it is gone through
        found = [None]
    result = tuple(value for value in found if value is not None)
    if isinstance(values, str | bytes | Mapping | set | frozenset) or len(result) < len(found):
        raise ValueError(f"{name} must be a sequence of positive integers, got {brief(values)}")
    if not all(1 <= value <= LARGEST_COUNT for value in result):
        raise ValueError(f"{name} must be positive, at most {LARGEST_COUNT}, got {brief(values)}")
    return result


def checked_seed(name: str, value: Any) -> Any:
    """Return a seed as scikit-learn takes it: None, an int from 0 to 2³² − 1, or a ``numpy.random.RandomState``.

    >>> checked_seed("random_state", np.int64(7))
    7
    >>> checked_seed("random_state", -1)
    Traceback (most recent call last):
    ValueError: random_state must be None, an integer from 0 to 4294967295 or a numpy.random.RandomState, got -1
    """
    if value is None or isinstance(value, np.random.RandomState):
        return value
    try:
        return integer(name, value, low=0, high=LARGEST_SEED)
    except ValueError:
        raise ValueError(
            f"{name} must be None, an integer from 0 to {LARGEST_SEED} or a numpy.random.RandomState, got "
            f"{brief(value)}"
        ) from None


def function(name: str, value: Any, call: str, n_arguments: int, *keywords: str) -> Callable:
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


def check_path(name: str, value: Any) -> Path:
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
    >>> check_path("store", "runs/K.zarr").name
    'K.zarr'
    >>> check_path("store", 5)
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
