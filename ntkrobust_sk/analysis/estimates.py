"""The measures of :mod:`.metrics` and :mod:`.spectra`, of matrices that are known by their products alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from .checked import INDEFINITE_TOLERANCE, squarable_unit
from .sketches import Estimate, Probes, block_lanczos, checked_operator, jackknifed, products, quadrature, sketch

# Nodes of a quadrature with less weight than this share are rounding.
NO_WEIGHT = 1e-12


def exact_trace(K: Any) -> float | None:
    """Return the sum of the diagonal where an operator has one, and None where it does not."""
    diagonal = getattr(K, "diagonal", None)
    if diagonal is None:
        return None
    found = np.asarray(diagonal(), np.float64)
    if not np.isfinite(found).all():
        raise ValueError("K must be finite, but its diagonal has NaN or infinity")
    return float(found.sum())


def trace(K: LinearOperator, probes: Probes) -> Estimate:
    """Return the trace: exact where the operator has a diagonal."""
    found = exact_trace(K)
    if found is not None:
        return Estimate(found)
    made = sketch(probes, K=K)
    return _times(jackknifed(float, made.trace(0)), made.units[0])


def norm(K: LinearOperator, probes: Probes) -> Estimate:
    """Return the Frobenius norm."""
    made = sketch(probes, K=K)
    return _times(jackknifed(math.sqrt, made.inner(0, 0)), made.units[0])


def _times(found, unit):
    return Estimate(float(found) * unit, found.standard_error * unit)


def participation(K: LinearOperator, probes: Probes) -> Estimate:
    """Return tr(K)² / ‖K‖²."""
    made, known = sketch(probes, K=K), exact_trace(K)
    if known is None:
        return jackknifed(lambda trace, square: trace**2 / square, made.trace(0), made.inner(0, 0))
    return jackknifed(lambda square: (known / made.units[0]) ** 2 / square, made.inner(0, 0))


def entropy_rank(K: LinearOperator, probes: Probes) -> Estimate:
    """Return exp(-Σ p ln p) of p_i = λ_i / tr(K), by Lanczos from the columns of a sketch."""
    made = sketch(probes, K=K)
    n_range = made.Q.shape[1]
    columns = np.hstack([made.Q, made.G])
    in_unit: Any = K * (1 / made.units[0])
    nodes, weights = quadrature(in_unit, columns, probes.n_steps)
    smallest, largest = nodes[weights > NO_WEIGHT * weights.sum(0)].min(), nodes.max()
    if not smallest >= -INDEFINITE_TOLERANCE * largest:
        raise ValueError(
            f"K must be positive semidefinite up to rounding, but products show eigenvalues from {smallest:.3g} "
            f"to {largest:.3g}: is it a difference of kernels?"
        )
    # in units of the largest, so that no logarithm is large
    x = np.maximum(nodes / largest, 0)
    sums = (weights * x * np.log(np.where(x > 0, x, 1))).sum(0)
    traces, logs = made.trace(0) / largest, sums[:n_range].sum() + sums[n_range:]
    # -Σ p ln p = ln t - (Σ x ln x) / t
    return jackknifed(lambda t, s: t * math.exp(-s / t), traces, logs)


def alignment(K1: Any, K2: Any, probes: Probes, *, centered: bool = False) -> Estimate:
    """Return the cosine of two kernels."""
    kernels = {"K1": K1, "K2": K2}
    made = sketch(probes, None, **{name: _as_asked(name, K, centered) for name, K in kernels.items()})
    return jackknifed(_cosine, made.inner(0, 1), made.inner(0, 0), made.inner(1, 1))


def distance(K1: Any, K2: Any, probes: Probes) -> Estimate:
    """Return 1 - the cosine of two kernels."""
    made = sketch(probes, K1=K1, K2=K2)
    return jackknifed(lambda *sums: 1 - _cosine(*sums), made.inner(0, 1), made.inner(0, 0), made.inner(1, 1))


def polar(K_t: Any, K_start: Any, K_end: Any, probes: Probes) -> tuple[Estimate, Estimate]:
    """Return radius and angle of a kernel on its way."""
    made = sketch(probes, K_t=K_t, K_start=K_start, K_end=K_end)

    def apart(a, b):
        """Return ‖K_a - K_b‖² in the larger of their units, and that unit."""
        unit = max(made.units[a], made.units[b])
        first, second = made.units[a] / unit, made.units[b] / unit
        return made.inner(a, a) * first**2 + made.inner(b, b) * second**2 - 2 * made.inner(
            a, b
        ) * first * second, unit

    (walked, own), (whole, unit) = apart(0, 1), apart(2, 1)
    if (
        not whole.mean()
        > len(made.Q) * np.finfo(np.float64).eps * made.inner(1, 1).mean() * (made.units[1] / unit) ** 2
    ):
        raise ValueError("K_end equals K_start, so there is no path to measure a radius on")
    radius = _times(jackknifed(lambda now, end: math.sqrt(max(now, 0) / end), walked, whole), own / unit)
    sums = made.inner(0, 1), made.inner(0, 0), made.inner(1, 1)
    return radius, jackknifed(lambda *sums: math.acos(_cosine(*sums)), *sums)


def target_alignment(K: LinearOperator, Y: np.ndarray, probes: Probes, *, centered: bool = False) -> Estimate:
    """Return the cosine of a kernel and Y Yᵀ; targets (n, C) are checked, and centred if the kernel is to be."""
    K = _as_asked("K", K, centered)
    made = sketch(probes, Y, K=K)
    both, of_targets = float(np.vdot(Y, made.of_extra[0])), float(np.linalg.norm(Y.T @ Y))
    return jackknifed(lambda square: _cosine(both, square, of_targets**2), made.inner(0, 0))


def alignments(K: LinearOperator, Y: np.ndarray, probes: Probes, *, centered: bool = False) -> np.ndarray:
    """Return the cosines (C,) of a kernel with each y yᵀ; targets (n, C) are those of :func:`target_alignment`."""
    made = sketch(probes, Y, K=_as_asked("K", K, centered))
    return (Y * made.of_extra[0]).sum(0) / (math.sqrt(made.inner(0, 0).mean()) * (Y * Y).sum(0))


class OfClass(LinearOperator):
    """The kernel (n, n) of one output, of a class kernel (n·C, n·C) in the order of examples."""

    def __init__(self, K: LinearOperator, c: int, n_classes: int):
        self.K, self.c, self.n_classes = K, c, n_classes
        super().__init__(np.dtype(np.float64), (K.shape[0] // n_classes,) * 2)

    def _matmat(self, X):
        whole = np.zeros((len(X), self.n_classes, X.shape[1]))
        whole[:, self.c] = X
        found = products(self.K, whole.reshape(-1, X.shape[1]), "K_classes")
        return found.reshape(whole.shape)[:, self.c]


def top_mass(K: LinearOperator, k: int, probes: Probes) -> Estimate:
    """Return the share of the top k eigenvalues in the squared spectrum; the rest is estimated."""
    found, rng = block_lanczos(K, k, random_state=probes.random_state), np.random.default_rng(probes.random_state)
    G, Q = rng.choice([-1.0, 1.0], size=(K.shape[0], probes.n_random)), found.eigenvectors
    G -= Q @ (Q.T @ G)
    unit = squarable_unit(found.eigenvalues)
    top, rest = np.sum((found.eigenvalues / unit) ** 2), ((products(K, G, "K") / unit) ** 2).sum(0)
    if not top > 0:
        raise ValueError("K is zero, so it has no direction to compare")
    return jackknifed(lambda rest: top / (top + rest), rest)


class Centered(LinearOperator):
    """H K H with H = I - 11ᵀ/n, of an operator K."""

    def __init__(self, K: LinearOperator):
        self.K = K
        super().__init__(np.dtype(np.float64), K.shape)

    def _matmat(self, X):
        found = products(self.K, X - X.mean(0), "K")
        return found - found.mean(0)


def _as_asked(name, K, centered) -> LinearOperator:
    operator = checked_operator(name, K)
    return Centered(operator) if centered else operator


def _cosine(both, first, second) -> float:
    return min(max(both / math.sqrt(first * second), -1.0), 1.0)
