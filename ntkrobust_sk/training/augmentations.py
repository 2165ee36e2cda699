"""Augmentation: pure functions of a key and a batch, inside of the compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._validation import brief, function, integer, number

# How an augmentation is called.
CALL = "augmentation(key, batch)"


@dataclass(frozen=True)
class Flip:
    """Mirrors each image left to right with probability one half.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> images = jnp.arange(8.0).reshape(4, 1, 2, 1)
    >>> sorted(Flip()(jax.random.key(0), images)[0].ravel().tolist())
    [0.0, 1.0]
    """

    def __call__(self, key: jax.Array, batch: jax.Array) -> jax.Array:
        """Return images (n, h, w, c), some of them mirrored."""
        mirrored = jax.random.bernoulli(key, shape=(batch.shape[0],))
        return jnp.where(mirrored[:, None, None, None], batch[:, :, ::-1], batch)


@dataclass(frozen=True)
class Crop:
    """Shifts each image at random, by up to ``padding`` pixels up or down and left or right.

    The image is padded on all sides and cut to its size at a random place, as is usual for CIFAR-10.

    Parameters
    ----------
    padding : int, default=4
        In pixels.
    fill : float, default=0.0
        Value of pixels that come in, in units of the data.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> Crop(padding=1)(jax.random.key(0), jnp.ones((2, 4, 4, 1))).shape
    (2, 4, 4, 1)
    """

    padding: int = 4
    fill: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "padding", integer("padding", self.padding, low=0))
        object.__setattr__(self, "fill", number("fill", self.fill))

    def __call__(self, key: jax.Array, batch: jax.Array) -> jax.Array:
        """Return images (n, h, w, c), each cut at a random place of the padded one."""
        n, *shape = batch.shape
        wide = ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0))
        padded = jnp.pad(batch, wide, constant_values=self.fill)
        corners = jax.random.randint(key, (n, 2), 0, 2 * self.padding + 1)

        def cut(image, corner):
            return jax.lax.dynamic_slice(image, (*corner, jnp.zeros((), corner.dtype)), shape)

        return jax.vmap(cut)(padded, corners)


def augmented(augmentation: tuple, key: jax.Array, batch: jax.Array) -> jax.Array:
    """Return a batch after each of several augmentations, with a key of its own."""
    for i, augment in enumerate(augmentation):
        batch = augment(jax.random.fold_in(key, i), batch)
    return batch


def require_augmentation(augmentation: Any, first: Any) -> tuple[Callable, ...]:
    """Return one augmentation, or several that follow each other, as a tuple; None is none.

    Parameters
    ----------
    augmentation : callable ``(key, batch) -> batch``, sequence of them, or None
    first : array (1, ...)
        An input, of whose shape and dtype batches are.

    Raises
    ------
    TypeError
        For what is no function of a key and a batch.
    ValueError
        For Flip and Crop of what are no images, a Crop as wide as these, and a function that changes shape or
        dtype, or makes of the first input what is not finite.
    """
    found = () if augmentation is None else augmentation
    found = tuple(found) if isinstance(found, tuple | list) else (found,)
    for augment in found:
        function("augmentation", augment, CALL, 2)
        hash(augment)
        _require_images(augment, first)
        _require_same_form(augment, first)
    return found


def _require_images(augment, first):
    """Raise ValueError for Flip and Crop of what are no images, or of images that a Crop could shift away."""
    shape = tuple(first.shape[1:])
    if isinstance(augment, Flip | Crop) and len(shape) != 3:
        raise ValueError(
            f"augmentation={brief(augment)} needs images (n, h, w, c), but inputs are of shape {('n', *shape)}; "
            "rows that hold images need input_shape=(h, w, c)"
        )
    if isinstance(augment, Crop) and augment.padding >= min(shape[:2]):
        raise ValueError(
            f"augmentation={brief(augment)} may leave nothing of images of {shape[0]} by {shape[1]} pixels; its "
            f"padding must be below {min(shape[:2])}"
        )


def _require_same_form(augment, first):
    batch = jax.ShapeDtypeStruct((3, *first.shape[1:]), jax.dtypes.canonicalize_dtype(first.dtype))
    try:
        made = jax.eval_shape(partial(_call, augment), jax.random.key(0), batch)
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"augmentation must be a pure function of JAX, but {brief(augment)} asks for the numbers of its "
            "batch, as NumPy and Python's if do; write it in jax.numpy"
        ) from error
    except Exception as error:
        error.add_note(f"raised by augmentation={brief(augment)}, called on a batch of shape {batch.shape}")
        raise
    if getattr(made, "shape", None) != batch.shape or made.dtype != batch.dtype:
        raise ValueError(
            f"augmentation must return batches as it gets them, {batch.shape} of dtype {batch.dtype}, but "
            f"{brief(augment)} returns {brief(made)}"
        )
    values = jnp.broadcast_to(jnp.asarray(first[:1]), batch.shape)
    if not jnp.isfinite(augment(jax.random.key(0), values)).all():
        raise ValueError(
            f"augmentation must return finite numbers, but {brief(augment)} makes NaN or infinity of the first "
            "input, which is finite"
        )


def _call(augment, key, batch):
    return augment(key, batch)
