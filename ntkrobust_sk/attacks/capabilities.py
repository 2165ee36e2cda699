"""What attacks may state and do beside being called: each a type that ``isinstance`` asks for."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ..execution.keys import Keys


@runtime_checkable
class InBall(Protocol):
    """An attack that states the ball into which its examples are put."""

    epsilon: float
    norm: str
    bounds: Any


@runtime_checkable
class FindsNearest(InBall, Protocol):
    """An attack that finds the nearest wrongly answered points (n, ...) and their distances (n,)."""

    def nearest(self, model: Any, x: Any, y: Any, *, key: Any) -> tuple[jax.Array, jax.Array]:
        """Return the points and their distances."""
        ...


@runtime_checkable
class GoesThroughTiles(Protocol):
    """An attack that goes through all examples by itself, in tiles of so many rows."""

    def in_tiles(self, model: Any, X: np.ndarray, y: np.ndarray, *, key: Keys, rows: int) -> np.ndarray:
        """Return the adversarial examples of all of X (n, ...)."""
        ...


@runtime_checkable
class Reports(Protocol):
    """An attack that tells what it has found: ``x_adv``, ``names``, ``accuracies`` and ``flags``."""

    def run(self, model: Any, X: Any, y: Any, *, key: Any, rows: int | None = None) -> Any:
        """Return the report."""
        ...


def needs_gradients(attack: Any) -> bool | None:
    """Return whether an attack needs gradients, or None if it does not say."""
    return bool(attack.needs_gradients) if hasattr(attack, "needs_gradients") else None
