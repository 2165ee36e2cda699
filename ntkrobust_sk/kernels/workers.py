"""Who computes the tiles of a Gram matrix: one device, all devices of this process, or worker processes.

Nobody needs what another one computes: each takes a piece of the matrix, computes the features of its rows and
columns, and hands on the tiles. Which device has computed a tile does not change its bits.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from queue import Empty, Queue
from threading import Event
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from joblib import Parallel, delayed, effective_n_jobs

from ..execution.devices import blas, on_host
from ..execution.precision import enable_x64, x64_enabled
from .plan import fixed_plan
from .tiles import TileJob, compute_tiles, own_precision

# How often tiles of workers that died are computed again.
LOST_WORKERS = 3
# Pieces of the matrix for each worker or device: more of them keep all busy to the end, and repeat more features.
PIECES = 4

Tile: TypeAlias = tuple[int, int]


def by_panel(tiles: list[Tile], panel: int, width: int | None = None) -> list[list[Tile]]:
    """Return the tiles of each panel of rows, and of each ``width`` columns if that is given.

    >>> by_panel([(0, 0), (0, 1), (0, 2), (1, 1)], panel=2, width=2)
    [[(0, 0), (0, 1), (1, 1)], [(0, 2)]]
    """
    panels = {}
    for i, j in tiles:
        panels.setdefault((i // panel, None if width is None else j // width), []).append((i, j))
    return list(panels.values())


def pieces_for(tiles: list[Tile], panel: int, n_workers: int) -> list[list[Tile]]:
    """Return pieces of about the same size, several for each worker, about square but no higher than a panel.

    Rows of pieces lie within columns of pieces, so that one on the diagonal begins with a tile on the diagonal.

    >>> [len(piece) for piece in pieces_for([(i, j) for i in range(8) for j in range(i, 8)], 2, 1)]
    [7, 8, 3, 8, 7, 3]
    """
    size = max(1, len(tiles) // (PIECES * n_workers))
    side = max(1, min(panel, math.isqrt(size)))
    return by_panel(sorted(tiles), side, side * max(1, size // side**2))


def count_workers(n_jobs: int | None) -> int:
    """Return the number of worker processes that ``n_jobs`` stands for; one is this process.

    >>> count_workers(None)
    1
    """
    return effective_n_jobs(n_jobs)  # pyright: ignore[reportArgumentType] - joblib takes None


def finished_tiles(
    job: TileJob, tiles: list[Tile], n_jobs: int | None, width: int | None = None
) -> Iterator[tuple[Tile, list]]:
    """Yield tiles with their blocks, computed here or by workers, in whatever order they finish.

    Parameters
    ----------
    job : TileJob
    tiles : list of (i, j)
    n_jobs : int or None
        As for :func:`~ntkrobust_sk.gram`.
    width : int, default=None
        Columns of tiles after which this process, on one device, finishes those of a panel.

    Raises
    ------
    BrokenExecutor, CancelledError
        If workers are lost more than ``LOST_WORKERS`` times.
    """
    n_workers = max(1, min(count_workers(n_jobs), len(tiles)))
    if n_workers == 1:
        yield from _computed_here(job, tiles, width)
        return
    plan = job.plan
    pieces = [_piece(job, piece) for piece in pieces_for(tiles, plan.panel, n_workers)]
    tasks = [(*piece, (plan.rows, plan.panel, plan.directions)) for piece in pieces]
    for _, done in in_workers(_work, tasks, n_workers, "pieces of the matrix"):
        yield from done


def in_workers(
    work: Callable, tasks: Sequence[tuple], n_workers: int, what: str = "tasks"
) -> Iterator[tuple[int, Any]]:
    """Yield the number of each task and what ``work(*task)`` returns, in whatever order workers finish.

    Parameters
    ----------
    work : callable
        A function of a module.
    tasks : sequence of tuple
    n_workers : int
        Processes, through joblib.
    what : str, default="tasks"
        What the tasks are, for the warning that some are done again.

    Raises
    ------
    BrokenExecutor, CancelledError
        If workers are lost more than ``LOST_WORKERS`` times.
    """
    left = dict(enumerate(tasks))
    for attempts_left in reversed(range(LOST_WORKERS + 1)):
        sent = (delayed(_numbered)(number, work, task) for number, task in list(left.items()))
        try:
            for found in Parallel(n_jobs=n_workers, return_as="generator_unordered")(sent) or ():
                number, done = cast(tuple[int, Any], found)
                del left[number]
                yield number, done
            return
        except (CancelledError, BrokenExecutor) as error:
            if not attempts_left:
                raise
            warnings.warn(
                f"a worker was lost ({error}); the {len(left)} {what} that are missing are computed again. If "
                "workers run out of memory, give each of them less: memory=...",
                RuntimeWarning,
                stacklevel=3,
            )


def _numbered(number: int, work: Callable, task: tuple) -> tuple[int, Any]:
    return number, work(*task)


def _computed_here(job: TileJob, tiles: list[Tile], width: int | None = None) -> Iterator[tuple[Tile, list]]:
    """Yield the tiles that this process computes, on all devices of the plan unless features are to be kept."""
    if len(job.plan.devices) > 1 and len(tiles) > 1 and job.kept is None:
        yield from _computed_by_devices(job, tiles)
        return
    for panel in by_panel(tiles, job.plan.panel, width):
        yield from compute_tiles(job, panel)


def _computed_by_devices(job: TileJob, tiles: list[Tile]) -> Iterator[tuple[Tile, list]]:
    """Yield tiles with their blocks, on the first device or on the host; a thread for each device takes pieces."""
    devices, x64 = job.plan.devices, x64_enabled()
    pieces = deque(pieces_for(tiles, job.plan.panel, len(devices)))
    finished, stopped = Queue(maxsize=2 * len(devices)), Event()
    jobs = [replace(job, plan=replace(job.plan, devices=(device,))) for device in devices]
    # the first one's network is verified for all, and what compiles it may fill the cache of compiled programs
    jobs[0].prepare()

    def taken():
        with suppress(IndexError):
            return pieces.popleft()

    def work(job):
        try:
            # what is set for a thread, others do not know
            with enable_x64(x64):
                for piece in iter(taken, None):
                    for tile, blocks in compute_tiles(job, piece):
                        finished.put((tile, [_brought(block, devices[0]) for block in blocks]))
                        if stopped.is_set():
                            return
        except BaseException as error:
            finished.put(error)

    # NumPy's own threads would be those of all devices; and limits of several threads do not go together
    one_thread = blas().limit(limits=1) if on_host(devices) else nullcontext()
    with one_thread, ThreadPoolExecutor(len(devices)) as threads:
        running = [threads.submit(work, job) for job in jobs]
        try:
            for _ in tiles:
                found = finished.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stopped.set()
            while not all(future.done() for future in running):
                with suppress(Empty):
                    finished.get(timeout=0.05)


def _brought(block, device):
    """Return a block on a device, or in NumPy on the host."""
    if isinstance(block, np.ndarray) or on_host([device]):
        return np.asarray(block)
    with own_precision(block):
        return jax.device_put(block, device)


def _piece(job: TileJob, tiles: list[Tile]) -> tuple[TileJob, dict]:
    """Return a job of the inputs that some tiles need, and for each tile of it which one it is."""
    rows = job.plan.rows
    first_i, first_j = (min(tile[axis] for tile in tiles) for axis in (0, 1))
    last_i, last_j = (max(tile[axis] for tile in tiles) for axis in (0, 1))
    symmetric = job.Y is None and first_i == first_j
    X = job.X[first_i * rows : (max(last_i, last_j) if symmetric else last_i) * rows + rows]
    Y = None if symmetric else (job.X if job.Y is None else job.Y)[first_j * rows : (last_j + 1) * rows]
    # a plan's devices are those of this process
    piece = replace(job, X=X, Y=Y, plan=None, kept=None)
    return piece, {(i - first_i, j - first_j): (i, j) for i, j in tiles}


def _work(job: TileJob, tiles: dict, sizes: tuple[int, int, int]) -> list:
    """Compute one piece of the matrix in a worker, and return its tiles by their places in the whole."""
    rows, panel, directions = sizes
    plan = fixed_plan(job.kernel, job.model, job.X.shape[1:], rows, panel, directions, job.X.dtype)
    found = _computed_here(replace(job, plan=plan), list(tiles))
    return [(tiles[at], [np.asarray(block) for block in blocks]) for at, blocks in found]
