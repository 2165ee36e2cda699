"""Fits of estimators in a cache: of the same parameters to the same data."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from .. import __version__
from ..execution.precision import x64_enabled
from ..kernels.store_header import hash_arrays
from ..saving.content_cache import ContentCache
from ..saving.tree import encoded


def fitted_as_before(estimator: Any, cache: ContentCache | None, X: np.ndarray, y: Any, **fit_params: Any) -> Any:
    """Fit an estimator, or return what the same fit has given before.

    Parameters
    ----------
    estimator : estimator
        Not fitted. Without an integer ``random_state`` each fit is another one, and none is kept.
    cache : ContentCache or None
    X, y
        What it is fitted on.
    **fit_params
        Arrays, such as ``sample_weight``.

    Warns
    -----
    UserWarning
        If files cannot hold the estimator, so that it is fitted each time.
    """
    seeded = isinstance(getattr(estimator, "random_state", None), int | np.integer)
    if cache is None or not seeded:
        return estimator.fit(X, y, **fit_params)
    try:
        tree, arrays = encoded(estimator)
    except TypeError as error:
        warnings.warn(
            f"{type(estimator).__name__} is fitted again in each fit, since the cache cannot hold it: {error}",
            UserWarning,
            stacklevel=4,
        )
        return estimator.fit(X, y, **fit_params)
    given = {"X": X, "y": np.asarray(y), **fit_params}
    about = {
        "estimator": tree,
        "sha256_arrays": hash_arrays([*arrays.values()]),
        **{f"sha256_{name}": [list(of.shape), hash_arrays([of])] for name, of in given.items()},
        "version": __version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "x64": x64_enabled(),
    }
    return cache.get("fit", about, lambda: estimator.fit(X, y, **fit_params))
