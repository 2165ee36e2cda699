"""Which model a matrix is of: what stands in its place where a kernel needs none, and that it has numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._validation import brief
from ..networks.chosen_parameters import restricted
from ..networks.inputs import LogitsAndState, PyTree
from ..networks.model import Model, Variables, require_model
from .ntk import Kernel, resolve_kernel


@dataclass(frozen=True)
class NoNetwork:
    """A network that computes nothing: the kernel needs none."""

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Return one zero, whose dtype is that of the inputs."""
        return Variables(jnp.zeros(1))

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Raise: there are no logits."""
        raise TypeError("this kernel has no model, and so no logits; give gram a model, not None")


def model_for(kernel: Kernel, model: Any, params: Any = None) -> Model:
    """Return a kernel's model with the parameters that it takes; None stands for one where the kernel needs none.

    Raises
    ------
    TypeError, ValueError
        As :func:`~ntkrobust_sk.networks.model.require_model`, also for None where the kernel needs a model; as
        :func:`~ntkrobust_sk.networks.chosen_parameters.restricted`, and for ``params`` of a kernel that has none.
    """
    if params is not None:
        if not kernel.is_tangent:
            raise ValueError(
                f"params={brief(params)} restricts tangent kernels, which are sums over parameters, but "
                f"{kernel!r} is a function of the inputs or of your own; leave params out, or give a function the "
                "model ntkrobust_sk.networks.restricted(model, params)"
            )
        return restricted(model, params)
    if model is None and not kernel.needs_model:
        return Model(NoNetwork(), Variables(jnp.zeros(1)))
    return require_model(model)


def where_to_look(kernel: Any) -> str:
    """Say where numbers that are not finite come from."""
    if resolve_kernel(kernel).needs_model:
        return "look for overflow in the network's parameters or inputs"
    return "the inputs are too large or too small for this precision: scale them, or take dtype='float64'"


def require_numbers(kernel: Kernel, given: dict[str, Any]) -> None:
    """Raise TypeError for a model or inputs, by name, that a transformation of JAX has no numbers of yet."""
    for name, value in given.items():
        leaves = jax.tree.leaves(value) if isinstance(value, Model) else [value]
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            raise TypeError(
                f"{name} is traced by a transformation of JAX (jit, grad, vmap), and a Gram matrix is made on the "
                f"host, tile by tile. Inside of one call the kernel itself, {kernel!r}(model, x1, x2), or ask "
                "outside of it"
            )
