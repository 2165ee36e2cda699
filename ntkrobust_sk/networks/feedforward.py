"""A multi-layer perceptron and a plain convolutional network."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from . import layers
from .inputs import LogitsAndState, PyTree
from .model import Variables


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
        layers.check_fields(self)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for inputs of any shape; they are flattened."""
        key, input_shape = layers.check_init(key, input_shape)
        sizes = (math.prod(input_shape), *self.widths, layers.required_outputs(self))
        keys = jax.random.split(key, len(sizes) - 1)
        params = {}
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            gain = 2.0 if i < len(self.widths) else float(not self.zero_last_layer)
            params[f"dense_{i}"] = layers.init_dense(keys[i], fan_in, fan_out, gain)
        return Variables(params)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the (empty) state."""
        h = layers.as_numbers(x, params).reshape(x.shape[0], math.prod(x.shape[1:]))
        for i in range(len(self.widths)):
            h = layers.ACTIVATIONS[self.activation](layers.dense(params[f"dense_{i}"], h))
        return layers.dense(params[f"dense_{len(self.widths)}"], h), state


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
    >>> from ntkrobust_sk import Model
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
        layers.check_fields(self)
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"widths and strides need one entry for each convolution, got {len(self.widths)} widths "
                f"and {len(self.strides)} strides"
            )

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for images of shape (h, w, c)."""
        key, input_shape = layers.check_init(key, input_shape)
        n_outputs = layers.required_outputs(self)
        channels = (layers.image_channels(self, input_shape), *self.widths)
        keys = jax.random.split(key, len(channels))
        params = {}
        for i, (c_in, c_out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            kernel = layers.init_conv(keys[i], self.kernel_size, c_in, c_out)
            params[f"conv_{i}"] = {"kernel": kernel, "bias": jnp.zeros(c_out, kernel.dtype)}
        gain = float(not self.zero_last_layer)
        params["dense"] = layers.init_dense(keys[-1], channels[-1], n_outputs, gain)
        return Variables(params)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the (empty) state."""
        h = layers.as_numbers(x, params)
        for i, stride in enumerate(self.strides):
            layer = params[f"conv_{i}"]
            h = layers.ACTIVATIONS[self.activation](layers.conv(layer["kernel"], h, stride) + layer["bias"])
        return layers.dense(params["dense"], h.mean((1, 2))), state
