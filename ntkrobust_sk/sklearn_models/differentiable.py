"""Estimators that are differentiable functions by themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np


class DifferentiableEstimator(ABC):
    """A fitted estimator that writes its scores as a differentiable function by itself.

    This library's classifiers and regressors are such. :func:`~ntkrobust_sk.as_model`, and attacks through
    Pipelines that end in one, take its word: it is not compared with its own answers.

    Attributes
    ----------
    input_shape_ : tuple of int
        Shape of one input.
    """

    input_shape_: tuple[int, ...]

    @abstractmethod
    def as_model(self) -> Callable:
        """Return the scores as a differentiable function of the inputs, a callable pytree."""

    @property
    @abstractmethod
    def _rows(self) -> int:
        """Return the number of rows in a tile that is evaluated or attacked."""

    @property
    @abstractmethod
    def _dtype(self) -> np.dtype:
        """Return the dtype in which the estimator computes."""
