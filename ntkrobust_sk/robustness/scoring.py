"""Robust accuracy of any estimator, and as a scikit-learn scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_regressor
from sklearn.utils.metadata_routing import MetadataRequest

from .._validation import brief
from ..attacks.categories import categories_of
from ..execution.keys import key_of
from ..targets.target import Seed
from .refusals import told_of_the_attack
from .target import EstimatorTarget, attackable, under_attack


def robust_accuracy(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    attack: Callable,
    *,
    sample_weight: ArrayLike | None = None,
    random_state: Seed = 0,
    targets: Any = None,
    epsilon: Any = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> float:
    """Return the estimator's score on adversarial examples: accuracy, or R² of a regressor.

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
    targets : array (n,) of labels, or one label, default=None
        Classes that the answers shall become; an attack succeeds where its target is answered. Of a regressor
        values, to which predictions are pulled. None is anything else than y.
    epsilon : array (n,) or float, default=None
        Radius of each example, in place of the attack's. It is an argument, since attacks are compared and hashed.
    n_jobs : int, default=None
        Tiles of rows attacked at a time, by threads, as joblib takes it; the result is the same to the last bit.
    progress : bool, default=False
        Show a progress bar on stderr.

    Returns
    -------
    float
        With targets that are classes, the share of examples whose answers are not their targets.

    Raises
    ------
    TypeError
        If there is nothing in the estimator that can be attacked, or the attack takes no targets or radii.
    ValueError
        For targets that are no classes, or the labels themselves, and for radii that are none.

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
    target = attackable(estimator, X, y, categories=categories_of(attack))
    target = target.asked(targets, epsilon, n_jobs, progress)
    return target.robust_score(attack, y, sample_weight=sample_weight, random_state=random_state)


def perturb(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    attack: Callable,
    *,
    random_state: Seed = 0,
    targets: Any = None,
    epsilon: Any = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> Any:
    """Return adversarial examples against any estimator that :func:`robust_accuracy` takes.

    Parameters
    ----------
    estimator, X, y, attack, random_state, targets, epsilon, n_jobs, progress
        As for :func:`robust_accuracy`.

    Returns
    -------
    array shaped like X, or a data frame if X is one

    Raises
    ------
    TypeError, ValueError
        As for :func:`robust_accuracy`; for labels outside of ``classes_``; for sparse or empty X; where the attack
        has moved inputs to where the estimator has no answer, as below zero before a logarithm.

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
    target = attackable(estimator, X, y, categories=categories_of(attack))
    target = target.asked(targets, epsilon, n_jobs, progress)
    found = target.in_original_form(target.perturb(target.attack_for(attack), key_of(random_state)))
    if isinstance(target, EstimatorTarget):
        target.require_taken(found)
    return found


@dataclass(frozen=True)
class RobustScorer:
    """A scorer from :func:`make_robust_scorer`, called as ``scorer(estimator, X, y)``; comparable, picklable."""

    attack: Callable
    random_state: int | None = 0
    request: bool | str | None = None
    metric: str | Callable | None = None
    response_method: str | tuple[str, ...] | None = None

    def __call__(self, estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the metric on adversarial examples; without one of its own :func:`robust_accuracy`.

        Raises
        ------
        TypeError
            If the metric needs answers that the estimator does not give, or takes no weights where there are some.
        ValueError
            If the metric gives something else than one finite number.
        """
        options: dict[str, Any] = {"sample_weight": sample_weight, "random_state": self.random_state}
        if self.metric is None:
            return robust_accuracy(estimator, X, y, self.attack, **options)
        scorer = _scorer(self.metric, self.response_method)
        # says it if it is not fitted, which would look like a fault of the metric
        under_attack(estimator)
        _require_answers(estimator, self.metric, scorer)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if weights:
            _require_weights(self.metric, scorer)
        # of the inputs too, since what a metric does not take should be said before anything is attacked
        _measured(self.metric, scorer, estimator, X, y, weights)
        X_adv = perturb(estimator, X, y, self.attack, random_state=self.random_state)
        with told_of_the_attack(estimator, X, X_adv):
            return _measured(self.metric, scorer, estimator, X_adv, y, weights)

    def set_score_request(self, *, sample_weight: bool | str | None) -> RobustScorer:
        """Return a scorer that asks for ``sample_weight``, or for metadata of this name, where they are routed."""
        return replace(self, request=sample_weight)

    def get_metadata_routing(self) -> MetadataRequest:
        """Return what scikit-learn's meta-estimators shall pass on to this scorer."""
        routing = MetadataRequest(owner=self)
        routing.score.add_request(param="sample_weight", alias=self.request)
        return routing


def make_robust_scorer(
    attack: Callable,
    *,
    metric: str | Callable | None = None,
    response_method: str | Sequence[str] | None = None,
    random_state: int | None = 0,
) -> RobustScorer:
    """Make a scorer for ``GridSearchCV``, ``cross_validate`` and wherever scikit-learn takes ``scoring``.

    Parameters
    ----------
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`. It raises the model's loss, whatever
        the metric is.
    metric : str or callable, default=None
        What is measured on the adversarial examples: a name of :func:`sklearn.metrics.get_scorer_names`, such as
        "balanced_accuracy", "roc_auc" or "neg_mean_absolute_error"; a scorer of
        :func:`sklearn.metrics.make_scorer`, which also says whether less is better; or a function
        ``metric(y_true, y_pred)`` of which more is better. None is the estimator's own score.
    response_method : str or sequence of str, default=None
        Of a function: which of the estimator's methods gives ``y_pred``, "predict", "predict_proba" or
        "decision_function", or the first there is of several. None is "predict".
    random_state : int or None, default=0
        Seed of the attack; the same for every fold and candidate.

    Returns
    -------
    RobustScorer
        Called as ``scorer(estimator, X, y)``; higher is better.

    Raises
    ------
    TypeError
        For what is no attack and no metric, and for a ``response_method`` beside a name or a scorer.
    ValueError
        For a name that scikit-learn does not know.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from ntkrobust_sk import PGD, EmpiricalNTKClassifier, make_robust_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_robust_scorer(PGD(epsilon=0.3, n_steps=5, bounds=None))
    >>> cross_val_score(EmpiricalNTKClassifier(random_state=0), X, y, scoring=scorer, cv=3).shape
    (3,)

    Another metric than accuracy:

    >>> from sklearn.naive_bayes import GaussianNB
    >>> attack = PGD(epsilon=0.3, n_steps=5, bounds=None)
    >>> by_probability = make_robust_scorer(attack, metric="neg_log_loss")
    >>> by_probability(GaussianNB().fit(X, y), X, y) < -0.1
    True
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"make_robust_scorer needs an attack such as PGD(epsilon=8/255), got {attack!r}")
    methods: Any = response_method
    if response_method is not None and not isinstance(response_method, str):
        methods = tuple(response_method)
    if metric is None:
        if methods is not None:
            raise TypeError("response_method says what a metric is given: give metric= too")
    else:
        _scorer(metric, methods)
    return RobustScorer(attack, random_state, metric=metric, response_method=methods)


def _scorer(metric, response_method) -> Callable:
    """Return scikit-learn's scorer of a metric."""
    from sklearn.metrics import get_scorer, make_scorer

    is_scorer = hasattr(metric, "_score_func") or (callable(metric) and hasattr(metric, "get_metadata_routing"))
    if not (isinstance(metric, str) or callable(metric)) or isinstance(metric, type):
        raise TypeError(
            f"metric must be a name such as 'balanced_accuracy', a scorer or a function, got {brief(metric)}"
        )
    if isinstance(metric, RobustScorer):
        raise TypeError("a RobustScorer attacks by itself: give make_robust_scorer what it measures")
    if isinstance(metric, str) or is_scorer:
        if response_method is not None:
            raise TypeError(f"{brief(metric)} says itself which answers it takes: leave response_method out")
        return get_scorer(metric) if isinstance(metric, str) else metric
    return make_scorer(_numeric(metric), response_method="predict" if response_method is None else response_method)


def _numeric(metric: Callable) -> Callable:
    """Return a function that gives one number or raises, before a scorer calculates with it."""

    @wraps(metric)
    def measured(*args: Any, **options: Any) -> float:
        return _one_number(metric, metric(*args, **options))

    return measured


def _one_number(metric: Any, found: Any) -> float:
    given = np.asarray(found)
    if given.ndim or given.dtype.kind not in "biuf" or not np.isfinite(given):
        raise _NoNumberError(
            f"the metric {_name(metric)} of make_robust_scorer must give one finite number, got {brief(found)}"
        )
    return float(found)


class _NoNumberError(ValueError):
    """The error of a metric that gave something else than a number."""


def _require_answers(estimator, metric, scorer) -> None:
    """Raise TypeError, before anything is attacked, if an estimator has not what a scorer asks it for."""
    methods = getattr(scorer, "_response_method", "predict")
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    known = ("predict", "predict_proba", "decision_function")
    asked = [method for method in methods if method in known]
    if asked and not any(hasattr(estimator, method) for method in asked):
        way = "choose a metric of labels, such as 'balanced_accuracy', or calibrate it by CalibratedClassifierCV"
        if not hasattr(estimator, "fit"):
            way = "a function from inputs to scores has its accuracy alone: leave metric out"
        elif is_regressor(estimator):
            way = "choose a metric of numbers, such as 'neg_mean_absolute_error'"
        raise TypeError(
            f"the metric {_name(metric)} needs {' or '.join(asked)}, which {type(estimator).__name__} does not "
            f"have; {way}"
        )


def _require_weights(metric, scorer) -> None:
    """Raise TypeError if a metric takes no weights."""
    parameters = signature(getattr(scorer, "_score_func", scorer)).parameters
    if "sample_weight" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(f"the metric {_name(metric)} takes no sample_weight; leave sample_weight out")


def _measured(metric, scorer, estimator, X, y, weights) -> float:
    """Return what a metric gives, or raise ValueError unless that is one finite number."""
    try:
        return _one_number(metric, scorer(estimator, X, y, **weights))
    except _NoNumberError:
        raise
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"the metric {_name(metric)} of make_robust_scorer cannot be computed of the answers of "
            f"{type(estimator).__name__} and y: {error}"
        ) from error


def _name(metric) -> str:
    return repr(getattr(metric, "__name__", metric))
