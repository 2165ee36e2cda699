"""ResNet-18 as in the paper: the CIFAR form, with batch norm."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from . import layers
from .inputs import LogitsAndState, PyTree
from .model import Variables

DECAY, EPSILON = 0.9, 1e-5


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 version 1 with a 3×3 stride-1 stem and no max-pooling, for 32×32 images.

    Four groups of two basic blocks with ``width`` times 1, 2, 4 and 8 channels and strides 1, 2, 2, 2;
    1×1 projection shortcuts where a group begins with a stride; convolutions without bias; global average
    pooling. 11,173,962 parameters with 10 outputs and three colours.

    Parameters
    ----------
    n_outputs : int, default=None
        Number C of logits. None lets an estimator fill in the number of classes of its data.
    width : int, default=64
        Channels of the first group.
    zero_last_layer : bool, default=True
        Start with logits that are zero everywhere, as the paper does. Then the kernel at initialisation is
        φ(x)·φ(x') + 1 for every class, φ the pooled features.

    Notes
    -----
    Batch-norm statistics live in ``state``: the average of batch mean and (biased) variance over steps with
    decay 0.9, corrected for its start, so that one training step is enough to make them meaningful. Before
    it they are 0 and 1. The kernel and every attack see the network in evaluation mode.

    References
    ----------
    He et al. 2016, arXiv:1512.03385; Loo et al. 2022, arXiv:2210.12030.

    Examples
    --------
    >>> import jax
    >>> network = ResNet18(n_outputs=10, width=4)
    >>> params, state = network.init(jax.random.key(0), (8, 8, 3))
    >>> network.apply(params, state, jax.numpy.ones((2, 8, 8, 3)))[0].shape
    (2, 10)
    """

    n_outputs: int | None = None
    width: int = 64
    zero_last_layer: bool = True

    def __post_init__(self):
        layers.check_fields(self)

    def _blocks(self):
        """Return (name, channels in, channels out, stride) of the eight blocks."""
        c_in = self.width
        for group, stride in enumerate((1, 2, 2, 2)):
            c_out = self.width * 2**group
            for block in range(2):
                yield f"block_{group}_{block}", c_in, c_out, stride if block == 0 else 1
                c_in = c_out

    def _convolutions(self, c_in: int):
        """Return (name, filter size, channels in, channels out) of all convolutions."""
        yield "stem", 3, c_in, self.width
        for name, c_in, c_out, stride in self._blocks():
            yield f"{name}/conv_0", 3, c_in, c_out
            yield f"{name}/conv_1", 3, c_out, c_out
            if stride != 1:
                yield f"{name}/shortcut", 1, c_in, c_out

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters and the initial statistics for images of shape (h, w, c)."""
        key, input_shape = layers.check_init(key, input_shape)
        n_outputs = layers.required_outputs(self)
        convolutions = list(self._convolutions(layers.image_channels(self, input_shape)))
        shapes = [(size, size, c_in, c_out) for _, size, c_in, c_out in convolutions]
        key_filters, key_dense = jax.random.split(key)
        # one draw cut into pieces: a draw for each shape would be compiled for each shape
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        pieces = jnp.split(jax.random.normal(key_filters, (ends[-1],)), ends[:-1])
        params, statistics = {}, {}
        for (name, _, _, c_out), shape, piece in zip(convolutions, shapes, pieces, strict=True):
            kernel = piece.reshape(shape) / math.sqrt(math.prod(shape[:3]))
            ones, zeros = jnp.ones(c_out, kernel.dtype), jnp.zeros(c_out, kernel.dtype)
            params[name] = {"kernel": kernel, "scale": ones, "bias": zeros}
            statistics[name] = {"mean": zeros, "var": ones}
        params["dense"] = layers.init_dense(key_dense, 8 * self.width, n_outputs, float(not self.zero_last_layer))
        return Variables(params, {"n_steps": jnp.zeros((), jnp.int32), "statistics": statistics})

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the state, updated when ``train`` is true."""
        n_steps = state["n_steps"] + 1
        statistics = dict(state["statistics"])

        def conv_bn(name, h, stride):
            layer = params[name]
            h = layers.conv(layer["kernel"], h, stride)
            seen = statistics[name]
            if train:
                seen = {"mean": h.mean((0, 1, 2)), "var": h.var((0, 1, 2))}
                statistics[name] = _average(statistics[name], seen, n_steps)
            return (h - seen["mean"]) * (layer["scale"] * jax.lax.rsqrt(seen["var"] + EPSILON)) + layer["bias"]

        h = jax.nn.relu(conv_bn("stem", layers.as_numbers(x, params), 1))
        for name, _, _, stride in self._blocks():
            shortcut = h if stride == 1 else conv_bn(f"{name}/shortcut", h, stride)
            h = jax.nn.relu(conv_bn(f"{name}/conv_0", h, stride))
            h = jax.nn.relu(conv_bn(f"{name}/conv_1", h, 1) + shortcut)
        logits = layers.dense(params["dense"], h.mean((1, 2)))
        return logits, ({"n_steps": n_steps, "statistics": statistics} if train else state)


def _average(average: dict, seen: dict, n_steps: jax.Array) -> dict:
    """Average exponentially, without the bias of the start: after one step the average is what was seen."""
    step = n_steps.astype(average["mean"].dtype)
    rate = (1.0 - DECAY) / (1.0 - DECAY**step)
    return jax.tree.map(lambda old, new: old + rate * (new - old), average, jax.lax.stop_gradient(seen))
