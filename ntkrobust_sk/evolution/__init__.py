"""The paper's two-stage experiment: how kernels evolve in training, and what they are good for."""

from .claims import Claim, check_claims
from .experiment import PRESETS, KernelEvolution, load_evolution, preset
from .results import EvolutionResult, read_kernel
from .run_directory import DamagedRunError, RunDirectory, RunMismatchError

__all__ = [
    "PRESETS",
    "Claim",
    "DamagedRunError",
    "EvolutionResult",
    "KernelEvolution",
    "RunDirectory",
    "RunMismatchError",
    "check_claims",
    "load_evolution",
    "preset",
    "read_kernel",
]
