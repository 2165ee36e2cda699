"""Tiles of a Gram matrix: the features of a tile of rows, and the inner products of two tiles."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..execution.devices import blas, by_rows, everywhere, give_back_memory, host_threads, on_host
from ..execution.tiles import pad_rows
from ..networks.model import Model
from ..tangent.gradient_lists import DIGITS, separated, stacked
from .ntk import TangentKernel
from .plan import Plan, abstract_of, all_seeds, compiled_features
from .proof import prove

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64


def features_of(
    kernel, model: Model, plan: Plan, X: np.ndarray, tile: int, start: int = 0, *, in_numpy=False, digits=None
):
    """What one side of the kernel needs of a tile: its features, or the inputs when it has none.

    Parameters
    ----------
    kernel, model, plan
    X : array (n, ...)
    tile : int
        Index of a tile of ``plan.rows`` rows; missing ones repeat the tile's first.
    start : int, default=0
        First seed of the pass; seeds beyond the last are zero.
    in_numpy : bool, default=False
        As NumPy arrays, which share memory with JAX's on a CPU.
    digits : {"tf32", "bf16"}, default=None
        Rounded so, on an accelerator "bf16" in as many bits.

    Raises
    ------
    ArithmeticError
        If the network's structure was read wrongly: see :mod:`.proof`.
    """
    x = pad_rows(X[tile * plan.rows : (tile + 1) * plan.rows], plan.rows)
    abstract = abstract_of(model, X.dtype)
    x, model = jax.device_put(x, by_rows(plan.devices)), jax.device_put(model, everywhere(plan.devices))
    if not isinstance(kernel, TangentKernel):
        return x
    if prove(kernel if kernel.has_gradients else kernel.base, model, X[tile * plan.rows :][:2]):
        give_back_memory()
    program = compiled_features(kernel, abstract, X.shape[1:], plan.chunk, plan.seeds, plan.devices, digits)
    seeds = all_seeds(kernel, abstract, X.shape[1:])[start : start + plan.seeds]
    seeds = np.pad(seeds, ((0, plan.seeds - len(seeds)), (0, 0)))
    seeds = jax.device_put(seeds, everywhere(plan.devices))
    if plan.chunk == plan.rows:
        features = program(model, x, seeds)
    else:
        parts = (program(model, x[at : at + plan.chunk], seeds) for at in range(0, plan.rows, plan.chunk))
        features = stacked(_started_ahead(parts), plan.rows)
    return jax.tree.map(np.asarray, features) if in_numpy else features


def _started_ahead(results):
    """Results of calls that only enqueue work, each when the next one is on its way."""
    ahead = next(results)
    for result in results:
        yield ahead
        ahead = result
    yield ahead


# The units of a GPU that take products of rounded numbers.
UNITS = {"tf32": "TF32_TF32_F32", "bf16": "BF16_BF16_F32"}


def all_tiles(rows: int, n: int, m: int | None) -> list[tuple[int, int]]:
    """Indices (i, j) of the tiles of an (n, m) matrix, or of the upper half when it is symmetric (m None)."""
    height, width = -(-n // rows), -(-(n if m is None else m) // rows)
    return [(i, j) for i in range(height) for j in range(0 if m is not None else i, width)]


def by_panel(tiles: list[tuple[int, int]], panel: int, width: int | None = None) -> list[list[tuple[int, int]]]:
    """The tiles of each panel of rows, and of each ``width`` columns if that is given.

    >>> by_panel([(0, 0), (0, 1), (0, 2), (1, 1)], panel=2, width=2)
    [[(0, 0), (0, 1), (1, 1)], [(0, 2)]]
    """
    panels = {}
    for i, j in tiles:
        panels.setdefault((i // panel, None if width is None else j // width), []).append((i, j))
    return list(panels.values())


def compute_tiles(
    kernel, model: Model, X, Y, tiles: list[tuple[int, int]], plan: Plan, dtype=None, by_layer=False
) -> Iterator[tuple[tuple[int, int], list]]:
    """Tiles (i, j), each with its blocks: one for each parameter array, or one in all.

    The rows' features are kept, the columns' are computed one tile after the other. Where the seeds take
    several passes, all tiles are finished in the last one.

    Parameters
    ----------
    kernel, model, dtype, by_layer
        As for :func:`gram`.
    X : array (n, ...)
    Y : array (m, ...) or None
    tiles : list of (i, j)
    plan : Plan
    """
    in_numpy = isinstance(kernel, TangentKernel) and len(plan.devices) == 1 and on_host(plan.devices)
    contract = contract_on_host if in_numpy else _contract_compiled
    digits = dtype if dtype in DIGITS else None

    def features(inputs, tile, start):
        found = features_of(kernel, model, plan, inputs, tile, start, in_numpy=in_numpy, digits=digits)
        return separated(found) if by_layer else found

    rows = sorted({i for i, _ in tiles})
    columns = {}
    for i, j in tiles:
        columns.setdefault(j, []).append(i)
    unfinished = {}
    for start in range(0, plan.n_seeds, plan.seeds):
        left = {i: features(X, i, start) for i in rows}
        for j, partners in columns.items():
            right = left[j] if Y is None and j in left else features(X if Y is None else Y, j, start)
            if len(plan.devices) > 1:
                # rows stay where they are, columns go to all devices
                right = jax.device_put(right, everywhere(plan.devices))
            column = contract(kernel, model, [left[i] for i in partners], right, dtype, by_layer)
            for i, blocks in zip(partners, column, strict=True):
                if Y is None and i == j:
                    blocks = [_symmetrized(block) for block in blocks]
                if kernel_rank(kernel) == 3:
                    # the last pass may have seeds to spare
                    blocks = [block[:, :, : plan.n_seeds - start] for block in blocks]
                if (i, j) in unfinished:
                    blocks = _together(kernel, unfinished.pop((i, j)), blocks)
                if start + plan.seeds < plan.n_seeds:
                    unfinished[i, j] = blocks
                else:
                    yield (i, j), blocks
            # not to hold two columns' features at once
            right = column = None
        left = None


def kernel_rank(kernel) -> int | None:
    """The rank that a tangent kernel states."""
    return kernel.rank if isinstance(kernel, TangentKernel) else None


def _together(kernel, before, blocks):
    """Blocks of two passes: summed over seeds, or put side by side where the kernel keeps them apart."""
    if kernel_rank(kernel) == 2:
        with own_precision(blocks[0]):
            return [a + b for a, b in zip(before, blocks, strict=True)]
    xp = np if isinstance(blocks[0], np.ndarray) else jnp
    return [xp.concatenate([a, b], axis=2) for a, b in zip(before, blocks, strict=True)]


def contract_on_host(kernel, model, lefts, right, dtype, by_layer):
    """Blocks of some tiles with one tile, by NumPy, in threads of our own.

    BLAS's own threads would meet after each of these small products, and wait for each other whenever
    something else runs on the machine. One pair's full kernel is the exception: a few large square products.
    """

    n_threads = host_threads()
    if len(lefts) == 1 and kernel.rank == 4 and not by_layer:
        with np.errstate(over="ignore", invalid="ignore"):
            layers = kernel.contract_layers(lefts[0], right, None if dtype in DIGITS else dtype)
            return [[_added_up(layers)]]
    # whole pairs where there are enough of them, else layer by layer
    size = len(right) if len(lefts) >= n_threads else 1
    pieces = [(left[at : at + size], right[at : at + size]) for left in lefts for at in range(0, len(right), size)]

    def contract(piece):
        # what overflows is found in the result
        with np.errstate(over="ignore", invalid="ignore"):
            layers = kernel.contract_layers(*piece, None if dtype in DIGITS else dtype)
            return layers if by_layer or size == 1 else [_added_up(layers)]

    with blas().limit(limits=1), ThreadPoolExecutor(n_threads) as threads:
        blocks = [block for found in threads.map(contract, pieces) for block in found]
    per_pair = len(blocks) // len(lefts)
    columns = [blocks[at : at + per_pair] for at in range(0, len(blocks), per_pair)]
    with np.errstate(over="ignore", invalid="ignore"):
        return columns if by_layer else [[_added_up(layers)] for layers in columns]


def _added_up(layers):
    """The sum of blocks that nobody else needs, in the first one's place."""
    total, *others = layers
    for block in others:
        total += block
    return total


def _contract_compiled(kernel, model, lefts, right, dtype, by_layer):
    """Blocks of some tiles with one tile, by XLA."""
    with enable_x64(True) if dtype == "float64" else nullcontext():
        return [_contract(kernel, model, left, right, dtype, by_layer) for left in lefts]


@partial(jax.jit, static_argnums=(0, 4, 5))
def _contract(kernel, model, left, right, dtype, by_layer):
    precision = "highest"
    if dtype in DIGITS:
        # a CPU has no such units; its products of rounded features are the same
        precision = precision if on_host() else UNITS[dtype]
        dtype = None
    with jax.default_matmul_precision(precision):
        if isinstance(kernel, TangentKernel):
            blocks = kernel.contract_layers(left, right, dtype)
            return blocks if by_layer else [sum(blocks)]
        block = kernel(model, left, right)
    _check_block(kernel, jnp.shape(block), len(left), len(right))
    return [block if dtype is None else block.astype(dtype)]


def _check_block(kernel, shape, n, m):
    if shape[:2] != (n, m) or len(shape) > 4 or len(set(shape[2:])) > 1:
        raise ValueError(
            f"a kernel must return a block (n, m), (n, m, C) or (n, m, C, C), got {shape} for n = {n} and m = {m} "
            f"from {kernel!r}"
        )


def own_precision(block):
    """JAX computes with what is there in double precision in single precision unless told otherwise."""
    return enable_x64(True) if block.dtype == np.float64 else nullcontext()


def _symmetrized(block):
    with own_precision(block):
        both = block + transpose(block)
        both *= 0.5
        return both


def transpose(block):
    """The block of (x', x): examples swapped, and classes swapped where both are there."""
    return block.transpose((1, 0, *reversed(range(2, block.ndim)))) if block.ndim == 4 else block.swapaxes(0, 1)
