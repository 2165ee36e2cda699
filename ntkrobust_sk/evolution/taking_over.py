"""What a run takes over from another one: the parts that no setting in which they differ has a say in."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.splits import Splits
from ..kernels.fingerprint import hash_arrays
from ..kernels.store import NamedStore, copy_store
from ..training.resumable import state_file
from .dependencies import Contents, Dependencies, Part, unknown
from .records import Record
from .results import read_kernel
from .run_directory import RunDirectory, differences
from .run_settings import settings_there
from .states import choose_examples, state_folder
from .tasks import adversarial_file, adversarial_names, kernel_store

if TYPE_CHECKING:
    from .experiment import KernelEvolution


@dataclass(frozen=True)
class TakenOver:
    """What was taken over, and what is left to compute.

    Attributes
    ----------
    path : Path
        Of the other run.
    differences : list of str
    taken, parts : Counter
        By kind: how many parts were taken, of how many there will be.
    left : list of str
        Tasks whose results are to be computed.
    """

    path: Path
    differences: list[str]
    taken: Counter
    parts: Counter
    left: list[str]

    def __str__(self) -> str:
        """Say it in words."""
        counts = "; ".join(f"{kind}: {self.taken[kind]} of {n}" for kind, n in self.parts.items())
        kinds = Counter(_kind(task) for task in self.left)
        left = ", ".join(f"{kind} {n}" for kind, n in kinds.items()) or "none"
        return (
            f"taken over from {self.path} ({'; '.join(self.differences) or 'with the same settings'}): {counts}. "
            f"Results to be computed: {left}"
        )


def _kind(task: str) -> str:
    """Return the kind of a task by its name."""
    parts = task.split("/")
    named = {"transfer": "transfer", "features": "features", "images": "images", "closed-form": "closed form"}
    return named.get(parts[-1], "states" if len(parts) == 3 else "stage 2")


def take_over(run: RunDirectory, experiment: KernelEvolution, splits: Splits, other: Path) -> TakenOver:
    """Copy the parts of another run that this one would compute to the same bits, and that it has not yet.

    Warns
    -----
    RuntimeWarning
        For a part whose files are damaged there; it is computed.

    Raises
    ------
    FileNotFoundError, DamagedRunError
        If there is no run in the other folder, or it cannot be read.
    ValueError
        If it is the same folder.
    """
    if other.resolve() == run.path.resolve():
        raise ValueError(f"from_ is the folder of the run itself, {other}; give another one, or leave from_ out")
    there = RunDirectory(other)
    records = {record["task"]: record for record in [*there.waiting.read(), *there.results()]}
    theirs = _dependencies_there(there, experiment, splits, records).parts()
    contents = Contents.of(choose_examples(experiment, splits))
    ours = Dependencies(experiment, run.settings, contents, run.going_on["memory"]).parts()
    own = {record["task"] for record in [*run.waiting.read(), *run.results()]}
    copying = _Copying(there, run, records, own)
    taken = Counter(
        part.kind for part, depends in ours.items() if theirs.get(part) == depends and copying.take(part)
    )
    left = [part.what[0] for part in ours if part.kind == "results" and part.what[0] not in copying.own]
    found = [line for line in differences(there.settings, run.settings) if not line.startswith("sha256_data")]
    if len(found) < len(differences(there.settings, run.settings)):
        found.append("other examples")
    return TakenOver(other, found, taken, Counter(part.kind for part in ours), left)


def _dependencies_there(there, experiment, splits, records) -> Dependencies:
    """Return what the parts of the other run depend on, as far as its folder and our data tell."""
    names = tuple(field.name for field in fields(experiment))
    seeds = max([record["seed"] + 1 for record in records.values()], default=1)
    other = type(experiment)(**settings_there(there, names))
    other = replace(other, seeds=max(seeds, there.going_on.get("seeds", 1)))
    of_data = _same_data(there, splits)
    # nothing is chosen of examples that are not those of the other run
    examples = choose_examples(other if of_data["training_known"] else experiment, splits)
    memories = there.going_on.get("memories", [])
    memory = memories[0] if len(memories) == 1 and memories[0] is not None else unknown()
    return Dependencies(other, there.settings, Contents.of(examples, **of_data), memory)


def _same_data(there, splits) -> dict[str, bool]:
    if there.settings.get("sha256_data") == hash_arrays(splits):
        return {"training_known": True, "test_known": True}
    return {
        "training_known": there.going_on.get("sha256_training_data") == hash_arrays(splits[:2]),
        "test_known": there.going_on.get("sha256_test_data") == hash_arrays(splits[2:]),
    }


@dataclass(frozen=True)
class _Copying:
    """Copies parts from one run to another; each is taken whole or not at all.

    Attributes
    ----------
    there, run : RunDirectory
    records : dict
        Of the other run, by task.
    own : set of str
        The tasks that have a result in this one.
    """

    there: RunDirectory
    run: RunDirectory
    records: dict[str, Record]
    own: set[str]

    def take(self, part: Part) -> bool:
        """Copy a part, and tell whether it was."""
        ways: dict[str, Callable[..., bool]] = {
            "states of training": self._state,
            "kernels": self._kernel,
            "models of stage 2": self._model,
            "results": self._result,
        }
        try:
            return ways[part.kind](*part.what)
        except (OSError, ValueError) as error:
            name = "/".join(map(str, part.what))
            warnings.warn(f"{error}; {name} is computed, not taken over", RuntimeWarning, stacklevel=4)
            return False

    def _state(self, seed, regime, epoch) -> bool:
        return self._arrays(*state_folder(seed, regime), state_file(Path(), epoch).name)

    def _model(self, task) -> bool:
        seed, _, name = task.partition("/")
        folder = state_folder(int(seed), f"stage2/{name}")
        files = sorted(self.there.path.joinpath(*folder).glob("*.safetensors"))
        return bool(files) and task in self.records and self._arrays(*folder, files[-1].name)

    def _kernel(self, seed, regime, epoch, images) -> bool:
        record: Any = self.records.get(f"{seed}/{regime}/{epoch:g}", {})
        source = kernel_store(self.there, seed, regime, epoch, images)
        target = kernel_store(self.run, seed, regime, epoch, images)
        if images not in record.get("kernels", ()):
            return False
        if target.path.exists():
            return True
        read_kernel(source.path, record["kernels"][images])
        _copied_whole(source, target)
        return True

    def _result(self, task) -> bool:
        record: Any = self.records.get(task)
        if record is None or task in self.own:
            return False
        at = (record["seed"], record.get("regime"), record.get("epoch"))
        if not all(self._kernel(*at, images) for images in record.get("kernels", ())):
            return False
        if not self._has_state_if_there_is(record):
            return False
        starts = [tuple(name.split("/")[:2]) for name in record.get("names", ()) if name.endswith("/network")]
        names = adversarial_names(record, [(regime, float(epoch)) for regime, epoch in starts])
        files = [adversarial_file(record["seed"], name) for name in names]
        if record["kind"] == "images":
            files.append(("images", f"seed-{record['seed']}", f"{record['regime']}.safetensors"))
        if not all(self._arrays(*file) for file in files):
            return False
        self.run.waiting.append(record)
        self.own.add(task)
        return True

    def _has_state_if_there_is(self, record) -> bool:
        """Tell whether the state that was measured was taken, unless it was deleted there to make room."""
        task, regime = record["task"], record.get("regime")
        if record["kind"] == "stage 2":
            folder = state_folder(record["seed"], f"stage2/{task.partition('/')[2]}")
        elif record["kind"] == "checkpoint":
            folder = state_folder(record["seed"], regime)
        else:
            return True
        there = self.there.path.joinpath(*folder)
        last = sorted(there.glob("*.safetensors"))[-1:]
        files = last if record["kind"] == "stage 2" else [state_file(there, record["epoch"])]
        return all(self.run.path.joinpath(*folder, f.name).exists() for f in files if f.exists())

    def _arrays(self, *parts) -> bool:
        """Copy a file of arrays, if it is there and not here."""
        if not self.there.path.joinpath(*parts).exists():
            return False
        if not self.run.path.joinpath(*parts).exists():
            self.run.save(self.there.arrays(*parts), *parts)
        return True


def _copied_whole(source: NamedStore, target: NamedStore) -> None:
    try:
        copy_store(source, target)
    except BaseException:
        # a part of it would be gone on with, which is right, but it was counted as computed
        shutil.rmtree(target.path, ignore_errors=True)
        raise
