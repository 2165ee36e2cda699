"""Robust accuracy as a scikit-learn scorer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_is_fitted


def robust_accuracy(estimator, X, y, attack, *, sample_weight=None, random_state=0) -> float:
    """The estimator's score on adversarial examples: accuracy, or R² of a regressor.

    Parameters
    ----------
    estimator : fitted estimator
        One of this library, a meta-estimator around one (``GridSearchCV``, ``FrozenEstimator``), or a
        Pipeline that ends in one. In a Pipeline the attack acts on the features that the last step sees:
        epsilon and bounds are in *their* units, and a warning says so.
    X : array (n, n_features) or (n, h, w, c)
    y : array (n,)
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
    >>> from ntkrobust_sk import PGD, AdversarialKernelTrainer, robust_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> trainer = AdversarialKernelTrainer(random_state=0).fit(X, y)
    >>> robust_accuracy(trainer, X, y, PGD(epsilon=0.5, bounds=None)) <= trainer.score(X, y)
    True
    """
    check_is_fitted(estimator)
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, Pipeline):
        *steps, (_, last) = estimator.steps
        if any(step not in (None, "passthrough") for _, step in steps):
            warnings.warn(
                f"the attack acts on the features that {type(last).__name__} sees, after "
                f"{', '.join(repr(name) for name, _ in steps)}; epsilon and bounds are in their units",
                UserWarning,
                stacklevel=2,
            )
            X = estimator[:-1].transform(X)
        return robust_accuracy(last, X, y, attack, sample_weight=sample_weight, random_state=random_state)
    if not hasattr(estimator, "robust_score"):
        raise TypeError(
            f"{type(estimator).__name__} has no robust_score, so it cannot be attacked here; robust scoring works "
            "for this library's estimators, for Pipelines that end in one, and for searches over them"
        )
    return estimator.robust_score(X, y, attack, sample_weight=sample_weight, random_state=random_state)


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
