"""How a Gram matrix is cut up so that features and working space keep within a stated amount of memory.

Examples
--------
>>> import jax
>>> from ntkrobust_sk import CNN, Model, TraceNTK
>>> network = CNN(n_outputs=10)
>>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
>>> plan = make_plan(TraceNTK(), model, (8, 8, 1), parse_memory("64MiB"))
>>> plan.peak_bytes <= 2**26
True
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike

from .._validation import LARGEST_COUNT, integer
from ..execution.devices import default_devices, on_host
from ..execution.memory import parse_memory, readable
from ..execution.precision import DIGITS
from ..networks.model import Model
from .abstract_features import AbstractFeatures, abstract_features
from .ntk import resolve_kernel

# Rows of a tile where memory allows it: enough for the matrix products to run near their peak.
TILE_ROWS = 64
# Twice as many where so many of these tiles fit in memory: a product of two tiles then reads half as much for its
# operations. On a CPU also where a row's features are few, and the work of a tile would be mostly overhead.
FEW_BYTES = 128 * 2**10
ROOMY_TILES = 6
TILE_ROWS_ACCELERATOR = 512
# Where computing a tile's features takes more working space than this, a CPU computes them for a few rows at a
# time: what stays in its cache runs about twice as fast.
CACHE_BYTES = 16 * 2**20
# But each time the parameters are read, too: of large networks so many rows are taken that their working space is
# several times as large as the parameters, fewer where memory does not allow that, or else what the cache holds.
PARAMETERS_READ = (8, 3, 0)
# Seeds are taken in several passes where otherwise fewer rows' features than these would fit.
PANEL_ROWS = 1024


@dataclass(frozen=True)
class Plan:
    """The sizes that a Gram matrix is computed with.

    Depends on kernel, network, memory and devices. The number of rows counts, to the next power of two, only
    where there are so few that a tile or panel would not be filled.

    Attributes
    ----------
    rows : int
        Of a tile.
    chunk : int
        Rows whose features are computed at once.
    panel : int
        Tiles whose features are kept while those of other tiles come and go.
    directions : int
        Directions in output space whose gradients are taken in one pass, of ``n_directions`` in all.
    n_directions : int
    row_bytes : int
        Features of one row in one pass.
    working_bytes : int
        What computing a chunk's features takes besides the tile's own, as the compiler states it.
    memory : int
        The budget. While programs are compiled, which only first calls do, the compiler takes some 100 MiB more,
        and with budgets under 64 MiB what Python, JAX and BLAS keep for themselves shows: some 30 MiB.
    devices : tuple of jax.Device
        Each computes tiles of its own; all sizes are those of one of them.
    """

    rows: int
    chunk: int
    panel: int
    directions: int
    n_directions: int
    row_bytes: int
    working_bytes: int
    memory: int
    devices: tuple = field(repr=False)

    def __post_init__(self):
        for name in ("rows", "chunk", "panel", "directions", "n_directions"):
            integer(name, getattr(self, name))
        if self.rows % self.chunk:
            raise ValueError(f"a tile's rows must be a multiple of chunk={self.chunk}, got rows={self.rows}")

    @property
    def passes(self) -> int:
        """The number of passes over the directions."""
        return -(-self.n_directions // self.directions)

    @property
    def peak_bytes(self) -> int:
        """The bytes of the features of a panel and of one more tile, and of the working space.

        The result is not in it, nor, where the directions take several passes, the unfinished tiles: parts of it.
        """
        return (self.panel + 1) * self.rows * self.row_bytes + self.working_bytes

    def __str__(self) -> str:
        several = len(self.devices) > 1
        on, each = (f", on {len(self.devices)} devices", " on each") if several else ("", "")
        passes = f"{self.passes} pass{'es' if self.passes > 1 else ''} over {self.n_directions} outputs"
        panels = f"panels of {self.panel * self.rows:,}"
        return (
            f"tiles of {self.rows} rows{on} ({self.chunk} at once), {panels}; {passes}; "
            f"{readable(self.row_bytes)} of features a row, {readable(self.working_bytes)} to compute them; "
            f"at most {readable(self.peak_bytes)} of {readable(self.memory)}{each}, the result and the "
            "compiler's own (some 100 MiB in first calls) not counted"
        )


def make_plan(
    kernel: str | Callable,
    model: Model,
    input_shape: tuple[int, ...],
    memory: int | str,
    *,
    n_rows: int | None = None,
    devices: Sequence | None = None,
    sizes: tuple[int, int] | None = None,
    dtype: DTypeLike | None = None,
    inputs: DTypeLike | None = None,
) -> Plan:
    """Make the plan for a kernel of a model's network, by compiling what computes one tile's features.

    Parameters
    ----------
    kernel : callable
    model : Model
    input_shape : tuple of int
    memory : int or str
        Bytes, as :func:`parse_memory` reads them.
    n_rows : int, default=None
        Rows of the matrix, or columns if they are more; None is as many as can be.
    devices : sequence of jax.Device, default=None
        None is all devices of JAX's default backend, or its default device if one is set.
    sizes : (int, int), default=None
        Rows of a tile and directions of a pass, where they are settled already.
    dtype : floating dtype, "tf32" or "bf16", default=None
        Of the inner products; None is the features' own.
    inputs : dtype, default=None
        Of the inputs; None is that of the parameters.

    Raises
    ------
    MemoryError
        If a tile of one row does not fit.
    """
    memory, kernel = parse_memory(memory), resolve_kernel(kernel)
    n_rows = PANEL_ROWS if n_rows is None else min(PANEL_ROWS, 2 ** math.ceil(math.log2(n_rows)))
    digits = dtype if isinstance(dtype, str) and dtype in DIGITS else None
    itemsize = 0 if dtype is None or digits else np.dtype(dtype).itemsize
    devices = tuple(devices or default_devices())
    abstract = abstract_features(kernel, model, input_shape, inputs, devices[0], digits)
    return replace(_plan(abstract, memory, n_rows, sizes, itemsize), devices=devices)


@lru_cache(maxsize=256)
def _plan(abstract: AbstractFeatures, memory: int, n_rows: int, sizes, itemsize: int) -> Plan:
    """Return the plan for a budget on one device; an ``itemsize`` of 0 is that of the parameters."""
    at_host, splits = on_host([abstract.device]), abstract.kernel.splits_directions
    rows = min(TILE_ROWS if at_host else TILE_ROWS_ACCELERATOR, n_rows)
    directions = n_directions = abstract.n_directions
    if splits:
        at_most = max(1, min(n_directions, int(0.8 * memory) // ((n_rows + rows) * abstract.direction_bytes)))
        # each pass goes forward once and backward for each direction, at twice the cost, also for spare ones
        directions = min(range(1, at_most + 1), key=lambda size: -(-n_directions // size) * (1 + 2 * size))
    if sizes is not None:
        rows, directions = sizes
    row_bytes = abstract.row_bytes(directions)
    if sizes is None and n_rows > rows:
        roomy = ROOMY_TILES * 2 * rows * row_bytes <= memory
        rows *= 2 if roomy or (at_host and row_bytes <= FEW_BYTES) else 1
    while sizes is None and rows > 1 and 3 * rows * row_bytes > memory:
        rows //= 2
    limits = sorted({max(CACHE_BYTES, times * abstract.model_bytes) for times in PARAMETERS_READ}, reverse=True)
    while True:
        block = abstract.block_bytes(rows, directions, itemsize or abstract.itemsize)
        for most in limits:
            chunk, working = rows, abstract.working_bytes(rows, directions)
            if at_host and working > most:
                chunk = max(1, 2 ** int(math.log2(most * rows / working)))
                # and while one chunk is copied to its place, the next one is computed
                working = abstract.working_bytes(chunk, directions) + 2 * chunk * row_bytes
            # features are computed, and then contracted
            working = max(working, abstract.contraction_bytes(rows, directions, itemsize))
            # two tiles at least: one of rows and one of columns, and the block of each pair of a column
            if 2 * rows * row_bytes + block + working <= memory:
                panel = (memory - working - rows * row_bytes) // (rows * row_bytes + block)
                panel, device = min(panel, LARGEST_COUNT), (abstract.device,)
                working += panel * block
                return Plan(rows, chunk, int(panel), directions, n_directions, row_bytes, working, memory, device)
        if rows > 1 and sizes is None:
            rows //= 2
        elif directions > 1 and splits and sizes is None:
            directions = directions // 2
            row_bytes = abstract.row_bytes(directions)
        else:
            enough = 2 * rows * row_bytes + block + working
            raise MemoryError(
                f"two tiles of {rows} row{'s' if rows > 1 else ''} of tangent features and computing them take "
                f"{readable(enough)}, more than the budget of {readable(memory)}; give memory={enough:,} bytes or "
                "more, or take a kernel with fewer features (kernel='pseudo')"
            )


def fixed_plan(
    kernel: str | Callable,
    model: Model,
    input_shape: tuple[int, ...],
    rows: int,
    panel: int = 1,
    directions: int | None = None,
    inputs: DTypeLike | None = None,
) -> Plan:
    """Make a plan of given sizes, for tests of kernels, whatever memory it takes; nothing is compiled yet.

    Parameters
    ----------
    kernel, model, input_shape, inputs
        As for :func:`make_plan`.
    rows, panel : int
        Rows of a tile, tiles of a panel.
    directions : int, default=None
        Of one pass; None is all of them.
    """
    devices = default_devices()
    abstract = abstract_features(resolve_kernel(kernel), model, input_shape, inputs, devices[0])
    n_directions = abstract.n_directions
    splits = abstract.kernel.splits_directions
    directions = n_directions if directions is None or not splits else min(directions, n_directions)
    row_bytes = abstract.row_bytes(directions)
    rows = integer("rows", rows)
    return Plan(rows, rows, panel, directions, n_directions, row_bytes, 0, (panel + 1) * rows * row_bytes, devices)
