"""What a function computes, as a number: SHA-256 of its jaxpr, its constants, and the code that it calls.

A ``repr`` tells configurations apart, but neither lambdas, nor closures, nor a function before and after it was
edited. A jaxpr holds whatever such a function does, and the numbers that it does it with. Of Python code that
runs outside of JAX (callbacks) the bytecode is taken, and whatever it refers to.

The same function gives the same fingerprint in every process. Another version of JAX or Python may write the
same function down in another way.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Parameters of equations that say how something is called, compiled or placed, not what it gives.
ASIDE = {
    "compiler_options_kvs",
    "ctx_mesh",
    "debug_info",
    "donated_invars",
    "in_layouts",
    "in_shardings",
    "inline",
    "keep_unused",
    "name",
    "out_layouts",
    "out_sharding",
    "out_shardings",
    "sharding",
}
# Rules for derivatives, which whatever was differentiated has in its equations already.
RULES = {"bwd", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "out_trees"}
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


def fingerprint(function: Callable, *args) -> tuple[str, Any]:
    """SHA-256 of what a function computes for arguments of these shapes, and the shapes of its results.

    Parameters
    ----------
    function : callable
        Of JAX; it is traced anew, but what it calls through ``jax.jit`` only as JAX does.
    args : pytrees of arrays or jax.ShapeDtypeStruct
        Their numbers do not matter.

    Returns
    -------
    digest : str
    shapes : pytree of jax.ShapeDtypeStruct

    Examples
    --------
    >>> def scaled(scale):
    ...     return lambda x: scale * x
    >>> one, shapes = fingerprint(scaled(1.0), np.ones(3))
    >>> again, _ = fingerprint(scaled(1.0), np.zeros(3))
    >>> other, _ = fingerprint(scaled(2.0), np.ones(3))
    >>> shapes.shape, one == again, one == other
    ((3,), True, False)
    """
    # a function of its own, for which JAX has kept nothing
    jaxpr, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    return _of(jaxpr, {}).hex(), shapes


def hash_arrays(arrays: Iterable) -> str:
    """SHA-256 of arrays: their dtypes, the shapes of their rows, their bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
        digest.update(array.tobytes() if array.dtype.hasobject else memoryview(array).cast("B"))
    return digest.hexdigest()


def without_addresses(value) -> str:
    """How a value prints, without addresses, which change from process to process."""
    return re.sub(r"( at )?0x[0-9a-f]+", "", repr(value))


def _joined(kind: str, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(kind.encode() + b"\0")
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _of(value, seen: dict[int, tuple[Any, bytes]]) -> bytes:
    """Digest of any value. ``seen`` has those of objects by id, and the objects, so that ids stay theirs."""
    if isinstance(value, PLAIN):
        return _joined(type(value).__name__, [repr(value).encode()])
    if isinstance(value, enum.Enum | np.dtype | type | types.ModuleType):
        return _joined("name", [str(value).encode()])
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _of_array(value)
    if isinstance(value, dict):
        return _joined("dict", sorted(_of(key, seen) + _of(held, seen) for key, held in value.items()))
    if isinstance(value, tuple | list):
        return _joined(type(value).__name__, [_of(held, seen) for held in value])
    if isinstance(value, set | frozenset):
        return _joined("set", sorted(_of(held, seen) for held in value))
    if id(value) not in seen:
        seen[id(value)] = (value, b"being read")
        seen[id(value)] = (value, _of_object(value, seen))
    return seen[id(value)][1]


def _of_array(array) -> bytes:
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return _joined("key", [str(jax.random.key_impl(array)).encode(), _of_array(jax.random.key_data(array))])
    array = np.asarray(array)
    content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    return _joined("array", [f"{array.dtype.name}{array.shape}".encode(), content])


def _of_object(value, seen) -> bytes:
    if isinstance(value, ClosedJaxpr):
        return _joined("closed", [_of_jaxpr(value.jaxpr, seen), *(_of(const, seen) for const in value.consts)])
    if isinstance(value, Jaxpr):
        return _of_jaxpr(value, seen)
    if isinstance(value, functools.partial):
        return _joined("partial", [_of(part, seen) for part in (value.func, value.args, value.keywords)])
    if isinstance(value, types.MethodType):
        return _joined("method", [_of(value.__func__, seen), _of(value.__self__, seen)])
    if isinstance(value, types.FunctionType):
        return _of_function(value, seen)
    if isinstance(value, types.CodeType):
        return _joined("code", [value.co_code, _of(value.co_consts, seen), _of(value.co_names, seen)])
    if hasattr(value, "__wrapped__"):
        return _of(value.__wrapped__, seen)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _joined(name, [_of(held, seen)])
    held = getattr(value, "__dict__", None)
    return _joined(name, [without_addresses(value).encode() if not held else _of(held, seen)])


def _of_function(function, seen) -> bytes:
    """Of its code, its defaults, and of whatever it refers to that is no module, class or built-in."""
    code, cells = function.__code__, function.__closure__ or ()
    held = [cell.cell_contents for cell in cells if cell != types.CellType()]
    named = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    return _joined(
        "function",
        [_of(part, seen) for part in (code, function.__defaults__, function.__kwdefaults__, held, named)],
    )


def _of_jaxpr(jaxpr, seen) -> bytes:
    """Equations in their order, variables by the order in which they come."""
    numbers: dict[Any, int] = {}

    def atom(held) -> bytes:
        shape = f"{getattr(held.aval, 'dtype', held.aval)}{getattr(held.aval, 'shape', '')}".encode()
        if isinstance(held, Literal):
            return _joined("literal", [shape, _of(held.val, seen)])
        return b"%d:" % numbers.setdefault(held, len(numbers)) + shape

    def equation(eqn) -> bytes:
        params = {name: held for name, held in eqn.params.items() if name not in ASIDE | RULES}
        atoms = [*map(atom, eqn.invars), b"->", *map(atom, eqn.outvars)]
        return _joined(eqn.primitive.name, [*atoms, _of(params, seen)])

    first = [atom(held) for held in (*jaxpr.constvars, *jaxpr.invars)]
    return _joined("jaxpr", [*first, *map(equation, jaxpr.eqns), *map(atom, jaxpr.outvars)])
