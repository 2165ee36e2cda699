"""Kernel predictors as models: callable pytrees from inputs to scores, dual and primal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._portable import Portable
from .._validation import array, fitting
from ..execution.devices import on_host
from ..execution.memory import parse_memory, readable
from ..execution.precision import enable_x64
from ..networks.inputs import PyTree, host_inputs, n_params, params_dtype, require_finite
from ..networks.model import Model, check_model, require_model
from ..saving.savable import Savable
from ..solvers.rows import SCORES_OF
from .abstract_features import abstract_features
from .edited_functions import told_apart
from .ntk import resolve_kernel
from .plan import Plan, fixed_plan, make_plan
from .room import require_device_memory, require_host_room
from .tiles import TileJob, own_digits
from .without_model import model_for


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DualPredictor(Savable, Portable):
    """The kernel predictor x ↦ offset + Σ_i K(x, x_i) dual_i, evaluated against every training point.

    Attributes
    ----------
    kernel : callable
        ``kernel(model, x1, x2) -> block`` of rank 2, 3 or 4.
    model : Model
    x_fit : array (n, ...)
    dual_coef : array (n, C)
    offset : array (C,)
    """

    kernel: Callable = field(metadata={"static": True})
    model: Model
    x_fit: jax.Array | np.ndarray
    dual_coef: jax.Array | np.ndarray
    offset: jax.Array | np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the scores (n, C) of inputs (n, ...)."""
        block = self.kernel(self.model, x, self.x_fit)
        return (
            jnp.einsum(SCORES_OF[block.ndim], block, self.dual_coef, precision=jax.lax.Precision.HIGHEST)
            + self.offset
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PrimalPredictor(Savable, Portable):
    """The same predictor with the training points folded into tangent vectors.

    Its cost does not depend on how many training points there were.

    Attributes
    ----------
    kernel : TraceNTK, ClassNTK, FullNTK or PseudoNTK
    model : Model
    tangents : pytree of arrays
        What ``kernel.fold`` makes of training inputs and dual coefficients.
    offset : array (C,)
    moved : bool, default=False
        Whether the first axis of the tangents, that of the directions, stands before their last one, as
        :func:`make_predictor` puts it: so directions and a layer's outputs are one axis of a matrix, and
        predictions need no copy of it.
    """

    kernel: Callable = field(metadata={"static": True})
    model: Model
    tangents: PyTree
    offset: jax.Array | np.ndarray
    # not in files and pickles of the first versions
    moved: bool = field(default=False, metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the scores (n, C) of inputs (n, ...)."""
        tangents = self.tangents
        if self.moved:
            tangents = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, *_directions_at(leaf)[::-1]), tangents)
        return self.offset + self.kernel.predict(self.model, tangents, x)


def make_predictor(
    kernel: str | Callable,
    model: Model,
    X: ArrayLike,
    dual_coef: ArrayLike,
    offset: ArrayLike,
    *,
    memory: str | int = "2GiB",
    params: str | Sequence[str] | None = None,
    plan: Plan | None = None,
    features: dict | None = None,
) -> PrimalPredictor | DualPredictor:
    """Return the predictor of dual coefficients, in whichever form answers a query with fewer operations.

    Dual coefficients are large and of both signs when alpha is small, so they are folded in float64.
    Both need the query's tangent features; what remains is a product with n training points in the dual
    form and with T targets in the primal form. So the primal form is taken when n > T, and the training
    points are folded into tangents once, tile by tile.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
    model : Model
    X : array (n, ...)
        Training inputs.
    dual_coef : array (n, T)
        NumPy, JAX or CuPy: what :func:`~ntkrobust_sk.solve` returns.
    offset : array (T,)
        Added to every score.
    memory : str or int, default="2GiB"
        Budget that decides how many rows are folded at a time, and whether the tangents fit: one of each
        parameter for each target, and for the trace kernel for each pair of output and target.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken, as for :func:`~ntkrobust_sk.gram`.
    plan : Plan, default=None
        In place of one made for ``memory``.
    features : dict, default=None
        Features of the tiles of X that were computed with ``plan`` before (:attr:`.TileJob.kept`); those that
        are not in it yet are put there.

    Returns
    -------
    PrimalPredictor or DualPredictor

    Raises
    ------
    MemoryError
        If neither the tangents nor the features of all training points, of which the dual form needs those in
        every call, fit in ``memory``.
    """
    kernel = resolve_kernel(kernel)
    model = require_model(model) if params is None else model_for(kernel, model, params)
    dtype = params_dtype(model.variables.params)
    X = _checked_inputs(kernel, model, X)
    kernel = told_apart(kernel, model, X.shape[1:], X.dtype)
    dual_coef, offset = _checked_coefficients(X, dual_coef, offset)
    in_dtype, budget = fitting("dual_coef", dual_coef, dtype), parse_memory(memory)
    offset = jnp.asarray(fitting("offset", offset, dtype))
    require_room(kernel, model, X.shape[1:], dual_coef.shape, budget, X.dtype)
    if not _answers_primally(kernel, model, X, dual_coef.shape[1], budget):
        return DualPredictor(kernel, model, jnp.asarray(X), jnp.asarray(in_dtype), offset)
    digits = own_digits(kernel, model)
    plan = plan or make_plan(kernel, model, X.shape[1:], budget, n_rows=len(X), dtype=digits, inputs=X.dtype)
    job, n_tiles = TileJob(kernel, model, X, None, plan, digits, kept=features), -(-len(X) // plan.rows)
    # padded rows have the coefficient zero
    dual = np.zeros((n_tiles * plan.rows, dual_coef.shape[1]))
    dual[: len(X)] = dual_coef
    passes = []
    for start in range(0, plan.n_directions, plan.directions):
        size, folded = min(plan.directions, plan.n_directions - start), []
        for tile in range(n_tiles):
            found = job.row_features(tile, start)
            part = dual[tile * plan.rows : (tile + 1) * plan.rows]
            with enable_x64(True):
                part = _of_pass(kernel, part, start, plan.directions)
                # zeros to begin with: one program serves the first tile and the others
                folded = _add_folded(kernel, folded or _nothing_folded(kernel, found, part), found, part)
        passes.append([fitting("the sum over X of dual_coef", np.asarray(leaf)[:size], dtype) for leaf in folded])
    tangents = [np.concatenate(parts) for parts in zip(*passes, strict=True)]
    if kernel.has_gradients:
        tangents = [np.moveaxis(leaf, *_directions_at(leaf)) for leaf in tangents]
        tangents = jax.tree.unflatten(jax.tree.structure(model.variables.params), tangents)
    tangents = jax.tree.map(jnp.asarray, tangents)
    return PrimalPredictor(kernel, model, tangents, offset, moved=kernel.has_gradients)


def training_job(
    kernel: str | Callable, model: Model, X, n_targets: int, *, memory: str | int = "2GiB", n_arrays: int = 0
) -> TileJob:
    """Return the job of the Gram matrix of training inputs, which keeps features to be folded where they fit.

    They are kept if one pass over one panel has all of them, and they fit in ``memory`` together with what folding
    them into tangents takes and with the solver's copies of one system.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
    model : Model
    X : array (n, ...)
    n_targets : int
        Columns of the dual coefficients.
    memory : str or int, default="2GiB"
    n_arrays : int, default=0
        Arrays of the size of one system that the solver takes.

    Raises
    ------
    MemoryError
        As :func:`make_predictor`, if not even two tiles of one row fit, and if a GPU has no room for the matrix
        and its solution.
    """
    kernel, budget = resolve_kernel(kernel), parse_memory(memory)
    X = _checked_inputs(kernel, require_model(model), X)
    kernel = told_apart(kernel, model, X.shape[1:], X.dtype)
    require_room(kernel, model, X.shape[1:], (len(X), n_targets), budget, X.dtype)
    digits = own_digits(kernel, model)
    plan = make_plan(kernel, model, X.shape[1:], budget, n_rows=len(X), dtype=digits, inputs=X.dtype)
    job, n_tiles = TileJob(kernel, model, X, None, plan, digits), -(-len(X) // plan.rows)
    require_device_memory(job, n_arrays=n_arrays)
    if on_host(plan.devices):
        require_host_room(job, n_arrays)
    # of several devices, none has all features
    if (
        len(plan.devices) > 1
        or plan.passes > 1
        or n_tiles > plan.panel
        or not _answers_primally(kernel, model, X, n_targets, budget)
    ):
        return job
    tile_bytes = plan.rows * plan.row_bytes
    # in double precision, before and after a tile is added
    tangents = 4 * _tangent_bytes(kernel, model, plan.n_directions, n_targets) if kernel.has_gradients else 0
    system = len(X) * (plan.n_directions if kernel.rank == 4 else 1)
    taken = n_tiles * tile_bytes + max(tangents + 2 * tile_bytes, 16 * system**2)
    return replace(job, kept={}) if taken <= plan.memory else job


def _checked_inputs(kernel, model, X) -> np.ndarray:
    """Return training inputs in NumPy, if the model takes them."""
    X = require_finite("X", host_inputs("X", X, model.variables.params))
    if X.ndim < 2 or len(X) == 0:
        raise ValueError(f"X must hold at least one input, of shape (n, ...), got shape {X.shape}")
    if kernel.is_tangent:
        check_model(model, X.shape[1:], X.dtype)
    return X


def _checked_coefficients(X, dual_coef, offset) -> tuple[np.ndarray, np.ndarray]:
    """Return dual coefficients and offset in double precision, if they fit each other and X."""
    dual_coef = array("dual_coef", dual_coef, ndim=2, finite=True).astype(np.float64, copy=False)
    offset = np.asarray(array("offset", offset, ndim=1, finite=True), np.float64)
    if len(dual_coef) != len(X) or len(offset) != dual_coef.shape[1]:
        raise ValueError(
            f"dual_coef must be (n, T) and offset (T,) for n = {len(X)} training inputs, got shapes "
            f"{dual_coef.shape} and {offset.shape}"
        )
    return dual_coef, offset


def _answers_primally(kernel, model, X, n_targets, budget) -> bool:
    """Tell whether the primal form is cheaper, and its tangents fit."""
    if not kernel.is_tangent or len(X) <= n_targets:
        return False
    if not kernel.has_gradients:
        return True
    n_directions = abstract_features(kernel, model, X.shape[1:], X.dtype).n_directions
    return _tangent_bytes(kernel, model, n_directions, n_targets) <= budget


def _tangent_bytes(kernel, model, n_directions, n_targets) -> int:
    """Count the bytes that the primal form keeps."""
    n_tangents = {2: n_directions * n_targets, 3: n_directions, 4: 1}[kernel.rank]
    params = model.variables.params
    return n_tangents * n_params(params) * params_dtype(params).itemsize


def require_room(
    kernel, model: Model, input_shape: tuple[int, ...], shape: tuple[int, int], budget: int, inputs=None
) -> None:
    """Raise MemoryError unless a predictor of dual coefficients of a ``shape`` (n, T) fits in so many bytes.

    Either its tangents must fit, or the features of all n training points, which the dual form computes in every
    call: for large networks it would run for hours, or out of memory in the middle of an attack.
    """
    if not kernel.has_gradients:
        return
    n, n_targets = shape
    plan = fixed_plan(kernel, model, input_shape, 1, inputs=inputs)
    features, tangents = n * plan.row_bytes, _tangent_bytes(kernel, model, plan.n_directions, n_targets)
    if min(features, tangents) > budget:
        raise MemoryError(
            f"predictions of {kernel!r} for {n_targets} targets take {readable(tangents)} of tangents, or "
            f"{readable(features)} of features of the {n:,} training points in every call, more than the budget "
            f"of {readable(budget)}; give memory={min(features, tangents):,} bytes or more, or take a kernel "
            "with fewer (kernel='pseudo')"
        )


def _directions_at(tangents) -> tuple[int, int]:
    """Return where the axis of directions is as ``kernel.fold`` has it, and as predictors keep it."""
    return 0, max(tangents.ndim - 2, 0)


def _of_pass(kernel, dual, start, n_directions):
    """Return the dual coefficients of a pass over directions: all, or a class kernel's own columns."""
    if kernel.rank != 3:
        return dual
    own = dual[:, start : start + n_directions]
    return np.pad(own, ((0, 0), (0, n_directions - own.shape[1])))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_folded(kernel, tangents, features, dual):
    return jax.tree.map(jnp.add, tangents, kernel.fold(features, dual))


def _nothing_folded(kernel, features, dual):
    shapes = jax.eval_shape(kernel.fold, features, dual)
    return [np.zeros(leaf.shape, leaf.dtype) for leaf in shapes]
