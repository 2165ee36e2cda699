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

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import __version__
from ._files import explained, is_part, locked, read_json, require_file, write_atomically
from ._validation import brief, integer
from ._validation import path as check_path
from .fingerprint import UNSURE, without_addresses
from .fingerprint import hash_arrays as hash_arrays
from .tangent.gradient_lists import DIGITS

# Of what a store holds and how; what was written in another one is refused.
FORMAT = 3
# What zarr and NumPy both know.
DTYPES = ("float16", "float32", "float64")
CODECS = [("bytes", "little"), ("crc32c", None)]
SUM_BYTES = 16
# Compared only where the same versions of these have written it down.
WRITERS = ("jax", "python")


class StoreMismatchError(ValueError):
    """The store was computed from something else, or is none."""


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
    identity : str
        Of this store alone; in every checksum.
    """

    path: Path
    array: Any
    rows: int
    symmetric: bool
    identity: str

    def holds(self, i: int, j: int) -> bool:
        """Whether tile (i, j) was finished."""
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
        """The whole matrix, every tile checked.

        Raises
        ------
        DamagedTileError
            Naming the file; the other tiles are good.
        """
        tiles = list(self._tiles())
        result = np.empty(self.array.shape, self.array.dtype)
        for i, j in tiles:
            result[self._region(i, j)] = self.read_tile(i, j)
        return result

    def _tiles(self) -> Iterator[tuple[int, int]]:
        """All tiles, each of which is there, before memory is taken for them."""
        height, width = (-(-size // self.rows) for size in self.array.shape[:2])
        # not itertools.product, which would first list what a damaged size asks for
        for i, j in ((i, j) for i in range(height) for j in range(width)):
            if not self.tile_path(i, j).is_file():
                raise self._damaged(i, j, "it is not there")
            yield i, j

    def read_tile(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j), checked."""
        if not self.tile_path(i, j).is_file():
            raise self._damaged(i, j, "it is not there")
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
        return DamagedTileError(
            f"tile ({i}, {j}) of the Gram store {self.path} cannot be read ({why}); the other tiles are kept. "
            f"Delete {' and '.join(str(p) for p in self._pair(i, j))} and call gram again: only this tile is then "
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

    def _sum(self, i, j, block) -> bytes:
        """Of a tile's numbers, its place and its store."""
        digest = hashlib.blake2b(f"{self.identity} {i} {j} {block.shape}".encode(), digest_size=SUM_BYTES)
        digest.update(memoryview(np.ascontiguousarray(block, self.array.dtype)).cast("B"))
        return digest.digest()

    def _sum_path(self, i) -> Path:
        """File of the checksums of a row of tiles, one after the other."""
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


def read_gram(path) -> np.ndarray:
    """The matrix in the finished store at ``path``, every tile checked.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    StoreMismatchError
        If what is there is none, or what it says of itself does not fit together.
    DamagedTileError
        Naming the tile that cannot be read, or is not there yet.
    """
    path = check_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"there is no Gram store at the path {path}")
    return _opened(path, _header(path), "r").read()


def stored_sizes(path) -> tuple[int, int] | None:
    """Rows of a tile and seeds of a pass of the store at ``path``, on which its entries' last bits depend."""
    path = check_path("store", path)
    if _is_free(path):
        return None
    there = _header(path)
    return there["tile_rows"], there["seeds"]


@contextmanager
def open_store(
    path, kernel, model, X, Y, plan, dtype, tail, function: str, has_same_numbers
) -> Iterator[GramStore]:
    """The store at ``path``, made if there is none, made larger if X has new rows, and held alone.

    Parameters
    ----------
    path : str or os.PathLike
        Folder, by custom named ``*.zarr``; it may be there and empty.
    kernel, model, X, Y, plan
        What the matrix is computed from, and how; see :func:`~ntkrobust_sk.gram`.
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
    _zarr()
    path = check_path("store", path)
    made_from = _provenance(kernel, model, dtype, function)
    if _is_free(path):
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
    else:
        _header(path)
    with locked(path, "Gram store"):
        if _is_free(path):
            sizes = {"tile_rows": plan.rows, "seeds": plan.seeds, "tail": list(tail)}
            new = {"format": FORMAT, "identity": secrets.token_hex(16)} | made_from | sizes | _data(X, Y)
            write_atomically(path / "zarr.json", _metadata(new))
            yield _opened(path, _header(path), "r+")
            return
        there = _header(path)
        _require_same(path, there, made_from | {"tile_rows": plan.rows}, X, Y)
        store = _opened(path, there, "r+")
        if not has_same_numbers(store):
            raise _mismatch(
                path,
                "Entries that were computed again are other numbers, though kernel, network, parameters and "
                "inputs look alike",
            )
        if store.array.shape[:2] != (len(X), len(X if Y is None else Y)):
            store = _enlarged(store, there, X, Y)
        yield store


def _is_free(path) -> bool:
    """Whether a store may be made there: nothing is, or an empty folder."""
    if not path.exists() and not path.is_symlink():
        return True
    return path.is_dir() and all(is_part(file) for file in path.iterdir())


def _zarr():
    try:
        import zarr
        import zarr.codecs
        import zarr.storage
    except ImportError as error:
        raise ImportError("a Gram store needs zarr: pip install 'ntkrobust_sk[store]'") from error
    return zarr


def _shape(there) -> tuple[int, ...]:
    return (there["n_X"], there.get("n_Y", there["n_X"]), *there["tail"])


def _numpy_dtype(there) -> str:
    return "float32" if there["dtype"] in DIGITS else there["dtype"]


def _metadata(there) -> bytes:
    """The file ``zarr.json`` of a store with these attributes, and with their checksum."""
    zarr, files = _zarr(), {}
    there = there | {"sha256": _digest(there)}
    zarr.create_array(
        store=zarr.storage.MemoryStore(files),
        shape=_shape(there),
        chunks=(there["tile_rows"],) * 2 + tuple(there["tail"]),
        dtype=_numpy_dtype(there),
        fill_value=np.nan,
        compressors=zarr.codecs.Crc32cCodec(),
        attributes={"ntkrobust_sk": there},
    )
    return files["zarr.json"].to_bytes()


def _digest(there) -> str:
    own = {name: value for name, value in there.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _header(path) -> dict:
    """What a store says of itself, found to fit together; nothing is allocated for it before."""
    file = path / "zarr.json"
    try:
        metadata = read_json(file)
        attributes = metadata["attributes"]
    except (OSError, KeyError, TypeError) as error:
        raise StoreMismatchError(f"{path} is there, but is no zarr array: {error}; use another path") from error
    there = attributes.get("ntkrobust_sk") if isinstance(attributes, dict) else None
    if not isinstance(there, dict):
        raise StoreMismatchError(f"{path} is a zarr array, but none that gram has written; use another path")
    if there.get("format") != FORMAT:
        raise StoreMismatchError(
            f"the Gram store {path} was written by another version of this library, in format "
            f"{brief(there.get('format', 1))}; here it is {FORMAT}. Use another path, or delete this one "
            f"(zarr.open_array({str(path)!r})[:] reads its numbers, unchecked)"
        )
    try:
        if there.get("sha256") != _digest(there):
            raise ValueError("what it says of itself was changed, and does not match its checksum")
        for name in ("n_X", "tile_rows", "seeds", *(["n_Y"] if "n_Y" in there else [])):
            integer(name, there.get(name))
        for name in ("identity", "dtype", *there.keys() & {"sha256_X", "sha256_Y"}):
            if not isinstance(there.get(name), str):
                raise ValueError(f"{name} must be text, got {brief(there.get(name))}")
        tail = there.get("tail")
        if not isinstance(tail, list) or len(tail) > 2 or len({integer("tail", size) for size in tail}) > 1:
            raise ValueError(f"tail must be [], [C] or [C, C], got {brief(tail)}")
        if there["dtype"] not in (*DTYPES, *DIGITS):
            raise ValueError(f"dtype must be one of {', '.join((*DTYPES, *DIGITS))}, got {brief(there['dtype'])}")
        _require_fitting(metadata, there)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreMismatchError(
            f"{file} is damaged, and says nothing sure of the Gram store: {error}. Delete {path}, or use another "
            "path"
        ) from error
    return there


def _require_fitting(metadata, there):
    """What zarr goes by must be what our attributes ask for."""
    chunk = [there["tile_rows"], there["tile_rows"], *there["tail"]]
    codecs = [(codec["name"], codec.get("configuration", {}).get("endian")) for codec in metadata["codecs"]]
    keys = metadata["chunk_key_encoding"]
    pairs = {
        "zarr_format": (metadata["zarr_format"], 3),
        "node_type": (metadata["node_type"], "array"),
        "shape": (metadata["shape"], list(_shape(there))),
        "data_type": (metadata["data_type"], _numpy_dtype(there)),
        "chunk_grid": (metadata["chunk_grid"], {"name": "regular", "configuration": {"chunk_shape": chunk}}),
        "chunk_key_encoding": ((keys["name"], keys["configuration"]), ("default", {"separator": "/"})),
        "codecs": (codecs, CODECS),
    }
    for name, (found, expected) in pairs.items():
        # as text, in which 1, 1.0 and true are three things
        if json.dumps(found) != json.dumps(expected):
            raise ValueError(f"{name} is {brief(found)}, where its attributes ask for {brief(expected)}")


def _opened(path, there, mode) -> GramStore:
    try:
        array = _zarr().open_array(store=str(path), mode=mode)
    except ImportError:
        raise
    except Exception as error:  # whatever zarr raises of fields that are its own
        raise StoreMismatchError(
            f"{path / 'zarr.json'} is damaged, zarr cannot read it: {error}. Delete {path}, or use another path"
        ) from error
    return GramStore(path, array, there["tile_rows"], "n_Y" not in there, there["identity"])


def _require_same(path, there, made_from, X, Y):
    functions = [str(function) for function in (made_from["sha256_function"], there.get("sha256_function"))]
    for why in (function.removeprefix(UNSURE) for function in functions if function.startswith(UNSURE)):
        raise StoreMismatchError(
            f"nobody can know whether the Gram store {path} belongs to this network and kernel, and nothing of it "
            f"was changed: they call Python code outside of JAX that reads {brief(why)}. Give such code all that "
            "it needs as arrays, numbers, closures or attributes of objects, write it in JAX, or use another path"
        )
    same_writers = all(there.get(name) == made_from[name] for name in WRITERS)
    differences = []
    for name, here in made_from.items():
        if there.get(name) != here and name == "sha256_function" and same_writers:
            differences.append("function: network or kernel compute something else, however they print")
        elif there.get(name) != here and name not in (*WRITERS, "sha256_function"):
            differences.append(f"{name}: {brief(there.get(name))} there, {brief(here)} here")
    for name, inputs in (("X", X), ("Y", Y)):
        n_there, hash_there = there.get(f"n_{name}"), there.get(f"sha256_{name}")
        if (n_there is None) != (inputs is None):
            differences.append(f"{name}: {n_there} rows there, {None if inputs is None else len(inputs)} here")
        elif inputs is not None and n_there > len(inputs):
            differences.append(f"{name}: {n_there} rows there, only {len(inputs)} here")
        elif inputs is not None and hash_there != hash_arrays([inputs[:n_there]]):
            differences.append(f"{name}: the first {n_there} rows hold other numbers")
    if differences:
        raise _mismatch(path, "; ".join(differences))


def _mismatch(path, difference):
    return StoreMismatchError(
        f"the Gram store {path} was computed from something else, and nothing of it was changed. {difference}. "
        "Use another path, or delete this one"
    )


def _enlarged(store, there, X, Y) -> GramStore:
    """With room for new rows. Tiles that were cut off by the old end go first, so that a stop leaves no half of
    one; then what zarr and what the attributes say of the size changes at once."""
    old = store.array.shape[:2]
    height, width = (-(-size // store.rows) for size in old)
    with explained(store.path):
        for i, j in itertools.product(range(height), range(width)):
            ends = zip((i, j), (height, width), old, strict=True)
            if any(at == count - 1 and size % store.rows for at, count, size in ends):
                store.tile_path(i, j).unlink(missing_ok=True)
    there = there | _data(X, Y)
    write_atomically(store.path / "zarr.json", _metadata(there))
    return _opened(store.path, there, "r+")


def _provenance(kernel, model, dtype, function) -> dict:
    """Whatever an entry's value depends on, to the last bit."""
    name = dtype if dtype in DIGITS else str(np.dtype(dtype))
    if name not in (*DTYPES, *DIGITS):
        raise ValueError(f"a store holds {', '.join(DTYPES)}, not {name}; give dtype='float32'")
    return {
        "kernel": without_addresses(kernel),
        "network": without_addresses(model.network),
        "sha256_function": function,
        "sha256_variables": hash_arrays(jax.tree.leaves(model.variables)),
        "dtype": name,
        "platform": jax.default_backend(),
        "version": __version__,
        "jax": jax.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _data(X, Y) -> dict:
    known = {"n_X": len(X), "sha256_X": hash_arrays([X])}
    return known if Y is None else known | {"n_Y": len(Y), "sha256_Y": hash_arrays([Y])}
