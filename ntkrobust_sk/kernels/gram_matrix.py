"""Gram matrices in tiles of fixed shape, within a stated amount of memory."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from tqdm.auto import tqdm

from .._validation import brief, flag, floating, is_finite, job_count
from ..datasets.items import DataSet, Rows, is_data_set
from ..execution.devices import on_host
from ..execution.interrupts import heard
from ..execution.memory import parse_memory
from ..execution.precision import DIGITS
from ..execution.tiles import one_ahead
from ..networks.inputs import all_finite, host_inputs, params_dtype
from ..networks.model import Model, check_model
from .abstract_features import AbstractFeatures, abstract_features
from .blocks import empty_matrix, with_block
from .edited_functions import told_apart
from .fingerprint import fingerprint
from .ntk import Kernel, resolve_kernel
from .plan import Plan, make_plan
from .room import require_device_memory, require_host_room
from .store import GramStore, open_store, stored_sizes
from .tiles import TileJob, compute_tiles, own_digits, own_precision, transpose, verified_meanwhile
from .whole import bind, call_key, is_small, matrix_again, small_matrix
from .without_model import model_for, require_numbers, where_to_look
from .workers import count_workers, finished_tiles


@heard()
def gram(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike | DataSet,
    Y: ArrayLike | DataSet | None = None,
    *,
    memory: str | int = "2GiB",
    dtype: DTypeLike | None = None,
    by_layer: bool = False,
    store: str | os.PathLike | None = None,
    n_jobs: int | None = None,
    params: str | Sequence[str] | None = None,
    plan: Plan | bool = False,
    progress: bool = False,
) -> Any:
    """Compute the Gram matrix of a kernel over inputs.

    Every tile has the same shape, the last ones padded, so an entry's value does not depend on the other rows
    of the call (its last bits depend on its place in the tile). The features of a row are computed once for
    each panel of rows that fits in ``memory``, and only tiles on and above the diagonal are computed when ``Y``
    is None. On a CPU a matrix of few rows with few features is computed as a whole, by one program that takes rows
    and columns padded to a power of two.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        A kernel of :mod:`ntkrobust_sk.kernels`, or any hashable ``kernel(model, x1, x2) -> block`` whose
        block has axes (n, m, ...). Its code is read in each call, with all that it refers to: edited, or with
        another value in a field, it is another kernel. What it calls through ``jax.jit`` or ``jax.lax.scan`` is
        what JAX has kept, until that function is defined again.
    model : Model
        Or None for a kernel that is a function of the inputs alone, such as :class:`InfiniteNTK`; one of your own
        says so by an attribute ``needs_model = False``.
    X : array (n, ...) or data set
        A data set is any object with ``len`` that gives an item by its number: an input, ``(input, label)``, or a
        dict, as for ``load_splits``, with arrays taken as they are. It is read tile by tile.
    Y : array (m, ...) or data set, default=None
        The columns' inputs; None means X, and gives an exactly symmetric matrix.
    memory : str or int, default="2GiB"
        Budget in bytes, on each device, for features and working space, not counting the result. First calls
        take some 100 MiB more while their programs are compiled, and small budgets, under 64 MiB, are passed by
        some 30 MiB also later.
    dtype : "float32", "float64", "tf32" or "bf16", default=None
        In which inner products are accumulated and returned, also as a NumPy or JAX dtype; None is that of the
        parameters, float32 where these are in half precision, and the precision of a :class:`MixedPrecision`
        network. With float64, features stay in the parameters' precision. "tf32" and "bf16" round features to 10
        and 7 binary digits and accumulate in float32: for GPUs, which have units for such products, and keep
        "bf16" features in half of the memory. A CPU gives the same numbers, for no gain. docs/benchmarks.md has
        the error.
    by_layer : bool, default=False
        Return one matrix for each parameter array; the kernel is their sum.
    store : str or os.PathLike, default=None
        Folder of a zarr array into which tiles are written as they finish. Called again with the same
        arguments, after whatever stop, it goes on from there; with more rows in X (or Y) it computes the new
        ones. A store that is there must belong to the same function, parameters and inputs: a few of its entries
        are computed again. See :mod:`ntkrobust_sk.kernels.store`;
        ``kernels.read_gram`` reads a finished one as it is.
    n_jobs : int, default=None
        Worker processes, through joblib: None is this process, or what ``joblib.parallel_config`` says (with
        ``backend="dask"`` a Dask cluster). Each worker takes ``memory``.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names, or patterns such as "layers.3.*", of those that
        :func:`~ntkrobust_sk.parameter_names` lists. Of the others none are formed. None is all of them.
    plan : Plan or bool, default=False
        True prints the plan before it is carried out; a Plan takes the place of one made for ``memory``.
    progress : bool, default=False
        Show a progress bar over tiles, with rate and time left.

    Returns
    -------
    array (n, m), (n, m, C) or (n, m, C, C), or a dict of them
        NumPy array on a CPU; on an accelerator the JAX array stays on the device. ``by_layer`` gives a dict
        from the parameter's path, such as ``"['head']['kernel']"``, to its matrix.

    Raises
    ------
    ValueError
        If the inputs' shapes do not fit each other, for ``params`` that no parameter is called, for a dtype that
        is none of these, and for "tf32" or "bf16" with parameters in double precision or a kernel without tangent
        features.
    MemoryError
        If not even two tiles of one row fit in ``memory``; or if a GPU has less than these and the result take.
    FloatingPointError
        If the result is not finite.
    StoreMismatchError, DamagedTileError
        If the store belongs to something else, or one of its tiles is damaged, or in another's place.
    BlockingIOError
        If another process or thread is at work in the store.
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
    is_plain = by_layer is plan is progress is False and store is n_jobs is params is None
    key = call_key(kernel, X, Y, memory, dtype) if is_plain else None
    if key is not None and (K := matrix_again(key, model, X, Y)) is not None:
        return _finite(kernel, K)
    kernel, model, X, Y = checked_sides(kernel, model, X, Y, params=params, read_later=True)
    memory = parse_memory(memory)
    _check_options(by_layer=by_layer, progress=progress, n_jobs=n_jobs, plan=plan)
    if by_layer and not kernel.is_tangent:
        raise ValueError(f"by_layer needs a kernel made of tangent features, got {kernel!r}")
    dtype = _checked_dtype(dtype, kernel, model)
    if by_layer and store is not None:
        raise ValueError("a store holds one matrix: by_layer=True cannot be combined with it")
    if not (given := isinstance(plan, Plan)):
        shown = plan
        # a store may grow, and keeps the tiles that it has
        n_rows = max(len(X), 0 if Y is None else len(Y)) if store is None else None
        sizes = None if store is None else stored_sizes(store)
        shape, own = X.shape[1:], X.dtype
        with verified_meanwhile(kernel, model, X):
            plan = make_plan(kernel, model, shape, memory, n_rows=n_rows, sizes=sizes, dtype=dtype, inputs=own)
        if shown:
            print(plan)
    elif plan.n_directions != (n := abstract_features(kernel, model, X.shape[1:], X.dtype).n_directions):
        raise ValueError(
            f"the plan is for {plan.n_directions} directions of output space, but {kernel!r} of this network has "
            f"{n}; make it with the same kernel and model"
        )
    job = TileJob(kernel, model, X, Y, plan, dtype, by_layer)
    if count_workers(n_jobs) == 1:
        require_device_memory(job, result=store is None)
    if store is not None or on_host(plan.devices):
        require_host_room(job)
    if store is not None:
        return _fill_store(store, job, n_jobs, progress).read()
    # a plan that was given is carried out
    if not given and is_small(job):
        K = _finite(kernel, small_matrix(job))
        if key is not None:
            bind(job, key)
        return K
    result = _assembled(job, n_jobs, progress)
    if not by_layer:
        return result[0]
    paths = jax.tree_util.tree_leaves_with_path(model.variables.params)
    return {jax.tree_util.keystr(path): K for (path, _), K in zip(paths, result, strict=True)}


@heard()
def gram_of(job: TileJob, progress: bool = False) -> Any:
    """Compute the Gram matrix of a job whose arguments are checked; see :func:`gram`."""
    return _assembled(job, None, progress)[0]


def _assembled(job: TileJob, n_jobs, progress) -> list:
    """Return the finished matrices, one for each parameter array or one in all."""
    tiles, rows, result = job.tiles(), job.plan.rows, []
    finished = finished_tiles(job, tiles, n_jobs)
    for (i, j), blocks in tqdm(finished, "Gram tiles", len(tiles), disable=not progress, leave=False, unit="tile"):
        with own_precision(blocks[0]):
            result = result or [empty_matrix(job.shape, block) for block in blocks]
            for k, block in enumerate(blocks):
                result[k] = with_block(result[k], block, i * rows, j * rows, job.Y is None and i < j)
    return [_finite(job.kernel, K) for K in result]


def checked_sides(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike | DataSet,
    Y: ArrayLike | DataSet | None,
    names: tuple[str, str] = ("X", "Y"),
    params: str | Sequence[str] | None = None,
    read_later: bool = False,
) -> tuple[Kernel, Model, np.ndarray, np.ndarray | None]:
    """Return kernel, model, and the inputs of rows and columns in NumPy, if model and kernel take them.

    With ``read_later`` those of a data set are :class:`Rows`, which are arrays where they are indexed.
    """
    of_rows, of_columns = names
    kernel = resolve_kernel(kernel)
    require_numbers(kernel, {"model": model, of_rows: X, of_columns: Y})
    model = model_for(kernel, model, params)
    X = _inputs(of_rows, X, model, read_later)
    Y = None if Y is None else _inputs(of_columns, Y, model, read_later)
    if Y is not None and Y.shape[1:] != X.shape[1:]:
        way = f"; write {of_columns}[None] for a single one" if Y.shape == X.shape[1:] else ""
        raise ValueError(
            f"{of_rows} and {of_columns} must hold inputs of one shape, got {X.shape[1:]} and {Y.shape[1:]}{way}"
        )
    if kernel.is_tangent:
        for name, x in ((of_rows, X), (of_columns, Y)):
            if x is not None and (x is X or x.dtype != X.dtype):
                _require_logits(abstract_features(kernel, model, x.shape[1:], x.dtype), name)
    return told_apart(kernel, model, X.shape[1:], X.dtype), model, X, Y


@lru_cache(maxsize=256)
def _require_logits(abstract: AbstractFeatures, name: str) -> None:
    """Raise as :func:`check_model`; what has passed is not looked at again."""
    check_model(abstract.model, abstract.input_shape, abstract.inputs, name)


def _check_options(*, by_layer, progress, n_jobs, plan) -> None:
    flag("by_layer", by_layer)
    flag("progress", progress)
    if not isinstance(plan, bool | np.bool_ | Plan):
        raise ValueError(f"plan must be True, False or a Plan, got {brief(plan)}")
    job_count(n_jobs)


def _checked_dtype(dtype, kernel, model) -> str | None:
    """Return the name of the precision of products, or None."""
    if dtype is None:
        return own_digits(kernel, model)
    own = params_dtype(model.variables.params)
    dtype = floating("dtype", dtype, ("float32", "float64", own.name, *DIGITS))
    if dtype in DIGITS and not (kernel.is_tangent and own == np.float32):
        raise ValueError(
            f"dtype={dtype!r} rounds tangent features in single precision, but parameters are in {own} and "
            f"the kernel is {kernel!r}; leave dtype out"
        )
    return dtype


@heard()
def store_gram(path, kernel: Kernel, model: Model, X, Y, *, memory: int, dtype, n_jobs) -> None:
    """Compute what a store lacks, and read nothing of it; arguments as for :func:`gram`, but checked."""
    dtype = _checked_dtype(dtype, kernel, model)
    sizes = stored_sizes(path)
    plan = make_plan(kernel, model, X.shape[1:], memory, sizes=sizes, dtype=dtype, inputs=X.dtype)
    job = TileJob(kernel, model, X, Y, plan, dtype)
    if count_workers(n_jobs) == 1:
        require_device_memory(job, result=False)
    _fill_store(path, job, n_jobs, progress=False)


def _fill_store(path, job: TileJob, n_jobs, progress) -> GramStore:
    """Compute what a store lacks, and return it."""
    x = jax.ShapeDtypeStruct((1, *job.X.shape[1:]), job.X.dtype)
    with jax.default_matmul_precision("highest"):
        function, entry = fingerprint(job.kernel.entry, job.model, x, x)
    entry_dtype = entry.dtype if job.dtype is None else job.dtype
    with open_store(path, job, entry_dtype, entry.shape[2:], function, partial(has_same_numbers, job)) as store:
        tiles = job.tiles()
        missing = [tile for tile in tiles if not store.holds(*tile)]
        # in pieces, so that tiles that take several passes are written before the whole panel's are
        finished = finished_tiles(job, missing, n_jobs, width=job.plan.panel)
        if not on_host(job.plan.devices):
            # the device computes the next tile while this one is brought to the host and written
            finished = one_ahead(finished)
        bar = {"total": len(tiles), "initial": len(tiles) - len(missing), "disable": not progress, "unit": "tile"}
        for (i, j), (block,) in tqdm(finished, "Gram tiles", leave=False, **bar):
            block = np.asarray(_finite(job.kernel, block))
            store.write(i, j, block, transpose(block) if job.Y is None and i < j else None)
        return store


def has_same_numbers(job: TileJob, store) -> bool:
    """Tell whether entries of a finished tile come out again: what no fingerprint sees, numbers show."""
    n, m = store.array.shape[:2]
    rows, chunk, symmetric = job.plan.rows, job.plan.chunk, job.Y is None
    X, Y = job.X[:n], None if job.Y is None else job.Y[:m]
    # a tile on the diagonal takes the features of its rows alone
    tiles = sorted(replace(job, X=X, Y=Y).tiles(), key=lambda tile: tile[0] != tile[1])
    held = next((tile for tile in tiles if store.holds(*tile)), None)
    if held is None:
        return True
    # what is computed at once, so that nothing is compiled for this
    first, second = (slice(at * rows, at * rows + chunk) for at in held)
    few = replace(
        job,
        X=X[first],
        Y=None if symmetric and first == second else (X if Y is None else Y)[second],
        plan=replace(job.plan, rows=chunk, panel=1),
    )
    ((_, (block,)),) = compute_tiles(few, [(0, 0)])
    n, m = few.shape
    found, kept = (np.asarray(K, np.float64)[:n, :m] for K in (block, store.read_tile(*held)))
    own, worst = (jnp.finfo(params_dtype(job.model.variables.params)), jnp.finfo(store.array.dtype))
    eps = max(float(own.eps), float(worst.eps))
    # threads and compilers give other last digits; single precision has 3 digits to spare for them
    tolerance = min(0.1, 30 * eps**0.5, 1e-3 if eps <= jnp.finfo(jnp.float32).eps else 0.1)
    return bool((np.abs(found - kept) <= tolerance * _scale(found, few.Y is None)).all())


def _scale(K, symmetric):
    """Return sqrt(K_ii K_jj) for each entry (i, j), or of the largest in row and column without a diagonal."""
    size = np.abs(K).reshape(*K.shape[:2], -1).max(2)
    own = [np.diagonal(size)] * 2 if symmetric else []
    rows, columns = own if symmetric and (own[0] > 0).all() else (size.max(1), size.max(0))
    scale = np.sqrt(rows[:, None]) * np.sqrt(columns[None])
    return scale.reshape(*scale.shape, *[1] * (K.ndim - 2))


def _finite(kernel, K):
    """Return a matrix, or raise where it is not finite."""
    with own_precision(K):
        finite = all_finite([K])
    if not finite:
        raise FloatingPointError(
            f"the Gram matrix of {resolve_kernel(kernel)!r} has entries that are not finite; "
            f"{where_to_look(kernel)}"
        )
    return K


def _inputs(name, X, model, read_later) -> np.ndarray:
    if is_data_set(X):
        rows = Rows.of(name, X)
        X = replace(rows, dtype=host_inputs(name, np.asarray(rows[:1]), model.variables.params).dtype)
        X = X if read_later else np.asarray(X)
    else:
        X = host_inputs(name, X, model.variables.params)
    if X.ndim == 1:
        raise ValueError(
            f"{name} must hold inputs of shape (n, ...), got shape {X.shape}; write {name}[None] for a single one"
        )
    if X.ndim == 0 or X.size == 0:
        raise ValueError(f"{name} must hold at least one input, of shape (n, ...), got shape {X.shape}")
    if isinstance(X, np.ndarray) and not is_finite(X):
        raise ValueError(f"{name} contains NaN or infinity; the kernel needs finite inputs")
    return cast(np.ndarray, X)
