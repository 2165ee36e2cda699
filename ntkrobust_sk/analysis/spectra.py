"""Measures of the spectrum of one Gram matrix: its size, and how many directions it uses.

As in :mod:`.metrics`, any array is taken, and so is any SciPy ``LinearOperator``. Eigenvalues of a matrix on a GPU
are computed there, by CuPy, if it is installed.
"""

import numpy as np

from .._arrays import AnyArray
from .._validation import check_choice, integer
from . import estimates
from .checked import INDEFINITE_TOLERANCE, checked_gram, spectrum_of
from .sketches import PROBES, Eigenpairs, Probes, are_operators, block_lanczos, checked_operator


def kernel_trace(K: AnyArray, *, probes: Probes = PROBES) -> float:
    """Compute the trace Σ_i K_ii.

    Parameters
    ----------
    K : array or operator (n, n)
    probes : Probes
        For an operator without ``diagonal()``; with one, the trace is exact.

    Returns
    -------
    trace : float

    Raises
    ------
    ValueError
        If ``K`` is not square, finite, symmetric and nonzero.

    Examples
    --------
    >>> kernel_trace([[2.0, 1.0], [1.0, 3.0]])
    5.0
    """
    if are_operators(probes, K=K):
        return estimates.trace(checked_operator("K", K), probes)
    K, _, unit = checked_gram(K, "K")
    return float(np.trace(K)) * unit


def kernel_norm(K: AnyArray, *, probes: Probes = PROBES) -> float:
    """Compute the Frobenius norm ‖K‖_F = √(Σ_ij K_ij²).

    Parameters
    ----------
    K : array or operator (n, n)
    probes : Probes
        For an operator.

    Returns
    -------
    norm : float

    Raises
    ------
    ValueError
        If ``K`` is not square, finite, symmetric and nonzero.

    Examples
    --------
    >>> kernel_norm([[3.0, 0.0], [0.0, 4.0]])
    5.0
    """
    if are_operators(probes, K=K):
        return estimates.norm(K, probes)
    _, norm, unit = checked_gram(K, "K")
    return norm * unit


def top_eigenpairs(K: AnyArray, k: int, *, probes: Probes = PROBES) -> Eigenpairs:
    """Compute the k largest eigenvalues of a kernel, and their eigenvectors.

    Parameters
    ----------
    K : array or operator (n, n)
        Of an operator they are found by Lanczos with a block of columns, starting at random.
    k : int
        In 1, ..., n.
    probes : Probes
        Its ``random_state`` is that of the start.

    Returns
    -------
    Eigenpairs
        With the residuals ‖K v - λ v‖, which bound the error of an eigenvalue.

    Raises
    ------
    ValueError
        If ``k`` is not an integer in 1, ..., n, or ``K`` is not square, finite, symmetric and nonzero.

    Warns
    -----
    ConvergenceWarning
        If residuals are above 1e-5 of the largest eigenvalue in the end.

    Examples
    --------
    >>> top_eigenpairs([[2.0, 0.0], [0.0, 1.0]], 1).eigenvalues
    array([2.])
    """
    if are_operators(probes, K=K):
        K = checked_operator("K", K)
        return block_lanczos(K, integer("k", k, high=K.shape[0]), random_state=probes.random_state)
    K, _, unit = checked_gram(K, "K")
    k = integer("k", k, high=len(K))
    values, vectors = np.linalg.eigh(K)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    residuals = np.linalg.norm(K @ vectors - vectors * values, axis=0)
    return Eigenpairs(values * unit, vectors, residuals * unit)


def effective_rank(K: AnyArray, kind: str = "entropy", *, probes: Probes = PROBES) -> float:
    """Count the directions that a kernel uses.

    With p_i = λ_i / Σ_j λ_j: "entropy" is exp(-Σ_i p_i ln p_i) (Roy & Vetterli 2007); "participation" is
    tr(K)² / ‖K‖_F² = 1 / Σ_i p_i², which is never larger and costs O(n²) instead of an eigendecomposition.

    Parameters
    ----------
    K : array or operator (n, n)
        Positive semidefinite.
    kind : {"entropy", "participation"}, default="entropy"
        Of an operator, "participation" takes two products and "entropy" ``probes.n_steps`` more.
    probes : Probes
        For operators.

    Returns
    -------
    rank : float
        In [1, n]; n for the identity, r for a projection on r dimensions.

    Raises
    ------
    ValueError
        If ``kind`` is unknown, or ``K`` is not square, finite, symmetric, nonzero and positive semidefinite (for
        "participation" only its diagonal is seen to be nonnegative).

    Examples
    --------
    >>> round(effective_rank([[2.0, 0.0], [0.0, 2.0]]), 6)
    2.0
    """
    check_choice("kind", kind, ("entropy", "participation"))
    if are_operators(probes, K=K):
        return (estimates.entropy_rank if kind == "entropy" else estimates.participation)(K, probes)
    if kind == "participation":
        K, norm, _ = checked_gram(K, "K")
        if np.diagonal(K).min() < -INDEFINITE_TOLERANCE * norm:
            raise ValueError("K must be positive semidefinite, but its diagonal has negative entries")
        return float(np.trace(K) ** 2 / norm**2)
    eigenvalues = spectrum_of(K)
    p = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def top_mass(K: AnyArray, k: int, *, probes: Probes = PROBES) -> float:
    """Return the share of the top k eigenvalues in the squared spectrum, Σ_{i≤k} λ_i² / Σ_i λ_i².

    From Tsilivis & Kempe 2022, arXiv:2210.05577.

    Parameters
    ----------
    K : array or operator (n, n)
        Positive semidefinite.
    k : int
        In 1, ..., n.
    probes : Probes
        For operators.

    Returns
    -------
    mass : float
        In (0, 1].

    Raises
    ------
    ValueError
        If ``k`` is not an integer in 1, ..., n, or ``K`` is not square, finite, symmetric, nonzero and positive
        semidefinite.

    Examples
    --------
    >>> top_mass([[2.0, 0.0], [0.0, 1.0]], 1)
    0.8
    """
    if are_operators(probes, K=K):
        K = checked_operator("K", K)
        return estimates.top_mass(K, integer("k", k, high=K.shape[0]), probes)
    squares = spectrum_of(K)[::-1] ** 2
    k = integer("k", k, high=squares.size)
    return float(squares[:k].sum() / squares.sum())
