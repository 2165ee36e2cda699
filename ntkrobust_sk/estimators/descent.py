"""Training of estimators: epochs followed one by one, the best of them kept, callbacks told."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from .._validation import fitting, number
from ..attacks.entry import require_training_attack
from ..attacks.pgd import Clean
from ..attacks.threat_model import admitted
from ..attacks.tiled import attack_in_tiles
from ..execution.tiles import evaluate, network_rows
from ..networks.inputs import host_inputs, params_dtype
from ..networks.model import Model
from ..training.loop import train
from ..training.optimizers import sgd
from ..training.state import TrainingDivergedError, TrainState, averaged, initial_state, with_hyperparameters


def attacks_of(estimator: Any, X: np.ndarray) -> tuple:
    """Return the attacks of one batch in turn, for inputs that lie within their bounds."""
    if estimator.attack is None:
        return (Clean(),)
    admitted(require_training_attack(estimator.attack), X)
    return (Clean(), estimator.attack) if estimator.clean_step else (estimator.attack,)


def fit_by_sgd(
    self: Any, name: str, model: Model, X: np.ndarray, y: np.ndarray, sample_weight: Any, key: Any
) -> None:
    """Train a model by an estimator's parameters; set its attributes ``name``, ``loss_curve_`` and ``n_iter_``."""
    options = {"attacks": attacks_of(self, X), "batch_size": self.batch_size, "sample_weight": sample_weight}
    state = with_hyperparameters(
        initial_state(model, key, sgd()), learning_rate=self.learning_rate, momentum=self.momentum
    )
    X, y = in_final_form(model, X, y)
    states = train(state, X, y, optimizer=sgd(), epochs=self.max_epochs, **options)
    self.loss_curve_, self.n_iter_ = [], 0
    for _ in followed(self, name, states, state, self.max_epochs):
        pass


def in_final_form(model: Model, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets as training takes them: what is lost on the way has been said by the estimator."""
    params = model.variables.params
    return host_inputs("X", X, params), y if y.dtype.kind in "iu" else fitting("y", y, params_dtype(params))


def followed(
    self: Any, name: str, states: Iterator[TrainState], start: TrainState, n_epochs: int
) -> Generator[TrainState, None, None]:
    """Yield the states of epochs; keep loss, number and, when it ends for whatever reason, the last model."""
    description = f"{type(self).__name__} ({'benign' if self.attack is None else type(self.attack).__name__})"
    bar = tqdm(states, description, n_epochs, disable=not self.verbose, unit="epoch", leave=False)
    state = start
    try:
        for state in bar:
            self.loss_curve_.append(float(state.loss))
            self.n_iter_ += 1
            bar.set_postfix(loss=f"{self.loss_curve_[-1]:.4f}", refresh=False)
            yield state
    except TrainingDivergedError as error:
        state = error.state
        raise
    finally:
        bar.close()
        setattr(self, name, averaged(state))


def split_off(fraction: float, X: np.ndarray, y: np.ndarray, sample_weight: Any, key: jax.Array) -> tuple:
    """Split off examples for validation, with the same shares of classes.

    Returns
    -------
    training, validation : (X, y, sample_weight)

    Raises
    ------
    ValueError
        If one of the two would be without an example of some class.
    """
    fraction = number("validation_fraction", fraction, above=0, below=1)
    counts = np.bincount(y)
    n_held_out = round(fraction * len(y))
    least = min(n_held_out, len(y) - n_held_out)
    if counts.min() < 2 or least < len(counts):
        raise ValueError(
            f"validation_fraction={fraction:g} of {len(y)} examples holds out {n_held_out}, and each of "
            f"{len(counts)} classes needs an example on both sides, the rarest has {counts.min()}; give more "
            f"examples,"
            " another validation_fraction, or early_stopping=False"
        )
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    # it imports scikit-learn's measures
    from sklearn.model_selection import train_test_split

    left, held_out = train_test_split(np.arange(len(y)), test_size=n_held_out, stratify=y, random_state=seed)
    return tuple(
        (X[at], y[at], None if sample_weight is None else np.asarray(sample_weight)[at]) for at in (left, held_out)
    )


@dataclass
class BestEpoch:
    """The state with the highest accuracy under attack on examples that are not trained on.

    Attributes
    ----------
    attack : callable or None
        None scores the inputs as they are.
    X, y, sample_weight : array (n, ...)
    key : JAX PRNG key
        The attack's noise is the same at each epoch.
    scores : list of float
        Of each epoch.
    best : TrainState
        Of the first epoch with the highest score.
    """

    attack: Callable | None
    X: np.ndarray
    y: np.ndarray
    sample_weight: np.ndarray | None
    key: jax.Array
    scores: list[float] = field(default_factory=list)
    best: TrainState | None = None

    def look_at(self, state: TrainState) -> None:
        """Score an epoch, and keep its state if none before was as good."""
        model, X, rows = averaged(state), self.X, network_rows()
        if self.attack is not None:
            X = attack_in_tiles(self.attack, model, X, self.y, key=self.key, rows=rows, look=False)
        right = evaluate(model, X, rows).argmax(1) == self.y
        score = float(np.average(right, weights=self.sample_weight))
        if self.best is None or score > max(self.scores):
            self.best = state
        self.scores.append(score)

    def since(self) -> int:
        """Return the number of epochs since the best."""
        return len(self.scores) - 1 - int(np.argmax(self.scores))
