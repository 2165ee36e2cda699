"""The system of kernel ridge regression, K + λI, of a matrix or of a linear operator, with weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from scipy.sparse.linalg import LinearOperator

from .._arrays import AnyArray, as_array_like, host_product, to_numpy
from .._validation import is_finite
from .units import near_one, unit_of

# Of a matrix that is brought to single precision.
ROWS_AT_ONCE = 256
# Of the largest diagonal entry: beside this the kernel is less than rounding, twice over.
LARGEST_RIDGE = 2.0**110


@dataclass(frozen=True, eq=False)
class RidgeSystem:
    """The symmetric system W^½ K W^½ + λI, of which nothing is formed.

    Iterative solvers are called with one: they read what the matrix and the ridge are, each by itself.

    Attributes
    ----------
    gram : array (n, n), or LinearOperator
        An array in double precision; one of NumPy may be in single precision, too.
    ridge : float
        λ.
    root : array (n,) or None
        The square roots of the weights.
    known_diagonal : array (n,) or None
        That of K, where it is known.

    Examples
    --------
    >>> system = RidgeSystem(np.ones((2, 2)), 1.0)
    >>> system.product(np.eye(2))
    array([[2., 1.],
           [1., 2.]])
    """

    gram: Any
    ridge: float = 0.0
    root: AnyArray | None = None
    known_diagonal: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (n, n)."""
        n = int(self.gram.shape[0])
        return n, n

    @property
    def dtype(self) -> Any:
        """The precision in which products are taken."""
        return np.dtype(np.float64) if self.is_single else self.gram.dtype

    @property
    def is_operator(self) -> bool:
        """Whether K is a linear operator, of which no entry is known."""
        return isinstance(self.gram, LinearOperator)

    @property
    def has_columns(self) -> bool:
        """Whether K tells its diagonal and its columns, which a preconditioner and landmarks are made of."""
        return not self.is_operator or all(hasattr(self.gram, name) for name in ("diagonal", "columns"))

    @cached_property
    def weight(self) -> np.ndarray | None:
        """The weights (n,) in NumPy, or None."""
        return None if self.root is None else np.asarray(to_numpy(self.root), np.float64) ** 2

    def product(self, V: AnyArray) -> AnyArray:
        """Compute (W^½ K W^½ + λI) V for V (n, k), in double precision."""
        return self.kernel_product(V) + self.ridge * V

    def kernel_product(self, V: AnyArray) -> AnyArray:
        """Compute W^½ K W^½ V for V (n, k)."""
        if self.root is not None:
            return self.root[:, None] * self._plain_product(self.root[:, None] * V)
        return self._plain_product(V)

    @property
    def is_single(self) -> bool:
        """Whether products can be taken in single precision, in half of the time of those in double precision."""
        return isinstance(self.gram, np.ndarray) and self.gram.dtype == np.float32

    def rough_product(self, V: AnyArray) -> AnyArray:
        """Compute the same as :meth:`product`, in single precision where the matrix has no more."""
        if not self.is_single:
            return self.product(V)
        root = 1.0 if self.root is None else self.root[:, None]
        # each column in its own units
        units = np.maximum(np.abs(V).max(axis=0), np.finfo(float).tiny)
        narrow = together((root * V / units).astype(np.float32))
        return root * ((self.gram @ narrow).astype(np.float64) * units) + self.ridge * V

    def narrow(self, scale: float) -> np.ndarray:
        """Return a copy of W^½ K W^½ / scale in single precision, of a matrix of NumPy."""
        n = self.shape[0]
        copy = np.empty((n, n), np.float32)
        for at in range(0, n, ROWS_AT_ONCE):
            rows = slice(at, at + ROWS_AT_ONCE)
            left = 1 / scale if self.root is None else self.root[rows, None] / scale
            np.multiply(self.gram[rows], left, out=copy[rows], casting="same_kind")
            if self.root is not None:
                copy[rows] *= self.root
        return copy

    def within_range(self) -> tuple["RidgeSystem", float]:
        """Return a system near one, with a ridge whose square is in range, and the factor that its answer lacks.

        Above 2^110 of the diagonal the answer is b / λ, or what landmarks make of b over λ, to the last digit.
        """
        if self.is_operator and not hasattr(self.gram, "diagonal"):
            return self, 1.0
        largest = float(self.diagonal().max())
        most = LARGEST_RIDGE * largest
        system, factor = (replace(self, ridge=most), most / self.ridge) if 0 < most < self.ridge else (self, 1.0)
        unit = unit_of(np.array([largest]))
        if near_one(unit):
            return system, factor
        ridge = system.ridge / unit
        if not self.is_operator:
            return replace(system, gram=self.gram / unit, ridge=ridge), factor / unit
        root = (np.ones(self.shape[0]) if self.root is None else self.root) / unit**0.5
        return replace(system, root=root, ridge=ridge), factor / unit

    def _plain_product(self, V):
        if isinstance(self.gram, np.ndarray):
            return host_product(self.gram, V)
        if not self.is_operator:
            return self.gram @ V
        found = np.asarray(self.gram.matmat(V), np.float64)
        if not is_finite(found):
            raise FloatingPointError(f"a product with {self.gram!r} has entries that are not finite")
        return found

    def diagonal(self) -> np.ndarray:
        """Return the diagonal (n,) of W^½ K W^½, in NumPy."""
        if self.known_diagonal is not None:
            diagonal = np.array(self.known_diagonal)
        elif self.is_operator:
            diagonal = np.array(self.gram.diagonal(), np.float64)
        else:
            diagonal = np.array(to_numpy(array_namespace(self.gram).linalg.diagonal(self.gram)), np.float64)
        return diagonal if self.weight is None else diagonal * self.weight

    def columns(self, indices: np.ndarray) -> AnyArray:
        """Return columns (n, k) of W^½ K W^½, in double precision."""
        if self.is_operator:
            columns = np.asarray(self.gram.columns(indices), np.float64)
        else:
            # rows of a symmetric matrix, which lie together
            xp = array_namespace(self.gram)
            columns = xp.astype(xp.take(self.gram, self._indices(indices), axis=0).T, xp.float64, copy=False)
        if self.root is None:
            return columns
        xp = array_namespace(columns)
        return columns * self.root[:, None] * xp.take(self.root, self._indices(indices), axis=0)

    def _indices(self, indices):
        like = self.root if self.is_operator else self.gram
        return as_array_like(np.asarray(indices), like)

    def array(self, values: np.ndarray) -> AnyArray:
        """Bring numbers to where the matrix lives."""
        return values if self.is_operator else as_array_like(values, self.gram)

    def empty(self, *shape: int) -> AnyArray:
        """Return zeros where the matrix lives."""
        if self.is_operator:
            return np.zeros(shape)
        xp = array_namespace(self.gram)
        return xp.zeros(shape, dtype=xp.float64, device=device(self.gram))


def together(V: AnyArray) -> AnyArray:
    """Return few columns so that each lies together: products with them take BLAS half of the time."""
    return np.asfortranarray(V) if isinstance(V, np.ndarray) else V


def as_system(A: Any) -> RidgeSystem:
    """Return a system as it is, and a matrix or an operator as a system without a ridge of its own."""
    return A if isinstance(A, RidgeSystem) else RidgeSystem(A)
