"""What a run is doing, in words, and how long the rest will take: tasks of one kind take about as long."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from tqdm.auto import tqdm

from .tasks import Task

# What a measurement does, in words; that of a state trains the network up to it.
WORDS = {
    "training": "training",
    "checkpoint": "training and kernel",
    "closed_form": "regression on the kernel",
    "stage_two": "stage 2",
    "transfer": "transfer of attacks",
    "features": "eigenfeatures",
    "images": "images",
}


def in_words(task: Task, n_seeds: int) -> str:
    """Say what a task does.

    >>> from ntkrobust_sk import KernelEvolution
    >>> from ntkrobust_sk.evolution.tasks import tasks_of
    >>> tasks = tasks_of(KernelEvolution(epochs=1, fractions=(), seeds=3))
    >>> in_words(tasks[3], 3), in_words(tasks[-1], 3)
    ('seed 1 of 3 · adversarial · epoch 1 · training and kernel', 'seed 3 of 3 · flip · epoch 1 · images')
    """
    on = task.on
    parts = [f"seed {on['seed'] + 1} of {n_seeds}"] if n_seeds > 1 else []
    parts += [str(on["regime"])] if "regime" in on else []
    parts += [f"epoch {on['epoch']:g}"] if "epoch" in on else []
    how = [on[name] for name in ("dynamics", "training") if name in on]
    return " · ".join([*parts, ", ".join([WORDS[task.measure.__name__], *how])])


def kind_of(task: Task) -> tuple[str, ...]:
    """Return what a task's cost depends on: its measurement, and how it trains."""
    on = task.on
    regime = ("benign" if on["regime"] == "benign" else "adversarial",) if "regime" in on else ()
    return task.measure.__name__, *regime, *(on[name] for name in ("dynamics", "training") if name in on)


class Progress(AbstractContextManager):
    """A line of progress over the tasks of a run.

    Parameters
    ----------
    left : iterable of Task
        What is to be done.
    n_tasks : int
        Of the whole run.
    n_seeds, n_workers : int
    shown : bool
    clock : callable, default=time.monotonic
        Returns seconds.
    """

    def __init__(
        self,
        left: Iterable[Task],
        n_tasks: int,
        n_seeds: int = 1,
        n_workers: int = 1,
        *,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._left = {task.name: kind_of(task) for task in left}
        self._n_seeds, self._n_workers, self._clock = n_seeds, n_workers, clock
        self._began: dict[str, float] = {}
        self._took: dict[tuple[str, ...], list[float]] = defaultdict(list)
        form = "{n_fmt} of {total_fmt} |{bar:12}| {desc}"
        done = n_tasks - len(self._left)
        self._bar = tqdm(total=n_tasks, initial=done, bar_format=form, disable=not shown)

    def __exit__(self, *_: Any) -> None:
        """End the line."""
        self._bar.close()

    def works_on(self, tasks: Iterable[Task]) -> None:
        """Show the tasks that are worked on now."""
        tasks, now = list(tasks), self._clock()
        self._began = {task.name: self._began.get(task.name, now) for task in tasks}
        words = "; ".join(in_words(task, self._n_seeds) for task in tasks)
        self._bar.set_description_str(" · ".join(part for part in (words, self.time_left()) if part))

    def done(self, task: Task) -> None:
        """Count a finished task, and remember how long it took."""
        self._took[kind_of(task)].append(self._clock() - self._began.pop(task.name, self._clock()))
        self._left.pop(task.name, None)
        self._bar.update()

    def time_left(self) -> str:
        """Estimate the time that the rest takes, by what finished tasks of each kind took; "" while none is known.

        The first task of a kind compiles what the others use, so it counts only where it is the only one. Where
        tasks are left of a kind of which none has finished, only a lower bound is known.
        """
        left = set(self._left.values())
        known = {kind: statistics.median(took[1:]) for kind, took in self._took.items() if len(took) > 1}
        if is_whole := self._took.keys() >= left:
            known = {kind: took[0] for kind, took in self._took.items()} | known
        seconds = sum(known.get(kind, 0.0) for kind in self._left.values())
        if not seconds:
            return ""
        spent = sum(self._clock() - at for name, at in self._began.items() if self._left.get(name) in known)
        time_left = _readable(max(seconds - spent, 0) / self._n_workers)
        return f"{'about' if is_whole else 'more than'} {time_left} left"


def _readable(seconds: float) -> str:
    """Write a time as people do.

    >>> _readable(0.2), _readable(100), _readable(9000)
    ('1 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
