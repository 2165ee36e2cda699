"""Networks and models: frozen configuration on one side, arrays on the other."""

from .adapters import from_equinox as from_equinox
from .adapters import from_haiku as from_haiku
from .adapters import from_stax as from_stax
from .chosen_parameters import Restricted as Restricted
from .chosen_parameters import parameter_names as parameter_names
from .chosen_parameters import restricted as restricted
from .feedforward import CNN as CNN
from .feedforward import MLP as MLP
from .flax_adapters import from_flax as from_flax
from .flax_adapters import from_nnx as from_nnx
from .layers import ACTIVATIONS as ACTIVATIONS
from .model import Model as Model
from .model import Network as Network
from .model import Variables as Variables
from .model import check_model as check_model
from .model import require_model as require_model
from .named import NETWORKS as NETWORKS
from .named import initial_model as initial_model
from .precision import MixedPrecision as MixedPrecision
from .resnet import ResNet18 as ResNet18
from .wrappers import Normalized as Normalized
from .wrappers import Stateless as Stateless
