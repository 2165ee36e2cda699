"""Figures, by scikit-learn's convention: ``from_estimator`` or ``from_evolution``, and ``plot(ax=None)``.

``plot`` returns the display, with ``ax_`` and ``figure_`` set. matplotlib is imported when something is drawn.
"""

from .attribution import AttributionDisplay as AttributionDisplay
from .evolution import EvolutionDisplay as EvolutionDisplay
from .images import ImageGridDisplay as ImageGridDisplay
from .kernels import KernelDistanceDisplay as KernelDistanceDisplay
from .kernels import SpecializationDisplay as SpecializationDisplay
from .kernels import SpectrumDisplay as SpectrumDisplay
from .robustness import RobustnessCurveDisplay as RobustnessCurveDisplay
from .robustness import TransferDisplay as TransferDisplay
