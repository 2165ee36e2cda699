"""Support vector machines, kernel ridge, kernel PCA and Nystroem: weighted sums of kernel values."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from jax.tree_util import Partial

from .._validation import array
from ..execution.tiles import as_pytree
from .arrays import Array, Named, dense, fitted, namespace
from .covariances import covariance, expanded_distances, is_covariance, remembered
from .linear import scores_of
from .registry import MACHINES, adapts


class KernelFunction(Named):
    """A kernel of scikit-learn's by its name, between x (n, d) and z (m, d)."""

    table = {
        "cosine": lambda gamma, coef0, degree, x, z: _unit(x) @ _unit(z).T,
        "laplacian": lambda gamma, coef0, degree, x, z: namespace(x).exp(-gamma * abs(x[:, None] - z).sum(2)),
        "linear": lambda gamma, coef0, degree, x, z: x @ z.T,
        "poly": lambda gamma, coef0, degree, x, z: (gamma * (x @ z.T) + coef0) ** degree,
        "polynomial": lambda gamma, coef0, degree, x, z: (gamma * (x @ z.T) + coef0) ** degree,
        "rbf": lambda gamma, coef0, degree, x, z: namespace(x).exp(-gamma * expanded_distances(x, z)),
        "sigmoid": lambda gamma, coef0, degree, x, z: namespace(x).tanh(gamma * (x @ z.T) + coef0),
    }


def _unit(x):
    xp, squares = namespace(x), (x**2).sum(1, keepdims=True)
    return x / xp.sqrt(xp.where(squares == 0, 1, squares))


def _kernel_of(estimator, given, gamma, spare):
    """Return ``kernel(x, z)`` of a machine, a pytree; what is None among its parameters is ``spare``'s."""
    own = estimator.kernel
    if given is not None:
        return as_pytree(given)
    if is_covariance(own):
        return _covariance_of(estimator)
    if callable(own) or own == "precomputed":
        raise TypeError(
            f"{type(estimator).__name__} has a {'callable' if callable(own) else 'precomputed'} kernel, which has "
            "no gradient: give as_model(..., kernel=k) with k(x, z) -> (n, m) in JAX"
        )
    if own not in KernelFunction.table:
        raise TypeError(f"the kernel {own!r} has no differentiable form here; give kernel=..., in JAX")
    stated = {"gamma": gamma, "coef0": estimator.coef0, "degree": estimator.degree}
    numbers = {"gamma": 1 / estimator.n_features_in_, "coef0": 1.0, "degree": 3.0}
    for known in (spare, stated):
        numbers |= {name: known[name] for name in numbers if known.get(name) is not None}
    return Partial(KernelFunction(own), *map(float, numbers.values()))


def _covariance_of(estimator):
    try:
        return covariance(estimator.kernel)
    except TypeError as error:
        raise TypeError(
            f"{type(estimator).__name__}: {error}; give as_model(..., kernel=k) with k(x, z) -> (n, m) in JAX"
        ) from error


def _training_inputs(estimator, kept, X_fit, n_fit, index=slice(None)):
    """Return the rows that a kernel machine compares with: those that it kept, or those of ``X_fit``."""
    if estimator.kernel != "precomputed":
        return np.asarray(dense(f"the inputs of {type(estimator).__name__}", kept), np.float64)
    if X_fit is None:
        raise TypeError(
            f"{type(estimator).__name__} was fitted on a precomputed kernel matrix: give as_model(..., X_fit=X) "
            "with the training inputs"
        )
    X_fit = array("X_fit", X_fit)
    if len(X_fit) != n_fit:
        raise ValueError(
            f"X_fit must hold the {n_fit} inputs that {type(estimator).__name__} was fitted on, got {len(X_fit)}"
        )
    return np.asarray(X_fit, np.float64)[index]


def _remembered(estimator, given, z):
    """Return training rows as the estimator's own kernel takes them fastest."""
    return remembered(estimator.kernel, z) if given is None and is_covariance(estimator.kernel) else z


@adapts("SVC", "SVR", "NuSVC", "NuSVR", into=MACHINES)
def support_vectors(estimator: Any, kernel: Any, X_fit: Any) -> Callable:
    """Write decisions of a support vector machine; of several classes, one against the rest."""
    k = _kernel_of(estimator, kernel, getattr(estimator, "_gamma", None), {})
    # with a callable kernel, scikit-learn keeps all training inputs and none as support vectors
    kept = estimator._BaseLibSVM__Xfit[estimator.support_] if callable(estimator.kernel) else None
    kept = estimator.support_vectors_ if kept is None else kept
    z = _training_inputs(estimator, kept, X_fit, estimator.shape_fit_[0], estimator.support_)
    # those that it computes with, not those that it shows; of two classes, with the signs of the first
    sign = -1 if len(getattr(estimator, "classes_", ())) == 2 else 1
    dual, offset = sign * fitted(estimator, "_dual_coef_"), sign * fitted(estimator, "_intercept_")
    if len(getattr(estimator, "classes_", ())) <= 2:
        return scores_of(
            estimator, Partial(expansion, k, _remembered(estimator, kernel, z), dual.T, offset), len(dual)
        )
    # one classifier for each pair of classes: what it takes from each class's support vectors
    ends = np.cumsum([0, *estimator.n_support_])
    sides = sides_of_pairs(len(estimator.classes_))
    weights = np.zeros((len(sides), len(z)))
    for row, (i, j) in zip(weights, combinations(range(len(estimator.classes_)), 2), strict=True):
        row[ends[i] : ends[i + 1]] = dual[j - 1, ends[i] : ends[i + 1]]
        row[ends[j] : ends[j + 1]] = dual[i, ends[j] : ends[j + 1]]

    z = _remembered(estimator, kernel, z)
    return Partial(_one_vs_rest_expansion, k, z, weights.T, offset, sides, weights.T @ sides, offset @ sides)


def has_labels_everywhere(estimator: Any) -> bool:
    """Tell whether it is a support vector classifier of scikit-learn's, which labels whatever is finite."""
    known = type(estimator).__name__ in ("SVC", "NuSVC") and type(estimator).__module__.startswith("sklearn.")
    return known and isinstance(estimator.kernel, str) and estimator.kernel in KernelFunction.table


def expansion(kernel: Any, z: Array, weights: Array, offset: Any, x: Array) -> Array:
    """Compute weighted sums of a kernel's values at x and z."""
    return kernel(x, z) @ weights + offset


def _one_vs_rest_expansion(kernel, z, weights, offset, sides, summed_weights, summed_offset, x):
    block = kernel(x, z)
    # the decisions summed up by class: votes have no gradient, so there are as many columns to go back through
    return _votes(block @ weights + offset, sides, block @ summed_weights + summed_offset)


def sides_of_pairs(n_classes: int) -> np.ndarray:
    """Return a row with +1 at i and −1 at j for each pair of classes (i, j), i < j."""
    pairs = list(combinations(range(n_classes), 2))
    sides = np.zeros((len(pairs), n_classes))
    for row, (i, j) in zip(sides, pairs, strict=True):
        row[i], row[j] = 1, -1
    return sides


def one_vs_rest(decisions: Array, n_classes: int) -> Array:
    """Compute scores (n, C) of decisions between pairs (n, C (C − 1) / 2), positive for a pair's first class.

    They are scikit-learn's ``decision_function_shape="ovr"`` of its ``"ovo"``: votes, and less than a vote for how
    clear they were.

    >>> one_vs_rest(np.array([[2.0, 1.0, -0.5]]), 3).argmax(1)
    array([0])
    """
    sides = sides_of_pairs(n_classes)
    return _votes(decisions, sides, decisions @ sides)


def _votes(decisions, sides, confidence):
    first = namespace(decisions).where(decisions < 0, 0.0, 1.0)
    votes = first @ (sides > 0) + (1 - first) @ (sides < 0)
    return votes + confidence / (3 * (abs(confidence) + 1))


@adapts("KernelRidge", into=MACHINES)
def kernel_ridge(estimator: Any, kernel: Any, X_fit: Any) -> Partial:
    """Write predictions of kernel ridge regression."""
    k = _kernel_of(estimator, kernel, estimator.gamma, {})
    dual = fitted(estimator, "dual_coef_")
    z = _training_inputs(estimator, estimator.X_fit_, X_fit, len(dual))
    return Partial(expansion, k, _remembered(estimator, kernel, z), dual.reshape(len(z), -1), 0.0)


@adapts("KernelPCA", into=MACHINES)
def kernel_pca(estimator: Any, kernel: Any, X_fit: Any) -> Partial:
    """Write coordinates on a kernel's principal axes."""
    k = _kernel_of(estimator, kernel, getattr(estimator, "gamma_", estimator.gamma), {})
    values, vectors = fitted(estimator, "eigenvalues_"), fitted(estimator, "eigenvectors_")
    z = _training_inputs(estimator, estimator.X_fit_, X_fit, len(vectors))
    kept = np.flatnonzero(values)
    scaled = np.zeros_like(vectors)
    scaled[:, kept] = vectors[:, kept] / np.sqrt(values[kept])
    means, mean = fitted(estimator._centerer, "K_fit_rows_"), fitted(estimator._centerer, "K_fit_all_")

    return Partial(_centred_expansion, k, _remembered(estimator, kernel, z), scaled, means, mean)


def _centred_expansion(kernel, z, scaled, means, mean, x):
    block = kernel(x, z)
    return (block - means - block.mean(1, keepdims=True) + mean) @ scaled


@adapts("Nystroem", into=MACHINES)
def nystroem(estimator: Any, kernel: Any, X_fit: Any) -> Partial:
    """Write features of a kernel's Nystroem approximation."""
    # what is None comes from kernel_params here, and only here
    k = _kernel_of(estimator, kernel, estimator.gamma, estimator.kernel_params or {})
    index = estimator.component_indices_
    n_fit = max(estimator.n_features_in_, len(index)) if estimator.kernel == "precomputed" else None
    z = _training_inputs(estimator, estimator.components_, X_fit, n_fit, index)
    return Partial(expansion, k, _remembered(estimator, kernel, z), fitted(estimator, "normalization_").T, 0.0)
