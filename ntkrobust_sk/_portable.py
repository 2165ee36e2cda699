"""What may be saved and loaded anywhere: the state of a pytree holds NumPy arrays, none of JAX's.

JAX's arrays cannot be rebuilt by what builds an object without calling it, as ``skops.io`` does: that ends the
process. NumPy's own file format knows neither bfloat16 nor keys, so these are saved as the integers behind them.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class SavedArray(NamedTuple):
    """An array as it is saved.

    Attributes
    ----------
    values : array
        Of a dtype that NumPy's own file format knows.
    dtype : str
        Name of its real dtype, of which ``values`` may hold the bits.
    kind : str
        "numpy", "jax", or the implementation of JAX's keys whose data these are.
    """

    values: np.ndarray
    dtype: str
    kind: str


class Portable:
    """A frozen dataclass, registered as a pytree, that is pickled and saved with NumPy arrays alone.

    Nothing in it can change, so copies are the object itself.
    """

    def __getstate__(self) -> dict:
        return {name: jax.tree.map(_saved, value, is_leaf=_is_whole) for name, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        vars(self).update({name: jax.tree.map(_loaded, value, is_leaf=_is_whole) for name, value in state.items()})

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


def without_jax_arrays(state: dict) -> dict:
    """Return the attributes of an estimator with NumPy's arrays in place of JAX's own."""
    return {name: np.asarray(value) if _is_plain_jax(value) else value for name, value in state.items()}


def _is_plain_jax(value) -> bool:
    return isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_whole(value) -> bool:
    return isinstance(value, SavedArray | Portable)


def _saved(leaf):
    """Convert a leaf to the form in which it is saved; what is no array stays."""
    if not isinstance(leaf, jax.Array | np.ndarray) or leaf.dtype == object:
        return leaf
    kind, values = to_numpy(leaf)
    name = values.dtype.name
    # the dtypes that JAX adds to NumPy's
    if values.dtype.kind == "V" and values.dtype.names is None:
        values = values.view(np.dtype(f"u{values.dtype.itemsize}"))
    return SavedArray(values, name, kind)


def _loaded(leaf):
    """Undo :func:`_saved`."""
    if not isinstance(leaf, SavedArray):
        return leaf
    values, name, kind = leaf
    return from_numpy(kind, values if values.dtype.name == name else values.view(jnp.dtype(name)))


def to_numpy(leaf: jax.Array | np.ndarray | np.generic) -> tuple[str, np.ndarray]:
    """Return the kind of an array, as :class:`SavedArray` has it, and its numbers, or those behind keys.

    >>> to_numpy(jax.random.key(0))
    ('threefry2x32', array([0, 0], dtype=uint32))
    """
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf))
    return "jax" if isinstance(leaf, jax.Array) else "numpy", np.asarray(leaf)


def from_numpy(kind: str, values: np.ndarray) -> jax.Array | np.ndarray:
    """Undo :func:`to_numpy`; a warning says where JAX keeps fewer digits here."""
    if kind == "numpy":
        return values
    if kind != "jax":
        return jax.random.wrap_key_data(jnp.asarray(values), impl=kind)
    found = jnp.asarray(values)
    if found.dtype != values.dtype:
        warnings.warn(
            f"the saved numbers are {values.dtype}, and JAX keeps {found.dtype} here, so answers will differ; "
            "write jax.config.update('jax_enable_x64', True) before loading",
            UserWarning,
            stacklevel=2,
        )
    return found
