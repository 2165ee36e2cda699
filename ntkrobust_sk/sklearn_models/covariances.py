"""Kernels of scikit-learn's Gaussian processes as functions, sums, products and powers of them included."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .._validation import brief
from .arrays import Array, namespace, root
from .registry import DifferentiableCovariance


def squared_distances(x: Array, z: Array) -> Array:
    """Compute squared distances (n, m) of rows x (n, d), z (m, d) by differences, exact where they are close."""
    return ((x[:, None] - z) ** 2).sum(2)


def expanded_distances(x: Array, z: Array) -> Array:
    """Compute them as |x|² + |z|² − 2⟨x, z⟩ from z's centre: one product, for what is smooth where they meet."""
    centre = z.mean(0)
    x, z = x - centre, z - centre
    # a sum: the gradients of its parts are one array, and not a second one of the other sign
    return (x**2).sum(1)[:, None] + (z**2).sum(1) + x @ (-2 * z).T


def is_covariance(kernel: Any) -> bool:
    """Tell whether it is a kernel of scikit-learn's Gaussian processes, without importing these.

    >>> from sklearn.gaussian_process.kernels import RBF
    >>> is_covariance(RBF() * 2), is_covariance("rbf")
    (True, False)
    """
    return any(of.__module__ == "sklearn.gaussian_process.kernels" for of in type(kernel).__mro__)


def remembered(kernel: Any, z: Any) -> Any:
    """Return training rows (m, d) in the form in which ``covariance(kernel)(x, z)`` takes them fastest.

    Of sums and products that is a pair: each part has a form of its own.
    """
    if isinstance(kernel, DifferentiableCovariance):
        return kernel.remembered(z)
    if hasattr(kernel, "k1"):
        return remembered(kernel.k1, z), remembered(kernel.k2, z)
    return remembered(kernel.kernel, z) if hasattr(kernel, "exponent") else z


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
        raise TypeError(f"the kernel {brief(kernel)} of sklearn.gaussian_process has no differentiable form here")
    found = Partial(form, *(_number(getattr(kernel, name)) for name in names))
    return found if form in (_constant, _dot_product) else Partial(_stationary, found)


def _number(value):
    """Return a kernel's number, or one for each feature as an array: scikit-learn takes lists and tuples too."""
    value = np.asarray(value, np.float64)
    return float(value) if value.ndim == 0 else value


def _sum(first, second, x, z=None):
    ours, theirs = _points(x, z)
    return first(*ours) + second(*theirs)


def _product(first, second, x, z=None):
    ours, theirs = _points(x, z)
    return first(*ours) * second(*theirs)


def _points(x, z):
    """Return what each of two parts is called with: rows, and training rows in its own form."""
    if z is None:
        return (x,), (x,)
    return [(x, side) for side in (z if isinstance(z, tuple) else (z, z))]


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
