"""Training as a generator: the trainer yields states, the caller pulls.

Recording kernels, switching from clean to adversarial half-way, stopping early and resuming are then
ordinary Python around a ``for``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from .._validation import brief, flag, integer, number
from ..attacks.entry import require_attack
from ..attacks.losses import example_losses
from ..attacks.pgd import Clean
from ..attacks.threat_model import admitted
from ..execution.convolutions import rows_in_cache, with_fast_convolutions
from ..execution.keys import example_keys
from ..execution.loops import repeat
from ..networks.model import Model, Variables, require_model
from .batches import CHUNK, Batches, couples_rows
from .optimizers import check_optimizer
from .state import TrainingDivergedError, TrainState, initial_state

if TYPE_CHECKING:
    import optax

# Seconds between two looks at the loss, more or less.
LONGEST = 2.0


def train(
    start: Model | TrainState,
    X: ArrayLike,
    y: ArrayLike,
    *,
    key: jax.Array | None = None,
    optimizer: optax.GradientTransformation,
    attacks: tuple = (Clean(),),
    epochs: int | Iterable[float] = 1,
    batch_size: int = 128,
    sample_weight: ArrayLike | None = None,
    freeze_state: bool = False,
) -> Iterator[TrainState]:
    """Train by mini-batches, one optimiser step per batch and per attack.

    Parameters
    ----------
    start : Model or TrainState
        A model starts afresh, a state goes on where it stopped, to the bit.
    X : array (n, ...)
    y : array (n,) of int labels 0..C-1 (cross-entropy), or array of real targets (n, C) (squared error)
    key : JAX PRNG key
        Seed of data order and attack noise; needed when ``start`` is a model.
    optimizer : optax.GradientTransformation
    attacks : tuple, default=(Clean(),)
        For each batch, one update on the examples that each attack makes of it, in turn, on the network as
        the update before left it: ``(Clean(),)`` is benign training, ``(PGD(e),)`` that of Madry et al. 2018,
        ``(Clean(), PGD(e))`` the paper's.
    epochs : int or iterable of float, default=1
        When to yield: after each of so many epochs, or at these (rising, also fractional) epochs.
        ``itertools.count(1)`` never ends.
    batch_size : int, default=128
        The last partial batch of an epoch is kept.
    sample_weight : array (n,), default=None
        Weights of the examples in the loss, scaled to mean 1.
    freeze_state : bool, default=False
        Keep batch-norm statistics as they are and train in evaluation mode.

    Yields
    ------
    TrainState

    Raises
    ------
    TrainingDivergedError
        At the first update that is not finite; it is not made.
    ValueError
        When it is called: without data, key or attack, for lengths that differ, values that are not finite,
        labels that the network has no output for, weights that are negative or all zero, and inputs outside of an
        attack's bounds. While it runs: for epochs that do not rise, and for an attack whose examples are not
        shaped like its inputs.
    TypeError
        For what is no model, key, optimiser, attack or array of numbers.

    Notes
    -----
    Data order is drawn for each epoch from ``key`` and the epoch, attack noise from ``key``, batch, attack and
    position in the batch: the same seed gives the same weights to the bit on one machine. Loss is
    Σ_i w_i ℓ_i / (batch size), so a weight of 2 counts like the example twice.

    Examples
    --------
    >>> import jax, optax
    >>> from ntkrobust_sk import MLP, Model, train
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (3,)))
    >>> X, y = jax.numpy.eye(3), jax.numpy.array([0, 1, 1])
    >>> for state in train(model, X, y, key=jax.random.key(1), optimizer=optax.sgd(0.1), epochs=2):
    ...     print(int(state.step))
    1
    2
    """
    freeze_state, batch_size = flag("freeze_state", freeze_state), integer("batch_size", batch_size)
    state = (
        _checked_state(start, optimizer) if isinstance(start, TrainState) else initial_state(start, key, optimizer)
    )
    data = Batches.of(X, y, sample_weight, state, batch_size, freeze_state)
    static = (optimizer, freeze_state, _checked_attacks(attacks, data.X))
    return _states(state, data, static, _ends(epochs))


def _states(state, data, static, epochs) -> Iterator[TrainState]:
    """Go through the states at these epochs."""
    step, most = int(state.step), 1
    for epoch in epochs:
        target = round(epoch * data.per_epoch)
        while step < target:
            count, started = min(data.chunk(step, target), most), monotonic()
            state = repeat(
                _batch_step,
                count,
                state,
                evaluated=(state.model, data.first),
                static=static,
                schedule=partial(data.take, step, count),
                length=CHUNK,
            )
            step += count
            _check_finite(state, data.per_epoch)
            # a compiled loop hears Ctrl-C at its end only
            most = max(1, most // 2) if monotonic() - started > LONGEST else min(CHUNK, 4 * most)
        if step == target:
            yield state


def _check_finite(state, per_epoch):
    failed = int(state.failed_step)
    if failed >= 0:
        # Without its mark the state can go on, with another optimiser.
        finite = replace(state, failed_step=jnp.full_like(state.failed_step, -1))
        raise TrainingDivergedError(finite, failed // per_epoch, failed)


def _checked_state(state, optimizer) -> TrainState:
    """Return a state that training with this optimiser can go on from."""
    check_optimizer(optimizer)
    wanted = jax.eval_shape(optimizer.init, require_model(state.model, "start.model").variables.params)
    wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (wanted, state.opt_state))
    if jax.tree.structure(wanted) != jax.tree.structure(found) or wanted != found:
        raise ValueError(
            f"optimizer must be the one that start was trained with, whose state it holds, got {brief(optimizer)}"
            "; another one starts from the model: train(state.model, ..., key=key)"
        )
    return state


def _ends(epochs) -> Iterator[float]:
    """Return the epochs to yield at, each looked at when its turn comes: they may never end."""
    if isinstance(epochs, int | np.integer) or getattr(epochs, "shape", None) == ():
        return iter(range(1, integer("epochs", epochs, low=0) + 1))
    if not isinstance(epochs, Iterable) or isinstance(epochs, str | bytes | dict | set):
        raise ValueError(f"epochs must be an integer >= 0 or an iterable of rising numbers, got {brief(epochs)}")
    return _rising(epochs)


def _rising(epochs):
    last = 0.0
    for epoch in epochs:
        if number("each of epochs", epoch, low=0) < last:
            raise ValueError(f"epochs must rise, but {epoch!r} comes after {last!r}")
        last = epoch
        yield epoch


def _checked_attacks(attacks, X) -> tuple:
    if not isinstance(attacks, tuple | list):
        raise TypeError(f"attacks must be a tuple of attacks, such as (Clean(), PGD(8/255)), got {brief(attacks)}")
    if not attacks:
        raise ValueError("attacks is empty, so nothing would be trained; attacks=(Clean(),) is benign training")
    for attack in attacks:
        admitted(require_attack(attack, "each of attacks"), X)
        try:
            hash(attack)
        except TypeError as error:
            raise TypeError(
                f"attacks must be hashable, so that code compiled for them is found again, got {brief(attack)}; a "
                "frozen dataclass of plain values is"
            ) from error
    return tuple(attacks)


def _batch_step(optimizer, freeze_state, attacks, state, batch):
    """Make one update for each attack, each on the network that the one before left."""
    x, y, weight = batch
    noise = _batch_key(state.key, state.step)
    for i, attack in enumerate(attacks):
        key = _batch_key(noise, i)
        rows = _rows_at_once(attack, freeze_state, state.model, x)
        if rows < len(x):
            state = _update_by_pieces(optimizer, freeze_state, attack, rows, state, x, y, weight, key)
        else:
            x_adv = _examples_of(attack, attack(state.model, jnp.asarray(x), jnp.asarray(y), key=key), x)
            state = _update(optimizer, freeze_state, state, x_adv, y, weight)
    return replace(state, step=state.step + (state.failed_step < 0))


def _rows_at_once(attack, freeze_state, model, x) -> int:
    """Return how many rows of a batch are attacked and learned from at once: all, or what stays in the cache."""
    # outside of a compiled loop there are convolutions that are slow in any
    if (
        not isinstance(x, Tracer)
        or couples_rows(model, freeze_state)
        or not getattr(attack, "one_key_each", False)
    ):
        return len(x)
    return rows_in_cache(model, x)


def _examples_of(attack, x_adv, x):
    """Return an attack's examples, if they are shaped like its inputs."""
    if not isinstance(x_adv, np.ndarray | jax.Array) or x_adv.shape != x.shape:
        raise ValueError(
            f"an attack must return examples shaped like its inputs, {x.shape}, but {brief(attack)} returned "
            f"{brief(x_adv)}"
        )
    return x_adv


@jax.jit
def _batch_key(key, data):
    return jax.random.fold_in(key, data)


def _update_by_pieces(optimizer, freeze_state, attack, rows, state, x, y, weight, key) -> TrainState:
    """Attack and learn from some rows of a batch at a time, and make one optimiser step of all."""
    model = state.model

    def learned(piece):
        x, y, weight, keys = piece
        x_adv = _examples_of(attack, attack(model, x, y, key=keys), x)
        (loss, _), gradient = _gradient(freeze_state, model, x_adv, y, weight)
        return loss, gradient

    def learn(so_far, piece):
        return jax.tree.map(jnp.add, so_far, learned(piece)), None

    batch = x, y, weight, example_keys(key, len(x))
    pieces = jax.tree.map(lambda part: part.reshape(-1, rows, *part.shape[1:]), batch)
    first = jax.tree.map(lambda part: part[0], pieces)
    nothing = jax.tree.map(lambda sum_: jnp.zeros(sum_.shape, sum_.dtype), jax.eval_shape(learned, first))
    (loss, gradient), _ = jax.lax.scan(learn, nothing, pieces)
    return _stepped(optimizer, state, loss, model.variables.state, gradient)


@partial(jax.jit, static_argnums=(0, 1))
def _update(optimizer, freeze_state, state, x, y, weight) -> TrainState:
    """Make one optimiser step on examples."""
    (loss, new_network_state), gradient = _gradient(freeze_state, state.model, x, y, weight)
    return _stepped(optimizer, state, loss, new_network_state, gradient)


def _gradient(freeze_state, model, x, y, weight) -> tuple:
    """Return the loss with the network's new state, and the gradient of its parameters."""
    network, variables = model.network, model.variables

    def objective(params):
        apply = with_fast_convolutions(partial(network.apply, train=not freeze_state))
        logits, new = apply(params, variables.state, x)
        return jnp.sum(weight * example_losses(logits, y)), new

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
