"""Steps in a compiled loop, or in a loop in Python over a compiled step: decided here alone.

One compiled loop is best. But on a CPU, XLA runs a convolution inside of ``while`` several times slower than
outside of it, unless it has the one form that :mod:`~ntkrobust_sk.execution.convolutions` gives to the gradients
of inputs. Where others are left, those of filters and those inside of kernels' features, a loop in Python over a
compiled step wins; it does not wait for results, it only enqueues work.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

from .convolutions import CONVOLUTION, loops_well
from .devices import on_host


def runs_fused(model, x, training: bool = False) -> bool:
    """Whether steps on ``model(x)`` should be one compiled loop: of attacks and evaluations, or of ``training``.

    Always inside ``jit``, ``vmap`` and other transformations, where nothing else is possible.
    """
    form = form_of(model, x)
    return form is None or not on_host() or _loops_well(form, training)


def form_of(model, x):
    """A model and its inputs without their numbers, as a tree with shapes and dtypes; None inside of ``jit``.

    It can be hashed, and costs some microseconds.
    """
    leaves, tree = jax.tree.flatten((model, x))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    return tree, tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else (jnp.shape(leaf), jnp.result_type(leaf))
        for leaf in leaves
    )


def without_numbers(form):
    """A model and its inputs of this form, with shapes in place of arrays."""
    tree, leaves = form
    return jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


@lru_cache(maxsize=256)
def _loops_well(form, training) -> bool:
    def scores(model, inputs):
        return model(inputs)

    model, x = without_numbers(form)
    if training:
        return CONVOLUTION not in str(jax.make_jaxpr(scores)(model, x))
    return loops_well(scores, model, x)
