"""Tangent features of a model: gradients of its outputs, example by example, and products with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..networks.inputs import PyTree
from ..networks.model import Model, Variables
from .gradients import DenseGradients, OuterProducts
from .jaxpr import pushes_forward
from .per_example import contract_gradients, layer_gradients


def tangent_features(
    model: Model, x: jax.Array, directions=None, *, all_pairs: bool = False
) -> list[DenseGradients | OuterProducts]:
    """Compute the gradients of every ⟨d_r, f⟩ at every input, one entry for each parameter array.

    Parameters
    ----------
    model : Model
    x : array (n, ...)
    directions : array (R, C), default=None
        Directions in output space; None is the identity, the logits themselves.
    all_pairs : bool, default=False
        Whether gradients of different directions will be contracted with each other.

    Returns
    -------
    list of DenseGradients or OuterProducts
        In the order of ``jax.tree.leaves(params)``, each for R directions and n examples; biases may be in the
        entry of their weights, see :func:`.gradient_lists.split_biases`.
    """
    directions = identity_directions(model, x) if directions is None else directions
    with jax.default_matmul_precision("highest"):
        return layer_gradients(_as_function(model), model.variables.params, x, directions, all_pairs=all_pairs)


def identity_directions(model: Model, x) -> jax.Array:
    """Return one direction for each logit, (C, C), in single precision at least."""
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    return jnp.eye(logits.shape[1], dtype=jnp.promote_types(logits.dtype, jnp.float32))


def contract_features(model: Model, x: jax.Array, tangents: PyTree, directions=None) -> jax.Array:
    """Compute Σ_r ⟨∇⟨d_r, f(x_i)⟩, W_rt⟩, an array (n, T), for tangents W with leaves (R, T, *leaf.shape)."""
    with jax.default_matmul_precision("highest"):
        return contract_gradients(_as_function(model), model.variables.params, x, tangents, directions)


def can_push(model: Model, x: jax.Array) -> bool:
    """Tell whether :func:`push` and :func:`contract_features` are possible, and as exact as the features."""
    return pushes_forward(_as_function(model), model.variables.params, x)


def push(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """Compute J(x) w for m tangent vectors w: array (m, n, C) from leaves (m, *leaf.shape)."""
    apply = _as_function(model)

    def one(tangent):
        return jax.jvp(lambda params: apply(params, x), (model.variables.params,), (tangent,))[1]

    with jax.default_matmul_precision("highest"):
        if len(jax.tree.leaves(tangents)[0]) == 1:
            # XLA knows an ordinary convolution better than one for each of a single tangent
            return one(jax.tree.map(lambda leaf: leaf[0], tangents))[None]
        return jax.vmap(one)(tangents)


def _as_function(model: Model):
    """Return the logits as a function of parameters and inputs."""
    return lambda params, x: Model(model.network, Variables(params, model.variables.state))(x)
