"""Processes that share the tasks of an experiment, on this machine (loky) or those of a Dask cluster.

Each has the examples and the run's folder; it writes the states, kernels and images that it makes, and hands back
records, which one process writes. Nothing that a worker computes depends on how many there are.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import jax
from joblib import cpu_count
from joblib._parallel_backends import LokyBackend
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from .._validation import job_count
from ..datasets.splits import Splits
from ..execution.devices import blas, planned_for, planned_threads
from ..kernels.workers import LOST_WORKERS, count_workers
from .progress import Progress
from .records import Record
from .run_directory import RunDirectory
from .schedule import OrderedResults, Schedule, program
from .states import States
from .tasks import Measurements, Task

# Seconds between looks at the states that training has written meanwhile.
LOOK = 0.1
# Where NVIDIA's driver has a folder for each card.
CARDS = Path("/proc/driver/nvidia/gpus")
# What a process that starts afresh does not know of its parent's JAX, and what its numbers depend on.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
    "jax_platforms",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
# Seconds of compiling from which on a program is kept for the other workers.
WORTH_KEEPING = 0.2


@dataclass(frozen=True, eq=False)
class Workplace:
    """What a worker has of an experiment.

    Attributes
    ----------
    experiment : KernelEvolution
    path : Path
        The run's folder.
    splits : Splits
    threads : int
        Of the process that it works for: its plans of memory count on them.
    token : str
        Of this workplace alone.
    """

    experiment: Any
    path: Path
    splits: Splits
    threads: int = field(default_factory=planned_threads)
    token: str = field(default_factory=lambda: os.urandom(8).hex())

    def measurements(self) -> Measurements:
        """Make what carries out the tasks, in this process."""
        return Measurements(States(self.experiment, RunDirectory(self.path), self.splits), ())


@dataclass(frozen=True)
class Outcome:
    """What a worker has to say of a task: its record, or its error and where it was raised, and the warnings."""

    record: Record | None = None
    error: Exception | None = None
    trace: str = ""
    said: tuple = ()


# In a worker


class _Here:
    """What the process works on as a worker, one task at a time."""

    lock = threading.Lock()
    place: Workplace | None = None
    measurements: Measurements | None = None


def begin(place: Workplace, threads: int, settings: dict[str, Any]) -> None:
    """Make this process a worker that ends with its parent, and that Ctrl-C does not reach."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for name, value in settings.items():
        jax.config.update(name, value)
    # loky ends workers that have grown, as compiling lets them, and with them what they have compiled
    process_executor._USE_PSUTIL = False
    # a lock among processes would outlive one that is killed
    tqdm.set_lock(threading.RLock())
    blas().limit(limits=threads)
    _Here.place = place


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def carry_out(place: Workplace | None, task: Task, records: dict[str, Record]) -> Outcome:
    """Carry out a task in a worker.

    Parameters
    ----------
    place : Workplace or None
        None is that with which the process began.
    task : Task
    records : dict
        Of the tasks that it needs.
    """
    with _Here.lock:
        place = place or _Here.place
        assert place is not None
        if _Here.place is not place and (_Here.place is None or _Here.place.token != place.token):
            _Here.place, _Here.measurements = place, None
        with warnings.catch_warnings(record=True) as said, planned_for(place.threads):
            # the process that asked decides which ones are shown
            warnings.simplefilter("always")
            outcome = Outcome()
            try:
                _Here.measurements = _Here.measurements or place.measurements()
                _Here.measurements.records = dict(records)
                outcome = Outcome(_Here.measurements.take(task))
            except Exception as error:  # whatever it is goes to the process that asked
                outcome = Outcome(error=_sendable(error), trace=traceback.format_exc())
    return replace(outcome, said=tuple((str(w.message), w.category, w.filename, w.lineno) for w in said))


def _sendable(error: Exception) -> Exception:
    """Return an error that reaches the other process: itself, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error of a stranger's class raises when it is copied
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# In the process that asks


class Processes:
    """Worker processes of this machine, each in a pool of its own: one that is killed takes no other with it.

    Parameters
    ----------
    place : Workplace
    n_workers : int
    threads : int or None
        Of each; None shares the cores out.
    """

    lost = (BrokenExecutor, CancelledError)

    def __init__(self, place: Workplace, n_workers: int, threads: int | None = None):
        self.place, self.n_workers = place, n_workers
        self.threads = threads or max(1, cpu_count() // n_workers)
        self._settings = {name: getattr(jax.config, name) for name in SETTINGS if hasattr(jax.config, name)}
        self._programs = tempfile.TemporaryDirectory(prefix="ntkrobust-programs-")
        if self._settings["jax_compilation_cache_dir"] is None:
            # what one worker has compiled, the others read
            self._settings["jax_compilation_cache_dir"] = self._programs.name
            self._settings["jax_persistent_cache_min_compile_time_secs"] = WORTH_KEEPING
        self._pools: list[ProcessPoolExecutor] = [self._started(number) for number in range(n_workers)]

    def _started(self, number) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            initializer=begin,
            initargs=(self.place, self.threads, self._settings),
            env=environment(number, self.n_workers, self.threads),
        )

    def submit(self, number: int, task: Task, records: dict[str, Record]) -> Future:
        """Let a worker carry out a task."""
        return self._pools[number].submit(carry_out, None, task, records)

    def renew(self, number: int) -> None:
        """Start a worker in the place of one that was lost."""
        self._pools[number].shutdown(wait=False)
        self._pools[number] = self._started(number)

    def close(self, at_once: bool) -> None:
        """End all of them, ``at_once`` whatever they are doing."""
        for pool in self._pools:
            pool.shutdown(wait=True, kill_workers=at_once)
        self._programs.cleanup()


class DaskWorkers:
    """The processes of a Dask cluster, which see the run's folder; each does one task at a time.

    Parameters
    ----------
    place : Workplace
    client : distributed.Client
    n_workers : int
        Tasks at a time.
    """

    def __init__(self, place: Workplace, client: Any, n_workers: int):
        from distributed.scheduler import KilledWorker

        self.lost = (BrokenExecutor, CancelledError, KilledWorker)
        self.n_workers = min(n_workers, len(client.nthreads()))
        self._place = client.scatter(place, broadcast=True, hash=False)
        self._pool = client.get_executor(pure=False)

    def submit(self, number: int, task: Task, records: dict[str, Record]) -> Future:
        """Let a worker carry out a task, whichever is free."""
        return self._pool.submit(carry_out, self._place, task, records)

    def renew(self, number: int) -> None:
        """Leave it to the cluster to start another worker."""

    def close(self, at_once: bool) -> None:
        """Take back what has not begun."""
        self._pool.shutdown(wait=not at_once)


def environment(number: int, n_workers: int, threads: int) -> dict[str, str]:
    """Return what is added to the environment of a worker, of so many in all.

    A worker with one thread computes in no pool of threads. Where there are several GPUs it sees one of them.
    """
    added, cards = {}, visible_cards()
    if threads == 1:
        # the pool is there all the same: with one of a single thread XLA adds large sums up in another way
        flags = os.environ.get("XLA_FLAGS", "")
        added["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if cards:
        added["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
        if n_workers > len(cards):
            # none takes the whole card for itself
            added["XLA_PYTHON_CLIENT_PREALLOCATE"] = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return added


def visible_cards() -> list[str]:
    """Name NVIDIA's GPUs that this process may use; JAX, if it were asked, would take their memory."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [card.strip() for card in named.split(",") if card.strip()]
    return [str(number) for number in range(len(list(CARDS.iterdir())) if CARDS.is_dir() else 0)]


@contextmanager
def started(place: Workplace, n_workers: int) -> Iterator[Processes | DaskWorkers]:
    """Start workers as joblib is set, on this machine or in a Dask cluster, and end them with the block."""
    backend, _ = get_active_backend()
    if isinstance(backend, LokyBackend):
        workers = Processes(place, n_workers, backend.inner_max_num_threads)
    else:
        workers = DaskWorkers(place, cast(Any, backend).client, n_workers)
    try:
        yield workers
    except BaseException:
        workers.close(at_once=True)
        raise
    workers.close(at_once=False)


def count_processes(n_jobs: int | None) -> int:
    """Return the number of worker processes that ``n_jobs`` stands for; one is this process.

    Raises
    ------
    ValueError
        For what joblib does not take, and where it is set to threads, or to anything else than loky and Dask.
    """
    n_workers = count_workers(job_count(n_jobs))
    backend = type(get_active_backend()[0])
    if n_workers > 1 and not (issubclass(backend, LokyBackend) or backend.__name__ == "DaskDistributedBackend"):
        raise ValueError(
            "workers of an experiment are processes that start afresh: joblib's backend must be 'loky', its "
            f"default, or 'dask', got {backend.__name__}"
        )
    return n_workers


def share(schedule: Schedule, results: OrderedResults, workers: Processes | DaskWorkers, shown: Progress) -> None:
    """Let workers carry out all tasks of a schedule, and write their results.

    Where a task fails, those that come before it are finished, so that the results are those of one process; then
    its error is raised.

    Raises
    ------
    RuntimeError
        If one task has lost its worker more than ``LOST_WORKERS`` times.
    """
    idle = list(range(workers.n_workers))
    known: list[set] = [set() for _ in idle]
    running: dict[Future, tuple[int, Task]] = {}
    losses, failures, registry, said = Counter(), [], {}, []
    while True:
        for number in list(idle):
            others = set().union(*(kinds for at, kinds in enumerate(known) if at != number))
            task = schedule.next(known[number], others, [task.name for _, task in running.values()])
            if task is None:
                break
            needed = {name: results.records[name] for name in schedule.needs.get(task.name, ())}
            running[_given(workers, number, task, needed)] = number, task
            known[number].add(program(task))
            idle.remove(number)
        if not running:
            break
        now = [task for _, task in running.values()]
        if now != said:
            shown.works_on(said := now)
        # with nothing to do for somebody, a state that is being trained may be something
        finished, _ = wait(running, timeout=LOOK if idle else None, return_when=FIRST_COMPLETED)
        for future in finished:
            number, task = running.pop(future)
            idle.append(number)
            try:
                outcome = future.result()
            except workers.lost as error:
                _count_loss(losses, task, error)
                workers.renew(number)
                known[number].clear()
                continue
            for text, category, file, line in outcome.said:
                warnings.warn_explicit(text, category, file, line, registry=registry)
            if outcome.error is not None:
                failures.append((schedule.failed(task), outcome))
                continue
            if task.measure is not Measurements.training:
                results.add(outcome.record)
                shown.done(task)
            schedule.done(task)
    if failures:
        _, first = min(failures, key=lambda failure: failure[0])
        raise first.error from RuntimeError(f"in a worker:\n{first.trace}")
    if schedule.left:
        raise RuntimeError(f"the tasks {', '.join(schedule.left)} wait for each other")


def _given(workers, number, task, needed) -> Future:
    """Give a task to a worker, or to its successor if it was killed while it had nothing to do."""
    try:
        return workers.submit(number, task, needed)
    except workers.lost:
        workers.renew(number)
        return workers.submit(number, task, needed)


def _count_loss(losses, task, error):
    """Warn of a task that has lost its worker, or raise where that was too often."""
    losses[task.name] += 1
    advice = "If workers run out of memory, start fewer, or give each of them less: memory=..."
    if losses[task.name] > LOST_WORKERS:
        raise RuntimeError(
            f"the task {task.name} has lost its worker {losses[task.name]} times ({_why(error)}). {advice}"
        ) from error
    warnings.warn(
        f"a worker was lost ({_why(error)}); its task {task.name} is done again. {advice}",
        RuntimeWarning,
        stacklevel=4,
    )


def _why(error) -> str:
    """Say in short how a worker ended: with the status that loky tells at length, such as SIGKILL(-9)."""
    status = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
    return status[1] if status else str(error).partition("\n")[0] or type(error).__name__
