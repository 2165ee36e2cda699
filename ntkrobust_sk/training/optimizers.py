"""SGD with hyperparameters that can be changed, and averages of weights."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from .._validation import brief
from ..networks.inputs import PyTree

if TYPE_CHECKING:
    import optax  # imported where it is used: that takes a tenth of the time of importing JAX


class Averaged(NamedTuple):
    """The state of :func:`averaging`: the optimiser's own, the mean so far, and the number of updates."""

    inner: PyTree
    mean: PyTree
    count: Any


@lru_cache(maxsize=64)
def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Return an optimiser that also keeps an exponential moving average of the parameters.

    m ← d m + (1 − d) θ after every update, with d = min(decay, (1 + t) / (10 + t)), which lets the average
    follow the first updates. Training itself is not changed; :func:`averaged` gives the model of the mean.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
    decay : float
        In [0, 1).

    Returns
    -------
    optax.GradientTransformation
        The same one for the same arguments, so that compiled code is shared.
    """
    import optax

    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")

    def init(params):
        return Averaged(optimizer.init(params), params, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None):
        updates, inner = optimizer.update(updates, state.inner, params)
        kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        mean = optax.incremental_update(optax.apply_updates(params, updates), state.mean, 1 - kept)
        return updates, Averaged(inner, mean, state.count + 1)

    return optax.GradientTransformation(init, update)


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError for what is no optimiser."""
    parts = [getattr(optimizer, name, None) for name in ("init", "update")]
    if isinstance(optimizer, type) or not all(map(callable, parts)):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, such as optax.sgd(0.1), got {brief(optimizer)}"
        )


@cache
def sgd() -> optax.GradientTransformation:
    """Return the one optimiser of all estimators: its learning rate and momentum are data, not compiled in."""
    import optax

    return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
