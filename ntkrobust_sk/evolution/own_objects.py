"""How a run's settings state a network, attack or optimiser that is an object, and what they give back of it.

What has a name in files (this library's own, and what :func:`~ntkrobust_sk.saved_as` registers) is stated by this
name with its fields, and is made again of them. Of anything else stand there its class, how it prints, and what
tells it from others: a fingerprint of what it computes. Code outside of this library gets that in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..kernels.fingerprint import fingerprint, hash_arrays, without_addresses
from ..networks.model import Model
from ..networks.named import initial_model, with_outputs
from ..saving.tree import decoded, encoded

# Rows that a network and an attack are traced on.
ROWS = 2
# Settings that may be objects.
OBJECTS = ("network", "attack", "optimizer")


@dataclass(frozen=True)
class Stated:
    """What a folder states of an object that is not in it; it stands in the object's place where a run is read.

    Attributes
    ----------
    text : str
        The statement, as JSON.
    """

    text: str

    def __repr__(self) -> str:
        stated = json.loads(self.text)
        return stated.get("prints") or _type_of(stated)

    def init(self, key: Any, input_shape: Any = None) -> Any:
        """Raise: there is no code."""
        raise self.missing()

    def apply(self, params: Any, state: Any, x: Any, *, train: bool = False) -> Any:
        """Raise: there is no code."""
        raise self.missing()

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        """Raise: there is no code."""
        raise self.missing()

    def __call__(self, model: Any, x: Any, y: Any, *, key: Any) -> Any:
        """Raise: there is no code."""
        raise self.missing()

    def missing(self, name: str = "network=..., attack=... or optimizer") -> ValueError:
        """Make the error for whoever needs the object itself."""
        return ValueError(
            f"a run's folder states {self!r} and does not hold it: give it again, "
            f"load_experiment(out, {name}=...); on the command line --network MODULE:NAME"
        )


def state_network(network: Any, input_shape: tuple[int, ...], n_outputs: int) -> Any:
    """Return what settings state of a network or Model: a name as it is, an object as what JSON can hold."""
    if isinstance(network, str):
        return network
    if isinstance(network, Model):
        stated = _stated(network.network)
        leaves = jax.tree.leaves(network.variables)
        return {"model": _with_code(stated, network, input_shape), "sha256_variables": hash_arrays(leaves)}
    return _with_code(_stated(network), with_outputs(network, n_outputs), input_shape)


def _with_code(stated, network, input_shape):
    if not _has_foreign_code(stated):
        return stated
    x = jax.ShapeDtypeStruct((ROWS, *input_shape), jnp.float32)

    def computed(key, x):
        params, state = network.variables if isinstance(network, Model) else network.init(key, input_shape)
        apply = (network.network if isinstance(network, Model) else network).apply
        return params, state, apply(params, state, x, train=False), apply(params, state, x, train=True)

    return stated | _code(computed, jax.random.key(0), x)


def state_attack(attack: Any, input_shape: tuple[int, ...], n_outputs: int) -> Any:
    """Return what settings state of an attack: a name as it is, an object as what JSON can hold."""
    if isinstance(attack, str):
        return attack
    stated = _stated(attack)
    if not _has_foreign_code(stated):
        return stated
    x = jax.ShapeDtypeStruct((ROWS, *input_shape), jnp.float32)
    # a model that any attack takes, so that what is traced is the attack's own
    weights = jax.ShapeDtypeStruct((int(np.prod(input_shape)), n_outputs), jnp.float32)
    y, key = jax.ShapeDtypeStruct((ROWS,), jnp.int32), jax.random.key(0)
    keys = jax.random.split(key, ROWS) if getattr(attack, "one_key_each", False) else key

    def attacked(weights, x, y, key):
        return attack(Partial(_linear, weights), x, y, key=key)

    return stated | _code(attacked, weights, x, y, keys)


def state_optimizer(optimizer: Any, network: Any, input_shape: tuple[int, ...], n_outputs: int) -> Any:
    """Return what settings state of an optimiser: a name as it is, one of optax by its functions and what they do.

    Those of optax are functions, which print as addresses: stated are where they are defined, and a fingerprint of
    what they compute for the network's parameters.
    """
    if isinstance(optimizer, str):
        return optimizer
    if isinstance(optimizer, Stated):
        return json.loads(optimizer.text)
    update, key = optimizer.update, jax.random.key(0)
    params = jax.eval_shape(lambda key: initial_model(network, input_shape, n_outputs, key).variables.params, key)

    def updated(params, gradient):
        state = optimizer.init(params)
        return state, optimizer.update(gradient, state, params)

    where = f"{update.__module__}:{update.__qualname__}"
    prints = f"{type(optimizer).__name__}({where})"
    return {"class": where, "prints": prints} | _code(updated, params, params)


def _linear(weights, x):
    return x.reshape(len(x), -1) @ weights


def _code(function, *args) -> dict[str, str]:
    """State what code computes; another version of JAX writes the same down in another way."""
    digest, _ = fingerprint(function, *args)
    return {"computes": digest, "jax": jax.__version__}


def _stated(value) -> dict[str, Any]:
    try:
        tree, arrays = encoded(value)
    except TypeError:
        kind = type(value)
        return {
            "class": f"{kind.__module__}:{kind.__qualname__}",
            "prints": " ".join(without_addresses(value).split()),
        }
    return tree | {"sha256_arrays": hash_arrays(arrays.values())} if arrays else tree


def _has_foreign_code(stated) -> bool:
    """Tell whether a statement is of code that is not all of this library, in this version."""
    return "class" in stated or any("." in name for name in _names(stated))


def _names(tree) -> Iterator[str]:
    """Yield the names of classes and functions in a tree."""
    if isinstance(tree, list):
        for item in tree:
            yield from _names(item)
    elif isinstance(tree, dict):
        for name, held in tree.items():
            if name in ("type", "name") and isinstance(held, str):
                yield held
            else:
                yield from _names(held)


def _type_of(stated) -> str:
    if "model" in stated:
        return f"Model({Stated(json.dumps(stated['model']))!r})"
    return f"{stated.get('type', 'an object')}(...)"


def restored(stated: Any) -> Any:
    """Return what settings state: text as it is, an object made of its fields, or a stand-in for it."""
    if not isinstance(stated, dict):
        return stated
    own = {name: held for name, held in stated.items() if name not in ("computes", "jax")}
    if "type" in own and "sha256_arrays" not in own:
        try:
            return decoded(own, {})
        except LookupError:  # a name that nothing has been registered under here
            return Stated(json.dumps(stated))
    return Stated(json.dumps(stated))
