"""Empirical tangent kernels: what they are, their Gram matrices in memory and on disk, and predictors on them."""

from .gram_matrix import gram
from .neural_tangents_bridge import import_neural_tangents
from .ntk import KERNELS, ClassNTK, FullNTK, PseudoNTK, TangentKernel, TraceNTK, resolve_kernel
from .plan import Plan, fixed_plan, make_plan
from .predictors import DualPredictor, PrimalPredictor, make_predictor
from .projected import ProjectedNTK
from .store import DamagedTileError, GramStore, read_gram
from .store_header import StoreMismatchError

__all__ = [
    "KERNELS",
    "ClassNTK",
    "DamagedTileError",
    "DualPredictor",
    "FullNTK",
    "GramStore",
    "Plan",
    "PrimalPredictor",
    "ProjectedNTK",
    "PseudoNTK",
    "StoreMismatchError",
    "TangentKernel",
    "TraceNTK",
    "fixed_plan",
    "gram",
    "import_neural_tangents",
    "make_plan",
    "make_predictor",
    "read_gram",
    "resolve_kernel",
]
