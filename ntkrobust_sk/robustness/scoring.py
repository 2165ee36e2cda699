"""Robust accuracy of any estimator, and as a scikit-learn scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.utils.metadata_routing import MetadataRequest

from ..estimators.answers import warn_of_gain
from ..estimators.inputs import positions, weights_to_score
from ..execution.keys import key_of
from ..tables.frames import check_rows
from .target import attackable, is_function, under_attack


def robust_accuracy(estimator, X, y, attack, *, sample_weight=None, random_state=0) -> float:
    """The estimator's score on adversarial examples: accuracy, or R² of a regressor.

    All inputs are attacked, also those that are answered wrongly as they are; where that makes the score better
    than that of the inputs themselves, a warning says so.

    Parameters
    ----------
    estimator : fitted estimator
        One of this library; whatever :func:`~ntkrobust_sk.as_model` knows, Pipelines included; or any other
        classifier with scores, which is attacked as a black box. A FrozenEstimator or a search stands for what it
        holds. Or a function from inputs to scores, such as a :class:`~ntkrobust_sk.Model`.
    X : array (n, n_features), data frame, or (n, h, w, c)
        Inputs of the estimator, of a Pipeline those of its first step: epsilon and bounds are in *their* units.
    y : array (n,) or (n, T)
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`.
    sample_weight : array (n,), default=None
    random_state : int, RandomState or None, default=0

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If there is nothing in the estimator that can be attacked.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import PGD, robust_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), SVC()).fit(X, y)
    >>> robust_accuracy(pipeline, X, y, PGD(epsilon=0.5, bounds=None)) < pipeline.score(X, y)
    True
    """
    estimator = under_attack(estimator)
    check_rows(X)
    if sample_weight is not None and np.shape(X):
        sample_weight = weights_to_score(y, len(X), sample_weight)
    if hasattr(estimator, "robust_score"):
        return estimator.robust_score(X, y, attack, sample_weight=sample_weight, random_state=random_state)
    if is_function(estimator):
        subject = attackable(estimator, X, y)
        X_adv = subject.perturb(subject.usable(attack), key_of(random_state))
        robust, clean = (
            float(np.average(subject.answers(inputs) == subject.y, weights=sample_weight))
            for inputs in (X_adv, subject.X)
        )
        warn_of_gain(robust, clean, len(X_adv))
        return robust
    X_adv = perturb(estimator, X, y, attack, random_state=random_state)
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    if getattr(getattr(y, "dtype", None), "kind", None) == "O" and hasattr(estimator, "classes_"):
        # metrics want to know of what type labels are
        y = estimator.classes_[positions(y, estimator.classes_, len(X_adv))]
    robust = float(estimator.score(X_adv, y, **weights))
    warn_of_gain(robust, float(estimator.score(X, y, **weights)), len(X_adv))
    return robust


def perturb(estimator, X, y, attack, *, random_state=0):
    """Adversarial examples against any estimator that :func:`robust_accuracy` takes.

    Parameters
    ----------
    estimator, X, y, attack, random_state
        As for :func:`robust_accuracy`.

    Returns
    -------
    array shaped like X, or a data frame if X is one

    Raises
    ------
    TypeError, ValueError
        As for :func:`robust_accuracy`; for labels outside of ``classes_``; for sparse or empty X.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ntkrobust_sk import FGSM, perturb
    >>> X, y = load_iris(return_X_y=True)
    >>> X_adv = perturb(LogisticRegression(max_iter=1000).fit(X, y), X, y, FGSM(0.5, bounds=None))
    >>> X_adv.shape, X_adv.dtype
    ((150, 4), dtype('float64'))
    """
    estimator = under_attack(estimator)
    if not is_function(estimator) and hasattr(estimator, "perturb"):
        return estimator.perturb(X, y, attack, random_state=random_state)
    subject = attackable(estimator, X, y)
    return subject.like(subject.perturb(subject.usable(attack), key_of(random_state)))


@dataclass(frozen=True)
class RobustScorer:
    """``scorer(estimator, X, y)``: what :func:`make_robust_scorer` returns. Comparable and picklable."""

    attack: Callable
    random_state: int | None = 0
    request: bool | str | None = None

    def __call__(self, estimator, X, y, sample_weight=None) -> float:
        """:func:`robust_accuracy` under this attack."""
        return robust_accuracy(
            estimator, X, y, self.attack, sample_weight=sample_weight, random_state=self.random_state
        )

    def set_score_request(self, *, sample_weight: bool | str | None) -> RobustScorer:
        """A scorer that asks for ``sample_weight`` (or for metadata of the name given) under metadata routing."""
        return replace(self, request=sample_weight)

    def get_metadata_routing(self) -> MetadataRequest:
        """What scikit-learn's meta-estimators shall pass on to this scorer."""
        routing = MetadataRequest(owner=self)
        routing.score.add_request(param="sample_weight", alias=self.request)
        return routing


def make_robust_scorer(attack: Callable, *, random_state: int | None = 0) -> RobustScorer:
    """A scorer for ``GridSearchCV``, ``cross_validate`` and wherever scikit-learn takes ``scoring``.

    Parameters
    ----------
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`.
    random_state : int or None, default=0
        Seed of the attack; the same for every fold and candidate.

    Returns
    -------
    RobustScorer
        Called as ``scorer(estimator, X, y)``; higher is better.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from ntkrobust_sk import PGD, EmpiricalNTKClassifier, make_robust_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_robust_scorer(PGD(epsilon=0.3, n_steps=5, bounds=None))
    >>> cross_val_score(EmpiricalNTKClassifier(random_state=0), X, y, scoring=scorer, cv=3).shape
    (3,)
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"make_robust_scorer needs an attack such as PGD(epsilon=8/255), got {attack!r}")
    return RobustScorer(attack, random_state)
