"""How a run is carried out: its folder, what is done there already, and the tasks that are left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._validation import brief
from ..datasets.splits import Splits, load_splits, require_enough
from ..execution.interrupts import heard
from .progress import Progress
from .run_directory import RunDirectory
from .run_settings import check_outputs, going_on, settings_of, where_the_data_were
from .schedule import OrderedResults, Schedule
from .setting_checks import n_matrix
from .states import States
from .taking_over import take_over
from .tasks import Measurements, tasks_of
from .workers import Workplace, share, started

if TYPE_CHECKING:
    from .experiment import KernelEvolution


def carry_out(
    experiment: KernelEvolution,
    out: Path,
    splits: Splits | None,
    progress: bool,
    n_workers: int,
    from_: Path | None = None,
) -> None:
    """Carry out what is left of an experiment; arguments as for :meth:`KernelEvolution.run`, but checked."""
    own_data = splits is not None
    splits = splits_of(experiment, splits)
    experiment = experiment.fitting(len(splits.y), len(np.unique(splits.y)))
    require_enough(splits.y, n_kernel=min(n_matrix(experiment.n_kernel), len(splits.y)))
    check_outputs(experiment, splits)
    settings = where_the_data_were(out, settings_of(experiment, splits), own_data)
    with heard(), RunDirectory.session(out, settings, going_on(experiment, splits, own_data, out)) as run:
        if from_ is not None:
            print(take_over(run, experiment, splits, from_), file=sys.stderr)
        written = run.results()
        measurements = Measurements(States(experiment, run, splits), [*run.waiting.read(), *written])
        measurements.forget_what_has_lost_its_files()
        _finish(experiment, measurements, written, progress, n_workers)


def splits_of(experiment: KernelEvolution, splits: Splits | None) -> Splits:
    """Return the data that were given, or that the settings name."""
    if splits is None:
        return load_splits(
            experiment.data,
            experiment.data_dir,
            n_train=experiment.n_train,
            n_test=experiment.n_test,
            random_state=experiment.random_state,
            image_size=experiment.image_size,
        )
    if not isinstance(splits, Splits):
        raise TypeError(f"splits must be Splits(X, y, X_test, y_test), got {brief(splits)}")
    return splits


def _finish(experiment, measurements, written, progress, n_workers):
    """Do the tasks that have no record, and write all records in their order."""
    tasks, records, run = tasks_of(experiment), measurements.records, measurements.run
    there = {record["task"] for record in written} & records.keys()
    results = OrderedResults(run, [task.name for task in tasks], records, there)
    left = [task for task in tasks if task.name not in records]
    n_workers = max(1, min(n_workers, len(left)))
    with Progress(left, len(tasks), experiment.seeds, n_workers, shown=progress) as shown:
        if n_workers > 1:
            place = Workplace(experiment, run.path.absolute(), measurements.states.splits)
            with started(place, n_workers) as workers:
                share(Schedule(measurements.states, records), results, workers, shown)
            return
        for task in left:
            shown.works_on([task])
            results.add(measurements.take(task))
            shown.done(task)
