"""Scores of linear models and multi-layer perceptrons."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import Array, Named, dense, fitted, namespace, sigmoid
from .registry import ALSO_TRANSFORM, adapts


def scores_of(estimator: Any, form: Callable, n_scores: int) -> Callable:
    """Return a form's scores; where one stands for two classes, as two: zero, and that of the second class."""
    return Partial(_of_two_classes, form) if hasattr(estimator, "classes_") and n_scores == 1 else form


def _of_two_classes(form, x):
    decision = form(x)[:, 0]
    xp = namespace(decision)
    return xp.stack([xp.zeros_like(decision), decision], axis=1)


LINEAR = """ARDRegression BayesianRidge ElasticNet ElasticNetCV HuberRegressor Lasso LassoCV
LinearDiscriminantAnalysis LinearRegression LinearSVC LinearSVR LogisticRegression LogisticRegressionCV Perceptron
Ridge RidgeCV RidgeClassifier RidgeClassifierCV SGDClassifier SGDRegressor"""


@adapts(*LINEAR.split())
def linear(estimator: Any) -> Callable:
    """Write products with ``coef_``, and ``intercept_``."""
    weights, offset = np.atleast_2d(fitted(estimator, "coef_")).T, fitted(estimator, "intercept_")
    return scores_of(estimator, Partial(_affine, weights, offset), weights.shape[1])


def _affine(weights, offset, x):
    return x @ weights + offset


@adapts("LinearDiscriminantAnalysis", into=ALSO_TRANSFORM)
def discriminant_axes(estimator: Any) -> Partial:
    """Write what a linear discriminant analysis transforms to."""
    kept = fitted(estimator, "scalings_")[:, : estimator._max_components]
    centre = fitted(estimator, "xbar_") if estimator.solver == "svd" else np.zeros(len(kept))
    return Partial(projected, centre, kept)


def projected(centre: Array, basis: Array, x: Array) -> Array:
    """Compute coordinates of the rows of x from a centre."""
    return (x - centre) @ basis


class Activation(Named):
    """An activation of hidden layers by scikit-learn's name."""

    table = {
        "identity": lambda h: h,
        "logistic": sigmoid,
        "tanh": lambda h: namespace(h).tanh(h),
        "relu": lambda h: namespace(h).maximum(h, 0),
        "exp": lambda h: namespace(h).exp(h),
    }


@adapts("MLPClassifier", "MLPRegressor")
def perceptron(estimator: Any) -> Callable:
    """Write the layers of a perceptron: logits of a classifier, predictions of a regressor."""
    last, inner = estimator.out_activation_, estimator.activation
    known = ("logistic", "softmax") if hasattr(estimator, "classes_") else ("identity", "exp")
    if last not in known or inner not in Activation.table:
        raise TypeError(f"an MLP with the activations {inner!r} and {last!r} has no differentiable form")
    parts = []
    for weights, offset in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        parts += [Partial(_affine, dense("MLP.coefs_", weights), dense("MLP.intercepts_", offset))]
        parts += [Partial(Activation(inner))]
    # a classifier's last activation makes probabilities of its logits
    parts[-1:] = [Partial(Activation("exp"))] if last == "exp" else []
    return scores_of(estimator, Partial(chained, parts), estimator.n_outputs_)


def chained(parts: list[Callable], x: Array) -> Array:
    """Compute one function after the other."""
    for part in parts:
        x = part(x)
    return x
