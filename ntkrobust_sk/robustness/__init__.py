"""Estimators under attack: robust accuracy, distances, transfer, certificates, and whether to believe them."""

from .distances import minimal_perturbations
from .intervals import clopper_pearson
from .report import RobustnessReport, robustness_report
from .sanity_checks import check_evaluation
from .scoring import make_robust_scorer, perturb, robust_accuracy
from .smoothing import Certificates, certified_accuracy, certify
from .transfer import TransferMatrix, transfer_matrix

__all__ = [
    "Certificates",
    "RobustnessReport",
    "TransferMatrix",
    "certified_accuracy",
    "certify",
    "check_evaluation",
    "clopper_pearson",
    "make_robust_scorer",
    "minimal_perturbations",
    "perturb",
    "robust_accuracy",
    "robustness_report",
    "transfer_matrix",
]
