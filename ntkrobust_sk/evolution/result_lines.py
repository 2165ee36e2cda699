"""Results of a run as lines of a file, each with a checksum over its content, its place and the run's settings."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .._files import explained, require_file, write_atomically
from .records import Record

# A line of results: what was found, then the checksum.
CHECKSUM = b', "sha256": "'
LINE = re.compile(rb"(\{.*)" + CHECKSUM + rb'([0-9a-f]{64})"\}')
# JSON has no numbers that are not finite.
WORDS = ("NaN", "Infinity", "-Infinity")
# Most lines have none of them, and looking for them in a tree takes as long as parsing it.
WORD_ENDS = (b'NaN"', b'Infinity"')


class DamagedRunError(OSError):
    """Settings or results of a run are not what was written.

    >>> import tempfile
    >>> from ntkrobust_sk.evolution import RunDirectory
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = RunDirectory.open(folder, {"epochs": 1}).path / "settings.json"
    ...     _ = file.write_text(file.read_text().replace("1,", "2,", 1))
    ...     RunDirectory.open(folder, {"epochs": 2})
    Traceback (most recent call last):
    ntkrobust_sk.evolution.result_lines.DamagedRunError: ...
    """


@dataclass(frozen=True)
class ResultLines:
    """A file with a result in each line.

    Attributes
    ----------
    file : Path
    fingerprint : str
        Of the run that the results are of.
    """

    file: Path
    fingerprint: str

    def read(self) -> list[Record]:
        """Read the results so far, in the order in which they came. Nothing is written.

        A result that is there twice counts once.

        Raises
        ------
        DamagedRunError
            Naming file and line: of a line that is not what was written, and of two that differ about one task.

        Warns
        -----
        RuntimeWarning
            For a last line that was not finished; it is left out.
        """
        found, file = self._scanned()[0], self.file
        if found and found[-1] is None:
            warnings.warn(
                f"line {len(found)} of {file}, the last, was not finished: it is left out, and computed again "
                "when the run goes on",
                RuntimeWarning,
                stacklevel=3,
            )
        kept = {}
        for number, result in enumerate(found, 1):
            if result is None:
                continue
            first, known = kept.setdefault(result.get("task", number), (number, result))
            if known is not result and mapped(_word, known) != mapped(_word, result):
                raise DamagedRunError(
                    f"lines {first} and {number} of {file} both hold the task {result['task']!r}, and differ; "
                    "delete one of them"
                )
        return cast("list[Record]", [result for _, result in kept.values()])

    def append(self, result: Record) -> None:
        """Add a result, on disk when this returns; a last line that was not finished is cut off first."""
        file, line = self.file, self._line(result)
        good = self._end()
        with explained(file), file.open("ab") as out:
            try:
                os.truncate(file, good)
                out.write(line)
                out.flush()
                os.fsync(out.fileno())
            except BaseException:
                # not half a line, which would take the next one with it
                os.truncate(file, good)
                raise

    def forget(self, tasks: Collection[str]) -> None:
        """Take the results of some tasks out, so that they are computed again."""
        kept = [self._line(result) for result in self.read() if result["task"] not in tasks]
        write_atomically(self.file, b"".join(kept))

    def _line(self, result) -> bytes:
        text = json.dumps(mapped(_word, result), allow_nan=False)
        return f'{text[:-1]}, "sha256": "{digest(self.fingerprint + text)}"}}\n'.encode()

    def _end(self) -> int:
        """Find where the next line goes. Only the last line is checked: all are when they are read."""
        data = self._written()
        end = data.rfind(b"\n") + 1
        if end == 0 or end < len(data):
            return end
        try:
            self._result(data[data.rfind(b"\n", 0, end - 1) + 1 : end - 1])
        except ValueError:
            return self._scanned()[1]
        return end

    def _written(self) -> bytes:
        require_file(self.file)
        return self.file.read_bytes() if self.file.exists() else b""

    def _scanned(self) -> tuple[list[dict | None], int]:
        """Read each line's result, None for a last one that was not finished, and where the good lines end."""
        data = self._written()
        lines = data.split(b"\n")
        torn = lines.pop()
        found, good = [], 0
        for number, line in enumerate(lines, 1):
            try:
                found.append(self._result(line))
            except ValueError as error:
                if number == len(lines) and not torn and not _is_json(line) and CHECKSUM not in line:
                    torn = line
                    break
                raise DamagedRunError(
                    f"line {number} of {self.file} cannot be read ({error}); delete it, and only this result is "
                    "computed again"
                ) from error
            good += len(line) + 1
        return (found + [None] if len(data) > good else found), good

    def _result(self, line: bytes) -> dict[str, Any]:
        matched = LINE.fullmatch(line)
        if matched is None:
            raise ValueError("it does not end with a checksum" if _is_json(line) else "it is no JSON")
        text = matched[1] + b"}"
        if digest(self.fingerprint.encode() + text) != matched[2].decode():
            raise ValueError("its checksum is that of another line, or of another run")
        found = json.loads(text)
        if any(word in text for word in WORD_ENDS):
            return mapped(lambda value: float(value) if value in WORDS else value, found)
        return found


def digest(text: str | bytes) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change whatever stands in dicts and lists."""
    if isinstance(value, dict):
        return {name: mapped(change, inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(change, inner) for inner in value]
    return change(value)


def _word(value: Any) -> Any:
    """Put words in place of numbers that are not finite."""
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value
