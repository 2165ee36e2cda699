"""Training as a generator: the trainer yields states, the caller pulls.

Recording kernels, switching from clean to adversarial half-way, stopping early and resuming are then
ordinary Python around a ``for``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._validation import brief, flag, integer, number
from ..attacks.entry import require_training_attack
from ..attacks.pgd import Clean
from ..attacks.threat_model import admitted
from ..execution.loops import repeat
from ..networks.model import Model, require_model
from .augmentations import require_augmentation
from .batches import CHUNK, Batches
from .objectives import AWP, TrainingLoss, require_awp, require_loss
from .optimizers import check_optimizer
from .state import TrainingDivergedError, TrainState, has_learning_rate, initial_state
from .step import Batch, Step, batch_step

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
    loss: TrainingLoss | None = None,
    weight_perturbation: AWP | None = None,
    augmentation: Callable | tuple | None = None,
    learning_rate: Callable[[int], float] | None = None,
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
        Keep batch-norm statistics as they are and train in evaluation mode, without dropout.
    loss : TrainingLoss, default=None
        :class:`~ntkrobust_sk.TRADES`, :class:`~ntkrobust_sk.MART`, or one of your own; None is
        :class:`~ntkrobust_sk.AdversarialTraining`.
    weight_perturbation : AWP, default=None
        Take gradients at the worst weights near by: :class:`~ntkrobust_sk.AWP`.
    augmentation : callable, or tuple of them, default=None
        What is done to each batch before it is attacked, ``augmentation(key, batch) -> batch``:
        :class:`~ntkrobust_sk.Flip`, :class:`~ntkrobust_sk.Crop`, or a pure function of JAX.
    learning_rate : callable, default=None
        The rate of each batch by its number since the start, ``learning_rate(step) -> float``. It needs an
        optimiser made by ``optax.inject_hyperparams``, so that nothing is compiled for other rates.

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
    if learning_rate is not None and not has_learning_rate(state):
        raise ValueError(
            "learning_rate needs an optimizer that has one in its state: write "
            "optax.inject_hyperparams(optax.sgd)("
            f"learning_rate=0.1), got {brief(optimizer)}"
        )
    data = Batches.of(X, y, sample_weight, state, batch_size, freeze_state)
    attacks = _checked_attacks(attacks, data.X)
    step = Step(
        optimizer,
        freeze_state,
        attacks,
        require_loss(loss, attacks, data.y),
        require_awp(weight_perturbation),
        require_augmentation(augmentation, data.first),
    )
    return _states(state, data, step, learning_rate, _ends(epochs))


def _states(state, data, settings, learning_rate, epochs) -> Iterator[TrainState]:
    """Go through the states at these epochs."""
    step, most = int(state.step), 1
    for epoch in epochs:
        target = round(epoch * data.per_epoch)
        while step < target:
            count, started = min(data.chunk(step, target), most), monotonic()
            state = repeat(
                batch_step,
                count,
                state,
                evaluated=(state.model, data.first),
                static=(settings,),
                schedule=partial(_batches, data, learning_rate, step, count),
                length=CHUNK,
            )
            step += count
            _check_finite(state, data.per_epoch)
            # a compiled loop hears Ctrl-C at its end only
            most = max(1, most // 2) if monotonic() - started > LONGEST else min(CHUNK, 4 * most)
        if step == target:
            yield state


def _batches(data, learning_rate, step, count, length) -> Batch:
    """Return batches from a step on, with the learning rate of each if it is not the same for all."""
    x, y, weight = data.take(step, count, length)
    if learning_rate is None:
        return Batch(x, y, weight)
    rates = [learning_rate(step + min(i, count - 1)) for i in range(length)]
    return Batch(x, y, weight, np.asarray(rates, data.weight.dtype))


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
        admitted(require_training_attack(attack, "each of attacks"), X)
        try:
            hash(attack)
        except TypeError as error:
            raise TypeError(
                f"attacks must be hashable, so that code compiled for them is found again, got {brief(attack)}; a "
                "frozen dataclass of plain values is"
            ) from error
    return tuple(attacks)
