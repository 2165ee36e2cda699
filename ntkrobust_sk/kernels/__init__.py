"""Empirical tangent kernels: what they are, their Gram matrices in memory and on disk, and predictors on them."""

from .diagonal import kernel_diag as kernel_diag
from .gram_matrix import gram as gram
from .infinite import InfiniteNTK as InfiniteNTK
from .linear_operator import GramOperator as GramOperator
from .neural_tangents_bridge import import_neural_tangents as import_neural_tangents
from .ntk import KERNELS as KERNELS
from .ntk import ClassNTK as ClassNTK
from .ntk import FullNTK as FullNTK
from .ntk import PseudoNTK as PseudoNTK
from .ntk import TangentKernel as TangentKernel
from .ntk import TraceNTK as TraceNTK
from .ntk import resolve_kernel as resolve_kernel
from .operator import gram_operator as gram_operator
from .plan import Plan as Plan
from .plan import fixed_plan as fixed_plan
from .plan import make_plan as make_plan
from .predictors import DualPredictor as DualPredictor
from .predictors import PrimalPredictor as PrimalPredictor
from .predictors import make_predictor as make_predictor
from .projected import ProjectedNTK as ProjectedNTK
from .store import DamagedTileError as DamagedTileError
from .store import GramStore as GramStore
from .store import read_gram as read_gram
from .store_header import StoreMismatchError as StoreMismatchError
from .stored_operator import open_gram as open_gram
