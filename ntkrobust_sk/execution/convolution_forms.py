"""The three computations of a convolution of images, each in several forms that give the same numbers.

Images are (n, h, w, c), filters (kh, kw, c, o), outputs (n, oh, ow, o). On a CPU, XLA's own forms run at the
machine's rate where channels are many. Where they are few, where strides pass over pixels, and for the gradient of
filters they are several times slower, and inside of a compiled loop that gradient takes a hundred times as long.
As products of matrices all three run well everywhere; what these cost is the copying before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import Any

import jax
import jax.numpy as jnp

NUMBERS = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Convolution:
    """The shapes of one convolution, and how its products are taken.

    Parameters
    ----------
    images, filters, outputs : tuple of int
        (n, h, w, c), (kh, kw, c, o), (n, oh, ow, o).
    strides : tuple of int
    padding : tuple of (low, high)
        Rows and columns of zeros around the images; negative ones are cut off.
    precision : object, default=None
        As ``jax.lax.dot_general`` takes it.
    itemsize : int, default=4
        Bytes of a number.
    """

    images: tuple[int, ...]
    filters: tuple[int, ...]
    outputs: tuple[int, ...]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any = None
    itemsize: int = 4

    def patch_bytes(self) -> int:
        """Return the bytes of what all outputs see."""
        return prod(self.outputs[:3]) * prod(self.filters[:3]) * self.itemsize

    def taps(self) -> list[tuple[int, int]]:
        """Return the places in a filter, row by row."""
        return list(product(range(self.filters[0]), range(self.filters[1])))

    def padded(self, images: jax.Array) -> jax.Array:
        """Return images with their padding, written down once: ``lax.pad`` would be computed anew by each tap."""
        cut = [
            (max(0, -low), size - max(0, -high))
            for (low, high), size in zip(self.padding, self.images[1:3], strict=True)
        ]
        (top, bottom), (left, right) = cut
        kept, (low_rows, low_columns) = images[:, top:bottom, left:right], (max(0, low) for low, _ in self.padding)
        n, *sizes, c = images.shape
        height, width = (size + low + high for size, (low, high) in zip(sizes, self.padding, strict=True))
        nothing = jnp.zeros((n, height, width, c), images.dtype)
        return jax.lax.dynamic_update_slice(nothing, kept, (0, low_rows, low_columns, 0))

    def seen_by(self, tap: tuple[int, int], padded: jax.Array) -> jax.Array:
        """Return what one tap of the filter meets: every stride-th pixel from its place on, (n, oh, ow, c)."""
        (i, j), (n, oh, ow, _), (s, t) = tap, self.outputs, self.strides
        stop = (n, i + (oh - 1) * s + 1, j + (ow - 1) * t + 1, padded.shape[3])
        return jax.lax.slice(padded, (0, i, j, 0), stop, (1, s, t, 1))

    def patches(self, images: jax.Array) -> jax.Array:
        """Return what each output sees, (n, oh, ow, kh kw c)."""
        padded = self.padded(images)
        return jnp.concatenate([self.seen_by(tap, padded) for tap in self.taps()], axis=-1)

    def patches_by_rows(self, images: jax.Array) -> jax.Array:
        """Return the same as :meth:`patches`, put together within rows first: fewer and longer pieces."""
        padded, (_, oh, ow, _), (kh, kw, c, _), (s, t) = (
            self.padded(images),
            self.outputs,
            self.filters,
            self.strides,
        )
        wide = -(-(kw - 1) // t) + ow  # groups of t pixels that a row of outputs sees
        groups = _cut(padded, 2, wide * t).reshape(*padded.shape[:2], wide, t * c)
        within = [groups[:, :, first : first + ow, : min(t, kw - first * t) * c] for first in range(-(-kw // t))]
        within = jnp.concatenate(within, axis=-1)
        rows = [within[:, i : i + (oh - 1) * s + 1 : s] for i in range(kh)]
        return jnp.concatenate(rows, axis=-1)

    def multiply(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Return the product over the last axis of the one and the first of the other, in float32 or better."""
        return jax.lax.dot_general(
            lhs,
            rhs,
            (((lhs.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=jnp.promote_types(lhs.dtype, jnp.float32),
        )

    def multiply_rows(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Return the product (p, q) of (..., p) and (..., q) over all other axes.

        The narrower side stands at the left, where a product of two tall sides takes less time.
        """
        lhs, rhs = (side.reshape(-1, side.shape[-1]) for side in (lhs, rhs))
        if lhs.shape[1] > rhs.shape[1]:
            return self.multiply(rhs.T, lhs).T.astype(lhs.dtype)
        return self.multiply(lhs.T, rhs).astype(lhs.dtype)


def direct(of: Convolution, images: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolve as XLA does."""
    return jax.lax.conv_general_dilated(
        images, filters, of.strides, of.padding, dimension_numbers=NUMBERS, precision=of.precision
    )


def by_patches(of: Convolution, images: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolve by one product with the patches of the images."""
    return of_patches(of, of.patches(images), filters)


def of_patches(of: Convolution, patches: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolve images whose patches are at hand."""
    return of.multiply(patches, filters.reshape(-1, filters.shape[3])).astype(patches.dtype)


def by_rows(of: Convolution, images: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolve by one product with the patches, put together row by row."""
    return of_patches(of, of.patches_by_rows(images), filters)


def by_phases(of: Convolution, delta: jax.Array, filters: jax.Array) -> jax.Array:
    """Return the gradient of images: every stride-th pixel by a convolution with every stride-th tap, turned.

    XLA's own form convolves cotangents that are widened by zeros, one for each pixel that a stride passes over.
    """
    shape, strides, padding = of.images, of.strides, of.padding
    first = [low // s for (low, _), s in zip(padding, strides, strict=True)]
    last = [-(-(low + size) // s) for (low, _), size, s in zip(padding, shape[1:3], strides, strict=True)]

    def phase(p, q):
        taps = jnp.flip(filters[p :: strides[0], q :: strides[1]], (0, 1)).swapaxes(2, 3)
        if 0 in taps.shape:
            return jnp.zeros((len(delta), last[0] - first[0], last[1] - first[1], shape[3]), delta.dtype)
        around = [(taps.shape[d] - 1 - first[d], last[d] - delta.shape[1 + d]) for d in (0, 1)]
        return jax.lax.conv_general_dilated(
            delta, taps, (1, 1), around, dimension_numbers=NUMBERS, precision=of.precision
        )

    rows = [jnp.stack([phase(p, q) for q in range(strides[1])], axis=3) for p in range(strides[0])]
    interleaved = jnp.stack(rows, axis=2)  # (n, h / s, s, w / t, t, c)
    n, height, s, width, t, c = interleaved.shape
    image = interleaved.reshape(n, height * s, width * t, c)
    start = [low - f * s for (low, _), f, s in zip(padding, first, strides, strict=True)]
    return image[:, start[0] : start[0] + shape[1], start[1] : start[1] + shape[2]]


def by_columns(of: Convolution, delta: jax.Array, filters: jax.Array) -> jax.Array:
    """Return the gradient of images: that of patches is one product, and each tap's part is added in its place."""
    c, parts = of.images[3], of.multiply(delta, filters.reshape(-1, filters.shape[3]).T)

    def placed(number, tap):
        around = [
            (place - low, low + size - place - (count - 1) * stride - 1, stride - 1)
            for place, (low, _), size, count, stride in zip(
                tap, of.padding, of.images[1:3], of.outputs[1:3], of.strides, strict=True
            )
        ]
        part = parts[..., number * c : (number + 1) * c]
        return jax.lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *around, (0, 0, 0)))

    first, *others = (placed(number, tap) for number, tap in enumerate(of.taps()))
    return sum(others, start=first).astype(delta.dtype)


def by_taps(of: Convolution, images: jax.Array, delta: jax.Array) -> jax.Array:
    """Return the gradient of filters by one product for each tap."""
    padded = of.padded(images)
    return jnp.stack([of.multiply_rows(of.seen_by(tap, padded), delta) for tap in of.taps()]).reshape(of.filters)


def by_all_patches(of: Convolution, images: jax.Array, delta: jax.Array) -> jax.Array:
    """Return the gradient of filters by one product of the images' patches and the cotangents."""
    return by_kept_patches(of, of.patches(images), delta)


def by_kept_patches(of: Convolution, patches: jax.Array, delta: jax.Array) -> jax.Array:
    """Return the gradient of filters by one product of patches, kept from the convolution, and the cotangents."""
    return of.multiply_rows(patches, delta).reshape(of.filters)


def by_shifts(of: Convolution, images: jax.Array, delta: jax.Array) -> jax.Array:
    """Return the gradient of filters by a product of images, shifted within rows, and cotangents, shifted by rows.

    Each pair of a shift of the one and a shift of the other is one tap: kw + kh copies serve kh × kw taps. With a
    stride s between rows there is one product for each of s phases.
    """
    (_, oh, ow, o), (kh, kw, c, _), (s, t) = of.outputs, of.filters, of.strides
    padded, rows = of.padded(images), -(-((oh - 1) * s + kh) // s)
    beyond = (0, rows * s - padded.shape[1], 0)
    padded = jax.lax.pad(padded, jnp.zeros((), padded.dtype), ((0, 0, 0), beyond, (0, 0, 0), (0, 0, 0)))
    gradient = {}
    for phase in range(min(s, kh)):
        within_rows = [padded[:, phase::s, j : j + (ow - 1) * t + 1 : t] for j in range(kw)]
        heights = range(phase, kh, s)
        by_rows = [jnp.pad(delta, ((0, 0), (i // s, rows - oh - i // s), (0, 0), (0, 0))) for i in heights]
        found = of.multiply_rows(jnp.concatenate(within_rows, axis=-1), jnp.concatenate(by_rows, axis=-1))
        for number, i in enumerate(heights):
            gradient[i] = found.reshape(kw, c, len(heights), o)[:, :, number]
    return jnp.stack([gradient[i] for i in range(kh)])


def _cut(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Return an array cut, or filled up with zeros, to a size of one axis."""
    around = [(0, size - array.shape[axis] if d == axis else 0, 0) for d in range(array.ndim)]
    return jax.lax.pad(array, jnp.zeros((), array.dtype), around)


def _images(of: Convolution) -> int:
    return prod(of.images)


def _patches(of: Convolution) -> int:
    return prod(of.outputs[:3]) * prod(of.filters[:3])


def _shifts(of: Convolution) -> int:
    (n, height, _, c), (kh, kw, _, _) = of.images, of.filters
    return kw * n * height * of.outputs[2] * c + kh * prod(of.outputs)


@dataclass(frozen=True)
class Form:
    """One way to compute, and what it costs.

    Parameters
    ----------
    compute : callable
        Of a convolution and two arrays.
    copied : callable
        From a convolution to the count of numbers that are copied.
    operations, few_in, few_out : float
        Milliseconds for 10⁹ operations, and how many more with few channels: divided by c, and by o.
    copying, beyond : float
        Milliseconds for 10⁹ bytes that are copied, and how many more for those that :data:`CACHE` does not hold.
    """

    compute: Callable
    copied: Callable[[Convolution], int]
    operations: float
    few_in: float = 0
    few_out: float = 0
    copying: float = 0
    beyond: float = 0

    def cost(self, of: Convolution) -> float:
        """Return the milliseconds that it takes by count, infinite where too much would be copied."""
        n_bytes, (c, o) = self.copied(of) * of.itemsize, of.filters[2:]
        if n_bytes > MOST_COPIED:
            return inf
        operations = 2 * prod(of.outputs) * prod(of.filters[:3])
        each = self.operations + self.few_in / c + self.few_out / o
        return (each * operations + self.copying * n_bytes + self.beyond * max(0, n_bytes - CACHE)) / 1e9


# Bytes that stay near while they are used, and the most that are copied for one product.
CACHE, MOST_COPIED = 16_000_000, 256_000_000

# Fitted to what examples/bench_training.py --forms measured, inside of a compiled loop on two cores.
FORWARD = (
    Form(direct, _images, operations=3.8, few_in=5.3, few_out=190, copying=120, beyond=220),
    Form(by_patches, _patches, operations=3, few_in=11, few_out=20, copying=99, beyond=89),
    Form(by_rows, _patches, operations=3.2, few_in=7.1, few_out=14, copying=100, beyond=110),
)
OF_IMAGES = (
    Form(by_phases, _images, operations=3.8, few_in=58, few_out=71, copying=200, beyond=470),
    Form(by_columns, _patches, operations=3.2, few_in=20, few_out=5.3, copying=45, beyond=61),
)
OF_FILTERS = (
    Form(by_all_patches, _patches, operations=2.8, few_in=46, few_out=110, copying=160, beyond=270),
    Form(by_shifts, _shifts, operations=3.3, few_in=12, few_out=330, copying=73),
    Form(by_taps, _images, operations=2.9, few_in=52, few_out=450, copying=50, beyond=2000),
)


def cheapest(forms: Sequence[Form], of: Convolution) -> Callable:
    """Return the computation that costs least for these shapes."""
    return min(forms, key=lambda form: form.cost(of)).compute
