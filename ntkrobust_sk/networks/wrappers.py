"""A bare function as a network, and a network that normalises its inputs."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import array, brief, function
from .inputs import LogitsAndState, PyTree
from .layers import as_numbers
from .model import Network, Variables, advice, require_network


def network_within(network: object) -> Network | None:
    """Return the network that a wrapper holds, or None: a wrapper is a dataclass with a field ``network``.

    >>> network_within(Normalized(Stateless(jnp.dot), (0.5,), (0.25,))).apply_fn is jnp.dot
    True
    """
    held = getattr(network, "network", None) if is_dataclass(network) else None
    return held if callable(getattr(held, "apply", None)) else None


def takes_key(network: Any) -> bool:
    """Tell whether a network asks for a random key in training: its ``apply`` has an argument ``key``.

    A wrapper that has one for the sake of its network alone says so by ``passes_key_on``.

    >>> from ntkrobust_sk import MLP
    >>> takes_key(Normalized(MLP(3), (0.5,), (0.25,)))
    False
    """
    try:
        known = "key" in inspect.signature(network.apply).parameters
    except (TypeError, ValueError):  # what states no signature
        return False
    return known and (not getattr(network, "passes_key_on", False) or takes_key(network_within(network)))


def in_mode(network: Any, train: bool, key: jax.Array | None) -> Callable:
    """Return ``apply`` in a mode, with a key in training where the network asks for one."""
    random = {"key": key} if train and key is not None and takes_key(network) else {}
    return partial(network.apply, train=train, **random)


@dataclass(frozen=True)
class Stateless:
    """A bare function ``apply_fn(params, x) -> logits`` as a network.

    Parameters
    ----------
    apply_fn : callable
        ``apply_fn(params, x)`` with x (n, ...) returns logits (n, C). Networks are compared by value: pass
        the same function object again, not a new lambda, to reuse compiled code.
    init_fn : callable, default=None
        ``init_fn(key, input_shape) -> params``. Without it the parameters have to be given:
        ``Model(Stateless(apply_fn), Variables(params))``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from ntkrobust_sk import Model, Variables
    >>> network = Stateless(lambda params, x: x @ params)
    >>> Model(network, Variables(jnp.ones((4, 2))))(jnp.ones((1, 4)))
    Array([[4., 4.]], dtype=float32)
    """

    apply_fn: Callable
    init_fn: Callable | None = None

    def __post_init__(self):
        if not callable(self.apply_fn):
            raise TypeError(f"apply_fn must be a function, got {brief(self.apply_fn)}{advice(self.apply_fn)}")
        function("apply_fn", self.apply_fn, "apply_fn(params, x)", 2)
        if self.init_fn is not None:
            function("init_fn", self.init_fn, "init_fn(key, input_shape)", 2)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters by ``init_fn``."""
        if self.init_fn is None:
            raise ValueError(
                "this Stateless network has no init_fn, so it cannot draw parameters; give them instead: "
                "Model(Stateless(apply_fn), Variables(params))"
            )
        return Variables(self.init_fn(key, input_shape))

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the unchanged state."""
        return self.apply_fn(params, x), state


@dataclass(frozen=True)
class Normalized:
    """A network on (x − mean) / std, so that attacks keep to the units of x.

    Parameters
    ----------
    network : Network
    mean, std : tuple of float
        One number for each channel (the last axis of the inputs), or one for all.

    Raises
    ------
    ValueError
        For a standard deviation that is not positive.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = Normalized(MLP(n_outputs=2), mean=(0.5,), std=(0.25,))
    >>> inner = Model(network.network, network.init(jax.random.key(0), (4,)))
    >>> x = jax.numpy.full((1, 4), 0.75)
    >>> bool((Model(network, inner.variables)(x) == inner((x - 0.5) / 0.25)).all())
    True
    """

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    passes_key_on: ClassVar[bool] = True

    def __post_init__(self):
        require_network(self.network)
        for name in ("mean", "std"):
            values = np.ravel(array(name, getattr(self, name))).tolist()
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if not self.std or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be positive and finite, got {self.std}; a constant channel needs none")
        if not all(math.isfinite(value) for value in self.mean) or len(self.mean) not in (1, len(self.std)):
            raise ValueError(f"mean must be finite, one number or as many as std, got {self.mean} and {self.std}")

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Take the network's own variables out of those of the wrapper."""
        return self.network.init(key, input_shape)

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> LogitsAndState:
        """Compute logits (n, C) and the network's new state; a key in training is the network's."""
        x = as_numbers(x, params)
        mean, std = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype)
        return in_mode(self.network, train, key)(params, state, (x - mean) / std)


def is_normalized(network: object) -> bool:
    """Tell whether a network is a :class:`Normalized` one, or a wrapper around one."""
    held = network_within(network)
    return isinstance(network, Normalized) or (held is not None and is_normalized(held))
