"""Robust accuracy of any estimator, and as a scikit-learn scorer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_array, check_is_fitted

from .attacks import attack_in_tiles
from .estimators import NETWORK_ROWS, key_of, positions
from .networks import params_dtype
from .sklearn_models import as_model
from .square import Square

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64

# Queries of the black-box attack that takes the place of one with gradients.
QUERIES = 1000


def robust_accuracy(estimator, X, y, attack, *, sample_weight=None, random_state=0) -> float:
    """The estimator's score on adversarial examples: accuracy, or R² of a regressor.

    Parameters
    ----------
    estimator : fitted estimator
        One of this library; whatever :func:`~ntkrobust_sk.as_model` knows, Pipelines included; or any other
        classifier with scores, which is attacked as a black box. A FrozenEstimator or a search stands for what it
        holds.
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
    check_is_fitted(estimator)
    estimator = _held(estimator)
    if hasattr(estimator, "robust_score"):
        return estimator.robust_score(X, y, attack, sample_weight=sample_weight, random_state=random_state)
    X_adv = perturb(estimator, X, y, attack, random_state=random_state)
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    return float(estimator.score(X_adv, y, **weights))


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
    check_is_fitted(estimator)
    estimator = _held(estimator)
    if hasattr(estimator, "perturb"):
        return estimator.perturb(X, y, attack, random_state=random_state)
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise TypeError(
            f"{type(estimator).__name__} is no classifier and no regressor: there is no score to attack"
        )
    checked = check_array(X, dtype=[np.float64, np.float32], allow_nd=True, input_name="X", estimator=estimator)
    last = _held(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator
    model, attack = _model_and_attack(estimator, attack)
    own, x64 = hasattr(last, "_predictor"), bool(jax.config.jax_enable_x64)
    # what scikit-learn computes in double precision is attacked in it; a call back's thread knows nothing of x64
    x64 |= not own and not isinstance(model, _BlackBox)
    dtype = params_dtype(last.model_.variables.params) if own else np.dtype(float if x64 else np.float32)
    if hasattr(estimator, "classes_"):
        targets = positions(y, estimator.classes_, len(checked))
    else:
        targets = np.asarray(y, dtype).reshape(len(checked), -1)
    with enable_x64(x64):
        rows = last._rows() if own else NETWORK_ROWS
        key = key_of(random_state)
        X_adv = attack_in_tiles(attack, model, checked.astype(dtype), targets, key=key, rows=rows)
    if hasattr(X, "columns"):
        return type(X)(X_adv, columns=X.columns, index=X.index)
    return X_adv.reshape(np.shape(X))


def _held(estimator):
    """What a FrozenEstimator or a search holds."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def _model_and_attack(estimator, attack):
    """The estimator's differentiable form and the attack, or its scores alone and an attack that needs no more."""
    try:
        return as_model(estimator), attack
    except TypeError as error:
        if not is_classifier(estimator) or getattr(attack, "norm", None) != "linf":
            error.add_note("Only classifiers are attacked as black boxes, and in the L∞ norm.")
            raise
        model = _BlackBox(estimator)
        if not isinstance(attack, Square):
            attack = Square(attack.epsilon, QUERIES, bounds=attack.bounds)
            warnings.warn(
                f"{error}: so {type(estimator).__name__} is attacked as a black box, by {attack!r}. What stands "
                "may fall to an attack with gradients",
                UserWarning,
                stacklevel=4,
            )
        return model, attack


class _BlackBox:
    """A classifier's scores, through a call back to the host; without gradients."""

    def __init__(self, estimator):
        self.scores_of = getattr(estimator, "decision_function", None) or getattr(estimator, "predict_proba", None)
        if self.scores_of is None:
            name = type(estimator).__name__
            raise TypeError(f"{name} has neither decision_function nor predict_proba to attack")
        self.n_classes = len(estimator.classes_)

    def __call__(self, x):
        return jax.pure_callback(self._on_host, jax.ShapeDtypeStruct((len(x), self.n_classes), x.dtype), x)

    def _on_host(self, x):
        scores = np.asarray(self.scores_of(np.asarray(x)), x.dtype)
        return np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores


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
