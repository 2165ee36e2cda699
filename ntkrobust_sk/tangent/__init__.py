"""The tangent space of a network: its linearisation, and gradients of its outputs, example by example."""

from .linearization import DYNAMICS, Linearized, linearize
from .per_example import contract_gradients, layer_gradients, per_example_gradients

__all__ = ["DYNAMICS", "Linearized", "contract_gradients", "layer_gradients", "linearize", "per_example_gradients"]
