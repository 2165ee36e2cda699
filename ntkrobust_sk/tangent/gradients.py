"""Gradients of one parameter array for many examples and directions, dense or as outer products.

A linear layer's gradient is a sum of outer products over the positions s at which its weights are applied,
G_ok = Σ_s δ_so h_sk, with h what the weights see and δ the cotangent of what they give (a dense layer has one
position, a convolution one for each output pixel). Inner products of gradients then need no gradient:
⟨G, G'⟩ = Σ_ss' ⟨h_s, h'_s'⟩ ⟨δ_s, δ'_s'⟩, for one position (H Hᵀ) ∘ (Δ Δᵀ). Whether that is cheaper than forming
G is a matter of counting.

Arrays in, arrays out, in NumPy or JAX: on a CPU the products of tall and thin matrices that kernels consist
of run several times as fast in NumPy's BLAS as in XLA.

Axes: r directions (the directions in output space that were pulled back), n examples, g groups of channels, s
positions, k inputs and o outputs of the layer in one group, p = g·o·k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

# In NumPy or JAX.
Array = Any
Same = TypeVar("Same", bound="_OfExamples")


@dataclass(frozen=True)
class Layout:
    """The view of a parameter array as (g, o, k): reshapes and transpositions, one after the other.

    Attributes
    ----------
    shape : tuple of int
        Of the parameter array.
    steps : tuple of ("reshape", shape) or ("transpose", permutation)
    """

    shape: tuple[int, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def followed_by(self, name: str, argument: Any) -> Layout:
        """Return the layout with one more step."""
        return Layout(self.shape, (*self.steps, (name, tuple(map(int, argument)))))

    def view(self, array: Array) -> Array:
        """Return an array ``(..., *shape)`` as the layout has it."""
        lead = array.ndim - len(self.shape)
        for name, argument in self.steps:
            array = _step(array, lead, name, argument)
        return array

    def axes(self) -> tuple[list[int], ...] | None:
        """Return the parameter array's axes behind g, o and k, or None where the layout is not one transposition.

        >>> dense = Layout((5, 3)).followed_by("transpose", (1, 0)).followed_by("reshape", (1, 3, 5))
        >>> dense.axes()
        ([], [1], [0])
        """
        order, target = list(range(len(self.shape))), None
        for name, argument in self.steps:
            if target is not None:
                return None
            if name == "transpose":
                order = [order[a] for a in argument]
            else:
                target = argument
        found, rest = [], list(order)
        for size in target or [self.shape[axis] for axis in order]:
            some = []
            while math.prod(self.shape[axis] for axis in some) < size and rest:
                some.append(rest.pop(0))
            if math.prod(self.shape[axis] for axis in some) != size:
                return None
            found.append(some)
        # what is left has one entry
        found[-1] += rest
        return tuple(found) if len(found) == 3 and math.prod(self.shape[axis] for axis in rest) == 1 else None

    def inverse(self, array: Array) -> Array:
        """Undo :meth:`view` for an array whose last axes are flattened, (..., p)."""
        lead, shapes = array.shape[:-1], [self.shape]
        for name, argument in self.steps:
            shapes.append(argument if name == "reshape" else tuple(shapes[-1][a] for a in argument))
        array = array.reshape((*lead, *shapes[-1]))
        for (name, argument), shape in zip(self.steps[::-1], shapes[-2::-1], strict=True):
            back = shape if name == "reshape" else tuple(int(i) for i in np.argsort(argument))
            array = _step(array, len(lead), name, back)
        return array


def _step(array, lead, name, argument):
    if name == "reshape":
        return array.reshape((*array.shape[:lead], *argument))
    return array.transpose(*range(lead), *(a + lead for a in argument))


@dataclass(frozen=True, eq=False)
class _OfExamples:
    """Arrays of which each has an axis of examples."""

    AXES: ClassVar[dict[str, int]]

    def each(self: Same, change: Callable[[Array, int], Array]) -> Same:
        """Return the same gradients with ``change(array, axis)`` of each array and its axis of examples."""
        return replace(self, **{name: change(getattr(self, name), axis) for name, axis in self.AXES.items()})

    def __getitem__(self: Same, rows) -> Same:
        """Return the gradients of the examples ``rows``."""
        return self.each(lambda array, axis: array[(slice(None),) * axis + (rows,)])

    def astype(self: Same, dtype) -> Same:
        """Return the same gradients cast to ``dtype``; integers stay."""
        return self.each(lambda array, _: array if array.dtype.kind in "iu" else array.astype(dtype))

    def empty(self: Same, n: int) -> Same:
        """Return uninitialised NumPy gradients of the same layout for n examples."""
        return self.each(
            lambda array, axis: np.empty((*array.shape[:axis], n, *array.shape[axis + 1 :]), array.dtype)
        )

    def write(self, at: int, rows: Any) -> int:
        """Write the gradients of some examples, from the one at ``at`` on, and return where they end."""
        for name, axis in self.AXES.items():
            into, some = (np.moveaxis(getattr(each, name), axis, 0) for each in (self, rows))
            into[at : at + len(some)] = some
        return at + len(some)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DenseGradients(_OfExamples):
    """The gradients themselves.

    Attributes
    ----------
    values : array (r, n, p)
    layout : Layout
        Of a parameter array into p numbers.
    """

    AXES = {"values": 1}
    values: Array
    layout: Layout = field(metadata={"static": True})

    def inner(self, other: DenseGradients) -> Shaped[Any, "r n m"]:
        """Return ⟨G_r(x), G_r(x')⟩ for every direction: (r, n, m)."""
        return _product(self.values, other.values.swapaxes(1, 2))

    def inner_sum(self, other: DenseGradients) -> Shaped[Any, "n m"]:
        """Return Σ_r ⟨G_r(x), G_r(x')⟩: (n, m)."""
        return _summed_products(self.values, other.values)

    def inner_all(self, other: DenseGradients) -> Shaped[Any, "r n q m"]:
        """Return ⟨G_r(x), G_q(x')⟩ for all pairs of directions: (r, n, q, m)."""
        left, right = (g.values.reshape(-1, g.values.shape[2]) for g in (self, other))
        return _product(left, right.T).reshape(*self.values.shape[:2], *other.values.shape[:2])

    def push(self, tangent: Shaped[Any, "..."]) -> Shaped[Any, "r n"]:
        """Return ⟨G_r(x), W⟩ for a tangent W shaped like the parameter array: (r, n)."""
        return self.values @ self.layout.view(tangent).reshape(-1)

    def weighted(self, weights: Shaped[Any, "r n t"]) -> Shaped[Any, "r t p"]:
        """Return Σ_n weights_rnt G_r(x_n): (r, t, p) for weights (r, n, t), in their dtype."""
        return weights.swapaxes(1, 2) @ self.values.astype(weights.dtype)

    def dense(self) -> DenseGradients:
        """Return the gradients as they are."""
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OuterProducts(_OfExamples):
    """The gradients as sums of outer products, not formed.

    Attributes
    ----------
    inputs : array (n, g, s, k)
        What the weights see. Integers (n, 1, s, 1) stand for rows of the identity, as for an embedding.
    cotangents : array (r, n, g, s, o)
    layout : Layout
        Of a parameter array into (g, o, k).
    """

    # in this order fingerprints know it
    AXES = {"cotangents": 1, "inputs": 0}
    inputs: Array
    cotangents: Array
    layout: Layout = field(metadata={"static": True})

    def products(self, other: OuterProducts) -> Array:
        """Return ⟨h_s, h'_s'⟩ of what the weights see: (g, n, s, m, s')."""
        return _input_products(self.inputs, other.inputs)

    def inner(self, other: OuterProducts) -> Shaped[Any, "r n m"]:
        """Return ⟨G_r(x), G_r(x')⟩ for every direction: (r, n, m)."""
        products = self.products(other)
        if self.inputs.shape[2] == other.inputs.shape[2] == 1:
            # one position: all directions in one product
            left, right = (f.cotangents[:, :, :, 0].transpose(2, 0, 1, 3) for f in (self, other))
            every = _product(left, right.swapaxes(2, 3))
            every *= products[:, None, :, 0, :, 0]
            return _over_groups(every)
        pairs = zip(self.cotangents, other.cotangents, strict=True)
        return _stack([(products * _row_products(a, b)).sum((0, 2, 4)) for a, b in pairs])

    def inner_sum(self, other: OuterProducts) -> Shaped[Any, "n m"]:
        """Return Σ_r ⟨G_r(x), G_r(x')⟩: (n, m)."""
        if not self.inputs.shape[1:3] == other.inputs.shape[1:3] == (1, 1):
            return self.inner(other).sum(0)
        products = self.products(other)[0, :, 0, :, 0]
        return products * _summed_products(self.cotangents[:, :, 0, 0], other.cotangents[:, :, 0, 0])

    def inner_all(self, other: OuterProducts) -> Shaped[Any, "r n q m"]:
        """Return ⟨G_r(x), G_q(x')⟩ for all pairs of directions: (r, n, q, m)."""
        products = self.products(other)
        if self.inputs.shape[2] == other.inputs.shape[2] == 1:
            # one position: all directions in one product
            (r, n, g, _, o), (q, m) = self.cotangents.shape, other.cotangents.shape[:2]
            left = self.cotangents.transpose(2, 0, 1, 3, 4).reshape(g, r * n, o)
            right = other.cotangents.transpose(2, 0, 1, 3, 4).reshape(g, q * m, o)
            every = _product(left, right.swapaxes(1, 2)).reshape(g, r, n, q, m)
            every *= products.reshape(g, 1, n, 1, m)
            return _over_groups(every)
        left, right = self.cotangents, other.cotangents
        rows = [_stack([(products * _row_products(a, b)).sum((0, 2, 4)) for b in right]) for a in left]
        return _stack(rows).swapaxes(1, 2)

    def push(self, tangent: Shaped[Any, "..."]) -> Shaped[Any, "r n"]:
        """Return ⟨G_r(x), W⟩ for a tangent W shaped like the parameter array: (r, n)."""
        seen = _seen(self.inputs, self.layout.view(tangent))
        return (self.cotangents * seen).sum((2, 3, 4))

    def weighted(self, weights: Shaped[Any, "r n t"]) -> Shaped[Any, "r t p"]:
        """Return Σ_n weights_rnt G_r(x_n): (r, t, p) for weights (r, n, t), in their dtype."""
        n, g, s, _ = self.inputs.shape
        inputs = _as_vectors(self.inputs, self._n_in(), weights.dtype).transpose(1, 0, 2, 3).reshape(g, n * s, -1)

        def one_direction(pair):
            cotangents, weights = pair
            scaled = weights.T[:, :, None, None, None] * cotangents  # (t, n, g, s, o)
            scaled = scaled.transpose(2, 0, 4, 1, 3).reshape(g, -1, n * s)
            return (scaled @ inputs).reshape(g, len(weights.T), -1).swapaxes(0, 1)

        cotangents = self.cotangents.astype(weights.dtype)
        # one direction after the other: all at once would take r times the memory
        return jax.lax.map(one_direction, (cotangents, weights)).reshape(*weights.shape[::2], -1)

    def _n_in(self):
        return math.prod(self.layout.shape) // (self.cotangents.shape[2] * self.cotangents.shape[4])

    def dense(self) -> DenseGradients:
        """Form the gradients."""
        n_directions, n = self.cotangents.shape[:2]
        inputs = _as_vectors(self.inputs, self._n_in(), self.cotangents.dtype)
        gradients = self.cotangents.swapaxes(3, 4) @ inputs
        return DenseGradients(gradients.reshape(n_directions, n, -1), self.layout)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AffineOuterProducts(OuterProducts):
    """The gradients of a layer's weights and of its bias, a weight on one more input that is always one.

    Inner products are those of both together, at the cost of the weights' alone. Everything else is asked of
    the :meth:`parts`.

    Attributes
    ----------
    bias : int
        Which of the network's parameter arrays the bias is.
    bias_layout : Layout
        Of the bias into (1, o, 1).
    """

    bias: int = field(metadata={"static": True})
    bias_layout: Layout = field(metadata={"static": True})

    def products(self, other: OuterProducts) -> Array:
        """Return ⟨h_s, h'_s'⟩ + 1: (1, n, s, m, s')."""
        return super().products(other) + 1

    def parts(self) -> tuple[OuterProducts, OuterProducts]:
        """Return the gradients of the weights and those of the bias."""
        xp = np if isinstance(self.inputs, np.ndarray) else jnp
        ones = xp.ones_like(self.inputs[..., :1])
        weights = OuterProducts(self.inputs, self.cotangents, self.layout)
        return weights, OuterProducts(ones, self.cotangents, self.bias_layout)


Gradients: TypeAlias = DenseGradients | OuterProducts


def _product(left: Shaped[Any, "*a n k"], right: Shaped[Any, "*b k m"]) -> Shaped[Any, "*c n m"]:
    """Return the matrix product; what is kept in 16 bits is summed, and given back, in single precision."""
    narrow = jnp.issubdtype(left.dtype, jnp.floating) and left.dtype.itemsize == 2
    if isinstance(left, np.ndarray):
        return left.astype(np.float32) @ right.astype(np.float32) if narrow else left @ right
    return jnp.matmul(left, right, preferred_element_type=jnp.float32 if narrow else None)


def _summed_products(left: Shaped[Any, "r n k"], right: Shaped[Any, "r m k"]) -> Shaped[Any, "n m"]:
    """Return Σ_r left_r right_rᵀ, (n, m), for arrays (r, n, k) and (r, m, k)."""
    return _product(left, right.swapaxes(1, 2)).sum(0)


def _over_groups(array: Shaped[Any, "groups ..."]) -> Shaped[Any, "..."]:
    """Sum over the first axis, without a copy where there is only one group."""
    return array[0] if len(array) == 1 else array.sum(0)


def _stack(arrays):
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)


def _row_products(a: Shaped[Any, "n g s k"], b: Shaped[Any, "m g t k"]) -> Shaped[Any, "g n s m t"]:
    """Return ⟨a_ngs, b_mgt⟩ for arrays (n, g, s, k) and (m, g, t, k): (g, n, s, m, t)."""
    (n, g, s, k), (m, _, t, _) = a.shape, b.shape
    left = a.swapaxes(0, 1).reshape(g, n * s, k)
    right = b.swapaxes(0, 1).reshape(g, m * t, k)
    return _product(left, right.swapaxes(1, 2)).reshape(g, n, s, m, t)


def _input_products(a: Shaped[Any, "n g s k"], b: Shaped[Any, "m g t k"]) -> Shaped[Any, "g n s m t"]:
    if a.dtype.kind not in "iu":
        return _row_products(a, b)
    left, right = a[:, 0, :, 0], b[:, 0, :, 0]
    return (left[:, :, None, None] == right)[None]


def _as_vectors(inputs, n_in, dtype):
    """Return inputs (n, g, s, k), with rows of the identity written out."""
    if inputs.dtype.kind not in "iu":
        return inputs.astype(dtype)
    return (inputs == np.arange(n_in)).astype(dtype)


def _seen(inputs: Shaped[Any, "n g s k"], tangent: Shaped[Any, "g2 o k2"]) -> Shaped[Any, "n g3 s o"]:
    """Apply a tangent (g, o, k) of the weights to the inputs: (n, g, s, o)."""
    if inputs.dtype.kind not in "iu":
        return inputs @ tangent.swapaxes(-1, -2)
    return tangent[0].T[inputs[:, 0, :, 0]][:, None]
