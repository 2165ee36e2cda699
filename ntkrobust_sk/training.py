"""Training as a generator: the trainer yields states, the caller pulls.

Recording kernels, switching from clean to adversarial half-way, stopping early and resuming are then
ordinary Python around a ``for``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._validation import array, brief, check_lengths, fitting, flag, integer, number, require_resolution
from .attacks.entry import require_attack
from .attacks.losses import example_losses
from .attacks.pgd import Clean
from .attacks.threat_model import check_bounds
from .execution.convolutions import with_fast_gradients
from .execution.devices import on_host
from .execution.keys import one_key
from .execution.loops import runs_fused
from .networks.inputs import PyTree, host_inputs, params_dtype
from .networks.model import Model, Variables, check_model, require_model
from .tangent.linearization import Linearized

# Batches between two looks at whether the loss is still finite, and the length of a compiled loop.
CHUNK = 16


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "opt_state", "key", "step", "loss", "failed_step"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class TrainState:
    """Everything that training needs to go on from here.

    Attributes
    ----------
    model : Model
        The network as trained so far.
    opt_state : pytree
        State of the optimiser.
    key : JAX PRNG key
        Seed of data order and attack noise; it stays the same, epoch and step are folded into it.
    step : int array
        Batches seen so far.
    loss : float array
        Loss of the last update.
    failed_step : int array
        First batch whose update was not finite and therefore not made, or -1.
    """

    model: Model
    opt_state: PyTree
    key: jax.Array
    step: jax.Array
    loss: jax.Array
    failed_step: jax.Array


class TrainingDivergedError(ArithmeticError):
    """The loss or an update became NaN or infinite.

    Attributes
    ----------
    state : TrainState
        The last finite state.
    epoch, step : int
        Where it happened; epochs count from 0, steps are batches since the start.
    """

    def __init__(self, state: TrainState, epoch: int, step: int):
        self.state, self.epoch, self.step = state, epoch, step
        super().__init__(
            f"training diverged in epoch {epoch}, at batch {step} counted from the start: the loss or its update "
            "is not finite. Lower the learning rate or scale the inputs; the last finite state is kept "
            "(`state` of this error)"
        )

    def __reduce__(self):
        # by default an exception is rebuilt from its message alone, and could not come back from a worker
        return type(self), (self.state, self.epoch, self.step)


def train(
    start: Model | TrainState,
    X,
    y,
    *,
    key: jax.Array | None = None,
    optimizer: optax.GradientTransformation,
    attacks: tuple = (Clean(),),
    epochs: int | Iterable[float] = 1,
    batch_size: int = 128,
    sample_weight=None,
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
    data = _Batches.of(X, y, sample_weight, state, batch_size, freeze_state)
    attacks = _checked_attacks(attacks, data.X)
    return _states(state, data, attacks, partial(_update, optimizer, freeze_state), _ends(epochs))


def _states(state, data, attacks, update, epochs) -> Iterator[TrainState]:
    """The states at these epochs."""
    step = int(state.step)
    for epoch in epochs:
        target = round(epoch * data.per_epoch)
        while step < target:
            count = data.chunk(step, target)
            state = _run(state, data.take(step, count), count, update, attacks, data.fused)
            step += count
            _check_finite(state, data.per_epoch)
        if step == target:
            yield state


class Averaged(NamedTuple):
    """State of :func:`averaging`: the optimiser's own, the mean so far, and the number of updates."""

    inner: PyTree
    mean: PyTree
    count: jax.Array


@lru_cache(maxsize=64)
def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """An optimiser that also keeps an exponential moving average of the parameters.

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
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")

    def init(params):
        return Averaged(optimizer.init(params), params, jnp.zeros((), jnp.int32))

    def update(gradient, state, params=None):
        updates, inner = optimizer.update(gradient, state.inner, params)
        kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        mean = optax.incremental_update(optax.apply_updates(params, updates), state.mean, 1 - kept)
        return updates, Averaged(inner, mean, state.count + 1)

    return optax.GradientTransformation(init, update)


def averaged(state: TrainState) -> Model:
    """The model of the averaged parameters where :func:`averaging` keeps them, otherwise the model as it is."""
    if not isinstance(state.opt_state, Averaged):
        return state.model
    return Model(state.model.network, Variables(state.opt_state.mean, state.model.variables.state))


def initial_state(model: Model, key: jax.Array | None, optimizer) -> TrainState:
    """The state before the first step."""
    if not isinstance(model, Model):
        require_model(model, "start, a Model or a TrainState,")
    if key is None:
        raise ValueError("train needs a key to start from a model: key=jax.random.key(seed)")
    key = one_key(key)
    _check_optimizer(optimizer)
    opt_state = optimizer.init(model.variables.params)
    zero = jnp.zeros((), jnp.int32)
    loss = jnp.full((), jnp.inf, params_dtype(model.variables.params))
    return TrainState(model, opt_state, key, zero, loss, zero - 1)


def _check_finite(state, per_epoch):
    failed = int(state.failed_step)
    if failed >= 0:
        # Without its mark the state can go on, with another optimiser.
        finite = replace(state, failed_step=jnp.full_like(state.failed_step, -1))
        raise TrainingDivergedError(finite, failed // per_epoch, failed)


def _check_optimizer(optimizer):
    parts = [getattr(optimizer, name, None) for name in ("init", "update")]
    if isinstance(optimizer, type) or not all(map(callable, parts)):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, such as optax.sgd(0.1), got {brief(optimizer)}"
        )


def _checked_state(state, optimizer) -> TrainState:
    """A state that training with this optimiser can go on from."""
    _check_optimizer(optimizer)
    wanted = jax.eval_shape(optimizer.init, require_model(state.model, "start.model").variables.params)
    wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (wanted, state.opt_state))
    if jax.tree.structure(wanted) != jax.tree.structure(found) or wanted != found:
        raise ValueError(
            f"optimizer must be the one that start was trained with, whose state it holds, got {brief(optimizer)}"
            "; another one starts from the model: train(state.model, ..., key=key)"
        )
    return state


def _ends(epochs) -> Iterator[float]:
    """The epochs to yield at, each looked at when its turn comes: they may never end."""
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
        check_bounds(require_attack(attack, "each of attacks"), X)
        try:
            hash(attack)
        except TypeError as error:
            raise TypeError(
                f"attacks must be hashable, so that code compiled for them is found again, got {brief(attack)}; a "
                "frozen dataclass of plain values is"
            ) from error
    return tuple(attacks)


def _checked_weights(sample_weight, n) -> np.ndarray:
    """Weights of mean 1."""
    weight = np.ones(n) if sample_weight is None else array("sample_weight", sample_weight).astype(float)
    if weight.shape != (n,) or not (weight >= 0).all() or not 0 < weight.mean() < np.inf:
        raise ValueError(
            f"sample_weight must hold a finite weight >= 0 for each of {n} examples, not all of them zero, got "
            f"{brief(weight)}"
        )
    return weight / weight.mean()


def _checked_inputs(X, params) -> np.ndarray:
    """Inputs (n, ...) in the form in which the network gets them, finite there too."""
    X = array("X", X, finite=True)
    checked = host_inputs("X", X, params)
    require_resolution("X", X, params_dtype(params))
    return checked


def _checked_targets(y, n_outputs: int, dtype) -> np.ndarray:
    """Labels (n,) as int32, booleans too, or real targets (n, C) in the dtype of the inputs."""
    y = array("y", y, finite=True)
    if y.dtype.kind not in "biu":
        if y.shape[1:] != (n_outputs,):
            raise ValueError(
                f"real targets must be shaped like the scores, {(len(y), n_outputs)}, got {y.shape}; labels must "
                "be integers"
            )
        checked = fitting("y", y, dtype)
        require_resolution("y", y, dtype, targets=True)
        return checked
    if y.ndim != 1:
        raise ValueError(
            f"integer labels must be of shape (n,), got {y.shape}; one-hot or other real targets must be floating"
        )
    # one logit is that of label 1 against label 0
    largest = max(n_outputs, 2) - 1
    if y.min() < 0 or y.max() > largest:
        raise ValueError(
            f"labels must lie in 0..{largest}, one for each logit of the network, got {y.min()} to {y.max()}"
        )
    return y.astype(np.int32)


@dataclass(frozen=True)
class _Batches:
    """The data, its order, and batches of one shape with weights that are zero on padding."""

    X: np.ndarray | jax.Array
    y: np.ndarray | jax.Array
    weight: np.ndarray
    seed: tuple
    size: int
    padded: bool
    fused: bool

    @classmethod
    def of(cls, X, y, sample_weight, state, batch_size, freeze_state):
        """Data checked and put where batches are taken from: the device, or host memory on a CPU."""
        network, variables = state.model.network, state.model.variables
        dtype = params_dtype(variables.params)
        X, y = _checked_inputs(X, variables.params), array("y", y)
        check_lengths(X=X, y=y)
        y = _checked_targets(y, check_model(state.model, X.shape[1:], X.dtype), dtype)
        weight = _checked_weights(sample_weight, len(X)).astype(dtype)
        # Batch statistics must not see padding, so networks that have any get the ragged batch as it is.
        averages = bool(jax.tree.leaves(variables.state)) and not isinstance(network, Linearized)
        padded = freeze_state or not averages
        size = min(batch_size, 2 ** math.ceil(math.log2(len(X))) if padded else len(X))
        fused = runs_fused(state.model, X[:1], training=True)
        if not on_host():
            X, y = jax.device_put((X, y))
        seed = tuple(np.asarray(jax.random.key_data(state.key)).ravel().tolist())
        return cls(X, y, weight, seed, size, padded, fused)

    @property
    def per_epoch(self) -> int:
        return math.ceil(len(self.X) / self.size)

    def chunk(self, step: int, target: int) -> int:
        """Number of batches to take at once; a ragged one that cannot be padded goes alone."""
        count = min(CHUNK, target - step)
        if self.padded or len(self.X) % self.size == 0:
            return count
        until_ragged = self.per_epoch - 1 - step % self.per_epoch
        return min(count, until_ragged) if until_ragged > 0 else 1

    def take(self, step: int, count: int):
        """Batches ``step`` to ``step + count``: inputs (CHUNK, size, ...), targets, weights (CHUNK, size)."""
        order = np.stack([self._indices(s) for s in range(step, step + count)])
        if self.fused:
            order = np.concatenate([order, np.repeat(order[:1], CHUNK - count, axis=0)])
        real = np.maximum((order >= 0).sum(1, keepdims=True), 1)
        weight = np.where(order >= 0, self.weight[order], 0) / real.astype(self.weight.dtype)
        return self.X[order], self.y[order], weight

    def _indices(self, step):
        epoch, batch = divmod(step, self.per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.X))[batch * self.size : (batch + 1) * self.size]
        missing = self.size - len(order) if self.padded else 0
        return np.concatenate([order, np.full(missing, -1)])


@lru_cache(maxsize=2)
def _epoch_order(seed, epoch, n):
    return np.random.default_rng([*seed, epoch]).permutation(n)


def _run(state, batches, count, update, attacks, fused):
    """``count`` batches, as one compiled loop or one after the other."""
    if fused:
        return _fused(state, batches, count, update.func, update.args, attacks)
    for batch in itertools.islice(zip(*batches, strict=True), count):
        state = _batch_step(state, batch, update, attacks)
    return state


@partial(jax.jit, static_argnames=("update", "config", "attacks"))
def _fused(state, batches, count, update, config, attacks):
    def body(i, carried):
        batch = jax.tree.map(lambda a: a[i], batches)
        return _batch_step(carried, batch, partial(update, *config), attacks)

    return jax.lax.fori_loop(0, count, body, state)


def _batch_step(state, batch, update, attacks):
    """One update for each attack, each on the network that the one before left."""
    x, y, weight = batch
    noise = _batch_key(state.key, state.step)
    for i, attack in enumerate(attacks):
        key = _batch_key(noise, i)
        x_adv = _examples_of(attack, attack(state.model, jnp.asarray(x), jnp.asarray(y), key=key), x)
        state = update(state, x_adv, y, weight)
    return replace(state, step=state.step + (state.failed_step < 0))


def _examples_of(attack, x_adv, x):
    """An attack's examples, if they are shaped like its inputs."""
    if not isinstance(x_adv, np.ndarray | jax.Array) or x_adv.shape != x.shape:
        raise ValueError(
            f"an attack must return examples shaped like its inputs, {x.shape}, but {brief(attack)} returned "
            f"{brief(x_adv)}"
        )
    return x_adv


@jax.jit
def _batch_key(key, data):
    return jax.random.fold_in(key, data)


@partial(jax.jit, static_argnums=(0, 1))
def _update(optimizer, freeze_state, state, x, y, weight) -> TrainState:
    """One optimiser step, not made if anything about it is not finite."""
    network, variables = state.model.network, state.model.variables

    def objective(params):
        apply = with_fast_gradients(partial(network.apply, train=not freeze_state))
        logits, new = apply(params, variables.state, x)
        return jnp.sum(weight * example_losses(logits, y)), new

    (loss, new_network_state), gradient = jax.value_and_grad(objective, has_aux=True)(variables.params)
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
