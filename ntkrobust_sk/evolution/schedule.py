"""Which task comes next where several workers share an experiment, and how results are written in their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .records import Record
from .run_directory import RunDirectory
from .states import States, own_epochs
from .tasks import Measurements, Task, state_name, tasks_of

if TYPE_CHECKING:
    from .experiment import KernelEvolution

# The longest way to the end, besides training; so is what closed forms need.
URGENT = (Measurements.closed_form, Measurements.transfer)


def skipped(experiment: KernelEvolution, there: Collection[str]) -> list[str]:
    """List tasks that have no result though a later one has: a run that was stopped has none such."""
    names = [task.name for task in tasks_of(experiment)]
    last = max((at for at, name in enumerate(names) if name in there), default=0)
    return [name for name in names[:last] if name not in there]


class OrderedResults:
    """The results of a run, written in the order of the tasks, whatever the order in which they come.

    One that comes too soon waits in a file of its own, so that a stop loses nothing.

    Parameters
    ----------
    run : RunDirectory
    names : iterable of str
        The tasks in their order.
    records : dict
        By task: those that are on disk.
    written : collection of str
        The tasks whose results are in their place already.
    """

    def __init__(
        self, run: RunDirectory, names: Iterable[str], records: dict[str, Record], written: Collection[str]
    ):
        self.run, self.records = run, records
        self._left = [name for name in names if name not in written]
        self._write()

    def add(self, record: Record) -> None:
        """Write a result, and those that have waited for it."""
        self.records[record["task"]] = record
        if self._left and self._left[0] == record["task"]:
            self._write()
        else:
            self.run.waiting.append(record)

    def _write(self):
        """Write what is there up to the first task that is not done."""
        while self._left and self._left[0] in self.records:
            self.run.append(self.records[self._left[0]])
            del self._left[0]
        if not any(name in self.records for name in self._left):
            self.run.waiting.file.unlink(missing_ok=True)


def needs_of(experiment: KernelEvolution) -> dict[str, list[str]]:
    """List for each task the tasks whose results and kernels it takes.

    >>> from ntkrobust_sk import KernelEvolution
    >>> needs = needs_of(KernelEvolution(epochs=1, fractions=()))
    >>> needs["0/benign/1"], needs["0/benign/1/closed-form"]
    ([], ['0/benign/1'])
    """
    needs, of_seeds = {}, {}
    for task in tasks_of(experiment):
        seed, regime, epoch = _state_of(task)
        needs[task.name] = []
        if regime is None:
            # the models that are compared, and whatever they need
            own = of_seeds.get(seed, [])
            needs[task.name] = list(dict.fromkeys([*own, *(before for name in own for before in needs[name])]))
        elif experiment.patience is not None:
            needs[task.name] = _before(experiment, seed, regime, epoch if is_checkpoint(task) else None)
        elif task.measure in (Measurements.closed_form, Measurements.features):
            needs[task.name] = [state_name(seed, regime, epoch)]
        if task.measure in (Measurements.closed_form, Measurements.stage_two):
            of_seeds.setdefault(seed, []).append(task.name)
    return needs


def is_checkpoint(task: Task) -> bool:
    """Tell whether a task measures a state of stage 1."""
    return task.measure is Measurements.checkpoint


def _before(experiment, seed, regime, epoch) -> list[str]:
    """List the measurements of a regime before an epoch, or all: they say whether training goes on."""
    own = own_epochs(experiment, regime)
    names = [state_name(seed, regime, e) for e in own if epoch is None or e < epoch]
    return names if names or regime != "flip" else [state_name(seed, "benign", experiment.flips_at)]


class Schedule:
    """The tasks that are left, of which each is given out when all that it needs is there.

    The states of a regime are trained by a task of its own, one for each seed, while others measure those that are
    on disk already. With early stopping measurements decide how long training goes on, and both are done in turn.

    Parameters
    ----------
    states : States
        Says where states are, or will be.
    records : dict
        By task: what was done, and what will be.
    """

    def __init__(self, states: States, records: dict[str, Record]):
        self.states, self.experiment, self.records = states, states.experiment, records
        self.tasks = tasks_of(self.experiment)
        self.needs = needs_of(self.experiment)
        self.place = {task.name: at for at, task in enumerate(self.tasks)}
        urgent = [task.name for task in self.tasks if task.measure in URGENT]
        self._urgent = {*urgent, *(name for one in urgent for name in self.needs[one] if name.count("/") == 2)}
        self._left = {task.name: task for task in self.tasks if task.name not in records}
        self._training = {} if self.experiment.patience is not None else self._trainings()
        self._end = len(self.tasks)

    def _trainings(self) -> dict[tuple[int, str], Task]:
        """Return the training of each seed and regime that lacks states, up to the last one that is needed."""
        last: dict[tuple[int, str], float] = {}

        def want(seed, regime, epoch):
            if not self._is_on_disk(seed, regime, epoch):
                if regime == "flip" and (seed, regime) not in last:
                    want(seed, "benign", self.experiment.flips_at)
                last[seed, regime] = max(epoch, last.get((seed, regime), 0.0))

        for task in self._left.values():
            if "regime" in task.on:
                want(*_state_of(task))
        return {
            (seed, regime): Task(
                f"{seed}/{regime}/training",
                Measurements.training,
                {"seed": seed, "regime": regime, "epoch": epoch},
            )
            for (seed, regime), epoch in last.items()
        }

    def _is_on_disk(self, seed, regime, epoch) -> bool:
        return self.states.file(seed, regime, epoch).exists()

    @property
    def left(self) -> list[str]:
        """Name the tasks that are not done."""
        return list(self._left)

    def next(self, programs: Collection, others: Collection, running: Collection[str]) -> Task | None:
        """Return the task to be done next, or None if all wait for others.

        Parameters
        ----------
        programs, others : collection
            What the worker has compiled, see :func:`program`, and what others have: it is given what it knows, or
            what nobody knows.
        running : collection of str
            Tasks that are being done.
        """
        ready = [task for task in self._candidates() if task.name not in running and self._is_ready(task)]

        def rank(task):
            kind, trains = program(task), task.measure is Measurements.training
            known = 0 if kind in programs else 2 if kind in others else 1
            second = task.measure is not Measurements.stage_two
            return (
                task.on["seed"],
                not trains,
                known == 2,
                task.name not in self._urgent,
                known,
                second,
                self._at(task),
            )

        return min(ready, key=rank, default=None)

    def _candidates(self) -> Iterator[Task]:
        for task in (*self._training.values(), *self._left.values()):
            if self._at(task) < self._end:
                yield task

    def _at(self, task) -> int:
        """Return a task's place in the order; training's is that of the first task that waits for it."""
        if task.name in self.place:
            return self.place[task.name]
        return min((self.place[one.name] for one in self._waiting_for(task)), default=self._end)

    def _waiting_for(self, training) -> list[Task]:
        seed, regime = training.on["seed"], training.on["regime"]
        return [
            task
            for task in self._left.values()
            if _state_of(task)[:2] == (seed, regime) and not self._is_on_disk(*_state_of(task))
        ]

    def _is_ready(self, task) -> bool:
        seed, regime, epoch = _state_of(task)
        if task.measure is Measurements.training:
            before = (seed, "benign", self.experiment.flips_at)
            return regime != "flip" or before[:2] not in self._training or self._is_on_disk(*before)
        if not all(name in self.records for name in self.needs[task.name]):
            return False
        return (seed, regime) not in self._training or self._is_on_disk(seed, regime, epoch)

    def done(self, task: Task) -> None:
        """Take a task that was done off the list; its record, if it has one, is among the records already."""
        self._training.pop(_state_of(task)[:2], None) if task.name not in self.place else self._left.pop(task.name)

    def failed(self, task: Task) -> int:
        """Leave a task undone, and all that come after it; return the place at which one process would stop."""
        place = self._at(task)
        self._training.pop(_state_of(task)[:2], None) if task.name not in self.place else self._left.pop(task.name)
        self._end = min(self._end, place)
        return place


def _state_of(task) -> tuple[int, Any, Any]:
    """Return seed, regime and epoch of a task; None for what it has none of."""
    return task.on["seed"], task.on.get("regime"), task.on.get("epoch")


def program(task: Task) -> tuple:
    """Return what tells the compiled programs of a task from those of others."""
    adversarial = task.on.get("regime") != "benign" if task.measure is Measurements.training else None
    kind = "regression" if task.measure in URGENT else task.measure.__name__
    return kind, adversarial, task.on.get("dynamics"), task.on.get("training")
