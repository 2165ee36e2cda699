"""The tangent space of a network at given parameters: linearisation, per-example gradients, folding."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .networks import Model, Network, PyTree, Variables
from .structure import contract_gradients, per_example_gradients


@dataclass(frozen=True)
class Linearized:
    """A network's first-order expansion around an anchor, as a network of its own.

    Its parameters are the displacement ω = θ − θ_t, its state is the anchor (parameters θ_t and the state
    there), and it computes f(x; θ_t) + J(x) ω, or J(x) ω alone when ``centered``. Taking the displacement
    rather than θ itself as the parameter loses no digits to θ − θ_t; gradient steps are the same.

    Parameters
    ----------
    network : Network
    centered : bool, default=False
        Drop f(x; θ_t). The logits are then zero everywhere at the start.

    References
    ----------
    Loo et al. 2022, arXiv:2210.12030, "linearised" and "centred" dynamics.
    """

    network: Network
    centered: bool = False

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw an anchor; the displacement from it is zero."""
        return _at_anchor(self.network.init(key, input_shape))

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the unchanged anchor. The anchor's own state stays in evaluation mode."""

        def at(theta):
            return self.network.apply(theta, state.state, x, train=False)[0]

        logits, change = jax.jvp(at, (state.params,), (params,))
        return (change if self.centered else logits + change), state


def linearize(model: Model, *, centered: bool = False) -> Model:
    """The model's linearisation around its own parameters.

    Parameters
    ----------
    model : Model
    centered : bool, default=False
        Drop the zeroth-order term f(x; θ_t).

    Returns
    -------
    Model
        Equal to ``model`` everywhere (or zero, when centred) until its displacement is trained.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (3,)))
    >>> x = jax.numpy.ones((1, 3))
    >>> bool((linearize(model)(x) == model(x)).all()), linearize(model, centered=True)(x).tolist()
    (True, [[0.0, 0.0]])
    """
    return Model(Linearized(model.network, centered), _at_anchor(model.variables))


def _at_anchor(anchor: Variables) -> Variables:
    return Variables(jax.tree.map(jnp.zeros_like, anchor.params), anchor)


def tangent_features(model: Model, x: jax.Array) -> list[jax.Array]:
    """Gradients of every logit at every input, one array for each parameter array.

    Parameters
    ----------
    model : Model
    x : array (n, ...)

    Returns
    -------
    list of arrays (n, C, p)
        ∂ f_c(x_i) / ∂ θ_l with θ_l flattened to p numbers, in the order of ``jax.tree.leaves(params)``.
    """
    with jax.default_matmul_precision("highest"):
        gradients = per_example_gradients(_as_function(model), model.variables.params, x)
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(gradients)]


def summed_features(model: Model, x: jax.Array) -> list[jax.Array]:
    """Gradients of Σ_c f_c at every input: :func:`tangent_features` summed over c, at 1/C of the cost.

    Returns
    -------
    list of arrays (n, p)
    """
    with jax.default_matmul_precision("highest"):
        gradients = per_example_gradients(_as_summed_function(model), model.variables.params, x)
    return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]


def contract_features(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """Σ_k ⟨∇f_k(x_i), W_kt⟩, an array (n, T), for tangents W with leaves (C, T, *leaf.shape)."""
    with jax.default_matmul_precision("highest"):
        return contract_gradients(_as_function(model), model.variables.params, x, tangents)


def contract_summed_features(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """⟨∇ Σ_c f_c(x_i), w_t⟩, an array (n, T), for tangents w with leaves (T, *leaf.shape)."""
    with jax.default_matmul_precision("highest"):
        lifted = jax.tree.map(lambda leaf: leaf[None], tangents)
        return contract_gradients(_as_summed_function(model), model.variables.params, x, lifted)


def push(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """J(x) w for m tangent vectors w: array (m, n, C) from leaves (m, *leaf.shape)."""
    apply = _as_function(model)

    def one(tangent):
        return jax.jvp(lambda params: apply(params, x), (model.variables.params,), (tangent,))[1]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(tangents)


def _as_function(model: Model):
    """The logits as a function of parameters and inputs."""
    return lambda params, x: Model(model.network, Variables(params, model.variables.state))(x)


def _as_summed_function(model: Model):
    """The sum of the logits, (n, 1), as a function of parameters and inputs."""
    apply = _as_function(model)
    return lambda params, x: apply(params, x).sum(1, keepdims=True)
