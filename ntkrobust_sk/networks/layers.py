"""Layers as functions of arrays: their products, their first weights, and what they may be given."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import LARGEST_COUNT, brief, check_choice, flag, integer, positive_tuple
from ..execution.keys import one_key
from .inputs import PyTree, params_dtype

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


def dense(layer: dict, h: jax.Array) -> jax.Array:
    """Apply an affine map to (n, fan_in)."""
    return h @ layer["kernel"] + layer["bias"]


def conv(kernel: jax.Array, h: jax.Array, stride: int) -> jax.Array:
    """Convolve images NHWC with filters HWIO, padded to ceil(size / stride)."""
    return jax.lax.conv_general_dilated(
        h, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def init_dense(key: jax.Array, fan_in: int, fan_out: int, gain: float) -> dict:
    """Draw a kernel from N(0, gain / fan_in), with a bias of zero."""
    kernel = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(gain / fan_in)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out, kernel.dtype)}


def init_conv(key: jax.Array, size: int, c_in: int, c_out: int, gain: float = 2.0) -> jax.Array:
    """Draw filters (size, size, c_in, c_out) from N(0, gain / fan_in)."""
    return jax.random.normal(key, (size, size, c_in, c_out)) * math.sqrt(gain / (size * size * c_in))


def as_numbers(x, params: PyTree) -> jax.Array:
    """Convert inputs to floating numbers: integers, such as pixels from 0 to 255, take the parameters' dtype."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(params_dtype(params))


# The checks of our networks' fields, by name.
FIELDS = {
    "n_outputs": lambda name, value: None if value is None else integer(name, value),
    "width": integer,
    "widths": positive_tuple,
    "strides": positive_tuple,
    "kernel_size": integer,
    "activation": lambda name, value: check_choice(name, value, ACTIVATIONS) or value,
    "zero_last_layer": flag,
}


def check_fields(network) -> None:
    """Check the fields of one of our networks, and keep them in plain types."""
    for name, check in FIELDS.items():
        if hasattr(network, name):
            object.__setattr__(network, name, check(name, getattr(network, name)))


def check_init(key, input_shape) -> tuple[jax.Array, tuple[int, ...]]:
    """Check a random key and the shape of one input, and return them as ``init`` takes them.

    Raises
    ------
    TypeError
        If ``key`` is no key of JAX.
    ValueError
        If ``input_shape`` is no tuple of positive integers; an int stands for one axis.
    """
    key = one_key(key)
    if isinstance(input_shape, int | np.integer) and not isinstance(input_shape, bool):
        input_shape = (input_shape,)
    input_shape = positive_tuple("input_shape", input_shape)
    if math.prod(input_shape) > LARGEST_COUNT:
        raise ValueError(f"input_shape must hold at most {LARGEST_COUNT} numbers in all, got {brief(input_shape)}")
    return key, input_shape


def required_outputs(network) -> int:
    """Return ``network.n_outputs``, or raise an error that says that it is missing."""
    if network.n_outputs is None:
        raise ValueError(
            f"{network!r} does not know its number of logits; write {type(network).__name__}(n_outputs=...)"
        )
    return network.n_outputs


def image_channels(network, input_shape: tuple[int, ...]) -> int:
    """Return the c of an image shape (h, w, c), or raise an error that says what came instead."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{type(network).__name__} needs images: input_shape must be (height, width, channels), got "
            f"{tuple(input_shape)}; pass X as (n, h, w, c), or flat rows with input_shape=(h, w, c)"
        )
    return input_shape[-1]
