"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores.

Each family of adapters enters itself into the registry when it is imported.
"""

from . import compositions as compositions
from . import discriminants as discriminants
from . import ensembles as ensembles
from . import gaussian_processes as gaussian_processes
from . import kernel_machines as kernel_machines
from . import linear as linear
from . import piecewise as piecewise
from . import transformers as transformers
from .conversion import as_model as as_model
from .registry import ADAPTERS as ADAPTERS
from .registry import COMPOSITIONS as COMPOSITIONS
from .registry import MACHINES as MACHINES
from .registry import DifferentiableCovariance as DifferentiableCovariance
from .registry import DifferentiableEstimator as DifferentiableEstimator
from .registry import adapts as adapts
