"""A folder of results by what they were computed from: each is computed once, whichever process asks first."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Memory

from .._locks import alone
from .._validation import brief, check_path
from . import archive
from .tree import decoded, encoded

# Digits of a name: of SHA-256, of which 160 bits are enough for names.
NAME_DIGITS = 40


@dataclass(frozen=True)
class ContentCache:
    """A folder of files, each named by the SHA-256 of what its content was computed from.

    The files are those of :func:`~ntkrobust_sk.load`: JSON, safetensors and checksums, written whole or not at
    all, and reading one runs no code from it. A file that is damaged, or says that it was computed from something
    else than its name, is computed again with a warning. Two processes or threads that want the same at once wait
    for each other, and the second one reads.

    Attributes
    ----------
    folder : Path
        Made when the first file is written.
    """

    folder: Path

    def path(self, kind: str, about: dict) -> Path:
        """Return the path of what was computed from a description of plain JSON."""
        digest = hashlib.sha256(json.dumps([kind, about], sort_keys=True).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:NAME_DIGITS]}.ntk"

    def get(self, kind: str, about: dict, make: Callable[[], Any]) -> Any:
        """Return what the folder has for a description, or make it and keep it.

        Parameters
        ----------
        kind : str
            What it is, such as "gram"; the beginning of the file's name.
        about : dict of str to JSON
            Whatever the result depends on.
        make : callable
            ``make()`` gives an array, or an object that files can hold.

        Returns
        -------
        array or object

        Warns
        -----
        UserWarning
            If a file cannot be read or written; the result is then computed, and as good.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = ContentCache(Path(folder))
        ...     one = cache.get("square", {"of": 3}, lambda: np.array([9.0]))
        ...     again = cache.get("square", {"of": 3}, lambda: print("not asked"))
        >>> again
        array([9.])
        """
        path = self.path(kind, about)
        found = self._read(path, about)
        if found:
            return found[0]
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(path))
            except OSError as error:
                _warn_of_loss(path, error)
                return make()
            # another one may have written it meanwhile
            found = self._read(path, about)
            if found:
                return found[0]
            made = make()
            self._write(path, about, made)
            return made

    def _read(self, path, about) -> list:
        """Return what a file holds in a list, or an empty one where there is none that can be used."""
        if not path.exists():
            return []
        try:
            tree, arrays = archive.read(path, lambda tree: _require_same(tree, about))
            return [decoded(tree["result"], arrays)]
        except MemoryError:
            raise
        except Exception as error:  # whatever classes raise that are made of what they do not take
            warnings.warn(
                f"{path} cannot be used, and what it should hold is computed again: {error}",
                UserWarning,
                stacklevel=4,
            )
            return []

    def _write(self, path, about, made):
        try:
            tree, arrays = encoded(made)
            archive.write(path, {"about": about, "result": tree}, arrays)
        except (OSError, TypeError, ValueError) as error:
            _warn_of_loss(path, error)


def _require_same(tree, about):
    if not isinstance(tree, dict) or tree.get("about") != about:
        raise archive.SavedFileError("it was computed from something else than its name says")


def _warn_of_loss(path, error):
    warnings.warn(f"the result is not kept in the cache, at {path}: {error}", UserWarning, stacklevel=4)


def resolve_cache(name: str, value: Any) -> ContentCache | None:
    """Return the cache of a folder or of a joblib.Memory, or None for None.

    Parameters
    ----------
    name : str
        Of the argument, for the error.
    value : path, joblib.Memory or None
        Of a Memory its own folder is taken, and in it one of ours; a Memory without a folder keeps nothing.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a path that no folder can have.
    NotADirectoryError
        If something else than a folder is there.

    Examples
    --------
    >>> resolve_cache("cache", None)
    >>> resolve_cache("cache", "kernels").folder.name
    'kernels'
    >>> resolve_cache("cache", 5)
    Traceback (most recent call last):
    TypeError: cache must be None, the path of a folder or a joblib.Memory, got 5
    """
    if isinstance(value, Memory):
        value = None if value.location is None else Path(value.location) / "ntkrobust_sk"
    if value is None:
        return None
    if not isinstance(value, str | Path) and not hasattr(value, "__fspath__"):
        raise TypeError(f"{name} must be None, the path of a folder or a joblib.Memory, got {brief(value)}")
    folder = check_path(name, value).absolute()
    for there in (folder, *folder.parents):
        if there.exists() or there.is_symlink():
            if not there.is_dir():
                raise NotADirectoryError(f"{name} must be the path of a folder, but {there} is none")
            break
    return ContentCache(folder)
