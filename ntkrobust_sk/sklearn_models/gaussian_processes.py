"""Gaussian processes: covariances, predictions, and log probabilities of classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import error_function, fitted, namespace, root, solve_lower
from .kernel_machines import expanded_distances, expansion, squared_distances
from .registry import adapts


def covariance(kernel: Any) -> Partial:
    """Return ``k(x, z)`` of a scikit-learn Gaussian process kernel between different points, a pytree."""
    from sklearn.gaussian_process import kernels

    kind = type(kernel)
    if kind in (kernels.Sum, kernels.Product):
        return Partial(_sum if kind is kernels.Sum else _product, covariance(kernel.k1), covariance(kernel.k2))
    if kind is kernels.Exponentiation:
        return Partial(_power, covariance(kernel.kernel), kernel.exponent)
    if kind is kernels.ConstantKernel:
        return Partial(_constant, _number(kernel.constant_value))
    if kind is kernels.WhiteKernel:
        return Partial(_constant, 0.0)
    if kind is kernels.DotProduct:
        return Partial(_dot_product, _number(kernel.sigma_0))
    if kind is kernels.RBF:
        return Partial(_squared_exponential, _number(kernel.length_scale))
    if kind is kernels.RationalQuadratic:
        return Partial(_rational_quadratic, _number(kernel.alpha), _number(kernel.length_scale))
    if kind is kernels.ExpSineSquared:
        return Partial(_periodic, _number(kernel.length_scale), _number(kernel.periodicity))
    if kind is kernels.Matern and kernel.nu in MATERN:
        return Partial(MATERN[kernel.nu], _number(kernel.length_scale))
    raise TypeError(f"the Gaussian process kernel {kernel!r} has no differentiable form here")


def variance(kernel: Any) -> Partial:
    """Return ``k(x, x)`` of each row, for the kernels that :func:`covariance` knows; white noise counts here."""
    from sklearn.gaussian_process import kernels

    kind = type(kernel)
    if kind in (kernels.Sum, kernels.Product):
        return Partial(_sum if kind is kernels.Sum else _product, variance(kernel.k1), variance(kernel.k2))
    if kind is kernels.Exponentiation:
        return Partial(_power, variance(kernel.kernel), kernel.exponent)
    if kind is kernels.ConstantKernel:
        return Partial(_constant_at, _number(kernel.constant_value))
    if kind is kernels.WhiteKernel:
        return Partial(_constant_at, _number(kernel.noise_level))
    if kind is kernels.DotProduct:
        return Partial(_dot_product_at, _number(kernel.sigma_0))
    return Partial(_constant_at, 1.0)


def _number(value):
    """Return a kernel's number, or one for each feature as an array: scikit-learn takes lists and tuples too."""
    value = np.asarray(value, np.float64)
    return float(value) if value.ndim == 0 else value


# Of a covariance, which is asked for two sets of points, and of a variance, which is asked for one.
def _sum(first, second, *points):
    return first(*points) + second(*points)


def _product(first, second, *points):
    return first(*points) * second(*points)


def _power(inner, exponent, *points):
    return inner(*points) ** exponent


def _constant(value, x, z):
    return namespace(x).full((len(x), len(z)), value, x.dtype)


def _constant_at(value, x):
    return namespace(x).full(len(x), value, x.dtype)


def _dot_product(sigma_0, x, z):
    return x @ z.T + sigma_0**2


def _dot_product_at(sigma_0, x):
    return (x * x).sum(1) + sigma_0**2


def _squared_exponential(length_scale, x, z):
    return namespace(x).exp(-expanded_distances(x / length_scale, z / length_scale) / 2)


def _rational_quadratic(alpha, length_scale, x, z):
    return (1 + squared_distances(x, z) / (2 * alpha * length_scale**2)) ** -alpha


def _periodic(length_scale, periodicity, x, z):
    xp = namespace(x)
    angles = xp.pi * root(squared_distances(x, z)) / periodicity
    return xp.exp(-2 * (xp.sin(angles) / length_scale) ** 2)


def _matern_half(length_scale, x, z):
    return namespace(x).exp(-root(squared_distances(x / length_scale, z / length_scale)))


def _matern_three_halves(length_scale, x, z):
    r = root(3 * squared_distances(x / length_scale, z / length_scale))
    return (1 + r) * namespace(x).exp(-r)


def _matern_five_halves(length_scale, x, z):
    r = root(5 * squared_distances(x / length_scale, z / length_scale))
    return (1 + r + r**2 / 3) * namespace(x).exp(-r)


# By the smoothness ν.
MATERN = {
    0.5: _matern_half,
    1.5: _matern_three_halves,
    2.5: _matern_five_halves,
    math.inf: _squared_exponential,
}


@adapts("GaussianProcessRegressor")
def gaussian_regressor(estimator: Any) -> Partial:
    """Write the mean of a Gaussian process regressor."""
    mean, std = fitted(estimator, "_y_train_mean"), fitted(estimator, "_y_train_std")
    inputs = fitted(estimator, "X_train_")
    dual = fitted(estimator, "alpha_").reshape(len(inputs), -1) * std
    return Partial(expansion, covariance(estimator.kernel_), inputs, dual, mean)


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
    return Partial(_averaged_sigmoid, covariance(kernel), variance(kernel), inputs, y - pi, roots, factor)


def _averaged_sigmoid(kernel, own_variance, z, residual, roots, factor, x):
    xp, cross = namespace(x), kernel(x, z)
    mean = cross @ residual
    v = solve_lower(factor, roots[:, None] * cross.T)
    spread = own_variance(x) - (v**2).sum(0)
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
