"""Models applied to all rows, in tiles of one shape, so that nothing is compiled for a number of rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .convolutions import with_fast_convolutions
from .devices import on_host
from .loops import form_of, without_numbers

# In place of a position among the classes, where a model gives no numbers.
NO_ANSWER = -1


def as_pytree(model: Callable) -> Callable:
    """Return a callable that may be an argument of a compiled function: itself, or a bare function wrapped."""
    return model if jax.tree.structure(model) != jax.tree.structure(0) else Partial(model)


@dataclass(frozen=True)
class Shaped:
    """A model's inputs, given as flat rows, in their shape."""

    shape: tuple[int, ...]

    def __call__(self, model: Callable, x: jax.Array) -> jax.Array:
        """Return the scores of rows x (n, d)."""
        return model(x.reshape(len(x), *self.shape))


def on_rows(model: Callable, x: jax.Array) -> tuple[Callable, jax.Array]:
    """Return a model of inputs ``x`` (n, ...) as one of flat rows, and ``x`` as such (n, d).

    XLA sums over the axes of images one by one on a CPU, the last of which has one or three entries: whatever an
    attack sums over all features takes several times longer there than over one axis.
    """
    if x.ndim == 2:
        return model, x
    return Partial(Shaped(x.shape[1:]), model), x.reshape(len(x), math.prod(x.shape[1:]))


def evaluate(model: Callable, X: np.ndarray, rows: int) -> np.ndarray:
    """Return the scores (n, T) of a model over X (n, ...), in tiles of exactly ``rows`` rows."""
    model = as_pytree(model)
    tiles = [X[start : start + rows] for start in range(0, len(X), rows)]
    scores = one_ahead(_call(model, pad_rows(tile, rows)) for tile in tiles)
    return np.concatenate([np.asarray(found)[: len(tile)] for found, tile in zip(scores, tiles, strict=True)])


def movable(model: Callable, X: np.ndarray, dtype: Any, rows: int) -> np.ndarray:
    """Return inputs (n, ...) as attacks move them: floating, if a model takes integers and floats for the same.

    Parameters
    ----------
    model : callable
    X : array (n, ...)
    dtype : dtype
        Floating; that of the model's parameters.
    rows : int
        So many rows are compared, first of all those whose integers are no numbers of this dtype.

    Raises
    ------
    TypeError
        If the model takes integers alone, or gives other scores to the same numbers as floats.

    Examples
    --------
    >>> movable(lambda x: x * 2.0, np.array([[1, 2]]), np.float32, 2)
    array([[1., 2.]], dtype=float32)
    >>> movable(lambda x: jnp.eye(3)[x[:, 0]], np.array([[1], [2]]), np.float32, 2)
    Traceback (most recent call last):
    TypeError: attacks move inputs by less than one, but the model takes integers alone...
    """
    if X.dtype.kind not in "iu":
        return X
    found = X.astype(dtype)
    kept = (found.astype(np.float64) == X).reshape(len(X), -1).all(1)
    looked_at = np.argsort(kept, kind="stable")[:rows]
    expected = evaluate(model, X[looked_at], rows).astype(np.float64)
    try:
        scores = evaluate(model, found[looked_at], rows).astype(np.float64)
    except (TypeError, ValueError, LookupError) as error:
        raise TypeError(
            f"attacks move inputs by less than one, but the model takes integers alone: {error}"
        ) from error
    within = float(jnp.finfo(dtype).eps) ** 0.5 * np.nanmax(np.abs(expected), initial=0)
    far = np.nonzero(~np.isclose(scores, expected, rtol=0, atol=within, equal_nan=True).all(1))[0]
    if len(far):
        raise TypeError(
            "attacks move inputs by less than one, as floating numbers, but the model's scores of X as floats are "
            f"not those of X as integers (row {looked_at[far[0]]}): it looks something up, or divides integers "
            "only. Give X as floats if it is numbers that the model takes"
        )
    return found


def answers(model: Callable, X: np.ndarray, rows: int) -> np.ndarray:
    """Return the positions (n,) of a model's highest scores over X (n, ...); ``NO_ANSWER`` where one is NaN."""
    return positions_of_best(evaluate(model, X, rows))


def positions_of_best(scores: np.ndarray) -> np.ndarray:
    """Return the positions (n,) of the highest of scores (n, C); ``NO_ANSWER`` and a warning where one is NaN.

    >>> positions_of_best(np.array([[0.0, 2.0], [3.0, 1.0]])).tolist()
    [1, 0]
    """
    lost = np.isnan(scores).any(1)
    if lost.any():
        _warn_of_lost(lost, "these count as answered wrongly")
    return np.where(lost, NO_ANSWER, scores.argmax(1))


def evaluate_attacked(model: Callable, X_adv: np.ndarray, X: np.ndarray, rows: int) -> np.ndarray:
    """Return scores (n, T) of adversarial examples; where they are NaN, of the inputs, with a warning."""
    scores = evaluate(model, X_adv, rows)
    lost = np.isnan(scores).any(1)
    if lost.any():
        _warn_of_lost(lost, "there the score of the input counts, as if it had not been attacked")
        scores[lost] = evaluate(model, X[lost], rows)
    return scores


def _warn_of_lost(lost, what):
    warnings.warn(
        f"the model's scores are NaN at {lost.sum()} of {len(lost)} inputs (the first: row {lost.argmax()}); "
        f"{what}",
        UserWarning,
        stacklevel=4,
    )


def one_ahead(results: Iterable) -> Iterator:
    """Yield every result one step late, so that the device computes the next one while the host reads this one."""
    results = iter(results)
    waiting = list(islice(results, 1))
    for result in results:
        yield from waiting
        waiting = [result]
    yield from waiting


@jax.jit
def _call(model, x):
    return with_fast_convolutions(model)(x)


def pad_rows(X: Any, rows: int) -> np.ndarray:
    """Return ``X`` (n, ...) with its first row repeated until there are ``rows``.

    >>> pad_rows(np.array([[1.0], [2.0]]), 4).tolist()
    [[1.0], [2.0], [1.0], [1.0]]
    """
    missing = rows - len(X)
    return X if missing == 0 else np.concatenate([X, np.repeat(X[:1], missing, axis=0)])


def tile_rows(n: int, sizes: Sequence[int]) -> int:
    """Return the rows of a tile for n rows, one of some sizes in rising order, for each of which is compiled.

    Tiles are as few as possible, and then as small as the sizes let them be.

    >>> [tile_rows(n, (50, 100, 200, 300, 400)) for n in (1, 100, 300, 450, 797, 10_000)]
    [50, 100, 300, 300, 400, 400]
    """
    n_tiles = max(-(-n // sizes[-1]), 1)
    return next(rows for rows in sizes if rows * n_tiles >= n)


# Rows evaluated or attacked at once by a network; fixed, so that no answer depends on the other rows.
NETWORK_ROWS = 128
# On an accelerator: with fewer, small networks wait for the host to launch their programs.
ROWS_ACCELERATOR = 512
# Rows evaluated or attacked at once by a kernel machine, which takes more working space for each than a network.
# Divides the numbers of examples that people choose; time per row is the same from 30 rows on.
MACHINE_ROWS = 50


def network_rows() -> int:
    """Return the rows of a tile that a network takes on the devices at hand."""
    return NETWORK_ROWS if on_host() else ROWS_ACCELERATOR


def machine_rows(model: Callable, input_shape: tuple[int, ...], dtype: Any, memory: int) -> int:
    """Return the rows of a tile that a kernel machine takes on the devices at hand.

    On a CPU these are ``MACHINE_ROWS``. An accelerator takes up to as many as for networks, if what a gradient
    reads and writes for them, a bound of what it keeps, is within ``memory`` bytes.

    >>> machine_rows(lambda x: x.sum(1, keepdims=True), (3,), np.float32, 2**31)
    50
    """
    if on_host():
        return MACHINE_ROWS
    model, x = as_pytree(model), jax.ShapeDtypeStruct((1, *input_shape), dtype)
    form = form_of(model, x)
    per_row = _bytes_per_row(model, x) if form is None else _known_bytes_per_row(form)
    fitting = int(memory / per_row)
    return max(MACHINE_ROWS, min(ROWS_ACCELERATOR, 2 ** int(math.log2(max(fitting, 1)))))


# a machine is traced and lowered for it, which takes longer than its answer
@lru_cache(maxsize=256)
def _known_bytes_per_row(form):
    return _bytes_per_row(*without_numbers(form))


def _bytes_per_row(model, x) -> float:
    """Return what a further row adds to a gradient's bytes, at least one; infinity where it is not known."""
    one, two = (_gradient_bytes(model, (rows, *x.shape[1:]), x.dtype) for rows in (1, 2))
    return max(two - one, 1.0) if math.isfinite(two) else math.inf


def _gradient_bytes(model, shape, dtype) -> float:
    """Return the bytes that a gradient at inputs of a shape reads and writes, before any fusion."""

    def score(x, model):
        return model(x).sum()

    # integers have no gradient
    program = jax.jit(jax.grad(score) if jnp.issubdtype(dtype, jnp.floating) else score)
    counted = program.lower(jax.ShapeDtypeStruct(shape, dtype), model).cost_analysis() or {}
    return counted.get("bytes accessed", math.inf)
