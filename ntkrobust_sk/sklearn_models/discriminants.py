"""Classifiers by each class's distribution: Gaussians with or without covariances, and centroids."""

from typing import Any

import numpy as np
from jax.tree_util import Partial

from .arrays import Array, Named, fitted, namespace
from .covariances import squared_distances
from .registry import adapts


@adapts("GaussianNB")
def naive_bayes(estimator: Any) -> Partial:
    """Write log P(c) + Σ_j log N(x_j; θ_cj, σ²_cj)."""
    means, variances = fitted(estimator, "theta_"), fitted(estimator, "var_")
    offset = np.log(fitted(estimator, "class_prior_")) - 0.5 * np.log(2 * np.pi * variances).sum(1)
    return Partial(_log_densities, means, [np.diag(v**-0.5) for v in variances], offset)


@adapts("QuadraticDiscriminantAnalysis")
def quadratic_discriminant(estimator: Any) -> Partial:
    """Write log P(c) + log N(x; μ_c, Σ_c), but for a constant."""
    axes = [r * s**-0.5 for r, s in zip(estimator.rotations_, estimator.scalings_, strict=True)]
    logs = [np.log(s).sum() for s in estimator.scalings_]
    return Partial(
        _log_densities, fitted(estimator, "means_"), axes, np.log(estimator.priors_) - 0.5 * np.array(logs)
    )


def _log_densities(means, axes, offset, x):
    squares = [(((x - mean) @ a) ** 2).sum(1) for mean, a in zip(means, axes, strict=True)]
    return offset - 0.5 * namespace(x).stack(squares, axis=1)


class Nearness(Named):
    """The negative distance of x (n, d) to centroids (C, d), in a metric of scikit-learn's."""

    table = {
        "euclidean": lambda centroids, x: -squared_distances(x, centroids),
        "manhattan": lambda centroids, x: -abs(x[:, None] - centroids).sum(2),
    }


@adapts("NearestCentroid")
def nearest_centroid(estimator: Any) -> Partial:
    """Write minus the distance to each centroid, by which it answers; with priors of its own, its decisions."""
    if estimator.metric not in Nearness.table:
        raise TypeError(f"a NearestCentroid with the metric {estimator.metric!r} has no differentiable form")
    centroids, deviations = fitted(estimator, "centroids_"), fitted(estimator, "within_class_std_dev_")
    if answers_by_distance(estimator):
        return Partial(Nearness(estimator.metric), centroids)
    scale, offset = np.where(deviations == 0, 1, deviations), 2 * np.log(fitted(estimator, "class_prior_"))
    return Partial(_decisions, Partial(Nearness(estimator.metric)), scale, centroids / scale, offset)


def answers_by_distance(estimator: Any) -> bool:
    """Tell whether a NearestCentroid answers by distances alone, as it does where all classes are as likely."""
    return bool(np.isclose(estimator.class_prior_, 1 / len(estimator.classes_)).all())


def deciding_scores(estimator: Any, x: Array) -> Array:
    """Return the scores (n, C) by which a NearestCentroid answers; its ``decision_function`` may be another."""
    from sklearn.metrics import pairwise_distances

    if not answers_by_distance(estimator):
        return estimator._decision_function(x)
    distances = pairwise_distances(x, estimator.centroids_, metric=estimator.metric)
    return -(distances**2) if estimator.metric == "euclidean" else -distances


def _decisions(nearness, scale, centroids, offset, x):
    near = nearness(centroids, x / scale)
    # of any metric, the square of the distance
    return (near if nearness.func.name == "euclidean" else -(near**2)) + offset
