"""A Gram matrix of which some rows and columns are computed at a time: what landmarks are chosen from."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from .gram_matrix import gram
from .operator import GramOperator


class GramRows(GramOperator):
    """A :class:`GramOperator` of a kernel of one number a pair that gives blocks of its entries, too.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, gram_operator
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> K = GramRows.of(gram_operator("trace", model, np.eye(4)))
    >>> K.block(slice(0, 3), [0, 2]).shape
    (3, 2)
    """

    @classmethod
    def of(cls, operator: GramOperator) -> GramRows:
        """Return the same matrix, of one set of inputs."""
        return cls(
            operator.kernel,
            operator.model,
            operator.X,
            None,
            n_outputs=operator.n_outputs,
            memory=operator.memory,
            n_jobs=operator.n_jobs,
            dtype=cast(np.dtype, operator.dtype),
        )

    def block(self, rows: slice | np.ndarray, columns: Any) -> np.ndarray:
        """Compute the entries (r, c) of some rows and columns."""
        sides = self.X[rows], self.X[np.asarray(columns)]
        options = {"memory": self.memory, "dtype": cast(np.dtype, self.dtype).name, "n_jobs": self.n_jobs}
        return np.asarray(gram(self.kernel, self.model, *sides, **options))

    def subset(self, indices: np.ndarray) -> GramRows:
        """Return the matrix of some of the inputs."""
        part = GramRows.of(self)
        part.X = self.X[indices]
        part.shape = (len(part.X), len(part.X))
        return part
