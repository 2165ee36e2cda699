"""One process at a time in a folder; a process that was killed leaves no lock behind."""

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

NAME = ".lock"
# File systems that cannot lock.
UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class FolderInUseError(OSError):
    """Another process writes into the folder."""


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
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
    >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
    ...     os.listdir(folder)
    ['.lock']
    """
    if fcntl is None:
        yield
        return
    file = Path(folder) / NAME
    descriptor = _acquired(file)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        # first the name and then the lock: whoever opened the file before finds that it is gone
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(file: Path) -> int:
    """Return a descriptor that has the lock on the file that is at this place."""
    while True:
        with explained(file):
            require_file(file)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, descriptor):
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise FolderInUseError(
                f"{file.parent} is in use by {holder}: wait until it has ended, or give another folder"
            ) from error
        except OSError as error:
            if error.errno in UNABLE:
                warnings.warn(
                    f"the file system of {file.parent} cannot lock: start nothing else in this folder",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(file, descriptor) -> bool:
    """Tell whether the open file has not been taken away since."""
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
