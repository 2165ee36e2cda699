"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores."""

from .conversion import ADAPTERS, COMPOSITIONS, MACHINES, as_model

__all__ = ["ADAPTERS", "COMPOSITIONS", "MACHINES", "as_model"]
