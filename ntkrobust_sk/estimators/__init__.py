"""The scikit-learn estimators: networks trained, kernel machines on them, and features of their tangent space."""

from .kernel_machines import EmpiricalNTKClassifier, EmpiricalNTKRegressor
from .robust_features import RobustFeatureSelector
from .tangent_features import TangentFeatures
from .trainer import AdversarialKernelTrainer

__all__ = [
    "AdversarialKernelTrainer",
    "EmpiricalNTKClassifier",
    "EmpiricalNTKRegressor",
    "RobustFeatureSelector",
    "TangentFeatures",
]
