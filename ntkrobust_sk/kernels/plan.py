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

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import LARGEST_COUNT, integer
from ..execution.devices import by_rows, default_devices, everywhere, host_threads, on_host, on_one_cpu
from ..execution.memory import parse_memory, readable
from ..networks.inputs import inputs_dtype, params_dtype
from ..networks.model import Model
from ..tangent.costs import contraction_bytes
from ..tangent.gradient_lists import DIGITS, rounded
from .ntk import TangentKernel

# Rows of a tile where memory allows it: enough for the matrix products to run near their peak.
TILE_ROWS = 64
# On a CPU, twice as many where a row's features are few, and the work of a tile would be mostly overhead, or
# where so many of these tiles fit in memory: a product of two tiles then reads half as much for its operations.
FEW_BYTES = 128 * 2**10
ROOMY_TILES = 6
TILE_ROWS_ACCELERATOR = 512
# Where computing a tile's features takes more working space than this, a CPU computes them for a few rows at a
# time: what stays in its cache runs about twice as fast.
CACHE_BYTES = 16 * 2**20
# Seeds are taken in several passes where otherwise fewer rows' features than these would fit.
PANEL_ROWS = 1024


@dataclass(frozen=True)
class Plan:
    """Sizes that a Gram matrix is computed with.

    Depends on kernel, network, memory and devices. The number of rows counts, to the next power of two, only
    where there are so few that a tile or panel would not be filled.

    Attributes
    ----------
    rows : int
        Of a tile, over all devices.
    chunk : int
        Rows whose features are computed at once.
    panel : int
        Tiles whose features are kept while those of other tiles come and go.
    seeds : int
        Directions in output space whose gradients are taken in one pass, of ``n_seeds`` in all.
    n_seeds : int
    row_bytes : int
        Features of one row in one pass.
    working_bytes : int
        What computing a chunk's features takes besides the tile's own, as the compiler states it.
    memory : int
        The budget. While programs are compiled, which only first calls do, the compiler takes some 100 MiB more,
        and with budgets under 64 MiB what Python, JAX and BLAS keep for themselves shows: some 30 MiB.
    devices : tuple of jax.Device
    """

    rows: int
    chunk: int
    panel: int
    seeds: int
    n_seeds: int
    row_bytes: int
    working_bytes: int
    memory: int
    devices: tuple = field(repr=False)

    def __post_init__(self):
        for name in ("rows", "chunk", "panel", "seeds", "n_seeds"):
            integer(name, getattr(self, name))
        if self.rows % self.chunk or self.rows % len(self.devices):
            raise ValueError(
                f"a tile's rows must be a multiple of chunk={self.chunk} and of the {len(self.devices)} "
                f"device(s), got rows={self.rows}"
            )

    @property
    def passes(self) -> int:
        """How often the seeds are gone through."""
        return -(-self.n_seeds // self.seeds)

    @property
    def peak_bytes(self) -> int:
        """Features of a panel and of one more tile, and the working space.

        The result is not in it, nor, where the seeds take several passes, the unfinished tiles: parts of it.
        """
        return (self.panel + 1) * self.rows * self.row_bytes + self.working_bytes

    def __str__(self) -> str:
        on = f", on {len(self.devices)} devices" if len(self.devices) > 1 else ""
        passes = f"{self.passes} pass{'es' if self.passes > 1 else ''} over {self.n_seeds} outputs"
        panels = f"panels of {self.panel * self.rows:,}"
        return (
            f"tiles of {self.rows} rows{on} ({self.chunk} at once), {panels}; {passes}; "
            f"{readable(self.row_bytes)} of features a row, {readable(self.working_bytes)} to compute them; "
            f"at most {readable(self.peak_bytes)} of {readable(self.memory)}, the result and the compiler's own "
            "(some 100 MiB in first calls) not counted"
        )


def make_plan(
    kernel,
    model: Model,
    input_shape: tuple[int, ...],
    memory: int,
    *,
    n_rows=None,
    devices=None,
    sizes=None,
    dtype=None,
    inputs=None,
) -> Plan:
    """The plan for a kernel of a model's network, by compiling what computes one tile's features.

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
        Rows of a tile, over all devices, and seeds of a pass, where they are settled already.
    dtype : floating dtype, "tf32" or "bf16", default=None
        Of the inner products; None is the features' own.
    inputs : dtype, default=None
        Of the inputs; None is that of the parameters.

    Raises
    ------
    MemoryError
        If a tile of one row does not fit.
    """
    devices, memory = tuple(devices or default_devices()), parse_memory(memory)
    n_rows = PANEL_ROWS if n_rows is None else min(PANEL_ROWS, 2 ** math.ceil(math.log2(n_rows)))
    itemsize = 0 if dtype is None or dtype in DIGITS else np.dtype(dtype).itemsize
    digits = dtype if dtype in DIGITS else None
    abstract = abstract_of(model, inputs)
    return _plan(kernel, abstract, tuple(input_shape), memory, n_rows, devices, sizes, itemsize, digits)


@lru_cache(maxsize=256)
def _plan(kernel, abstract, input_shape, memory, n_rows, devices, sizes, itemsize, digits) -> Plan:
    n_devices = len(devices)
    rows = n_devices * min(TILE_ROWS if on_host(devices) else TILE_ROWS_ACCELERATOR, -(-n_rows // n_devices))
    n_seeds = _n_seeds(kernel, abstract, input_shape)
    seeds, dtype = n_seeds, params_dtype(abstract.model.variables.params)
    if splits_seeds(kernel):
        of_one = _row_bytes(kernel, abstract, input_shape, 1, digits, devices)
        at_most = max(1, min(n_seeds, int(0.8 * memory) // ((n_rows + rows) * of_one)))
        # each pass goes forward once and backward for each seed, at twice the cost, also for the last one's spare
        seeds = min(range(1, at_most + 1), key=lambda seeds: -(-n_seeds // seeds) * (1 + 2 * seeds))
    if sizes is not None:
        rows, seeds = sizes
    row_bytes = _row_bytes(kernel, abstract, input_shape, seeds, digits, devices)
    if sizes is None and on_one_cpu(devices) and n_rows > rows:
        roomy = ROOMY_TILES * 2 * rows * row_bytes <= memory
        rows *= 2 if row_bytes <= FEW_BYTES or roomy else 1
    while sizes is None and rows > n_devices and 3 * rows * row_bytes > memory * n_devices:
        rows = n_devices * (rows // n_devices // 2)

    def working_bytes(rows, seeds):
        return _working_bytes(kernel, abstract, input_shape, rows, seeds, devices, digits)

    while True:
        chunk, working = rows, working_bytes(rows, seeds)
        if on_one_cpu(devices) and working > CACHE_BYTES:
            chunk = max(1, 2 ** int(math.log2(CACHE_BYTES * rows / working)))
            # and while one chunk is copied to its place, the next one is computed
            working = (
                _working_bytes(kernel, abstract, input_shape, chunk, seeds, devices, digits)
                + 2 * chunk * row_bytes
            )
        # features are computed, and then contracted
        working = max(working, _contraction_bytes(kernel, abstract, input_shape, rows, seeds, itemsize, devices))
        # two tiles at least: one of rows and one of columns, and the block of each pair of a column
        block = _block_bytes(kernel, rows, seeds, itemsize or dtype.itemsize)
        if 2 * rows * row_bytes + block + working <= memory * n_devices:
            panel = (memory * n_devices - working - rows * row_bytes) // (rows * row_bytes + block)
            panel = min(panel, LARGEST_COUNT)
            working += panel * block
            return Plan(rows, chunk, int(panel), seeds, n_seeds, row_bytes, working, memory * n_devices, devices)
        if rows > n_devices and sizes is None:
            rows = n_devices * (rows // n_devices // 2)
        elif seeds > 1 and splits_seeds(kernel) and sizes is None:
            seeds = seeds // 2
            row_bytes = _row_bytes(kernel, abstract, input_shape, seeds, digits, devices)
        else:
            enough = -(-(2 * rows * row_bytes + block + working) // n_devices)
            raise MemoryError(
                f"two tiles of {rows} row{'s' if rows > 1 else ''} of tangent features and computing them take "
                f"{readable(enough)}, more than the budget of {readable(memory)}; give memory={enough:,} bytes or "
                "more, or take a kernel with fewer features (kernel='pseudo')"
            )


def fixed_plan(
    kernel, model: Model, input_shape: tuple[int, ...], rows: int, panel: int = 1, seeds=None, inputs=None
) -> Plan:
    """A plan of given sizes, whatever memory it takes; nothing is compiled yet. For tests of kernels.

    Parameters
    ----------
    kernel, model, input_shape, inputs
        As for :func:`make_plan`.
    rows, panel : int
        Rows of a tile on each device, tiles of a panel.
    seeds : int, default=None
        Of one pass; None is all of them.
    """
    abstract, devices = abstract_of(model, inputs), default_devices()
    n_seeds = _n_seeds(kernel, abstract, tuple(input_shape))
    seeds = n_seeds if seeds is None or not splits_seeds(kernel) else min(seeds, n_seeds)
    row_bytes = _row_bytes(kernel, abstract, tuple(input_shape), seeds)
    rows = integer("rows", rows) * len(devices)
    return Plan(rows, rows, panel, seeds, n_seeds, row_bytes, 0, (panel + 1) * rows * row_bytes, devices)


def splits_seeds(kernel) -> bool:
    """Whether a kernel's gradients can be taken for a few seeds at a time."""
    return isinstance(kernel, TangentKernel) and kernel.splits_seeds


@dataclass(frozen=True)
class _Abstract:
    """A model without its numbers: what programs are compiled and cached for."""

    tree: object
    leaves: tuple
    inputs: np.dtype
    x64: bool

    @property
    def model(self) -> Model:
        return jax.tree.unflatten(self.tree, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])


def abstract_of(model: Model, inputs=None) -> _Abstract:
    leaves, tree = jax.tree.flatten(model)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    inputs = inputs_dtype(float if inputs is None else inputs, model.variables.params)
    return _Abstract(tree, shapes, inputs, jax.config.jax_enable_x64)


def _working_bytes(kernel, abstract, input_shape, rows, seeds, devices, digits) -> int:
    if not isinstance(kernel, TangentKernel):
        return 0
    stats = compiled_features(kernel, abstract, input_shape, rows, seeds, devices, digits).memory_analysis()
    return 0 if stats is None else stats.temp_size_in_bytes * len(devices)


def _contraction_bytes(kernel, abstract, input_shape, rows, n_seeds, itemsize, devices) -> int:
    """What the inner products of two tiles take besides their features, in as many threads as a host has."""
    if not isinstance(kernel, TangentKernel):
        return 0
    x = _tile(abstract, input_shape, rows)
    features = jax.eval_shape(kernel.features, abstract.model, x, _seeds(kernel, abstract, input_shape, n_seeds))
    # what is kept in 16 bits is multiplied in single precision
    itemsize = max(itemsize, params_dtype(abstract.model.variables.params).itemsize, 4)
    of_one_layer = max(contraction_bytes(leaf, itemsize, kernel.rank == 4) for leaf in features)
    block = _block_bytes(kernel, rows, n_seeds, itemsize)
    n_threads = host_threads() if on_host(devices) else 1
    # each thread's layers and their sums, and what a tile on the diagonal takes to be made symmetric
    return n_threads * (of_one_layer + 2 * len(features) * block) + 3 * block


def _block_bytes(kernel, rows, n_seeds, itemsize) -> int:
    """The kernel of one pair of tiles, in one pass over seeds."""
    if not isinstance(kernel, TangentKernel):
        return 0
    return rows**2 * n_seeds ** (kernel.rank - 2) * itemsize


@lru_cache(maxsize=256)
def compiled_features(kernel, abstract, input_shape, rows, n_seeds, devices, digits):
    """Compiled: from a model, a tile of inputs (rows, ...) and seeds (n_seeds, C) to features."""
    whole, spread = everywhere(devices), by_rows(devices)
    x = _tile(abstract, input_shape, rows)
    features = _rounding(kernel.features, digits, devices)
    compute = jax.jit(features, in_shardings=(whole, spread, whole))
    return compute.lower(abstract.model, x, _seeds(kernel, abstract, input_shape, n_seeds)).compile()


def _rounding(features, digits, devices):
    """What computes features, so that it rounds them: the unrounded ones are then never there at once."""
    if digits is None:
        return features
    return lambda model, x, seeds: rounded(features(model, x, seeds), digits, packed=not on_host(devices))


@lru_cache(maxsize=256)
def _row_bytes(kernel, abstract, input_shape, n_seeds, digits=None, devices=None) -> int:
    x = _tile(abstract, input_shape, 1)
    features = x
    if isinstance(kernel, TangentKernel):
        seeds = _seeds(kernel, abstract, input_shape, n_seeds)
        features = jax.eval_shape(_rounding(kernel.features, digits, devices), abstract.model, x, seeds)
    return sum(math.prod(f.shape) * f.dtype.itemsize for f in jax.tree.leaves(features))


def _tile(abstract, input_shape, rows):
    return jax.ShapeDtypeStruct((rows, *input_shape), abstract.inputs)


def _seeds(kernel, abstract, input_shape, n_seeds):
    seeds = all_seeds(kernel, abstract, input_shape)
    return jax.ShapeDtypeStruct((n_seeds, seeds.shape[1]), seeds.dtype)


@lru_cache(maxsize=256)
def all_seeds(kernel, abstract, input_shape) -> np.ndarray:
    """The kernel's seeds (R, C); they depend on shapes alone."""
    return np.asarray(kernel.seeds(abstract.model, _tile(abstract, input_shape, 1)))


def n_seeds_of(kernel, model: Model, input_shape: tuple[int, ...], inputs=None) -> int:
    """How many directions of output space a kernel takes gradients of."""
    return _n_seeds(kernel, abstract_of(model, inputs), tuple(input_shape))


def _n_seeds(kernel, abstract, input_shape) -> int:
    return len(all_seeds(kernel, abstract, input_shape)) if isinstance(kernel, TangentKernel) else 1
