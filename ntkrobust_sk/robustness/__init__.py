"""Estimators under attack: robust accuracy, distances, transfer, certificates, and whether to believe them."""

from .distances import minimal_perturbations as minimal_perturbations
from .intervals import clopper_pearson as clopper_pearson
from .report import RobustnessReport as RobustnessReport
from .report import robustness_report as robustness_report
from .sanity_checks import check_evaluation as check_evaluation
from .scoring import make_robust_scorer as make_robust_scorer
from .scoring import perturb as perturb
from .scoring import robust_accuracy as robust_accuracy
from .smoothing import Certificates as Certificates
from .smoothing import certified_accuracy as certified_accuracy
from .smoothing import certify as certify
from .transfer import TransferMatrix as TransferMatrix
from .transfer import transfer_matrix as transfer_matrix
