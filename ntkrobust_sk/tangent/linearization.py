"""A network linearised at given parameters, as a network."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .._validation import flag
from ..networks.inputs import LogitsAndState, PyTree
from ..networks.model import Model, Network, Variables, require_model, require_network
from .jaxpr import holds_custom_vjp


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

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ntkrobust_sk import MLP, Linearized
    >>> network = Linearized(MLP(n_outputs=2, widths=(4,)), centered=True)
    >>> displacement, anchor = network.init(jax.random.key(0), (3,))
    >>> logits = jax.jit(lambda omega: network.apply(omega, anchor, np.ones((1, 3), np.float32))[0])
    >>> once, twice = (jax.tree.map(lambda leaf: np.full_like(leaf, size), displacement) for size in (1, 2))
    >>> bool(np.allclose(logits(twice), 2 * logits(once)))  # linear in the displacement
    True
    """

    network: Network
    centered: bool = False

    def __post_init__(self):
        require_network(self.network)
        flag("centered", self.centered)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw an anchor; the displacement from it is zero."""
        return _at_anchor(self.network.init(key, input_shape))

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Return the logits (n, C) and the unchanged anchor, whose own state stays in evaluation mode."""

        def at(theta):
            return self.network.apply(theta, state.state, x, train=False)[0]

        logits, change = _value_and_change(at, state.params, params)
        return (change if self.centered else logits + change), state


def linearize(model: Model, *, centered: bool = False) -> Model:
    """Return the model's linearisation around its own parameters.

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
    """Return f(θ) and J(θ) ω, by the transposed backward pass where a function has one of its own alone."""
    if not holds_custom_vjp(jax.make_jaxpr(function)(at).jaxpr):
        return jax.jvp(function, (at,), (tangent,))
    value, pull = jax.vjp(function, at)
    _, push = jax.vjp(pull, jnp.zeros_like(value))
    (change,) = push((tangent,))
    return value, change


def _at_anchor(anchor: Variables) -> Variables:
    return Variables(jax.tree.map(jnp.zeros_like, anchor.params), anchor)


DYNAMICS = ("standard", "linearized", "centered")
