"""Randomised smoothing: radii within which no attack exists (Cohen et al. 2019, arXiv:1902.02918).

The smoothed classifier answers what the classifier answers most often under Gaussian noise. If its answer has the
probability p_A > 1/2, it is the same within σ Φ⁻¹(p_A) in the L2 norm; p_A is bounded from below by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from .._validation import array, checked_seed, flag, integer, job_count, number
from ..execution.loops import repeat
from ..execution.threads import in_threads, shown
from .intervals import clopper_pearson
from .target import classifier_under_attack

# Number of draws of one example that are evaluated at once.
DRAWS = 500


@dataclass(frozen=True, eq=False)
class Certificates:
    """The certificates that :func:`certify` has found.

    Attributes
    ----------
    labels : array (n,)
        Answers of the smoothed classifier; without meaning where it abstains.
    abstains : bool array (n,)
        Where the answer's probability may be 1/2 or less.
    radii : array (n,)
        L2 radii within which the answer does not change, in units of X; 0 where it abstains.
    p_lower : array (n,)
        Lower bounds of the answers' probabilities under noise.
    """

    labels: np.ndarray
    abstains: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray


def certify(
    estimator: Any,
    X: ArrayLike,
    *,
    sigma: float,
    n_selection: int = 100,
    n_samples: int = 10_000,
    alpha: float = 0.001,
    random_state: Any = 0,
    n_jobs: int | None = None,
    progress: bool = False,
) -> Certificates:
    """Return answers of the smoothed classifier, and the radii within which they are certain.

    ``n_selection`` draws choose an answer; ``n_samples`` others count how often it is given. The radius is
    σ Φ⁻¹(p), p the Clopper–Pearson lower bound of the answer's probability at level 1 − alpha. It is the
    *smoothed* classifier that is certified, on inputs without bounds.

    Parameters
    ----------
    estimator : fitted classifier, or callable
        What :func:`~ntkrobust_sk.as_model` knows, this library's classifiers and functions from inputs to scores
        answer by their highest score, compiled; whatever else has ``predict`` is asked on the host.
    X : array (n, n_features), data frame, or (n, h, w, c)
    sigma : float
        Standard deviation of the noise, in units of X.
    n_selection : int, default=100
        Draws of noise that choose each answer.
    n_samples : int, default=10_000
        Draws of noise that count how often it is given.
        No radius can be above σ Φ⁻¹(alpha^(1 / n_samples)).
    alpha : float in (0, 1/2), default=0.001
        Probability at most that one example's radius is too large (or its answer another).
    random_state : int, RandomState or None, default=0
        Row i's noise depends on it and on i alone.
    n_jobs : int, default=None
        Rows certified at a time, by threads, as joblib takes it; the result is the same to the last bit.
    progress : bool, default=False
        Show a progress bar on stderr.

    Returns
    -------
    Certificates

    Raises
    ------
    NotFittedError, TypeError, ValueError
        For what is not fitted, no classifier, or has no data; for numbers out of their ranges.

    References
    ----------
    Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918, Algorithm 1 (CERTIFY).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from ntkrobust_sk import certify
    >>> X, y = load_iris(return_X_y=True)
    >>> tree = DecisionTreeClassifier(random_state=0).fit(X, y)
    >>> found = certify(tree, X[:1], sigma=0.25, n_samples=1000)
    >>> int(found.labels[0]), round(float(found.radii[0]), 2)
    (0, 0.49)
    """
    asked = "certify", estimator, X, None
    return _certified(
        *asked, sigma, n_selection, n_samples, alpha, random_state, n_jobs, progress, labelled=False
    )[1]


def certified_accuracy(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    radii: float | Sequence[float] | np.ndarray,
    *,
    sigma: float,
    n_selection: int = 100,
    n_samples: int = 10_000,
    alpha: float = 0.001,
    random_state: Any = 0,
    n_jobs: int | None = None,
    progress: bool = False,
) -> float | np.ndarray:
    """Return the share of examples that the smoothed classifier answers rightly, certified to a radius.

    Parameters
    ----------
    estimator, X, sigma, n_selection, n_samples, alpha, random_state, n_jobs, progress
        As for :func:`certify`.
    y : array (n,)
        Labels of ``classes_``; for a function integers 0..C-1.
    radii : float or sequence of float
        L2 radii, in units of X.

    Returns
    -------
    float, or array shaped like ``radii``
        A lower bound of the smoothed classifier's accuracy under any attack in the L2 ball, but for a share of
        about alpha of the examples.

    Raises
    ------
    NotFittedError, TypeError, ValueError
        As for :func:`certify`, and for labels that were not seen in ``fit``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import certified_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> found = certified_accuracy(SVC().fit(X, y), X, y, [0, 0.25, 0.5], sigma=0.25, n_samples=200)
    >>> bool(found[0] > 0.9), bool((np.diff(found) <= 0).all())
    (True, True)
    """
    _require_radii(radii)
    asked = "certified_accuracy", estimator, X, y
    target, found = _certified(*asked, sigma, n_selection, n_samples, alpha, random_state, n_jobs, progress)
    right = (found.labels == target.classes[target.y]) & ~found.abstains
    shares = np.mean(right & (found.radii >= np.reshape(radii, (-1, 1))), axis=1)
    return float(shares[0]) if np.ndim(radii) == 0 else shares.reshape(np.shape(radii))


def _require_radii(radii):
    is_sequence = isinstance(radii, list | tuple | range) or len(getattr(radii, "shape", ())) > 0
    values = np.ravel(array("radii", radii)).tolist() if is_sequence and len(radii) else [radii]
    for value in values:
        number("radii", value, low=0, unit="in units of the data")


def _certified(
    function, estimator, X, y, sigma, n_selection, n_samples, alpha, random_state, n_jobs, progress, labelled=True
):
    """Check what a function was called with, and return it as a target, with its certificates."""
    number("sigma", sigma, above=0, unit="in units of the data")
    integer("n_selection", n_selection)
    integer("n_samples", n_samples)
    number("alpha", alpha, above=0, below=0.5)
    job_count(n_jobs)
    flag("progress", progress)
    target = classifier_under_attack(function, estimator, X, y, labelled=labelled)
    seed = int(check_random_state(checked_seed("random_state", random_state)).randint(np.iinfo(np.int32).max))
    count = (_on_device if target.no_gradient_because is None else _on_host)(target, float(sigma), seed)

    def certified(row):
        label = count(row, 0, n_selection).argmax()
        return label, count(row, 1, n_samples)[label]

    rows = range(len(target.X))
    found = shown(in_threads(certified, rows, n_jobs), "certificates", len(rows), progress, "row")
    chosen, given = map(np.array, zip(*found, strict=True))
    p_lower, _ = clopper_pearson(given, n_samples, 1 - 2 * alpha)
    radii = sigma * scipy.stats.norm.ppf(np.maximum(p_lower, 0.5))
    return target, Certificates(target.classes[chosen], p_lower <= 0.5, radii, p_lower)


def _on_host(target, sigma, seed):
    """Return ``count(row, part, n)``: how often each class is answered in n draws, through ``predict``."""

    def count(row, part, n):
        random, counts = np.random.default_rng([seed, row, part]), np.zeros(len(target.classes), int)
        for start in range(0, n, DRAWS):
            noise = sigma * random.normal(size=(min(DRAWS, n - start), *target.X.shape[1:]))
            x = target.X[row] + noise * target.free
            counts += np.bincount(target.answers(x), minlength=len(counts))
        return counts

    return count


def _on_device(target, sigma, seed):
    """Return the same function, compiled."""

    def count(row, part, n):
        x, counts = target.X[row], np.zeros(len(target.classes), int)
        near, operands = (target.model, x[None]), (sigma * target.free.astype(x.dtype), (seed, row, part), n)
        with target.precision():
            state = repeat(_draws, -(-n // DRAWS), counts, target.model, x, *operands, evaluated=near)
            return np.asarray(state)

    return count


@jax.jit
def _draws(counts, batch, model, x, sigma, place, n):
    """Add the answers (C,) to one batch of draws, as far as they are among the first n of all."""
    key = jax.random.key(place[0])
    for position in (*place[1:], batch):
        key = jax.random.fold_in(key, position)
    scores = model(x + sigma * jax.random.normal(key, (DRAWS, *x.shape), x.dtype))
    counted = batch * DRAWS + jnp.arange(DRAWS) < n
    return counts + jnp.sum(
        jax.nn.one_hot(scores.argmax(1), scores.shape[1], dtype=int) * counted[:, None], axis=0
    )
