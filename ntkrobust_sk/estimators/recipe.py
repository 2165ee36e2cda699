"""What a trainer's parameters say of training: optimiser, rates, loss and augmentation, checked together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from .._validation import brief, number
from ..attacks.entry import require_attack, require_training_attack
from ..networks.model import Model
from ..training.loop import train
from ..training.objectives import require_awp, require_loss
from ..training.optimizers import averaging, resolve_optimizer
from ..training.schedules import is_by_step, rates_of, require_schedule
from ..training.state import TrainState, initial_state, with_hyperparameters
from .descent import attacks_of

# Parameters that are None without early stopping. Not ``n_iter_no_change``: scikit-learn's own estimators
# pass it over, and its checks set it.
OF_EARLY_STOPPING = ("validation_attack",)


@dataclass(frozen=True, eq=False)
class Recipe:
    """The way in which a trainer trains, made of its parameters.

    Attributes
    ----------
    optimizer : optax.GradientTransformation
    values : dict
        Hyperparameters of an optimiser by name; empty for one of optax.
    schedule : Cosine, MultiStep, callable or None
    options : dict
        Further ones of :func:`~ntkrobust_sk.train`.
    """

    optimizer: Any
    values: dict[str, float]
    schedule: Any
    options: dict[str, Any]

    @classmethod
    def of(cls, trainer: Any) -> Recipe:
        """Check a trainer's parameters, and make a recipe of them."""
        schedule = require_schedule(trainer.learning_rate_schedule)
        given = {name: getattr(trainer, name) for name in ("learning_rate", "momentum", "weight_decay")}
        optimizer, values = resolve_optimizer(trainer.optimizer, **given)
        if schedule is not None and not values:
            raise ValueError(
                f"learning_rate_schedule={brief(schedule)} was given together with an optimiser of optax, which "
                f"has its"
                " own; write it there, such as optimizer=optax.sgd(schedule), or give a name: 'sgd', 'adam', "
                "'adamw'"
            )
        if is_by_step(schedule) and trainer.learning_rate is not None:
            raise ValueError(
                f"learning_rate={trainer.learning_rate!r} was given together with a schedule that gives the rates "
                f"themselves, {brief(schedule)}; leave one of them out, or take 'cosine' or MultiStep(), which "
                f"multiply"
            )
        if trainer.ema_decay is not None:
            optimizer = averaging(optimizer, number("ema_decay", trainer.ema_decay, low=0, below=1))
        loss = require_loss(trainer.loss, (), None)
        if trainer.attack is None and loss.uses_clean:
            raise ValueError(f"loss={loss!r} needs an attack, such as attack=PGD(8 / 255), got attack=None")
        if trainer.validation_attack is not None:
            require_attack(trainer.validation_attack, "validation_attack")
        if trainer.attack is not None:
            require_training_attack(trainer.attack)
        _require_say(trainer)
        options = {
            "loss": loss,
            "weight_perturbation": require_awp(trainer.weight_perturbation),
            "augmentation": trainer.augmentation,
            "batch_size": trainer.batch_size,
        }
        return cls(optimizer, values, schedule, options)

    def first_state(self, model: Model, key: jax.Array) -> TrainState:
        """Return the state before the first step."""
        state = initial_state(model, key, self.optimizer)
        return with_hyperparameters(state, **self.values) if self.values else state

    def states(
        self, trainer: Any, state: TrainState, X: np.ndarray, y: np.ndarray, sample_weight: Any, n_epochs: int
    ) -> Iterator[TrainState]:
        """Train for so many whole epochs from a state on; nothing runs before the first is asked for."""
        attacks = attacks_of(trainer, X)
        attacks = attacks[-1:] if self.options["loss"].uses_clean else attacks
        per_epoch = math.ceil(len(X) / min(trainer.batch_size, len(X)))
        first = math.ceil(int(state.step) / per_epoch)
        state = replace(state, step=np.full_like(state.step, first * per_epoch))
        last = first + n_epochs
        rate = rates_of(self.schedule, self.values.get("learning_rate", 0.0), last * per_epoch)
        return train(
            state,
            X,
            y,
            optimizer=self.optimizer,
            attacks=attacks,
            sample_weight=sample_weight,
            epochs=range(first + 1, last + 1),
            learning_rate=rate,
            **self.options,
        )


def _require_say(trainer: Any) -> None:
    """Raise ValueError for a parameter of early stopping that was given without it."""
    for name in OF_EARLY_STOPPING:
        value = getattr(trainer, name)
        if not trainer.early_stopping and value is not None:
            raise ValueError(
                f"{name}={brief(value)} has no say without early stopping; set early_stopping=True, or leave "
                f"{name} out"
            )
