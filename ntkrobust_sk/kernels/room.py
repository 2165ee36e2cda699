"""What a Gram matrix and its solution take of a device's memory, said before anything runs."""

import math

import jax
import numpy as np

from .._arrays import cupy_or_none, gpu_bytes_free
from ..execution.devices import free_bytes, on_host, pool_bytes
from ..execution.memory import host_bytes_free, readable
from .tiles import TileJob

# Less than this is not asked for: a machine that has not so much left does not get here.
NOT_ASKED = 64 * 2**20


def features_bytes(job: TileJob) -> int:
    """Count the bytes of features and working space on each device; no panel is larger than the matrix."""
    plan, abstract = job.plan, job.abstract
    n_tiles = -(-max(job.shape) // plan.rows)
    block = abstract.block_bytes(plan.rows, plan.directions, _itemsize(job))
    spare = max(0, plan.panel - n_tiles)
    return max(0, plan.peak_bytes - spare * (plan.rows * plan.row_bytes + block))


def result_bytes(job: TileJob) -> int:
    """Count the bytes of the matrix; of a function as kernel those that its stated rank needs, one for a pair."""
    entries = job.kernel.block_entries(job.abstract.n_directions)
    entries = entries if job.kernel.is_tangent else int(job.kernel.rank in (None, 2))
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
    system = 8 * n_arrays * _system_size(job) ** 2
    # what JAX's pool grows to it keeps
    left = gpu_bytes_free() - max(0, features + matrix - pool_bytes(device))
    if system > left:
        raise MemoryError(
            f"solving takes {readable(system)} on the GPU in double precision. {takes[0].upper()}{takes[1:]}, "
            f"which JAX keeps, and {readable(max(left, 0))} are left: give less memory=, or compute the matrix "
            "with gram and solve it in another process, or on the host (solve of numpy.asarray(K))"
        )


def require_host_room(job: TileJob, n_arrays: int = 0) -> None:
    """Raise MemoryError unless this machine has room for a job's matrix, and for its solution on the host.

    Parameters
    ----------
    job : TileJob
    n_arrays : int, default=0
        Arrays of the size of one system, in double precision, that the solver takes.
    """
    require_host_memory(result_bytes(job), 8 * n_arrays * _system_size(job) ** 2, _said(job))


def require_host_memory(matrix: int, solving: int, of: str) -> None:
    """Raise MemoryError unless this machine has room for a matrix, and for what solving takes besides it.

    Parameters
    ----------
    matrix, solving : int
        Bytes.
    of : str
        Whose they are, for the error: numbers of rows and columns.

    Raises
    ------
    MemoryError
        Before anything is computed, with what is needed, what there is, and the ways out.
    """
    if matrix + solving < NOT_ASKED:
        return
    free = host_bytes_free()
    if free is None or matrix + solving <= free:
        return
    parts = [f"the matrix {readable(matrix)}"] * bool(matrix) + [f"solving {readable(solving)}"] * bool(solving)
    ways = "fewer rows at once, dtype='float32', or gram_operator, which never forms it, or reads it from a store="
    if solving:
        ways = "fewer rows, or solver='cg' or 'nystrom', which take the kernel as an operator above memory="
    raise MemoryError(
        f"for {of}, {' and '.join(parts)} are {readable(matrix + solving)} in all, but this machine has only "
        f"{readable(free)} left. Ways out: {ways}"
    )


def _system_size(job: TileJob) -> int:
    """Return the equations of one system of a square matrix."""
    return job.shape[0] * (job.abstract.n_directions if job.kernel.rank == 4 else 1)


def _said(job: TileJob) -> str:
    n, m = job.shape
    return f"{n:,} rows" if job.Y is None else f"{n:,} rows and {m:,} columns"


def _itemsize(job: TileJob) -> int:
    # half precision adds up in single precision, and so is the result
    return max(4, job.abstract.itemsize) if job.products_dtype is None else np.dtype(job.products_dtype).itemsize
