"""Tables of the page: cells as they are shown, and the same as CSV in a link that needs no other file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from ..evolution.results import EvolutionResult
from .evidence import PAPER_SETTINGS, Stated

# A spreadsheet takes a text that begins so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Table(NamedTuple):
    """A table of the page.

    Attributes
    ----------
    name : str
        Of the file that is downloaded, without its ending.
    columns : tuple of str
    rows : list of lists of str
        Empty where only the file is offered.
    href : str
        The table's numbers, with all their digits, as a data URL.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    href: str


def csv_url(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table as CSV in a data URL; no text in it is a formula.

    >>> csv_url(["a", "b"], [[1, "=x"]])
    'data:text/csv;charset=utf-8,a%2Cb%0A1%2C%27%3Dx%0A'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_harmless(value) for value in row] for row in rows)
    return "data:text/csv;charset=utf-8," + quote(file.getvalue(), safe="")


def claims_table(stated: list[Stated]) -> Table:
    """Make the table of claims, which the page shows as cards."""
    columns = ("number", "claim", "verdict", "comparison", "measured", "statistic", "published")
    rows = [
        [one.claim.number, one.claim.text, one.verdict, one.claim.verdict, one.claim.measured, one.claim.statistic]
        + [one.published or ""]
        for one in stated
    ]
    return Table("claims", columns, [], csv_url(columns, rows))


def accuracies_table(result: EvolutionResult) -> Table:
    """Make the table of accuracies: robust ones first, means over seeds with standard deviations."""
    kinds = ("robust", "robust with restarts", "clean")
    shown, numbers = [], []
    for row in result.accuracies():
        start, dynamics, training, clean, robust, restarts = row.cells()
        shown.append([start, dynamics, training, robust, restarts, clean])
        spreads = [_spread(values) for values in (row.robust, row.robust_restarts, row.clean)]
        numbers.append(
            [start, dynamics, training, len(row.robust), *(number for pair in spreads for number in pair)]
        )
    names = [f"{kind}{part}" for kind in kinds for part in ("", " standard deviation")]
    url = csv_url(["where it starts", "dynamics", "training", "seeds", *names], numbers)
    columns = ("where it starts", "dynamics", "training", "robust", "with restarts", "clean")
    return Table("accuracies", columns, shown, url)


def settings_table(result: EvolutionResult) -> Table:
    """Make the table of the paper's settings beside those of a run."""
    rows = [[name, PAPER_SETTINGS[name], ours] for name, ours in _own_settings(result).items()]
    columns = ("setting", "the paper", "this run")
    return Table("settings", columns, [[plain(value) for value in row] for row in rows], csv_url(columns, rows))


def _own_settings(result) -> dict[str, Any]:
    """Return the run's settings under the names that the paper's have."""
    experiment, used = result.experiment, result.of_kind("checkpoint")[0]
    training, scoring = experiment.train_attack, experiment.test_attack
    return {
        "data": name_of(experiment.data),
        "network": name_of(experiment.network),
        # what was used, and not what was asked for
        "training examples": used["n_train"],
        "test examples, all attacked": used["n_test"],
        "training examples that kernels are measured on": used["n_kernel"],
        "norm": scoring.norm,
        "epsilon": scoring.epsilon,
        "attack in training": type(training).__name__,
        # one, for those that have no number of them
        "its steps": getattr(training, "n_steps", 1),
        "PGD steps in scoring": scoring.n_steps,
        "epochs of stage 1": experiment.epochs,
        "learning rate of stage 1": _of_optimizer(experiment.learning_rate),
        "epochs of stage 2": experiment.stage2_epochs,
        "learning rate of stage 2": _of_optimizer(experiment.stage2_learning_rate),
        "batch size": experiment.batch_size,
        "optimizer": experiment.optimizer if isinstance(experiment.optimizer, str) else repr(experiment.optimizer),
        "momentum": _of_optimizer(experiment.momentum),
    }


def _of_optimizer(value: float | None) -> Any:
    """Return a hyperparameter, or say where it is: an object of optax has its own, and Adam has no momentum."""
    return "the optimizer's own" if value is None else value


def states_table(result: EvolutionResult) -> Table:
    """Make the table of all that was measured at each state of stage 1."""
    records = result.of_kind("checkpoint")
    columns = tuple(
        name
        for name, value in records[0].items()
        if name not in ("task", "kind") and not isinstance(value, dict | list)
    )
    return Table(
        "states", columns, [], csv_url(columns, ([record.get(name) for name in columns] for record in records))
    )


def transfer_table(result: EvolutionResult) -> Table | None:
    """Make the table of transfer, one line for each pair of models and seed."""
    columns = ("seed", "examples made on", "evaluated on", "accuracy")
    rows = [
        [record["seed"], made, evaluated, accuracy]
        for record in result.of_kind("transfer")
        for made, row in zip(record["names"], record["matrix"], strict=True)
        for evaluated, accuracy in zip(record["names"], row, strict=True)
    ]
    return Table("transfer", columns, [], csv_url(columns, rows)) if rows else None


def features_table(result: EvolutionResult) -> Table | None:
    """Make the table of eigenfeatures, one line for each."""
    columns = ("seed", "regime", "epoch", "eigenfeature", "eigenvalue", "clean accuracy", "accuracy under attack")
    rows = [
        [record["seed"], record["regime"], record["epoch"], at, *values]
        for record in result.of_kind("features")
        for at, values in enumerate(
            zip(record["eigenvalues"], record["usefulness"], record["robustness"], strict=False), 1
        )
    ]
    return Table("eigenfeatures", columns, [], csv_url(columns, rows)) if rows else None


def plain(value: Any) -> str:
    """Write a setting as text."""
    if isinstance(value, list | tuple):
        return ", ".join(" at ".join(map(plain, v)) if isinstance(v, list | tuple) else plain(v) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def name_of(value: Any) -> str:
    """Name what was given by name, or else by its type."""
    return str(value) if isinstance(value, str | os.PathLike) else type(value).__name__


def _harmless(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _spread(values: list[float]) -> tuple[Any, Any]:
    """Return mean and standard deviation over seeds; nothing where there is nothing, or one seed."""
    if not values:
        return "", ""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else ""
