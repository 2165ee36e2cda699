"""The door of all attacks: model, inputs, labels and keys, checked once and brought into one form.

Shapes and kinds are checked always, since they are known inside of ``jit`` too; values where there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from .._validation import array, brief, check_choice, fitting, function, number
from ..execution.devices import on_host
from ..execution.keys import Keys, example_keys
from ..execution.loops import form_of, without_numbers
from ..execution.tiles import as_pytree, on_rows
from ..networks.model import failure
from .boxes import plain_bounds
from .capabilities import GoesThroughTiles
from .norms import LENGTHS
from .threat_model import Ball, admitted, ball_around, check_floating

# How an attack is called.
CALL = "attack(model, x, y, key=key)"


class Given(NamedTuple):
    """The checked model, labels and keys of n examples, and the examples as flat rows.

    Attributes
    ----------
    model : callable pytree
        From rows (n, d) to scores (n, C); of one column of scores there are two, of which the first is zero.
    x : array (n, d)
    y : int array (n,) or float array (n, C)
    keys : keys (n,)
    ball : Ball
    epsilon : float or array (n, 1)
        The ball's radius, not rounded.
    shape : tuple of int
        That of the examples as they came.
    n_classes : int
        Number C of scores.
    """

    model: Callable
    x: jax.Array
    y: jax.Array
    keys: jax.Array
    ball: Ball
    epsilon: Any
    shape: tuple[int, ...]
    n_classes: int


def given(attack: Any, model: Any, x: Any, y: Any, key: Any) -> Given:
    """Check what an attack is called with, and bring it into one form.

    Parameters
    ----------
    attack : Attack
    model : callable
        ``x -> scores`` (n, C).
    x : array (n, ...)
    y : array (n,) of int labels, or array of real targets shaped like the scores
    key : JAX PRNG key, or one for each example (n,)

    Returns
    -------
    Given

    Raises
    ------
    TypeError
        For a model that is no function, inputs or labels that are no arrays of real numbers, integer inputs, and
        something else than a key.
    ValueError
        For scores that are not (n, C), labels that do not fit them, and inputs that are not finite, too large for
        the dtype in which is computed, or outside of the bounds.
    """
    x, y = inputs_of(attack, x), jnp.asarray(labels_of(y))
    model, n_classes = fitting_model(attack, checked_model(model), x, y, x.shape[0])
    return trusted(attack, model, x, y, example_keys(key, x.shape[0]), n_classes)


def fitting_model(attack: Any, model: Callable, x: jax.Array, y: Any, n: int) -> tuple[Callable, int]:
    """Check that labels y of n inputs, of which x are some, fit an attack and a model's scores.

    Returns
    -------
    model : callable
        Of one column of scores there are two, of which the first is zero.
    n_classes : int
    """
    scores = scores_of(model, x)
    n_classes = check_targets(y, scores, n, attack.needs_labels)
    return (with_two_columns(model), 2) if is_binary(scores.shape, y) else (model, n_classes)


def trusted(
    attack: Any,
    model: Callable,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    n_classes: int,
    epsilon: np.ndarray | None = None,
) -> Given:
    """Bring checked inputs, labels and keys of an attack into the form that it works on.

    ``epsilon`` (n,) is that of each example in place of the attack's.
    """
    shape = x.shape
    model, x = on_rows(model, x)
    radius = attack.epsilon if epsilon is None else epsilon[:, None]
    return Given(model, x, y, keys, ball_around(x, radius, attack.bounds), radius, shape, n_classes)


def inputs_of(attack: Any, x: Any) -> jax.Array:
    """Return inputs (n, ...) of an attack on the device, floating; finite and within its bounds."""
    if not isinstance(x, jax.Array):
        x = array("x", x)
        check_floating(x)
        fitting("x", x, jax.dtypes.canonicalize_dtype(x.dtype))
    check_floating(x)
    if x.ndim == 0:
        raise ValueError("x must be an array (n, ...) of n inputs, got a single number")
    if isinstance(x, Tracer) or not (isinstance(x, np.ndarray) or on_host()):
        return x
    host = np.asarray(x)
    check_finite(host)
    inside = admitted(attack, host)
    return x if inside is host and isinstance(x, jax.Array) else jnp.asarray(inside)


def check_finite(X: np.ndarray) -> None:
    """Raise ValueError if inputs (n, ...) of an attack are not all finite."""
    if not np.isfinite(X).all():
        wrong = ~np.isfinite(X.reshape(len(X), -1)).all(1)
        raise ValueError(
            f"X: inputs to be attacked must be finite, but {wrong.sum()} of {len(X)} hold NaN or infinity (the "
            f"first: row {wrong.argmax()})"
        )


def labels_of(y: Any) -> Any:
    """Return labels or real targets, on the host if they came from there; booleans are labels 0 and 1."""
    if not isinstance(y, jax.Array):
        y = array("y", y)
        if y.dtype.kind in "iu" and y.size and (y.max() > np.iinfo(np.int32).max or y.min() < 0):
            raise ValueError(f"labels must lie in 0..C-1, one for each score, got {y.min()} to {y.max()}")
        # on the host: JAX would compile a conversion for each number of labels
        y = y.astype(jax.dtypes.canonicalize_dtype(y.dtype))
    if y.dtype == bool:
        return y.astype(np.int32)
    if not jnp.issubdtype(y.dtype, jnp.integer) and not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"y must hold integer labels or real targets, got {brief(y)}")
    return y


def checked_model(model: Any) -> Callable:
    """Return a callable pytree, or raise TypeError that says how to make a model of what came."""
    if isinstance(model, type):
        raise TypeError(
            f"a model must be an instance, a function from inputs to scores (n, C), got the class "
            f"{model.__name__}; write {how_to_make(model)}"
        )
    if callable(model):
        return as_pytree(model)
    way = "give a Model, a predictor or another function"
    if hasattr(model, "fit"):
        way = "write as_model(estimator), or use robust_accuracy or perturb, which take estimators"
    elif hasattr(model, "apply"):
        way = "write Model(network, variables)"
    raise TypeError(f"a model must be a function from inputs to scores (n, C), got {brief(model)}; {way}")


def how_to_make(kind: type) -> str:
    """Return what to write in place of a class.

    >>> from ntkrobust_sk import MLP, Model, EmpiricalNTKClassifier
    >>> [how_to_make(kind) for kind in (MLP, Model, EmpiricalNTKClassifier)]
    ['Model(MLP(...), variables)', 'Model(...)', 'EmpiricalNTKClassifier(...).fit(X, y)']
    """
    if hasattr(kind, "apply") and hasattr(kind, "init"):
        return f"Model({kind.__name__}(...), variables)"
    return f"{kind.__name__}(...){'.fit(X, y)' if hasattr(kind, 'fit') else ''}"


def scores_of(model: Callable, x: jax.Array) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of a model's scores on inputs x (n, ...), found without computing them.

    Raises
    ------
    ValueError
        If the model fails on inputs of this shape, or gives something else than scores (n, C).
    TypeError
        If the scores are not real floating numbers.
    """
    form = form_of(model, x)
    return _scores(model, x) if form is None else _known_scores(form)


@lru_cache(maxsize=256)
def _known_scores(form):
    return _scores(*without_numbers(form))


def _scores(model, x):
    try:
        scores = jax.eval_shape(lambda f, z: f(z), model, x)
    except Exception as error:  # a stranger's function may raise anything
        if not x.shape[0]:
            raise ValueError(f"x holds no inputs to attack: its shape is {tuple(x.shape)}") from error
        raise failure(model, x.shape, x.dtype, error) from error
    if not isinstance(scores, jax.ShapeDtypeStruct) or scores.ndim != 2 or scores.shape[0] != x.shape[0]:
        got = jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), scores)
        raise ValueError(
            f"a model must give one array of scores ({x.shape[0]}, C) for {x.shape[0]} inputs, but on inputs of "
            f"shape {tuple(x.shape)} this one gives {brief(got)}"
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating) or not scores.shape[1]:
        raise TypeError(f"scores must be real floating numbers, one or more for each input, got {scores}")
    return scores


def is_binary(shape: tuple[int, ...], y: Any) -> bool:
    """Tell whether scores of this shape are one column, that of label 1 against label 0."""
    return shape[1] == 1 and jnp.issubdtype(y.dtype, jnp.integer)


def two_columns(scores: jax.Array) -> jax.Array:
    """Return scores (n, 1) of label 1 against label 0 as scores (n, 2) of both, the first of which is zero."""
    return jnp.concatenate([jnp.zeros_like(scores), scores], axis=1)


def with_two_columns(model: Callable) -> Callable:
    """Return the model with :func:`two_columns` of its scores."""
    return Partial(_widened, model)


def _widened(model, x):
    return two_columns(model(x))


def check_targets(y: Any, scores: jax.ShapeDtypeStruct, n: int, labels: bool = False) -> int:
    """Return the number of columns of scores (m, C), if labels (or, unless ``labels``, targets) of n inputs fit.

    Raises
    ------
    ValueError
        For another shape, and for labels, where they are known, outside of 0..C-1.
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != (n,):
            raise ValueError(
                f"y: integer labels must be of shape {(n,)}, one for each row of scores, got {tuple(y.shape)}; "
                "one-hot or other real targets must be floating"
            )
        _check_range(y, max(scores.shape[1], 2))
    elif labels:
        raise ValueError(
            f"this attack needs integer labels, got {y.dtype}; write y.astype(int), unless these are targets of a "
            "regressor"
        )
    elif y.shape != (n, scores.shape[1]):
        raise ValueError(
            f"real targets must be shaped like the scores, {(n, scores.shape[1])}, got {tuple(y.shape)}; labels "
            "must be integers, as in y.astype(int)"
        )
    return scores.shape[1]


def _check_range(y, n_classes):
    if isinstance(y, Tracer) or not len(y):
        return
    y = np.asarray(y)
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= n_classes:
        raise ValueError(
            f"labels must lie in 0..{n_classes - 1}, one for each of {n_classes} scores, got {least} to {most}"
        )


def require_attack(attack: Any, name: str = "attack") -> Any:
    """Return what can be called as ``attack(model, x, y, key=key)`` and states its ball whole or not at all.

    Raises
    ------
    TypeError
        For what cannot be called so, and for epsilon without norm and bounds.
    ValueError
        For a ball that is none.

    Examples
    --------
    >>> from ntkrobust_sk import PGD
    >>> require_attack(PGD(0.1)).epsilon
    0.1
    >>> require_attack("pgd")
    Traceback (most recent call last):
    TypeError: attack: an attack is needed, such as PGD(epsilon=8/255), got 'pgd'
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"{name}: an attack is needed, such as PGD(epsilon=8/255), got {brief(attack)}")
    function(name, attack, CALL, 3, "key")
    missing = [name for name in ("epsilon", "norm", "bounds") if not hasattr(attack, name)]
    if "epsilon" in missing:
        return attack
    if missing:
        raise TypeError(
            f"an attack that states epsilon must state norm and bounds too, but {brief(attack)} has no "
            f"{' and no '.join(missing)}"
        )
    number(f"{name}.epsilon", attack.epsilon, low=0, unit="in units of the data")
    check_choice(f"{name}.norm", attack.norm, LENGTHS)
    plain_bounds(attack.bounds)
    return attack


def require_training_attack(attack: Any, name: str = "attack") -> Any:
    """Return an attack like :func:`require_attack`, that can stand inside of a compiled step of training.

    Raises
    ------
    TypeError
        As :func:`require_attack`; for an attack that goes through all examples by itself, such as AutoAttack.
    """
    if isinstance(require_attack(attack, name), GoesThroughTiles):
        raise TypeError(
            f"{name}={brief(attack)} cannot train: {type(attack).__name__} goes through all examples by itself, "
            "and decides by what it finds, which a compiled step of training cannot. PGD, FGSM and APGD train; "
            f"measure by {type(attack).__name__} afterwards, with robust_accuracy"
        )
    return attack


def checked_examples(attack: Any, found: Any, x: Any) -> Any:
    """Return what an attack gave for inputs x (n, ...), if it is an array of real numbers of the same shape."""
    is_array = isinstance(found, np.ndarray | jax.Array) and not isinstance(found, np.ma.MaskedArray)
    if not is_array or not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(
            f"an attack must return an array of floating numbers shaped like x, got {brief(found)} from "
            f"{brief(attack)}"
        )
    if found.shape != x.shape:
        raise ValueError(
            f"an attack must return examples shaped like x, {tuple(x.shape)}, got {tuple(found.shape)} from "
            f"{brief(attack)}"
        )
    return found


def keys_for(attack: Any, keys: Keys, at: np.ndarray) -> jax.Array:
    """Return the keys of the rows ``at`` for an attack that takes one each, otherwise the first row's key."""
    return keys[at if getattr(attack, "one_key_each", False) else at[0]].on_device()
