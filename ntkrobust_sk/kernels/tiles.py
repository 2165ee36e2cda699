"""Tiles of a Gram matrix: the features of a tile, by a program that is bound once, and inner products of two."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ..datasets.items import Rows
from ..execution.devices import blas, give_back_memory, host_threads, on_host
from ..execution.precision import DIGITS, enable_x64
from ..execution.tiles import one_ahead, pad_rows
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..networks.precision import precision_of
from ..tangent.gradient_lists import concatenate_tiles, split_biases
from .abstract_features import AbstractFeatures, abstract_features, compiled_features, output_directions
from .ntk import Kernel, TangentKernel
from .plan import Plan
from .verification import start_verification

# The units of a GPU that take products of rounded numbers.
UNITS = {"tf32": "TF32_TF32_F32", "bf16": "BF16_BF16_F32"}


def own_digits(kernel: Kernel, model: Model) -> str | None:
    """Return the digits to which features are rounded where nobody names others: those of the network's products.

    None where these do not round, and for a kernel that has no features to be rounded.
    """
    single = kernel.is_tangent and params_dtype(model.variables.params) == np.float32
    return precision_of(model.network) if single else None


@dataclass(frozen=True, eq=False)
class TileProgram:
    """A compiled program from inputs to features of a tile, bound to what does not change from tile to tile.

    Attributes
    ----------
    compiled : callable
        The program: from model, a chunk of inputs and directions to features.
    model : Model
        The model on the plan's first device, where the program runs.
    passes : dict of arrays
        The directions of each pass, (``plan.directions``, C), by the first one's number.
    plan : Plan
    in_numpy : bool
        Whether features are returned in NumPy, which on a CPU shares memory with JAX.
    """

    compiled: Callable
    model: Model
    passes: dict[int, jax.Array]
    plan: Plan
    in_numpy: bool

    def __call__(self, x: np.ndarray, start: int = 0) -> Any:
        """Compute features of a tile, or hand on the inputs where the kernel has none.

        Parameters
        ----------
        x : array (n, ...)
            At most ``plan.rows`` rows; missing ones repeat the first.
        start : int, default=0
            First direction of the pass; directions beyond the last are zero.
        """
        rows, chunk = self.plan.rows, self.plan.chunk
        x = jax.device_put(pad_rows(x, rows), self.plan.devices[0])
        directions = self.passes[start]
        if chunk == rows:
            features = self.compiled(self.model, x, directions)
        else:
            parts = (self.compiled(self.model, x[at : at + chunk], directions) for at in range(0, rows, chunk))
            features = concatenate_tiles(one_ahead(parts), rows)
        return jax.tree.map(np.asarray, features) if self.in_numpy else features


@contextmanager
def verified_meanwhile(kernel: Kernel, model: Model, X: np.ndarray | Rows) -> Iterator[None]:
    """Verify how a network is read while the block traces and compiles something else; errors come at its end."""
    finish = (
        start_verification(kernel.base, model, np.asarray(X[:2])) if isinstance(kernel, TangentKernel) else bool
    )
    yield
    if finish():
        give_back_memory()


def tile_program(
    kernel: Kernel, model: Model, plan: Plan, X: np.ndarray | Rows, digits: str | None = None
) -> TileProgram:
    """Bind the program that computes features of tiles, and verify how the network's gradients are read.

    Parameters
    ----------
    kernel : TangentKernel or CallableKernel
    model : Model
    plan : Plan
    X : array (n, ...)
        Inputs of the shape and dtype that the program is for; the first rows are looked at.
    digits : {"tf32", "bf16"}, default=None
        Features are rounded so, on an accelerator "bf16" in as many bits.

    Raises
    ------
    ArithmeticError
        If the network's structure was read wrongly: see :mod:`.verification`.
    """
    device = plan.devices[0]
    abstract = abstract_features(kernel, model, X.shape[1:], X.dtype, device, digits)
    model = jax.device_put(model, device)
    with verified_meanwhile(kernel, model, X):
        compiled = compiled_features(abstract, plan.chunk, plan.directions)
    directions = output_directions(abstract)
    directions = np.pad(directions, ((0, plan.passes * plan.directions - len(directions)), (0, 0)))
    starts = range(0, plan.n_directions, plan.directions)
    passes = {start: directions[start : start + plan.directions] for start in starts}
    return TileProgram(
        compiled,
        model,
        jax.device_put(passes, device),
        plan,
        in_numpy=kernel.is_tangent and on_host([device]),
    )


@dataclass(frozen=True, eq=False)
class TileJob:
    """The arguments from which the tiles of one Gram matrix are computed.

    Attributes
    ----------
    kernel : TangentKernel or CallableKernel
    model : Model
    X : array or Rows (n, ...)
    Y : array or Rows (m, ...), or None
    plan : Plan
    dtype : str or None
        The precision of inner products, as for :func:`gram`.
    by_layer : bool
    kept : dict or None
        Features of rows' tiles by tile and first direction, where all of them are kept.
    """

    kernel: Kernel
    model: Model
    X: np.ndarray | Rows
    Y: np.ndarray | Rows | None
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

    def prepare(self) -> None:
        """Compile the programs of rows and columns, and verify how the network is read."""
        _ = self._row_program, self._column_program

    @cached_property
    def abstract(self) -> AbstractFeatures:
        """The rows' features without numbers, on the plan's first device."""
        shape, dtype = self.X.shape[1:], self.X.dtype
        return abstract_features(self.kernel, self.model, shape, dtype, self.plan.devices[0], self.digits)

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
        height, width = (-(-size // self.plan.rows) for size in self.shape)
        return [(i, j) for i in range(height) for j in range(i if self.Y is None else 0, width)]

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
        features = program(np.asarray(inputs[tile * rows : (tile + 1) * rows]), start)
        return split_biases(features) if self.by_layer else features


def compute_tiles(job: TileJob, tiles: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list]]:
    """Yield tiles (i, j), each with its blocks: one for each parameter array, or one in all.

    The first of the plan's devices computes them. The rows' features are kept, the columns' are computed one tile
    after the other. Where the directions take several passes, all tiles are finished in the last one.
    """
    kernel, plan, symmetric = job.kernel, job.plan, job.Y is None
    contract = contract_on_host if kernel.is_tangent and on_host(plan.devices) else _contract_compiled
    rows = sorted({i for i, _ in tiles})
    columns: dict[int, list[int]] = {}
    for i, j in tiles:
        columns.setdefault(j, []).append(i)
    unfinished = {}
    for start in range(0, plan.n_directions, plan.directions):
        left = {i: job.row_features(i, start) for i in rows}
        for j, partners in columns.items():
            right = left[j] if symmetric and j in left else job.column_features(j, start)
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
