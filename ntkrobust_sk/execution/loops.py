"""Steps in a compiled loop, or in a loop in Python over a compiled step: decided and done here alone.

One compiled loop is best: it asks for its memory once, and the host waits for nothing. But on a CPU, XLA runs a
convolution inside of ``while`` many times slower than outside of it, unless it has one of the forms that
:mod:`~ntkrobust_sk.execution.convolutions` gives to ordinary ones. Where others are left, those inside of kernels'
features, grouped or dilated ones, a loop in Python over a compiled step wins; it only enqueues work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .convolutions import loops_well
from .devices import on_host


def repeat(
    step: Callable,
    n_steps: int,
    state: Any,
    *operands: Any,
    evaluated: tuple | None = None,
    static: tuple = (),
    schedule: Callable[[int], Any] | None = None,
    length: int | None = None,
) -> Any:
    """Return the state after ``n_steps`` steps, made in a compiled loop or in a loop in Python.

    Parameters
    ----------
    step : callable
        ``step(*static, state, now, *operands) -> state``. It stays the same function from call to call, so that
        the loop is compiled once; where it is to be compiled by itself, it is decorated with ``jax.jit``.
    n_steps : int
        Other numbers compile nothing.
    state : pytree
    *operands : pytree
        Arrays that stay the same in all steps.
    evaluated : (model, x), default=None
        What the steps evaluate, which decides which loop is faster. None takes the first two operands.
    static : tuple, default=()
        Hashable values for which the loop is compiled.
    schedule : callable, default=None
        ``schedule(length)`` gives a pytree of arrays (length, ...), and ``now`` is its entry for the step. None
        makes ``now`` the number of the step.
    length : int, default=None
        Length of the schedule that a compiled loop is given, at least ``n_steps``, which is the default.
    """
    if n_steps < 1:  # a schedule without entries has none to look at
        return state
    model, x = evaluated or operands[:2]
    if prefers_compiled_loop(model, x):
        plan = None if schedule is None else schedule(length or n_steps)
        return _compiled_loop(step, static, state, plan, n_steps, operands)
    plan = None if schedule is None else schedule(n_steps)
    for number in range(n_steps):
        state = step(*static, state, _entry(plan, number), *operands)
    return state


@partial(jax.jit, static_argnums=(0, 1))
def _compiled_loop(step, static, state, plan, n_steps, operands):
    def body(number, state):
        return step(*static, state, _entry(plan, number), *operands)

    return jax.lax.fori_loop(0, n_steps, body, state)


def _entry(plan, number):
    """Return what a schedule holds for one step: without a schedule, the step's number."""
    return number if plan is None else jax.tree.map(lambda part: part[number], plan)


def prefers_compiled_loop(model: Callable, x: Any) -> bool:
    """Tell whether steps on ``model(x)`` are faster as one compiled loop.

    Inside of ``jit``, ``vmap`` and other transformations it is always so, since nothing else is possible there.
    """
    form = form_of(model, x)
    return form is None or not on_host() or _loops_well(form)


def form_of(model: Callable, x: Any) -> tuple | None:
    """Return the tree, shapes and dtypes of a model and its inputs, which can be hashed; None inside of ``jit``.

    It takes some microseconds.
    """
    leaves, tree = jax.tree.flatten((model, x))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return None
    return tree, tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else (jnp.shape(leaf), jnp.result_type(leaf))
        for leaf in leaves
    )


def without_numbers(form: tuple) -> tuple:
    """Return a model and its inputs of this form, with shapes in place of arrays."""
    tree, leaves = form
    return jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


@lru_cache(maxsize=256)
def _loops_well(form) -> bool:
    def scores(model, inputs):
        return model(inputs)

    model, x = without_numbers(form)
    return loops_well(scores, model, x)
