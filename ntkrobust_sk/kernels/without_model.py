"""What stands in a model's place where a kernel is a function of the inputs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..networks.inputs import LogitsAndState, PyTree
from ..networks.model import Model, Variables, require_model
from .ntk import Kernel


@dataclass(frozen=True)
class NoNetwork:
    """A network that computes nothing: the kernel needs none."""

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Return one zero, whose dtype is that of the inputs."""
        return Variables(jnp.zeros(1))

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Raise: there are no logits."""
        raise TypeError("this kernel has no model, and so no logits; give gram a model, not None")


def model_for(kernel: Kernel, model: Any) -> Model:
    """Return a kernel's model; None stands for one where the kernel needs none.

    Raises
    ------
    TypeError, ValueError
        As :func:`~ntkrobust_sk.networks.model.require_model`, also for None where the kernel needs a model.
    """
    if model is None and not kernel.needs_model:
        return Model(NoNetwork(), Variables(jnp.zeros(1)))
    return require_model(model)
