"""Empirical neural tangent kernels, adversarial training and attacks on kernel machines."""

# before the imports, since modules read it; a checkout that is not installed has it too
__version__ = "0.1.0.dev0"

from .analysis import (
    effective_rank,
    eigenfeature_images,
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    kernel_velocity,
    ntk_features,
    polar_dynamics,
    target_alignment,
    top_mass,
)
from .attacks import APGD, DDN, FAB, FGSM, FMN, NFGSM, PGD, AutoAttack, Box, Clean, Square
from .checks import check_evaluation
from .datasets import (
    class_balanced_indices,
    load_cifar10,
    load_cifar100,
    load_digits_images,
    load_fashion_mnist,
    load_mnist,
)
from .displays import (
    EvolutionDisplay,
    ImageGridDisplay,
    KernelDistanceDisplay,
    RobustnessCurveDisplay,
    SpecializationDisplay,
    SpectrumDisplay,
    TransferDisplay,
)
from .estimators import (
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    RobustFeatureSelector,
    TangentFeatures,
)
from .evaluation import (
    RobustnessReport,
    TransferMatrix,
    minimal_perturbations,
    robustness_report,
    transfer_matrix,
)
from .evolution import KernelEvolution, load_evolution
from .evolution_result import EvolutionResult
from .kernels import ClassNTK, FullNTK, ProjectedNTK, PseudoNTK, TraceNTK, gram
from .networks import (
    CNN,
    MLP,
    Model,
    Network,
    Normalized,
    ResNet18,
    Stateless,
    Variables,
    from_equinox,
    from_flax,
    from_haiku,
    from_nnx,
    from_stax,
)
from .report import write_report
from .scoring import make_robust_scorer, perturb, robust_accuracy
from .sklearn_models import as_model
from .smoothing import certified_accuracy, certify
from .solvers import Cholesky, Eigh, InaccurateSolveError, SingularGramError, solve
from .tangent import Linearized, linearize
from .training import TrainingDivergedError, TrainState, train

__all__ = [
    "APGD",
    "CNN",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "MLP",
    "NFGSM",
    "PGD",
    "AdversarialKernelTrainer",
    "AutoAttack",
    "Box",
    "Cholesky",
    "ClassNTK",
    "Clean",
    "Eigh",
    "EmpiricalNTKClassifier",
    "EmpiricalNTKRegressor",
    "EvolutionDisplay",
    "EvolutionResult",
    "FullNTK",
    "ImageGridDisplay",
    "InaccurateSolveError",
    "KernelDistanceDisplay",
    "KernelEvolution",
    "Linearized",
    "Model",
    "Network",
    "Normalized",
    "ProjectedNTK",
    "PseudoNTK",
    "ResNet18",
    "RobustFeatureSelector",
    "RobustnessCurveDisplay",
    "RobustnessReport",
    "SingularGramError",
    "SpecializationDisplay",
    "SpectrumDisplay",
    "Square",
    "Stateless",
    "TangentFeatures",
    "TraceNTK",
    "TrainState",
    "TrainingDivergedError",
    "TransferDisplay",
    "TransferMatrix",
    "Variables",
    "as_model",
    "certified_accuracy",
    "certify",
    "check_evaluation",
    "class_balanced_indices",
    "effective_rank",
    "eigenfeature_images",
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
    "load_evolution",
    "load_fashion_mnist",
    "load_mnist",
    "make_robust_scorer",
    "minimal_perturbations",
    "ntk_features",
    "perturb",
    "polar_dynamics",
    "robust_accuracy",
    "robustness_report",
    "solve",
    "target_alignment",
    "top_mass",
    "train",
    "transfer_matrix",
    "write_report",
]
