"""Gram matrices on disk that are larger than memory: as linear operators, and as dask arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .linear_operator import GramOperator, add_tile, count_tiles
from .store import GramStore, open_finished
from .tiles import transpose


class StoredGram(GramOperator):
    """A finished Gram matrix on disk, of which one tile at a time is in memory.

    Attributes
    ----------
    store : GramStore
    turned : bool
        Whether rows and columns are swapped.
    dtype : dtype
        Of products: that of the numbers on disk, unless another one is given.
    """

    def __init__(self, store: GramStore, turned: bool = False, dtype: Any = None):
        self.store, self.turned = store, turned
        n, m, *tail = store.array.shape
        n, m = (m, n) if turned else (n, m)
        outputs = tail[0] if tail else 1
        super().__init__(
            n,
            m,
            rank=2 + len(tail),
            n_outputs=outputs,
            symmetric=store.symmetric,
            dtype=dtype or store.array.dtype,
        )

    def _tiles(self):
        """List the tiles, or those on and above the diagonal where the others mirror these."""
        n, m = (count_tiles(size, self.store.rows) for size in self.store.array.shape[:2])
        return [(i, j) for i in range(n) for j in range(i if self.symmetric else 0, m)]

    def _times(self, V, transposed):
        transposed ^= self.turned
        n = self.store.array.shape[1 if transposed else 0]
        total, rows = np.zeros((n, *V.shape[1:]), self.dtype), self.store.rows
        for i, j in self._tiles():
            block = self.store.read_tile(i, j)
            add_tile(total, V, block, i, j, rows, mirrored=self.symmetric and i < j, transposed=transposed)
        return total

    def _transposed(self):
        return StoredGram(self.store, not self.turned, self.dtype)

    def _own_diagonal(self):
        n_tiles = count_tiles(self.store.array.shape[0], self.store.rows)
        blocks = [self.store.read_tile(i, i) for i in range(n_tiles)]
        found = [block[range(len(block)), range(len(block))] for block in blocks]
        return np.concatenate([part.diagonal(0, 1, 2) if part.ndim == 3 else part for part in found])

    def _columns_of(self, examples):
        n, rows = self.store.array.shape[1 if self.turned else 0], self.store.rows
        found = np.empty((n, len(examples), *self.store.array.shape[2:]), self.dtype)
        for j in np.unique(examples // rows):
            own = np.nonzero(examples // rows == j)[0]
            for i in range(count_tiles(n, rows)):
                block = self.store.read_tile(int(j), i) if self.turned else self.store.read_tile(i, int(j))
                block = transpose(block) if self.turned else block
                found[i * rows : (i + 1) * rows, own] = block[:, examples[own] - j * rows]
        return found

    def to_dask(self) -> Any:
        """Return the dense array (n, m), (n, m, C) or (n, m, C, C) as a dask array, whose chunks are the tiles.

        Tiles are read when they are needed, and checked. Needs dask.
        """
        import dask.array

        tail = self.store.array.shape[2:]
        chunks: Any = (self.store.rows, self.store.rows, *tail)
        found = dask.array.from_array(_Tiles(self.store), chunks=chunks, asarray=False, name=False)
        if not self.turned:
            return found
        return found.swapaxes(0, 1).swapaxes(2, 3) if len(tail) == 2 else found.swapaxes(0, 1)


class _Tiles:
    """The tiles of a store as what dask reads an array from."""

    def __init__(self, store: GramStore):
        self.store, self.shape, self.dtype = store, store.array.shape, store.array.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, at):
        at = tuple(range(*part.indices(size)) for part, size in zip(at, self.shape, strict=True))
        if any(len(part) == 0 for part in at):
            return np.empty([len(part) for part in at], self.dtype)
        (i, j), rows = (part[0] // self.store.rows for part in at[:2]), self.store.rows
        block = self.store.read_tile(i, j)
        inside = [np.asarray(part) - k * rows for part, k in zip(at[:2], (i, j), strict=True)]
        return block[np.ix_(*inside, *at[2:])]


def open_gram(path: str | os.PathLike) -> StoredGram:
    """Open the finished matrix in the store at ``path`` as a linear operator, which reads it tile by tile.

    Parameters
    ----------
    path : str or os.PathLike
        What ``gram(..., store=path)`` or ``gram_operator(..., store=path)`` has written.

    Returns
    -------
    StoredGram
        A :class:`GramOperator`; ``to_dask()`` gives a dask array. Each tile that is read is checked.

    Raises
    ------
    FileNotFoundError, StoreMismatchError, DamagedTileError
        As :func:`read_gram`; of tiles that are damaged, when they are read.

    Examples
    --------
    >>> import tempfile, jax
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     K = gram("trace", model, np.eye(4), store=folder)
    ...     stored = open_gram(folder)
    ...     stored.shape, bool(np.allclose(stored @ np.ones(4), K.sum(1)))
    ((4, 4), True)
    """
    return StoredGram(open_finished(path))
