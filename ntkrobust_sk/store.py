"""Gram matrices on disk: zarr arrays whose chunks are tiles, written as they finish, taken up again later.

A store is a plain zarr (v3) array, whole and readable by whatever reads zarr; its attributes say what it was
computed from. Every tile is written at once or not at all and carries a checksum.

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

from __future__ import annotations

import errno
import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import __version__
from .factors import DIGITS


class StoreMismatchError(ValueError):
    """The store was computed from something else."""


class DamagedTileError(OSError):
    """A tile on disk cannot be read or does not match its checksum."""


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
    """

    path: Path
    array: Any
    rows: int
    symmetric: bool

    def holds(self, i: int, j: int) -> bool:
        """Whether tile (i, j) was finished."""
        return self.tile_path(i, j).exists()

    def write(self, i: int, j: int, block: np.ndarray, mirrored: np.ndarray | None = None) -> None:
        """Write a finished tile, and its mirror image first, so that ``holds`` speaks for both."""
        if mirrored is not None:
            self._put(j, i, mirrored)
        self._put(i, j, block)

    def _put(self, i, j, block):
        at = self._region(i, j)
        try:
            self.array[at] = block[tuple(slice(s.stop - s.start) for s in at)]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise OSError(
                error.errno,
                f"tile ({i}, {j}) of the Gram store could not be written: {error.strerror}. The tiles written so "
                "far are kept; the same call goes on from there",
                str(self.path),
            ) from error

    def read(self) -> np.ndarray:
        """The whole matrix, every tile checked.

        Raises
        ------
        DamagedTileError
            Naming the file; the other tiles are good.
        """
        result = np.empty(self.array.shape, self.array.dtype)
        for i, j in itertools.product(*(range(-(-size // self.rows)) for size in self.array.shape[:2])):
            at = self._region(i, j)
            result[at] = self._read_tile(i, j, at)
        return result

    def _read_tile(self, i, j, at):
        path, why = self.tile_path(i, j), "it is not there"
        if path.exists():
            try:
                block = self.array[at]
            except (ValueError, TypeError, OSError) as error:
                why = str(error)
            else:
                if np.isfinite(block).all():
                    return block
                why = "it holds NaN"
        raise DamagedTileError(
            f"tile ({i}, {j}) of the Gram store cannot be read ({why}); the other tiles are kept. Delete "
            f"{' and '.join(str(p) for p in self._pair(i, j))} and call gram again: only this tile is then "
            "computed anew"
        )

    def _pair(self, i, j):
        """Files of a tile and of its mirror image, without which it would count as finished."""
        tiles = {(i, j), (j, i)} if self.symmetric else {(i, j)}
        return [self.tile_path(*tile) for tile in sorted(tiles)]

    def tile_path(self, i: int, j: int) -> Path:
        """File of a tile."""
        return self.path.joinpath("c", str(i), str(j), *["0"] * (self.array.ndim - 2))

    def _region(self, i, j):
        n, m = self.array.shape[:2]
        rows = slice(i * self.rows, min((i + 1) * self.rows, n))
        return rows, slice(j * self.rows, min((j + 1) * self.rows, m))


def read_gram(path) -> np.ndarray:
    """The matrix in the finished store at ``path``, every tile checked.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    DamagedTileError
        Naming the tile that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no Gram store {path}")
    array = _open(path)
    there = array.attrs.asdict()["ntkrobust_sk"]
    return GramStore(path, array, there["tile_rows"], "n_Y" not in there).read()


def stored_sizes(path) -> tuple[int, int] | None:
    """Rows of a tile and seeds of a pass of the store at ``path``, on which its entries' last bits depend."""
    path = Path(path)
    if not path.exists():
        return None
    there = _open(path).attrs.asdict()["ntkrobust_sk"]
    return there["tile_rows"], there["seeds"]


def open_store(path, kernel, model, X, Y, plan, dtype, tail) -> GramStore:
    """The store at ``path``, made if there is none, made larger if X has new rows.

    Parameters
    ----------
    path : str or os.PathLike
        Folder, by custom named ``*.zarr``.
    kernel, model, X, Y, plan
        What the matrix is computed from, and how; see :func:`~ntkrobust_sk.gram`.
    dtype : dtype, "tf32" or "bf16"
        Of the entries, as for :func:`~ntkrobust_sk.gram`.
    tail : tuple of int
        Axes of an entry: (), (C,) or (C, C).

    Raises
    ------
    StoreMismatchError
        If what is there was computed from anything else; the message names the difference.
    ImportError
        If zarr is not installed.
    """
    zarr, path = _zarr(), Path(path)
    made_from = _provenance(kernel, model, dtype)
    shape = (len(X), len(X if Y is None else Y))
    if not path.exists():
        attributes = {"ntkrobust_sk": made_from | {"tile_rows": plan.rows, "seeds": plan.seeds} | _data(X, Y)}
        array = zarr.create_array(
            store=str(path),
            shape=(*shape, *tail),
            chunks=(plan.rows, plan.rows, *tail),
            dtype=np.dtype(np.float32 if dtype in DIGITS else dtype),
            fill_value=np.nan,
            compressors=zarr.codecs.Crc32cCodec(),
            attributes=attributes,
        )
        return GramStore(path, array, plan.rows, Y is None)
    array = _open(path)
    there = array.attrs.asdict()["ntkrobust_sk"]
    _require_same(path, there, made_from, X, Y)
    store = GramStore(path, array, plan.rows, Y is None)
    if array.shape[:2] != shape:
        _enlarge(store, there, shape, X, Y)
    return store


def _zarr():
    try:
        import zarr
        import zarr.codecs
    except ImportError as error:
        raise ImportError("a Gram store needs zarr: pip install 'ntkrobust_sk[store]'") from error
    return zarr


def _open(path):
    try:
        array = _zarr().open_array(store=str(path), mode="r+")
    except (FileNotFoundError, ValueError, NotADirectoryError) as error:
        raise StoreMismatchError(f"{path} is there, but is no zarr array: {error}; use another path") from error
    if not isinstance(array.attrs.asdict().get("ntkrobust_sk"), dict):
        raise StoreMismatchError(f"{path} is a zarr array, but none that gram has written; use another path")
    return array


def _require_same(path, there, made_from, X, Y):
    differences = [f"{key}: {there.get(key)!r} there, {value!r} here" for key, value in made_from.items()]
    differences = [d for d, key in zip(differences, made_from, strict=True) if there.get(key) != made_from[key]]
    for name, inputs in (("X", X), ("Y", Y)):
        n_there, hash_there = there.get(f"n_{name}"), there.get(f"sha256_{name}")
        if (n_there is None) != (inputs is None):
            differences.append(f"{name}: {n_there} rows there, {None if inputs is None else len(inputs)} here")
        elif inputs is not None and n_there > len(inputs):
            differences.append(f"{name}: {n_there} rows there, only {len(inputs)} here")
        elif inputs is not None and hash_there != hash_arrays([inputs[:n_there]]):
            differences.append(f"{name}: the first {n_there} rows hold other numbers")
    if differences:
        raise StoreMismatchError(
            f"the Gram store {path} was computed from something else, and nothing of it was changed. "
            f"{'; '.join(differences)}. Use another path, or delete this one"
        )


def _enlarge(store, there, shape, X, Y):
    """Room for new rows. Tiles that were cut off by the old end go first, so that a stop leaves no half of one."""
    old = store.array.shape[:2]
    height, width = (-(-size // store.rows) for size in old)
    for i, j in itertools.product(range(height), range(width)):
        ends = zip((i, j), (height, width), old, strict=True)
        cut = any(at == count - 1 and size % store.rows for at, count, size in ends)
        if cut:
            store.tile_path(i, j).unlink(missing_ok=True)
    store.array.resize((*shape, *store.array.shape[2:]))
    store.array.update_attributes({"ntkrobust_sk": there | _data(X, Y)})


def _provenance(kernel, model, dtype) -> dict:
    """Whatever an entry's value depends on, to the last bit."""
    leaves = jax.tree.leaves(model.variables)
    return {
        "kernel": _name(kernel),
        "network": _name(model.network),
        "sha256_variables": hash_arrays(leaves),
        "dtype": dtype if dtype in DIGITS else str(np.dtype(dtype)),
        "platform": jax.default_backend(),
        "version": __version__,
    }


def _data(X, Y) -> dict:
    known = {"n_X": len(X), "sha256_X": hash_arrays([X])}
    return known if Y is None else known | {"n_Y": len(Y), "sha256_Y": hash_arrays([Y])}


def _name(configuration) -> str:
    """How it prints, without addresses, which change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(configuration))


def hash_arrays(arrays) -> str:
    """SHA-256 of arrays: their dtypes, the shapes of their rows, their bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
        digest.update(array.tobytes() if array.dtype.hasobject else memoryview(array).cast("B"))
    return digest.hexdigest()
