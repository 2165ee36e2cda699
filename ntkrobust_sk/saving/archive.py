"""The file: a zip archive of one JSON document and its arrays, with checksums, written whole or not at all.

Members are stored as they are, so a file cannot hold more than its own size: what headers claim is compared with
that before any memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import jax
import numpy as np
import sklearn

from .. import __version__
from .._files import UNREADABLE, require_file, written_atomically
from . import tensors

# Of the files that are written here. Whoever changes their form raises it, and goes on reading all earlier ones.
VERSION = 1
DOCUMENT, ARRAYS, SUMS = "ntkrobust_sk.json", "arrays.safetensors", "SHA256SUMS"
MEMBERS = (DOCUMENT, ARRAYS, SUMS)
# Bytes of JSON, of which Python makes some dozens of times as much.
LARGEST_DOCUMENT = 2**26
# A file begins with its first member, whose name comes after 30 bytes.
BEGINNING = slice(30, 30 + len(DOCUMENT))


class SavedFileError(ValueError):
    """A file is not one that was saved, is damaged, is of a newer version, or holds something else.

    >>> import tempfile
    >>> from ntkrobust_sk import Model
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     Model.load(file.name)
    Traceback (most recent call last):
    ntkrobust_sk.saving.archive.SavedFileError: ... cannot be loaded: it is no zip archive; ...
    """


def is_saved_file(path: str | os.PathLike) -> bool:
    """Tell by its beginning whether a file claims to be one of these."""
    with open(path, "rb") as file:
        return file.read(BEGINNING.stop)[BEGINNING] == DOCUMENT.encode()


def write(path: Path, tree: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write a tree of JSON and its arrays; a file that was there before is replaced when all is written.

    Raises
    ------
    ValueError
        If the tree takes more JSON than is read again.
    """
    versions = {"ntkrobust_sk": __version__, "jax": jax.__version__, "numpy": np.__version__}
    stated = {
        "format": "ntkrobust_sk",
        "version": VERSION,
        "written_by": versions | {"scikit-learn": sklearn.__version__},
        "object": tree,
    }
    document = json.dumps(stated, indent=1, allow_nan=False).encode()
    if len(document) > LARGEST_DOCUMENT:
        raise ValueError(
            f"what is no array of numbers takes {len(document):,} bytes of JSON, and at most {LARGEST_DOCUMENT:,} "
            "are read again; hold large lists as arrays"
        )
    with written_atomically(path) as out, ZipFile(out, "w", ZIP_STORED) as archive:
        sums = [_write_member(archive, DOCUMENT, [document])]
        sums.append(_write_member(archive, ARRAYS, tensors.written(arrays)))
        _write_member(archive, SUMS, ["".join(sums).encode()])


def _write_member(archive, name, pieces) -> str:
    """Write a member, and return its line among the checksums."""
    digest = hashlib.sha256()
    # without a date of its own, so that the same object gives the same file
    with archive.open(ZipInfo(name), "w", force_zip64=True) as member:
        for piece in pieces:
            digest.update(piece)
            member.write(piece)
    return _line(name, digest)


def _line(name, digest) -> str:
    """Return a line as ``sha256sum --check`` reads it."""
    return f"{digest.hexdigest()}  {name}\n"


def read(path: Path, look: Callable[[Any], object] = lambda tree: None) -> tuple[Any, dict[str, np.ndarray]]:
    """Read a tree of JSON and its arrays.

    Parameters
    ----------
    path : Path
    look : callable, default=None
        Called with the tree before the arrays are read; it raises where the tree is not wanted.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
    SavedFileError
        Naming the file.
    """
    require_file(path)
    with open(path, "rb") as stream:
        try:
            with ZipFile(stream) as archive:
                return _read(path, archive, os.fstat(stream.fileno()).st_size, look)
        except (MemoryError, SavedFileError):
            raise
        except (*UNREADABLE, TypeError, AttributeError, RecursionError) as error:
            said = repr(error) if isinstance(error, KeyError) or not str(error) else str(error)
            said = "it is no zip archive" if "not a zip file" in said else said
            raise SavedFileError(
                f"{path} cannot be loaded: {said}; a file that was written by save is expected, and this is none, "
                "or is damaged"
            ) from error


def _read(path, archive, size, look):
    members = {info.filename: info for info in archive.infolist()}
    if DOCUMENT not in members:
        raise ValueError(f"it holds {', '.join(sorted(members)[:3]) or 'nothing'}, and no {DOCUMENT}")
    if members[DOCUMENT].file_size > LARGEST_DOCUMENT:
        raise ValueError(f"its {DOCUMENT} claims {members[DOCUMENT].file_size:,} bytes")
    document = _content(archive, members[DOCUMENT], size)
    # as text, since of bytes JSON would guess the encoding
    stated = json.loads(document.decode(), parse_constant=_refuse)
    if stated["format"] != "ntkrobust_sk" or type(stated["version"]) is not int or stated["version"] < 1:
        raise ValueError(f"its {DOCUMENT} states no version of this format")
    if stated["version"] > VERSION:
        raise SavedFileError(
            f"{path} is of version {stated['version']} of this format, written by ntkrobust_sk "
            f"{stated['written_by']['ntkrobust_sk']}; this ntkrobust_sk {__version__} reads versions up to "
            f"{VERSION}: install a newer one"
        )
    if sorted(info.filename for info in archive.infolist()) != sorted(MEMBERS):
        raise ValueError(f"it holds {', '.join(sorted(members)[:5])}, and should hold {', '.join(MEMBERS)}")
    sums = _content(archive, members[SUMS], size).decode()
    expected = _line(DOCUMENT, hashlib.sha256(document))
    if not sums.startswith(expected):
        raise ValueError(f"its {DOCUMENT} does not match its checksum")
    look(stated["object"])
    data = _content(archive, members[ARRAYS], size)
    if sums != expected + _line(ARRAYS, hashlib.sha256(data)):
        raise ValueError(f"its {ARRAYS} does not match its checksum")
    return stated["object"], tensors.parsed(data)


def _content(archive, info, size) -> bytearray:
    """Read a member, which has no more bytes than the file."""
    if info.compress_type != ZIP_STORED or info.file_size != info.compress_size or info.file_size > size:
        raise ValueError(
            f"its {info.filename} claims {info.file_size:,} bytes, {info.compress_size:,} of them in a file of "
            f"{size:,}; members are stored as they are"
        )
    content = bytearray(info.file_size)
    with archive.open(info) as member:
        there, view = 0, memoryview(content)
        # to the end, where the archive's own checksum is looked at
        while count := member.readinto(view[there:] if there < len(view) else bytearray(1)):
            there += count
    if there != len(content):
        raise ValueError(f"its {info.filename} ends after {there:,} of {len(content):,} bytes")
    return content


def _refuse(name):
    raise ValueError(f"{name} is no JSON")
