"""Gram matrices in tiles of fixed shape, within a stated amount of memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from .kernels import resolve_kernel
from .networks import Model, params_dtype

# Rows of a tile where memory allows it: enough for the matrix products to run near their peak.
TILE_ROWS = {"cpu": 64}
TILE_ROWS_ACCELERATOR = 512
# Features are formed from cotangents and patches; while a tile is computed it needs a few times its own size.
WORKING_COPIES = 3


def gram(kernel: str | Callable, model: Model, X, Y=None, *, memory: str | int = "2GiB", progress: bool = False):
    """Gram matrix of a kernel over inputs.

    Every tile has the same shape, the last ones padded, so an entry never depends on the other rows of the
    call. The features of a row are computed once for each panel of rows that fits in ``memory``, and only
    tiles on and above the diagonal are computed when ``Y`` is None.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        A kernel of :mod:`ntkrobust_sk.kernels`, or any hashable ``kernel(model, x1, x2) -> block`` whose
        block has axes (n, m, ...).
    model : Model
    X : array (n, ...)
    Y : array (m, ...), default=None
        The columns' inputs; None means X, and gives an exactly symmetric matrix.
    memory : str or int, default="2GiB"
        Budget in bytes for features and working space, not counting the result.
    progress : bool, default=False
        Show a progress bar over tiles.

    Returns
    -------
    array (n, m), (n, m, C) or (n, m, C, C)
        NumPy array on a CPU; on an accelerator the JAX array stays on the device.

    Raises
    ------
    ValueError
        If the inputs' shapes do not fit each other.
    MemoryError
        If not even a tile of one row fits in ``memory``.
    FloatingPointError
        If the result is not finite.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> K = gram("trace", model, jax.numpy.eye(4))
    >>> K.shape, bool((K == K.T).all())
    ((4, 4), True)
    """
    kernel = resolve_kernel(kernel)
    X = _inputs("X", X, model)
    Y = None if Y is None else _inputs("Y", Y, model)
    if Y is not None and Y.shape[1:] != X.shape[1:]:
        raise ValueError(f"X and Y must hold inputs of one shape, got {X.shape[1:]} and {Y.shape[1:]}")
    rows, panel = plan_tiles(kernel, model, X.shape[1:], parse_memory(memory))
    with jax.default_matmul_precision("highest"):
        result = _fill(kernel, model, X, Y, rows, panel, progress)
    if not bool(jnp.isfinite(result).all() if isinstance(result, jax.Array) else np.isfinite(result).all()):
        raise FloatingPointError(
            f"the Gram matrix of {kernel!r} has entries that are not finite; look for overflow in the "
            "network's parameters or inputs"
        )
    return result


def _fill(kernel, model, X, Y, rows, panel, progress):
    symmetric = Y is None
    x_tiles = _tiles(X, rows)
    y_tiles = x_tiles if symmetric else _tiles(Y, rows)
    n, m = len(X), len(X if symmetric else Y)
    total = len(x_tiles) * (len(x_tiles) + 1) // 2 if symmetric else len(x_tiles) * len(y_tiles)
    result = None
    with tqdm(total=total, desc="Gram tiles", disable=not progress, leave=False) as bar:
        for start in range(0, len(x_tiles), panel):
            rows_of_panel = range(start, min(start + panel, len(x_tiles)))
            left = {i: tile_features(kernel, model, x_tiles[i]) for i in rows_of_panel}
            for j in range(start if symmetric else 0, len(y_tiles)):
                right = left.get(j) if symmetric else None
                right = tile_features(kernel, model, y_tiles[j]) if right is None else right
                for i in (i for i in rows_of_panel if not symmetric or i <= j):
                    block = _contract(kernel, model, left[i], right, symmetrize=symmetric and i == j)
                    if result is None:
                        result = _empty((n, m, *block.shape[2:]), block)
                    result = _write(result, block, i * rows, j * rows)
                    if symmetric and i < j:
                        result = _write(result, _transpose(block), j * rows, i * rows)
                    bar.update()
    return result


@partial(jax.jit, static_argnums=0)
def tile_features(kernel, model, x):
    """What one side of the kernel needs of a tile: its features, or the inputs when it has none."""
    return kernel.features(model, x) if hasattr(kernel, "features") else x


@partial(jax.jit, static_argnums=0, static_argnames="symmetrize")
def _contract(kernel, model, left, right, *, symmetrize):
    if hasattr(kernel, "contract"):
        block = kernel.contract(left, right)
    else:
        block = kernel(model, left, right)
    _check_block(kernel, jnp.shape(block), len(jax.tree.leaves(left)[0]), len(jax.tree.leaves(right)[0]))
    return (block + _transpose(block)) / 2 if symmetrize else block


def _check_block(kernel, shape, n, m):
    if shape[:2] != (n, m) or len(shape) > 4 or len(set(shape[2:])) > 1:
        raise ValueError(
            f"a kernel must return a block (n, m), (n, m, C) or (n, m, C, C), got {shape} for n = {n} and m = {m} "
            f"from {kernel!r}"
        )


def _transpose(block):
    """The block of (x', x): examples swapped, and classes swapped where both are there."""
    return block.transpose((1, 0, *reversed(range(2, block.ndim)))) if block.ndim == 4 else block.swapaxes(0, 1)


def _empty(shape, block):
    on_cpu = next(iter(block.devices())).platform == "cpu"
    return np.empty(shape, block.dtype) if on_cpu else jnp.zeros(shape, block.dtype)


def _write(result, block, i, j):
    """Place what of the block lies inside the result."""
    # slicing a JAX array would compile anew for every ragged end
    block = np.asarray(block) if isinstance(result, np.ndarray) else block
    block = block[: result.shape[0] - i, : result.shape[1] - j]
    if isinstance(result, np.ndarray):
        result[i : i + block.shape[0], j : j + block.shape[1]] = block
        return result
    return _place(result, block, i, j)


@partial(jax.jit, donate_argnums=0)
def _place(result, block, i, j):
    return jax.lax.dynamic_update_slice(result, block, (i, j) + (0,) * (result.ndim - 2))


def _tiles(X, rows):
    """Tiles of exactly ``rows`` rows, the last one filled up with its own first row."""
    return [pad_rows(X[start : start + rows], rows) for start in range(0, len(X), rows)]


def pad_rows(X, rows: int) -> np.ndarray:
    """``X`` (n, ...) with its first row repeated until there are ``rows``.

    >>> pad_rows(np.array([[1.0], [2.0]]), 4).tolist()
    [[1.0], [2.0], [1.0], [1.0]]
    """
    missing = rows - len(X)
    return X if missing == 0 else np.concatenate([X, np.repeat(X[:1], missing, axis=0)])


def plan_tiles(kernel, model: Model, input_shape: tuple[int, ...], memory: int) -> tuple[int, int]:
    """Rows of a tile, and tiles of a panel whose features are kept, within ``memory`` bytes.

    Depends on network and kernel, never on the number of rows, so that neither does any entry's value.
    """
    example = jax.ShapeDtypeStruct((1, *input_shape), params_dtype(model.variables.params))
    features = jax.eval_shape(partial(tile_features, kernel), model, example)
    row_bytes = sum(math.prod(f.shape) * f.dtype.itemsize for f in jax.tree.leaves(features))
    most = memory // ((2 + WORKING_COPIES) * row_bytes)
    if most < 1:
        raise MemoryError(
            f"one row of tangent features takes {row_bytes / 2**20:,.1f} MiB and a tile a few times that, more "
            f"than the budget of {memory / 2**20:,.1f} MiB; give memory={(2 + WORKING_COPIES) * row_bytes:,} "
            "bytes or more, or take a kernel with fewer features (kernel='pseudo')"
        )
    platform = jax.default_backend()
    rows = min(TILE_ROWS.get(platform, TILE_ROWS_ACCELERATOR), 2 ** int(math.log2(most)))
    panel = memory // (rows * row_bytes) - 1 - WORKING_COPIES
    return rows, max(1, panel)


def parse_memory(memory: str | int) -> int:
    """Bytes of "512MiB", "2GiB", "1.5 GB" or a plain number.

    >>> parse_memory("2GiB"), parse_memory(1000)
    (2147483648, 1000)
    """
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kKMGT]i?)?B\s*", memory)
        if match is None:
            raise ValueError(f"memory must be bytes or a string such as '2GiB' or '500MB', got {memory!r}")
        number, prefix = match.groups()
        base = 1024 if prefix and prefix.endswith("i") else 1000
        memory = float(number) * base ** (" KMGT".index(prefix[0].upper()) if prefix else 0)
    if not memory > 0:
        raise ValueError(f"memory must be positive, got {memory!r}")
    return int(memory)


def _inputs(name, X, model) -> np.ndarray:
    X = np.asarray(X, dtype=params_dtype(model.variables.params))
    if X.ndim < 2 or X.size == 0:
        raise ValueError(f"{name} must hold at least one input, of shape (n, ...), got shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or infinity; the kernel needs finite inputs")
    return X
