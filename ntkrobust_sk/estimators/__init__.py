"""The scikit-learn estimators: networks trained, kernel machines on them, and features of their tangent space."""

from .kernel_machines import EmpiricalNTKClassifier as EmpiricalNTKClassifier
from .kernel_machines import EmpiricalNTKRegressor as EmpiricalNTKRegressor
from .kernel_machines_cv import EmpiricalNTKClassifierCV as EmpiricalNTKClassifierCV
from .kernel_machines_cv import EmpiricalNTKRegressorCV as EmpiricalNTKRegressorCV
from .robust_features import RobustFeatureSelector as RobustFeatureSelector
from .tangent_features import TangentFeatures as TangentFeatures
from .trainer import AdversarialKernelTrainer as AdversarialKernelTrainer
