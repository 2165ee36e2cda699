"""Empirical neural tangent kernels, adversarial training and attacks on kernel machines."""

from .attacks import FGSM, PGD, Clean
from .datasets import (
    class_balanced_indices,
    load_cifar10,
    load_cifar100,
    load_digits_images,
    load_fashion_mnist,
    load_mnist,
)
from .estimators import (
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    TangentFeatures,
)
from .gram import gram
from .kernels import ClassNTK, FullNTK, PseudoNTK, TraceNTK
from .networks import CNN, MLP, Model, Network, Stateless, Variables
from .resnet import ResNet18
from .scoring import make_robust_scorer, robust_accuracy
from .solvers import Cholesky, Eigh, InaccurateSolveError, SingularGramError, solve
from .tangent import Linearized, linearize
from .training import TrainingDivergedError, TrainState, train

__version__ = "0.1.0.dev0"
