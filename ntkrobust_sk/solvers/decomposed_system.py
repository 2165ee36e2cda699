"""One system of kernel regression, decomposed into eigenvalues and eigenvectors."""

from typing import NamedTuple

import numpy as np

from .._arrays import eigh
from .direct import EIGH_MAX_SIZE, SingularGramError
from .matrices import require_symmetric


class System(NamedTuple):
    """One system of kernel regression, W^½ K W^½ = V Λ Vᵀ, with kernel and weights near one.

    Attributes
    ----------
    eigenvalues : array (N,)
        Ascending.
    vectors : array (N, N)
        V: example by example, each with its b outputs.
    targets : array (N, t)
        Vᵀ W^½ y.
    ones : array (N, b)
        Vᵀ W^½ 1, with a column for each of the b outputs.
    norm : float
        Of the matrix, Frobenius.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    ones: np.ndarray
    norm: float


def decomposed(matrix: np.ndarray, targets: np.ndarray, root: np.ndarray, unit: float) -> System:
    """Return the eigendecomposition of one system with its right-hand sides.

    Parameters
    ----------
    matrix : array (n, n) or (n, n, C, C)
    targets : array (n, t)
    root : array (n,)
        Roots of the weights.
    unit : float
        A power of four, by which the matrix is divided.
    """
    n, b = len(matrix), matrix.shape[2] if matrix.ndim == 4 else 1
    if n * b > EIGH_MAX_SIZE:
        raise ValueError(
            f"an eigendecomposition takes at most {EIGH_MAX_SIZE} rows and outputs, because 32-bit LAPACK fails "
            f"above; got {n * b}. Choose alpha by GridSearchCV, or on fewer rows"
        )
    A = np.empty((n, b, n, b))
    A[...] = matrix.transpose(0, 2, 1, 3) if matrix.ndim == 4 else matrix[:, None, :, None]
    side = root / unit**0.5
    A *= side[:, None, None, None]
    A *= side[None, None, :, None]
    A = A.reshape(n * b, n * b)
    norm, _ = require_symmetric(A, "gram")
    eigenvalues, vectors = eigh(A)
    if not np.isfinite(eigenvalues).all():
        raise SingularGramError("the eigenvalues of the Gram matrix are not finite")
    right = (root[:, None] * targets).reshape(n * b, -1)
    ones = (root[:, None, None] * np.eye(b)).reshape(n * b, b)
    return System(eigenvalues, vectors, vectors.T @ right, vectors.T @ ones, norm)
