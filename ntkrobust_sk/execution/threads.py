"""Tasks in threads, through joblib: compiled programs run side by side, and nothing is compiled twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from joblib import Parallel, delayed, effective_n_jobs
from tqdm.auto import tqdm

from .precision import enable_x64, x64_enabled


def in_threads(work: Callable, tasks: Sequence, n_jobs: int | None) -> Iterator[Any]:
    """Yield ``work(task)`` of each task in their order, computed by so many threads at a time.

    Parameters
    ----------
    work : callable
        What it returns must not depend on other tasks.
    tasks : sequence
    n_jobs : int or None
        As joblib takes it: None is one, or what :func:`joblib.parallel_config` says. Its backend is not used,
        since tasks share memory. JAX knows settings of one thread: of these, double precision is taken over.

    Examples
    --------
    >>> list(in_threads(abs, [-1, -2], 2))
    [1, 2]
    """
    if len(tasks) < 2 or effective_n_jobs(n_jobs) == 1:  # pyright: ignore[reportArgumentType] - joblib takes None
        yield from map(work, tasks)
        return
    x64 = x64_enabled()

    def done(task):
        with enable_x64(x64):
            # else JAX would only take note of what is to be done, and do one after the other
            return jax.block_until_ready(work(task))

    yield from Parallel(n_jobs=n_jobs, require="sharedmem", return_as="generator")(map(delayed(done), tasks)) or ()


def shown(results: Iterable, what: str, total: int, progress: bool, unit: str = "tile") -> Iterable:
    """Return results as they are, with a progress bar on stderr if that is asked for.

    >>> list(shown([1, 2], "numbers", 2, progress=False))
    [1, 2]
    """
    return tqdm(results, what, total, disable=not progress, leave=False, unit=unit)
