"""Gaussian processes: covariances, predictions, and log probabilities of classes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import error_function, fitted, namespace, root, solve_lower
from .kernel_machines import expanded_distances, expansion, squared_distances
from .registry import DifferentiableCovariance, adapts


def covariance(kernel: Any) -> Callable:
    """Return a scikit-learn Gaussian process kernel as a function, a pytree.

    ``k(x, z)`` is between different points, ``k(x)`` of each row with itself, where white noise counts.
    """
    from sklearn.gaussian_process import kernels

    if isinstance(kernel, DifferentiableCovariance):
        return kernel.as_function()
    kind = type(kernel)
    if kind in (kernels.Sum, kernels.Product):
        return Partial(_sum if kind is kernels.Sum else _product, covariance(kernel.k1), covariance(kernel.k2))
    if kind is kernels.Exponentiation:
        return Partial(_power, covariance(kernel.kernel), kernel.exponent)
    if kind is kernels.WhiteKernel:
        return Partial(_constant, 0.0, _number(kernel.noise_level))
    forms = {
        kernels.ConstantKernel: (_constant, "constant_value", "constant_value"),
        kernels.DotProduct: (_dot_product, "sigma_0"),
        kernels.RBF: (_squared_exponential, "length_scale"),
        kernels.RationalQuadratic: (_rational_quadratic, "alpha", "length_scale"),
        kernels.ExpSineSquared: (_periodic, "length_scale", "periodicity"),
        kernels.Matern: (MATERN.get(getattr(kernel, "nu", math.nan)), "length_scale"),
    }
    form, *names = forms.get(kind, (None,))
    if form is None:
        raise TypeError(f"the Gaussian process kernel {kernel!r} has no differentiable form here")
    found = Partial(form, *(_number(getattr(kernel, name)) for name in names))
    return found if form in (_constant, _dot_product) else Partial(_stationary, found)


def _number(value):
    """Return a kernel's number, or one for each feature as an array: scikit-learn takes lists and tuples too."""
    value = np.asarray(value, np.float64)
    return float(value) if value.ndim == 0 else value


def _sum(first, second, *points):
    return first(*points) + second(*points)


def _product(first, second, *points):
    return first(*points) * second(*points)


def _power(inner, exponent, *points):
    return inner(*points) ** exponent


def _constant(between, own, x, z=None):
    shape, value = (len(x), own) if z is None else ((len(x), len(z)), between)
    return namespace(x).full(shape, value, x.dtype)


def _dot_product(sigma_0, x, z=None):
    return ((x * x).sum(1) if z is None else x @ z.T) + sigma_0**2


def _stationary(form, x, z=None):
    return _constant(1.0, 1.0, x) if z is None else form(x, z)


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
    return Partial(_averaged_sigmoid, covariance(binary.kernel_), inputs, y - pi, roots, factor)


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
