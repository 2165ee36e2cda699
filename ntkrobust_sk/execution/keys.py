"""Keys of randomness, one for each example: on the device for one call, on the host for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.utils import check_random_state

from .._validation import brief, checked_seed

# Keys made at once on the host; fixed, so that nothing is compiled for each number of examples.
CHUNK = 256


@dataclass(frozen=True, eq=False)
class Keys:
    """A key for each of n examples, in the host's memory.

    Taking some of them is NumPy's work: an array of keys on the device would compile a program for each number of
    them.

    Attributes
    ----------
    data : uint32 array (n, ...)
        What the keys are made of.
    impl : str or key implementation
        How JAX draws from them.
    """

    data: np.ndarray
    impl: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: Any) -> Keys:
        """Return the keys at these positions."""
        return Keys(self.data[at], self.impl)

    def on_device(self) -> jax.Array:
        """Return the keys as JAX takes them, of the same shape."""
        return jax.random.wrap_key_data(jnp.asarray(self.data), impl=self.impl)

    def folded(self, number: int) -> Keys:
        """Return other keys, each made from its own and a number."""
        return Keys(_in_chunks(len(self), lambda at: fold_keys(self[at].on_device(), number)), self.impl)


def keys_of(key: Any, n: int) -> Keys:
    """Return a key for each of n examples: those given, or one key folded with each position.

    >>> len(keys_of(jax.random.key(0), 3)[:2])
    2
    """
    if not isinstance(key, Keys):
        key = as_key(key)
        impl = jax.random.key_impl(key)
        if key.ndim:
            data = np.asarray(jax.random.key_data(key))
        else:
            data = _in_chunks(n, lambda at: fold_keys(key, at.astype(np.int32)))
        key = Keys(data, impl)
    _check_length(key.data.shape[:-1], n)
    return key


def example_keys(key: Any, n: int) -> jax.Array:
    """Return a key for each of n examples as an array (n,) on the device, for one call."""
    key = key.on_device() if isinstance(key, Keys) else as_key(key)
    if key.ndim == 0:
        return fold_keys(key, np.arange(n, dtype=np.int32))
    _check_length(key.shape, n)
    return key


@jax.jit
def fold_keys(keys: jax.Array, data: Any) -> jax.Array:
    """Return keys made from one key or several (n,) and a number or one number for each (n,)."""
    axes = (0 if jnp.ndim(keys) else None, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, axes)(keys, data)


def _in_chunks(n, made) -> np.ndarray:
    """Return what n keys are made of, made for ``CHUNK`` positions at a time; those beyond n are dropped."""
    starts = range(0, max(n, 1), CHUNK)
    chunks = [made(np.minimum(np.arange(start, start + CHUNK), max(n - 1, 0))) for start in starts]
    return np.concatenate([np.asarray(jax.random.key_data(chunk)) for chunk in chunks])[:n]


def _check_length(shape, n):
    if shape != (n,):
        raise ValueError(f"key must be one key, or one for each of {n} examples, got keys of shape {shape}")


def one_key(key: Any) -> jax.Array:
    """Return one key of the new style, or raise TypeError.

    >>> one_key(jax.random.PRNGKey(0)) == jax.random.key(0)
    Array(True, dtype=bool)
    """
    found = as_key(key)
    if found.ndim:
        raise TypeError(f"key must be one JAX PRNG key, such as jax.random.key(0), got {brief(key)}")
    return found


def as_key(key: Any) -> jax.Array:
    """Return a key or keys of the new style, made of those of the old one: numbers of 32 bits."""
    if isinstance(key, np.ndarray) and key.dtype == np.uint32:
        key = jnp.asarray(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32:
        try:
            return jax.random.wrap_key_data(key)
        except (TypeError, ValueError):
            pass  # numbers of another shape than keys have: no key either
    raise TypeError(f"key must be a JAX PRNG key, such as jax.random.key(0), got {brief(key)}")


def key_of(random_state: Any) -> jax.Array:
    """Return the key that belongs to an integer, a RandomState or None."""
    random = check_random_state(checked_seed("random_state", random_state))
    return jax.random.key(int(random.randint(np.iinfo(np.int32).max)))
