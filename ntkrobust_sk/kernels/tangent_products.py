"""Products of a tangent kernel's Gram matrix and many columns, without the matrix.

K(X, Y) V = J(X) (J(Y)ᵀ V). The columns are pulled back to tangents, one of each parameter array for each column
(and for each direction in output space, where the kernel keeps these apart), tile by tile of Y; then the tangents
are pushed forward to the outputs, tile by tile of X. All of it is linear in the number of rows, and what is kept
are the tangents of some columns and the working space of one tile.

Both steps read the network's structure (:mod:`~ntkrobust_sk.tangent.per_example`), so that many columns share the
backward passes, one for each direction: they meet what the layers see, as products of matrices. Of the full kernel
all directions go into the same tangent, so one backward and one forward pass for each column do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from ..execution.devices import default_devices, give_back_memory, on_host
from ..execution.memory import readable
from ..execution.precision import enable_x64, x64_enabled
from ..execution.tiles import one_ahead, pad_rows
from ..networks.inputs import n_params, params_dtype
from ..networks.model import Model, Variables
from ..tangent.gradient_lists import contract_with_tangents, split_biases
from ..tangent.per_example import can_push, contract_features, push
from .abstract_features import AbstractFeatures, abstract_features, output_directions
from .ntk import TangentKernel
from .plan import CACHE_BYTES, PARAMETERS_READ
from .verification import verify
from .workers import count_workers, in_workers

# Rows of a tile, and columns of a block, where memory and the processor's cache allow it.
ROWS, COLUMNS = 512, 64
ROWS_ACCELERATOR = 4096


@dataclass(frozen=True)
class ProductPlan:
    """The sizes that a product is computed with.

    Attributes
    ----------
    rows : int
        Of a tile.
    columns : int
        Of a block, whose tangents are there at once.
    directions : int
        In output space, whose tangents are there at once, of ``n_directions`` in all.
    n_directions : int
    peak_bytes : int
        Tangents and working space.
    devices : tuple of jax.Device
        Each takes a share of the tiles.
    """

    rows: int
    columns: int
    directions: int
    n_directions: int
    peak_bytes: int
    devices: tuple


def padded_columns(n: int) -> int:
    """Return the columns that n are padded to, so that few programs serve all numbers: 1, 2, 3, 4, 6, 8, 12, ...

    >>> [padded_columns(n) for n in (1, 5, 10, 13)]
    [1, 6, 12, 16]
    """
    power = 2 ** max(0, math.ceil(math.log2(n)))
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


def plan_products(
    abstract: AbstractFeatures, memory: int, n_rows: int, n_columns: int, devices: Sequence | None = None
) -> ProductPlan:
    """Make the plan of a product, by compiling its programs for a tile.

    Parameters
    ----------
    abstract : AbstractFeatures
        Kernel and network.
    memory : int
        Bytes, on each device.
    n_rows : int
        Of the longer side.
    n_columns : int
    devices : sequence of jax.Device, default=None
        None is all of JAX's default backend, or its default device if one is set.

    Raises
    ------
    MemoryError
        If one row and one column do not fit.
    """
    devices = tuple(devices or default_devices())
    n_rows = 2 ** math.ceil(math.log2(max(1, n_rows)))
    plan = _plan(replace(abstract, device=devices[0]), memory, n_rows, padded_columns(n_columns))
    return replace(plan, devices=devices)


@lru_cache(maxsize=256)
def _plan(abstract: AbstractFeatures, memory: int, n_rows: int, n_columns: int) -> ProductPlan:
    n_directions, kernel = abstract.n_directions, abstract.kernel
    columns = min(n_columns, COLUMNS)
    # of the full kernel all directions have one tangent
    directions = 1 if kernel.rank == 4 else n_directions
    one = n_params(abstract.model.variables.params) * abstract.itemsize
    # what is kept of a pass, and as much again for a tile's part of it; all directions go backward together, so
    # there are fewer columns first
    while columns * directions * 2 * one > memory // 2 and columns * directions > 1:
        columns, directions = (columns // 2, directions) if columns > 1 else (1, directions // 2)
    while True:
        kept, taken = one * columns * directions, n_directions if kernel.rank == 4 else directions
        rows, working = _fitting_rows((_pull, _push), abstract, taken, columns, n_rows, memory - kept, kept)
        if kept + working <= memory:
            return ProductPlan(rows, columns, taken, n_directions, kept + working, (abstract.device,))
        if columns * directions == 1:
            raise MemoryError(
                f"one column's tangents and the working space of one row take {readable(kept + working)}, more "
                f"than the budget of {readable(memory)}; give memory={kept + working:,} bytes or more"
            )
        columns, directions = (columns // 2, directions) if columns > 1 else (1, directions // 2)


def plan_squares(
    abstract: AbstractFeatures, memory: int, n_rows: int, devices: Sequence | None = None
) -> ProductPlan:
    """Make the plan of a diagonal; arguments and errors as for :func:`plan_products`."""
    devices = tuple(devices or default_devices())
    n_rows, n_directions = 2 ** math.ceil(math.log2(max(1, n_rows))), abstract.n_directions
    abstract = replace(abstract, device=devices[0])
    rows, working = _fitting_rows((_squares,), abstract, n_directions, 1, n_rows, memory, 0)
    if working > memory:
        raise MemoryError(
            f"the tangent features of one row and computing them take {readable(working)}, more than the budget "
            f"of {readable(memory)}; give memory={working:,} bytes or more"
        )
    return ProductPlan(rows, 1, n_directions, n_directions, working, devices)


@lru_cache(maxsize=256)
def _fitting_rows(steps, abstract, directions, columns, n_rows, memory, kept) -> tuple[int, int]:
    """Return rows of a tile whose working space fits in memory and, on a host, in the cache; and that space.

    It takes more than ``memory`` where even one row does.
    """
    host = on_host([abstract.device])
    # what is read and written for each tile however few rows it has
    most = max(CACHE_BYTES, PARAMETERS_READ[0] * (abstract.model_bytes + kept)) if host else memory
    rows, row_bytes = min(n_rows, ROWS if host else ROWS_ACCELERATOR), abstract.row_bytes(directions)
    while rows > 1 and rows * row_bytes > min(most, memory):
        rows //= 2
    while True:
        working = max(_working_bytes(step, abstract, rows, directions, columns) for step in steps)
        if rows == 1 or (working <= memory and working <= 2 * most):
            return rows, working
        fitting = rows * min(memory, most) / working if memory > 0 else 1
        rows = max(1, min(rows // 2, 2 ** int(math.log2(max(fitting, 1)))))


def _working_bytes(step, abstract, rows, directions, columns) -> int:
    """Count what a step takes besides its arguments, and what it returns anew, as the compiler states it."""
    stats = compiled_step(step, abstract, rows, directions, columns).memory_analysis()
    if stats is None:
        return 0
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.temp_size_in_bytes + max(0, new)


@lru_cache(maxsize=256)
def compiled_step(step, abstract: AbstractFeatures, rows: int, directions: int, columns: int):
    """Compile one of the three steps for a tile of ``rows``, some directions and some columns."""
    kernel, model = abstract.kernel, abstract.model
    dtype = params_dtype(model.variables.params)
    tangents = [
        jax.ShapeDtypeStruct((*([] if kernel.rank == 4 else [directions]), columns, *leaf.shape), dtype)
        for leaf in jax.tree.leaves(model.variables.params)
    ]
    shape = (rows, columns) if kernel.rank == 2 else (rows, directions, columns)
    given = {_pull: (tangents, jax.ShapeDtypeStruct(shape, dtype)), _push: (tangents,), _squares: ()}[step]

    def run(model, x, directions, *given):
        with jax.default_matmul_precision("highest"):
            return step(kernel, model, x, directions, *given)

    donated = (3,) if step is _pull else ()
    program = jax.jit(run, in_shardings=SingleDeviceSharding(abstract.device), donate_argnums=donated)
    return program.lower(model, abstract.tile(rows), abstract.directions(directions), *given).compile()


def _pull(kernel, model, x, directions, tangents, weights):
    """Return tangents plus Σ_n weights_nrt ∇⟨d_r, f(x_n)⟩, for each direction r or, of the full kernel, summed."""
    if kernel.rank == 4 and _goes_through(model, x, weights.dtype):
        apply, params = _as_function(model)
        logits, back = jax.vjp(lambda params: apply(params, x), params)
        cotangents = jnp.moveaxis(weights, 2, 0).astype(logits.dtype)
        found = jax.tree.leaves(jax.vmap(lambda cotangent: back(cotangent)[0])(cotangents))
    else:
        features = split_biases(kernel.features(model, x, directions))
        if kernel.rank == 2:
            weights = jnp.broadcast_to(weights, (len(directions), *weights.shape))
        else:
            weights = weights.swapaxes(0, 1)
        found = [leaf.layout.inverse(leaf.weighted(weights)) for leaf in features]
        found = [leaf.sum(0) for leaf in found] if kernel.rank == 4 else found
    return [a + b for a, b in zip(tangents, found, strict=True)]


def _push(kernel, model, x, directions, tangents):
    """Return Σ_r ⟨∇⟨d_r, f(x_n)⟩, W_rt⟩, (n, t), or these terms for themselves, (n, r, t)."""
    shaped = jax.tree.unflatten(jax.tree.structure(model.variables.params), tangents)
    if kernel.rank == 4 and can_push(model, x):
        return jnp.moveaxis(push(model, x, shaped), 0, 2).astype(tangents[0].dtype)
    if kernel.rank != 4 and can_push(model, x):
        return contract_features(model, x, shaped, directions, each=kernel.rank == 3)
    features = split_biases(kernel.features(model, x, directions))
    if kernel.rank == 4:
        tangents = [jnp.broadcast_to(leaf, (len(directions), *leaf.shape)) for leaf in tangents]
    terms = [contract_with_tangents(leaf, some) for leaf, some in zip(features, tangents, strict=True)]
    found = cast(jax.Array, sum(terms))  # (r, n, t)
    return found.sum(0) if kernel.rank == 2 else found.swapaxes(0, 1)


def _squares(kernel, model, x, directions):
    """Return the kernel of each row with itself, (n,), or of each output with itself, (n, C)."""

    def one(row):
        if kernel.rank < 4:
            return kernel.entry(model, row[None], row[None])[0, 0]
        return cast(jax.Array, sum([leaf.inner(leaf)[:, 0, 0] for leaf in kernel.features(model, row[None])]))

    return jax.vmap(one)(x)


def _goes_through(model, x, dtype) -> bool:
    """Tell whether plain passes are possible, and round no column, as a network of fewer digits does."""
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    return can_push(model, x) and bool(jnp.finfo(logits.dtype).eps <= jnp.finfo(dtype).eps)


def _as_function(model: Model):
    state = model.variables.state
    return lambda params, x: Model(model.network, Variables(params, state))(x), model.variables.params


@dataclass(frozen=True, eq=False)
class TangentProducts:
    """What computes products of one kernel's Gram matrices and columns.

    Attributes
    ----------
    kernel : TangentKernel
    model : Model
        In the precision in which the products are taken.
    memory : int
        Bytes, on each device and in each worker.
    """

    kernel: TangentKernel
    model: Model
    memory: int

    def product(self, X: np.ndarray, Y: np.ndarray, V: np.ndarray, n_jobs: int | None = None) -> np.ndarray:
        """Compute K(X, Y) V.

        Parameters
        ----------
        X : array (n, ...)
        Y : array (m, ...)
        V : array (m, t) or (m, C, t)
        n_jobs : int, default=None
            As for :func:`~ntkrobust_sk.gram`.

        Returns
        -------
        array (n, t) or (n, C, t)
        """
        abstract = abstract_features(self.kernel, self.model, X.shape[1:], X.dtype)
        plan = plan_products(abstract, self.memory, max(len(X), len(Y)), V.shape[-1])
        self._verify(X)
        n_workers = max(1, min(count_workers(n_jobs), -(-len(Y) // plan.rows)))
        found = np.zeros((len(X), *V.shape[1:]), V.dtype)
        for at in range(0, V.shape[-1], plan.columns):
            columns = slice(at, min(at + plan.columns, V.shape[-1]))
            for start in range(0, plan.n_directions, plan.directions):
                own = slice(start, min(start + plan.directions, plan.n_directions))
                part = V[..., columns] if V.ndim == 2 else V[:, own, columns]
                tangents = self._everywhere("pull", plan, start, n_workers, Y, part)
                pushed = np.concatenate(self._everywhere("push", plan, start, n_workers, X, tangents))
                if V.ndim == 2:
                    found[:, columns] += pushed[:, : columns.stop - at]
                else:
                    found[:, own, columns] = pushed[:, : own.stop - start, : columns.stop - at]
        return found

    def squares(self, X: np.ndarray, n_jobs: int | None = None) -> np.ndarray:
        """Compute the diagonal of K(X, X), (n,) or (n, C); arguments as for :meth:`product`."""
        plan = plan_squares(abstract_features(self.kernel, self.model, X.shape[1:], X.dtype), self.memory, len(X))
        self._verify(X)
        n_workers = max(1, min(count_workers(n_jobs), -(-len(X) // plan.rows)))
        return np.concatenate(self._everywhere("squares", plan, 0, n_workers, X, None))

    def _verify(self, X) -> None:
        # of a kernel whose gradients are read from the network's structure
        if verify(self.kernel.base, self.model, X[:2]):
            give_back_memory()

    def _everywhere(self, step, plan, start, n_workers, X, given) -> list:
        """Take one step here, or in workers that share X: tangents in all, or outputs piece by piece."""
        if n_workers == 1:
            return _taken(self, step, plan, start, X, given)
        size = -(-len(X) // plan.rows // n_workers) * plan.rows or plan.rows
        pieces = [slice(at, at + size) for at in range(0, len(X), size)]
        x64, sizes = x64_enabled(), replace(plan, devices=())
        tasks = [(self, step, sizes, start, X[s], given[s] if step == "pull" else given, x64) for s in pieces]
        done = dict(in_workers(_taken_by_worker, tasks, n_workers, "pieces of a product"))
        parts = [done[number] for number in range(len(tasks))]
        if step != "pull":
            return [block for part in parts for block in part]
        # in the order of the rows, so that the same call gives the same bits
        return [np.asarray(sum(leaves)) for leaves in zip(*parts, strict=True)]


def _taken_by_worker(products, step, plan, start, X, given, x64) -> list:
    with enable_x64(x64):
        plan = replace(plan, devices=default_devices()[:1])
        return [np.asarray(part) for part in _taken(products, step, plan, start, X, given)]


def _taken(products: TangentProducts, step: str, plan: ProductPlan, start: int, X, given) -> list:
    """Take one step over all tiles of X, on all devices of the plan in turn."""
    sides = [_Side(products, plan, device, start, X) for device in plan.devices]
    tiles = [slice(at, at + plan.rows) for at in range(0, len(X), plan.rows)]
    if step == "pull":
        for at, tile in enumerate(tiles):
            sides[at % len(sides)].pull(X[tile], given[tile])
        return _summed([side.tangents for side in sides], plan.devices[0])
    if step == "push":
        for side in sides:
            side.tangents = jax.device_put(given, side.device)
    blocks = one_ahead(getattr(sides[at % len(sides)], step)(X[tile]) for at, tile in enumerate(tiles))
    return [np.asarray(block)[: len(X[tile])] for block, tile in zip(blocks, tiles, strict=True)]


def _summed(parts: list, device) -> list:
    """Return the sum of the tangents of several devices, on one of them."""
    first, *others = parts
    for tangents in others:
        first = [a + b for a, b in zip(first, jax.device_put(tangents, device), strict=True)]
    return first


class _Side:
    """One device's programs, with its directions, model and tangents."""

    def __init__(self, products: TangentProducts, plan: ProductPlan, device, start: int, X):
        kernel, model = products.kernel, products.model
        abstract = abstract_features(kernel, model, X.shape[1:], X.dtype, device)
        self.plan, self.device, self.sizes = plan, device, (abstract, plan.rows, plan.directions, plan.columns)
        directions = output_directions(abstract)[start : start + plan.directions]
        directions = np.pad(directions, ((0, plan.directions - len(directions)), (0, 0)))
        self.model, self.directions = jax.device_put((model, directions), device)
        lead = (plan.columns,) if kernel.rank == 4 else (plan.directions, plan.columns)
        self.shapes = [(*lead, *jnp.shape(leaf)) for leaf in jax.tree.leaves(model.variables.params)]
        self.tangents: list[Any] = []

    def pull(self, x, weights) -> None:
        """Add to the tangents what some rows pull back; missing rows, directions and columns are zero."""
        dtype = weights.dtype
        self.tangents = self.tangents or [jnp.zeros(shape, dtype, device=self.device) for shape in self.shapes]
        wanted = (self.plan.rows, *([self.plan.directions] if weights.ndim == 3 else []), self.plan.columns)
        weights = np.pad(weights, [(0, size - had) for size, had in zip(wanted, weights.shape, strict=True)])
        self.tangents = self._run(_pull, x, self.tangents, jax.device_put(weights, self.device))

    def push(self, x) -> jax.Array:
        """Return the outputs of some rows, and of as many more as a tile has."""
        return self._run(_push, x, self.tangents)

    def squares(self, x) -> jax.Array:
        """Return the diagonal of some rows, and of as many more as a tile has."""
        return self._run(_squares, x)

    def _run(self, step, x, *given):
        x = jax.device_put(pad_rows(x, self.plan.rows), self.device)
        return compiled_step(step, *self.sizes)(self.model, x, self.directions, *given)
