"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores."""

from .conversion import ADAPTERS as ADAPTERS
from .conversion import COMPOSITIONS as COMPOSITIONS
from .conversion import MACHINES as MACHINES
from .conversion import as_model as as_model
