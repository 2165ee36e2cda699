"""What each example may have of its own in one attack: a radius, and where it is driven to.

Attacks are frozen dataclasses that are compared and hashed, so what differs from row to row goes with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .._validation import brief
from .losses import others, scores_at


@dataclass(frozen=True, eq=False)
class Each:
    """The radii and the aims of n examples; None where they have none of their own.

    Attributes
    ----------
    epsilon : array (n,) or None
        Radii in place of the attack's.
    aims : int array (n,), array (n, T) or None
        Classes (or, of a regressor, values) that the answers shall become.
    """

    epsilon: np.ndarray | None = None
    aims: np.ndarray | None = None

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return self.epsilon is not None or self.aims is not None

    def at(self, index: Any) -> Each:
        """Return those of some examples."""
        return Each(*(None if values is None else values[index] for values in (self.epsilon, self.aims)))

    def fallen(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tell where answers (n,) to the examples with labels y are wrong, or those that were aimed at (n,)."""
        return answers != y if self.aims is None else answers == self.aims

    def require_one_radius(self, attack: Any) -> None:
        """Raise TypeError if there are radii, for an attack that knows its own alone."""
        if self.epsilon is not None:
            raise TypeError(
                f"epsilon for each example needs an attack of this library in a ball, such as PGD, got "
                f"{brief(attack)}; attack the rows of one epsilon at a time"
            )


# What examples have that have nothing of their own.
NOTHING = Each()


@dataclass(frozen=True, eq=False)
class Reach:
    """The ball of an attack with a radius for each example."""

    epsilon: Any
    norm: str
    bounds: Any


def reach_of(attack: Any, each: Each) -> Any:
    """Return what states the ball of an attack on examples that may have radii of their own."""
    return attack if each.epsilon is None else Reach(each.epsilon, attack.norm, attack.bounds)


def towards(model: Callable, aims: Any) -> Callable:
    """Return a function from the n rows of the aims to two scores: of all that is not the aim, and of the aim.

    Of classes these are max_{c≠t} z_c and z_t, the margin of Carlini & Wagner 2017 (arXiv:1608.04644); of values
    the squared distance from the aim, and zero. An attack on it with label 0 is one of the model towards the aims.

    >>> model = Partial(lambda x: x)
    >>> towards(model, jnp.array([2]))(jnp.array([[0.5, 3.0, 1.0]])).tolist()
    [[3.0, 1.0]]
    """
    return Partial(_towards, model, jnp.asarray(aims))


def _towards(model, aims, x):
    scores = model(x)
    if len(scores) != len(aims):
        raise ValueError(
            f"a targeted attack asks the model for all {len(aims)} rows of its tile at once, which have a target "
            f"each, but this one asked for {len(scores)}"
        )
    if jnp.issubdtype(aims.dtype, jnp.integer):
        return jnp.stack([others(scores, aims).max(1), scores_at(scores, aims)], 1)
    distance = jnp.sum((scores - aims.astype(scores.dtype)) ** 2, axis=1)
    return jnp.stack([distance, jnp.zeros_like(distance)], 1)
