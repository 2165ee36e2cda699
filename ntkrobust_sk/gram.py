"""Gram matrices in tiles of fixed shape, within a stated amount of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from .kernels import TangentKernel, resolve_kernel
from .networks import Model, params_dtype
from .plan import Plan, features_of, make_plan, parse_memory

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64


def gram(
    kernel: str | Callable,
    model: Model,
    X,
    Y=None,
    *,
    memory: str | int = "2GiB",
    dtype=None,
    by_layer: bool = False,
    plan: Plan | bool = False,
    progress: bool = False,
):
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
        Budget in bytes, on each device, for features and working space, not counting the result.
    dtype : floating dtype, default=None
        In which inner products are accumulated and returned; None is that of the parameters. With float64,
        features stay in the parameters' precision.
    by_layer : bool, default=False
        Return one matrix for each parameter array; the kernel is their sum.
    plan : Plan or bool, default=False
        True prints the plan before it is carried out; a Plan takes the place of one made for ``memory``.
    progress : bool, default=False
        Show a progress bar over tiles.

    Returns
    -------
    array (n, m), (n, m, C) or (n, m, C, C), or a dict of them
        NumPy array on a CPU; on an accelerator the JAX array stays on the device. ``by_layer`` gives a dict
        from the parameter's path, such as ``"['head']['kernel']"``, to its matrix.

    Raises
    ------
    ValueError
        If the inputs' shapes do not fit each other.
    MemoryError
        If not even two tiles of one row fit in ``memory``.
    FloatingPointError
        If the result is not finite.
    ArithmeticError
        If the gradients read from the network's structure are not those of a plain backward pass.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> K = gram("trace", model, jax.numpy.eye(4))
    >>> K.shape, bool((K == K.T).all())
    ((4, 4), True)
    >>> layers = gram("trace", model, jax.numpy.eye(4), by_layer=True)
    >>> bool(abs(sum(layers.values()) - K).max() < 1e-5 * K.max())
    True
    """
    kernel = resolve_kernel(kernel)
    X = _inputs("X", X, model)
    Y = None if Y is None else _inputs("Y", Y, model)
    if Y is not None and Y.shape[1:] != X.shape[1:]:
        raise ValueError(f"X and Y must hold inputs of one shape, got {X.shape[1:]} and {Y.shape[1:]}")
    if by_layer and not isinstance(kernel, TangentKernel):
        raise ValueError(f"by_layer needs a kernel made of tangent features, got {kernel!r}")
    shown = plan is True
    if not isinstance(plan, Plan):
        plan = make_plan(kernel, model, X.shape[1:], parse_memory(memory))
    if shown:
        print(plan)
    tiles = all_tiles(plan.rows, len(X), None if Y is None else len(Y))
    size, result = (len(X), len(X if Y is None else Y)), None
    with tqdm(total=len(tiles), desc="Gram tiles", disable=not progress, leave=False) as bar:
        for panel in by_panel(tiles, plan.panel):
            for (i, j), blocks in compute_tiles(kernel, model, X, Y, panel, plan, dtype, by_layer):
                result = result or [_empty(size, block) for block in blocks]
                for k, block in enumerate(blocks):
                    result[k] = _write(result[k], block, i * plan.rows, j * plan.rows)
                    if Y is None and i < j:
                        result[k] = _write(result[k], _transpose(block), j * plan.rows, i * plan.rows)
                bar.update()
    if not all(bool((np if isinstance(K, np.ndarray) else jnp).isfinite(K).all()) for K in result):
        raise FloatingPointError(
            f"the Gram matrix of {kernel!r} has entries that are not finite; look for overflow in the "
            "network's parameters or inputs"
        )
    if not by_layer:
        return result[0]
    paths = jax.tree_util.tree_leaves_with_path(model.variables.params)
    return {jax.tree_util.keystr(path): K for (path, _), K in zip(paths, result, strict=True)}


def all_tiles(rows: int, n: int, m: int | None) -> list[tuple[int, int]]:
    """Indices (i, j) of the tiles of an (n, m) matrix, or of the upper half when it is symmetric (m None)."""
    height, width = -(-n // rows), -(-(n if m is None else m) // rows)
    return [(i, j) for i in range(height) for j in range(0 if m is not None else i, width)]


def by_panel(tiles: list[tuple[int, int]], panel: int) -> list[list[tuple[int, int]]]:
    """The tiles of each panel of rows."""
    panels = {}
    for i, j in tiles:
        panels.setdefault(i // panel, []).append((i, j))
    return list(panels.values())


def compute_tiles(
    kernel, model: Model, X, Y, tiles: list[tuple[int, int]], plan: Plan, dtype=None, by_layer=False
) -> Iterator[tuple[tuple[int, int], list]]:
    """Tiles (i, j), each with its blocks: one for each parameter array, or one in all.

    The rows' features are kept, the columns' are computed one tile after the other. Where the seeds take
    several passes, all tiles are finished in the last one.

    Parameters
    ----------
    kernel, model, dtype, by_layer
        As for :func:`gram`.
    X : array (n, ...)
    Y : array (m, ...) or None
    tiles : list of (i, j)
    plan : Plan
    """
    on_host = isinstance(kernel, TangentKernel) and len(plan.devices) == 1 and plan.devices[0].platform == "cpu"
    contract = partial(_contract if on_host else _contract_compiled, kernel, model, dtype=dtype, by_layer=by_layer)

    def features(inputs, tile, start):
        return features_of(kernel, model, plan, inputs, tile, start, on_host=on_host)

    rows = sorted({i for i, _ in tiles})
    columns = {}
    for i, j in tiles:
        columns.setdefault(j, []).append(i)
    unfinished = {}
    for start in range(0, plan.n_seeds, plan.seeds):
        left = {i: features(X, i, start) for i in rows}
        for j, partners in columns.items():
            right = left[j] if Y is None and j in left else features(X if Y is None else Y, j, start)
            for i in partners:
                blocks = contract(left[i], right, symmetrize=Y is None and i == j)
                if kernel_rank(kernel) == 3:
                    # the last pass may have seeds to spare
                    blocks = [block[:, :, : plan.n_seeds - start] for block in blocks]
                if (i, j) in unfinished:
                    blocks = _together(kernel, unfinished.pop((i, j)), blocks)
                if start + plan.seeds < plan.n_seeds:
                    unfinished[i, j] = blocks
                else:
                    yield (i, j), blocks
        # not to hold two passes' features at once
        left = right = None


def kernel_rank(kernel) -> int | None:
    """The rank that a tangent kernel states."""
    return kernel.rank if isinstance(kernel, TangentKernel) else None


def _together(kernel, before, blocks):
    """Blocks of two passes: summed over seeds, or put side by side where the kernel keeps them apart."""
    if kernel_rank(kernel) == 2:
        return [a + b for a, b in zip(before, blocks, strict=True)]
    xp = np if isinstance(blocks[0], np.ndarray) else jnp
    return [xp.concatenate([a, b], axis=2) for a, b in zip(before, blocks, strict=True)]


def _contract(kernel, model, left, right, *, dtype, by_layer, symmetrize):
    """The blocks of two tiles, given what :func:`features_of` computed of each."""
    if not isinstance(kernel, TangentKernel):
        with jax.default_matmul_precision("highest"):
            blocks = [kernel(model, left, right)]
        _check_block(kernel, jnp.shape(blocks[0]), len(left), len(right))
        blocks = blocks if dtype is None else [blocks[0].astype(dtype)]
    else:
        blocks = kernel.contract_layers(left, right, dtype)
        blocks = blocks if by_layer else [sum(blocks)]
    return [(block + _transpose(block)) / 2 for block in blocks] if symmetrize else blocks


@partial(jax.jit, static_argnums=0, static_argnames=("dtype", "by_layer", "symmetrize"))
def _traced(kernel, model, left, right, dtype, by_layer, symmetrize):
    # the rows stay where they are, on whichever device, and the columns go to all of them
    return _contract(kernel, model, left, right, dtype=dtype, by_layer=by_layer, symmetrize=symmetrize)


def _contract_compiled(kernel, model, left, right, *, dtype, by_layer, symmetrize):
    if dtype is not None and jnp.dtype(dtype) == jnp.float64:
        with enable_x64(True):
            return _traced(kernel, model, left, right, "float64", by_layer, symmetrize)
    return _traced(kernel, model, left, right, dtype, by_layer, symmetrize)


def _check_block(kernel, shape, n, m):
    if shape[:2] != (n, m) or len(shape) > 4 or len(set(shape[2:])) > 1:
        raise ValueError(
            f"a kernel must return a block (n, m), (n, m, C) or (n, m, C, C), got {shape} for n = {n} and m = {m} "
            f"from {kernel!r}"
        )


def _transpose(block):
    """The block of (x', x): examples swapped, and classes swapped where both are there."""
    return block.transpose((1, 0, *reversed(range(2, block.ndim)))) if block.ndim == 4 else block.swapaxes(0, 1)


def _empty(size, block):
    shape = (*size, *block.shape[2:])
    on_cpu = isinstance(block, np.ndarray) or next(iter(block.devices())).platform == "cpu"
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


def _inputs(name, X, model) -> np.ndarray:
    X = np.asarray(X, dtype=params_dtype(model.variables.params))
    if X.ndim < 2 or X.size == 0:
        raise ValueError(f"{name} must hold at least one input, of shape (n, ...), got shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or infinity; the kernel needs finite inputs")
    return X
