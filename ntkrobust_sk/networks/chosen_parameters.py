"""Some of a network's parameters, by name: those that a kernel differentiates with respect to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from .._validation import brief, unknown
from .inputs import LogitsAndState, PyTree, params_dtype
from .model import Model, Network, Variables, require_model, require_network

# So many names are listed in an error, and as many that are like a wrong one.
LISTED, LIKE = 24, 5


def parameter_names(model: Model) -> list[str]:
    """Return the names of a model's parameter arrays, as ``params=`` of kernels takes them.

    A name is the path through the pytree of parameters, with dots: keys of dicts, attributes of modules, positions
    in lists. They are in the order of ``jax.tree.leaves``; parameters that are one bare array are called "params".

    Parameters
    ----------
    model : Model

    Returns
    -------
    list of str

    Raises
    ------
    TypeError
        For what is no model.

    Examples
    --------
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> parameter_names(Model(network, network.init(jax.random.key(0), (4,))))
    ['dense_0.bias', 'dense_0.kernel', 'dense_1.bias', 'dense_1.kernel']
    """
    return _names(require_model(model).variables.params)


@dataclass(frozen=True)
class Restricted:
    """A network some of whose parameters are held fixed: the others alone are trained, or make its kernel.

    The fixed ones stand in its state. Made by :func:`restricted`.

    Parameters
    ----------
    network : Network
    params : tuple of str
        Names of parameters, or patterns of them, as for :func:`restricted`.
    """

    network: Network
    params: tuple[str, ...]

    def __post_init__(self):
        require_network(self.network)
        object.__setattr__(self, "params", _patterns(self.params))

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw the network's own variables, and part them."""
        return _parted(self.network.init(key, input_shape), self.params)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the new state: the fixed parameters, and the network's own."""
        fixed, own = state
        logits, own = self.network.apply(_joined(params, fixed), own, x, train=train)
        return logits, (fixed, own)


def restricted(model: Model, params: str | Iterable[str] | None) -> Model:
    """Return the same function with some of its parameters alone as parameters, and the others held fixed.

    Parameters
    ----------
    model : Model
    params : str, sequence of str, or None
        Names as :func:`parameter_names` lists them, or beginnings of these up to a dot ("layers.3" is all of
        "layers.3.kernel" and "layers.3.bias"), or patterns with ``*``, ``?`` and ``[...]``, where ``*`` stands for
        dots, too. Several are taken together. None is all of them.

    Returns
    -------
    Model
        The model itself where all of its parameters are chosen.

    Raises
    ------
    TypeError, ValueError
        For what is no name, for one that no parameter has, for an empty selection, and for one whose dtype is
        narrower than that of the network.

    Examples
    --------
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> parameter_names(restricted(model, "dense_1"))
    ['dense_1.bias', 'dense_1.kernel']
    """
    require_model(model)
    if params is None:
        return model
    names = parameter_names(model)
    chosen = _chosen(_patterns(params), names)
    if len(chosen) == len(names):
        return model
    # in the order of the parameters, whatever they were asked for by: equal selections are equal networks
    found = Model(Restricted(model.network, tuple(chosen)), _parted(model.variables, tuple(chosen)))
    own, whole = (params_dtype(of.variables.params) for of in (found, model))
    if own != whole:
        raise ValueError(
            f"params={brief(params)} chooses parameters in {own} alone, but the network takes inputs in {whole}, "
            f"as its other parameters are: they would be rounded. Choose some in {whole}, too, or cast the network"
        )
    return found


def map_parameters(function: Callable, model: Model) -> Model:
    """Return a model with a function applied to each parameter array, those that are held fixed included."""
    params, state = model.variables
    if isinstance(model.network, Restricted):
        fixed, own = state
        state = jax.tree.map(function, fixed), own
    return Model(model.network, Variables(jax.tree.map(function, params), state))


def _patterns(params: Any) -> tuple[str, ...]:
    given = (params,) if isinstance(params, str) else params
    way = "names such as 'dense_1.kernel', or patterns such as 'layers.3.*'; parameter_names(model) lists them"
    given = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(given, list | tuple) or not all(isinstance(p, str) for p in given):
        raise TypeError(f"params must be {way}, got {brief(params)}")
    given = tuple(given)
    if not given:
        raise ValueError(f"params must choose one parameter or more, got {brief(params)}: give {way}")
    return given


def _names(params: PyTree) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") or "params" for path in paths]


def _chosen(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    """Return the names that one of the patterns chooses; raise for a pattern that chooses none."""
    for pattern in patterns:
        if not any(_matches(pattern, name) for name in names):
            like = get_close_matches(pattern, names, n=LIKE, cutoff=0.4)
            shown = names if len(names) <= LISTED else like or names[:LISTED]
            more = len(names) - len(shown)
            others = f"one of {more} others, or " if more else ""
            raise ValueError(
                unknown(
                    "params", pattern, shown, f"{others}a pattern of such names; parameter_names(model) lists them"
                )
            )
    return [name for name in names if any(_matches(pattern, name) for pattern in patterns)]


def _matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern is a name or stands for it, or for a beginning of it that ends before a dot."""
    parts = name.split(".")
    beginnings = [".".join(parts[:size]) for size in range(1, len(parts) + 1)]
    return any(pattern == part or fnmatchcase(part, pattern) for part in beginnings)


def _parted(variables: Variables, patterns: tuple[str, ...]) -> Variables:
    """Return the chosen parameters, and in the state the others and what was there; None stands for the rest."""
    leaves, tree = jax.tree.flatten(variables.params)
    names = _names(variables.params)
    chosen = set(_chosen(patterns, names))
    own = [leaf if name in chosen else None for leaf, name in zip(leaves, names, strict=True)]
    fixed = [None if name in chosen else leaf for leaf, name in zip(leaves, names, strict=True)]
    return Variables(jax.tree.unflatten(tree, own), (jax.tree.unflatten(tree, fixed), variables.state))


def _joined(params: PyTree, fixed: PyTree) -> PyTree:
    """Return the parameters and the fixed ones in their places, one pytree again."""

    def either(own, other):
        return other if own is None else own

    return jax.tree.map(either, params, fixed, is_leaf=lambda leaf: leaf is None)
