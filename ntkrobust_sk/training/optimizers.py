"""Optimisers by name with hyperparameters that can be changed, and averages of weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from .._validation import brief, unknown
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


def _decayed_sgd(learning_rate, momentum, weight_decay):
    import optax

    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))


def _decayed_adam(learning_rate, weight_decay):
    import optax

    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


def _adamw(learning_rate, weight_decay):
    import optax

    # optax takes its decay for no weight of a parameter only if it is a number of Python
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)
    )


# By name: what makes an optimiser of its hyperparameters, and these as they are where nothing else is said.
OPTIMIZERS: dict[str, tuple[Callable, dict[str, float]]] = {
    "sgd": (_decayed_sgd, {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.0}),
    "adam": (_decayed_adam, {"learning_rate": 1e-3, "weight_decay": 0.0}),
    "adamw": (_adamw, {"learning_rate": 1e-3, "weight_decay": 1e-4}),
}


@cache
def _named(name):
    import optax

    make, values = OPTIMIZERS[name]
    return optax.inject_hyperparams(make)(**values)


def resolve_optimizer(
    optimizer: Any, **given: float | None
) -> tuple[optax.GradientTransformation, dict[str, float]]:
    """Return an optimiser by name, or one of optax, with the hyperparameters that are set before training.

    Parameters
    ----------
    optimizer : {"sgd", "adam", "adamw"}, optax.GradientTransformation or None
        None is "sgd".
    **given : float or None
        ``learning_rate``, ``momentum`` and ``weight_decay``; None where nothing was said.

    Raises
    ------
    ValueError
        For another name, and for a hyperparameter that the optimiser does not have.
    TypeError
        For what is no optimiser.

    Examples
    --------
    >>> resolve_optimizer("adam", learning_rate=None, momentum=None, weight_decay=None)[1]
    {'learning_rate': 0.001, 'weight_decay': 0.0}
    >>> resolve_optimizer("adam", momentum=0.9)
    Traceback (most recent call last):
    ValueError: momentum=0.9 was given with optimizer='adam', which has none; leave it out, or give optimizer='sgd'
    """
    said = {name: value for name, value in given.items() if value is not None}
    optimizer = "sgd" if optimizer is None else optimizer
    if not isinstance(optimizer, str):
        return _of_optax(optimizer, said), {}
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            unknown("optimizer", optimizer, OPTIMIZERS, "an optimiser of optax, such as optax.lion(1e-4)")
        )
    values = OPTIMIZERS[optimizer][1]
    for name, value in said.items():
        if name not in values:
            raise ValueError(
                f"{name}={value!r} was given with optimizer={optimizer!r}, which has none; leave it out, or give "
                "optimizer='sgd'"
            )
    values = {**values, **said}
    if optimizer == "sgd" and not values["weight_decay"]:
        return sgd(), {name: values[name] for name in ("learning_rate", "momentum")}
    return _named(optimizer), values


def _of_optax(optimizer: Any, said: dict) -> Any:
    if callable(optimizer) and not isinstance(optimizer, type):
        raise TypeError(
            "optimizer must be a name or an optimiser of optax, got a function, which may be a schedule, "
            f"{brief(optimizer)}; give optimizer=optax.sgd(schedule), or learning_rate_schedule=schedule"
        )
    check_optimizer(optimizer)
    if said:
        names = ", ".join(f"{name}={value!r}" for name, value in said.items())
        raise ValueError(
            f"{names} was given together with an optimiser of optax, which has its own; write it there, such as "
            "optimizer=optax.sgd(0.1, momentum=0.9) or optax.chain(optax.add_decayed_weights(5e-4), "
            "optax.sgd(0.1)), "
            "or give a name: 'sgd', 'adam', 'adamw'"
        )
    return optimizer
