"""The paper's two-stage experiment: how kernels evolve in training, and what they are good for."""

from .claims import Claim as Claim
from .claims import check_claims as check_claims
from .experiment import KernelEvolution as KernelEvolution
from .experiment import load_evolution as load_evolution
from .experiment import load_experiment as load_experiment
from .presets import PRESETS as PRESETS
from .presets import preset as preset
from .result_lines import DamagedRunError as DamagedRunError
from .results import EvolutionResult as EvolutionResult
from .results import read_kernel as read_kernel
from .run_directory import RunDirectory as RunDirectory
from .run_directory import RunMismatchError as RunMismatchError
from .trained import load_trained as load_trained
