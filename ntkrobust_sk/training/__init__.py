"""Training as a generator of states, kept on disk where they are to be; checkpoints."""

from .checkpoints import DamagedCheckpointError as DamagedCheckpointError
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import save_checkpoint as save_checkpoint
from .loop import train as train
from .optimizers import averaging as averaging
from .optimizers import sgd as sgd
from .resumable import TrainingConfig as TrainingConfig
from .resumable import checkpointed_states as checkpointed_states
from .state import TrainingDivergedError as TrainingDivergedError
from .state import TrainState as TrainState
from .state import averaged as averaged
from .state import initial_state as initial_state
