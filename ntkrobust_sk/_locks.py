"""Folders and files that one process has alone, by locks of the system's: who was killed leaves none behind."""

from __future__ import annotations

import errno
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._files import explained, require_file

fcntl: Any
try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

# The file that says who holds a folder, and the errors of file systems that cannot lock.
LOCK = ".lock"
UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def locked(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """Hold a folder alone while the block runs, so that no other process or thread writes there too.

    The lock is the system's: it leaves no file, and goes with the process however that ends. Where the file system
    has none, nothing is locked.

    Raises
    ------
    BlockingIOError
        At once, if another holds the folder; the message names it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = f"another process or thread is at work in this {what}; wait until it has ended, "
            said += "or use another path"
            raise BlockingIOError(error.errno, said, os.fspath(folder)) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


class FolderInUseError(OSError):
    """Another process writes into the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, held(folder), held(folder):
    ...     pass
    Traceback (most recent call last):
    ntkrobust_sk._locks.FolderInUseError: ... is in use by process ...
    """


@contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
    """Keep every other process that asks for the same out of a folder until the block ends.

    The system gives the lock back when the process ends, however it does.

    Raises
    ------
    FolderInUseError
        If another process (or thread) has it; the message names folder and process.

    Warns
    -----
    RuntimeWarning
        Where the file system cannot lock.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, held(folder):
    ...     os.listdir(folder)
    ['.lock']
    """
    if fcntl is None:
        yield
        return
    file = Path(folder) / LOCK
    try:
        descriptor, is_locked = _locked_at(file, wait=False)
    except BlockingIOError as error:
        raise FolderInUseError(
            f"{file.parent} is in use by {_holder(file)}: wait until it has ended, or give another folder"
        ) from error
    if not is_locked:
        warnings.warn(
            f"the file system of {file.parent} cannot lock: start nothing else in this folder",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        # first the name and then the lock: whoever opened the file before finds that it is gone
        file.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def alone(path: str | os.PathLike) -> Iterator[None]:
    """Make sure that nobody else is about to write a file; whoever asks for the same waits until the block ends.

    The lock is the system's, on a file beside it that is gone afterwards, and ends with the process. Where the
    file system has none, nobody waits.

    Raises
    ------
    OSError
        If nothing can be written there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, alone(f"{folder}/a"):
    ...     os.listdir(folder)
    ['a.lock']
    """
    if fcntl is None:
        yield
        return
    file = Path(f"{os.fspath(path)}.lock")
    descriptor, _ = _locked_at(file, wait=True)
    try:
        yield
    finally:
        # first the name and then the lock: whoever opened the file before finds that it is gone
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_at(file: Path, *, wait: bool) -> tuple[int, bool]:
    """Return a descriptor of the file that is at this place, and whether the file system could lock it.

    Raises BlockingIOError at once where another has it and this is not to be waited for.
    """
    while True:
        with explained(file):
            require_file(file)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNABLE:
                return descriptor, False
            os.close(descriptor)
            raise
        if _is_at(file, descriptor):
            return descriptor, True
        os.close(descriptor)


def _holder(file: Path) -> str:
    """Return who says in a file that it has the lock."""
    try:
        return file.read_bytes()[:200].decode(errors="replace") or "another process"
    except OSError:  # it is gone by now
        return "another process"


def _is_at(file, descriptor) -> bool:
    """Tell whether the open file has not been taken away since."""
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
