"""What a kernel has learned: measures on Gram matrices, and eigenvectors as features."""

from .eigenfeatures import NTKFeatures as NTKFeatures
from .eigenfeatures import ntk_features as ntk_features
from .images import EigenfeatureImages as EigenfeatureImages
from .images import class_eigenvectors as class_eigenvectors
from .images import eigenfeature_images as eigenfeature_images
from .images import regression_coefficients as regression_coefficients
from .metrics import kernel_alignment as kernel_alignment
from .metrics import kernel_distance as kernel_distance
from .metrics import kernel_specialization as kernel_specialization
from .metrics import kernel_velocity as kernel_velocity
from .metrics import polar_dynamics as polar_dynamics
from .metrics import target_alignment as target_alignment
from .sketches import Eigenpairs as Eigenpairs
from .sketches import Estimate as Estimate
from .sketches import Probes as Probes
from .spectra import effective_rank as effective_rank
from .spectra import kernel_norm as kernel_norm
from .spectra import kernel_trace as kernel_trace
from .spectra import top_eigenpairs as top_eigenpairs
from .spectra import top_mass as top_mass
