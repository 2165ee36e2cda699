"""Networks of Flax Linen and Flax NNX as networks of this library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .._validation import brief
from .foreign import already_built, check_hashable, mode, require, without_lists
from .inputs import LogitsAndState, PyTree
from .model import Model, Variables, require_model


def from_flax(module: Any, variables: Mapping | None = None) -> FlaxNetwork | Model:
    """Make a network of a Flax Linen module, or a model of it and its variables.

    Parameters
    ----------
    module : flax.linen.Module
        ``module(x)`` with x (n, ...) returns logits (n, C). An argument of ``__call__`` that is named
        ``train``, ``training``, ``is_training``, ``deterministic`` or ``use_running_average`` is set by the
        mode; a mode that was fixed when the module was built stays as it is.
    variables : dict, default=None
        What ``module.init`` returned, or training has made of it: ``{"params": ..., "batch_stats": ...}``.

    Returns
    -------
    FlaxNetwork, or Model when given variables
        Its ``params`` are the collection of that name, its ``state`` is the dict of all others, such as
        ``batch_stats``, which only training steps change.

    Raises
    ------
    ImportError
        If Flax is missing.
    TypeError
        If ``module`` is not a Linen module, or has a field that cannot be hashed, such as an array; if
        ``variables`` is no dict with the collection "params".

    Examples
    --------
    >>> import jax
    >>> from flax import linen
    >>> module = linen.Dense(3)
    >>> network = from_flax(module)
    >>> network.init(jax.random.key(0), (4,)).params["kernel"].shape
    (4, 3)
    >>> x = jax.numpy.ones((2, 4))
    >>> from_flax(module, module.init(jax.random.key(0), x))(x).shape
    (2, 3)
    """
    linen = require("flax.linen", "Flax")
    if not isinstance(module, linen.Module):
        raise TypeError(
            f"from_flax needs an instance of flax.linen.Module, got {module!r}; for flax.nnx use from_nnx"
        )
    module = without_lists(linen, module, {})
    check_hashable(module)
    network = FlaxNetwork(module)
    if variables is None:
        return network
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise TypeError(
            'variables must be the dict that module.init returns, {"params": ..., ...}, got '
            f"{brief(list(variables) if isinstance(variables, Mapping) else variables)}; write from_flax(module, "
            '{"params": params})'
        )
    rest = dict(variables)
    return require_model(Model(network, Variables(rest.pop("params"), rest)))


@dataclass(frozen=True)
class FlaxNetwork:
    """A Flax Linen module; made by :func:`from_flax`."""

    module: Any

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw variables, as the module does it itself."""
        x = jnp.zeros((1, *input_shape))
        variables = dict(self.module.init(key, x, **self._mode(train=False)))
        return Variables(variables.pop("params", {}), variables)

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> LogitsAndState:
        """Compute logits (n, C) and the state, updated when ``train`` is true; the key is that of dropout."""
        errors = require("flax.errors", "Flax")
        variables = {**dict(state), "params": params}
        mutable = list(state) if train else []
        try:
            rngs = None if key is None else {"dropout": key}
            logits, updated = self.module.apply(variables, x, mutable=mutable, rngs=rngs, **self._mode(train))
        except errors.InvalidRngError as error:
            raise ValueError(
                f"{type(self.module).__name__} asks for a random key, but networks are applied without one, "
                f"except "
                'in training, where there is one named "dropout"; let it be deterministic in evaluation, by an '
                "argument train or deterministic of its __call__"
            ) from error
        except errors.FlaxError as error:  # which is no ValueError, whatever it says of shapes
            raise ValueError(str(error)) from error
        return logits, ({**state, **updated} if updated else state)

    def _mode(self, train):
        """Return the arguments that set the mode, where the module's own fields leave it open."""
        arguments = mode(self.module.__call__, train)
        return {name: value for name, value in arguments.items() if getattr(self.module, name, None) is None}


def from_nnx(module: Any) -> Model:
    """Make a model of a Flax NNX module.

    Parameters
    ----------
    module : flax.nnx.Module
        ``module(x)`` with x (n, ...) returns logits (n, C). It is copied, and neither its weights nor its
        mode are changed.

    Returns
    -------
    Model
        Its ``params`` are the values of all ``nnx.Param``, its ``state`` those of all other variables, as
        nested dicts; ``nnx.update(module, model.variables.params)`` writes them back. Modes are those of
        ``module.eval()`` and ``module.train()``. Random keys, as of dropout, are part of the state.

    Raises
    ------
    ImportError
        If Flax is missing.
    TypeError
        If ``module`` is not an NNX module, or has a static attribute that cannot be hashed.

    Examples
    --------
    >>> import jax
    >>> from flax import nnx
    >>> from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """
    nnx = require("flax.nnx", "Flax")
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx needs an instance of flax.nnx.Module, got {module!r}; for flax.linen use from_flax"
        )
    module = nnx.clone(module)
    module.train()
    training, _ = nnx.split(module)
    module.eval()
    evaluation, params, state = nnx.split(module, nnx.Param, ...)
    network = NNXNetwork(type(module).__name__, evaluation, training)
    check_hashable(network)
    return Model(network, Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state)))


@dataclass(frozen=True)
class NNXNetwork:
    """The structure of a Flax NNX module in both modes; made by :func:`from_nnx`."""

    name: str
    evaluation: Any = field(repr=False)
    training: Any = field(repr=False)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Raise an error: the module's weights are in its model."""
        raise already_built(self, "from_nnx")

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the state, updated when ``train`` is true."""
        nnx = require("flax.nnx", "Flax")
        module = nnx.merge(self.training if train else self.evaluation, params, state)
        logits = module(x)
        if train:
            state = nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])
        return logits, state
