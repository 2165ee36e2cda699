"""Who writes down what an estimator computes: the estimator itself, or an adapter that has entered itself here."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

# By scikit-learn's names of classes: adapter(estimator) ...
ADAPTERS: dict[str, Callable[..., Callable]] = {}
# ... adapter(estimator, kernel, X_fit), of those that may need a kernel from outside ...
MACHINES: dict[str, Callable[..., Callable]] = {}
# ... adapter(estimator, kernel, X_fit, transforms), of those that hold other estimators ...
COMPOSITIONS: dict[str, Callable[..., Callable]] = {}
# ... and adapter(estimator), of what those that give scores transform to in the middle of a Pipeline.
ALSO_TRANSFORM: dict[str, Callable[..., Callable]] = {}

Adapter = TypeVar("Adapter", bound=Callable[..., Callable])


def adapts(*names: str, into: dict[str, Callable[..., Callable]] = ADAPTERS) -> Callable[[Adapter], Adapter]:
    """Enter the decorated adapter into a table of the registry, under names of scikit-learn's classes."""

    def enter(adapter: Adapter) -> Adapter:
        into.update(dict.fromkeys(names, adapter))
        return adapter

    return enter


def form_of(
    estimator: Any, kernel: Callable | None = None, X_fit: Any = None, transforms: bool = False
) -> Callable:
    """Return what an estimator computes, of arrays of NumPy or JAX: its scores, or what it ``transforms`` to.

    Raises
    ------
    TypeError
        If no adapter is entered for an estimator of this name.
    """
    if isinstance(estimator, DifferentiableEstimator) and not transforms:
        return estimator.as_model()
    name = type(estimator).__name__ if type(estimator).__module__.startswith("sklearn.") else ""
    if name in COMPOSITIONS:
        return COMPOSITIONS[name](estimator, kernel, X_fit, transforms)
    if name in MACHINES and hasattr(estimator, "transform") >= transforms:
        return MACHINES[name](estimator, kernel, X_fit)
    if transforms and name in ALSO_TRANSFORM:
        return ALSO_TRANSFORM[name](estimator)
    if name in ADAPTERS and hasattr(estimator, "transform") >= transforms:
        return ADAPTERS[name](estimator)
    raise TypeError(
        f"there is no differentiable form of {type(estimator).__module__}.{type(estimator).__name__}; the "
        "black-box attack Square works on whatever gives scores"
    )


class DifferentiableCovariance(ABC):
    """A kernel of scikit-learn's that writes itself as a differentiable function."""

    @abstractmethod
    def as_function(self) -> Callable:
        """Return ``k(x, z)`` of inputs (n, d) and (m, d), with ``k(x)`` for its diagonal, as a pytree."""

    def remembered(self, z: Any) -> Any:
        """Return training rows (m, d) in the form in which ``k(x, z)`` takes them fastest, again and again."""
        return z


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
