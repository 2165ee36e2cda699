"""Tangent features of a model: gradients of its outputs, example by example, and products with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..networks.inputs import PyTree
from ..networks.model import Model, Variables
from .gradients import Factors, Whole
from .jaxpr import pushes_forward
from .per_example import contract_gradients, layer_gradients


def tangent_features(model: Model, x: jax.Array, seeds=None, *, all_pairs: bool = False) -> list[Whole | Factors]:
    """Gradients of every ⟨seed_r, f⟩ at every input, one entry for each parameter array.

    Parameters
    ----------
    model : Model
    x : array (n, ...)
    seeds : array (R, C), default=None
        Directions in output space; None is the identity, the logits themselves.
    all_pairs : bool, default=False
        Whether gradients of different seeds will be contracted with each other.

    Returns
    -------
    list of Whole or Factors
        In the order of ``jax.tree.leaves(params)``, each for R seeds and n examples; biases may be in the entry
        of their weights, see :func:`.factors.separated`.
    """
    seeds = identity_seeds(model, x) if seeds is None else seeds
    with jax.default_matmul_precision("highest"):
        return layer_gradients(_as_function(model), model.variables.params, x, seeds, all_pairs=all_pairs)


def identity_seeds(model: Model, x) -> jax.Array:
    """One seed for each logit, (C, C), in single precision at least."""
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    return jnp.eye(logits.shape[1], dtype=jnp.promote_types(logits.dtype, jnp.float32))


def contract_features(model: Model, x: jax.Array, tangents: PyTree, seeds=None) -> jax.Array:
    """Σ_r ⟨∇⟨seed_r, f(x_i)⟩, W_rt⟩, an array (n, T), for tangents W with leaves (R, T, *leaf.shape)."""
    with jax.default_matmul_precision("highest"):
        return contract_gradients(_as_function(model), model.variables.params, x, tangents, seeds)


def can_push(model: Model, x: jax.Array) -> bool:
    """Whether :func:`push` and :func:`contract_features` are possible, and as exact as the features."""
    return pushes_forward(_as_function(model), model.variables.params, x)


def push(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """J(x) w for m tangent vectors w: array (m, n, C) from leaves (m, *leaf.shape)."""
    apply = _as_function(model)

    def one(tangent):
        return jax.jvp(lambda params: apply(params, x), (model.variables.params,), (tangent,))[1]

    with jax.default_matmul_precision("highest"):
        if len(jax.tree.leaves(tangents)[0]) == 1:
            # XLA knows an ordinary convolution better than one for each of a single tangent
            return one(jax.tree.map(lambda leaf: leaf[0], tangents))[None]
        return jax.vmap(one)(tangents)


def _as_function(model: Model):
    """The logits as a function of parameters and inputs."""
    return lambda params, x: Model(model.network, Variables(params, model.variables.state))(x)
