"""Estimators that ask others: voting, stacking, bagging, one against the rest, calibrated ones.

Each is written once, by what its members compute. ``member(estimator, columns)`` gives that, of an array or of a
table; ``member(None)`` gives the inputs themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.special
from jax.tree_util import Partial
from sklearn.preprocessing import FunctionTransformer

from .arrays import fitted, namespace, sigmoid
from .linear import chained, scores_of
from .piecewise import InversePower, guided, interpolation
from .registry import COMPOSITIONS, form_of
from .remembered_rows import core
from .transformers import chosen, function_of, unchanged

# Adapters by scikit-learn's names of classes: adapter(estimator, member).
ENSEMBLES: dict[str, Callable[[Any, Callable], Callable]] = {}

# Their probabilities are made by a model of their own, or by a rule of their own.
NO_SOFTMAX = ("NuSVC", "SVC")


def asks(*names: str) -> Callable:
    """Enter an adapter of estimators that ask others, for arrays too."""

    def enter(write):
        for name in names:
            ENSEMBLES[name], COMPOSITIONS[name] = write, partial(_of_arrays, write)
        return write

    return enter


def _of_arrays(write, estimator, kernel, X_fit, transforms):
    if transforms:
        raise TypeError(
            f"what {type(estimator).__name__} transforms to, its members' answers, has no differentiable form"
        )
    return write(estimator, _member)


def _member(estimator, columns=None):
    if estimator is None:
        return Partial(unchanged)
    form = form_of(estimator)
    return form if columns is None else Partial(chained, [Partial(chosen, np.asarray(columns)), form])


def probabilities(estimator: Any, form: Callable) -> Callable:
    """Return a classifier's probabilities (n, C) from the form of its scores.

    Raises
    ------
    TypeError
        If it has none, or if they are no function of its scores.
    """
    last, name = core(estimator), type(estimator).__name__
    if not hasattr(estimator, "predict_proba"):
        raise TypeError(f"{name} has no probabilities; the black-box attack Square works on whatever gives scores")
    if type(last).__name__ in NO_SOFTMAX:
        raise TypeError(
            f"the probabilities of {type(last).__name__} are no function of its scores; calibrate it by "
            "CalibratedClassifierCV"
        )
    decides = type(last).__name__ == "OneVsRestClassifier" and hasattr(last, "decision_function")
    one_by_one = len(last.classes_) > 2 and (decides or type(last).__name__ == "SGDClassifier")
    return Partial(_shares if one_by_one else _softmax, form)


def _softmax(form, x):
    scores = form(x)
    return (jax.nn if isinstance(scores, jax.Array) else scipy.special).softmax(scores, axis=1)


def _shares(form, x):
    """Return each class's probability against the rest, as shares of their sum."""
    each = sigmoid(form(x))
    return each / each.sum(1, keepdims=True)


def _log(probability):
    xp = namespace(probability)
    return xp.log(xp.maximum(probability, np.finfo(probability.dtype).tiny))


@asks("VotingClassifier")
def voting(estimator: Any, member: Callable) -> Partial:
    """Write the logarithm of the members' mean probabilities."""
    if estimator.voting != "soft":
        raise TypeError("a VotingClassifier that counts votes has no scores; make it with voting='soft'")
    parts = [probabilities(each, member(each)) for each in estimator.estimators_]
    return Partial(_log_of_mean, parts, _weights(estimator))


@asks("VotingRegressor")
def mean_vote(estimator: Any, member: Callable) -> Partial:
    """Write the members' mean prediction."""
    return Partial(_mean, [member(each) for each in estimator.estimators_], _weights(estimator))


def _weights(estimator):
    given = estimator._weights_not_none
    weights = np.ones(len(estimator.estimators_)) if given is None else np.asarray(given, float)
    return weights / weights.sum()


def _mean(parts, weights, x):
    return sum(weight * part(x) for part, weight in zip(parts, weights, strict=True))


def _log_of_mean(parts, weights, x):
    return _log(_mean(parts, weights, x))


@asks("BaggingClassifier")
def bagging(estimator: Any, member: Callable) -> Partial:
    """Write the logarithm of the members' mean probabilities, each of its own features."""
    members = zip(estimator.estimators_, estimator.estimators_features_, strict=True)
    parts = []
    for each, columns in members:
        if len(each.classes_) != len(estimator.classes_):
            raise TypeError("a BaggingClassifier of which a member has not seen all classes has no form")
        parts.append(probabilities(each, member(each, columns)))
    return Partial(_log_of_mean, parts, np.full(len(parts), 1 / len(parts)))


@asks("BaggingRegressor")
def mean_of_bags(estimator: Any, member: Callable) -> Partial:
    """Write the members' mean prediction, each of its own features."""
    members = zip(estimator.estimators_, estimator.estimators_features_, strict=True)
    parts = [member(each, columns) for each, columns in members]
    return Partial(_mean, parts, np.full(len(parts), 1 / len(parts)))


@asks("StackingClassifier", "StackingRegressor")
def stacking(estimator: Any, member: Callable) -> Partial:
    """Write the last estimator's scores, of what the members answer."""
    parts = []
    for each, method in zip(estimator.estimators_, estimator.stack_method_, strict=True):
        if method == "predict_proba":
            parts.append(_asked(probabilities(each, member(each)), len(estimator.classes_) == 2))
        elif method == "decision_function":
            parts.append(decision(each, member(each)))
        elif hasattr(each, "classes_"):
            raise TypeError(f"{type(each).__name__} hands on its answers, which have no gradient, in a stack")
        else:
            parts.append(member(each))
    if estimator.passthrough:
        parts.append(member(None))
    return Partial(chained, [Partial(_side_by_side, parts), form_of(estimator.final_estimator_)])


def decision(estimator: Any, form: Callable) -> Callable:
    """Return a classifier's ``decision_function``, of two classes (n, 1), from the form of its scores."""
    return Partial(_difference, form) if len(estimator.classes_) == 2 else form


def _difference(form, x):
    scores = form(x)
    return scores[:, 1:] - scores[:, :1]


def _asked(form, two):
    """Return the form of probabilities; of two classes, of the second one's alone."""
    return Partial(_second, form) if two else form


def _second(form, x):
    return form(x)[:, 1:]


def _side_by_side(parts, x):
    found = [part(x) for part in parts]
    return namespace(found[0]).concatenate([each.reshape(len(x), -1) for each in found], axis=1)


@asks("OneVsRestClassifier")
def one_against_the_rest(estimator: Any, member: Callable) -> Callable:
    """Write each classifier's decision, or the logarithm of its probability."""
    if estimator.multilabel_:
        raise TypeError("a OneVsRestClassifier of several labels at once has no differentiable form")
    parts = [Partial(_difference, member(each)) for each in estimator.estimators_]
    if hasattr(estimator, "decision_function"):
        return scores_of(estimator, Partial(_side_by_side, parts), len(parts))
    # probabilities of two classes are those of the one classifier's
    return member(estimator.estimators_[0]) if len(parts) == 1 else Partial(_logs_of_sigmoids, parts)


def _logs_of_sigmoids(parts, x):
    return _log(sigmoid(_side_by_side(parts, x)))


@asks("CalibratedClassifierCV")
def calibrated(estimator: Any, member: Callable) -> Partial:
    """Write the logarithm of the mean of the calibrated probabilities of all folds."""
    parts = []
    for fold in estimator.calibrated_classifiers_:
        each, two = fold.estimator, len(fold.classes) == 2
        if len(each.classes_) != len(fold.classes):
            raise TypeError("a CalibratedClassifierCV of which a fold has not seen all classes has no form")
        decides = hasattr(each, "decision_function")
        form = member(each)
        if fold.method == "temperature":
            raw = form if decides else Partial(_logs_of, probabilities(each, form))
            raw = Partial(_both_signs, decision(each, form)) if decides and two else raw
            parts.append(Partial(_tempered, raw, float(fold.calibrators[0].beta_)))
            continue
        raw = decision(each, form) if decides else _asked(probabilities(each, form), two)
        parts.append(Partial(_calibrated, raw, [_curve(each) for each in fold.calibrators]))
    return Partial(_log_of_mean, parts, np.full(len(parts), 1 / len(parts)))


def _curve(calibrator):
    if hasattr(calibrator, "a_"):
        return Partial(_logistic, float(calibrator.a_), float(calibrator.b_))
    points, values = fitted(calibrator, "X_thresholds_"), fitted(calibrator, "y_thresholds_")
    return guided(interpolation(points[:, None], values[:, None]), points[:1], points[-1:])


def _logistic(slope, offset, x):
    return sigmoid(-(slope * x + offset))


def _calibrated(raw, curves, x):
    xp, scores = namespace(x), raw(x)
    each = xp.concatenate([curve(scores[:, at : at + 1]) for at, curve in enumerate(curves)], axis=1)
    if len(curves) == 1:
        return xp.concatenate([1 - each, each], axis=1)
    total = each.sum(1, keepdims=True)
    return xp.where(total == 0, 1 / len(curves), each / xp.where(total == 0, 1, total))


def _logs_of(form, x):
    return namespace(x).log(form(x) + 1e-12)


def _both_signs(form, x):
    score = form(x)
    return namespace(x).concatenate([-score, score], axis=1)


def _tempered(form, inverse_temperature, x):
    return _softmax(Partial(_scaled_by, form, inverse_temperature), x)


def _scaled_by(form, factor, x):
    return factor * form(x)


@asks("TransformedTargetRegressor")
def transformed_target(estimator: Any, member: Callable) -> Partial:
    """Write predictions, back from what the targets were transformed to."""
    return Partial(chained, [member(estimator.regressor_), way_back(estimator.transformer_)])


def way_back(transformer: Any) -> Partial:
    """Write what a transformer's ``inverse_transform`` computes.

    Raises
    ------
    TypeError
        If it is not known here.
    """
    name = type(transformer).__name__
    if isinstance(transformer, FunctionTransformer):
        return function_of(transformer.inverse_func, transformer.inv_kw_args, "inverse_func")
    if name == "PowerTransformer":
        back = Partial(InversePower(transformer.method), fitted(transformer, "lambdas_"))
        return Partial(chained, [way_back(transformer._scaler), back]) if transformer.standardize else back
    shifts = {"StandardScaler": "mean_", "RobustScaler": "center_", "MaxAbsScaler": None, "MinMaxScaler": "min_"}
    if name not in shifts:
        raise TypeError(f"the way back of {name} has no differentiable form")
    scale = 1.0 if getattr(transformer, "scale_", None) is None else fitted(transformer, "scale_")
    given = getattr(transformer, shifts[name] or "", None)
    shift = 0.0 if given is None else fitted(transformer, shifts[name])
    # min-max scaling multiplies before it shifts
    return (
        Partial(_affine, 1 / scale, -shift / scale) if name == "MinMaxScaler" else Partial(_affine, scale, shift)
    )


def _affine(scale, shift, x):
    return x * scale + shift
