"""Inner products of gradients and tangents, layer by layer, by products of large matrices.

A linear layer's gradient in the direction d_r is G_r = Σ_s δ_rs ⊗ h_s, with h_s (K) what its weights see at the
position s and δ_rs (O) the cotangent of what they give. With T tangents W_rt (O × K) of the weights for each
direction

    ⟨G_r, W_rt⟩ = Σ_s ⟨δ_rs, W_rt h_s⟩ = Σ_s ⟨W_rtᵀ δ_rs, h_s⟩

so there are three orders: push what the weights see through the tangents, pull the cotangents back through them,
or form the gradients first. Which is best is a matter of counting operations, and numbers that are written down in
between. The first two are products of large matrices, whose rows are all positions of all examples.

Axes: n examples, g groups of channels, s positions, k inputs and o outputs of the layer in one group, r
directions, t tangents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from .gradients import OuterProducts

# A number written down between two products, and read again, takes the time of about so many multiply-adds.
ENTRY_COST = 150
# One product for each example is as slow as with so many more inputs.
FEW_INPUTS = 150


@dataclass(frozen=True)
class Sizes:
    """The sizes of one contraction, and what its orders cost for one example, in multiply-adds.

    Counted is a step of an attack, the value and its gradient by what the weights see: there a pulled cotangent
    serves both, and the other orders take their products twice.

    Parameters
    ----------
    positions, inputs, outputs : int
        S, K, O.
    directions, tangents : int
        R, T.
    each : bool
        Whether directions are kept apart, or summed.
    """

    positions: int
    inputs: int
    outputs: int
    directions: int
    tangents: int
    each: bool

    @property
    def weights(self) -> int:
        """The numbers in all tangents."""
        return self.directions * self.tangents * self.outputs * self.inputs

    def pushing(self) -> int:
        """Count multiply-adds for W h at each position."""
        written = self.positions * self.directions * self.tangents * self.outputs
        return 2 * (self.positions * self.weights + ENTRY_COST * written)

    def pulling(self) -> int:
        """Count multiply-adds for Wᵀδ at each position."""
        written = self.positions * self.tangents * self.inputs * (self.directions if self.each else 1)
        return self.positions * self.weights + ENTRY_COST * written

    def forming(self) -> float:
        """Count multiply-adds with gradients formed first, and in a step's backward pass what weighs them."""
        gradients = self.directions * self.outputs * self.inputs
        formed = self.positions * gradients * (1 + FEW_INPUTS / self.inputs)
        return 2 * (formed + self.weights + ENTRY_COST * gradients)


def by_outputs(h, delta, tangents, each):
    """Push what the weights see forward: ⟨δ, W h⟩."""
    n_tangents, n_in, *outputs = tangents.shape
    matrix = tangents.swapaxes(0, 1).reshape(n_in, n_tangents * math.prod(outputs))
    seen = _multiply(h, matrix, 0).reshape(*h.shape[:2], n_tangents, *outputs)
    return jnp.einsum("nsro,nstro->nrt" if each else "nsro,nstro->nt", delta, seen)


def by_inputs(h, delta, tangents, each):
    """Pull the cotangents back: ⟨Wᵀδ, h⟩."""
    if each:
        pulled = jnp.einsum("nsro,tkro->nsrtk", delta, tangents)
    else:
        n_tangents, n_in, *outputs = tangents.shape
        matrix = tangents.reshape(n_tangents * n_in, math.prod(outputs))
        cotangents = delta.reshape(*delta.shape[:2], matrix.shape[1])
        pulled = _multiply(cotangents, matrix, 1).reshape(*delta.shape[:2], n_tangents, n_in)
    # position by position: a sum over both axes at once would have them side by side first, in a copy
    return jnp.einsum("ns...k,nsk->ns...", pulled, h).sum(1)


def by_gradients(h, delta, tangents, each):
    """Form the gradients: ⟨h ⊗ δ, W⟩."""
    gradients = jnp.einsum("nsk,nsro->nkro", h, delta)
    if each:
        return jnp.einsum("nkro,tkro->nrt", gradients, tangents)
    matrix = tangents.reshape(len(tangents), math.prod(tangents.shape[1:]))
    return _multiply(gradients.reshape(len(h), 1, matrix.shape[1]), matrix, 1)[:, 0]


def _multiply(rows, matrix, axis):
    """Return the product (n, s, q) of rows (n, s, p) and an axis of a matrix, as a product of two matrices.

    With more axes in place of these two, XLA would order the matrix anew, in a copy of all tangents.
    """
    flat = rows.reshape(math.prod(rows.shape[:2]), rows.shape[2])
    found = jax.lax.dot_general(flat, matrix, (((1,), (axis,)), ((), ())))
    return found.reshape(*rows.shape[:2], matrix.shape[1 - axis])


def order(sizes: Sizes) -> Callable:
    """Return the order that costs least.

    >>> few, many = (Sizes(positions, 288, 32, 10, 10, each=False) for positions in (4, 1024))
    >>> order(few).__name__, order(many).__name__
    ('by_inputs', 'by_gradients')
    """
    costs = {by_inputs: sizes.pulling(), by_outputs: sizes.pushing(), by_gradients: sizes.forming()}
    return min(costs, key=costs.__getitem__)


def contract_outer_products(
    products: OuterProducts, tangents: Shaped[Any, "r t ..."], dtype: Any, *, each: bool
) -> jax.Array:
    """Return Σ_r ⟨G_r(x_i), W_rt⟩, (n, T), or with ``each`` the terms for themselves, (n, R, T).

    Parameters
    ----------
    products : OuterProducts
        Of n examples and R directions; not rows of a table.
    tangents : array (R, T, *shape)
        Shaped like the parameter array.
    dtype : dtype
        In which it is summed, or better.
    each : bool
        Whether directions are kept apart.
    """
    matrices = _with_outputs_last(products.layout, tangents)  # (g, t, k, r, o)
    _, n_tangents, n_in, n_directions, n_out = matrices.shape
    sizes = Sizes(products.inputs.shape[2], n_in, n_out, n_directions, n_tangents, each)
    # (g, n, s, k), (g, n, s, r, o)
    factors = products.inputs.swapaxes(0, 1), products.cotangents.transpose(2, 1, 3, 0, 4), matrices
    # XLA on a CPU has no products of numbers in 16 bits that are summed in 32
    wide = jnp.promote_types(jnp.result_type(*factors), dtype)
    factors = [factor.astype(wide) for factor in factors]
    contract = partial(order(sizes), each=each)
    if len(matrices) == 1:
        found = contract(*(factor[0] for factor in factors))
    else:
        found = jax.vmap(contract)(*factors).sum(0)
    return found.real.astype(dtype)


def _with_outputs_last(layout, tangents):
    """Return tangents (R, T, *shape) as (g, T, k, R, o).

    By one transposition, where the layout is one: it undoes the order in which predictors keep tangents of layers
    with their outputs last, and compilers then leave out both.
    """
    axes = layout.axes()
    if axes is None:
        return layout.view(tangents).transpose(2, 1, 4, 0, 3)
    groups, outputs, inputs = ([axis + 2 for axis in some] for some in axes)
    sizes = [math.prod(tangents.shape[axis] for axis in some) for some in (groups, outputs, inputs)]
    found = tangents.transpose(*groups, 1, *inputs, 0, *outputs)
    return found.reshape(sizes[0], tangents.shape[1], sizes[2], tangents.shape[0], sizes[1])
