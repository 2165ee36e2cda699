"""Networks by name, and the first model for given data."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
from numpy.typing import DTypeLike

from .._validation import brief, check_choice
from .feedforward import CNN, MLP
from .inputs import inputs_dtype
from .model import Model, Network, advice, check_model, require_model, require_network
from .resnet import ResNet18
from .wrappers import network_within

NETWORKS = {"mlp": MLP(), "cnn": CNN(), "resnet18": ResNet18()}


def initial_model(
    network: str | Network | Model | None,
    input_shape: tuple[int, ...],
    n_outputs: int,
    key: jax.Array,
    dtype: DTypeLike = float,
) -> Model:
    """Return a model for data of a dtype: a Model as it is, a network or its name with weights drawn for it."""
    if network is None:
        network = "cnn" if len(input_shape) == 3 else "mlp"
    if isinstance(network, str):
        check_choice("network", network, NETWORKS)
        network = NETWORKS[network]
    if not isinstance(network, Model):
        if isinstance(network, type) or not isinstance(network, Network):
            raise TypeError(
                f"estimator or network: a network is {', '.join(map(repr, NETWORKS))}, an object with init and "
                f"apply such as MLP(), or a Model, got {brief(network)}{advice(network)}"
            )
        require_network(network)
        network = with_outputs(network, n_outputs)
        network = Model(network, _init(network, key, tuple(input_shape)))
    try:
        n_logits(network, input_shape, dtype)
    except (TypeError, ValueError) as error:
        error.add_note(f"The inputs are of shape {input_shape}; rows that hold images need input_shape=(h, w, c).")
        raise
    return network


def with_outputs(network: Network, n_outputs: int) -> Network:
    """Return a network, or a wrapper around one, with so many outputs where it leaves their number open.

    >>> with_outputs(MLP(widths=(8,)), 3).n_outputs
    3
    """
    changes: dict[str, Any] = {}
    if getattr(network, "n_outputs", n_outputs) is None:
        changes["n_outputs"] = n_outputs
    if (held := network_within(network)) is not None and (filled := with_outputs(held, n_outputs)) is not held:
        changes["network"] = filled
    return replace(cast(Any, network), **changes) if changes else network


def n_logits(model: Model, input_shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Count a model's logits C for inputs that came in a given dtype."""
    return check_model(model, input_shape, inputs_dtype(dtype, require_model(model).variables.params))


@partial(jax.jit, static_argnums=(0, 2))
def _init(network, key, input_shape):
    return network.init(key, input_shape)
