"""A stage of training whose states are kept: trained where they are missing, read where they are not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from ..networks.model import Model
from .checkpoints import DamagedCheckpointError, load_checkpoint, save_checkpoint
from .loop import train
from .optimizers import Averaged, averaging, resolve_optimizer
from .state import TrainState, initial_state, with_hyperparameters

if TYPE_CHECKING:
    import optax


@dataclass(frozen=True)
class TrainingConfig:
    """The way in which a stage is trained.

    Attributes
    ----------
    attacks : tuple
        As for :func:`~ntkrobust_sk.train`: one update per batch and attack.
    learning_rate, momentum : float or None
        As for :func:`~ntkrobust_sk.training.optimizers.resolve_optimizer`.
    batch_size : int
    freeze_state : bool
        Keep batch-norm statistics as they are.
    average_decay : float or None
        Of the moving average of the parameters; None keeps none.
    optimizer : {"sgd", "adam", "adamw"} or optax.GradientTransformation
    """

    attacks: tuple
    learning_rate: float | None
    momentum: float | None = None
    batch_size: int = 128
    freeze_state: bool = False
    average_decay: float | None = None
    optimizer: Any = "sgd"

    @property
    def transformation(self) -> optax.GradientTransformation:
        """Return the optimiser, with or without an average."""
        optimizer, _ = self._resolved()
        return optimizer if self.average_decay is None else averaging(optimizer, self.average_decay)

    def _resolved(self):
        return resolve_optimizer(self.optimizer, learning_rate=self.learning_rate, momentum=self.momentum)

    def first_state(self, model: Model, key: jax.Array) -> TrainState:
        """Return the state before the first step."""
        optimizer, values = self._resolved()
        state = initial_state(model, key, optimizer)
        state = with_hyperparameters(state, **values) if values else state
        if self.average_decay is None:
            return state
        average = Averaged(state.opt_state, model.variables.params, np.int32(0))
        return replace(state, opt_state=jax.device_put(average))


def checkpointed_states(
    folder: Path,
    stage: TrainingConfig,
    start: TrainState,
    X: ArrayLike,
    y: ArrayLike,
    epochs: Sequence[float],
    *,
    keep_all: bool = True,
    of: str = "",
) -> Iterator[tuple[float, TrainState]]:
    """Yield the states at given epochs, each on disk when it is yielded.

    Parameters
    ----------
    folder : Path
        Of this stage alone.
    stage : TrainingConfig
    start : TrainState
    X, y : array
        Training examples.
    epochs : sequence of float
        Rising, none before ``start``.
    keep_all : bool, default=True
        Whether the files of epochs gone by are kept; without them a damaged file means training from ``start``.
    of : str, default=""
        What the states are of, such as a run, seed and regime; files of anything else count as damaged.

    Yields
    ------
    epoch : float
    state : TrainState

    Warns
    -----
    RuntimeWarning
        Naming a file that is damaged; its state is trained again from the last good one.
    """
    files = [state_file(folder, epoch) for epoch in epochs]
    of_files = [f"{of}/{file.name}" for file in files]
    first = 0
    if not keep_all:
        first = next((i for i in reversed(range(len(files))) if files[i].exists()), 0)
        if _read(files[first], start, of_files[first]) is None:
            files[first].unlink(missing_ok=True)
            first = 0
    state, running = start, None
    for i in range(first, len(files)):
        found = _read(files[i], start, of_files[i])
        if found is None:
            running = running or _train(stage, state, X, y, epochs[i:])
            found = next(running)
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(files[i], found, of_files[i])
        else:
            running = None
        state = found
        if not keep_all and i > 0:
            files[i - 1].unlink(missing_ok=True)
        yield epochs[i], state


def state_file(folder: Path, epoch: float) -> Path:
    """Return where the state at an epoch is.

    >>> state_file(Path("benign"), 2.5).as_posix()
    'benign/0002.500.safetensors'
    """
    return folder / f"{epoch:08.3f}.safetensors"


def _train(stage, state, X, y, epochs):
    common = {"optimizer": stage.transformation, "attacks": stage.attacks, "batch_size": stage.batch_size}
    return train(state, X, y, epochs=epochs, freeze_state=stage.freeze_state, **common)


def _read(file, like, of) -> TrainState | None:
    if not file.exists():
        return None
    try:
        return load_checkpoint(file, like, of)
    except DamagedCheckpointError as error:
        warnings.warn(f"{error}; it is computed again from the last good one", RuntimeWarning, stacklevel=3)
        return None
