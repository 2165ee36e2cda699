"""Networks of other libraries, as networks of this one.

Flax Linen, Haiku and stax describe a network apart from its weights and become a ``Network``, or with variables
a ``Model``; Flax NNX and Equinox build both at once and become a ``Model``. Each library is imported only when it
is adapted.

In training, networks get a random key, for dropout: Linen's under the name "dropout", Haiku's as ``rng``,
Equinox's as ``key``, one for each example. In evaluation there is none, so answers are always the same. Flax NNX
modules carry keys of their own, in ``state``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._validation import brief
from .foreign import already_built, check_hashable, mode, require
from .inputs import LogitsAndState, PyTree
from .model import Model, Variables, require_model


def from_equinox(module: Any, state: Any = None, *, batched: bool = False) -> Model:
    """Make a model of an Equinox module.

    Parameters
    ----------
    module : equinox.Module
        Sees one example at a time, as Equinox's layers do: ``module(x)`` with x (...) returns logits (C,), or
        ``module(x, state)`` returns logits and the new state. Inputs come in the module's own layout: with
        Equinox's convolutions that is (channels, height, width), not (h, w, c).
    state : equinox.nn.State, default=None
        The second half of what ``equinox.nn.make_with_state`` returns. Batch norm must have
        ``axis_name="batch"``.
    batched : bool, default=False
        The module sees the whole batch, x (n, ...) -> logits (n, C).

    Returns
    -------
    Model
        Its ``params`` are the floating arrays of the module, in the module's own structure. Its ``state``
        is a pair ``(fixed, state)``: the other arrays of the module, which stay as they are, and the Equinox
        state. ``equinox.combine(params, fixed, model.network.static)`` is the module again. Modes are those
        of ``equinox.nn.inference_mode``.

    Raises
    ------
    ImportError
        If Equinox is missing.
    TypeError
        If ``module`` is not an Equinox module, or has a leaf that is no array and cannot be hashed.

    Examples
    --------
    >>> import equinox, jax
    >>> from_equinox(equinox.nn.Linear(4, 3, key=jax.random.key(0)))(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """
    eqx = require("equinox", "Equinox")
    if not isinstance(module, eqx.Module):
        raise TypeError(f"from_equinox needs an instance of equinox.Module, got {module!r}")
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    fixed, static = eqx.partition(rest, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray, np.generic)))
    network = EquinoxNetwork(static, batched)
    check_hashable(network)
    return Model(network, Variables(params, (fixed, state)))


@dataclass(frozen=True)
class EquinoxNetwork:
    """An Equinox module without its arrays; made by :func:`from_equinox`."""

    static: Any
    batched: bool = False

    def __hash__(self):
        # A module's own hash refuses the lists of layers that Equinox allows.
        return hash((*jax.tree.leaves(self.static), self.batched))

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Raise an error: the module's weights are in its model."""
        raise already_built(self, "from_equinox")

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> LogitsAndState:
        """Compute logits (n, C) and the state, updated when ``train`` is true; the key is that of dropout."""
        eqx = require("equinox", "Equinox")
        fixed, moving = state
        module = eqx.nn.inference_mode(eqx.combine(params, fixed, self.static), value=not train)
        if moving is None:
            return self._of_batch(module, x, (), key), state
        # Equinox invalidates a State object when it is updated; ours has to stay usable.
        logits, updated = self._of_batch(module, x, (jax.tree.map(lambda leaf: leaf, moving),), key)
        return logits, ((fixed, updated) if train else state)

    def _of_batch(self, module: Any, x: Any, states: tuple, key: Any) -> Any:
        """Return what a module makes of a batch, and of a state if it has one; each example has its own key."""
        random = key is not None and "key" in inspect.signature(module.__call__).parameters

        def call(x, key, *states):
            return module(x, *states, **({"key": key} if random else {}))

        if not self.batched:
            key = jax.random.split(key, len(x)) if random and key is not None else None
            axes = (0, 0 if random else None, *(None for _ in states))
            call = jax.vmap(call, in_axes=axes, out_axes=(0, None) if states else 0, axis_name="batch")
        return call(x, key, *states)


def from_haiku(
    transformed: Any, params: Mapping | None = None, state: Mapping | None = None
) -> HaikuNetwork | Model:
    """Make a network of a transformed Haiku function, or a model of it and its parameters.

    Parameters
    ----------
    transformed : haiku.Transformed or haiku.TransformedWithState
        What ``hk.transform`` or ``hk.transform_with_state`` made of a function x (n, ...) -> logits (n, C),
        with or without ``hk.without_apply_rng``. An argument of the function that is named ``is_training``,
        ``train``, ``training``, ``deterministic`` or ``use_running_average`` is set by the mode. Networks are
        compared by value: transform once, not at every use, to reuse compiled code.
    params : dict, default=None
        What ``transformed.init`` returned, its first half where there is a state.
    state : dict, default=None
        The second half of it.

    Returns
    -------
    HaikuNetwork, or Model when given params
        Haiku's batch norm takes its first statistics from the inputs that it is initialised with. ``init``
        therefore shows it a batch of 16 standard normal inputs; a training step replaces them.

    Raises
    ------
    ImportError
        If Haiku is missing.
    TypeError
        If ``transformed`` is not a transformed function, or ``params`` and ``state`` are not what its ``init``
        returns.

    Examples
    --------
    >>> import haiku, jax
    >>> network = from_haiku(haiku.transform(lambda x: haiku.Linear(3)(x)))
    >>> network.init(jax.random.key(0), (4,)).params["linear"]["w"].shape
    (4, 3)
    """
    hk = require("haiku", "Haiku")
    if not isinstance(transformed, (hk.Transformed, hk.TransformedWithState)):
        raise TypeError(
            "from_haiku needs transformed, the result of haiku.transform or haiku.transform_with_state, got "
            f"{brief(transformed)}"
        )
    network = HaikuNetwork(transformed, stateful=isinstance(transformed, hk.TransformedWithState))
    if params is None and state is None:
        return network
    if not isinstance(params, Mapping) or network.stateful != isinstance(state, Mapping):
        wanted = "params and state, two dicts" if network.stateful else "params alone, a dict"
        star = "*" if network.stateful else ""
        raise TypeError(
            f"from_haiku needs what init returns of this function, {wanted}, got params {brief(params)} and state "
            f"{brief(state)}; write from_haiku(transformed, {star}transformed.init(key, x))"
        )
    return require_model(Model(network, Variables(params, () if state is None else state)))


@dataclass(frozen=True)
class HaikuNetwork:
    """A transformed Haiku function; made by :func:`from_haiku`."""

    transformed: Any
    stateful: bool

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw variables, as the function does it itself."""
        x = jax.random.normal(jax.random.fold_in(key, 0), (16, *input_shape))
        # In evaluation mode Haiku's batch norm reads statistics that do not exist yet.
        variables = self.transformed.init(key, x, **mode(self.transformed.init, train=True))
        return Variables(*variables) if self.stateful else Variables(variables)

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> LogitsAndState:
        """Compute logits (n, C) and the state, updated when ``train`` is true; the key is that of dropout."""
        apply = self.transformed.apply
        leading = (params, state) if self.stateful else (params,)
        if tuple(inspect.signature(apply).parameters)[len(leading)] == "rng":
            leading += (key,)
        output = apply(*leading, x, **mode(apply, train))
        logits, updated = output if self.stateful else (output, state)
        return logits, (updated if train else state)


def from_stax(
    init_fn: Callable, apply_fn: Callable, kernel_fn: Callable | None = None, *, params: PyTree = None
) -> StaxNetwork | Model:
    """Make a network of a stax-style pair of functions, from ``jax.example_libraries`` or neural-tangents.

    Parameters
    ----------
    init_fn : callable
        ``init_fn(key, (-1, *input_shape))`` returns the output's shape and the parameters.
    apply_fn : callable
        ``apply_fn(params, x)`` with x (n, ...) returns logits (n, C). Batch norm in this style normalises by
        the batch in evaluation too; kernels need each row to be a function of its own input alone.
    kernel_fn : callable, default=None
        Not used; it is here so that ``from_stax(*neural_tangents.stax.serial(...))`` works.
    params : pytree of arrays, default=None
        The second half of what ``init_fn`` returned.

    Returns
    -------
    StaxNetwork, or Model when given params
        Compared by value: build the functions once, not at every use, to reuse compiled code.

    Raises
    ------
    TypeError
        If one of the two is no function.

    Examples
    --------
    >>> import jax
    >>> from jax.example_libraries import stax
    >>> network = from_stax(*stax.serial(stax.Dense(8), stax.Relu, stax.Dense(3)))
    >>> Model(network, network.init(jax.random.key(0), (4,)))(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """
    for name, function in {"init_fn": init_fn, "apply_fn": apply_fn}.items():
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                f"from_stax needs two functions, as stax.serial returns them: {name} is {brief(function)}"
            )
    network = StaxNetwork(init_fn, apply_fn)
    return network if params is None else require_model(Model(network, Variables(params)))


@dataclass(frozen=True)
class StaxNetwork:
    """A stax-style pair of functions; made by :func:`from_stax`."""

    init_fn: Callable
    apply_fn: Callable

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters by ``init_fn``."""
        _, params = self.init_fn(key, (-1, *input_shape))
        return Variables(params)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the (empty) state."""
        return self.apply_fn(params, x), state
