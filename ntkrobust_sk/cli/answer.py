"""What a command answers: a text for people, the same as data for programs, and its exit status."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Errors that happen without the library being wrong: told in one line.
EXPECTED = (ValueError, ArithmeticError, OSError, ImportError, MemoryError)


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a command.

    Attributes
    ----------
    text : str
        Printed, if ``--json`` is not given.
    data : callable
        Returns what ``--json`` prints, as a dict.
    status : int
        Of the process: 0, or 1 where a claim does not hold, or a check has failed.
    """

    text: str
    data: Callable[[], Mapping[str, Any]]
    status: int = 0

    @property
    def json(self) -> str:
        """Write the data as one JSON object, with null for what is not finite."""
        return json.dumps(plain(self.data()), indent=2, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return what JSON can hold of numbers, arrays and containers of them.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    # arrays, and the numbers of arrays
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
