"""The state of a training, and what is raised where it diverges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..execution.keys import one_key
from ..networks.inputs import PyTree, params_dtype
from ..networks.model import Model, Variables, require_model
from .optimizers import Averaged, check_optimizer

if TYPE_CHECKING:
    import optax


@jax.tree_util.register_dataclass
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

    Examples
    --------
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from ntkrobust_sk import MLP, Model, train
    >>> network = MLP(n_outputs=2, widths=())
    >>> model = Model(network, network.init(jax.random.key(0), (3,)))
    >>> (state,) = train(model, jnp.eye(3), [0, 1, 1], key=jax.random.key(1), optimizer=optax.sgd(0.1))
    >>> int(state.step), float(state.loss) > 0, int(state.failed_step)
    (1, True, -1)
    """

    model: Model
    opt_state: PyTree
    key: jax.Array
    step: jax.Array
    loss: jax.Array
    failed_step: jax.Array


class TrainingDivergedError(ArithmeticError):
    """An error: the loss or an update became NaN or infinite.

    Attributes
    ----------
    state : TrainState
        The last finite state.
    epoch, step : int
        Where it happened; epochs count from 0, steps are batches since the start.

    Examples
    --------
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from ntkrobust_sk import MLP, Model, train
    >>> network = MLP(n_outputs=2, widths=())
    >>> model = Model(network, network.init(jax.random.key(0), (3,)))
    >>> list(train(model, jnp.eye(3), jnp.eye(3, 2), key=jax.random.key(1), optimizer=optax.sgd(1e30), epochs=9))
    Traceback (most recent call last):
    ntkrobust_sk.training.state.TrainingDivergedError: training diverged in epoch ...
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
        return type(self), (self.state, self.epoch, self.step), vars(self)


def averaged(state: TrainState) -> Model:
    """Return the model of the averaged parameters if :func:`averaging` keeps them, otherwise the model."""
    if not isinstance(state.opt_state, Averaged):
        return state.model
    return Model(state.model.network, Variables(state.opt_state.mean, state.model.variables.state))


def initial_state(model: Model, key: jax.Array | None, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    if not isinstance(model, Model):
        require_model(model, "start, a Model or a TrainState,")
    if key is None:
        raise ValueError("train needs a key to start from a model: key=jax.random.key(seed)")
    key = one_key(key)
    check_optimizer(optimizer)
    opt_state = optimizer.init(model.variables.params)
    zero = jnp.zeros((), jnp.int32)
    loss = jnp.full((), jnp.inf, params_dtype(model.variables.params))
    return TrainState(model, opt_state, key, zero, loss, zero - 1)


def with_hyperparameters(state: TrainState, **values: Any) -> TrainState:
    """Return the state with other values of the optimiser's injected hyperparameters."""
    dtype = params_dtype(state.model.variables.params)
    values = {name: jnp.asarray(value, dtype) for name, value in values.items()}
    return replace(state, opt_state=_injected(state.opt_state, values))


def _injected(opt_state, values):
    if isinstance(opt_state, Averaged):
        return opt_state._replace(inner=_injected(opt_state.inner, values))
    return opt_state._replace(hyperparams={**opt_state.hyperparams, **values})


def has_learning_rate(state: TrainState) -> bool:
    """Tell whether the optimiser's learning rate is among its state, where a schedule can set it."""
    held = state.opt_state.inner if isinstance(state.opt_state, Averaged) else state.opt_state
    return "learning_rate" in getattr(held, "hyperparams", {})
