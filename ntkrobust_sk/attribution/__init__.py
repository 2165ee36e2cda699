"""Which training points an answer rests on: exactly for kernel machines, by TRAK for trained networks."""

from .kernel_machines import TopContributions as TopContributions
from .kernel_machines import contributions as contributions
from .kernel_machines import top_contributions as top_contributions
from .trak import trak_scores as trak_scores
