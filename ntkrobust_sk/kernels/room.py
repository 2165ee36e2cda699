"""What a Gram matrix and its solution take of a device's memory, said before anything runs."""

import math

import jax
import numpy as np

from .._arrays import cupy_or_none, gpu_bytes_free
from ..execution.devices import free_bytes, on_host, pool_bytes
from ..execution.memory import readable
from .abstract_features import abstract_features
from .tiles import TileJob


def features_bytes(job: TileJob) -> int:
    """Count the bytes of features and working space on each device; no panel is larger than the matrix."""
    plan, abstract = job.plan, _abstract(job)
    n_tiles = -(-max(job.shape) // plan.rows)
    block = abstract.block_bytes(plan.rows, plan.directions, _itemsize(job))
    spare = max(0, plan.panel - n_tiles)
    return max(0, plan.peak_bytes - spare * (plan.rows * plan.row_bytes + block))


def result_bytes(job: TileJob) -> int:
    """Count the bytes of the matrix; zero for a function as kernel, whose blocks nobody knows before."""
    entries = job.kernel.block_entries(_abstract(job).n_directions)
    layers = len(jax.tree.leaves(job.model.variables.params)) if job.by_layer else 1
    return math.prod(job.shape) * entries * layers * _itemsize(job)


def require_device_memory(job: TileJob, *, result: bool = True, n_arrays: int = 0) -> None:
    """Raise MemoryError unless the devices have room; where they do not say what they have, nothing is known.

    Parameters
    ----------
    job : TileJob
    result : bool, default=True
        Whether the matrix stays on the first device.
    n_arrays : int, default=0
        Arrays of the size of one system, in double precision, that solving it in CuPy takes there.

    Raises
    ------
    MemoryError
        With what is needed, what there is, and what to give.
    """
    device = job.plan.devices[0]
    if (free := free_bytes(device)) is None:
        return
    features, matrix = features_bytes(job), result_bytes(job) if result else 0
    takes = f"features and working space take {readable(features)}"
    takes += f" and the matrix {readable(matrix)}" if result else ""
    if features + matrix > free:
        left = free - matrix
        way = f"give memory={left:,} bytes or less" if left > 0 else "put the matrix on disk (store=)"
        raise MemoryError(
            f"{takes}, but JAX has only {readable(free)} of {device} left: {way}, or let JAX have more of the "
            "card (XLA_PYTHON_CLIENT_MEM_FRACTION, 0.75 unless set)"
        )
    if not n_arrays or on_host([device]) or cupy_or_none() is None:
        return
    entries = job.kernel.block_entries(_abstract(job).n_directions) if job.kernel.rank == 4 else 1
    system = 8 * n_arrays * job.shape[0] ** 2 * entries
    # what JAX's pool grows to it keeps
    left = gpu_bytes_free() - max(0, features + matrix - pool_bytes(device))
    if system > left:
        raise MemoryError(
            f"solving takes {readable(system)} on the GPU in double precision. {takes[0].upper()}{takes[1:]}, "
            f"which JAX keeps, and {readable(max(left, 0))} are left: give less memory=, or compute the matrix "
            "with gram and solve it in another process, or on the host (solve of numpy.asarray(K))"
        )


def _abstract(job: TileJob):
    return abstract_features(job.kernel, job.model, job.X.shape[1:], job.X.dtype, job.plan.devices[0], job.digits)


def _itemsize(job: TileJob) -> int:
    # half precision adds up in single precision, and so is the result
    return max(4, _abstract(job).itemsize) if job.products_dtype is None else np.dtype(job.products_dtype).itemsize
