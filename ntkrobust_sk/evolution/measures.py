"""The numbers that a record states of a kernel, and of images of the classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse.linalg import LinearOperator

from ..analysis import metrics, spectra
from .records import ClassMetrics, LayerMetrics

# Eigenvalues that count for the top mass.
TOP = 10


def kernel_metrics(K: np.ndarray | LinearOperator, y: np.ndarray) -> dict[str, float]:
    """Compute scalars of a Gram matrix (n, n), or estimate an operator's, of examples with labels y (n,)."""
    Y = np.eye(int(y.max()) + 1)[y]
    return {
        "effective_rank": spectra.effective_rank(K),
        "participation_ratio": spectra.effective_rank(K, "participation"),
        "top_mass": spectra.top_mass(K, min(TOP, len(y))),
        "target_alignment": metrics.target_alignment(K, Y),
        "centered_target_alignment": metrics.target_alignment(K, Y, centered=True),
    }


def class_metrics(layers: Mapping[str, np.ndarray], y: np.ndarray) -> ClassMetrics:
    """Compute specialisation of the class kernels, and the part of each layer, of blocks (n, n, C) by layer."""
    Y = np.eye(int(y.max()) + 1)[y]
    whole = np.asarray(sum(layers.values()))
    matrix = metrics.kernel_specialization(whole, Y)
    total = float(np.trace(whole.mean(2)))
    by_layer: dict[str, LayerMetrics] = {}
    for name, block in layers.items():
        K = np.asarray(block, np.float64).mean(2)
        # a layer whose output meets a scale that starts at zero has no gradient, and its kernel neither of both
        there = bool(K.any())
        by_layer[name] = {
            "share": float(np.trace(K)) / total,
            "effective_rank": spectra.effective_rank(K) if there else None,
            # uncentred: the kernel of the last bias is constant
            "target_alignment": metrics.target_alignment(K, Y) if there else None,
        }
    return {
        "specialization": float(np.diag(matrix).mean()),
        "specialization_matrix": matrix.tolist(),
        "layers": by_layer,
    }


def class_correlations(images: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute correlations (C, C) of each class's image (rows) with the mean of each class's examples (columns).

    Images and means are taken less their mean over classes, so that what all classes share does not count.
    """
    means = np.stack([X[y == c].mean(0).ravel() for c in range(len(images))])
    means = means - means.mean(0)
    images = images.reshape(len(images), -1)
    images = images - images.mean(0)
    norms = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(means, axis=1)
    return images @ means.T / np.maximum(norms, np.finfo(float).tiny)
