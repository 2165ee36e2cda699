"""Kernel predictors as models: callable pytrees from inputs to scores, dual and primal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .gram import pad_rows, parse_memory, plan_tiles, tile_features
from .kernels import HIGHEST
from .networks import Model, PyTree, params_dtype

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "x_fit", "dual_coef", "offset"],
    meta_fields=["kernel"],
)
@dataclass(frozen=True, eq=False)
class DualPredictor:
    """Kernel predictor x ↦ offset + Σ_i K(x, x_i) dual_i, evaluated against every training point.

    Attributes
    ----------
    kernel : callable
        ``kernel(model, x1, x2) -> block`` of rank 2, 3 or 4.
    model : Model
    x_fit : array (n, ...)
    dual_coef : array (n, C)
    offset : array (C,)
    """

    kernel: Callable
    model: Model
    x_fit: jax.Array
    dual_coef: jax.Array
    offset: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores (n, C)."""
        block = self.kernel(self.model, x, self.x_fit)
        equation = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}[block.ndim]
        return self.offset + jnp.einsum(equation, block, self.dual_coef, precision=HIGHEST)


@partial(jax.tree_util.register_dataclass, data_fields=["model", "tangents", "offset"], meta_fields=["kernel"])
@dataclass(frozen=True, eq=False)
class PrimalPredictor:
    """The same predictor with the training points folded into tangent vectors.

    Its cost does not depend on how many training points there were.

    Attributes
    ----------
    kernel : TraceNTK, ClassNTK, FullNTK or PseudoNTK
    model : Model
    tangents : pytree of arrays
        What ``kernel.fold`` makes of training inputs and dual coefficients.
    offset : array (C,)
    """

    kernel: Callable
    model: Model
    tangents: PyTree
    offset: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores (n, C)."""
        return self.offset + self.kernel.predict(self.model, self.tangents, x)


def make_predictor(kernel, model: Model, X: np.ndarray, dual_coef, offset, *, memory: str | int = "2GiB"):
    """The predictor of dual coefficients, in whichever form answers a query with fewer operations.

    Dual coefficients are large and of both signs when alpha is small, so they are folded in float64.
    Both need the query's tangent features; what remains is a product with n training points in the dual
    form and with T targets in the primal form. So the primal form is taken when n > T, and the training
    points are folded into tangents once, tile by tile.

    Parameters
    ----------
    kernel : callable
    model : Model
    X : array (n, ...)
        Training inputs.
    dual_coef : array (n, T)
    offset : array (T,)
        Added to every score.
    memory : str or int, default="2GiB"
        Budget that decides how many rows are folded at a time.

    Returns
    -------
    PrimalPredictor or DualPredictor
    """
    dtype = params_dtype(model.variables.params)
    X, offset = np.asarray(X, dtype), jnp.asarray(np.asarray(offset, dtype))
    if not hasattr(kernel, "fold") or len(X) <= dual_coef.shape[1]:
        return DualPredictor(kernel, model, jnp.asarray(X), jnp.asarray(np.asarray(dual_coef, dtype)), offset)
    rows, _ = plan_tiles(kernel, model, X.shape[1:], parse_memory(memory))
    # padded rows have the coefficient zero
    dual = np.zeros((-(-len(X) // rows) * rows, dual_coef.shape[1]))
    dual[: len(X)] = dual_coef
    tangents = None
    for start in range(0, len(X), rows):
        features = tile_features(kernel, model, pad_rows(X[start : start + rows], rows))
        with enable_x64(True):
            tangents = _add_folded(kernel, tangents, features, dual[start : start + rows])
    with enable_x64(True):
        tangents = _shaped_like(model.variables.params, tangents)
    return PrimalPredictor(kernel, model, tangents, offset)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_folded(kernel, tangents, features, dual):
    folded = kernel.fold(features, dual)
    return folded if tangents is None else jax.tree.map(jnp.add, tangents, folded)


@jax.jit
def _shaped_like(params, tangents):
    """Arrays (..., p) as a pytree with leaves (..., *leaf.shape) in the parameters' own precision."""
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(tangents, leaves, strict=True)
    return jax.tree.unflatten(tree, [w.reshape(*w.shape[:-1], *v.shape).astype(v.dtype) for w, v in pairs])
