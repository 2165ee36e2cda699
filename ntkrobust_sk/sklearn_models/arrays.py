"""Fitted attributes as dense arrays of real numbers, and the library that computes with an array.

Adapters are written once and run in two ways: in JAX, where they are attacked, and in NumPy, where they are
compared with their estimators at once, since nothing is compiled there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from .._validation import array

# An array of NumPy, or of JAX (traced or not).
Array: TypeAlias = Any


@dataclass(frozen=True)
class Named:
    """One of a table's functions, which can be compared and pickled by its name."""

    table: ClassVar[dict[str, Callable]]
    name: str

    def __call__(self, *args: Any) -> Array:
        """Call the function."""
        return self.table[self.name](*args)


def namespace(x: Any) -> Any:
    """Return ``jax.numpy`` for what is JAX's (traced or not), else ``numpy``."""
    return jnp if isinstance(x, jax.Array) else np


def error_function(x: Array) -> Array:
    """Compute erf, where x lives."""
    return (jax.scipy.special if isinstance(x, jax.Array) else scipy.special).erf(x)


def sigmoid(x: Array) -> Array:
    """Compute 1 / (1 + exp(-x)), where x lives."""
    return (jax.scipy.special if isinstance(x, jax.Array) else scipy.special).expit(x)


def clipped(low: Array, high: Array, x: Array) -> Array:
    """Clip x to a range, and hand on gradients as if it were not: attacks beyond the range find their way back."""
    if not isinstance(x, jax.Array):
        return np.clip(x, low, high)
    return jax.lax.stop_gradient(jnp.clip(x, low, high)) + (x - jax.lax.stop_gradient(x))


def solve_lower(factor: np.ndarray, x: Array) -> Array:
    """Compute ``factor``⁻¹ x for a lower triangle (n, n) and x (n, m), where x lives."""
    linalg = jax.scipy.linalg if isinstance(x, jax.Array) else scipy.linalg
    return linalg.solve_triangular(factor, x, lower=True)


def root(squares: Array) -> Array:
    """Compute the square root, with the derivative 0 at 0."""
    xp, positive = namespace(squares), squares > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, squares, 1.0)), 0.0)


def fitted(estimator: Any, name: str) -> np.ndarray:
    """Return an estimator's attribute as a dense NumPy array of one axis or more.

    Raises
    ------
    TypeError
        If it does not consist of real numbers.
    """
    return dense(f"{type(estimator).__name__}.{name}", getattr(estimator, name))


def dense(name: str, values: Any) -> np.ndarray:
    """Return values, sparse ones too, as a dense NumPy array of real numbers with one axis or more."""
    values = values.toarray() if hasattr(values, "toarray") else values
    return array(name, np.atleast_1d(values) if np.ndim(values) == 0 else values)
