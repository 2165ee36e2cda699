"""Gaussian processes: predictions, and log probabilities of classes."""

from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import error_function, fitted, namespace, solve_lower
from .covariances import covariance, remembered
from .kernel_machines import expansion
from .registry import adapts


@adapts("GaussianProcessRegressor")
def gaussian_regressor(estimator: Any) -> Partial:
    """Write the mean of a Gaussian process regressor."""
    mean, std = fitted(estimator, "_y_train_mean"), fitted(estimator, "_y_train_std")
    inputs = fitted(estimator, "X_train_")
    dual = fitted(estimator, "alpha_").reshape(len(inputs), -1) * std
    kernel = estimator.kernel_
    return Partial(expansion, covariance(kernel), remembered(kernel, inputs), dual, mean)


@adapts("GaussianProcessClassifier")
def gaussian_classifier(estimator: Any) -> Partial:
    """Write log probabilities of a Gaussian process classifier."""
    if len(estimator.classes_) == 2:
        return Partial(_log_of_two, _laplace(estimator.base_estimator_))
    if estimator.multi_class != "one_vs_rest":
        raise TypeError("a Gaussian process classifier has a differentiable form for one_vs_rest only")
    return Partial(_log_of_many, [_laplace(e) for e in estimator.base_estimator_.estimators_])


# ∫ σ(z) N(z | μ, s²) dz as a sum of error functions (Williams & Barber 1998); the constants are scikit-learn's.
# Plain numbers, since JAX keeps in mind in which precision it has traced an array of NumPy.
LAMBDAS = ((0.41,), (0.4,), (0.37,), (0.44,), (0.39,))
COEFFICIENTS = ((-1854.8214151,), (3516.89893646,), (221.29346712,), (128.12323805,), (-2010.49422654,))


def _laplace(binary):
    """Write the probability (n,) of the second class in a binary Gaussian process classifier."""
    names = ("y_train_", "pi_", "W_sr_", "L_", "X_train_")
    y, pi, roots, factor, inputs = (fitted(binary, name) for name in names)
    kernel = binary.kernel_
    return Partial(_averaged_sigmoid, covariance(kernel), remembered(kernel, inputs), y - pi, roots, factor)


def _averaged_sigmoid(kernel, z, residual, roots, factor, x):
    xp, cross = namespace(x), kernel(x, z)
    mean = cross @ residual
    v = solve_lower(factor, roots[:, None] * cross.T)
    spread = kernel(x) - (v**2).sum(0)
    alpha = 1 / (2 * spread)
    lambdas, coefficients = np.array(LAMBDAS), np.array(COEFFICIENTS)
    gamma = lambdas * mean
    integrals = xp.sqrt(xp.pi / alpha) * error_function(gamma * xp.sqrt(alpha / (alpha + lambdas**2)))
    integrals = integrals / (2 * xp.sqrt(spread * 2 * xp.pi))
    return (coefficients * integrals).sum(0) + 0.5 * coefficients.sum()


LEAST_PROBABILITY = 1e-30


def _log_of_two(binary, x):
    xp, p = namespace(x), binary(x)
    return xp.log(xp.maximum(xp.stack([1 - p, p], axis=1), LEAST_PROBABILITY))


def _log_of_many(binaries, x):
    xp = namespace(x)
    p = xp.stack([binary(x) for binary in binaries], axis=1)
    return xp.log(xp.maximum(p / p.sum(1, keepdims=True), LEAST_PROBABILITY))
