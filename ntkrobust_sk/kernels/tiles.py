"""Tiles of a Gram matrix: the features of a tile of rows, and the inner products of two tiles."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ..execution.devices import blas, everywhere, host_threads, on_host, on_one_cpu
from ..execution.precision import enable_x64
from ..networks.model import Model
from ..tangent.gradient_lists import DIGITS, split_biases
from .ntk import Kernel
from .tile_program import TileProgram, tile_program

# The units of a GPU that take products of rounded numbers.
UNITS = {"tf32": "TF32_TF32_F32", "bf16": "BF16_BF16_F32"}


def all_tiles(rows: int, n: int, m: int | None) -> list[tuple[int, int]]:
    """Return the indices (i, j) of an (n, m) matrix's tiles, or of the upper half of a symmetric one (m None)."""
    height, width = -(-n // rows), -(-(n if m is None else m) // rows)
    return [(i, j) for i in range(height) for j in range(0 if m is not None else i, width)]


def by_panel(tiles: list[tuple[int, int]], panel: int, width: int | None = None) -> list[list[tuple[int, int]]]:
    """Return the tiles of each panel of rows, and of each ``width`` columns if that is given.

    >>> by_panel([(0, 0), (0, 1), (0, 2), (1, 1)], panel=2, width=2)
    [[(0, 0), (0, 1), (1, 1)], [(0, 2)]]
    """
    panels = {}
    for i, j in tiles:
        panels.setdefault((i // panel, None if width is None else j // width), []).append((i, j))
    return list(panels.values())


@dataclass(frozen=True, eq=False)
class TileJob:
    """The arguments from which the tiles of one Gram matrix are computed.

    Attributes
    ----------
    kernel : TangentKernel or CallableKernel
    model : Model
    X : array (n, ...)
    Y : array (m, ...) or None
    plan : Plan
    dtype : str or None
        The precision of inner products, as for :func:`gram`.
    by_layer : bool
    kept : dict or None
        Features of rows' tiles by tile and first direction, where all of them are kept.
    """

    kernel: Kernel
    model: Model
    X: np.ndarray
    Y: np.ndarray | None
    plan: Any  # a Plan; None in a piece on its way to a worker, which has devices of its own
    dtype: str | None = None
    by_layer: bool = False
    kept: dict | None = None

    @cached_property
    def _row_program(self) -> TileProgram:
        return tile_program(self.kernel, self.model, self.plan, self.X, self.digits)

    @cached_property
    def _column_program(self) -> TileProgram:
        if self.Y is None or self.Y.dtype == self.X.dtype:
            return self._row_program
        return tile_program(self.kernel, self.model, self.plan, self.Y, self.digits)

    @property
    def digits(self) -> str | None:
        """The digits to which features are rounded, "tf32" or "bf16"."""
        return self.dtype if self.dtype in DIGITS else None

    @property
    def products_dtype(self) -> str | None:
        """The dtype to which features are cast for inner products; None is their own."""
        return None if self.dtype in DIGITS else self.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return len(self.X), len(self.X if self.Y is None else self.Y)

    def tiles(self) -> list[tuple[int, int]]:
        """Return the indices (i, j) of all tiles, or of the upper half where the matrix is symmetric."""
        return all_tiles(self.plan.rows, len(self.X), None if self.Y is None else len(self.Y))

    def row_features(self, tile: int, start: int = 0) -> Any:
        """Compute the features of a tile of rows, or take those that are kept."""
        if self.kept is None:
            return self._features(self._row_program, self.X, tile, start)
        if (tile, start) not in self.kept:
            self.kept[tile, start] = self._features(self._row_program, self.X, tile, start)
        return self.kept[tile, start]

    def column_features(self, tile: int, start: int = 0) -> Any:
        """Compute the features of a tile of columns."""
        if self.Y is None:
            return self.row_features(tile, start)
        return self._features(self._column_program, self.Y, tile, start)

    def _features(self, program, inputs, tile, start):
        rows = self.plan.rows
        features = program(inputs[tile * rows : (tile + 1) * rows], start)
        return split_biases(features) if self.by_layer else features


def compute_tiles(job: TileJob, tiles: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list]]:
    """Yield tiles (i, j), each with its blocks: one for each parameter array, or one in all.

    The rows' features are kept, the columns' are computed one tile after the other. Where the directions take
    several passes, all tiles are finished in the last one.
    """
    kernel, plan, symmetric = job.kernel, job.plan, job.Y is None
    contract = contract_on_host if kernel.is_tangent and on_one_cpu(plan.devices) else _contract_compiled
    rows = sorted({i for i, _ in tiles})
    columns: dict[int, list[int]] = {}
    for i, j in tiles:
        columns.setdefault(j, []).append(i)
    unfinished = {}
    for start in range(0, plan.n_directions, plan.directions):
        left = {i: job.row_features(i, start) for i in rows}
        for j, partners in columns.items():
            right = left[j] if symmetric and j in left else job.column_features(j, start)
            if len(plan.devices) > 1:
                # rows stay where they are, columns go to all devices
                right = jax.device_put(right, everywhere(plan.devices))
            column = contract(job, [left[i] for i in partners], right)
            for i, blocks in zip(partners, column, strict=True):
                if symmetric and i == j:
                    blocks = [_symmetrized(block) for block in blocks]
                if kernel.splits_directions and kernel.rank == 3:
                    # the last pass may have directions to spare
                    blocks = [block[:, :, : plan.n_directions - start] for block in blocks]
                if (i, j) in unfinished:
                    blocks = _together(kernel, unfinished.pop((i, j)), blocks)
                if start + plan.directions < plan.n_directions:
                    unfinished[i, j] = blocks
                else:
                    yield (i, j), blocks
            # not to hold two columns' features at once
            right = column = None
        left = None


def _together(kernel, before, blocks):
    """Return the blocks of two passes: summed over directions, or put side by side where these are kept apart."""
    if kernel.rank == 2:
        with own_precision(blocks[0]):
            return [a + b for a, b in zip(before, blocks, strict=True)]
    xp = np if isinstance(blocks[0], np.ndarray) else jnp
    return [xp.concatenate([a, b], axis=2) for a, b in zip(before, blocks, strict=True)]


def contract_on_host(job: TileJob, lefts: list, right) -> list:
    """Return the blocks of some tiles with one tile, by NumPy, in threads of our own.

    BLAS's own threads would meet after each of these small products, and wait for each other whenever
    something else runs on the machine. One pair's full kernel is the exception: a few large square products.
    """
    n_threads, by_layer = host_threads(), job.by_layer
    alone = len(lefts) == 1 and job.kernel.rank == 4 and not by_layer
    # whole pairs where there are enough of them, else layer by layer
    size = len(right) if alone or len(lefts) >= n_threads else 1
    pieces = [(left[at : at + size], right[at : at + size]) for left in lefts for at in range(0, len(right), size)]

    def contract(piece):
        # what overflows is found in the result
        with np.errstate(over="ignore", invalid="ignore"):
            layers = job.kernel.blocks(job.model, piece[0], piece[1], job.products_dtype)
            return layers if by_layer or size == 1 else [_added_up(layers)]

    if alone:
        return [contract(pieces[0])]
    with blas().limit(limits=1), ThreadPoolExecutor(n_threads) as threads:
        blocks = [block for found in threads.map(contract, pieces) for block in found]
    per_pair = len(blocks) // len(lefts)
    columns = [blocks[at : at + per_pair] for at in range(0, len(blocks), per_pair)]
    with np.errstate(over="ignore", invalid="ignore"):
        return columns if by_layer else [[_added_up(layers)] for layers in columns]


def _added_up(layers):
    """Add up blocks that nobody else needs, in the first one's place."""
    total, *others = layers
    for block in others:
        total += block
    return total


def _contract_compiled(job: TileJob, lefts: list, right) -> list:
    """Return the blocks of some tiles with one tile, by XLA."""
    with enable_x64(True) if job.dtype == "float64" else nullcontext():
        return [_contract(job.kernel, job.model, left, right, job.dtype, job.by_layer) for left in lefts]


@partial(jax.jit, static_argnums=(0, 4, 5))
def _contract(kernel, model, left, right, dtype, by_layer):
    precision = "highest"
    if dtype in DIGITS:
        # a CPU has no such units; its products of rounded features are the same
        precision = precision if on_host() else UNITS[dtype]
        dtype = None
    with jax.default_matmul_precision(precision):
        blocks = kernel.blocks(model, left, right, dtype)
        return blocks if by_layer or len(blocks) == 1 else [sum(blocks)]


def own_precision(block) -> AbstractContextManager:
    """Return a context in which JAX computes with a block in its own precision, double precision included."""
    return enable_x64(True) if block.dtype == np.float64 else nullcontext()


def _symmetrized(block: Shaped[Any, "n n *c"]) -> Shaped[Any, "n n *c"]:
    with own_precision(block):
        both = block + transpose(block)
        both *= 0.5
        return both


def transpose(block: Shaped[Any, "n m *c"]) -> Shaped[Any, "m n *c"]:
    """Return the block of (x', x): examples swapped, and classes swapped where both are there."""
    return block.transpose((1, 0, *reversed(range(2, block.ndim)))) if block.ndim == 4 else block.swapaxes(0, 1)
