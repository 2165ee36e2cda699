"""The folder of a run: its settings, results as JSON lines, and states of training in safetensors files.

Everything is written whole or not at all, nothing is pickled, and what a stopped run has left is found again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._files import explained, is_part, read_json, write_atomically


class RunMismatchError(ValueError):
    """The folder holds a run with other settings."""


class DamagedCheckpointError(OSError):
    """A checkpoint cannot be read, or does not hold what it was written with."""


@dataclass(frozen=True)
class RunDirectory:
    """A folder with ``settings.json``, ``results.jsonl`` and whatever else the run puts there.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike, settings: dict[str, Any]) -> RunDirectory:
        """The folder of the run with these settings, made if there is none.

        Parameters
        ----------
        path : path
        settings : dict of what JSON can hold

        Raises
        ------
        RunMismatchError
            If the folder holds a run with other settings, or something else than a run; the message names
            what differs.
        """
        path, settings = Path(path), json.loads(json.dumps(settings))
        file = path / "settings.json"
        if file.exists():
            there = read_json(file)
            if not isinstance(there, dict):
                raise RunMismatchError(f"{file} holds no settings of a run; use another folder")
            names = [*settings, *(name for name in there if name not in settings)]
            differences = [
                f"{name}: {there.get(name)!r} there, {settings.get(name)!r} here"
                for name in names
                if there.get(name) != settings.get(name)
            ]
            if differences:
                raise RunMismatchError(
                    f"{path} holds a run with other settings, and nothing of it was changed. "
                    f"{'; '.join(differences)}. Use another folder, or delete this one"
                )
            return cls(path)
        # a run that was killed at once has left no more than an unfinished file
        if path.exists() and (not path.is_dir() or not all(is_part(p) for p in path.iterdir())):
            raise RunMismatchError(f"{path} is there, but holds no run (no settings.json); use another folder")
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(settings, indent=2).encode() + b"\n")
        return cls(path)

    def results(self) -> list[dict[str, Any]]:
        """The results so far, in the order in which they came; a torn last line is cut off."""
        file = self.path / "results.jsonl"
        if not file.exists():
            return []
        lines = file.read_bytes().splitlines(keepends=True)
        found, good = [], 0
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("the line has no end")
                found.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise OSError(
                        f"line {number} of {file} cannot be read ({error}); delete it, and only this result is "
                        "computed again"
                    ) from error
                os.truncate(file, good)
            good += len(line)
        return found

    def append(self, result: dict[str, Any]) -> None:
        """Add a result, on disk when this returns."""
        file = self.path / "results.jsonl"
        line = json.dumps(result).encode() + b"\n"
        with explained(file), file.open("ab") as out:
            size = out.tell()
            try:
                out.write(line)
                out.flush()
                os.fsync(out.fileno())
            except OSError:
                # not half a line, which would take the next one with it
                os.truncate(file, size)
                raise

    def joined(self, *parts: str) -> Path:
        """A path inside the folder, whose parent is there."""
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def save_checkpoint(path: Path, tree: Any) -> None:
    """Write a pytree of arrays (PRNG keys among them) as one safetensors file.

    Parameters
    ----------
    path : Path
    tree : pytree
    """
    safetensors = _safetensors()
    leaves = _named_leaves(tree)
    arrays = {name: _plain(leaf) for name, leaf in leaves}
    if len(arrays) < len(leaves) or any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise TypeError(
            "a checkpoint holds NumPy's numbers under names of their own; cast bfloat16 to float32 first"
        )
    write_atomically(path, safetensors.save(arrays, metadata={"sha256": _digest(arrays)}))


def load_checkpoint(path: Path, like: Any) -> Any:
    """Read what :func:`save_checkpoint` has written.

    Parameters
    ----------
    path : Path
    like : pytree
        Of the same structure, shapes and dtypes; its numbers do not matter.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedCheckpointError
        If it cannot be read, its checksum is wrong, or it holds something else.
    """
    arrays = read_arrays(path)
    leaves = []
    if unknown := sorted(set(arrays) - {name for name, _ in _named_leaves(like)}):
        raise DamagedCheckpointError(
            f"the checkpoint {path} is of something else: it holds {', '.join(unknown[:5])}"
        )
    for name, leaf in _named_leaves(like):
        plain = _plain(leaf)
        if name not in arrays or arrays[name].shape != plain.shape or arrays[name].dtype != plain.dtype:
            found = f"{arrays[name].dtype}{arrays[name].shape}" if name in arrays else "nothing"
            raise DamagedCheckpointError(
                f"the checkpoint {path} is of something else: {name} should be {plain.dtype}{plain.shape}, found "
                f"{found}"
            )
        leaves.append(_restored(arrays[name], leaf))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names, such as ``model/variables/params/dense/bias``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedCheckpointError
        If it cannot be read, or its checksum is wrong.
    """
    safetensors, data = _safetensors(), path.read_bytes()
    try:
        arrays = safetensors.load(data)
        length = int.from_bytes(data[:8], "little")
        expected = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"]
    except (ValueError, KeyError, TypeError, _safetensors_error()) as error:
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    if _digest(arrays) != expected:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: its numbers do not match its checksum")
    return arrays


def _named_leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf) -> np.ndarray:
    # np.ascontiguousarray would make a vector of a number
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def _restored(array, leaf):
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'ntkrobust_sk[evolution]'") from error
    return safetensors.numpy


def _safetensors_error():
    import safetensors

    return safetensors.SafetensorError
