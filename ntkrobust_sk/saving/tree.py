"""Objects as trees of JSON with their arrays apart, and back, by names in the registry alone.

Nothing, truth values, whole and finite numbers, text and lists are JSON's own. All else is a node
``{"type": ...}``: a registered name with its fields, or one of the kinds in ``KINDS``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from itertools import count
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.core import Tracer
from sklearn.utils.metadata_routing import MetadataRequest

from .._portable import from_numpy, to_numpy
from .._validation import brief
from .registry import found, is_configuration, is_estimator, is_function, name_of
from .tensors import CODES

# NumPy's dtypes that are written as bytes: text, dates, complex numbers, and numbers in the other order of bytes.
WRITTEN = re.compile(r"[<>|](?:[US]\d{1,9}|[mM]8(?:\[\d{0,9}[a-zA-Z]{1,2}\])?|[fiu][1248]|c8|c16)")
# Those that JAX adds to NumPy's.
ADDED = {
    kind.__name__: np.dtype(kind)
    for kind in vars(ml_dtypes).values()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}
REQUESTS = "_metadata_request"
# Of this library's estimators, and of those made of them: attributes that no file has, and parameters that say
# where something is on one machine. A file has none of these, and chooses none where it is loaded.
UNSAVED = ("_training", "_skl_callbacks")
PLACES = ("cache", "gram_store")
# Bits of an integer that Python writes and reads as text.
LARGEST_INTEGER = 13_000


@dataclass
class Encoder:
    """Makes trees; ``arrays`` are those that they name."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    # by identity, with the object itself, which must live as long
    _known: dict[int, tuple[Any, dict]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def encode(self, value: Any, at: str) -> Any:
        """Return the tree of a value, which is at a place such as "model_.network"."""
        kind = type(value)
        if kind is int and value.bit_length() > LARGEST_INTEGER:
            raise TypeError(f"{at} cannot be saved: an integer of {value.bit_length():,} bits is no setting")
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"type": "float", "value": repr(value)}
        if kind is list:
            return [self.encode(item, f"{at}[{i}]") for i, item in enumerate(value)]
        if kind is tuple:
            return {"type": "tuple", "items": self.encode(list(value), at)}
        if kind is dict:
            items = [[self.encode(k, f"{at} (a key)"), self.encode(v, _within(at, k))] for k, v in value.items()]
            return {"type": "dict", "items": items}
        if kind is Fraction:
            return {"type": "fraction", "items": [value.numerator, value.denominator]}
        if isinstance(value, np.dtype):
            return {"type": "dtype", "name": _name_of_dtype(value, at)}
        if kind is np.random.RandomState:
            return {"type": "random_state", "state": self._state_of(value, at)}
        if isinstance(value, jax.Array | np.generic) or kind in (np.ndarray, np.memmap):
            return self._array(value, at)
        if is_function(value) and (name := name_of(value)) is not None:
            return {"type": "function", "name": name}
        return self._object(value, at)

    def _state_of(self, value, at):
        state = value.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            raise TypeError(
                f"{at} cannot be saved: files hold numpy.random.RandomState(seed), and no RandomState of "
                f"{state['bit_generator']}"
            )
        return self.encode(state, at)

    def _array(self, value, at):
        if id(value) not in self._known:
            self._known[id(value)] = value, self._new_array(value, at)
        return self._known[id(value)][1]

    def _new_array(self, value, at):
        if isinstance(value, Tracer):
            raise TypeError(f"{at} is an array that JAX is tracing, without numbers: save outside of jit")
        kind, values = to_numpy(value)
        node: dict[str, Any] = {"type": "array"}
        if isinstance(value, np.generic):
            node["of"] = "scalar"
        elif kind != "numpy":
            node["of"] = kind
        if values.dtype == object:
            items = self.encode(values.ravel().tolist(), at)
            return {"type": "objects", "shape": list(values.shape), "items": items}
        if values.flags.f_contiguous and not values.flags.c_contiguous:
            node["order"], values = "F", values.T
        # np.ascontiguousarray would make a vector of a number
        values = np.asarray(values, order="C")
        if values.dtype not in CODES or not values.dtype.isnative:
            node["dtype"] = _name_of_dtype(values.dtype, at)
            values = values.reshape(*values.shape, 1).view(np.uint8) if values.dtype.itemsize else values
            if values.dtype.itemsize == 0:
                values = np.zeros((*values.shape, 0), np.uint8)
        others = count(1)
        key = at
        while key in self.arrays:
            key = f"{at} ({next(others)})"
        self.arrays[key] = values
        return node | {"key": key}

    def _object(self, value, at):
        kind = type(value)
        name = name_of(kind)
        if name is None:
            raise TypeError(f"{at or kind.__name__} cannot be saved: {_reason(value)}")
        if is_estimator(kind):
            if id(value) not in self._known:
                self._known[id(value)] = value, self._estimator(value, name, at)
                return self._known[id(value)][1]
            # a frozen estimator is a parameter and what was fitted, too
            return {"type": "same", "as": self._known[id(value)][1]["number"]}
        node = self._fields(value, name, at)
        if "." in name:
            self._require_same(value, name, at)
        return node

    def _fields(self, value, name, at):
        names = [f.name for f in fields(value) if f.init] if is_dataclass(value) else value._fields
        return {"type": name, "fields": {n: self.encode(getattr(value, n), _within(at, n)) for n in names}}

    def _require_same(self, value, name, at):
        """Raise TypeError unless an object of a user's own class is made again of its fields."""
        names = self._fields(value, name, at)["fields"]
        try:
            again = type(value)(**{field: getattr(value, field) for field in names})
        except Exception as error:  # whatever a stranger's class raises
            raise TypeError(
                f"{at} cannot be saved: {type(value).__name__} cannot be made again of its fields "
                f"{', '.join(names)}: {type(error).__name__}: {error}"
            ) from error
        if self._fields(again, name, at)["fields"] != names:
            raise TypeError(
                f"{at} cannot be saved: {brief(value)} made again of its fields is another, {brief(again)}; let "
                "fields hold what the class is made of"
            )

    def _estimator(self, value, name, at):
        unsaved = (REQUESTS, *_unsaved(type(value)))
        given = {n: held for n, held in value.get_params(deep=False).items() if n not in unsaved}
        own = {n: held for n, held in vars(value).items() if n not in (*given, *unsaved)}
        node = {
            "type": name,
            "number": next(self._numbers),
            "params": {n: self.encode(held, _within(at, n)) for n, held in given.items()},
            "fitted": {n: self.encode(held, _within(at, n)) for n, held in own.items()},
        }
        if REQUESTS in vars(value):
            asked = {m: vars(of).get("_requests") for m, of in vars(vars(value)[REQUESTS]).items() if m != "owner"}
            node["requests"] = {
                method: self.encode(of, _within(at, REQUESTS)) for method, of in asked.items() if of
            }
        return node


def _unsaved(kind: type) -> tuple[str, ...]:
    """Return the names of parameters and attributes of an estimator's class that are not in files."""
    is_own = any(of.__module__.startswith(__name__.partition(".")[0] + ".") for of in kind.mro())
    return (*UNSAVED, *PLACES) if is_own else ()


def _within(at: str, name: object) -> str:
    return f"{at}.{name}" if at else str(name)


def _reason(value) -> str:
    """Say why an object has no name in files, and what to do."""
    kind = type(value)
    if is_function(value):
        return (
            f"{brief(value)} is a function, which is code; register it under a name, "
            "@ntkrobust_sk.saved_as('lab.my_function'), and files hold the name"
        )
    said = f"{brief(value)} is a {kind.__module__}.{kind.__qualname__}, and "
    if kind.__module__.startswith("ntkrobust_sk."):
        return (
            f"{said}that holds code of another library; save its weights by training.save_checkpoint, or write a "
            "frozen dataclass of your own that makes the module, and register it by "
            "@ntkrobust_sk.saved_as('lab.MyNetwork')"
        )
    if is_configuration(kind) or is_estimator(kind):
        return (
            f"{said}its class has no name in files: register it by "
            f"@ntkrobust_sk.saved_as('lab.{kind.__name__}'), where it is defined"
        )
    return (
        f"{said}files hold numbers, text, tuples, lists, dicts, arrays, and registered classes: make it a frozen "
        "dataclass of those, registered by @ntkrobust_sk.saved_as('lab.MyClass')"
    )


def _name_of_dtype(dtype: np.dtype, at: str) -> str:
    name = dtype.name if ADDED.get(dtype.name) == dtype else dtype.str
    if name in ADDED or (WRITTEN.fullmatch(name) and dtype.names is None):
        return name
    raise TypeError(
        f"{at} cannot be saved: arrays of dtype {dtype} have no form in files; make numbers or text of it"
    )


def _dtype(name: str) -> np.dtype:
    if name in ADDED:
        return ADDED[name]
    if not isinstance(name, str) or not WRITTEN.fullmatch(name):
        raise ValueError(f"there is no dtype {brief(name)}")
    return np.dtype(name)


@dataclass
class Decoder:
    """Makes objects of trees and of the arrays that they name."""

    arrays: dict[str, np.ndarray]
    # arrays by their nodes, and estimators by their numbers
    _known: dict[Any, Any] = field(default_factory=dict)

    def decode(self, node: Any) -> Any:
        """Return what a tree stands for."""
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node["type"]
        if kind in KINDS:
            return KINDS[kind](self, node)
        return self._object(found(kind), node)

    def _decoded(self, nodes: dict) -> dict[str, Any]:
        return {name: self.decode(held) for name, held in nodes.items()}

    def _object(self, kind, node):
        if is_estimator(kind):
            return self._estimator(kind, node)
        if not is_configuration(kind):
            raise ValueError(f"{node['type']!r} is a function, and no class")
        return kind(**self._decoded(node["fields"]))

    def _estimator(self, kind, node):
        unsaved = _unsaved(kind)
        made = kind(**{n: held for n, held in self._decoded(node["params"]).items() if n not in unsaved})
        unset = (*unsaved, *made.get_params(deep=False))
        for name, value in self._decoded(node["fitted"]).items():
            is_name = name.isidentifier() and not name.startswith("__")
            if not is_name or name in unset or callable(getattr(kind, name, None)):
                raise ValueError(f"{brief(name)} is no attribute that fit sets")
            vars(made)[name] = value
        if "requests" in node:
            requests = MetadataRequest(owner=kind.__name__)
            for method, of in self._decoded(node["requests"]).items():
                for name, alias in of.items():
                    getattr(requests, method).add_request(param=name, alias=alias)
            setattr(made, REQUESTS, requests)
        self._known[node["number"]] = made
        return made

    def _array(self, node):
        # one array that was held twice is one again
        at = tuple(sorted(node.items()))
        if at not in self._known:
            self._known[at] = self._new_array(node)
        return self._known[at]

    def _new_array(self, node):
        values, kind = self.arrays[node["key"]], node.get("of", "numpy")
        if "dtype" in node:
            dtype = _dtype(node["dtype"])
            if values.dtype != np.uint8 or values.shape[-1:] != (dtype.itemsize,):
                raise ValueError(f"array {node['key']!r} holds no numbers of dtype {dtype}")
            shape = values.shape[:-1]
            values = values.view(dtype).reshape(shape) if dtype.itemsize else np.zeros(shape, dtype)
            if dtype.kind == "U":
                values.tolist()  # raises where the bytes are no text
        if kind == "scalar":
            return values[()]
        # of its own memory, aligned, that may be written to
        values = values.copy(order="C")
        values = values.T if node.get("order") == "F" else values
        return from_numpy(kind, values)

    def _objects(self, node):
        values = np.empty(len(node["items"]), object)
        for i, item in enumerate(node["items"]):
            values[i] = self.decode(item)
        return values.reshape(node["shape"])

    def _random_state(self, node):
        stated = self.decode(node["state"])
        _require_twister(stated)
        state = np.random.RandomState()
        state.set_state(stated)
        return state

    def _function(self, node):
        function = found(node["name"])
        if not is_function(function):
            raise ValueError(f"{node['name']!r} is no function")
        return function


def _require_twister(stated) -> None:
    """Raise ValueError unless this is a state of NumPy's Mersenne Twister, which takes numbers as they are."""
    key, at = stated["state"]["key"], stated["state"]["pos"]
    if type(key) is not np.ndarray or key.dtype != np.uint32 or key.shape != (624,):
        raise ValueError(f"a RandomState has a key of 624 integers of 32 bits, got {brief(key)}")
    # of zeros alone, of which only zeros come
    if not (key[0] >> 31 or key[1:].any()):
        raise ValueError("the key of a RandomState is zero")
    if type(at) is not int or not 0 <= at <= 624:
        raise ValueError(f"a RandomState is at a position of 0 to 624, got {brief(at)}")
    held, gauss = stated["has_gauss"], stated["gauss"]
    if type(held) is not int or held not in (0, 1) or type(gauss) is not float or not math.isfinite(gauss):
        raise ValueError(f"a RandomState holds one finite number or none, got {brief(held)} and {brief(gauss)}")


def _float(node):
    if node["value"] not in ("nan", "inf", "-inf"):
        raise ValueError(f"{brief(node['value'])} is no such number")
    return float(node["value"])


# How the nodes that are not of a registered name are read.
KINDS: dict[str, Callable[[Decoder, dict], Any]] = {
    "float": lambda of, node: _float(node),
    "tuple": lambda of, node: tuple(of.decode(node["items"])),
    "dict": lambda of, node: {of.decode(key): of.decode(value) for key, value in node["items"]},
    "fraction": lambda of, node: Fraction(*map(int, node["items"])),
    "dtype": lambda of, node: _dtype(node["name"]),
    "random_state": Decoder._random_state,
    "same": lambda of, node: of._known[node["as"]],
    "array": Decoder._array,
    "objects": Decoder._objects,
    "function": Decoder._function,
}


def encoded(value: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the tree of an object, and its arrays by name.

    Raises
    ------
    TypeError
        Naming the place of what cannot be saved, and what to do about it.

    >>> from ntkrobust_sk import PGD
    >>> encoded((PGD(0.1).norm, float("inf")))
    ({'type': 'tuple', 'items': ['linf', {'type': 'float', 'value': 'inf'}]}, {})
    """
    encoder = Encoder()
    try:
        return encoder.encode(value, ""), encoder.arrays
    except RecursionError as error:
        raise TypeError(f"{brief(value)} cannot be saved: it is nested too deeply, or holds itself") from error


def decoded(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the object of a tree and its arrays.

    Raises
    ------
    Exception
        Of any kind, for a tree that nobody has encoded: classes check what they are made of.
    """
    return Decoder(arrays).decode(tree)
