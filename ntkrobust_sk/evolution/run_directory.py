"""The folder of a run: its settings, its results as JSON lines, and whatever else is kept of it.

Everything is written whole or not at all, by one process at a time. Every file and every line carries a checksum
over its content and its place: what is read is what this run has written there, or an error that names the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from .._files import LOCK, explained, held, is_part, read_json, require_file, write_atomically
from ..training.checkpoints import load_checkpoint, read_arrays, save_checkpoint
from .records import Record

# A line of results: what was found, then the checksum.
CHECKSUM = b', "sha256": "'
LINE = re.compile(rb"(\{.*)" + CHECKSUM + rb'([0-9a-f]{64})"\}')
# JSON has no numbers that are not finite.
WORDS = ("NaN", "Infinity", "-Infinity")
# Most lines have none of them, and looking for them in a tree takes as long as parsing it.
WORD_ENDS = (b'NaN"', b'Infinity"')


class RunMismatchError(ValueError):
    """The folder holds a run with other settings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunDirectory.open(folder, {"epochs": 1})
    ...     RunDirectory.open(folder, {"epochs": 2})
    Traceback (most recent call last):
    ntkrobust_sk.evolution.run_directory.RunMismatchError: ...epochs: 1 there, 2 here...
    """


class DamagedRunError(OSError):
    """Settings or results of a run are not what was written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = RunDirectory.open(folder, {"epochs": 1}).path / "settings.json"
    ...     _ = file.write_text(file.read_text().replace("1,", "2,", 1))
    ...     RunDirectory.open(folder, {"epochs": 2})
    Traceback (most recent call last):
    ntkrobust_sk.evolution.run_directory.DamagedRunError: ...
    """


@dataclass(frozen=True)
class RunDirectory:
    """A folder with ``settings.json``, ``results.jsonl`` and whatever else the run puts there.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @classmethod
    @contextmanager
    def session(cls, path: str | os.PathLike, settings: dict[str, Any]) -> Iterator[RunDirectory]:
        """Open the folder for writing, while no other process does.

        Raises
        ------
        FolderInUseError
            If another process writes into it.
        RunMismatchError
            As for :meth:`open`.
        """
        path = _folder_of_a_run(path)
        with held(path):
            yield cls.open(path, settings)

    @classmethod
    def open(cls, path: str | os.PathLike, settings: dict[str, Any]) -> RunDirectory:
        """Return the folder of the run with these settings, made if there is none.

        Parameters
        ----------
        path : path
        settings : dict of what JSON can hold

        Raises
        ------
        RunMismatchError
            If the folder holds a run with other settings, or something else than a run; the message names
            what differs.
        DamagedRunError
            If the settings there are not what was written.
        """
        path, settings = _folder_of_a_run(path), json.loads(json.dumps(settings))
        if not (path / "settings.json").exists():
            stated = settings | {"sha256": _fingerprint(settings)}
            write_atomically(path / "settings.json", json.dumps(stated, indent=2).encode() + b"\n")
            return cls(path)
        there = cls(path).settings
        differences = [
            f"{name}: {there.get(name)!r} there, {settings.get(name)!r} here"
            for name in settings | there
            if there.get(name) != settings.get(name)
        ]
        if differences:
            raise RunMismatchError(
                f"{path} holds a run with other settings, and nothing of it was changed. "
                f"{'; '.join(differences)}. Use another folder, or delete this one"
            )
        return cls(path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Read the run's settings."""
        file = self.path / "settings.json"
        if not file.exists():
            raise FileNotFoundError(f"the path {self.path} holds no run: there is no settings.json")
        there = read_json(file)
        if not isinstance(there, dict):
            raise RunMismatchError(f"{file} holds no settings of a run; use another folder")
        stated = there.pop("sha256", None)
        if stated is None:
            raise DamagedRunError(
                f"{file} has no checksum: the run is of an earlier version, and nothing says that its numbers are "
                "still those that were measured. Use another folder, and run it again"
            )
        if stated != _fingerprint(there):
            raise DamagedRunError(f"{file} was changed: its settings do not match their checksum")
        return there

    @cached_property
    def fingerprint(self) -> str:
        """Compute what tells this run from others."""
        return _fingerprint(self.settings)

    # results

    def results(self) -> list[Record]:
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
        found, file = self._scanned()[0], self.path / "results.jsonl"
        if found and found[-1] is None:
            warnings.warn(
                f"line {len(found)} of {file}, the last, was not finished: it is left out, and computed again "
                "when the run goes on",
                RuntimeWarning,
                stacklevel=2,
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
        file, line = self.path / "results.jsonl", self._line(result)
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
        kept = [self._line(result) for result in self.results() if result["task"] not in tasks]
        write_atomically(self.path / "results.jsonl", b"".join(kept))

    def _line(self, result) -> bytes:
        text = json.dumps(mapped(_word, result), allow_nan=False)
        return f'{text[:-1]}, "sha256": "{_digest(self.fingerprint + text)}"}}\n'.encode()

    def _end(self) -> int:
        """Find where the next line goes. Only the last line is checked: all are when they are read."""
        _, data = self._written()
        end = data.rfind(b"\n") + 1
        if end == 0 or end < len(data):
            return end
        try:
            self._result(data[data.rfind(b"\n", 0, end - 1) + 1 : end - 1])
        except ValueError:
            return self._scanned()[1]
        return end

    def _written(self) -> tuple[Path, bytes]:
        file = self.path / "results.jsonl"
        require_file(file)
        return file, file.read_bytes() if file.exists() else b""

    def _scanned(self) -> tuple[list[dict | None], int]:
        """Read each line's result, None for a last one that was not finished, and where the good lines end."""
        file, data = self._written()
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
                    f"line {number} of {file} cannot be read ({error}); delete it, and only this result is "
                    "computed again"
                ) from error
            good += len(line) + 1
        return (found + [None] if len(data) > good else found), good

    def _result(self, line: bytes) -> dict[str, Any]:
        matched = LINE.fullmatch(line)
        if matched is None:
            raise ValueError("it does not end with a checksum" if _is_json(line) else "it is no JSON")
        text = matched[1] + b"}"
        if _digest(self.fingerprint.encode() + text) != matched[2].decode():
            raise ValueError("its checksum is that of another line, or of another run")
        found = json.loads(text)
        if any(word in text for word in WORD_ENDS):
            return mapped(lambda value: float(value) if value in WORDS else value, found)
        return found

    # files

    def joined(self, *parts: str) -> Path:
        """Return a path inside the folder, whose parent is there."""
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def place(self, *parts: str) -> str:
        """Say what a file at this place is of: the run, and where in it."""
        return f"{self.fingerprint[:16]}/{'/'.join(parts)}"

    def save(self, tree: Any, *parts: str) -> None:
        """Write a pytree of arrays to a place in the folder."""
        save_checkpoint(self.joined(*parts), tree, self.place(*parts))

    def load(self, like: Any, *parts: str) -> Any:
        """Read the pytree at a place; see :func:`~ntkrobust_sk.training.load_checkpoint`."""
        return load_checkpoint(self.path.joinpath(*parts), like, self.place(*parts))

    def arrays(self, *parts: str) -> dict[str, np.ndarray]:
        """Read the arrays at a place; see :func:`~ntkrobust_sk.training.checkpoints.read_arrays`."""
        return read_arrays(self.path.joinpath(*parts), self.place(*parts))


def _folder_of_a_run(path: str | os.PathLike) -> Path:
    """Return a folder that holds a run, or nothing yet; it is made if it is not there."""
    path = Path(path)
    is_run = not path.exists() or (path / "settings.json").exists()
    # a run that was killed at once has left no more than a lock and an unfinished file
    if not is_run and not (path.is_dir() and all(is_part(p) or p.name == LOCK for p in path.iterdir())):
        raise RunMismatchError(f"{path} is there, but holds no run (no settings.json); use another folder")
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def _fingerprint(settings) -> str:
    return _digest(json.dumps(settings, sort_keys=True))


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
