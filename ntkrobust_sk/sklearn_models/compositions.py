"""Estimators that hold others, as compositions of what these compute."""

import numpy as np
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted

from .arrays import Array, namespace
from .linear import chained
from .registry import COMPOSITIONS, adapts, form_of
from .remembered_rows import core, is_word, unwrap
from .transformers import unchanged


def _part(step):
    """Return what a step before the last transforms to."""
    return Partial(unchanged) if is_word(step) else form_of(step, transforms=True)


@adapts("Pipeline", into=COMPOSITIONS)
def _pipeline(estimator, kernel, X_fit, transforms):
    """Chain the steps of a Pipeline."""
    *before, (_, last) = estimator.steps
    parts = [_part(step) for _, step in before]
    if getattr(core(last), "kernel", None) == "precomputed" and not all(isinstance(s, str) for _, s in before):
        raise TypeError(
            "a Pipeline that transforms a precomputed kernel matrix is no function of inputs: give as_model its "
            "last step"
        )
    parts.append(_part(last) if isinstance(last, str) else form_of(last, kernel, X_fit, transforms))
    return Partial(chained, parts)


@adapts("FeatureUnion", into=COMPOSITIONS)
def _union(estimator, kernel, X_fit, transforms):
    """Join the transformers of a FeatureUnion."""
    steps = [(name, step, None) for name, step in estimator.transformer_list]
    return _side_by_side(steps, estimator.transformer_weights)


@adapts("ColumnTransformer", into=COMPOSITIONS)
def _columns(estimator, kernel, X_fit, transforms):
    """Join the transformers of a ColumnTransformer, each on its columns."""
    found = estimator._transformer_to_input_indices
    steps = [(name, step, np.asarray(found[name], int)) for name, step, _ in estimator.transformers_]
    return _side_by_side(steps, estimator.transformer_weights)


def _side_by_side(steps, weights):
    """Put transformers next to each other: steps are (name, step, columns, or None for all of them)."""
    kept = [(name, step, at) for name, step, at in steps if step != "drop" and (at is None or len(at))]
    weights = [(weights or {}).get(name) for name, _, _ in kept]
    factors = [1.0 if weight is None else float(weight) for weight in weights]
    return Partial(joined, [_part(step) for _, step, _ in kept], [at for _, _, at in kept], factors)


def joined(parts: list, columns: list, weights: list[float], x: Array) -> Array:
    """Compute parts of x side by side, each of its columns (None is all of them) and with its weight."""
    blocks = [x[:, :0]]
    for part, at, weight in zip(parts, columns, weights, strict=True):
        blocks.append(weight * part(x if at is None else x[:, at]))
    return namespace(x).concatenate(blocks, axis=1)


@adapts("GridSearchCV", "RandomizedSearchCV", "FrozenEstimator", into=COMPOSITIONS)
def _held(estimator, kernel, X_fit, transforms):
    """Take what a search has kept, or what is frozen."""
    check_is_fitted(estimator)
    return form_of(unwrap(estimator), kernel, X_fit, transforms)
