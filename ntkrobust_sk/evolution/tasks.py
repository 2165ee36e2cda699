"""The tasks of an experiment, and what each measures on the states of its networks."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ..analysis.eigenfeatures import ntk_features
from ..analysis.images import class_eigenvectors, eigenfeature_images, regression_coefficients
from ..analysis.sketches import Estimate
from ..attacks.tiled import attack_in_tiles
from ..execution.devices import one_thread_each
from ..execution.memory import parse_memory
from ..execution.tiles import evaluate, machine_rows, network_rows
from ..kernels.fingerprint import hash_arrays
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.operator import gram_operator
from ..kernels.predictors import make_predictor
from ..kernels.store import NamedStore
from ..networks.model import Model
from ..solvers.ridge import solve
from ..training.checkpoints import DamagedCheckpointError
from ..training.state import averaged
from .measures import class_correlations, class_metrics, kernel_metrics
from .records import Checkpoint, Record
from .result_lines import digest
from .results import IMAGES, kernel_name, read_kernel
from .run_directory import RunDirectory
from .setting_checks import n_matrix
from .states import States, own_epochs

if TYPE_CHECKING:
    from .experiment import KernelEvolution

# Restarts of the attack, besides the first start, that stage 2 is scored with.
RESTARTS = 4
# Steps of signed-gradient ascent on an image; half of them cross the range of the pixels.
IMAGE_STEPS = 50

# The kind of a record, and its numbers.
Measured = tuple[str, Mapping[str, Any]]


class Task(NamedTuple):
    """A task: its name, the measurement that it asks for, and what it is taken on."""

    name: str
    measure: Callable[..., Measured]
    on: dict[str, Any]


def state_name(seed: int, regime: str, epoch: float) -> str:
    """Name the task that measures a state.

    >>> state_name(0, "benign", 2.0)
    '0/benign/2'
    """
    return f"{seed}/{regime}/{epoch:g}"


def tasks_of(experiment: KernelEvolution) -> list[Task]:
    """List the tasks of an experiment in their order."""
    return [
        Task(f"{seed}/{task.name}", task.measure, {"seed": seed} | task.on)
        for seed in range(experiment.seeds)
        for task in _tasks_of_a_seed(experiment)
    ]


def _tasks_of_a_seed(experiment) -> Iterator[Task]:
    for regime in experiment.regimes:
        for epoch in own_epochs(experiment, regime):
            yield Task(f"{regime}/{epoch:g}", Measurements.checkpoint, {"regime": regime, "epoch": epoch})
    for regime, epoch in experiment.starts:
        on = {"regime": regime, "epoch": epoch}
        yield Task(predictor_name(regime, epoch, "closed-form"), Measurements.closed_form, on)
        for dynamics, training in product(experiment.dynamics, experiment.stage2):
            how = {"dynamics": dynamics, "training": training}
            yield Task(predictor_name(regime, epoch, dynamics, training), Measurements.stage_two, on | how)
    if experiment.starts:
        yield Task("transfer", Measurements.transfer, {})
    for regime in experiment.regimes:
        if not own_epochs(experiment, regime):
            # without an epoch "flip" never turns
            continue
        on = {"regime": regime, "epoch": experiment.checkpoints[-1]}
        if experiment.n_features:
            yield Task(f"{regime}/features", Measurements.features, on)
        yield Task(f"{regime}/images", Measurements.images, on)


class Measurements:
    """The measurements on a run's states: each gives a record, and keeps its files in the run's folder.

    Parameters
    ----------
    states : States
    found : iterable of dict
        The records of a stopped run.

    Attributes
    ----------
    records : dict from a task's name to its record
    """

    def __init__(self, states: States, found: Iterable[Record]):
        self.states, self.experiment, self.run = states, states.experiment, states.run
        self.records = {record["task"]: record for record in found}

    def take(self, task: Task) -> Record:
        """Carry out a task, and remember its record: later ones may depend on it.

        An error has a note that names the task.
        """
        try:
            with one_thread_each():
                kind, numbers = task.measure(self, **task.on)
        except Exception as error:
            error.add_note(f"in the task {task.name}")
            raise
        self.records[task.name] = record = cast(Any, {"task": task.name, "kind": kind, **task.on, **numbers})
        return record

    def forget_what_has_lost_its_files(self) -> None:
        """Drop the records whose files are not there as they were, so that both are made again."""
        lost = []
        for name, record in list(self.records.items()):
            try:
                self._look_at_files(record)
            except (OSError, ValueError) as error:
                warnings.warn(f"{error}; the task {name} is done again", RuntimeWarning, stacklevel=3)
                lost.append(name)
                del self.records[name]
                for images in record.get("kernels", ()):
                    shutil.rmtree(self._kernel_store(*_state_of(record), images).path, ignore_errors=True)
        if lost:
            self.run.forget(lost)

    def _look_at_files(self, record):
        """Raise OSError or ValueError unless the files that a record states are there, as they were written."""
        for images, stated in record.get("kernels", {}).items():
            read_kernel(self._kernel_store(*_state_of(record), images).path, stated)
        if record["kind"] == "images":
            self.run.arrays("images", f"seed-{record['seed']}", f"{record['regime']}.safetensors")
        for name in adversarial_names(record, self.experiment.starts):
            self.run.arrays(*adversarial_file(record["seed"], name))
        state = self.states.file_of(record)
        # one that was deleted to make room is trained again when it is needed
        if state is not None and state.exists():
            self.run.arrays(*state.relative_to(self.run.path).parts)

    # what is measured

    def best_epoch(self, seed: int, regime: str) -> float | None:
        """Return the best epoch of a regime that ended early, or None."""
        found = [self.records.get(state_name(seed, regime, e)) for e in own_epochs(self.experiment, regime)]
        scores = {r["epoch"]: r["validation"] for r in found if r and "validation" in r and r["epoch"] % 1 == 0}
        if self.experiment.patience is None or not scores:
            return None
        best = max(scores, key=scores.__getitem__)
        return best if max(scores) - best >= self.experiment.patience else None

    def measured_epoch(self, seed: int, regime: str, epoch: float) -> float:
        """Return the epoch of the network that is measured: the given one, or the best if training stopped."""
        best = self.best_epoch(seed, regime)
        return epoch if best is None else min(epoch, best)

    def model(self, seed: int, regime: str, epoch: float) -> Model:
        """Return the network that is measured: the one at an epoch, or its average."""
        return averaged(self.states.at(seed, regime, self.measured_epoch(seed, regime, epoch)))

    def kernel(self, seed: int, regime: str, epoch: float, model: Model) -> np.ndarray:
        """Return the trace kernel of such a network, from its store."""
        epoch = self.measured_epoch(seed, regime, epoch)
        store = self._kernel_store(seed, regime, epoch, "clean")
        measured = self.records.get(state_name(seed, regime, epoch))
        if measured is not None:
            # without the store's lock, which another process may hold that needs this kernel too
            return read_kernel(store.path, cast(Checkpoint, measured)["kernels"]["clean"])
        X, _ = self.states.examples.kernel
        return cast(np.ndarray, gram("trace", model, X, memory=self.experiment.memory, store=store))

    def _kernel_store(self, seed, regime, epoch, images) -> NamedStore:
        return kernel_store(self.run, seed, regime, epoch, images)

    # records

    def training(self, seed: int, regime: str, epoch: float) -> Measured:
        """Train a regime up to an epoch, and measure nothing: what others measure is then on disk."""
        self.states.at(seed, regime, epoch)
        return "training", {}

    def checkpoint(self, seed: int, regime: str, epoch: float) -> Measured:
        """Measure accuracies and kernels of a state of stage 1."""
        best, patience = self.best_epoch(seed, regime), self.experiment.patience
        if best is not None and patience is not None and epoch > best + patience:
            return "stopped", {"best": best}
        state, examples = self.states.at(seed, regime, epoch), self.states.examples
        model = averaged(state)
        scores = self._scores(model, seed)
        if examples.validation is not None:
            X, y = examples.validation
            scores["validation"] = accuracy(model, self._adversarial(model, X, y, seed), y)
        X, y = examples.kernel
        X_adv = self._adversarial(model, X, y, seed)
        kernels, measured, experiment = {}, {}, self.experiment
        for images, X_seen in zip(IMAGES, (X, X_adv), strict=True):
            store = self._kernel_store(seed, regime, epoch, images)
            K = np.asarray(gram("trace", model, X_seen, memory=experiment.memory, store=store))
            kernels[images] = hash_arrays([K])
            measured |= {f"{images}_{name}": value for name, value in kernel_metrics(K, y).items()}
        layers = cast(dict, gram("class", model, X, memory=experiment.memory, by_layer=True))
        sizes = {"n_train": len(examples.training[1]), "n_test": len(examples.test[1]), "n_kernel": len(y)}
        if self.experiment.n_kernel == "all":
            measured |= self._of_all_examples(model, seed)
            sizes["n_kernel"] = sizes["n_train"]
        loss = float(state.loss) if np.isfinite(state.loss) else None
        numbers = {"steps": int(state.step), "loss": loss, **sizes, **scores, "kernels": kernels, **measured}
        return "checkpoint", {**numbers, **class_metrics(layers, y)}

    def _of_all_examples(self, model, seed) -> dict[str, Any]:
        """Estimate the numbers of the kernel of all training examples, with their standard errors."""
        X, y = self.states.examples.training
        found: dict[str, float] = {}
        for images in IMAGES:
            X_seen = X if images == "clean" else self._adversarial(model, X, y, seed)
            K = gram_operator("trace", model, X_seen, memory=self.experiment.memory)
            found |= {f"{images}_{name}": value for name, value in kernel_metrics(K, y).items()}
        errors = {name: cast(Estimate, value).standard_error for name, value in found.items()}
        return {name: float(value) for name, value in found.items()} | {"standard_errors": errors}

    def closed_form(self, seed: int, regime: str, epoch: float) -> Measured:
        """Score kernel regression on the kernel set."""
        model = self.model(seed, regime, epoch)
        predictor = self._regression(model, self.kernel(seed, regime, epoch, model))
        return "closed form", self._scores(
            predictor, seed, self._rows_of(predictor), predictor_name(regime, epoch, "closed-form")
        )

    def stage_two(self, seed: int, regime: str, epoch: float, dynamics: str, training: str) -> Measured:
        """Score what training on a kernel, or from it, has made."""
        name = predictor_name(regime, epoch, dynamics, training)
        model = self.states.after_stage_two(seed, name, self.model(seed, regime, epoch), dynamics, training)
        return "stage 2", self._scores(model, seed, name=name, restarts=True)

    def transfer(self, seed: int) -> Measured:
        """Score every model (columns) on the adversarial examples of every model (rows)."""
        X, y = self.states.examples.test
        models = list(self._models(seed))
        matrix = []
        for name, model, rows in models:
            X_adv = self._kept_adversarial(seed, name)
            if X_adv is None:
                X_adv = self._adversarial(model, X, y, seed, rows, name)
            matrix.append([accuracy(other, X_adv, y, size) for _, other, size in models])
        names = [name for name, _, _ in models]
        clean = [accuracy(model, X, y, rows) for _, model, rows in models]
        return "transfer", {"names": names, "clean": clean, "matrix": matrix}

    def features(self, seed: int, regime: str, epoch: float) -> Measured:
        """Score the kernel's leading eigenfeatures at the end of stage 1, clean and attacked."""
        experiment, model = self.experiment, self.model(seed, regime, epoch)
        X_test, y_test = (values[: n_matrix(experiment.n_kernel)] for values in self.states.examples.test)
        found = ntk_features(
            "trace",
            model,
            *self.states.examples.kernel,
            X_test,
            y_test,
            experiment.test_attack,
            n_features=experiment.n_features,
            key=self.states.key(seed, 5),
            K=self.kernel(seed, regime, epoch, model),
            memory=experiment.memory,
        )
        names = ("eigenvalues", "usefulness", "robustness")
        return "features", {name: getattr(found, name).tolist() for name in names}

    def images(self, seed: int, regime: str, epoch: float) -> Measured:
        """Draw what maximises each class's regression direction, and its leading eigenvector."""
        model, (X, y) = self.model(seed, regime, epoch), self.states.examples.kernel
        K = np.asarray(gram("class", model, X, memory=self.experiment.memory))
        drawn, numbers = {}, {}
        for name, coefficients in (("regression", regression_coefficients), ("eigenvector", class_eigenvectors)):
            found = eigenfeature_images(model, X, coefficients(K, y), n_steps=IMAGE_STEPS)
            correlations = class_correlations(found.images, *self.states.examples.training)
            drawn[name] = found.images
            numbers[f"{name}_cosines"] = found.cosines.tolist()
            numbers[f"{name}_correlation"] = float(np.diag(correlations).mean())
            numbers[f"{name}_recognised"] = float(np.mean(correlations.argmax(1) == np.arange(len(correlations))))
        self.run.save(drawn, "images", f"seed-{seed}", f"{regime}.safetensors")
        return "images", numbers

    # their parts

    def _scores(self, model, seed, rows=None, name=None, restarts=False) -> dict[str, float]:
        """Measure clean and robust accuracy, and that under several restarts of the attack."""
        rows = network_rows() if rows is None else rows
        X, y = self.states.examples.test
        X_adv = self._adversarial(model, X, y, seed, rows, name)
        found = {"clean": accuracy(model, X, y, rows), "robust": accuracy(model, X_adv, y, rows)}
        if not restarts:
            return found
        # what fell already stays down
        standing = evaluate(model, X_adv, rows).argmax(1) == y
        if standing.any():
            attack = replace(self.experiment.test_attack, n_restarts=RESTARTS)
            X, y, key = X[standing], y[standing].astype(np.int32), self.states.key(seed, 4)
            X_adv = attack_in_tiles(attack, model, X, y, key=key, rows=rows)
            standing[standing] = evaluate(model, X_adv, rows).argmax(1) == y
        return found | {"robust_restarts": float(np.mean(standing))}

    def _adversarial(self, model, X, y, seed, rows=None, name=None) -> np.ndarray:
        """Attack examples, and keep what comes out under ``name`` if there is one."""
        attack, key = self.experiment.test_attack, self.states.key(seed, 2)
        rows = network_rows() if rows is None else rows
        X_adv = attack_in_tiles(attack, model, X, y.astype(np.int32), key=key, rows=rows)
        if name is not None:
            self.run.save({"X": X_adv}, *adversarial_file(seed, name))
        return X_adv

    def _kept_adversarial(self, seed, name) -> np.ndarray | None:
        """Read the examples that were made before, or return None."""
        try:
            like = {"X": self.states.examples.test[0]}
            return np.asarray(self.run.load(like, *adversarial_file(seed, name))["X"])
        except FileNotFoundError:
            return None
        except DamagedCheckpointError as error:
            warnings.warn(f"{error}; the examples are made again", RuntimeWarning, stacklevel=2)
            return None

    def _models(self, seed) -> Iterator[tuple[str, Callable, int]]:
        """Yield name, model and rows of a tile of everything that stage 2 has made."""
        for regime, epoch in self.experiment.starts:
            model = self.model(seed, regime, epoch)
            yield predictor_name(regime, epoch, "network"), model, network_rows()
            predictor = self._regression(model, self.kernel(seed, regime, epoch, model))
            yield predictor_name(regime, epoch, "closed-form"), predictor, self._rows_of(predictor)
            for how in product(self.experiment.dynamics, self.experiment.stage2):
                name = predictor_name(regime, epoch, *how)
                yield name, self.states.after_stage_two(seed, name, model, *how), network_rows()

    def _rows_of(self, predictor) -> int:
        X = self.states.examples.test[0]
        return machine_rows(predictor, X.shape[1:], X.dtype, parse_memory(self.experiment.memory))

    def _regression(self, model, K):
        X, y = self.states.examples.kernel
        targets = np.eye(self.states.examples.n_outputs)[y]
        offset = targets.mean(0)
        dual = solve(K, targets - offset, alpha=self.experiment.alpha)
        return make_predictor(resolve_kernel("trace"), model, X, dual, offset, memory=self.experiment.memory)


def adversarial_names(record: Record, starts: Iterable[tuple[str, float]]) -> list[str]:
    """Return the names under which a task keeps its adversarial examples."""
    if record["kind"] in ("closed form", "stage 2"):
        return [record["task"].partition("/")[2]]
    # the examples of the networks that the others start from
    return [predictor_name(*start, "network") for start in starts] if record["kind"] == "transfer" else []


def kernel_store(run: RunDirectory, seed: int, regime: str, epoch: float, images: str) -> NamedStore:
    """Return where the kernel of a state is, or will be."""
    name = kernel_name(seed, regime, epoch, images)
    return NamedStore(run.joined("kernels", name), digest(run.place("kernels", name))[:32])


def adversarial_file(seed, name) -> tuple[str, ...]:
    """Return where the examples are that were made for a model."""
    return "adversarial", f"seed-{seed}", f"{name.replace('/', '-')}.safetensors"


def _state_of(record) -> tuple[int, str, float]:
    return record["seed"], record["regime"], record["epoch"]


def predictor_name(regime: str, epoch: float, *how: str) -> str:
    """Name what was made of a network of stage 1, in every seed."""
    return "/".join((regime, f"{epoch:g}", *how))


def accuracy(model: Callable, X: np.ndarray, y: np.ndarray, rows: int | None = None) -> float:
    """Return the share of inputs (n, ...) whose highest score is that of their label."""
    return float(np.mean(evaluate(model, X, rows or network_rows()).argmax(1) == y))
