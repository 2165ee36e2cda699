"""The tangent space of a network: its linearisation, and gradients of its outputs, example by example."""

from .linearization import DYNAMICS as DYNAMICS
from .linearization import Linearized as Linearized
from .linearization import linearize as linearize
from .per_example import contract_gradients as contract_gradients
from .per_example import layer_gradients as layer_gradients
from .per_example import per_example_gradients as per_example_gradients
