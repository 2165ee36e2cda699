"""What all Gram matrices have in common that are known by their products: a SciPy linear operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator

from .._validation import array, brief, is_finite
from ..execution.interrupts import heard
from .tiles import own_precision, transpose


class GramOperator(LinearOperator):
    """A Gram matrix K(X, Y) that is never formed: what :func:`~ntkrobust_sk.gram_operator` returns.

    A class or full kernel of C outputs is one matrix here, in the order of examples: row i·C + c is output c at
    example i.

    Attributes
    ----------
    shape : (int, int)
        (n, m), or (n·C, m·C) of the class and the full kernel.
    dtype : dtype
        In which products are computed. They are returned in it, or in that of V if this is wider.
    n_outputs : int
        C, or one where an entry is a number.
    rank : int
        2, 3 or 4: the axes of the dense array.
    """

    def __init__(self, n: int, m: int, *, rank: int, n_outputs: int, symmetric: bool, dtype: Any):
        self.rank, self.n_outputs, self.symmetric = rank, n_outputs, symmetric
        super().__init__(np.dtype(dtype), (n * n_outputs, m * n_outputs))

    def _times(self, V: np.ndarray, transposed: bool) -> np.ndarray:
        """Return the product with V (m, t), or (m, C, t) where there is an axis of outputs."""
        raise NotImplementedError

    def _transposed(self) -> GramOperator:
        """Return the same matrix with rows and columns swapped."""
        raise NotImplementedError

    def _own_diagonal(self) -> np.ndarray:
        """Return the diagonal, (n,) or (n, C)."""
        raise NotImplementedError

    def _columns_of(self, examples: np.ndarray) -> np.ndarray:
        """Return the block of all rows with some examples, none of them twice: (n, k, ...)."""
        raise NotImplementedError

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

    @heard()
    def diagonal(self) -> np.ndarray:
        """Compute the diagonal of K(X, X), exactly.

        Returns
        -------
        array (n,), or (n·C,)

        Raises
        ------
        ValueError
            For a matrix of two sets of inputs.
        """
        if not self.symmetric:
            raise ValueError("a matrix of two sets of inputs, X and Y, has no diagonal; leave Y out")
        with own_precision(self):
            return self._finite(np.asarray(self._own_diagonal(), self.dtype).reshape(-1))

    @heard()
    def columns(self, indices: ArrayLike) -> np.ndarray:
        """Compute some columns exactly, as a dense array.

        Parameters
        ----------
        indices : int array (k,)
            In 0, ..., m - 1 (or m·C - 1), in any order; one may come twice.

        Returns
        -------
        array (n, k), or (n·C, k)

        Raises
        ------
        ValueError
            For indices that are none.
        """
        indices, n = array("indices", indices, ndim=1), self.shape[1]
        if indices.dtype.kind not in "iu" or (indices.size and not 0 <= indices.min() <= indices.max() < n):
            raise ValueError(f"indices must be integers in 0, ..., {n - 1}, the columns, got {brief(indices)}")
        if not indices.size:
            return np.zeros((self.shape[0], 0), self.dtype)
        examples, outputs = np.divmod(indices, self.n_outputs)
        examples, place = np.unique(examples, return_inverse=True)
        with own_precision(self):
            block = self._finite(np.asarray(self._columns_of(examples), self.dtype))
        if block.ndim == 2:
            return block[:, place]
        n = len(block)
        if block.ndim == 4:
            return block[:, place, :, outputs].transpose(1, 2, 0).reshape(n * self.n_outputs, -1)
        found = np.zeros((n, self.n_outputs, len(indices)), block.dtype)
        found[:, outputs, np.arange(len(indices))] = block[:, place, outputs]
        return found.reshape(n * self.n_outputs, -1)

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
        return self._multiplied(X, False)

    def _rmatmat(self, X):
        return self._multiplied(X, not self.symmetric)

    @heard()
    def _multiplied(self, V, transposed: bool) -> np.ndarray:
        """Compute K V or Kᵀ V, each column in units of a power of two, where none overflows."""
        wanted, n = np.result_type(self.dtype, V), self.shape[1 if transposed else 0]
        V = np.asarray(V, np.float64)
        if V.shape[1] == 0:
            return np.zeros((n, 0), wanted)
        exponents = np.frexp(np.abs(V).max(axis=0))[1]
        V = np.ldexp(V, -exponents).astype(self.dtype)
        if self.rank > 2:
            V = V.reshape(-1, self.n_outputs, V.shape[1])
        with own_precision(self), np.errstate(over="ignore", invalid="ignore"):
            found = np.asarray(self._times(V, transposed)).reshape(n, V.shape[-1])
            return self._finite(np.ldexp(found.astype(wanted), exponents))

    def _finite(self, found) -> np.ndarray:
        if not is_finite(found):
            raise FloatingPointError(
                f"{self!r} has entries or products that are not finite; look for overflow in the network's "
                "parameters or inputs"
            )
        return found

    def _adjoint(self) -> Any:
        return self if self.symmetric else self._transposed()

    _transpose = _adjoint


def add_product(total: np.ndarray, V: np.ndarray, block: Any, rows: slice, columns: slice) -> None:
    """Add to ``total`` (n, [C,] t) the product of one tile, (h, w, ...) at these rows and columns, and V.

    What of a tile is beyond the matrix is left out.
    """
    into, some = total[rows], V[columns]
    block = np.asarray(block)[: len(into), : len(some)]
    if block.ndim == 2:
        into += block @ some
    elif block.ndim == 3:
        into += (block.transpose(2, 0, 1) @ some.swapaxes(0, 1)).swapaxes(0, 1)
    else:
        (h, w, c, d), t = block.shape, V.shape[-1]
        matrix = block.transpose(0, 2, 1, 3).reshape(h * c, w * d)
        into += (matrix @ some.reshape(w * d, t)).reshape(h, c, t)


def add_tile(total, V, block, i: int, j: int, rows: int, *, mirrored: bool, transposed: bool) -> None:
    """Add the product of the tile (i, j), and that of its mirror image, to ``total``."""
    block = np.asarray(block)
    at, beside = (slice(k * rows, (k + 1) * rows) for k in (i, j))
    if not transposed:
        add_product(total, V, block, at, beside)
    if transposed or mirrored:
        add_product(total, V, transpose(block), beside, at)


def count_tiles(n: int, rows: int) -> int:
    """Return how many tiles n rows make."""
    return math.ceil(n / rows)
