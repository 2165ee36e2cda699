"""Figures, by scikit-learn's convention: ``from_estimator`` or ``from_evolution``, and ``plot(ax=None)``.

``plot`` returns the display, with ``ax_`` and ``figure_`` set. matplotlib is imported when something is drawn.
"""

from .evolution import EvolutionDisplay
from .images import ImageGridDisplay
from .kernels import KernelDistanceDisplay, SpecializationDisplay, SpectrumDisplay
from .robustness import RobustnessCurveDisplay, TransferDisplay

__all__ = [
    "EvolutionDisplay",
    "ImageGridDisplay",
    "KernelDistanceDisplay",
    "RobustnessCurveDisplay",
    "SpecializationDisplay",
    "SpectrumDisplay",
    "TransferDisplay",
]
