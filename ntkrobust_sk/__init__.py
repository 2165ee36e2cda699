"""Empirical neural tangent kernels, adversarial training and attacks on kernel machines."""

from .adapters import from_equinox, from_flax, from_haiku, from_nnx, from_stax
from .attacks import FGSM, PGD, Clean
from .datasets import (
    class_balanced_indices,
    load_cifar10,
    load_cifar100,
    load_digits_images,
    load_fashion_mnist,
    load_mnist,
)
from .features import TangentFeatures
from .gram import gram
from .kernels import ClassNTK, FullNTK, PseudoNTK, TraceNTK
from .machines import EmpiricalNTKClassifier, EmpiricalNTKRegressor
from .metrics import (
    effective_rank,
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    kernel_velocity,
    polar_dynamics,
    target_alignment,
    top_mass,
)
from .networks import CNN, MLP, Model, Network, Stateless, Variables
from .projections import ProjectedNTK
from .resnet import ResNet18
from .scoring import make_robust_scorer, robust_accuracy
from .solvers import Cholesky, Eigh, InaccurateSolveError, SingularGramError, solve
from .tangent import Linearized, linearize
from .trainer import AdversarialKernelTrainer
from .training import TrainingDivergedError, TrainState, train

__version__ = "0.1.0.dev0"

__all__ = [
    "CNN",
    "FGSM",
    "MLP",
    "PGD",
    "AdversarialKernelTrainer",
    "Cholesky",
    "ClassNTK",
    "Clean",
    "Eigh",
    "EmpiricalNTKClassifier",
    "EmpiricalNTKRegressor",
    "FullNTK",
    "InaccurateSolveError",
    "Linearized",
    "Model",
    "Network",
    "ProjectedNTK",
    "PseudoNTK",
    "ResNet18",
    "SingularGramError",
    "Stateless",
    "TangentFeatures",
    "TraceNTK",
    "TrainState",
    "TrainingDivergedError",
    "Variables",
    "class_balanced_indices",
    "effective_rank",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_nnx",
    "from_stax",
    "gram",
    "kernel_alignment",
    "kernel_distance",
    "kernel_specialization",
    "kernel_velocity",
    "linearize",
    "load_cifar10",
    "load_cifar100",
    "load_digits_images",
    "load_fashion_mnist",
    "load_mnist",
    "make_robust_scorer",
    "polar_dynamics",
    "robust_accuracy",
    "solve",
    "target_alignment",
    "top_mass",
    "train",
]
