"""Training as a generator of states, kept on disk where they are to be; checkpoints."""

from .augmentations import Crop as Crop
from .augmentations import Flip as Flip
from .checkpoints import DamagedCheckpointError as DamagedCheckpointError
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import save_checkpoint as save_checkpoint
from .loop import train as train
from .objectives import AWP as AWP
from .objectives import MART as MART
from .objectives import TRADES as TRADES
from .objectives import AdversarialTraining as AdversarialTraining
from .objectives import TrainingLoss as TrainingLoss
from .optimizers import averaging as averaging
from .optimizers import sgd as sgd
from .resumable import TrainingConfig as TrainingConfig
from .resumable import checkpointed_states as checkpointed_states
from .schedules import Cosine as Cosine
from .schedules import MultiStep as MultiStep
from .state import TrainingDivergedError as TrainingDivergedError
from .state import TrainState as TrainState
from .state import averaged as averaged
from .state import initial_state as initial_state
