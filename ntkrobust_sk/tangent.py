"""The tangent space of a network at given parameters: linearisation, per-example gradients, folding."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ._validation import flag
from .factors import Factors, Whole
from .networks.inputs import PyTree
from .networks.model import Model, Network, Variables, require_model, require_network
from .structure import contract_gradients, holds_custom_vjp, layer_gradients, pushes_forward


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

    def __post_init__(self):
        require_network(self.network)
        flag("centered", self.centered)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw an anchor; the displacement from it is zero."""
        return _at_anchor(self.network.init(key, input_shape))

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the unchanged anchor. The anchor's own state stays in evaluation mode."""

        def at(theta):
            return self.network.apply(theta, state.state, x, train=False)[0]

        logits, change = _value_and_change(at, state.params, params)
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
    require_model(model)
    return Model(Linearized(model.network, centered), _at_anchor(model.variables))


def _value_and_change(function, at, tangent):
    """f(θ) and J(θ) ω; transposed from its backward pass where the function has one of its own alone."""
    if not holds_custom_vjp(jax.make_jaxpr(function)(at).jaxpr):
        return jax.jvp(function, (at,), (tangent,))
    value, pull = jax.vjp(function, at)
    _, push = jax.vjp(pull, jnp.zeros_like(value))
    (change,) = push((tangent,))
    return value, change


def _at_anchor(anchor: Variables) -> Variables:
    return Variables(jax.tree.map(jnp.zeros_like, anchor.params), anchor)


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
