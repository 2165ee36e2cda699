"""What a function computes, as a number: SHA-256 of its jaxpr, its constants, and the code that it calls.

A ``repr`` tells configurations apart, but neither lambdas, nor closures, nor a function before and after it was
edited. A jaxpr holds whatever such a function does, and the numbers that it does it with. Of Python code that
runs outside of JAX (callbacks) the bytecode is taken, and whatever it refers to: functions, classes, numbers.
What it may read of elsewhere (files, modules with settings, compiled code) has no fingerprint; then this says so.

The same function gives the same fingerprint in every process. Another version of JAX or Python may write the
same function down in another way.
"""

import builtins
import dataclasses
import dis
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Parameters of equations that say how something is called, compiled or placed, not what it gives.
CALL_PARAMETERS = _words("""compiler_options_kvs ctx_mesh debug_info donated_invars in_layouts in_shardings inline
keep_unused name out_layouts out_sharding out_shardings sharding""")
# Rules for derivatives, which whatever was differentiated has in its equations already.
DERIVATIVE_RULES = _words("bwd fwd_jaxpr_thunk jvp_jaxpr_fun jvp_jaxpr_thunk out_trees")
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# The beginning of the fingerprint of a function that may compute something else tomorrow.
UNSURE = "unsure: "
# Packages whose functions are known by their names: they keep no settings that matter here.
KNOWN = _words("""_thread abc builtins cmath collections dataclasses enum functools itertools jax jaxlib math
ml_dtypes ntkrobust_sk numbers numpy operator re scipy types typing""")
# Names in them, and built-in functions, by which code reads what is not in it.
ELSEWHERE = _words("""__import__ compile eval exec fromfile genfromtxt globals input load loadtxt locals memmap
open random rvs""")
# Attributes that Python and its tools keep in classes: no part of what they do.
CLASS_BOOKKEEPING = _words("""__abstractmethods__ __annotate__ __annotate_func__ __annotations__
__annotations_cache__ __dataclass_fields__ __dataclass_params__ __dict__ __doc__ __firstlineno__ __module__
__static_attributes__ __weakref__ _abc_impl""")
SLOT = types.MemberDescriptorType


@dataclasses.dataclass
class _Reading:
    """The record of what was read so far.

    Attributes
    ----------
    unsure : list of str
        What was found that has no fingerprint.
    seen : dict
        Digests of objects by id, and the objects, so that ids stay theirs.
    outside : bool
        Whether this is code that runs outside of JAX.
    """

    unsure: list[str] = dataclasses.field(default_factory=list)
    seen: dict[int, tuple[Any, bytes]] = dataclasses.field(default_factory=dict)
    outside: bool = False

    def doubt(self, what: str) -> None:
        if self.outside:
            self.unsure.append(what)


def fingerprint(function: Callable, *args) -> tuple[str, Any]:
    """Return the SHA-256 of what a function computes for arguments of these shapes, and the shapes of its results.

    Parameters
    ----------
    function : callable
        Of JAX; it is traced anew, but what it calls through ``jax.jit`` only as JAX does.
    args : pytrees of arrays or jax.ShapeDtypeStruct
        Their numbers do not matter.

    Returns
    -------
    digest : str
        Begins with "unsure: ", and says why, where code outside of JAX may read what has no fingerprint.
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
    digest = _of(jaxpr, reading := _Reading()).hex()
    return (f"{UNSURE}{', '.join(dict.fromkeys(reading.unsure))}" if reading.unsure else digest), shapes


def code_digest(function: Callable) -> bytes | None:
    """Return the digest of a function's code and of all that it refers to, or None where it reads something else.

    >>> factor = 2
    >>> def scaled(x):
    ...     return factor * x
    >>> before = code_digest(scaled)
    >>> factor = 3
    >>> before == code_digest(scaled)
    False
    """
    reading = _Reading(outside=True)
    try:
        digest = _of(function, reading)
    except RecursionError:
        return None
    return None if reading.unsure else digest


def hash_arrays(arrays: Iterable) -> str:
    """Return the SHA-256 of arrays: their dtypes, the shapes of their rows, their bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        if hasattr(array, "pieces"):
            # read a few rows at a time, with the hash of the whole
            digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
            for piece in array.pieces():
                digest.update(np.ascontiguousarray(piece).data.cast("B"))
            continue
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
        digest.update(array.tobytes() if array.dtype.hasobject else array.data.cast("B"))
    return digest.hexdigest()


def without_addresses(value) -> str:
    """Return how a value prints, without addresses, which change from process to process."""
    return re.sub(r"( at )?0x[0-9a-f]+", "", repr(value))


def _joined(kind: str, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(kind.encode() + b"\0")
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _of(value, seen: _Reading) -> bytes:
    """Return the digest of any value."""
    if type(value) in PLAIN:
        return _joined(type(value).__name__, [repr(value).encode()])
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _of_array(value, seen)
    if id(value) not in seen.seen:
        seen.seen[id(value)] = (value, b"being read")
        seen.seen[id(value)] = (value, _of_object(value, seen))
    return seen.seen[id(value)][1]


def _of_array(array, seen) -> bytes:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        kind = str(jax.random.key_impl(array)).encode()
        return _joined("key", [kind, _of_array(jax.random.key_data(array), seen)])
    if not isinstance(array, jax.Array | np.generic) and type(array) is not np.ndarray:
        seen.doubt(f"an array {_name(type(array))}")
    array = np.asarray(array)
    content = _of(array.tolist(), seen) if array.dtype.hasobject else array.tobytes()
    return _joined("array", [f"{array.dtype.name}{array.shape}".encode(), content])


def _of_object(value, seen) -> bytes:
    if isinstance(value, enum.Enum):
        return _joined(_name(type(value)), [value.name.encode(), _of(value.value, seen)])
    for kinds, of in (
        (ClosedJaxpr, lambda: [_of_jaxpr(value.jaxpr, seen), *(_of(const, seen) for const in value.consts)]),
        (Jaxpr, lambda: [_of_jaxpr(value, seen)]),
        (types.MappingProxyType, lambda: [_of(dict(value), seen)]),
        (dict, lambda: sorted(_of(key, seen) + _of(held, seen) for key, held in value.items())),
        (tuple | list, lambda: [_of(held, seen) for held in value]),
        (set | frozenset, lambda: sorted(_of(held, seen) for held in value)),
        (np.dtype | jax.tree_util.PyTreeDef, lambda: [str(value).encode()]),
        (functools.partial, lambda: [_of(part, seen) for part in (value.func, value.args, value.keywords)]),
        (types.MethodType, lambda: [_of(value.__func__, seen), _of(value.__self__, seen)]),
        (property, lambda: [_of(part, seen) for part in (value.fget, value.fset, value.fdel)]),
        (staticmethod | classmethod, lambda: [_of(value.__func__, seen)]),
        (types.CodeType, lambda: [value.co_code, _of(value.co_consts, seen), _of(value.co_names, seen)]),
        (SLOT | types.GetSetDescriptorType, lambda: [value.__qualname__.encode()]),
    ):
        if isinstance(value, kinds):
            # a class made of one of them may add to it
            own = [_of(type(value), seen)] if seen.outside else []
            own += [_of(held, seen)] if (held := getattr(value, "__dict__", None)) else []
            return _joined(_name(type(value)), [*of(), *own])
    if _is_known(value):
        return _joined("name", [without_addresses(value).encode()])
    if isinstance(value, types.ModuleType):
        seen.doubt(f"settings of the module {value.__name__}")
        return _joined("name", [value.__name__.encode()])
    if isinstance(value, types.FunctionType):
        return _of_function(value, seen)
    return _of_class(value, seen) if isinstance(value, type) else _of_instance(value, seen)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_known(value) -> bool:
    """Tell whether a function, class or module of a known package can be had by its name."""
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] in KNOWN and value.__name__ != "numpy.random"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    module = "numpy" if isinstance(value, np.ufunc) else module
    if not isinstance(module, str) or not isinstance(name := name or getattr(value, "__name__", None), str):
        return False
    if module.split(".")[0] not in KNOWN or module.startswith("numpy.random"):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _of_class(value, seen) -> bytes:
    """Return the digest of a class: its attributes and methods, and those of the classes that it comes from."""
    held = {name: part for name, part in vars(value).items() if name not in CLASS_BOOKKEEPING}
    bases = (_of(base, seen) for base in value.__bases__)
    return _joined("class", [_name(value).encode(), _of(held, seen), *bases])


def _of_instance(value, seen) -> bytes:
    """Return the digest of an object: its state, and its class where that may be changed."""
    kind = type(value)
    if isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType):
        return _joined("method", [value.__name__.encode(), _of(value.__self__, seen)])
    slots = [name for cls in kind.__mro__ for name, part in vars(cls).items() if isinstance(part, SLOT)]
    held = {name: getattr(value, name, None) for name in slots} | getattr(value, "__dict__", {})
    if any(cls.__name__ == "AbstractValue" for cls in kind.__mro__):
        # what JAX has looked up about a shape so far, and keeps there, is no part of it
        held = {name: part for name, part in held.items() if not name.startswith("_")}
    parts = [_name(kind).encode(), _of(kind, seen) if seen.outside else b"", _of(held, seen)]
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and kind.__module__.split(".")[0] in KNOWN:
        return _joined("wrapped", [*parts, _of(wrapped, seen)])
    if kind.__new__ is not object.__new__:
        # made by compiled code, which may hold more than it shows
        seen.doubt(f"an object {_name(kind)}")
    return _joined("object", [*parts, b"" if held else without_addresses(value).encode()])


def _of_function(function, seen) -> bytes:
    """Return the digest of a function: its code, defaults and attributes, and whatever it refers to."""
    code, cells = function.__code__, function.__closure__ or ()
    held = [cell.cell_contents for cell in cells if cell != types.CellType()]
    named = {}
    for name in sorted(_names(code, seen)):
        if name in function.__globals__:
            named[name] = function.__globals__[name]
        elif not hasattr(builtins, name):
            seen.doubt(f"the name {name}, which is not there")
    parts = (code, function.__defaults__, function.__kwdefaults__, held, named, vars(function))
    return _joined("function", [_of(part, seen) for part in parts])


def _names(code, seen) -> frozenset[str]:
    """Return the names of what code takes from outside of itself, the code of functions in it included."""
    found, doubts = _reads(code)
    for doubt in doubts:
        seen.doubt(doubt)
    return found


# code does not change, and disassembling it takes most of the time
@lru_cache(maxsize=1024)
def _reads(code) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names that code takes from outside of itself, and what it does that has no fingerprint."""
    found, doubts = set(), []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(step.argval)
        reads = step.argval in ELSEWHERE and step.opname != "LOAD_CONST"
        if reads or step.opname in ("IMPORT_NAME", "STORE_GLOBAL"):
            doubts.append(f"{step.argval} in {code.co_name}")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names, more = _reads(inner)
            found, doubts = found | names, [*doubts, *more]
    return frozenset(found), tuple(doubts)


def _of_jaxpr(jaxpr, seen) -> bytes:
    """Return the digest of a jaxpr: equations in their order, variables by the order in which they come."""
    numbers: dict[Any, int] = {}

    def atom(held) -> bytes:
        shape = f"{getattr(held.aval, 'dtype', held.aval)}{getattr(held.aval, 'shape', '')}".encode()
        if isinstance(held, Literal):
            return _joined("literal", [shape, _of(held.val, seen)])
        return b"%d:" % numbers.setdefault(held, len(numbers)) + shape

    def equation(eqn) -> bytes:
        left_out = CALL_PARAMETERS | DERIVATIVE_RULES
        params = {name: held for name, held in eqn.params.items() if name not in left_out}
        # what gives nothing back, such as jax.debug.print, changes no number
        outside = {name: held for name, held in params.items() if callable(held) and eqn.outvars}
        of_outside = _of(outside, _Reading(seen.unsure, outside=True)) if outside else b""
        params = {name: held for name, held in params.items() if name not in outside}
        atoms = [*map(atom, eqn.invars), b"->", *map(atom, eqn.outvars)]
        return _joined(eqn.primitive.name, [*atoms, _of(params, seen), of_outside])

    first = [atom(held) for held in (*jaxpr.constvars, *jaxpr.invars)]
    return _joined("jaxpr", [*first, *map(equation, jaxpr.eqns), *map(atom, jaxpr.outvars)])
