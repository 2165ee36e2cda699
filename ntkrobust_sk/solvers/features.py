"""The Gram matrix of rows of features, which are read or computed a block at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator

from .._validation import brief, is_finite, require_unmasked

# What a block of features takes at most.
BLOCK_BYTES = 2**26
# Of rows that are brought to double precision at once: a core's cache holds them until they are multiplied.
CACHED_BYTES = 3 * 2**19


class FeatureGram(LinearOperator):
    """The Gram matrix K = Φ Φᵀ of rows of features, as a linear operator: memory of one block of rows.

    Parameters
    ----------
    inputs : array (n, ...)
        What rows are made of: a NumPy array, one on disk (``numpy.memmap``) that takes slices and arrays of
        indices, a data frame, or a sparse matrix of SciPy, of which one block is made dense at a time.
    transform : callable, default=None
        From rows (m, ...) of inputs to features (m, k), such as the ``transform`` of a fitted scikit-learn
        transformer or of :class:`~ntkrobust_sk.TangentFeatures`. It is called on a block of rows at a time, each
        time they are needed, of the kind of the inputs, and may give a sparse matrix. None: inputs (n, k) are the
        features.

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
        self.inputs, self.transform = (inputs.tocsr() if issparse(inputs) else inputs), transform
        self._given(np.zeros(1, int))
        first = self.rows(slice(0, 1))
        self.n_features, self.features_dtype = first.shape[1], first.dtype
        super().__init__(np.dtype(np.float64), (inputs.shape[0], inputs.shape[0]))

    def rows(self, at: Any) -> np.ndarray:
        """Return the features (m, k) of some rows, by a slice or by indices, in single or double precision."""
        given = self._given(at)
        found = given if self.transform is None else self.transform(given)
        require_unmasked("features", found)
        found = np.asarray(found.toarray() if issparse(found) else found)
        if found.ndim != 2 or len(found) != given.shape[0] or found.dtype.kind not in "fiub":
            raise ValueError(
                f"features must be numbers, one row each of {given.shape[0]} inputs, got {brief(found)}"
            )
        found = found if found.dtype.char in "fd" else found.astype(np.float64)
        if not is_finite(found):
            raise ValueError("features must be finite, but have NaN or infinity")
        return found

    def _given(self, at):
        """Return some rows of the inputs, if these give rows."""
        wanted = "inputs must give rows by slices and by arrays of indices, as NumPy arrays do"
        try:
            given = self.inputs.iloc[at] if hasattr(self.inputs, "iloc") else self.inputs[at]
        except (TypeError, KeyError, IndexError, NotImplementedError) as error:
            raise TypeError(f"{wanted}; {brief(self.inputs)} raised {type(error).__name__}: {error}") from error
        n = len(range(self.inputs.shape[0])[at]) if isinstance(at, slice) else len(at)
        if getattr(given, "shape", (None,))[:1] != (n,):
            raise TypeError(f"{wanted}; {brief(self.inputs)} gave {brief(given)} for {n} of them")
        return given

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their features, block by block."""
        size = max(1, BLOCK_BYTES // (8 * self.n_features))
        for start in range(0, self.shape[0], size):
            at = slice(start, min(start + size, self.shape[0]))
            yield at, self.rows(at)

    def double_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their features in double precision, few at a time."""
        for at, rows in self.blocks():
            for part, features in in_double(rows):
                yield slice(at.start + part.start, at.start + part.stop), features

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
        """Compute Φᵀ V, (k, T), for V (n, T), in double precision."""
        found = np.zeros((self.n_features, *np.shape(V)[1:]))
        for at, rows in self.double_blocks():
            found += rows.T @ V[at]
        return found

    def _matmat(self, X):
        folded = self.fold(X)
        return np.concatenate([rows @ folded for _, rows in self.double_blocks()])

    def _matvec(self, x):
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _adjoint(self):
        return self


def in_double(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows (m, k) in double precision: as they are, or few at a time where they have to be copied.

    >>> [(part, rows.dtype) for part, rows in in_double(np.ones((3, 2), np.float32))]
    [(slice(0, 3, None), dtype('float64'))]
    """
    size = len(rows) if rows.dtype == np.float64 else max(1, CACHED_BYTES // (8 * rows.shape[1]))
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        yield part, rows[part].astype(np.float64, copy=False)
