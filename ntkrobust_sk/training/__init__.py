"""Training as a generator of states, kept on disk where they are to be; checkpoints."""

from .checkpoints import DamagedCheckpointError, load_checkpoint, save_checkpoint
from .loop import train
from .optimizers import averaging, sgd
from .resumable import Stage, kept_states
from .state import TrainingDivergedError, TrainState, averaged, initial_state

__all__ = [
    "DamagedCheckpointError",
    "Stage",
    "TrainState",
    "TrainingDivergedError",
    "averaged",
    "averaging",
    "initial_state",
    "kept_states",
    "load_checkpoint",
    "save_checkpoint",
    "sgd",
    "train",
]
