"""The skeleton of this library's attacks: settings checked once, inputs checked once, and one method to write.

An attack is a frozen dataclass that inherits from :class:`Attack` and has ``_run``:

>>> from dataclasses import dataclass
>>> import jax.numpy as jnp
>>> @dataclass(frozen=True)
... class Brighter(Attack):
...     epsilon: float
...     norm: str = "linf"
...     bounds: tuple | None = (0.0, 1.0)
...
...     def _run(self, given):
...         return Outcome(jnp.clip(given.x + self.epsilon, given.ball.lower, given.ball.upper))
>>> model = jax.tree_util.Partial(lambda x: x)
>>> Brighter(0.25)(model, jnp.full((1, 2), 0.5), jnp.array([0]), key=jax.random.key(0))
Array([[0.75, 0.75]], dtype=float32)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax

from .._validation import check_choice, flag, integer, number
from .boxes import Box, plain_bounds
from .entry import Given, given
from .norms import NORMS

_length = partial(number, low=0, unit="in units of the data")
# The checks of fields that mean the same in every attack; each returns a plain value.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "epsilon": _length,
    "n_steps": integer,
    "n_queries": integer,
    "n_restarts": integer,
    "n_targets": integer,
    "step_size": _length,
    "radius": _length,
    "random_start": flag,
    "gamma": partial(number, above=0, below=1),
    "bounds": lambda _, bounds: plain_bounds(bounds),
}


class Outcome(NamedTuple):
    """The rows (n, d) that an attack has made, and where a gradient on the way was not finite (n,)."""

    x: jax.Array
    lost: Any = False


class AttackSettings:
    """The settings of an attack, a frozen dataclass of plain values that are checked when it is made.

    Each attack lists ``epsilon``, ``norm`` and ``bounds`` itself, in the order in which they may be given.

    Attributes
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    norm : str
        One of ``norms``; a class attribute where there is one alone.
    bounds : (low, high), Box or None
    norms : tuple of str
        The norms that the attack knows.
    checks : dict
        What makes plain values of the attack's own fields, ``check(name, value)`` by field.
    needs_gradients : bool
        Whether it asks for more than scores.
    needs_labels : bool
        Whether real targets are refused.
    one_key_each : bool
        Whether it takes a key for each example.
    """

    epsilon: float
    norm: str
    bounds: tuple | Box | None
    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)
    checks: ClassVar[dict[str, Callable[[str, Any], Any]]] = {}
    needs_gradients: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    one_key_each: ClassVar[bool] = True

    def __post_init__(self):
        check_choice("norm", self.norm, self.norms)
        checks = {**CHECKS, **self.checks}
        for field in fields(self):  # pyright: ignore[reportArgumentType] - those who inherit are dataclasses
            value = getattr(self, field.name)
            if field.name in checks and not (value is None and field.default is None):
                object.__setattr__(self, field.name, checks[field.name](field.name, value))


class Attack(AttackSettings, ABC):
    """An attack on ``x -> scores``: inputs are checked where it is called, and :meth:`_run` works on rows."""

    def __call__(self, model: Callable, x: Any, y: Any, *, key: Any) -> jax.Array:
        """Return adversarial examples.

        Parameters
        ----------
        model : callable
            ``x -> scores`` (n, C). A pytree (a Model, a predictor) shares compiled code with others of its
            structure; a bare function is compiled for itself.
        x : array (n, ...)
        y : array (n,) of int labels 0..C-1, or array of real targets shaped like the scores
        key : JAX PRNG key, or one for each example (n,)

        Returns
        -------
        array (n, ...)
        """
        checked = given(self, model, x, y, key)
        return self._run(checked).x.reshape(checked.shape)

    @abstractmethod
    def _run(self, given: Given) -> Outcome:
        """Attack checked inputs, without looking at values on the host."""
