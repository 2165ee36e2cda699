"""What a run's folder states of its settings: what two runs must agree in, and what else going on takes."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..datasets.splits import NAMES, Splits
from ..kernels.fingerprint import hash_arrays
from ..networks.named import initial_model, n_logits
from .imported import is_named_by_module, resolved
from .own_objects import OBJECTS, restored, state_attack, state_network, state_optimizer
from .run_directory import RunDirectory, RunMismatchError
from .setting_checks import check_network

if TYPE_CHECKING:
    from .experiment import KernelEvolution

# Settings in which runs need not agree: a run may get more seeds and other memory, and its data may have moved.
FREE = ("seeds", "data_dir", "memory")
# Settings of later versions, and what they were before: left out, so that folders stay what they were.
BEFORE = {"norm": "linf", "image_size": None, "optimizer": "sgd"}


def settings_of(experiment: KernelEvolution, splits: Splits) -> dict[str, Any]:
    """List what two runs must agree in to be the same."""
    settings = {f.name: getattr(experiment, f.name) for f in fields(experiment) if f.name not in FREE}
    settings = {name: value for name, value in settings.items() if value != BEFORE.get(name, ...)}
    of_data = splits.X.shape[1:], int(splits.y.max()) + 1
    settings["network"] = state_network(resolved(experiment.network), *of_data)
    settings["attack"] = state_attack(experiment.attack, *of_data)
    if "optimizer" in settings:
        network = resolved(experiment.network)
        settings["optimizer"] = state_optimizer(experiment.optimizer, network, *of_data)
    return settings | {"sha256_data": hash_arrays(splits), "version": __version__}


def check_outputs(experiment: KernelEvolution, splits: Splits) -> None:
    """Raise unless the network is one for these inputs, with an output for each class."""
    import jax

    network = resolved(experiment.network)
    if isinstance(network, str):
        return
    check_network(network)
    input_shape, n_classes = splits.X.shape[1:], int(splits.y.max()) + 1
    model = initial_model(network, input_shape, n_classes, jax.random.key(0))
    n_outputs = n_logits(model, input_shape, splits.X.dtype)
    if n_outputs != n_classes:
        raise ValueError(
            f"network has {n_outputs} output{'s' if n_outputs > 1 else ''}, but the data have {n_classes} "
            f"classes: an experiment needs one output for each class. The network is {network!r}"
        )


def going_on(experiment: KernelEvolution, splits: Splits, own_data: bool, out: Path) -> dict[str, Any]:
    """State what else a run is carried out with, so that the folder is enough to go on.

    ``memories`` has all budgets that the run was given, None where a version before has not stated it.
    """
    network = experiment.network
    is_file = not own_data and experiment.data not in NAMES
    there = RunDirectory(out).going_on if (is_there := _is_run(out)) else {}
    memories = [m for m in there.get("memories", [None] if is_there else []) if m != experiment.memory]
    return {
        "seeds": max(experiment.seeds, there.get("seeds", 0)),
        "memory": experiment.memory,
        "memories": [*memories, experiment.memory],
        "data": os.path.abspath(experiment.data) if is_file else None,
        "data_dir": None if experiment.data_dir is None else os.path.abspath(experiment.data_dir),
        "own_data": own_data,
        "network": network if isinstance(network, str) and is_named_by_module(network) else None,
        "sha256_training_data": hash_arrays(splits[:2]),
        "sha256_test_data": hash_arrays(splits[2:]),
    }


def _is_run(path: Path) -> bool:
    return (path / "settings.json").exists()


def settings_there(run: RunDirectory, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of an experiment in a folder, with objects in the place of what is stated of them."""
    settings = {name: value for name, value in run.settings.items() if name in known}
    return settings | {name: restored(settings[name]) for name in OBJECTS if name in settings}


def where_the_data_were(out: Path, settings: dict[str, Any], own_data: bool) -> dict[str, Any]:
    """Return settings with the folder's name for the data, where they are the same in a file that moved.

    Raises
    ------
    RunMismatchError
        If data were given in Python there or here, and are not the same.
    """
    if not _is_run(out):
        return settings
    run = RunDirectory(out)
    if run.settings.get("sha256_data") == settings["sha256_data"]:
        is_file = own_data or settings["data"] not in NAMES
        return settings | ({"data": run.settings.get("data")} if is_file else {})
    if run.going_on.get("own_data") and not own_data:
        raise RunMismatchError(
            f"{out} was begun with data that were given in Python, which a folder does not hold: give them again, "
            "run(out, splits=Splits(X, y, X_test, y_test))"
        )
    if own_data:
        raise RunMismatchError(
            f"the data that were given are not those that {out} was begun with, and nothing of it was changed. "
            f"sha256_data: {str(run.settings.get('sha256_data'))[:12]} there, {settings['sha256_data'][:12]} "
            "here. Give the same arrays, in the same order, or use another folder"
        )
    return settings
