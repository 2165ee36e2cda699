"""Laws that every kernel keeps, as checks that raise where one is broken."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, flag, number, positive_tuple
from ..execution.precision import enable_x64
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.plan import fixed_plan
from ..kernels.predictors import DualPredictor, make_predictor
from ..networks.inputs import PyTree, host_inputs, require_finite
from ..networks.model import Model, Network, require_model
from .comparisons import require_close, require_finite_block, require_positive_semidefinite
from .strategies import TILE_ROWS

KernelLike = str | Callable

DRIFT = 256


def check_kernel(
    kernel: KernelLike,
    model: Model | ArrayLike | None = None,
    X: ArrayLike | None = None,
    *,
    tangent: bool = True,
    rtol: float | None = None,
) -> None:
    """Run every check that applies to the kernel.

    Those are :func:`check_shape`, :func:`check_symmetric`, :func:`check_positive_semidefinite`,
    :func:`check_permutation_equivariance`, :func:`check_diagonal`, :func:`check_tiling_invariance` and
    :func:`check_dtype_drift`, on blocks of rank 2, 3 and 4 alike; :func:`check_scaling` for tangent kernels;
    and :func:`check_predictor` for tangent kernels.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        Any hashable ``kernel(model, x1, x2) -> block`` of rank 2, 3 or 4, in JAX; or ``k(X, Y) -> (n, m)`` as
        scikit-learn calls kernels (:class:`NTKKernel`, :mod:`sklearn.gaussian_process.kernels`,
        :func:`sklearn.metrics.pairwise.rbf_kernel`), also in NumPy: what it returns is then held
        to the laws of a matrix, and there are no tiles, precisions or logits to look at.
    model : Model, default=None
        None, or left out as in ``check_kernel(k, X)``, for ``k(X, Y)``, which knows of none.
    X : array (n, ...), n >= 2
    tangent : bool, default=True
        Whether the kernel is quadratic in the logits, as every tangent kernel is; a kernel of the inputs is not.
        With False the kernel of a model may also be in NumPy, and is then held to the laws of a matrix.
    rtol : float, default=None
        Largest difference between two ways of computing one entry, relative to the largest entry. None means
        the default of each check.

    Raises
    ------
    AssertionError
        With the name of the property, the entry that is furthest from it, and what was allowed.
    TypeError
        Without X; for something else than a Model or None in its place; for a kernel in NumPy of a model, unless
        ``tangent=False``.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=2, widths=(3,))
    >>> model = Model(network, network.init(jax.random.key(0), (2,)))
    >>> check_kernel("trace", model, jax.numpy.eye(2))

    A kernel of scikit-learn's:

    >>> from sklearn.metrics.pairwise import rbf_kernel
    >>> check_kernel(rbf_kernel, np.eye(3))
    """
    tangent = flag("tangent", tangent)
    model, X = _model_and_inputs(model, X)
    if _takes_inputs_alone(kernel, model):
        _check_function(cast(Callable, kernel), X, rtol)
        return
    model = require_model(model)
    if _is_in_numpy(kernel, model, X):
        if tangent:
            raise TypeError(
                f"{brief(kernel)} computes in NumPy, which JAX cannot trace, and a tangent kernel must be in JAX "
                "(jax.numpy); for a kernel that is none write check_kernel(..., tangent=False), which takes NumPy"
            )
        _check_function(partial(cast(Callable, kernel), model), X, rtol, brief(kernel))
        return
    check_shape(kernel, model, X)
    check_symmetric(kernel, model, X, rtol=rtol)
    check_positive_semidefinite(kernel, model, X)
    checks = [check_permutation_equivariance, check_diagonal, check_tiling_invariance, check_dtype_drift]
    checks += [check_scaling] * tangent + [check_predictor] * resolve_kernel(kernel).is_tangent
    for check in checks:
        check(kernel, model, X, rtol=rtol)


def _model_and_inputs(model, X) -> tuple[Model | None, ArrayLike]:
    """Return model and inputs; what is given alone are the inputs."""
    if X is None:
        model, X = None, model
    if X is None or isinstance(X, Model):
        raise TypeError(
            "check_kernel needs X, the inputs: check_kernel(kernel, model, X), or check_kernel(k, X) of a "
            "function k(X, Y) without a model"
        )
    if model is not None and not isinstance(model, Model):
        raise TypeError(
            f"model must be a ntkrobust_sk.Model, or None for a function k(X, Y), got {brief(model)}; "
            "check_kernel(k, X) takes inputs once, and compares them with themselves"
        )
    return model, X


def _is_in_numpy(kernel, model, X) -> bool:
    """Tell whether a kernel of a model makes NumPy arrays of its inputs, which JAX cannot trace."""
    kernel, X = _prepared(kernel, model, X)
    try:
        jax.eval_shape(kernel, model, X[:1], X)
    except jax.errors.TracerArrayConversionError:
        return True
    return False


def _takes_inputs_alone(kernel: KernelLike, model: Model | None) -> bool:
    """Tell whether a kernel is called as ``k(X, Y)``: by its arguments, or since there is no model."""
    if isinstance(kernel, str) or getattr(kernel, "is_tangent", False):
        return False
    if isinstance(kernel, type) or not callable(kernel):
        resolve_kernel(kernel)  # says what it should be
    if not getattr(kernel, "needs_model", True):
        return False
    try:
        signature = inspect.signature(kernel)
    except (TypeError, ValueError):
        return model is None
    if not _binds(signature, 2):
        return False
    return model is None or list(signature.parameters)[:2] == ["X", "Y"] or not _binds(signature, 3)


def _binds(signature: inspect.Signature, n_arguments: int) -> bool:
    try:
        signature.bind(*range(n_arguments))
    except TypeError:
        return False
    return True


def _check_function(kernel: Callable, X: ArrayLike, rtol: float | None, name: str | None = None) -> None:
    """Check ``k(X, Y)`` as scikit-learn calls it: the laws of a matrix, on what it returns in NumPy."""
    X, name = array("X", X, finite=True), name or repr(kernel)
    if X.ndim < 2 or len(X) < 2:
        raise ValueError(f"X must hold at least two inputs, of shape (n, ...), got shape {X.shape}")

    def block(rows, columns) -> np.ndarray:
        K = np.asarray(kernel(rows, columns))
        if K.shape != (len(rows), len(columns)):
            raise AssertionError(
                f"k(X, Y) of {name} has shape {K.shape} for {len(rows)} and {len(columns)} inputs, expected "
                "(n, m): one number for each pair. A kernel of a model is called as kernel(model, x1, x2)"
            )
        return require_finite_block(name, K)

    K = block(X, X)
    require_close(f"{name} is not symmetric", K, K.T, rtol)
    require_positive_semidefinite(name, K, None)
    order, reverse = np.roll(np.arange(len(X)), 1), np.arange(len(X))[::-1]
    found = block(X[order], X[reverse])
    require_close(f"{name} depends on the order of its inputs", found, K[order][:, reverse], rtol)
    alone = np.stack([block(x[None], x[None])[0, 0] for x in X])
    require_close(f"the matrix of {name} has another diagonal than k(x, x)", K.diagonal(), alone, rtol)
    half = len(X) // 2
    slices = block(X[half:], X[: half + 1])
    require_close(f"{name} of a slice is no slice of it", slices, K[half:, : half + 1], rtol)


def check_shape(kernel: KernelLike, model: Model, X: ArrayLike) -> None:
    """Check that the block of n and m inputs is (n, m), (n, m, C) or (n, m, C, C), with C the number of logits.

    A kernel that states its ``rank`` must return blocks of that rank.
    """
    kernel, X = _prepared(kernel, model, X)
    shape = jnp.shape(jax.eval_shape(partial(_block, kernel), model, X[:1], X))
    n_outputs = jax.eval_shape(lambda f, x: f(x), model, X).shape[1]
    rank = kernel.rank or len(shape)
    if rank != len(shape) or rank not in (2, 3, 4) or shape != (1, len(X), *[n_outputs] * (rank - 2)):
        raise AssertionError(
            f"the block of {kernel!r} for 1 and {len(X)} inputs and {n_outputs} logits has shape {shape}, "
            f"expected (n, m), (n, m, C) or (n, m, C, C){f' of rank {rank}' if kernel.rank else ''}"
        )


def check_symmetric(kernel: KernelLike, model: Model, X: ArrayLike, *, rtol: float | None = None) -> None:
    """Check that K(x', x) = K(x, x')ᵀ, the transpose being over the classes of a kernel of rank 4.

    Looks at what the kernel itself returns; :func:`~ntkrobust_sk.gram` computes one half and mirrors it.
    """
    kernel, X, K = _with_block(kernel, model, X)
    axes = (1, 0, 3, 2) if K.ndim == 4 else (1, 0, 2)[: K.ndim]
    require_close(f"{kernel!r} is not symmetric", K, K.transpose(axes), rtol)


def check_positive_semidefinite(
    kernel: KernelLike, model: Model, X: ArrayLike, *, tol: float | None = None
) -> None:
    """Check that no eigenvalue is below −tol times the largest absolute one.

    Every class of a kernel of rank 3 is a matrix of its own; one of rank 4 is one matrix of n·C rows.

    Parameters
    ----------
    tol : float, default=None
        None means 10 n eps for a matrix of n rows: rounding of δ in every entry moves an eigenvalue by up to
        n δ, and entries are no larger than the largest eigenvalue.
    """
    tol = None if tol is None else number("tol", tol, low=0)
    kernel, X, K = _with_block(kernel, model, X)
    require_positive_semidefinite(kernel, K, tol)


def check_permutation_equivariance(
    kernel: KernelLike, model: Model, X: ArrayLike, *, rtol: float | None = None
) -> None:
    """Check that reordered inputs give the same entries in the new order: each depends on its two inputs alone."""
    kernel, X, K = _with_block(kernel, model, X)
    rolled, reverse = np.roll(np.arange(len(X)), 1), np.arange(len(X))[::-1]
    found = _block_of(kernel, model, X[rolled], X[reverse])
    require_close(f"{kernel!r} depends on the order of its inputs", found, K[rolled][:, reverse], rtol)


def check_diagonal(kernel: KernelLike, model: Model, X: ArrayLike, *, rtol: float | None = None) -> None:
    """Check that k(x, x) computed alone, for every x, is the diagonal of the Gram matrix of all."""
    kernel, X = _prepared(kernel, model, X)
    alone = np.stack([_block_of(kernel, model, x[None], x[None])[0, 0] for x in X])
    K = np.asarray(gram(kernel, model, X, plan=_plan(kernel, model, X)))
    among_others = K[np.arange(len(X)), np.arange(len(X))]
    require_close(f"the Gram matrix of {kernel!r} has another diagonal than k(x, x)", among_others, alone, rtol)


def check_tiling_invariance(
    kernel: str | Callable,
    model: Model,
    X: ArrayLike,
    *,
    tile_rows: tuple[int, ...] = TILE_ROWS,
    rtol: float | None = None,
) -> None:
    """Check that tiles of any size, and slices of rows and columns, give the entries of one block of all inputs.

    Parameters
    ----------
    tile_rows : tuple of int, default=(1, 4)
        Rows of the tiles to compare, powers of two.
    """
    kernel, X, K = _with_block(kernel, model, X)
    sizes = positive_tuple("tile_rows", tile_rows)
    if not sizes:
        raise ValueError("tile_rows must hold one number of rows or more, got none")
    for rows in sizes:
        plan = _plan(kernel, model, X, rows)
        tiled = np.asarray(gram(kernel, model, X, plan=plan))
        require_close(f"in tiles of {rows} rows {kernel!r} has other entries", tiled, K, rtol)
    half = len(X) // 2
    slices = np.asarray(gram(kernel, model, X[half:], X[: half + 1], plan=plan))
    require_close(f"{kernel!r} of a slice is no slice of it", slices, K[half:, : half + 1], rtol)


def check_scaling(
    kernel: KernelLike, model: Model, X: ArrayLike, *, factor: float = 3.0, rtol: float | None = None
) -> None:
    """Check that the kernel of c times the logits is c² times the kernel, as for every tangent kernel."""
    factor = number("factor", factor)
    kernel, X, K = _with_block(kernel, model, X)
    scaled = Model(_Scaled(model.network, factor), model.variables)
    claim = f"{kernel!r} of {factor:g} times the logits is not {factor**2:g} times the kernel"
    way = "; that is a law of tangent kernels alone: for another one write check_kernel(..., tangent=False)"
    require_close(claim, _block_of(kernel, scaled, X, X), factor**2 * K, rtol, way=way)


def check_dtype_drift(kernel: KernelLike, model: Model, X: ArrayLike, *, rtol: float | None = None) -> None:
    """Check that in float32 the kernel is within ``rtol`` of its largest entry from what it is in float64.

    Parameters
    ----------
    rtol : float, default=None
        None means 256 times float32's eps, 3.1e-5. The kernels of this package were within 4.5 eps; products in
        TensorFloat-32, the default of some accelerators, are not.
    """
    kernel, X = _prepared(kernel, model, X)
    single = jax.tree.map(partial(_cast, np.float32), model)
    x = X.astype(np.float32)
    found = _block_of(kernel, single, x, x)
    with enable_x64(True):
        double = jax.tree.map(partial(_cast, np.float64), single)
        exact = _block_of(kernel, double, x.astype(float), x.astype(float))
    rtol = float(DRIFT * np.finfo(np.float32).eps) if rtol is None else rtol
    require_close(f"{kernel!r} in float32 is not what it is in float64", found, exact, rtol)


def check_predictor(kernel: KernelLike, model: Model, X: ArrayLike, *, rtol: float | None = None) -> None:
    """Check that training points folded into tangents give the scores that the kernel itself gives.

    For kernels with ``fold`` and ``predict``. A difference is measured against the largest sum of absolute
    terms ``|K(x, x_i) α_i|`` rather than the largest score, which may be small by cancellation.
    """
    kernel, X, K = _with_block(kernel, model, X)
    n_targets = 2 if K.ndim == 2 else K.shape[2]
    # more training points than targets, so that they are folded
    X_fit = np.concatenate([X] * (n_targets // len(X) + 1))
    dual = np.random.default_rng(0).normal(size=(len(X_fit), n_targets)).astype(X.dtype)
    offset, plan = np.zeros(n_targets, X.dtype), _plan(kernel, model, X)
    found = _scores(make_predictor(kernel, model, X_fit, dual, offset, plan=plan), X)
    expected = _scores(DualPredictor(kernel, model, X_fit, dual, offset), X)
    scale = np.abs(K).max() * np.abs(dual).sum()
    require_close(f"folded, {kernel!r} predicts otherwise", found, expected, rtol, scale=scale)


@dataclass(frozen=True)
class _Scaled:
    """A network whose logits are those of another, times a factor."""

    network: Network
    factor: float

    def init(self, key, input_shape):
        return self.network.init(key, input_shape)

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, PyTree]:
        logits, state = self.network.apply(params, state, x, train=train)
        return self.factor * logits, state


def _prepared(kernel, model, X):
    X = host_inputs("X", X, require_model(model).variables.params)
    if X.ndim < 2 or len(X) < 2:
        raise ValueError(f"X must hold at least two inputs, of shape (n, ...), got shape {X.shape}")
    return resolve_kernel(kernel), require_finite("X", X)


def _with_block(kernel, model, X):
    kernel, X = _prepared(kernel, model, X)
    return kernel, X, _block_of(kernel, model, X, X)


def _plan(kernel, model, X, rows=TILE_ROWS[-1]):
    return fixed_plan(kernel, model, X.shape[1:], rows, inputs=X.dtype)


@partial(jax.jit, static_argnums=0)
def _block(kernel, model, x1, x2):
    return kernel(model, x1, x2)


@jax.jit
def _scores(predictor, x):
    return predictor(x)


def _block_of(kernel, model, x1, x2) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        block = np.asarray(_block(kernel, model, x1, x2))
    if block.shape[:2] != (len(x1), len(x2)):
        raise AssertionError(f"the block of {kernel!r} for {len(x1)} and {len(x2)} inputs has shape {block.shape}")
    return require_finite_block(repr(kernel), block)


def _cast(dtype, leaf):
    return np.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf
