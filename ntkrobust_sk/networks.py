"""Networks: frozen configuration on one side, arrays on the other.

A *network* says how logits are computed, a *model* is a network together with its variables. Whatever has
``init`` and ``apply`` of the right form is a network; the ones here are what most experiments need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ._portable import Portable
from ._validation import check_choice, positive_tuple

PyTree = Any
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


class Variables(NamedTuple):
    """What a network needs besides its configuration.

    Attributes
    ----------
    params : pytree of arrays
        What is trained, and what the tangent kernel differentiates with respect to.
    state : pytree of arrays, default=()
        What is not: batch-norm statistics, or the anchor of a linearisation.
    """

    params: PyTree
    state: PyTree = ()


@runtime_checkable
class Network(Protocol):
    """Anything hashable with these two methods; see :class:`MLP` for the smallest example."""

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw variables for inputs of shape ``input_shape``, the batch axis left out."""

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False):
        """Return logits (n, C) and the new state."""


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["network"])
@dataclass(frozen=True, eq=False)
class Model(Portable):
    """A network with its variables: an immutable function from inputs to logits.

    A pytree whose leaves are the variables, so that compiled code is reused for new weights.

    Parameters
    ----------
    network : Network
    variables : Variables

    Examples
    --------
    >>> import jax
    >>> network = MLP(n_outputs=3, widths=(16,))
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> model(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """

    network: Network
    variables: Variables

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (n, C) of inputs (n, ...), in evaluation mode, in the dtype of the parameters."""
        params, state = self.variables
        logits, _ = self.network.apply(params, state, jnp.asarray(x, params_dtype(params)), train=False)
        return logits

    def __repr__(self) -> str:
        return f"Model({self.network!r}, n_params={n_params(self.variables.params):,})"


def params_dtype(params: PyTree) -> jnp.dtype:
    """The floating dtype in which a network with these parameters computes."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.result_type(leaves[0]) if leaves else jax.dtypes.canonicalize_dtype(float)


def n_params(params: PyTree) -> int:
    """Number P of scalar parameters.

    >>> n_params({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})
    8
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


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
    >>> network = Stateless(lambda params, x: x @ params)
    >>> Model(network, Variables(jnp.ones((4, 2))))(jnp.ones((1, 4)))
    Array([[4., 4.]], dtype=float32)
    """

    apply_fn: Callable
    init_fn: Callable | None = None

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Parameters from ``init_fn``."""
        if self.init_fn is None:
            raise ValueError(
                "this Stateless network has no init_fn, so it cannot draw parameters; give them instead: "
                "Model(Stateless(apply_fn), Variables(params))"
            )
        return Variables(self.init_fn(key, input_shape))

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the unchanged state."""
        return self.apply_fn(params, x), state


@dataclass(frozen=True)
class MLP:
    """Fully connected network on flattened inputs.

    Parameters
    ----------
    n_outputs : int, default=None
        Number C of logits. None lets an estimator fill in the number of classes of its data.
    widths : tuple of int, default=(64,)
        Units of each hidden layer.
    activation : {"relu", "gelu", "silu", "softplus", "tanh"}, default="relu"
    zero_last_layer : bool, default=False
        Start with logits that are zero everywhere, as the paper's networks do.

    Notes
    -----
    Weights are drawn from N(0, 2 / fan_in) (He et al. 2015, arXiv:1502.01852), those of the last layer from
    N(0, 1 / fan_in); biases start at zero.

    Examples
    --------
    >>> import jax
    >>> MLP(n_outputs=2, widths=(8,)).init(jax.random.key(0), (4,)).params["dense_1"]["kernel"].shape
    (8, 2)
    """

    n_outputs: int | None = None
    widths: tuple[int, ...] = (64,)
    activation: str = "relu"
    zero_last_layer: bool = False

    def __post_init__(self):
        object.__setattr__(self, "widths", positive_tuple("widths", self.widths))
        check_choice("activation", self.activation, ACTIVATIONS)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for inputs of any shape; they are flattened."""
        sizes = (math.prod(input_shape), *self.widths, required_outputs(self))
        keys = jax.random.split(key, len(sizes) - 1)
        params = {}
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            gain = 2.0 if i < len(self.widths) else float(not self.zero_last_layer)
            params[f"dense_{i}"] = init_dense(keys[i], fan_in, fan_out, gain)
        return Variables(params)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the (empty) state."""
        h = x.reshape(x.shape[0], -1)
        for i in range(len(self.widths)):
            h = ACTIVATIONS[self.activation](dense(params[f"dense_{i}"], h))
        return dense(params[f"dense_{len(self.widths)}"], h), state


@dataclass(frozen=True)
class CNN:
    """Plain convolutional network: 3×3 convolutions, global average pooling, one dense layer.

    Parameters
    ----------
    n_outputs : int, default=None
        Number C of logits. None lets an estimator fill in the number of classes of its data.
    widths : tuple of int, default=(32, 32, 64, 64)
        Channels of each convolution.
    strides : tuple of int, default=(1, 2, 2, 1)
        Stride of each convolution.
    kernel_size : int, default=3
        Side of the (square) filters, in pixels.
    activation : {"relu", "gelu", "silu", "softplus", "tanh"}, default="relu"
    zero_last_layer : bool, default=False
        Start with logits that are zero everywhere, as the paper's networks do.

    Examples
    --------
    >>> import jax
    >>> network = CNN(n_outputs=10)
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> model(jax.numpy.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    n_outputs: int | None = None
    widths: tuple[int, ...] = (32, 32, 64, 64)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    kernel_size: int = 3
    activation: str = "relu"
    zero_last_layer: bool = False

    def __post_init__(self):
        object.__setattr__(self, "widths", positive_tuple("widths", self.widths))
        object.__setattr__(self, "strides", positive_tuple("strides", self.strides))
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"widths and strides need one entry for each convolution, got {len(self.widths)} widths "
                f"and {len(self.strides)} strides"
            )
        check_choice("activation", self.activation, ACTIVATIONS)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for images of shape (h, w, c)."""
        n_outputs = required_outputs(self)
        channels = (image_channels(self, input_shape), *self.widths)
        keys = jax.random.split(key, len(channels))
        params = {}
        for i, (c_in, c_out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            kernel = init_conv(keys[i], self.kernel_size, c_in, c_out)
            params[f"conv_{i}"] = {"kernel": kernel, "bias": jnp.zeros(c_out, kernel.dtype)}
        gain = float(not self.zero_last_layer)
        params["dense"] = init_dense(keys[-1], channels[-1], n_outputs, gain)
        return Variables(params)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the (empty) state."""
        h = x
        for i, stride in enumerate(self.strides):
            layer = params[f"conv_{i}"]
            h = ACTIVATIONS[self.activation](conv(layer["kernel"], h, stride) + layer["bias"])
        return dense(params["dense"], h.mean((1, 2))), state


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
    >>> network = Normalized(MLP(n_outputs=2), mean=(0.5,), std=(0.25,))
    >>> inner = Model(network.network, network.init(jax.random.key(0), (4,)))
    >>> x = jax.numpy.full((1, 4), 0.75)
    >>> bool((Model(network, inner.variables)(x) == inner((x - 0.5) / 0.25)).all())
    True
    """

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.std or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be positive and finite, got {self.std}; a constant channel needs none")
        if not all(math.isfinite(value) for value in self.mean) or len(self.mean) not in (1, len(self.std)):
            raise ValueError(f"mean must be finite, one number or as many as std, got {self.mean} and {self.std}")

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """The network's own variables."""
        return self.network.init(key, input_shape)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the network's new state."""
        mean, std = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype)
        return self.network.apply(params, state, (x - mean) / std, train=train)


def check_model(model: Callable, input_shape: tuple[int, ...]) -> int:
    """Number C of logits of a model, found without computing them.

    Parameters
    ----------
    model : Model, or any other pytree that maps inputs (n, ...) to logits (n, C)
    input_shape : tuple of int
        Shape of one input.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the model returns anything but one array (n, C).

    Examples
    --------
    >>> import jax
    >>> network = MLP(n_outputs=3)
    >>> check_model(Model(network, network.init(jax.random.key(0), (4,))), (4,))
    3
    """
    x = jax.ShapeDtypeStruct((5, *input_shape), jnp.result_type(float))
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    shape = jax.tree.map(jnp.shape, logits)
    if not isinstance(logits, jax.ShapeDtypeStruct) or len(shape) != 2 or shape[0] != x.shape[0]:
        raise ValueError(f"network must return logits of shape (n, C), got {shape} from inputs {x.shape}")
    return shape[1]


def dense(layer: dict, h: jax.Array) -> jax.Array:
    """Affine map of (n, fan_in)."""
    return h @ layer["kernel"] + layer["bias"]


def conv(kernel: jax.Array, h: jax.Array, stride: int) -> jax.Array:
    """Convolution of images NHWC with filters HWIO, padded to ceil(size / stride)."""
    return jax.lax.conv_general_dilated(
        h, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def init_dense(key: jax.Array, fan_in: int, fan_out: int, gain: float) -> dict:
    """Kernel from N(0, gain / fan_in), bias zero."""
    kernel = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(gain / fan_in)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out, kernel.dtype)}


def init_conv(key: jax.Array, size: int, c_in: int, c_out: int, gain: float = 2.0) -> jax.Array:
    """Filters (size, size, c_in, c_out) from N(0, gain / fan_in)."""
    return jax.random.normal(key, (size, size, c_in, c_out)) * math.sqrt(gain / (size * size * c_in))


def required_outputs(network) -> int:
    """``network.n_outputs``, or an error that says that it is missing."""
    if network.n_outputs is None:
        raise ValueError(
            f"{network!r} does not know its number of logits; write {type(network).__name__}(n_outputs=...)"
        )
    return network.n_outputs


def image_channels(network, input_shape: tuple[int, ...]) -> int:
    """The c of an image shape (h, w, c), or an error that says what came instead."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{type(network).__name__} needs images: input_shape must be (height, width, channels), got "
            f"{tuple(input_shape)}; pass X as (n, h, w, c), or flat rows with input_shape=(h, w, c)"
        )
    return input_shape[-1]
