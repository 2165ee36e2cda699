"""One temperature that makes scores into probabilities, fitted to answers to rows that were left out."""

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from .._validation import array
from .units import unit_of

# One over the temperature is looked for between these, in units of one over the scores' deviation.
SHARPEST, FLATTEST = 1e6, 1e-3


def fitted_temperature(scores, labels, sample_weight=None) -> float:
    """Fit the temperature T of softmax(scores / T) by maximum likelihood (Guo et al. 2017, arXiv:1706.04599).

    Each label counts as right with probability 1 - 1/(w + 1), else as any of the classes, for rows of weight w in
    all, as scikit-learn's ``CalibratedClassifierCV`` counts them: so T stays above zero where all scores are
    right, as with Platt's targets. The loss is convex in 1/T and has one minimum. Where scores tell no more than
    chance, T is as large as is tried.

    Parameters
    ----------
    scores : array (n, C)
        Of rows that were not trained on.
    labels : int array (n,)
        Positions among the C classes.
    sample_weight : array (n,), default=None

    Returns
    -------
    float
        > 0.

    Examples
    --------
    >>> scores = np.array([[0.6, 0.4], [0.4, 0.6], [0.45, 0.55], [0.7, 0.3]])
    >>> 0 < fitted_temperature(scores, np.array([0, 1, 0, 0])) < 1
    True
    """
    scores = array("scores", scores, ndim=2, finite=True).astype(np.float64)
    n, n_classes = scores.shape
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    unit = unit_of(weight)
    total = (weight / unit).sum()
    doubt, weight = 1 / (float(total) * unit + 1), weight / unit / total
    centred = scores - scores.mean(1, keepdims=True)
    unit = float(np.sqrt(weight @ (centred**2).mean(1)))
    if unit == 0:
        return 1.0
    centred /= unit
    wanted = (1 - doubt) * np.eye(n_classes)[labels] + doubt / n_classes

    def slope(log_sharpness):
        """Return the derivative of the loss by one over the temperature."""
        p = softmax(np.exp(log_sharpness) * centred, axis=1)
        return float(weight @ ((p - wanted) * centred).sum(1))

    low, high = np.log(FLATTEST), np.log(SHARPEST)
    if slope(low) >= 0:
        return unit / FLATTEST
    if slope(high) <= 0:
        return unit / SHARPEST
    found: Any = brentq(slope, low, high, xtol=1e-12)
    return float(unit / np.exp(found))


def log_likelihood(scores, labels, temperature: float, sample_weight=None) -> float:
    """Return the weighted mean log probability of labels (n,) by softmax(scores / temperature)."""
    found = log_softmax(np.asarray(scores, np.float64) / temperature, axis=1)[np.arange(len(scores)), labels]
    return float(np.average(found, weights=sample_weight))
