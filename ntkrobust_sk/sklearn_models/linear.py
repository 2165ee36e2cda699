"""Scores of linear models and multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import Array, dense, fitted, namespace, sigmoid
from .registry import ALSO_TRANSFORM, adapts


def of_two_classes(decision: Array) -> Array:
    """Return scores (n, 2) of a decision function (n,) that is positive for the second class."""
    xp = namespace(decision)
    return xp.stack([xp.zeros_like(decision), decision], axis=1)


def is_binary(estimator: Any, n_scores: int) -> bool:
    """Return whether one score stands for two classes."""
    return hasattr(estimator, "classes_") and n_scores == 1


LINEAR = """ARDRegression BayesianRidge ElasticNet ElasticNetCV HuberRegressor Lasso LassoCV
LinearDiscriminantAnalysis LinearRegression LinearSVC LinearSVR LogisticRegression LogisticRegressionCV Perceptron
Ridge RidgeCV RidgeClassifier RidgeClassifierCV SGDClassifier SGDRegressor"""


@adapts(*LINEAR.split())
def linear(estimator: Any) -> Partial:
    """Write products with ``coef_``, and ``intercept_``."""
    weights, offset = np.atleast_2d(fitted(estimator, "coef_")).T, fitted(estimator, "intercept_")
    return Partial(_binary_affine if is_binary(estimator, weights.shape[1]) else _affine, weights, offset)


def _affine(weights, offset, x):
    return x @ weights + offset


def _binary_affine(weights, offset, x):
    return of_two_classes((x @ weights + offset)[:, 0])


@adapts("LinearDiscriminantAnalysis", into=ALSO_TRANSFORM)
def discriminant_axes(estimator: Any) -> Partial:
    """Write what a linear discriminant analysis transforms to."""
    kept = fitted(estimator, "scalings_")[:, : estimator._max_components]
    centre = fitted(estimator, "xbar_") if estimator.solver == "svd" else np.zeros(len(kept))
    return Partial(projected, centre, kept)


def projected(centre: Array, basis: Array, x: Array) -> Array:
    """Compute coordinates of the rows of x from a centre."""
    return (x - centre) @ basis


# scikit-learn's names of hidden layers' activations
ACTIVATIONS = {
    "identity": lambda h: h,
    "logistic": sigmoid,
    "tanh": lambda h: namespace(h).tanh(h),
    "relu": lambda h: namespace(h).maximum(h, 0),
    "exp": lambda h: namespace(h).exp(h),
}


@dataclass(frozen=True)
class _Activation:
    name: str

    def __call__(self, h):
        return ACTIVATIONS[self.name](h)


@adapts("MLPClassifier", "MLPRegressor")
def perceptron(estimator: Any) -> Partial:
    """Write the layers of a perceptron: logits of a classifier, predictions of a regressor."""
    last = estimator.out_activation_
    if hasattr(estimator, "classes_"):
        known = ("logistic", "softmax")
        end = [Partial(_first_of_two)] if is_binary(estimator, estimator.n_outputs_) else []
    else:
        known = ("identity", "exp")
        end = [Partial(_Activation(last))] if last == "exp" else []
    if last not in known or estimator.activation not in ACTIVATIONS:
        raise TypeError(
            f"an MLP with the activations {estimator.activation!r} and {last!r} has no differentiable form"
        )
    layers = [
        Partial(_affine, dense("MLP.coefs_", weights), dense("MLP.intercepts_", offset))
        for weights, offset in zip(estimator.coefs_, estimator.intercepts_, strict=True)
    ]
    parts = layers[:1]
    for layer in layers[1:]:
        parts += [Partial(_Activation(estimator.activation)), layer]
    return Partial(chained, parts + end)


def _first_of_two(x):
    return of_two_classes(x[:, 0])


def chained(parts: list[Callable], x: Array) -> Array:
    """Compute one function after the other."""
    for part in parts:
        x = part(x)
    return x
