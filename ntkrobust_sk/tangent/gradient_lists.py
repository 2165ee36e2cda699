"""Lists of gradients, one entry for each parameter array: joined, split, stacked, rounded, contracted."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from .gradients import AffineFactors, Factors, Whole

# Binary digits that products keep of their factors, sums being in single precision, by the names that GPUs have.
DIGITS = {"tf32": 10, "bf16": 7}


def separated(features: list[Whole | Factors]) -> list[Whole | Factors]:
    """One entry for each parameter array, in their order, from features in which biases are with their weights."""
    result, biases = [], {}
    for leaf in features:
        if isinstance(leaf, AffineFactors):
            weights, biases[leaf.bias] = leaf.parts()
            result.append(weights)
        else:
            result.append(leaf)
    for at in sorted(biases):
        result.insert(at, biases[at])
    return result


def contracted(leaf: Whole | Factors, tangents):
    """⟨G_r(x), W_rt⟩ for tangents W (r, t, *shape) of one parameter array: (r, n, t)."""

    def of_seed(part, some):
        return jax.vmap(lambda tangent: part.push(tangent)[0], out_axes=1)(some)

    if isinstance(leaf, Whole):
        return jax.vmap(lambda values, some: of_seed(Whole(values[None], leaf.layout), some))(
            leaf.values, tangents
        )
    return jax.vmap(lambda c, some: of_seed(replace(leaf, cotangents=c[None]), some))(leaf.cotangents, tangents)


def rounded(features: list[Whole | Factors], name: str, packed: bool = False) -> list[Whole | Factors]:
    """Features with the digits that "tf32" or "bf16" keep, in single precision, or bfloat16 where they are to be
    ``packed`` and that holds them; tables' rows as they are."""

    def one(array):
        if array.dtype.kind in "iu":
            return array
        if packed and name == "bf16":
            return array.astype(jnp.bfloat16)
        return jax.lax.reduce_precision(array, 8, DIGITS[name])

    return jax.tree.map(one, features)


def stacked(parts, n: int) -> list[Whole | Factors]:
    """Features of n examples in all, in NumPy, from those of a few at a time.

    Parameters
    ----------
    parts : iterable of lists of Whole or Factors
    n : int
    """
    whole, at = None, 0
    for part in parts:
        part = jax.tree.map(np.asarray, part)
        whole = [leaf.room_for(n) for leaf in part] if whole is None else whole
        size = part[0].n
        for leaf, rows in zip(whole, part, strict=True):
            leaf.write(at, rows)
        at += size
    return whole


def joined(parts: list[Factors]) -> Factors:
    """The gradient of an array that is used more than once: all uses' positions, one after the other."""
    if len(parts) == 1:
        return parts[0]
    inputs = jnp.concatenate([part.inputs for part in parts], axis=-2)
    cotangents = jnp.concatenate([part.cotangents for part in parts], axis=-2)
    return Factors(inputs, cotangents, parts[0].layout)
