"""Confidence intervals of shares."""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .._validation import brief, number


def clopper_pearson(successes: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper ends of the exact interval of a proportion.

    They are quantiles of beta distributions, B(tail; k, n − k + 1) and B(1 − tail; k + 1, n − k) with tail =
    (1 − confidence) / 2; each end alone holds with probability 1 − tail (Clopper & Pearson 1934).

    Parameters
    ----------
    successes, n : int or array of int
    confidence : float in (0, 1), default=0.95

    Returns
    -------
    low, high : arrays shaped like ``successes``

    Examples
    --------
    >>> [round(float(end), 4) for end in clopper_pearson(8, 10)]
    [0.4439, 0.9748]
    """
    k, n, tail = np.asarray(successes), np.asarray(n), (1 - number("confidence", confidence, above=0, below=1)) / 2
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError(f"successes must be 0 to n, got {brief(successes)} of {brief(n)}")
    low = np.where(k == 0, 0.0, scipy.stats.beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1.0, scipy.stats.beta.isf(tail, k + 1, np.maximum(n - k, 1)))
    return low, high
