"""Batches of an epoch, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, check_lengths, fitting, require_resolution
from ..execution.devices import on_host
from ..execution.tiles import pad_rows
from ..networks.inputs import host_inputs, params_dtype
from ..networks.model import Model, check_model
from ..tangent.linearization import Linearized
from .state import TrainState

# Number of batches between two looks at whether the loss is still finite, and the length of a compiled loop.
CHUNK = 16


def _checked_weights(sample_weight, n) -> np.ndarray:
    """Return weights of mean 1."""
    weight = np.ones(n) if sample_weight is None else array("sample_weight", sample_weight).astype(float)
    if weight.shape != (n,) or not (weight >= 0).all() or not 0 < weight.mean() < np.inf:
        raise ValueError(
            f"sample_weight must hold a finite weight >= 0 for each of {n} examples, not all of them zero, got "
            f"{brief(weight)}"
        )
    return weight / weight.mean()


def _checked_inputs(X, params) -> np.ndarray:
    """Return inputs (n, ...) in the form in which the network gets them, finite there too."""
    X = array("X", X, finite=True)
    checked = host_inputs("X", X, params)
    require_resolution("X", X, params_dtype(params))
    return checked


def _checked_targets(y, n_outputs: int, dtype) -> np.ndarray:
    """Return labels (n,) as int32, booleans too, or real targets (n, C) in the dtype of the inputs."""
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


def couples_rows(model: Model, freeze_state: bool) -> bool:
    """Tell whether the rows of a batch depend on each other in training: where batch statistics are kept."""
    averages = bool(jax.tree.leaves(model.variables.state)) and not isinstance(model.network, Linearized)
    return averages and not freeze_state


@dataclass(frozen=True)
class Batches:
    """The data, its order, and batches of one shape with weights that are zero on padding.

    Attributes
    ----------
    X, y, weight : array (n, ...)
    seed : tuple of int
        What the order is drawn from.
    size : int
        Rows of a batch.
    padded : bool
        Whether the last batch of an epoch is filled up.
    first : array (1, ...)
        An input, on the host.
    """

    X: np.ndarray | jax.Array
    y: np.ndarray | jax.Array
    weight: np.ndarray
    seed: tuple
    size: int
    padded: bool
    first: np.ndarray

    @classmethod
    def of(
        cls,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        state: TrainState,
        batch_size: int,
        freeze_state: bool,
    ) -> Batches:
        """Check data, and put it where batches are taken from: the device, or host memory on a CPU."""
        variables = state.model.variables
        dtype = params_dtype(variables.params)
        inputs, targets = _checked_inputs(X, variables.params), array("y", y)
        check_lengths(X=inputs, y=targets)
        targets = _checked_targets(targets, check_model(state.model, inputs.shape[1:], inputs.dtype), dtype)
        weight = _checked_weights(sample_weight, len(inputs)).astype(dtype)
        # Batch statistics must not see padding, so networks that have any get the ragged batch as it is.
        padded = not couples_rows(state.model, freeze_state)
        size = min(batch_size, 2 ** math.ceil(math.log2(len(inputs))) if padded else len(inputs))
        first = inputs[:1]
        if not on_host():
            inputs, targets = jax.device_put((inputs, targets))
        seed = tuple(np.asarray(jax.random.key_data(state.key)).ravel().tolist())
        return cls(inputs, targets, weight, seed, size, padded, first)

    @property
    def per_epoch(self) -> int:
        """Return the number of batches of an epoch."""
        return math.ceil(len(self.X) / self.size)

    def chunk(self, step: int, target: int) -> int:
        """Return the number of batches to take at once; a ragged one that cannot be padded goes alone."""
        count = min(CHUNK, target - step)
        if self.padded or len(self.X) % self.size == 0:
            return count
        until_ragged = self.per_epoch - 1 - step % self.per_epoch
        return min(count, until_ragged) if until_ragged > 0 else 1

    def take(self, step: int, count: int, length: int) -> tuple:
        """Return batches ``step`` to ``step + count``, then the first one again up to ``length``.

        Returns
        -------
        inputs : array (length, size, ...)
        targets : array (length, size, ...)
        weights : array (length, size)
        """
        order = pad_rows(np.stack([self._indices(s) for s in range(step, step + count)]), length)
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
