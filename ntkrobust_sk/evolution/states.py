"""The networks of an experiment: the examples that they learn from, and their states, found on disk or trained."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from ..attacks.pgd import Clean
from ..datasets.splits import Splits, chosen_indices
from ..networks.model import Model
from ..networks.named import initial_model
from ..networks.precision import with_precision
from ..networks.wrappers import Normalized
from ..tangent.linearization import linearize
from ..training.checkpoints import DamagedCheckpointError, load_checkpoint
from ..training.resumable import TrainingConfig, checkpointed_states, state_file
from ..training.state import TrainState
from .imported import resolved
from .records import Record
from .run_directory import RunDirectory
from .setting_checks import n_matrix

if TYPE_CHECKING:
    from .experiment import KernelEvolution


class Examples(NamedTuple):
    """The examples of an experiment by their purpose.

    Attributes
    ----------
    training, test, kernel : tuple of array (n, ...) and int array (n,)
        Inputs and labels; kernels are measured on ``kernel``, a part of the training examples in the order of
        their classes.
    validation : tuple or None
        Training examples held out for early stopping.
    """

    training: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    kernel: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None

    @property
    def n_outputs(self) -> int:
        """Count the classes."""
        return int(self.training[1].max()) + 1


def choose_examples(experiment: KernelEvolution, splits: Splits) -> Examples:
    """Hold validation examples out of the training examples, and choose the kernel set among the others."""
    X, y, seed = splits.X, splits.y, experiment.random_state
    validation = None
    if experiment.n_validation:
        held_out = chosen_indices(y, experiment.n_validation, seed)
        validation = X[held_out], y[held_out]
        left = np.setdiff1d(np.arange(len(y)), held_out)
        X, y = X[left], y[left]
    chosen = chosen_indices(y, min(n_matrix(experiment.n_kernel), len(y)), seed)
    # by class, so that a kernel shows its blocks
    chosen = chosen[np.argsort(y[chosen], kind="stable")]
    return Examples((X, y), (splits.X_test, splits.y_test), (X[chosen], y[chosen]), validation)


def own_epochs(experiment: KernelEvolution, regime: str) -> list[float]:
    """Return the epochs at which a regime has states of its own: "flip" has those after the benign ones."""
    return [epoch for epoch in experiment.checkpoints if regime != "flip" or epoch > experiment.flips_at]


def state_folder(seed: int, name: str) -> tuple[str, ...]:
    """Return the place of a regime's states in a run, or of those of ``stage2/...``."""
    return "checkpoints", f"seed-{seed}", *name.split("/")


class States:
    """The networks of a run: at each epoch of stage 1, and at the end of stage 2.

    They follow from settings and examples alone: nothing that is measured has a say here.

    Parameters
    ----------
    experiment : KernelEvolution
    run : RunDirectory
        Where states are kept, and found again.
    splits : Splits
    """

    def __init__(self, experiment: KernelEvolution, run: RunDirectory, splits: Splits):
        self.experiment, self.run, self.splits = experiment, run, splits
        self.examples = choose_examples(experiment, splits)
        self._first: dict[int, TrainState] = {}
        self._walks: dict[tuple[int, str], Iterator[tuple[float, TrainState]]] = {}

    def key(self, seed: int, *purpose: int) -> jax.Array:
        """Return the PRNG key of a seed for one purpose."""
        return reduce(jax.random.fold_in, (seed, *purpose), jax.random.key(self.experiment.random_state))

    def first_model(self, seed: int) -> Model:
        """Make the network with the seed's initial weights, the same for all regimes."""
        X, _ = self.examples.training
        model = initial_model(
            resolved(self.experiment.network), X.shape[1:], self.examples.n_outputs, self.key(seed, 0)
        )
        if self.experiment.normalize:
            axes = tuple(range(X.ndim - 1))
            mean, std = X.mean(axes, dtype=np.float64), X.std(axes, dtype=np.float64)
            network = Normalized(model.network, tuple(mean.tolist()), tuple(std.tolist()))
            model = Model(network, model.variables)
        return with_precision(model, self.experiment.precision)

    def stage(self, training: str, learning_rate: float | None, **options) -> TrainingConfig:
        """Say how "benign" training goes; any other is adversarial."""
        experiment = self.experiment
        attacks = () if training == "benign" else (experiment.train_attack,)
        attacks = (Clean(), *attacks) if experiment.clean_step or not attacks else attacks
        common = {name: getattr(experiment, name) for name in ("optimizer", "momentum", "batch_size")}
        return TrainingConfig(attacks, learning_rate, **common, **options)

    def at(self, seed: int, regime: str, epoch: float) -> TrainState:
        """Find the state of a regime at an epoch, or train up to it."""
        found = self._on_disk(seed, regime, epoch)
        if found is not None:
            return found
        started = self._walks.pop((seed, regime), iter(()))
        for walk in (started, self._walk(seed, regime)):
            for at, state in walk:
                if at == epoch:
                    self._walks[seed, regime] = walk
                    return state
        raise LookupError(f"epoch {epoch:g} of {regime} is not kept")

    def _on_disk(self, seed, regime, epoch) -> TrainState | None:
        """Read one state; None where there is none, or a damaged one, of which the walk tells."""
        file = self.file(seed, regime, epoch)
        if epoch not in own_epochs(self.experiment, regime) or not file.exists():
            return None
        try:
            return self.read(seed, regime, epoch)
        except DamagedCheckpointError:
            return None

    def _walk(self, seed, regime):
        """Yield the epochs and states of a regime in order, trained where they are not on disk."""
        experiment = self.experiment
        flipped = regime == "flip"
        start = self.at(seed, "benign", experiment.flips_at) if flipped else self._first_state(seed)
        return self._kept(seed, regime, self._first_stage(regime), start, own_epochs(experiment, regime))

    def _first_stage(self, regime) -> TrainingConfig:
        experiment = self.experiment
        return self.stage(regime, experiment.learning_rate, average_decay=experiment.average_decay)

    def _first_state(self, seed) -> TrainState:
        """Return the state before the first step, the same for all regimes of a seed."""
        if seed not in self._first:
            stage = self._first_stage("benign")
            self._first[seed] = stage.first_state(self.first_model(seed), self.key(seed, 1))
        return self._first[seed]

    def after_stage_two(self, seed: int, name: str, model: Model, dynamics: str, training: str) -> Model:
        """Return what stage 2 makes of a model, trained where its state is not on disk.

        Parameters
        ----------
        name : str
            The task's name without its seed.
        model : Model
            Where stage 2 starts.
        dynamics, training : str
        """
        stage, start = self._second_stage(seed, model, dynamics, training)
        epochs = [float(epoch) for epoch in range(self.experiment.stage2_epochs + 1)]
        *_, (_, state) = self._kept(seed, f"stage2/{name}", stage, start, epochs, keep_all=False)
        return state.model

    def _second_stage(self, seed, model, dynamics, training) -> tuple[TrainingConfig, TrainState]:
        """Say how stage 2 goes, and what it starts from."""
        experiment = self.experiment
        if dynamics != "standard":
            model = linearize(model, centered=dynamics == "centered")
        stage = self.stage(training, experiment.stage2_learning_rate, freeze_state=experiment.freeze_state)
        return stage, stage.first_state(model, self.key(seed, 3))

    def read(self, seed: int, regime: str, epoch: float) -> TrainState:
        """Read a state of stage 1, which is not trained where it is not there."""
        return self._read(seed, regime, epoch, self._first_state(seed))

    def read_after_stage_two(self, seed: int, name: str, model: Model, dynamics: str, training: str) -> Model:
        """Read what stage 2 has made; arguments as for :meth:`after_stage_two`."""
        _, start = self._second_stage(seed, model, dynamics, training)
        return self._read(seed, f"stage2/{name}", self.experiment.stage2_epochs, start).model

    def _read(self, seed, name, epoch, like) -> TrainState:
        file = self.file(seed, name, epoch)
        return load_checkpoint(file, like, self.run.place(*self.folder(seed, name), file.name))

    def _kept(self, seed, name, stage, start, epochs, keep_all=True):
        folder = self.folder(seed, name)
        path, place = self.run.path.joinpath(*folder), self.run.place(*folder)
        return checkpointed_states(
            path, stage, start, *self.examples.training, epochs, keep_all=keep_all, of=place
        )

    def folder(self, seed: int, name: str) -> tuple[str, ...]:
        """Return the place of a regime's states in the run, or of those of ``stage2/...``."""
        return state_folder(seed, name)

    def file(self, seed: int, name: str, epoch: float) -> Path:
        """Return where the state at an epoch is, of a regime or of ``stage2/...``."""
        return state_file(self.run.path.joinpath(*self.folder(seed, name)), epoch)

    def file_of(self, record: Record) -> Path | None:
        """Return the file of the state that a task has measured, if that is its own."""
        if record["kind"] == "checkpoint":
            name, epoch = record["regime"], record["epoch"]
        elif record["kind"] == "stage 2":
            name, epoch = f"stage2/{record['task'].partition('/')[2]}", self.experiment.stage2_epochs
        else:
            return None
        return self.file(record["seed"], name, epoch)
