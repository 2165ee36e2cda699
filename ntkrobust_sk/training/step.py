"""One batch learned from: a pure function of the state, the batch and frozen settings, for a compiled loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._validation import brief
from ..attacks.pgd import Clean
from ..execution.convolutions import rows_in_cache, with_fast_convolutions
from ..execution.keys import example_keys
from ..networks.model import Model, Variables
from ..networks.wrappers import in_mode, takes_key
from .augmentations import augmented
from .batches import couples_rows
from .objectives import AWP, AdversarialTraining, TrainingLoss
from .state import TrainState, with_hyperparameters

# What keys are folded with besides numbers of attacks and positions in a batch, which are smaller.
AUGMENTATION, IN_TRAINING = 2**31 - 1, 2**31 - 2

PLAIN = AdversarialTraining()


@dataclass(frozen=True)
class Step:
    """The settings for which a step is compiled; see :func:`~ntkrobust_sk.train`.

    Attributes
    ----------
    optimizer : optax.GradientTransformation
    freeze_state : bool
    attacks : tuple
    loss : TrainingLoss
    weight_perturbation : AWP or None
    augmentation : tuple of callable
    """

    optimizer: Any
    freeze_state: bool = False
    attacks: tuple = (Clean(),)
    loss: TrainingLoss = PLAIN
    weight_perturbation: AWP | None = None
    augmentation: tuple = ()


class Batch(NamedTuple):
    """Inputs (n, ...), targets (n, ...) and weights (n,) of a batch; its learning rate, if a schedule says one."""

    x: Any
    y: Any
    weight: Any
    rate: Any = None


def batch_step(step: Step, state: TrainState, batch: Batch) -> TrainState:
    """Make one update for each attack, each on the network that the one before left."""
    x, y, weight, rate = batch
    if rate is not None:
        state = with_hyperparameters(state, learning_rate=rate)
    noise = _batch_key(state.key, state.step)
    if step.augmentation:
        x = _augmented(step.augmentation, _batch_key(noise, AUGMENTATION), x)
    for i, attack in enumerate(step.attacks):
        key = _batch_key(noise, i)
        rows = _rows_at_once(step, attack, state.model, x)
        if rows < len(x):
            state = _update_by_pieces(step, attack, rows, state, x, y, weight, key)
        else:
            x_adv = _attacked(step, attack, state.model, jnp.asarray(x), jnp.asarray(y), key)
            state = update(step, state, x, x_adv, y, weight, key)
    return replace(state, step=state.step + (state.failed_step < 0))


def _rows_at_once(step, attack, model, x) -> int:
    """Return how many rows of a batch are attacked and learned from at once: all, or what stays in the cache."""
    # outside of a compiled loop there are convolutions that are slow in any
    if (
        not isinstance(x, Tracer)
        or couples_rows(model, step.freeze_state)
        or not getattr(attack, "one_key_each", False)
        # what is drawn for a batch, and the gradient that moves weights, are those of the whole batch
        or takes_key(model.network)
        or step.weight_perturbation is not None
    ):
        return len(x)
    return rows_in_cache(model, x)


def _attacked(step, attack, model, x, y, key):
    """Return an attack's examples, if they are shaped like its inputs."""
    climbed, labels = step.loss.climbed(model, x, y)
    try:
        x_adv = attack(climbed, x, labels, key=key)
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"the attack {brief(attack)} cannot train: it asks for the numbers of a batch, as NumPy and Python's "
            "if do, which a compiled step of training does not know; write it in jax.numpy"
        ) from error
    if not isinstance(x_adv, np.ndarray | jax.Array) or x_adv.shape != x.shape:
        raise ValueError(
            f"an attack must return examples shaped like its inputs, {x.shape}, but {brief(attack)} returned "
            f"{brief(x_adv)}"
        )
    return x_adv


@jax.jit
def _batch_key(key, data):
    return jax.random.fold_in(key, data)


@partial(jax.jit, static_argnums=0)
def _augmented(augmentation, key, x):
    return augmented(augmentation, key, x)


def _update_by_pieces(step, attack, rows, state, x, y, weight, key) -> TrainState:
    """Attack and learn from some rows of a batch at a time, and make one optimiser step of all."""
    model = state.model

    def learned(piece):
        x, y, weight, keys = piece
        x_adv = _attacked(step, attack, model, x, y, keys)
        (loss, _), gradient = _gradient(step, model, x, x_adv, y, weight, key)
        return loss, gradient

    def learn(so_far, piece):
        return jax.tree.map(jnp.add, so_far, learned(piece)), None

    batch = x, y, weight, example_keys(key, len(x))
    pieces = jax.tree.map(lambda part: part.reshape(-1, rows, *part.shape[1:]), batch)
    first = jax.tree.map(lambda part: part[0], pieces)
    nothing = jax.tree.map(lambda sum_: jnp.zeros(sum_.shape, sum_.dtype), jax.eval_shape(learned, first))
    (loss, gradient), _ = jax.lax.scan(learn, nothing, pieces)
    return _stepped(step.optimizer, state, loss, model.variables.state, gradient)


@partial(jax.jit, static_argnums=0)
def update(step: Step, state: TrainState, x: Any, x_adv: Any, y: Any, weight: Any, key: jax.Array) -> TrainState:
    """Make one optimiser step on inputs and their adversarial examples."""
    model = state.model
    (loss, new), gradient = _gradient(step, model, x, x_adv, y, weight, key)
    if step.weight_perturbation is not None:
        params = step.weight_perturbation.moved(model.variables.params, gradient)
        moved = Model(model.network, Variables(params, model.variables.state))
        (_, new), gradient = _gradient(step, moved, x, x_adv, y, weight, key)
    return _stepped(step.optimizer, state, loss, new, gradient)


def _gradient(step, model, x, x_adv, y, weight, key) -> tuple:
    """Return the loss with the network's new state, and the gradient of its parameters."""
    network, variables = model.network, model.variables
    random = jax.random.fold_in(key, IN_TRAINING) if takes_key(network) else None

    def objective(params):
        apply = with_fast_convolutions(in_mode(network, not step.freeze_state, random))
        clean, state = None, variables.state
        if step.loss.uses_clean:
            clean, state = apply(params, state, x)
        logits, new = apply(params, state, x_adv)
        return jnp.sum(weight * step.loss(clean, logits, y)), new

    return jax.value_and_grad(objective, has_aux=True)(variables.params)


def _stepped(optimizer, state, loss, new_network_state, gradient) -> TrainState:
    """Make one optimiser step, or none if anything about it is not finite."""
    import optax

    network, variables = state.model.network, state.model.variables
    updates, opt_state = optimizer.update(gradient, state.opt_state, variables.params)
    params = optax.apply_updates(variables.params, updates)
    new = replace(
        state, model=Model(network, Variables(params, new_network_state)), opt_state=opt_state, loss=loss
    )
    finite = jnp.isfinite(loss) & _all_finite(params) & (state.failed_step < 0)
    kept = jax.tree.map(partial(jnp.where, finite), replace(new, key=None), replace(state, key=None))
    failed = jnp.where(finite | (state.failed_step >= 0), state.failed_step, state.step)
    return replace(kept, key=state.key, failed_step=failed)


def _all_finite(tree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
