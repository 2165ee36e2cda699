"""Networks and models: frozen configuration on one side, arrays on the other."""

from .adapters import from_equinox, from_haiku, from_stax
from .feedforward import CNN, MLP
from .flax_adapters import from_flax, from_nnx
from .layers import ACTIVATIONS
from .model import Model, Network, Variables, check_model, require_model
from .named import NETWORKS, initial_model
from .resnet import ResNet18
from .wrappers import Normalized, Stateless

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "NETWORKS",
    "Model",
    "Network",
    "Normalized",
    "ResNet18",
    "Stateless",
    "Variables",
    "check_model",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_nnx",
    "from_stax",
    "initial_model",
    "require_model",
]
