"""scikit-learn's transformers as functions of arrays."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .arrays import Array, Named, clipped, fitted, namespace, root
from .linear import projected
from .registry import adapts

# What a scaler subtracts, and the options of whether it shifts and scales.
SCALERS = {
    "StandardScaler": ("mean_", "with_mean", "with_std"),
    "RobustScaler": ("center_", "with_centering", "with_scaling"),
}


@adapts(*SCALERS)
def scaler(estimator: Any) -> Partial:
    """Write (x − mean or median) / deviation or range of quantiles, each where it is asked for."""
    centre, shifts, scales = SCALERS[type(estimator).__name__]
    shift = fitted(estimator, centre) if getattr(estimator, shifts) else np.zeros(1)
    return Partial(_shifted, shift, 1 / fitted(estimator, "scale_") if getattr(estimator, scales) else np.ones(1))


def _shifted(shift, scale, x):
    return (x - shift) * scale


@adapts("MinMaxScaler")
def min_max(estimator: Any) -> Partial:
    """Write x · scale + min, clipped where it is asked for."""
    low, high = estimator.feature_range if estimator.clip else (-np.inf, np.inf)
    return Partial(_scaled, fitted(estimator, "scale_"), fitted(estimator, "min_"), low, high)


@adapts("MaxAbsScaler")
def max_abs(estimator: Any) -> Partial:
    """Write x / largest size, clipped where it is asked for (scikit-learn 1.9)."""
    limit = 1.0 if getattr(estimator, "clip", False) else np.inf
    return Partial(_scaled, 1 / fitted(estimator, "scale_"), np.zeros(1), -limit, limit)


def _scaled(scale, shift, low, high, x):
    return clipped(low, high, x * scale + shift)


class Length(Named):
    """The length of rows in a norm of scikit-learn's."""

    table = {
        "l1": lambda x: abs(x).sum(1, keepdims=True),
        "l2": lambda x: root((x**2).sum(1, keepdims=True)),
        "max": lambda x: abs(x).max(1, keepdims=True),
    }


@adapts("Normalizer")
def normalizer(estimator: Any) -> Partial:
    """Write rows of length one."""
    if estimator.norm not in Length.table:
        raise TypeError(f"a Normalizer with the norm {estimator.norm!r} has no differentiable form")
    return Partial(_of_length_one, Partial(Length(estimator.norm)))


def _of_length_one(length, x):
    size = length(x)
    return x / namespace(x).where(size == 0, 1, size)


@adapts("PCA")
def pca(estimator: Any) -> Partial:
    """Write coordinates on principal axes."""
    basis = fitted(estimator, "components_").T
    if estimator.whiten:
        spread = np.sqrt(fitted(estimator, "explained_variance_"))
        basis = basis / np.maximum(spread, np.finfo(spread.dtype).eps)
    return Partial(projected, fitted(estimator, "mean_"), basis)


@adapts("RBFSampler")
def rbf_sampler(estimator: Any) -> Partial:
    """Write random Fourier features."""
    weights, offset = fitted(estimator, "random_weights_"), fitted(estimator, "random_offset_")
    return Partial(_random_waves, math.sqrt(2 / estimator.n_components), weights, offset)


def _random_waves(share, weights, offset, x):
    return share * namespace(x).cos(x @ weights + offset)


@adapts("PolynomialFeatures")
def polynomial(estimator: Any) -> Partial:
    """Write products of features."""
    # which features are multiplied, with a last one that is 1 to fill up
    n, powers = estimator.n_features_in_, estimator.powers_
    factors = np.full((len(powers), max(int(powers.sum(1).max(initial=0)), 1)), n)
    for row, exponents in zip(factors, powers, strict=True):
        multiplied = np.repeat(np.arange(n), exponents)
        row[: len(multiplied)] = multiplied

    return Partial(_products_of, factors)


def _products_of(factors, x):
    xp = namespace(x)
    return xp.concatenate([x, xp.ones((len(x), 1), x.dtype)], axis=1)[:, factors].prod(2)


@adapts("SelectFromModel", "SelectKBest", "SelectPercentile", "VarianceThreshold")
def selector(estimator: Any) -> Partial:
    """Write the chosen features."""
    return Partial(chosen, np.flatnonzero(estimator.get_support()))


def chosen(columns: np.ndarray, x: Array) -> Array:
    """Take some columns of x."""
    return x[:, columns]


@adapts("SimpleImputer")
def imputer(estimator: Any) -> Partial:
    """Write the columns that are kept, with statistics for what is missing, and which values were missing."""
    try:
        statistics = np.asarray(estimator.statistics_, np.float64)
    except (TypeError, ValueError):
        raise TypeError("a SimpleImputer of values that are no numbers has no differentiable form") from None
    empty = np.isnan(statistics) & (not estimator.keep_empty_features)
    shown: Any = []
    if estimator.add_indicator:
        if getattr(estimator, "indicator_", None) is None:
            raise TypeError("a SimpleImputer with add_indicator that was fitted without it has no form")
        shown = estimator.indicator_.features_
    # None and pandas.NA are missing as NaN in numbers
    missing = float(estimator.missing_values) if isinstance(estimator.missing_values, Real) else np.nan
    return Partial(_filled, missing, statistics, np.flatnonzero(~empty), np.asarray(shown, int))


def _filled(missing, statistics, kept, shown, x):
    xp = namespace(x)
    unknown = (x == xp.asarray(missing, x.dtype)) | (xp.isnan(x) & xp.isnan(missing))
    filled = xp.where(unknown, xp.asarray(statistics, x.dtype), x)
    return xp.concatenate([filled[:, kept], unknown[:, shown].astype(x.dtype)], axis=1)


@adapts("FunctionTransformer")
def function(estimator: Any) -> Partial:
    """Write the function, which has to be one of NumPy's that JAX has too, or one in JAX."""
    return function_of(estimator.func, estimator.kw_args, "func", getattr(estimator, "n_features_in_", None))


def function_of(func: Callable | None, options: dict | None, name: str, width: int | None = None) -> Partial:
    """Write a function of a user's; None is the identity.

    Raises
    ------
    TypeError
        If JAX cannot trace it.
    """
    if func is None:
        return Partial(unchanged)
    try:
        own = Function(func, tuple(sorted((options or {}).items())))
        hash(own)
        for n in (width,) if width else (1, 3):
            jax.eval_shape(own, jax.ShapeDtypeStruct((2, n), jnp.result_type(float)))
    except Exception as error:
        raise TypeError(
            f"a FunctionTransformer with {name}={func!r} has no differentiable form: JAX cannot run it "
            f"({str(error).splitlines()[0][:120]}). Write it with jax.numpy"
        ) from error
    return Partial(own)


@dataclass(frozen=True)
class Function:
    """A function of a user's with its options, of arrays of NumPy or JAX."""

    func: Callable
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Array) -> Array:
        """Call it; of JAX's arrays JAX's function of the same name, where it is one of NumPy's."""
        func = self.func
        if isinstance(x, jax.Array):
            name = getattr(func, "__name__", "")
            func = getattr(jnp, name) if getattr(np, name, None) is func and hasattr(jnp, name) else func
            return func(x, **dict(self.options))
        return np.asarray(func(x, **dict(self.options)))


def unchanged(x: Array) -> Array:
    """Give back x."""
    return x
