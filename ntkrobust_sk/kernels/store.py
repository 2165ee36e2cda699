"""Gram matrices on disk: zarr arrays whose chunks are tiles, written as they finish, taken up again later.

A store is a plain zarr (v3) array, whole and readable by whatever reads zarr; its attributes say what it was
computed from: among other things a fingerprint of the function and of its weights. Every tile is written at once
or not at all; beside the tiles are checksums of their numbers, their places and the store that they belong to, and
the attributes have one of their own. So what belongs to another function, place or store is never taken for what
was asked.

Examples
--------
>>> import tempfile, jax
>>> from ntkrobust_sk import MLP, Model, gram
>>> network = MLP(n_outputs=3)
>>> model = Model(network, network.init(jax.random.key(0), (4,)))
>>> X = jax.random.normal(jax.random.key(1), (5, 4))
>>> with tempfile.TemporaryDirectory() as folder:
...     K = gram("trace", model, X[:3], store=f"{folder}/K.zarr")
...     larger = gram("trace", model, X, store=f"{folder}/K.zarr")
>>> K.shape, larger.shape, bool((larger[:3, :3] == K).all())
((3, 3), (5, 5), True)
"""

import hashlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._files import explained, is_part, require_file, write_atomically
from .._locks import locked
from .._validation import check_path
from . import store_header as header
from .tiles import TileJob

SUM_BYTES = 16


class DamagedTileError(OSError):
    """The error of a tile on disk that cannot be read or does not match its checksum.

    >>> import tempfile, jax
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> network = MLP(n_outputs=2, widths=())
    >>> model = Model(network, network.init(jax.random.key(0), (3,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     K = gram(lambda model, x1, x2: x1 @ x2.T, model, np.eye(3), store=folder)
    ...     Path(folder, "c", "0", "0").unlink()
    ...     read_gram(folder)
    Traceback (most recent call last):
    ntkrobust_sk.kernels.store.DamagedTileError: tile (0, 0) ... (it is not there); ...
    """


@dataclass(frozen=True)
class NamedStore(os.PathLike):
    """A path for a store of one matrix for good, which gets its identity from its caller and not by chance.

    Then the same call writes the same bytes. A store that may grow is not for this: two of them that grow in
    different ways must not take each other's tiles for their own.
    """

    path: Path
    identity: str

    def __fspath__(self) -> str:
        """Return the path."""
        return os.fspath(self.path)


@dataclass(frozen=True)
class GramStore:
    """An (n, m, ...) matrix on disk, some of whose tiles may be there.

    Attributes
    ----------
    path : Path
    array : zarr.Array
    rows : int
        Of a tile.
    symmetric : bool
        Whether tiles (i, j) and (j, i) mirror each other.
    identity : str
        Of this store alone; in every checksum.
    """

    path: Path
    array: Any
    rows: int
    symmetric: bool
    identity: str

    def holds(self, i: int, j: int) -> bool:
        """Tell whether tile (i, j) was finished."""
        return self.tile_path(i, j).is_file() and self._kept_sum(i, j) is not None

    def write(self, i: int, j: int, block: np.ndarray, mirrored: np.ndarray | None = None) -> None:
        """Write a finished tile, and its mirror image first, so that ``holds`` speaks for both."""
        if mirrored is not None:
            self._put(j, i, mirrored)
        self._put(i, j, block)

    def _put(self, i, j, block):
        at = self._region(i, j)
        block = block[tuple(slice(s.stop - s.start) for s in at)]
        for file in (self.tile_path(i, j), self._sum_path(i)):
            require_file(file)
        try:
            # the checksum first: a tile that is there has one
            self._keep_sum(i, j, self._sum(i, j, block))
            self.array[at] = block
        except OSError as error:
            raise OSError(
                error.errno,
                f"tile ({i}, {j}) of the Gram store could not be written: {error.strerror}. The tiles written so "
                "far are kept; the same call goes on from there",
                str(self.path),
            ) from error

    def read(self) -> np.ndarray:
        """Read the whole matrix, and check every tile.

        Raises
        ------
        DamagedTileError
            Naming the file; the other tiles are good.
        """
        tiles = list(self.tiles())
        result = np.empty(self.array.shape, self.array.dtype)
        for i, j in tiles:
            result[self._region(i, j)] = self.read_tile(i, j)
        return result

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield all tiles if each of them is there, before memory is taken for them."""
        height, width = (-(-size // self.rows) for size in self.array.shape[:2])
        # not itertools.product, which would first list what a damaged size asks for
        for i, j in ((i, j) for i in range(height) for j in range(width)):
            if not self.tile_path(i, j).is_file():
                raise self._damaged(i, j, "it is not there")
            yield i, j

    def read_tile(self, i: int, j: int) -> np.ndarray:
        """Read tile (i, j), and check it."""
        try:
            block = self.array[self._region(i, j)]
        except Exception as error:  # whatever zarr and its codecs raise
            raise self._damaged(i, j, str(error)) from error
        kept = self._kept_sum(i, j)
        if kept is None:
            raise self._damaged(i, j, f"its checksum is not in {self._sum_path(i)}")
        if kept != self._sum(i, j, block):
            raise self._damaged(
                i,
                j,
                f"it does not match its checksum in {self._sum_path(i)}, or belongs to another place or store",
            )
        if not np.isfinite(block).all():
            raise self._damaged(i, j, "it holds numbers that are not finite, which gram never writes")
        return block

    def _damaged(self, i, j, why):
        # without the mirror image, it would count as finished
        tiles = {(i, j), (j, i)} if self.symmetric else {(i, j)}
        files = [str(self.tile_path(*tile)) for tile in sorted(tiles)]
        return DamagedTileError(
            f"tile ({i}, {j}) of the Gram store {self.path} cannot be read ({why}); the other tiles are kept. "
            f"Delete {' and '.join(files)} and call gram again: only this tile is then "
            "computed anew"
        )

    def tile_path(self, i: int, j: int) -> Path:
        """Return the path of a tile's file."""
        return self.path.joinpath("c", str(i), str(j), *["0"] * (self.array.ndim - 2))

    def _region(self, i, j):
        n, m = self.array.shape[:2]
        rows = slice(i * self.rows, min((i + 1) * self.rows, n))
        return rows, slice(j * self.rows, min((j + 1) * self.rows, m))

    def _sum(self, i, j, block) -> bytes:
        """Return the checksum of a tile's numbers, its place and its store."""
        digest = hashlib.blake2b(f"{self.identity} {i} {j} {block.shape}".encode(), digest_size=SUM_BYTES)
        digest.update(np.ascontiguousarray(block, self.array.dtype).data.cast("B"))
        return digest.digest()

    def _sum_path(self, i) -> Path:
        """Return the path of the checksums of a row of tiles, one after the other."""
        return self.path / "checksums" / str(i)

    def _keep_sum(self, i, j, found: bytes):
        path = self._sum_path(i)
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with open(descriptor, "wb") as out:
            out.seek(j * SUM_BYTES)
            out.write(found)

    def _kept_sum(self, i, j) -> bytes | None:
        path = self._sum_path(i)
        if not path.is_file():
            return None
        with suppress(OSError), path.open("rb") as file:
            file.seek(j * SUM_BYTES)
            found = file.read(SUM_BYTES)
            return found if len(found) == SUM_BYTES and any(found) else None
        return None


def read_gram(path: str | os.PathLike) -> np.ndarray:
    """Read the matrix in the finished store at ``path``, and check every tile.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    StoreMismatchError
        If what is there is none, or what it says of itself does not fit together.
    DamagedTileError
        Naming the tile that cannot be read, or is not there yet.
    """
    return open_to_read(path).read()


def open_finished(path: str | os.PathLike) -> GramStore:
    """Open a store to be read, if all of its tiles are there, with the errors of :func:`read_gram`."""
    store = open_to_read(path)
    for _ in store.tiles():
        pass
    return store


def copy_store(path: str | os.PathLike, to: NamedStore) -> None:
    """Copy a finished store, every tile checked, to a place where it has another identity.

    Raises
    ------
    DamagedTileError, StoreMismatchError, FileNotFoundError
        As for :func:`read_gram`; an OSError if there is something already.
    """
    source = open_finished(path)
    there = {name: held for name, held in header.read_header(source.path).items() if name != "sha256"}
    target = Path(to)
    target.mkdir(parents=True)
    with locked(target, "Gram store"):
        metadata = header.zarr_metadata(there | {"identity": to.identity})
        write_atomically(target / "zarr.json", metadata)
        copied = _opened(target, there | {"identity": to.identity}, "r+")
        for i, j in source.tiles():
            copied.write(i, j, source.read_tile(i, j))


def open_to_read(path: str | os.PathLike) -> GramStore:
    """Open a store to be read, whatever part of its tiles is there."""
    path = check_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"there is no Gram store at the path {path}")
    return _opened(path, header.read_header(path), "r")


def stored_sizes(path: str | os.PathLike) -> tuple[int, int] | None:
    """Return the rows of a tile and the directions of a pass of the store at ``path``, if there is one.

    The last bits of its entries depend on these.
    """
    path = check_path("store", path)
    if _is_free(path):
        return None
    there = header.read_header(path)
    return there["tile_rows"], there["seeds"]


@contextmanager
def open_store(
    path, job: TileJob, dtype, tail: tuple[int, ...], function: str, has_same_numbers: Callable[[GramStore], bool]
) -> Iterator[GramStore]:
    """Open the store at ``path`` alone: it is made if there is none, and made larger if X has new rows.

    Parameters
    ----------
    path : str or os.PathLike
        Folder, by custom named ``*.zarr``; it may be there and empty.
    job : TileJob
        What the matrix is computed from, and how.
    dtype : dtype, "tf32" or "bf16"
        Of the entries, as for :func:`~ntkrobust_sk.gram`.
    tail : tuple of int
        Axes of an entry: (), (C,) or (C, C).
    function : str
        Fingerprint of the kernel with the model's network.
    has_same_numbers : callable
        ``has_same_numbers(store)`` says of a store that is there, before it changes, whether entries that are
        computed again are those in it.

    Raises
    ------
    StoreMismatchError
        If what is there was computed from anything else, the message names the difference; or if nobody can know,
        since code outside of JAX (``jax.pure_callback``) reads what is not in it, such as files.
    BlockingIOError
        If another process or thread is at work in it.
    ImportError
        If zarr is not installed.
    """
    header.import_zarr()
    identity = path.identity if isinstance(path, NamedStore) else secrets.token_hex(16)
    path, X, Y = check_path("store", path), job.X, job.Y
    made_from = header.provenance(job.kernel, job.model, dtype, function)
    if _is_free(path):
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
    else:
        header.read_header(path)
    with locked(path, "Gram store"):
        if _is_free(path):
            named = {"format": header.FORMAT, "identity": identity} | made_from
            sizes = {"tile_rows": job.plan.rows, "seeds": job.plan.directions, "tail": list(tail)}
            new = named | sizes | header.described_inputs(X, Y)
            write_atomically(path / "zarr.json", header.zarr_metadata(new))
            yield _opened(path, header.read_header(path), "r+")
            return
        there = header.read_header(path)
        header.require_same(path, there, made_from | {"tile_rows": job.plan.rows}, X, Y)
        store = _opened(path, there, "r+")
        if not has_same_numbers(store):
            raise header.mismatch(
                path,
                "Entries that were computed again are other numbers, though kernel, network, parameters and "
                "inputs look alike",
            )
        if store.array.shape[:2] != (len(X), len(X if Y is None else Y)):
            store = _enlarged(store, there, X, Y)
        yield store


def _is_free(path) -> bool:
    """Tell whether a store may be made there: nothing is, or an empty folder."""
    if not path.exists() and not path.is_symlink():
        return True
    return path.is_dir() and all(is_part(file) for file in path.iterdir())


def _opened(path, there, mode) -> GramStore:
    zarr = header.import_zarr()
    try:
        array = zarr.open_array(store=str(path), mode=mode)
    except Exception as error:  # whatever zarr raises of fields that are its own
        raise header.StoreMismatchError(
            f"{path / 'zarr.json'} is damaged, zarr cannot read it: {error}. Delete {path}, or use another path"
        ) from error
    return GramStore(path, array, there["tile_rows"], "n_Y" not in there, there["identity"])


def _enlarged(store, there, X, Y) -> GramStore:
    """Return the store with room for new rows.

    Tiles that were cut off by the old end go first, so that a stop leaves no half of one; then the size that zarr
    goes by changes, and with it what the attributes say.
    """
    old = store.array.shape[:2]
    height, width = (-(-size // store.rows) for size in old)
    with explained(store.path):
        for i, j in itertools.product(range(height), range(width)):
            ends = zip((i, j), (height, width), old, strict=True)
            if any(at == count - 1 and size % store.rows for at, count, size in ends):
                store.tile_path(i, j).unlink(missing_ok=True)
    there = there | header.described_inputs(X, Y)
    write_atomically(store.path / "zarr.json", header.zarr_metadata(there))
    return _opened(store.path, there, "r+")
