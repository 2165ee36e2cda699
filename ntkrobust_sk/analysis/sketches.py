"""Matrices that are known by their products alone: random columns, and what products with them show.

Two products with some columns each give the trace, the Frobenius norm and what is made of them. The first finds
the directions Q in which the matrix is largest; there the sums are exact. What is left is the mean over random
columns g' = (I - QQᵀ) g (Hutch++: Meyer et al. 2021, arXiv:2010.09649):

    tr(A) = tr(Qᵀ A Q) + E[g'ᵀ A g'],  and  ‖K‖² = ‖K Q‖² + E‖K g'‖²  with A = K².

Sums over functions of the eigenvalues take some steps of Lanczos from each of these columns (Golub & Meurant 1994;
Ubaru, Chen & Saad 2017). Standard errors are the jackknife's over the random columns. Hazelden 2025
(arXiv:2511.10796) estimates measures of tangent kernels so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.exceptions import ConvergenceWarning

from .._validation import LARGEST_SEED, array, brief, integer
from ..solvers.matrices import SYMMETRY_TOLERANCE, require_symmetric
from .checked import squarable_unit

# A Krylov space ends where less than this share of the matrix leads out of it.
EXHAUSTED = 1e-7
# Block Lanczos: columns more than eigenpairs, steps at most, and residuals that are enough, in units of the
# largest eigenvalue; products in single precision are known to about 1e-7 of it.
SPARE, STEPS, TOLERANCE = 8, 40, 1e-5


class Estimate(float):
    """A number with a standard error, where it was estimated.

    Attributes
    ----------
    standard_error : float
        Of the random columns; 0 where the number is exact up to rounding.

    Examples
    --------
    >>> found = Estimate(2.0, standard_error=0.1)
    >>> found + 1, found.standard_error
    (3.0, 0.1)
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = 0.0):
        """Make a float that knows its standard error."""
        made = super().__new__(cls, value)
        made.standard_error = float(standard_error)
        return made

    def __getnewargs__(self):
        return float(self), self.standard_error


@dataclass(frozen=True)
class Probes:
    """The random columns with which an operator is measured.

    Parameters
    ----------
    n_range : int, default=16
        Columns that find the directions in which the matrix is largest.
    n_random : int, default=48
        Random columns beside them, of which the standard error comes; at least 2. It falls as one over their root.
    n_steps : int, default=16
        Steps of Lanczos, where a measure needs more than the trace and the norm.
    random_state : int, default=0

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> from ntkrobust_sk import effective_rank
    >>> K = aslinearoperator(np.diag([3.0, 2.0, 1.0]))
    >>> round(effective_rank(K, "participation", probes=Probes(n_range=3)), 6)
    2.571429
    """

    n_range: int = 16
    n_random: int = 48
    n_steps: int = 16
    random_state: int = 0

    def __post_init__(self):
        for name, low in (("n_range", 0), ("n_random", 2), ("n_steps", 2), ("random_state", 0)):
            limits = {"high": LARGEST_SEED} if name == "random_state" else {}
            object.__setattr__(self, name, integer(name, getattr(self, name), low=low, **limits))


PROBES = Probes()


def are_operators(probes, **kernels) -> bool:
    """Tell whether one of several kernels is known by its products alone."""
    if not isinstance(probes, Probes):
        raise TypeError(f"probes must be Probes, such as Probes(n_random=64), got {brief(probes)}")
    return any(map(is_operator, kernels.values()))


def is_operator(K: Any) -> TypeGuard[LinearOperator]:
    """Tell whether K is known by its products alone."""
    return isinstance(K, LinearOperator)


@dataclass(frozen=True)
class Sketch:
    """Some columns, and the products of operators with them.

    Attributes
    ----------
    Q : array (n, q)
        Orthonormal: the directions in which the matrices are largest.
    G : array (n, r)
        Random columns less their part in Q.
    KQ, KG, of_extra : sequences of arrays
        Products of each matrix, in its unit, with these columns, and with further ones.
    units : sequence of float
        Powers of two, in which squares of these products are in range; one where they are as they are.
    """

    Q: np.ndarray
    G: np.ndarray
    KQ: Sequence[np.ndarray]
    KG: Sequence[np.ndarray]
    of_extra: Sequence[np.ndarray]
    units: Sequence[float]

    def inner(self, a: int, b: int) -> np.ndarray:
        """Return what each random column gives for ⟨K_a, K_b⟩, whose mean is the estimate."""
        return np.vdot(self.KQ[a], self.KQ[b]) + (self.KG[a] * self.KG[b]).sum(0)

    def trace(self, a: int) -> np.ndarray:
        """Return what each random column gives for tr(K_a)."""
        return np.vdot(self.Q, self.KQ[a]) + (self.G * self.KG[a]).sum(0)


def sketch(probes: Probes, extra: np.ndarray | None = None, **kernels: Any) -> Sketch:
    """Multiply matrices or operators of the same samples with columns in which they are large, and random ones.

    Parameters
    ----------
    probes : Probes
    extra : array (n, t), default=None
        Further columns, which the second products take with them.
    **kernels : LinearOperator or array (n, n)
        By the names that errors give them.

    Raises
    ------
    ValueError
        If one is not square, of another size, not symmetric, zero, or gives products that are not finite.
    """
    operators = [checked_operator(name, K) for name, K in kernels.items()]
    shapes = {operator.shape for operator in operators}
    if len(shapes) > 1:
        raise ValueError(
            f"{' and '.join(kernels)} must be kernels of the same samples, got shapes "
            f"{' and '.join(str(operator.shape) for operator in operators)}"
        )
    n, rng = operators[0].shape[0], np.random.default_rng(probes.random_state)
    n_range = min(probes.n_range, n)
    S = np.array_split(rng.normal(size=(n, n_range)), len(operators), axis=1)
    G = rng.choice([-1.0, 1.0], size=(n, probes.n_random))
    seen = [products(*each) for each in zip(operators, S, kernels, strict=True)]
    Q = np.linalg.qr(np.hstack(seen))[0]
    for _ in range(2):  # once more, for what rounding has left
        G -= Q @ (Q.T @ G)
    columns = np.hstack([Q, G] if extra is None else [Q, G, extra])
    found = [products(operator, columns, name) for operator, name in zip(operators, kernels, strict=True)]
    units = [squarable_unit(part[:, : n_range + probes.n_random]) for part in found]
    found = [part / unit for part, unit in zip(found, units, strict=True)]
    ends = np.cumsum([n_range, probes.n_random])
    KQ, KG, of_extra = zip(*(np.split(part, ends, axis=1) for part in found), strict=True)
    for name, of_range, of_random in zip(kernels, KQ, KG, strict=True):
        _require_symmetric_products(name, Q, G, of_range, of_random)
    return Sketch(Q, G, KQ, KG, of_extra, units)


def checked_operator(name: str, K: Any) -> LinearOperator:
    """Return an operator or a symmetric matrix as an operator, if it is square and real."""
    if not is_operator(K):
        K = array(name, K)
        require_symmetric(K, name)
        return aslinearoperator(np.asarray(K, np.float64))
    if K.shape[0] != K.shape[1] or K.shape[0] == 0:
        raise ValueError(f"{name} must be square, of shape (n, n) with n >= 1; got shape {tuple(K.shape)}")
    if K.dtype is not None and np.issubdtype(K.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real, got {K.dtype}")
    return K


def products(K: LinearOperator, V: np.ndarray, name: str) -> np.ndarray:
    """Return K V in double precision, if it is finite."""
    found = np.asarray(K.matmat(V), np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, but its products have NaN or infinity")
    return found


def _require_symmetric_products(name, Q, G, KQ, KG) -> None:
    """Raise unless QᵀKQ is symmetric, and GᵀKQ the transpose of QᵀKG: what the products show at no cost."""
    Z, KZ = np.hstack([Q, G]), np.hstack([KQ, KG])
    both = Z.T @ KZ
    size = np.linalg.norm(Z, axis=0).max() * np.linalg.norm(KZ, axis=0).max()
    if size == 0:
        raise ValueError(f"{name} is zero, so it has no direction to compare")
    worst = np.abs(both - both.T).max() / size
    if not worst <= SYMMETRY_TOLERANCE:
        raise ValueError(
            f"{name} must be symmetric, but uᵀ(K v) and vᵀ(K u) differ by {worst:.1e} of their size: was it made "
            "of two different sets of samples?"
        )


def jackknifed(function: Callable[..., float], *samples: np.ndarray) -> Estimate:
    """Return a function of means over random columns, with the jackknife's standard error.

    >>> found = jackknifed(lambda mean: mean**2, np.array([1.0, 2.0, 3.0]))
    >>> float(found), round(found.standard_error, 3)
    (4.0, 2.315)
    """
    n = len(samples[0])
    value = function(*(sample.mean() for sample in samples))
    sums = [sample.sum() for sample in samples]
    left_out = [function(*((s - x[i]) / (n - 1) for s, x in zip(sums, samples, strict=True))) for i in range(n)]
    return Estimate(value, math.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2)))


def quadrature(K: LinearOperator, V: np.ndarray, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights (s, t) with vᵀ f(K) v ≈ Σ_s weights_s f(nodes_s) for each column v, by Lanczos.

    All columns take a step together. Vectors are not kept orthogonal to those long before: what that repeats are
    eigenvalues, whose weights then share what one had.
    """
    n_steps = min(n_steps, len(V))
    norms = np.linalg.norm(V, axis=0)
    alphas, betas = np.zeros((2, n_steps, V.shape[1]))
    before, now = np.zeros_like(V), V / np.where(norms > 0, norms, 1)
    scale = np.zeros(V.shape[1])
    for step in range(n_steps):
        found = products(K, now, "K")
        alphas[step] = (now * found).sum(0)
        found -= now * alphas[step] + (before * betas[step - 1] if step else 0)
        found -= now * (now * found).sum(0)
        length = np.linalg.norm(found, axis=0)
        scale = np.maximum(scale, np.abs(alphas[step]) + length)
        # what is left of a column whose Krylov space is exhausted is rounding
        length[length <= EXHAUSTED * scale] = 0
        betas[step] = length
        before, now = now, np.where(length > 0, found / np.where(length > 0, length, 1), 0)
    nodes, weights = np.zeros((2, n_steps, V.shape[1]))
    for t in range(V.shape[1]):
        nodes[:, t], vectors = eigh_tridiagonal(alphas[:, t], betas[:-1, t])
        weights[:, t] = (norms[t] * vectors[0]) ** 2
    return nodes, weights


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues of a kernel, with their eigenvectors.

    Attributes
    ----------
    eigenvalues : array (k,)
        Largest first.
    eigenvectors : array (n, k)
        Orthonormal.
    residuals : array (k,)
        ‖K v - λ v‖ of each pair: an eigenvalue lies within that of λ.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    residuals: np.ndarray


def block_lanczos(K: LinearOperator, k: int, *, random_state: int = 0, tol: float = TOLERANCE) -> Eigenpairs:
    """Return the k largest eigenpairs of a symmetric operator, by Lanczos with a block of columns.

    Each step is one product with k and a few more columns, which costs an operator of a network hardly more than
    one. A ConvergenceWarning says so where residuals are above ``tol`` times the largest eigenvalue in the end.
    """
    n, rng = K.shape[0], np.random.default_rng(random_state)
    size = min(n, k + SPARE)
    block = np.linalg.qr(rng.normal(size=(n, size)))[0]
    basis, images, unit = np.zeros((n, 0)), np.zeros((n, 0)), 1.0
    for _ in range(STEPS):
        image = products(K, block, "K")
        unit = unit if basis.size else squarable_unit(image)
        basis, images = np.hstack([basis, block]), np.hstack([images, image / unit])
        small = basis.T @ images
        values, vectors = np.linalg.eigh((small + small.T) / 2)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        residuals = np.linalg.norm(images @ vectors - basis @ (vectors * values), axis=0)
        left = min(size, n - basis.shape[1])
        if left == 0 or (len(values) == k and residuals.max() <= tol * np.abs(values).max()):
            break
        # what is left of an exhausted space is rounding, and becomes random directions
        block = images[:, -size:] if left == size else rng.normal(size=(n, left))
        for _ in range(3):
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
    else:
        worst = residuals.max() / np.abs(values).max()
        warnings.warn(
            f"the {k} largest eigenvalues have residuals up to {worst:.1e} of the largest after "
            f"{STEPS} steps of Lanczos, more than {tol:.0e}; ask for fewer of them",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Eigenpairs(np.asarray(values * unit), basis @ vectors, np.asarray(residuals * unit))
