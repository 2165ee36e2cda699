"""Lists of gradients, one entry for each parameter array."""

from collections.abc import Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ..execution.precision import DIGITS
from .gradients import AffineOuterProducts, DenseGradients, Gradients, OuterProducts


def split_biases(features: list[Gradients]) -> list[Gradients]:
    """Return one entry for each parameter array, in their order, from those that hold biases with weights."""
    result, biases = [], {}
    for leaf in features:
        if isinstance(leaf, AffineOuterProducts):
            weights, biases[leaf.bias] = leaf.parts()
            result.append(weights)
        else:
            result.append(leaf)
    for at in sorted(biases):
        result.insert(at, biases[at])
    return result


def contract_with_tangents(leaf: Gradients, tangents: jax.Array) -> jax.Array:
    """Compute ⟨G_r(x), W_rt⟩ for tangents W ``(r, t, *shape)`` of one parameter array: (r, n, t)."""

    def of_direction(part, some):
        return jax.vmap(lambda tangent: part.push(tangent)[0], out_axes=1)(some)

    if isinstance(leaf, DenseGradients):
        return jax.vmap(lambda values, some: of_direction(DenseGradients(values[None], leaf.layout), some))(
            leaf.values, tangents
        )
    return jax.vmap(lambda c, some: of_direction(replace(leaf, cotangents=c[None]), some))(
        leaf.cotangents, tangents
    )


def round_features(features: list[Gradients], name: str, packed: bool = False) -> list[Gradients]:
    """Round features to the digits that "tf32" or "bf16" keep; rows of tables stay as they are.

    They are in single precision, or in bfloat16 where they are to be ``packed`` and that holds them.
    """

    def one(array):
        if array.dtype.kind in "iu":
            return array
        if packed and name == "bf16":
            return array.astype(jnp.bfloat16)
        return jax.lax.reduce_precision(array, 8, DIGITS[name])

    return jax.tree.map(one, features)


def concatenate_tiles(parts: Iterable, n: int) -> list[Gradients]:
    """Collect features of n examples, in NumPy, from those of a few at a time.

    Parameters
    ----------
    parts : iterable of lists of DenseGradients or OuterProducts
    n : int
    """
    whole, at = [], 0
    for part in parts:
        part = jax.tree.map(np.asarray, part)
        whole = whole or [leaf.empty(n) for leaf in part]
        *_, at = [leaf.write(at, rows) for leaf, rows in zip(whole, part, strict=True)]
    return whole


def concatenate_uses(parts: list[OuterProducts]) -> OuterProducts:
    """Return the gradient of an array that is used more than once: all uses' positions, one after the other."""
    if len(parts) == 1:
        return parts[0]
    inputs = jnp.concatenate([part.inputs for part in parts], axis=-2)
    cotangents = jnp.concatenate([part.cotangents for part in parts], axis=-2)
    return OuterProducts(inputs, cotangents, parts[0].layout)
