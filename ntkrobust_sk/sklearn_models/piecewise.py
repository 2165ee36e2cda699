"""scikit-learn's transformers of single features: quantiles, powers, splines, and categories that are numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted

from .arrays import Array, Named, clipped, dense, fitted, namespace
from .linear import chained
from .registry import ADAPTERS, adapts
from .transformers import unchanged

# So far inside of the quantiles' ends, scikit-learn takes an input for one that lies there, and keeps the normal
# distribution's quantiles finite.
AT_THE_END = 1e-7


def positions(edges: Array, x: Array, side: str) -> Array:
    """Find where each feature of x (n, d) belongs among its own edges (m, d), as ``searchsorted`` does: (n, d)."""
    if isinstance(x, jax.Array):
        find = jax.vmap(lambda e, column: jnp.searchsorted(e, column, side=side), 1, 1)
        return find(jnp.asarray(edges, x.dtype), x)
    columns = [np.searchsorted(e, column, side) for e, column in zip(edges.T, x.T, strict=True)]  # pyright: ignore
    return np.stack(columns, axis=1) if columns else np.zeros(x.shape, int)


def interpolation(grid: np.ndarray, values: np.ndarray) -> Partial:
    """Write lines between values (m, d) at the points of a grid (m, d), flat beyond its ends.

    At a point that the grid holds several times, it is the mean of what comes before and after.
    """
    gaps = np.diff(grid, axis=0)
    slopes = np.diff(values, axis=0) / np.where(gaps > 0, gaps, np.inf)
    # a last piece goes on flat
    return Partial(_interpolated, grid, np.array(values), np.concatenate([slopes, np.zeros_like(grid[:1])]))


def _interpolated(grid, values, slopes, x):
    xp, features = namespace(x), np.arange(x.shape[1])
    grid = xp.asarray(grid, x.dtype)
    x = xp.clip(x, grid[0], grid[-1])

    def on(piece):
        piece = xp.clip(piece, 0, len(grid) - 1)
        start, value, slope = (xp.asarray(a, x.dtype)[piece, features] for a in (grid, values, slopes))
        return value + (x - start) * slope

    return (on(positions(grid, x, "right") - 1) + on(positions(grid, x, "left") - 1)) / 2


def guided(form: Any, low: Array, high: Array) -> Partial:
    """Hand on the mean slope between low and high (d,) as the gradient, where a rising function's own is zero.

    The function is of each feature by itself, and its values stay as they are. An attack that stands on a flat
    piece so goes on towards where the function rises (backward pass differentiable approximation, Athalye et al.
    2018, arXiv:1802.00420, section 4.1).
    """
    rise = (form(high[None]) - form(low[None]))[0]
    return Partial(_guided, form, rise / np.where(high > low, high - low, np.inf))


def _guided(form, mean_slope, x):
    if not isinstance(x, jax.Array):
        return form(x)
    value, slope = jax.jvp(form, (x,), (jnp.ones_like(x),))
    return value + jnp.where(slope == 0, jnp.asarray(mean_slope, x.dtype), 0) * (x - jax.lax.stop_gradient(x))


@adapts("QuantileTransformer")
def quantiles(estimator: Any) -> Partial:
    """Write the share of training inputs below x, or the normal distribution's quantile of that share.

    Beyond the quantiles, where it is flat, the gradient is its mean slope between them.
    """
    grid = fitted(estimator, "quantiles_")
    shares = np.broadcast_to(fitted(estimator, "references_")[:, None], grid.shape)
    margin = AT_THE_END if estimator.output_distribution == "normal" else 0.0
    parts = [Partial(_share_below, grid[0] + margin, grid[-1] - margin, interpolation(grid, shares))]
    form = Partial(chained, [*parts, Partial(_normal_quantile)] if margin else parts)
    return guided(form, grid[0], grid[-1])


def _share_below(low, high, shares, x):
    xp = namespace(x)
    return xp.where(x <= low, 0.0, xp.where(x >= high, 1.0, shares(x)))


def _normal_quantile(share):
    least = AT_THE_END - np.spacing(1)
    share = namespace(share).clip(share, least, 1 - least)
    return (jax.scipy.special if isinstance(share, jax.Array) else scipy.special).ndtri(share)


class Power(Named):
    """A family of powers by scikit-learn's name, of exponents (d,) and x (n, d)."""

    table = {
        "box-cox": lambda exponents, x: _power_of(exponents, namespace(x).log(x)),
        "yeo-johnson": lambda exponents, x: namespace(x).where(
            x >= 0, _grown(exponents, x, 1), -_grown(2 - exponents, x, -1)
        ),
    }


def _grown(exponents, x, sign):
    """Return ((1 + |x|)^λ − 1) / λ where x has this sign, and 0 elsewhere."""
    xp = namespace(x)
    return _power_of(exponents, xp.log1p(xp.where(sign * x > 0, sign * x, 0.0)))


def _power_of(exponents, log):
    """Return (e^(λ log) − 1) / λ, which is the logarithm itself for λ = 0."""
    xp, is_log = namespace(log), abs(exponents) < np.spacing(1.0)
    safe = xp.where(is_log, 1.0, exponents)
    return xp.where(is_log, log, xp.expm1(safe * log) / safe)


class InversePower(Named):
    """The way back of a family of powers, of exponents (d,) and x (n, d)."""

    table = {
        "box-cox": lambda exponents, x: namespace(x).exp(_log_of(exponents, x)),
        "yeo-johnson": lambda exponents, x: namespace(x).where(
            x >= 0, _shrunk(exponents, x, 1), -_shrunk(2 - exponents, x, -1)
        ),
    }


def _shrunk(exponents, x, sign):
    xp = namespace(x)
    return xp.expm1(_log_of(exponents, xp.where(sign * x > 0, sign * x, 0.0)))


def _log_of(exponents, x):
    """Return log(1 + λ x) / λ, which is x itself for λ = 0."""
    xp, is_log = namespace(x), abs(exponents) < np.spacing(1.0)
    safe = xp.where(is_log, 1.0, exponents)
    return xp.where(is_log, x, xp.log1p(xp.where(is_log, 0.0, safe * x)) / safe)


@adapts("PowerTransformer")
def power(estimator: Any) -> Partial:
    """Write powers of the features, scaled where it is asked for."""
    scale = ADAPTERS["StandardScaler"](estimator._scaler) if estimator.standardize else Partial(unchanged)
    return Partial(chained, [Partial(Power(estimator.method), fitted(estimator, "lambdas_")), scale])


@adapts("SplineTransformer")
def splines(estimator: Any) -> Partial:
    """Write each feature's B-splines as polynomials between their knots, and those that go on beyond.

    Where they stay constant beyond, the gradient there is the slope at the last knot.
    """
    check_is_fitted(estimator)
    beyond, kept = estimator.extrapolation, slice(None if estimator.include_bias else -1)
    if beyond == "error":
        raise TypeError(
            "a SplineTransformer with extrapolation='error' refuses inputs beyond its knots, where an attack may "
            "go; fit it with extrapolation='constant'"
        )
    if beyond in ("continue", "periodic") and not all(spline.extrapolate for spline in estimator.bsplines_):
        raise TypeError(f"a SplineTransformer that was fitted without extrapolation={beyond!r} does not go on so")
    edges, starts, coefficients = zip(*(_pieces(spline, beyond) for spline in estimator.bsplines_), strict=True)
    edges, starts = np.stack(edges, 1), np.stack(starts, 1)
    form = Partial(_polynomials, edges, starts, np.stack(coefficients, 2)[..., kept])
    ahead = {"periodic": _wrapped, "constant": clipped}.get(beyond)
    return form if ahead is None else Partial(chained, [Partial(ahead, edges[0], edges[-1]), form])


def _pieces(spline, beyond):
    """Return edges (m,), and where polynomials start (m + 1,), with coefficients (degree + 1, m + 1, B)."""
    edges = spline.t[spline.k : len(spline.t) - spline.k]
    # Taylor's series where each polynomial starts, highest degree first
    degrees = range(spline.k, -1, -1)
    coefficients = np.stack([spline(edges[:-1], nu=of) / math.factorial(of) for of in degrees])
    if beyond in ("continue", "periodic"):
        ends = coefficients[:, [0, -1]]
        starts = edges[[0, -2]]
    else:
        ends, starts = np.zeros_like(coefficients[:, :2]), edges[[0, -1]]
        ends[-1] = [spline(edge) for edge in starts]
        if spline.k:
            ends[-2] = [spline(edge, nu=1) for edge in starts]
    coefficients = np.concatenate([ends[:, :1], coefficients, ends[:, 1:]], axis=1)
    return edges, np.concatenate([starts[:1], edges[:-1], starts[1:]]), coefficients


def _wrapped(low, high, x):
    span = high - low
    return low + namespace(x).mod(x - low, namespace(x).where(span > 0, span, 1.0))


def _polynomials(edges, starts, coefficients, x):
    xp, features = namespace(x), np.arange(x.shape[1])
    piece = positions(edges, x, "right")
    ahead = (x - xp.asarray(starts, x.dtype)[piece, features])[..., None]
    found = 0.0
    for of_degree in coefficients:
        found = found * ahead + xp.asarray(of_degree, x.dtype)[piece, features]
    return xp.reshape(found, (len(x), -1))


@adapts("OneHotEncoder", "OrdinalEncoder")
def encoder(estimator: Any) -> Partial:
    """Write what each category becomes: steps, whose gradient is zero. Categories have to be numbers."""
    name, known = type(estimator).__name__, []
    for values in estimator.categories_:
        try:
            values = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"a {name} of categories that are no numbers is no function of arrays; those of data frames are "
                "looked up"
            ) from None
        known.append(values[np.isfinite(values)])
    if not all(len(values) for values in known):
        raise TypeError(f"a {name} of a column without categories has no form")
    # what one column becomes does not depend on the others
    rows = np.array([[values[0] for values in known]])
    ends = np.cumsum([0, *_widths(estimator)])
    columns = []
    for at, values in enumerate(known):
        own = slice(ends[at], ends[at + 1])
        asked = np.repeat(rows, len(values) + 1, axis=0)
        asked[:, at] = [*values, np.floor(values.max()) + 1.5]
        out = dense(f"what {name} gives", estimator.transform(asked[:-1]))[:, own]
        columns.append((values, np.concatenate([out, _unknown(estimator, asked[-1:], out, own)])))
    return Partial(_categories, columns)


def _widths(estimator):
    return getattr(estimator, "_n_features_outs", [1] * len(estimator.categories_))


def _unknown(estimator, row, out, columns):
    """Return what an unknown category becomes (1, w); where it is an error, nothing."""
    if estimator.handle_unknown == "error":
        return np.zeros((1, out.shape[1]))
    return np.nan_to_num(dense("an unknown category", estimator.transform(row))[:, columns])


def _categories(columns, x):
    xp, blocks = namespace(x), [x[:, :0]]
    for at, (values, out) in enumerate(columns):
        hit = x[:, at : at + 1] == xp.asarray(values, x.dtype)
        hit = xp.concatenate([hit, ~hit.any(1, keepdims=True)], axis=1)
        blocks.append(hit.astype(x.dtype) @ xp.asarray(out, x.dtype))
    return xp.concatenate(blocks, axis=1)
