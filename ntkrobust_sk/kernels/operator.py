"""Gram matrices of networks as linear operators, which are never formed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._validation import floating, job_count
from ..execution.memory import parse_memory
from ..networks.chosen_parameters import map_parameters
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..tangent.gradients import DenseGradients
from .gram_matrix import checked_sides, gram, store_gram
from .linear_operator import GramOperator, add_tile
from .ntk import Kernel, TangentKernel
from .plan import make_plan
from .stored_operator import open_gram
from .tangent_products import TangentProducts
from .tiles import TileJob, own_precision, tile_program
from .workers import finished_tiles


class NetworkGram(GramOperator):
    """A Gram matrix of a kernel, a model and inputs: what its products need."""

    def __init__(
        self,
        kernel: Kernel,
        model: Model,
        X: np.ndarray,
        Y: np.ndarray | None,
        *,
        memory: int,
        n_jobs: int | None,
        dtype: np.dtype,
    ):
        self.kernel, self.model, self.X, self.Y = kernel, model, X, Y
        self.memory, self.n_jobs, self.precision = memory, n_jobs, dtype
        x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
        block = jax.eval_shape(kernel.entry, model, x, x)
        super().__init__(
            len(X),
            len(self.other),
            rank=block.ndim,
            n_outputs=1 if block.ndim == 2 else block.shape[2],
            symmetric=Y is None,
            dtype=dtype,
        )

    @property
    def other(self) -> np.ndarray:
        """The columns' inputs."""
        return self.X if self.Y is None else self.Y

    def _transposed(self):
        given = {"memory": self.memory, "n_jobs": self.n_jobs, "dtype": self.precision}
        return type(self)(self.kernel, self.model, self.other, self.X, **given)

    def _columns_of(self, examples):
        given = {"memory": self.memory, "n_jobs": self.n_jobs, "dtype": self.precision.name}
        return gram(self.kernel, self.model, self.X, self.other[examples], **given)


class TangentGram(NetworkGram):
    """The Gram matrix of a tangent kernel, by tangents that are pulled back and pushed forward."""

    kernel: TangentKernel

    def _times(self, V, transposed):
        target, source = (self.other, self.X) if transposed else (self.X, self.other)
        return TangentProducts(self.kernel, self.model, self.memory).product(target, source, V, self.n_jobs)

    def _own_diagonal(self):
        return TangentProducts(self.kernel, self.model, self.memory).squares(self.X, self.n_jobs)


class ProjectedGram(NetworkGram):
    """The Gram matrix of features of fixed length: Φ(X) (Φ(Y)ᵀ V).

    They are computed once and kept, if they fit in the memory, and for each product otherwise.
    """

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self._kept: dict[str, list[np.ndarray]] = {}

    def _features(self, side: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the features of tiles of one side, with their rows."""
        inputs, rows = (self.other if side == "Y" else self.X), self._plan.rows
        places = [slice(at, min(at + rows, len(inputs))) for at in range(0, len(inputs), rows)]
        if side in self._kept:
            yield from zip(places, self._kept[side], strict=True)
            return
        program, kept = tile_program(self.kernel, self.model, self._plan, inputs), []
        fits = self._plan.row_bytes * (len(self.X) + len(self.other)) <= self.memory // 2
        for place in places:
            leaves = [np.asarray(leaf.values).swapaxes(0, 1) for leaf in program(inputs[place])]
            found = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)[: place.stop - place.start]
            if fits:
                kept.append(found)
            yield place, found
        if fits:
            self._kept[side] = kept

    @property
    def _plan(self):
        n_rows = max(len(self.X), len(self.other))
        return make_plan(
            self.kernel, self.model, self.X.shape[1:], self.memory, n_rows=n_rows, inputs=self.X.dtype
        )

    def _times(self, V, transposed):
        source, target = ("X" if transposed or self.Y is None else "Y"), ("Y" if transposed else "X")
        folded = sum(features.T @ V[place] for place, features in self._features(source))
        return np.concatenate([features @ folded for _, features in self._features(target)])

    def _own_diagonal(self):
        return np.concatenate([(features**2).sum(1) for _, features in self._features("X")])

    def __getstate__(self):
        return self.__dict__ | {"_kept": {}}


class TiledGram(NetworkGram):
    """The Gram matrix of any function of two sets of inputs, whose tiles each product computes."""

    def _finished(self, diagonal=False):
        n_rows = max(len(self.X), len(self.other))
        plan = make_plan(
            self.kernel, self.model, self.X.shape[1:], self.memory, n_rows=n_rows, inputs=self.X.dtype
        )
        job = TileJob(self.kernel, self.model, self.X, self.Y, plan, self.precision.name)
        tiles = [(i, j) for i, j in job.tiles() if i == j or not diagonal]
        return plan.rows, finished_tiles(job, tiles, self.n_jobs)

    def _times(self, V, transposed):
        rows, finished = self._finished()
        total = np.zeros((len(self.other if transposed else self.X), *V.shape[1:]), self.dtype)
        for (i, j), (block,) in finished:
            add_tile(total, V, block, i, j, rows, mirrored=self.symmetric and i < j, transposed=transposed)
        return total

    def _own_diagonal(self):
        rows, finished = self._finished(diagonal=True)
        found = np.zeros((len(self.X), *[self.n_outputs] * (self.rank > 2)), self.dtype)
        for (i, _), (block,) in finished:
            into = found[i * rows : (i + 1) * rows]
            of_tile = np.asarray(block)[range(len(into)), range(len(into))]
            into[:] = of_tile.diagonal(0, 1, 2) if self.rank == 4 else of_tile
        return found


def gram_operator(
    kernel: str | Callable,
    model: Model,
    X: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    memory: str | int = "2GiB",
    dtype: DTypeLike | None = None,
    n_jobs: int | None = None,
    store: str | os.PathLike | None = None,
    params: str | Sequence[str] | None = None,
) -> GramOperator:
    """Return the Gram matrix of a kernel over inputs as a linear operator, which is never formed.

    ``K @ V`` pulls the columns of V back to the parameters, tile by tile, and pushes the result forward:
    K(X, Y) V = J(X) (J(Y)ᵀ V). Time is linear in the number of rows, and memory does not grow with it, except by
    inputs and results. The full kernel takes one backward and one forward pass of the network for each column; the
    trace and class kernels take one for each output, the pseudo kernel one in all, for all columns together.

    Where features are few, these are the better operator: those of :class:`ProjectedNTK` are computed once, and
    kept if they fit in half of ``memory``. Any other function of two sets of inputs has its tiles computed in each
    product, which takes time in the square of the number of rows.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        As for :func:`~ntkrobust_sk.gram`.
    model : Model
    X : array (n, ...)
    Y : array (m, ...), default=None
        The columns' inputs; None is X, and gives a symmetric matrix.
    memory : str or int, default="2GiB"
        Budget in bytes, on each device and in each worker, for tangents and working space; V and the result
        are not counted. Where not all columns fit together, a few are taken at a time.
    dtype : "float32" or "float64", default=None
        In which the network is evaluated and products are computed; None is that of the parameters, float32 where
        these are in half precision. Rounding in single precision is that of K V, not of K: iterative solvers of
        ill-conditioned systems need "float64".
    n_jobs : int, default=None
        Worker processes that share the rows, as for :func:`~ntkrobust_sk.gram`.
    store : str or os.PathLike, default=None
        Folder of a zarr array, as for :func:`~ntkrobust_sk.gram`: the matrix is computed there once, or what it
        lacks, and products read it tile by tile.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken, as for :func:`~ntkrobust_sk.gram`.

    Returns
    -------
    GramOperator
        A :class:`scipy.sparse.linalg.LinearOperator` of shape (n, m), or (n·C, m·C) of the class and the full
        kernel: row i·C + c is output c at example i. ``diagonal()`` and ``columns(indices)`` are exact.

    Raises
    ------
    ValueError
        As :func:`~ntkrobust_sk.gram`, and by products for columns of another length, complex ones, and NaN.
    MemoryError
        By products, if one column and one row do not fit in ``memory``.
    FloatingPointError
        By products that are not finite.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ntkrobust_sk import MLP, Model, gram, gram_operator
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> X, V = np.eye(4), np.ones((4, 2))
    >>> K = gram_operator("trace", model, X)
    >>> K.shape, bool(np.allclose(K @ V, gram("trace", model, X) @ V, rtol=1e-4))
    ((4, 4), True)
    """
    kernel, model, X, Y = checked_sides(kernel, model, X, Y, params=params)
    own = jnp.promote_types(params_dtype(model.variables.params), jnp.float32)
    wanted = np.dtype(own if dtype is None else floating("dtype", dtype, ("float32", "float64")))
    memory, n_jobs = parse_memory(memory), job_count(n_jobs)
    if store is not None:
        store_gram(store, kernel, model, X, Y, memory=memory, dtype=dtype, n_jobs=n_jobs)
        return open_gram(store)
    with own_precision(np.empty(0, wanted)):
        model = _with_parameters_in(model, wanted)
        rows, columns = _inputs_in(X, wanted), None if Y is None else _inputs_in(Y, wanted)
        made = _class_for(kernel, model, rows)
        return made(kernel, model, rows, columns, memory=memory, n_jobs=n_jobs, dtype=wanted)


def _class_for(kernel: Kernel, model: Model, X: np.ndarray) -> type[NetworkGram]:
    """Return the cheapest form of products that a kernel has."""
    if kernel.has_gradients:
        return TangentGram
    if not kernel.is_tangent:
        return TiledGram
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    features: Any = jax.eval_shape(kernel.features, model, x)
    is_one_vector = kernel.rank == 2 and all(isinstance(leaf, DenseGradients) for leaf in features)
    return ProjectedGram if is_one_vector else TiledGram


def _with_parameters_in(model: Model, dtype: np.dtype) -> Model:
    """Return the model with parameters in another precision, in NumPy, which keeps it wherever they are sent."""
    return map_parameters(lambda leaf: np.asarray(leaf).astype(dtype), model)


def _inputs_in(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if x.dtype.kind in "iu":
        return x
    return x.astype(np.result_type(dtype, np.complex64) if x.dtype.kind == "c" else dtype)
