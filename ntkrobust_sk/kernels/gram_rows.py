"""A Gram matrix of which some rows and columns are computed at a time: what landmarks are chosen from."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from ..networks.model import Model
from .gram_matrix import gram
from .ntk import Kernel
from .operator import gram_operator


class GramRows(LinearOperator):
    """The :func:`.gram_operator` of a kernel of one number a pair, which gives blocks of its entries, too.

    Parameters
    ----------
    kernel : Kernel
        Of rank 2.
    model : Model
    X : array (n, ...)
        As :func:`.host_inputs` gives them.
    memory : int
        Budget in bytes.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, TraceNTK
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> K = GramRows(TraceNTK(), model, np.eye(4, dtype=np.float32), 2**28)
    >>> K.block(slice(0, 3), [0, 2]).shape
    (3, 2)
    """

    def __init__(self, kernel: Kernel, model: Model, X: np.ndarray, memory: int):
        self.kernel, self.model, self.X, self.memory = kernel, model, X, memory
        self._operator = gram_operator(kernel, model, X, memory=memory)
        super().__init__(self._operator.dtype, self._operator.shape)

    def _matmat(self, X):
        return self._operator.matmat(X)

    def _adjoint(self):
        return self

    def diagonal(self) -> np.ndarray:
        """Compute the diagonal (n,)."""
        return self._operator.diagonal()

    def columns(self, indices: Any) -> np.ndarray:
        """Compute some columns (n, k)."""
        return self._operator.columns(indices)

    def block(self, rows: slice | np.ndarray, columns: Any) -> np.ndarray:
        """Compute the entries (r, c) of some rows and columns."""
        sides = self.X[rows], self.X[np.asarray(columns)]
        return np.asarray(gram(self.kernel, self.model, *sides, memory=self.memory))

    def subset(self, indices: np.ndarray) -> GramRows:
        """Return the matrix of some of the inputs."""
        return GramRows(self.kernel, self.model, self.X[indices], self.memory)
