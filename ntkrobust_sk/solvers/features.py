"""The Gram matrix of rows of features, which are read or computed a block at a time."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from scipy.sparse.linalg import LinearOperator

from .._validation import brief, is_finite

# What a block of features takes at most.
BLOCK_BYTES = 2**26


class FeatureGram(LinearOperator):
    """The Gram matrix K = Φ Φᵀ of rows of features, as a linear operator: memory of one block of rows.

    Parameters
    ----------
    inputs : array (n, ...)
        What rows are made of: a NumPy array, or one on disk (``numpy.memmap``) that takes slices and arrays of
        indices.
    transform : callable, default=None
        From rows (m, ...) of inputs to features (m, k), such as the ``transform`` of a fitted scikit-learn
        transformer or of :class:`~ntkrobust_sk.TangentFeatures`. It is called on a block of rows at a time, each
        time they are needed. None: inputs (n, k) are the features.

    Examples
    --------
    >>> import numpy as np
    >>> K = FeatureGram(np.array([[1.0, 0.0], [1.0, 2.0]]))
    >>> K @ np.eye(2)
    array([[1., 1.],
           [1., 5.]])
    >>> K.diagonal(), K.columns([1])
    (array([1., 5.]), array([[1.],
           [5.]]))
    """

    def __init__(self, inputs: Any, transform: Callable | None = None):
        if not hasattr(inputs, "shape") or len(inputs.shape) < (2 if transform is None else 1):
            raise ValueError(f"inputs must be an array of rows of features (n, k), got {brief(inputs)}")
        if inputs.shape[0] == 0:
            raise ValueError("inputs must hold at least one row, got none")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of rows, got {brief(transform)}")
        self.inputs, self.transform = inputs, transform
        first = self.rows(slice(0, 1))
        self.n_features, self.features_dtype = first.shape[1], first.dtype
        super().__init__(np.dtype(np.float64), (inputs.shape[0], inputs.shape[0]))

    def rows(self, at: Any) -> np.ndarray:
        """Return the features (m, k) of some rows, by a slice or by indices, in single or double precision."""
        given = self.inputs[at]
        found = np.asarray(given if self.transform is None else self.transform(given))
        if found.ndim != 2 or len(found) != len(given) or found.dtype.kind not in "fiub":
            raise ValueError(f"features must be numbers, one row each of {len(given)} inputs, got {brief(found)}")
        found = found if found.dtype.char in "fd" else found.astype(np.float64)
        if not is_finite(found):
            raise ValueError("features must be finite, but have NaN or infinity")
        return found

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their features, block by block."""
        size = max(1, BLOCK_BYTES // (8 * self.n_features))
        for start in range(0, self.shape[0], size):
            at = slice(start, min(start + size, self.shape[0]))
            yield at, self.rows(at)

    def diagonal(self) -> np.ndarray:
        """Return the squared lengths (n,) of the rows."""
        return np.concatenate([np.einsum("ik,ik->i", rows, rows, dtype=np.float64) for _, rows in self.blocks()])

    def columns(self, indices: Any) -> np.ndarray:
        """Return columns (n, m) of the matrix."""
        return self.block(slice(None), indices)

    def block(self, rows: Any, columns: Any) -> np.ndarray:
        """Return the entries of some rows and columns."""
        right = self.rows(np.asarray(columns)).astype(np.float64)
        if isinstance(rows, slice) and rows == slice(None):
            return np.concatenate([left @ right.T for _, left in self.blocks()])
        return self.rows(rows) @ right.T

    def subset(self, indices: np.ndarray) -> "FeatureGram":
        """Return the Gram matrix of some rows, which are kept."""
        return FeatureGram(self.rows(indices))

    def fold(self, V: np.ndarray) -> np.ndarray:
        """Compute Φᵀ V, (k, T), for V (n, T)."""
        return cast(np.ndarray, sum(rows.T @ V[at].astype(rows.dtype, copy=False) for at, rows in self.blocks()))

    def _matmat(self, X):
        folded = sum(rows.T @ X[at] for at, rows in self.blocks())
        return np.concatenate([rows @ folded for _, rows in self.blocks()])

    def _matvec(self, x):
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _adjoint(self):
        return self
