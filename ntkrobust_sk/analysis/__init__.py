"""What a kernel has learned: measures on Gram matrices, and eigenvectors as features."""

from .eigenfeature_images import (
    EigenfeatureImages,
    class_eigenvectors,
    eigenfeature_images,
    regression_coefficients,
)
from .eigenfeatures import NTKFeatures, ntk_features
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

__all__ = [
    "EigenfeatureImages",
    "NTKFeatures",
    "class_eigenvectors",
    "effective_rank",
    "eigenfeature_images",
    "kernel_alignment",
    "kernel_distance",
    "kernel_specialization",
    "kernel_velocity",
    "ntk_features",
    "polar_dynamics",
    "regression_coefficients",
    "target_alignment",
    "top_mass",
]
