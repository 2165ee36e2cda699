"""Spectral filters: what kernel regression makes of each eigenvalue of the Gram matrix.

A filter g gives the dual coefficients g(K) y and the fitted values K g(K) y (Lo Gerfo et al. 2008, *Spectral
algorithms for supervised learning*). Ridge regression and gradient flow stopped early are two of them. Both are
sums of resolvents Σ_k γ_k (K + ζ_k)⁻¹, for each of which the answer to a row that is left out has a closed form.
"""

import math
from dataclasses import dataclass

import numpy as np

from .._validation import number

# exp(x) = α₀ + 2 Re Σ_k α_k / (x - θ_k) for all x <= 0, to 2e-14: Pusa 2011, *Rational approximations to the
# matrix exponential in burnup calculations*, Nucl. Sci. Eng. 169:155, with the digits of its correction of 2012.
POLES = np.array(
    [
        -8.8977731864688888199 + 16.630982619902085304j,
        -3.7032750494234480603 + 13.656371871483268171j,
        -0.2087586382501301251 + 10.991260561901260913j,
        3.9933697105785685194 + 6.0048316422350373178j,
        5.0893450605806245066 + 3.5888240290270065102j,
        5.6231425727459771248 + 1.1940690463439669766j,
        2.2697838292311127097 + 8.4617379730402214019j,
    ]
)
RESIDUES = np.array(
    [
        -7.1542880635890672853e-5 + 1.4361043349541300111e-4j,
        9.4390253107361688779e-3 - 1.7184791958483017511e-2j,
        -3.7636003878226968717e-1 + 3.3518347029450104214e-1j,
        -2.3498232091082701191e1 - 5.8083591297142074004e0j,
        4.6933274488831293047e1 + 4.5643649768827760791e1j,
        -2.7875161940145646468e1 - 1.0214733999056451434e2j,
        4.8071120988325088907e0 - 1.3209793837428723881e0j,
    ]
)
# Negative eigenvalues that rounding leaves may be no larger than this share of what regularises them.
LARGEST_NEGATIVE = 0.1


@dataclass(frozen=True)
class Ridge:
    """Ridge regression: g(λ) = 1 / (λ + alpha · s), with the mean diagonal s of the Gram matrix.

    Parameters
    ----------
    alpha : float
        >= 0.

    Examples
    --------
    >>> Ridge(1.0)(np.array([1.0, 3.0]), 1.0)
    array([0.5 , 0.25])
    """

    alpha: float

    def __post_init__(self):
        number("alpha", self.alpha, low=0, unit="in units of the mean diagonal")

    def __call__(self, eigenvalues: np.ndarray, scale: float) -> np.ndarray:
        """Return g of the eigenvalues, for a mean diagonal ``scale``."""
        return 1 / (eigenvalues + self.alpha * scale)

    def left(self, eigenvalues: np.ndarray, scale: float) -> np.ndarray:
        """Return 1 - λ g(λ), the share of the targets along each eigenvector that is not fitted."""
        return self.alpha * scale / (eigenvalues + self.alpha * scale)

    def resolvents(self) -> list[tuple[complex, complex]]:
        """Return the (γ, ζ) of g(λ) = Re Σ γ / (λ + ζ · scale)."""
        return [(1.0, self.alpha)]

    def in_range(self, scale: float) -> bool:
        """Tell whether the ridge is a number."""
        return math.isfinite(self.alpha * scale)

    def holds(self, smallest: float, scale: float, rounding: float) -> bool:
        """Tell whether g is finite and positive with this smallest eigenvalue, known to within ``rounding``."""
        return smallest + self.alpha * scale > rounding


@dataclass(frozen=True)
class GradientFlow:
    """Gradient flow on half the squared error from zero, stopped early: g(λ) = (1 - exp(-t λ / s)) / λ.

    Time is in units of 1/s, the mean diagonal of the Gram matrix, so that one serves every kernel; a time t fits
    about as much as ridge regression with alpha = 1/t (Ali et al. 2019, arXiv:1810.10082, which bounds its risk).

    Parameters
    ----------
    time : float
        > 0.

    Examples
    --------
    >>> GradientFlow(1.0)(np.array([0.0, 1.0]), 1.0).round(3)
    array([1.   , 0.632])
    """

    time: float

    def __post_init__(self):
        number("time", self.time, above=0, unit="in units of one over the mean diagonal")

    def __call__(self, eigenvalues: np.ndarray, scale: float) -> np.ndarray:
        """Return g of the eigenvalues, for a mean diagonal ``scale``."""
        x = self._exponents(eigenvalues, scale)
        tiny = abs(x) < 1e-8
        with np.errstate(over="ignore"):
            at_zero = np.divide(self.time, scale) * (1 - np.where(tiny, x, 0) / 2)
        return np.where(tiny, at_zero, -np.expm1(-x) / np.where(tiny, 1, eigenvalues))

    def left(self, eigenvalues: np.ndarray, scale: float) -> np.ndarray:
        """Return 1 - λ g(λ), the share of the targets along each eigenvector that is not fitted."""
        return np.exp(-self._exponents(eigenvalues, scale))

    def _exponents(self, eigenvalues, scale):
        """Return t λ / s, infinite where it is beyond float64."""
        with np.errstate(over="ignore"):
            return self.time * (eigenvalues / scale)

    def resolvents(self) -> list[tuple[complex, complex]]:
        """Return the (γ, ζ) of g(λ) = Re Σ γ / (λ + ζ · scale), to 2e-12 of the largest g."""
        return list(zip(-2 * RESIDUES / POLES, POLES / self.time, strict=True))

    def in_range(self, scale: float) -> bool:
        """Tell whether the ridges of all resolvents are numbers."""
        return math.isfinite(float(abs(POLES).max()) / self.time * max(scale, 1.0))

    def holds(self, smallest: float, scale: float, rounding: float) -> bool:
        """Tell whether negative eigenvalues, which rounding leaves, are still small at this time."""
        return scale > 0 and self.time * (smallest / scale) > -LARGEST_NEGATIVE


Filter = Ridge | GradientFlow
