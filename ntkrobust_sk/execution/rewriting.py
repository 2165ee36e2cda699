"""Functions written anew: some equations of a function's jaxpr give way to others that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import Literal

# Equations that hold a jaxpr which can stand in their place.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
INLINED |= {"checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr"}


def rewritten(function: Callable, replacement: Callable[[Any], Callable | None]) -> Callable:
    """Return a function in which others stand in place of some equations.

    Parameters
    ----------
    function : callable
        Of arrays, or trees of arrays, to the same.
    replacement : callable
        From an equation of a jaxpr to a function of its inputs that returns its one output, or to None for what
        stays. Equations inside of loops, branches, and functions with derivatives of their own are not asked for.

    Returns
    -------
    callable
        The function itself where nothing is replaced.

    Examples
    --------
    >>> import jax
    >>> def squares_for_sines(eqn):
    ...     return jax.numpy.square if eqn.primitive.name == "sin" else None
    >>> rewritten(lambda x: 1 + jax.numpy.sin(x), squares_for_sines)(3.0)
    Array(10., dtype=float32, weak_type=True)
    """

    def with_others(*args):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        if not any(map(replacement, equations_of(closed.jaxpr))):
            return function(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), replacement)
        return jax.tree.unflatten(jax.tree.structure(out), outputs)

    return with_others


def equations_of(jaxpr: Any) -> Iterator:
    """Go through the equations, and those inside of them that can stand in their place."""
    for eqn in jaxpr.eqns:
        yield from equations_of(subjaxpr(eqn)[0]) if eqn.primitive.name in INLINED else [eqn]


def _evaluate(jaxpr, consts, args, replacement) -> list:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if (other := replacement(eqn)) is not None:
            outputs = [other(*inputs)]
        elif eqn.primitive.name in INLINED and any(map(replacement, equations_of(subjaxpr(eqn)[0]))):
            inner, inner_consts = subjaxpr(eqn)
            outputs = _as_before(eqn, partial(_evaluate, inner, inner_consts, replacement=replacement))(inputs)
        else:
            outputs = bind(eqn, inputs)
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _as_before(eqn, function):
    """Return the function in place of an equation's jaxpr, checkpointed where that was."""
    if "policy" not in eqn.params:
        return function
    return jax.checkpoint(function, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])


def subjaxpr(eqn: Any) -> tuple:
    """Return the jaxpr inside of an equation of :data:`INLINED`, and its constants."""
    inner = eqn.params[INLINED[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])


def bind(eqn: Any, inputs: Sequence) -> list:
    """Return the outputs of an equation of a jaxpr."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # JAX before 0.10 returns the subfunctions beside the parameters
    subfuns, bind_params = bound if isinstance(bound, tuple) else ((), bound)
    outputs = eqn.primitive.bind(*subfuns, *inputs, **bind_params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
