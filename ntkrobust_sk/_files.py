"""Files written whole or not at all, files read whole and checked, and errors of disks that name the file."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import numpy as np

# What an unfinished file is called: nobody can guess it, and what a killed process has left can be told apart.
PART = re.compile(r"\.ntkrobust-[0-9a-f]{16}\.part")
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Where a zip archive's last record begins, and where in it the number of members is.
END, END_SIZE, MEMBERS = b"PK\5\6", 22, slice(10, 12)
# What may be at a path besides a file, by the letter that ``ls -l`` has for it.
KINDS = {"p": "a named pipe (FIFO)", "s": "a socket", "c": "a device", "b": "a device"}
# Of archives: RuntimeError of members that claim to be encrypted, or compressed in a way that nobody knows.
UNREADABLE = (OSError, LookupError, RuntimeError, ValueError, EOFError, BadZipFile, zlib.error, struct.error)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def require_file(path: str | os.PathLike) -> None:
    """Raise OSError, which says what is there, if that is neither a file nor a link to one, nor missing.

    Nothing is opened: a pipe would keep its reader waiting for ever. A device must not be replaced either, which
    whoever owns the folder could do.

    Raises
    ------
    OSError
        IsADirectoryError for a folder.

    Examples
    --------
    >>> require_file("nothing at all")
    >>> require_file(os.curdir)
    Traceback (most recent call last):
    IsADirectoryError: [Errno 21] Is a directory: '.'
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.filemode(mode)[0], "something else")
        raise OSError(errno.EINVAL, f"this is {kind}, where a file is expected", os.fspath(path))


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write beside and move, so that a file that is there is whole; see :func:`written_atomically`."""
    with written_atomically(path) as out:
        out.write(data)


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends, and is gone if it fails.

    The new file is made in the same folder under a name that cannot be guessed, and never through a link. It is
    on the disk before it is moved. Its mode is that of the file it replaces, or else what the umask leaves. A
    link at ``path`` is replaced, not followed.

    Raises
    ------
    OSError
        That names ``path``; what was there before is kept, as are a device, a pipe, a socket and a folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_atomically(f"{folder}/a.txt") as out:
    ...         _ = out.write(b"whole")
    ...     os.listdir(folder), Path(folder, "a.txt").read_text()
    (['a.txt'], 'whole')
    """
    path = Path(path)
    with explained(path):
        require_file(path)  # first, since "." and "/" have no name
        part = path.with_name(f".ntkrobust-{secrets.token_hex(8)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with open(descriptor, "wb") as out:
                _keep_mode(path, part)
                yield out
                out.flush()
                os.fsync(out.fileno())
            require_file(path)  # the block may have taken long
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _settle(path.parent)


def _keep_mode(path, part):
    with suppress(FileNotFoundError):
        there = path.lstat().st_mode
        if stat.S_ISREG(there):
            os.chmod(part, stat.S_IMODE(there))


def _settle(folder):
    """Put a folder's names on the disk, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Let errors of the disk name the file that was wanted, with advice where the disk is full or closed."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        said = f"{error.strerror}: could not be written"
        if error.errno in FULL:
            said += ". Whatever was finished before is kept; make room, and the same command goes on from there"
        elif error.errno in CLOSED:
            said += ". Whatever was finished before is kept; write to a folder of your own, or make this one yours"
        raise OSError(error.errno, said, os.fspath(path)) from error


def is_part(path: str | os.PathLike) -> bool:
    """Tell whether a file is one that a killed process has not finished."""
    return PART.fullmatch(Path(path).name) is not None


def read_json(path: str | os.PathLike) -> Any:
    """Read what a JSON file holds, or raise an OSError that names it."""
    require_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} cannot be read as JSON: {error}") from error


def read_npz(path: str | os.PathLike, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file, each whole, so that its checksum speaks for every byte.

    ``numpy.load`` stops at the last number that the array's header asks for, and so never comes to the checksum
    where a damaged header asks for less. Nothing is unpickled, and nothing is allocated because a header says so.

    Parameters
    ----------
    path : path
    names : iterable of str, default=None
        Those wanted; None is all. Names that are not in the file are left out.

    Returns
    -------
    dict of str to array

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or no ``.npz`` file of plain arrays; the message names the file and the array.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/a.npz", X=np.eye(2), y=np.arange(2))
    ...     read_npz(f"{folder}/a.npz", ["y", "z"])
    {'y': array([0, 1])}
    """
    where, wanted = "", None if names is None else set(names)
    try:
        require_file(path)
        with open(path, "rb") as stream, ZipFile(stream) as archive:
            _require_all_members(stream, archive)
            found = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                where = f" (array {name!r})"
                # opening compares the two headers that a member has
                with archive.open(member) as entry:
                    if wanted is None or name in wanted:
                        found[name] = _parsed(entry.read())
        return found
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}{where} cannot be read as an .npz file of plain arrays: {error}") from error


def _require_all_members(stream, archive):
    """Raise where a damaged end cuts the list of members short, which would hide arrays."""
    names = archive.namelist()
    if len(names) != len(set(names)):
        raise ValueError("two of its arrays have one name")
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - END_SIZE - len(archive.comment)))
    end = stream.read()
    stated = int.from_bytes(end[MEMBERS], "little")
    if end[:4] != END or stated != min(len(names), 2**16 - 1):
        raise ValueError(f"its end states {stated} arrays, but lists {len(names)}")


def _parsed(content: bytes) -> np.ndarray:
    """Read the array in a ``.npy`` file's bytes, without a copy."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"its header is of version {version}, which plain arrays do not need")
    try:
        shape, fortran, dtype = HEADERS[version](stream)
    except Exception as error:  # whatever NumPy's and Python's parsers may raise
        raise ValueError(f"its header cannot be read: {error}") from error
    if dtype.hasobject or dtype.names is not None or dtype.itemsize == 0:
        raise ValueError(f"its entries (dtype {dtype}) are no plain numbers or text; nothing is unpickled")
    wanted, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if min(shape, default=0) < 0 or wanted != there:
        raise ValueError(f"its header asks for {wanted:,} bytes (shape {shape}, {dtype}), but {there:,} are there")
    # of a bytearray, so that the array may be written to
    values = np.frombuffer(bytearray(content), dtype, offset=stream.tell())
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
