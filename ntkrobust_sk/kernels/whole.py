"""A small Gram matrix as a whole, by one program from inputs to kernel.

Where rows and their features are few, most of the time goes to what is done for each call and tile: programs in
turn, features handed to NumPy, threads that start. One program computes the features of rows and columns side by
side and multiplies them where they are. Features that are many are multiplied several times faster by NumPy.
"""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import is_finite
from ..execution.devices import default_devices, give_back_memory, on_host
from ..execution.precision import x64_enabled
from ..execution.tiles import pad_rows
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..tangent.gradients import DenseGradients, Gradients, OuterProducts
from .abstract_features import AbstractFeatures, output_directions
from .ntk import TangentKernel
from .plan import FEW_BYTES
from .tiles import TileJob, transpose
from .verification import verify

# The most rows and columns of a matrix that is computed as a whole, by the rank of its blocks: directions that are
# kept apart are products that NumPy is faster at, and blocks of all pairs of them are large.
ROWS = {2: 256, 3: 64, 4: 0}


def is_small(job: TileJob) -> bool:
    """Tell whether a job's rows and their features are few, on the host, and multiplied in their own precision."""
    plan, same = job.plan, job.Y is None or job.Y.dtype == job.X.dtype
    if not (job.kernel.is_tangent and same and on_host(plan.devices)) or job.by_layer:
        return False
    if (
        max(job.shape) > ROWS.get(job.kernel.rank or 0, 0)
        or plan.passes > 1
        or plan.chunk < plan.rows
        or plan.row_bytes > FEW_BYTES
    ):
        return False
    if _bytes(job.abstract, plan.rows, plan.directions, _rows(job)) > plan.memory:
        return False
    return job.products_dtype is None or job.products_dtype == params_dtype(job.model.variables.params)


def small_matrix(job: TileJob) -> np.ndarray:
    """Compute the matrix of all rows and columns, each side padded to a power of two meanwhile.

    Parameters
    ----------
    job : TileJob
        One of which :func:`is_small` holds.

    Raises
    ------
    ArithmeticError
        If the network's structure was read wrongly: see :mod:`.verification`.
    """
    if verify(cast(TangentKernel, job.kernel).base, job.model, np.asarray(job.X[:2])):
        give_back_memory()
    sides = [np.asarray(x) for x in (job.X, job.Y) if x is not None]
    return _run(matrix_program(job), _on_device(job.model, job.abstract.device), sides, _rows(job))


def matrix_program(job: TileJob) -> jax.stages.Compiled:
    """Return the program from model and padded inputs to the matrix of a job of which :func:`is_small` holds."""
    return _compiled(job.abstract, _rows(job), 1 if job.Y is None else 2)


def _run(program, model: Model, sides: list[np.ndarray], rows: int) -> np.ndarray:
    block = np.asarray(program(model, *[pad_rows(x, rows) for x in sides]))
    # what JAX has made may not be written to
    return np.array(block[: len(sides[0]), : len(sides[-1])])


@dataclass(frozen=True, eq=False)
class _Bound:
    """The program of an earlier call, the arrays that its model had, and the dtype of its inputs."""

    program: jax.stages.Compiled
    leaves: list
    dtype: np.dtype
    rows: int


# By model, since arrays of JAX do not change: what was checked of them holds.
_BOUND: WeakKeyDictionary[Model, dict[tuple, _Bound]] = WeakKeyDictionary()
MOST_BOUND = 64


def call_key(kernel: Any, X: Any, Y: Any, memory: Any, dtype: Any) -> tuple | None:
    """Return what tells calls of one model apart, but for the inputs' numbers; None for arguments of other types.

    Integers are not among them: whether they fit JAX's own depends on their numbers.
    """
    sides = [X] if Y is None else [X, Y]
    if any(type(x) is not np.ndarray or x.dtype.kind not in "fc" for x in sides):
        return None
    expected = (kernel, str | TangentKernel), (memory, str | int), (dtype, str | type | None)
    if not all(isinstance(value, kinds) for value, kinds in expected):
        return None
    return kernel, memory, dtype, *[(x.shape, x.dtype) for x in sides], default_devices(), x64_enabled()


def bind(job: TileJob, key: tuple) -> None:
    """Keep the program of a job that is done, if all of its model's arrays are JAX's and where it runs."""
    if _on_device(job.model, job.abstract.device) is job.model:
        known = _BOUND.setdefault(job.model, {})
        if len(known) == MOST_BOUND:
            known.clear()
        known[key] = _Bound(matrix_program(job), jax.tree.leaves(job.model), job.X.dtype, _rows(job))


def matrix_again(key: tuple, model: Any, X: Any, Y: Any) -> np.ndarray | None:
    """Compute the matrix of a call that differs from an earlier one in the inputs' numbers alone.

    Returns
    -------
    array (n, m, ...), or None
        None where there was no such call, the model has other arrays, or a number is not finite.
    """
    bound = _BOUND[model].get(key) if type(model) is Model and model in _BOUND else None
    if bound is None:
        return None
    leaves = jax.tree.leaves(model)
    if len(leaves) != len(bound.leaves) or not all(map(operator.is_, leaves, bound.leaves)):
        return None
    with np.errstate(over="ignore"):
        sides = [x.astype(bound.dtype, copy=False) for x in (X, Y) if x is not None]
    return _run(bound.program, model, sides, bound.rows) if all(map(is_finite, sides)) else None


def _rows(job: TileJob) -> int:
    return 2 ** math.ceil(math.log2(max(job.shape)))


@lru_cache(maxsize=256)
def _bytes(abstract: AbstractFeatures, tile: int, n_directions: int, rows: int) -> float:
    """Count what both sides' features, what computes them, and the block take, from what a tile's takes."""
    working = abstract.working_bytes(tile, n_directions) / tile
    block = 3 * abstract.block_bytes(rows, n_directions, max(4, abstract.itemsize))
    return 2 * rows * (abstract.row_bytes(n_directions) + working) + block


def _on_device(model: Model, device) -> Model:
    """Return the model on a device; itself where it is there."""
    there = all(isinstance(leaf, jax.Array) and leaf.devices() == {device} for leaf in jax.tree.leaves(model))
    return model if there else jax.device_put(model, device)


@lru_cache(maxsize=256)
def _compiled(abstract: AbstractFeatures, rows: int, n_sides: int) -> jax.stages.Compiled:
    """Compile the kernel of inputs (rows, ...) with themselves, or with others."""
    kernel, features, directions = abstract.kernel, abstract.function(), output_directions(abstract)
    # a kernel of somebody else's may combine features in another way
    takes_sums = all(
        getattr(type(kernel), name) is getattr(TangentKernel, name) for name in ("blocks", "_contract_layer")
    )

    def block(model, *inputs):
        sides = [features(model, x, directions) for x in inputs]
        with jax.default_matmul_precision("highest"):
            if kernel.rank == 2 and takes_sums:
                first, *others = [_summed(a, b) for a, b in zip(sides[0], sides[-1], strict=True)]
            else:
                first, *others = kernel.blocks(model, sides[0], sides[-1])
        found = sum(others, start=first)
        return found if n_sides == 2 else (found + transpose(found)) * 0.5

    compute = jax.jit(block, in_shardings=jax.sharding.SingleDeviceSharding(abstract.device))
    return compute.lower(abstract.model, *[abstract.tile(rows)] * n_sides).compile()


def _summed(a: Gradients, b: Gradients) -> jax.Array:
    """Return Σ_r ⟨G_r(x), G_r(x')⟩, (n, m), for all directions by one product, which XLA is faster at."""
    if isinstance(a, DenseGradients):
        return _products(a.values, cast(DenseGradients, b).values)
    other = cast(OuterProducts, b)
    if a.inputs.shape[1:3] != (1, 1):
        return a.inner_sum(other)
    return a.products(other)[0, :, 0, :, 0] * _products(a.cotangents, other.cotangents)


def _products(left: jax.Array, right: jax.Array) -> jax.Array:
    """Return Σ_rk left_rn...k right_rm...k, (n, m)."""
    # back to where examples stood before anything else: XLA then leaves out both transpositions
    rows, columns = (side.swapaxes(0, 1).reshape(side.shape[1], -1) for side in (left, right))
    narrow = left.dtype.itemsize == 2
    return jnp.matmul(rows, columns.T, preferred_element_type=jnp.float32 if narrow else None)
