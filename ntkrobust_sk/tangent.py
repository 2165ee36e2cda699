"""The tangent space of a network at given parameters: linearisation, per-example gradients, folding."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ._validation import check_choice
from .factors import Factors, Whole, separated
from .networks import Model, Network, PyTree, Variables, require_model, require_network
from .structure import contract_gradients, layer_gradients


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
        check_choice("centered", self.centered, (False, True))

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
    require_model(model)
    return Model(Linearized(model.network, centered), _at_anchor(model.variables))


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
    """One seed for each logit, (C, C)."""
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    return jnp.eye(logits.shape[1], dtype=logits.dtype)


def contract_features(model: Model, x: jax.Array, tangents: PyTree, seeds=None) -> jax.Array:
    """Σ_r ⟨∇⟨seed_r, f(x_i)⟩, W_rt⟩, an array (n, T), for tangents W with leaves (R, T, *leaf.shape)."""
    with jax.default_matmul_precision("highest"):
        return contract_gradients(_as_function(model), model.variables.params, x, tangents, seeds)


def backward_mismatch(model: Model, x: jax.Array, seeds, features: list[Whole | Factors], key) -> jax.Array:
    """How far features are from what one plain backward pass through the whole batch gives.

    With random weights w, Σ_ir w_ir ∇⟨seed_r, f(x_i)⟩ is computed both ways, and the largest difference in
    norm of any parameter array is returned, relative to that array's own norm (or to a thousandth of the
    norm of all, where that is larger).

    Returns
    -------
    array ()
    """
    weights = jax.random.normal(key, (len(seeds), len(x), 1), seeds.dtype)
    with jax.default_matmul_precision("highest"):
        _, pull = jax.vjp(lambda params: _as_function(model)(params, x), model.variables.params)
        (expected,) = pull(jnp.einsum("rnt,rc->nc", weights, seeds))
        found = [leaf.layout.undo(leaf.weighted(weights).sum((0, 1))) for leaf in separated(features)]
    expected = jax.tree.leaves(expected)
    norms = jnp.array([jnp.linalg.norm(leaf) for leaf in expected])
    errors = [jnp.linalg.norm(a - b) for a, b in zip(found, expected, strict=True)]
    floor = jnp.maximum(1e-3 * jnp.linalg.norm(norms), jnp.finfo(norms.dtype).tiny)
    return jnp.max(jnp.array(errors) / jnp.maximum(norms, floor))


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
