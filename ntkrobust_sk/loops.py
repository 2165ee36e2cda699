"""How a model is applied many times: to all rows in tiles of one shape, and in step after step.

Here alone it is decided between a compiled loop and a loop in Python.

On a CPU, XLA runs a convolution inside ``while`` about half as fast as outside of it, so a loop in Python
over a compiled step wins there; it does not wait for results, it only enqueues work. Dense networks, and
everything on an accelerator, gain from one compiled loop.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from .plan import pad_rows


def runs_fused(model, x) -> bool:
    """Whether steps on ``model(x)`` should be one compiled loop.

    Always inside ``jit``, ``vmap`` and other transformations, where nothing else is possible.
    """
    leaves, tree = jax.tree.flatten((model, x))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or jax.default_backend() != "cpu":
        return True
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return not _convolves(tree, shapes)


@lru_cache(maxsize=256)
def _convolves(tree, shapes) -> bool:
    model, x = jax.tree.unflatten(tree, shapes)
    return "conv_general_dilated" in str(jax.make_jaxpr(lambda m, inputs: m(inputs))(model, x))


def as_pytree(model):
    """A callable that may be an argument of a compiled function: itself, or a bare function wrapped."""
    return model if jax.tree.structure(model) != jax.tree.structure(0) else jax.tree_util.Partial(model)


def evaluate(model, X: np.ndarray, rows: int) -> np.ndarray:
    """Scores (n, T) of a model over X (n, ...), in tiles of exactly ``rows`` rows."""
    model = as_pytree(model)
    tiles = [X[start : start + rows] for start in range(0, len(X), rows)]
    return np.concatenate([np.asarray(_call(model, pad_rows(tile, rows)))[: len(tile)] for tile in tiles])


@jax.jit
def _call(model, x):
    return model(x)
