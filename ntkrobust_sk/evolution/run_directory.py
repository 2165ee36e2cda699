"""The folder of a run: its settings, its results as JSON lines, and whatever else is kept of it.

Everything is written whole or not at all, by one process at a time. Every file and every line carries a checksum
over its content and its place: what is read is what this run has written there, or an error that names the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .._files import explained, is_part, read_json, write_atomically
from .._locks import LOCK, held
from .._validation import brief
from ..training.checkpoints import load_checkpoint, read_arrays, save_checkpoint
from .records import Record
from .result_lines import DamagedRunError, ResultLines, digest

# Where settings.json states what is free to differ.
GOING_ON = "going_on"


class RunMismatchError(ValueError):
    """The folder holds a run with other settings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunDirectory.open(folder, {"epochs": 1})
    ...     RunDirectory.open(folder, {"epochs": 2})
    Traceback (most recent call last):
    ntkrobust_sk.evolution.run_directory.RunMismatchError: ...epochs: 1 there, 2 here...
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
    def session(
        cls, path: str | os.PathLike, settings: dict[str, Any], going_on: dict[str, Any] | None = None
    ) -> Iterator[RunDirectory]:
        """Open the folder for writing, while no other process does.

        Parameters
        ----------
        path : path
        settings : dict of what JSON can hold
            In which two runs must agree to be the same.
        going_on : dict of what JSON can hold, default=None
            What else it takes to go on, in which they need not. What the folder states of it gives way.

        Raises
        ------
        FolderInUseError
            If another process writes into it.
        RunMismatchError
            As for :meth:`open`.
        """
        path = _folder_of_a_run(path)
        with held(path):
            run = cls.open(path, settings)
            if going_on is not None and json.loads(json.dumps(going_on)) != run.going_on:
                run._write_settings(run.settings, going_on)
                run = cls(path)
            yield run

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
            run = cls(path)
            run._write_settings(settings, {})
            return run
        if found := differences(cls(path).settings, settings):
            raise RunMismatchError(
                f"{path} holds a run with other settings, and nothing of it was changed. "
                f"{'; '.join(found)}. Use another folder, or delete this one"
            )
        return cls(path)

    def _write_settings(self, settings, going_on):
        stated = settings | {"sha256": _fingerprint(settings)}
        if going_on:
            stated[GOING_ON] = going_on | {"sha256": _fingerprint(going_on)}
        write_atomically(self.path / "settings.json", json.dumps(stated, indent=2).encode() + b"\n")

    @property
    def settings(self) -> dict[str, Any]:
        """Read the run's settings, in which another one must agree to be the same."""
        return self._stated[0]

    @property
    def going_on(self) -> dict[str, Any]:
        """Read what else it takes to go on; runs of earlier versions state nothing of it."""
        return self._stated[1]

    @cached_property
    def _stated(self) -> tuple[dict[str, Any], dict[str, Any]]:
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
        more = there.pop(GOING_ON, {})
        sums = [stated, more.pop("sha256", None) if isinstance(more, dict) else None]
        if sums != [_fingerprint(there), _fingerprint(more) if more else None]:
            raise DamagedRunError(f"{file} was changed: its settings do not match their checksum")
        return there, more

    @cached_property
    def fingerprint(self) -> str:
        """Compute what tells this run from others."""
        return _fingerprint(self.settings)

    # results

    @cached_property
    def lines(self) -> ResultLines:
        """The results, in the order of their tasks."""
        return ResultLines(self.path / "results.jsonl", self.fingerprint)

    @cached_property
    def waiting(self) -> ResultLines:
        """The results of tasks that were done before others which come first; the file goes when all are done."""
        return ResultLines(self.path / "waiting.jsonl", self.fingerprint)

    def results(self) -> list[Record]:
        """Read the results so far; see :meth:`ResultLines.read`."""
        return self.lines.read()

    def append(self, result: Record) -> None:
        """Add a result, on disk when this returns."""
        self.lines.append(result)

    def forget(self, tasks: Collection[str]) -> None:
        """Take the results of some tasks out, so that they are computed again."""
        for lines in (self.lines, self.waiting):
            if lines.file.exists():
                lines.forget(tasks)

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


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """List what differs between two settings, field by field where both state an object.

    >>> differences({"epochs": 1, "network": {"type": "MLP"}}, {"epochs": 2, "network": {"type": "CNN"}})
    ['epochs: 1 there, 2 here', "network.type: 'MLP' there, 'CNN' here"]
    """
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{name}: {_shown(there)} there, {_shown(here)} here"]
    parts = [(part, f"{name}.{part}".lstrip(".")) for part in here | there]
    return [line for part, at in parts for line in differences(there.get(part), here.get(part), at)]


def _shown(value) -> str:
    return brief(value) if isinstance(value, dict) else repr(value)


def _fingerprint(settings) -> str:
    return digest(json.dumps(settings, sort_keys=True))
