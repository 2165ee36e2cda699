"""Gram matrices as linear operators, which are never formed.

A :class:`GramOperator` is a :class:`scipy.sparse.linalg.LinearOperator`: ``K @ V`` for one column or many, and
what SciPy's solvers and eigensolvers ask of a matrix. ``K.diagonal()`` and ``K.columns(indices)`` are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.sparse.linalg import LinearOperator

from .._validation import array, brief, floating, is_finite, job_count
from ..execution.interrupts import heard
from ..execution.memory import parse_memory
from ..networks.inputs import params_dtype
from ..networks.model import Model, Variables
from .gram_matrix import checked_sides, gram
from .ntk import Kernel
from .tangent_products import TangentProducts
from .tiles import own_precision


class GramOperator(LinearOperator):
    """A Gram matrix K(X, Y) that is never formed: what :func:`gram_operator` returns.

    A class or full kernel of C outputs is one matrix here, in the order of examples: row i·C + c is output c at
    example i.

    Attributes
    ----------
    shape : (int, int)
        (n, m), or (n·C, m·C) of the class and the full kernel.
    dtype : dtype
        In which products are computed. They are returned in it, or in that of V if this is wider.
    """

    def __init__(
        self,
        kernel: Kernel,
        model: Model,
        X: np.ndarray,
        Y: np.ndarray | None,
        *,
        n_outputs: int,
        memory: int,
        n_jobs: int | None,
        dtype: DTypeLike,
    ):
        self.kernel, self.model, self.X, self.Y = kernel, model, X, Y
        self.n_outputs, self.memory, self.n_jobs = n_outputs, memory, n_jobs
        super().__init__(np.dtype(dtype), (len(X) * n_outputs, len(X if Y is None else Y) * n_outputs))

    def matvec(self, x: ArrayLike) -> np.ndarray:
        """Compute K x for x (m,) or (m, 1)."""
        return super().matvec(self._checked(x, self.shape[1], "K @ v"))

    def matmat(self, X: ArrayLike) -> np.ndarray:
        """Compute K V for V (m, t), all columns together."""
        return super().matmat(self._checked(X, self.shape[1], "K @ V"))

    def rmatvec(self, x: ArrayLike) -> np.ndarray:
        """Compute Kᵀ x for x (n,) or (n, 1)."""
        return super().rmatvec(self._checked(x, self.shape[0], "K.T @ v"))

    def rmatmat(self, X: ArrayLike) -> np.ndarray:
        """Compute Kᵀ V for V (n, t)."""
        return super().rmatmat(self._checked(X, self.shape[0], "K.T @ V"))

    def _checked(self, V, n, product) -> np.ndarray:
        """Return columns as an array of real, finite numbers, with n rows."""
        name = product[-1]
        V = array(name, V, kinds="biufc", finite=True)
        if np.iscomplexobj(V):
            raise ValueError(
                f"{name} must be real, got {V.dtype}: write {name}.real and {name}.imag for two products"
            )
        if V.ndim > 2 or len(V) != n:
            raise ValueError(
                f"{product} needs {name} of shape ({n},) or ({n}, t), for a matrix of shape {self.shape}; got "
                f"{V.shape}"
            )
        return V

    def _matvec(self, x):
        return self._matmat(x.reshape(-1, 1))

    def _rmatvec(self, x):
        return self._rmatmat(x.reshape(-1, 1))

    def _matmat(self, X):
        return self._multiplied(X, self.Y if self.Y is not None else self.X, self.X)

    def _rmatmat(self, X):
        return self._multiplied(X, self.X, self.Y if self.Y is not None else self.X)

    @heard()
    def _multiplied(self, V, source, target) -> np.ndarray:
        """Compute K(target, source) V, each column in units of a power of two, where none overflows."""
        wanted = np.result_type(self.dtype, V)
        V = np.asarray(V, np.float64)
        if V.shape[1] == 0:
            return np.zeros((len(target) * self.n_outputs, 0), wanted)
        exponents = np.frexp(np.abs(V).max(axis=0))[1]
        V = np.ldexp(V, -exponents).astype(self.dtype)
        with own_precision(self), np.errstate(over="ignore", invalid="ignore"):
            found = self._product(target, source, self._by_example(V)).reshape(-1, V.shape[1])
            found = np.ldexp(found.astype(wanted), exponents)
        return self._finite(found)

    def _product(self, target, source, V):
        return TangentProducts(self.kernel, self.model, self.memory).product(target, source, V, self.n_jobs)

    def _by_example(self, V):
        if self.kernel.rank == 2:
            return V
        return V.reshape(-1, self.n_outputs, V.shape[1])

    def _finite(self, found) -> np.ndarray:
        if not is_finite(found):
            raise FloatingPointError(
                f"a product with the Gram matrix of {self.kernel!r} is not finite; look for overflow in the "
                "network's parameters or inputs"
            )
        return found

    @heard()
    def diagonal(self) -> np.ndarray:
        """Compute the diagonal (n,) of K(X, X), exactly.

        Raises
        ------
        ValueError
            For a matrix of two sets of inputs.
        """
        if self.Y is not None:
            raise ValueError("a matrix of two sets of inputs, X and Y, has no diagonal; leave Y out")
        with own_precision(self):
            products = TangentProducts(self.kernel, self.model, self.memory)
            return self._finite(products.squares(self.X, self.n_jobs).reshape(-1))

    def columns(self, indices: ArrayLike) -> np.ndarray:
        """Compute some columns (n, k) exactly, as a dense array.

        Parameters
        ----------
        indices : int array (k,)
            In 0, ..., m - 1, in any order; one may come twice.
        """
        indices = array("indices", indices, ndim=1)
        n = self.shape[1]
        if indices.dtype.kind not in "iu" or (indices.size and not 0 <= indices.min() <= indices.max() < n):
            raise ValueError(f"indices must be integers in 0, ..., {n - 1}, the columns, got {brief(indices)}")
        if not indices.size:
            return np.zeros((self.shape[0], 0), self.dtype)
        examples, outputs = np.divmod(indices, self.n_outputs)
        examples, place = np.unique(examples, return_inverse=True)
        few = (self.X if self.Y is None else self.Y)[examples]
        with own_precision(self):
            block = np.asarray(
                gram(
                    self.kernel,
                    self.model,
                    self.X,
                    few,
                    memory=self.memory,
                    dtype=self.dtype.name,
                    n_jobs=self.n_jobs,
                )
            )
        if block.ndim == 2:
            return block[:, place]
        if block.ndim == 4:
            return block[:, place, :, outputs].transpose(1, 2, 0).reshape(self.shape[0], len(indices))
        found = np.zeros((len(self.X), self.n_outputs, len(indices)), block.dtype)
        found[:, outputs, np.arange(len(indices))] = block[:, place, outputs]
        return found.reshape(self.shape[0], len(indices))

    def _adjoint(self):
        return self if self.Y is None else self._transposed()

    _transpose = _adjoint

    def _transposed(self) -> Self:
        options = {"n_outputs": self.n_outputs, "memory": self.memory, "n_jobs": self.n_jobs}
        return type(self)(self.kernel, self.model, self.Y, self.X, dtype=self.dtype, **options)


def gram_operator(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    memory: str | int = "2GiB",
    dtype: DTypeLike | None = None,
    n_jobs: int | None = None,
) -> GramOperator:
    """Return the Gram matrix of a kernel over inputs as a linear operator, which is never formed.

    ``K @ V`` pulls the columns of V back to the parameters, tile by tile, and pushes the result forward:
    K(X, Y) V = J(X) (J(Y)ᵀ V). Time is linear in the number of rows, and memory does not grow with it, except by
    inputs and results. The full kernel takes one backward and one forward pass of the network for each column; the
    trace and class kernels take one for each output, the pseudo kernel one in all, for all columns together.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        As for :func:`~ntkrobust_sk.gram`.
    model : Model
        Or None, as there.
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

    Returns
    -------
    GramOperator
        A :class:`scipy.sparse.linalg.LinearOperator` of shape (n, m), or (n·C, m·C) of the class and the full
        kernel: row i·C + c is output c at example i.

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
    kernel, model, X, Y = checked_sides(kernel, model, X, Y)
    own = jnp.promote_types(params_dtype(model.variables.params), jnp.float32)
    dtype = np.dtype(own if dtype is None else floating("dtype", dtype, ("float32", "float64")))
    with own_precision(np.empty(0, dtype)):
        model = _with_parameters_in(model, dtype)
        rows, columns = _inputs_in(X, dtype), None if Y is None else _inputs_in(Y, dtype)
        n_outputs = _n_outputs(kernel, model, rows)
    options = {"memory": parse_memory(memory), "n_jobs": job_count(n_jobs), "dtype": dtype}
    return GramOperator(kernel, model, rows, columns, n_outputs=n_outputs, **options)


def _with_parameters_in(model: Model, dtype: np.dtype) -> Model:
    """Return the model with parameters in another precision, in NumPy, which keeps it wherever they are sent."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), model.variables.params)
    return replace(model, variables=Variables(params, model.variables.state))


def _inputs_in(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if x.dtype.kind in "iu":
        return x
    return x.astype(np.result_type(dtype, np.complex64) if x.dtype.kind == "c" else dtype)


def _n_outputs(kernel: Kernel, model: Model, X: np.ndarray) -> int:
    """Return C where a kernel's blocks have axes of outputs, and one where they have none."""
    if kernel.rank == 2:
        return 1
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    block = jax.eval_shape(kernel.entry, model, x, x)
    return 1 if block.ndim == 2 else block.shape[2]
