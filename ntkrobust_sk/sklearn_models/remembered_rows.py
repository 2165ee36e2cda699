"""What a fitted estimator remembers of its training inputs: rows it has kept, ranges, and how many columns."""

from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, PowerTransformer

from .arrays import dense

# Of rows from the centre, in standard deviations: inside of the range and outside of it.
DISTANCES = np.array([0, 0.1, 0.3, 0.3, 1, 1, 2, 10])[:, None]
# Rows from among those that the estimator keeps, and from inputs at hand.
KEPT, AT_HAND = 4, 8


# What an estimator answers


def core(estimator: Any) -> Any:
    """Return what answers in the end: of a Pipeline its last step, of a search what it has found."""
    while hasattr(estimator := unwrap(estimator), "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def unwrap(estimator: Any) -> Any:
    """Return what a FrozenEstimator or a search holds."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "cv_results_"):
            raise NotFittedError(f"{type(estimator).__name__} has kept no estimator; fit it with refit=True")
        else:
            return estimator


# What an estimator knows of its inputs


def width_of(estimator: Any) -> int | None:
    """Return the number of features that an estimator takes, or None where it does not know."""
    width = getattr(estimator, "n_features_in_", None)
    for step in () if width is not None else parts(estimator):
        width = width_of(step) if width is None else width
    return width


def parts(estimator: Any) -> tuple[Any, ...]:
    """Return estimators inside of this one that see the same inputs."""
    if hasattr(estimator, "steps"):
        # before the first that knows its inputs, nothing changes them
        steps = [step for _, step in estimator.steps if not is_word(step)]
        known = (step for step in steps if width_of(step) is not None and not _changes_nothing(step))
        return tuple(islice(known, 1))
    if hasattr(estimator, "transformer_list"):
        return tuple(step for _, step in estimator.transformer_list if not is_word(step))
    if hasattr(estimator, "best_estimator_"):
        return (estimator.best_estimator_,)
    members = [each for each, columns in members_of(estimator) if columns is None]
    if members:
        return tuple(members[:1])
    return (estimator.estimator,) if isinstance(estimator, FrozenEstimator) else ()


def members_of(estimator: Any) -> list[tuple[Any, np.ndarray | None]]:
    """Return the estimators that an ensemble asks, each with the columns that it sees; None is all of them."""
    if hasattr(estimator, "calibrated_classifiers_"):
        return [(fold.estimator, None) for fold in estimator.calibrated_classifiers_]
    if hasattr(estimator, "regressor_"):
        return [(estimator.regressor_, None)]
    members = getattr(estimator, "estimators_", None)
    if members is None or isinstance(members, np.ndarray):
        return []
    seen = getattr(estimator, "estimators_features_", None)
    if seen is None:
        return [(each, None) for each in members]
    every = np.arange(estimator.n_features_in_)
    columns = [None if np.array_equal(at, every) else np.asarray(at) for at in seen]
    return list(zip(members, columns, strict=True))


def may_refuse(estimator: Any) -> bool:
    """Return whether an estimator holds a step that has no answer to some numbers: a function, logarithms."""
    held = (estimator, *estimator.get_params().values()) if hasattr(estimator, "get_params") else ()
    functions = any(isinstance(part, FunctionTransformer) and part.func is not None for part in held)
    return functions or any(isinstance(part, PowerTransformer) and part.method == "box-cox" for part in held)


def is_word(step: Any) -> bool:
    """Return whether a step is a word, such as "passthrough", or None."""
    return step is None or isinstance(step, str)


def _changes_nothing(step) -> bool:
    """Return whether it is an imputer that keeps complete rows as they are."""
    indicated = getattr(getattr(step, "indicator_", None), "features_", ())
    known = getattr(step, "statistics_", None)
    return known is not None and not len(indicated) and all(value == value for value in known)


def rows_near(estimator: Any) -> np.ndarray:
    """Return rows (n, d), always the same, around the inputs that an estimator was trained on."""
    kept = _kept_rows(estimator)
    width = (width_of(estimator) or 3) if kept is None else kept.shape[1]
    centre, spread = _range(estimator, width)
    around = centre + spread * DISTANCES * np.random.default_rng(0).normal(size=(len(DISTANCES), width))
    rows = around if kept is None else np.concatenate([around, kept])
    return np.nan_to_num(np.asarray(rows, np.float64))


def _kept_rows(estimator):
    """Return some of an estimator's training inputs, or None."""
    if hasattr(estimator, "steps"):
        return _pulled_back(estimator.steps)
    for part in parts(estimator):
        return _kept_rows(part)
    if hasattr(estimator, "base_estimator_"):
        first = estimator.base_estimator_
        estimator = first.estimators_[0] if hasattr(first, "estimators_") else first
    missing = getattr(estimator, "missing_values", None)
    if isinstance(missing, Real) and missing == missing:
        return np.full((1, estimator.n_features_in_), float(missing))
    names = ["support_vectors_", "X_fit_", "X_train_", "_BaseLibSVM__Xfit"]
    for name in names + (["components_"] if hasattr(estimator, "component_indices_") else []):
        kept = getattr(estimator, name, None)
        if kept is not None and kept.shape[0] > 0 and kept.shape[1] > 0:
            return dense(name, kept[:: max(kept.shape[0] // KEPT, 1)][:KEPT])
    return None


def _pulled_back(steps):
    """Return the rows that one of the steps keeps, as inputs of the first."""
    steps = [step for _, step in steps if not is_word(step) and not _changes_nothing(step)]
    for at, keeper in enumerate(steps):
        rows = _kept_rows(keeper)
        if rows is not None:
            for step in reversed(steps[:at]):
                rows = step.inverse_transform(rows)
            return rows
        if type(keeper).__name__ not in INVERTIBLE:
            return None
    return None


INVERTIBLE = ("MaxAbsScaler", "MinMaxScaler", "PCA", "RobustScaler", "StandardScaler")


def _range(estimator, width):
    """Return centre and spread of the training inputs, each (d,) or a number, as far as an estimator knows."""

    def knows(name):
        return getattr(estimator, name, None) is not None

    if knows("data_min_"):
        low, high = estimator.data_min_, estimator.data_max_
        return (low + high) / 2, (high - low) / 2
    if knows("max_abs_"):
        return 0.0, estimator.max_abs_
    if knows("mean_"):
        return estimator.mean_, _deviation(estimator)
    if knows("center_"):
        return estimator.center_, estimator.scale_ if knows("scale_") else 1.0
    if knows("lambdas_"):
        return _range_of_powers(estimator)
    if knows("quantiles_"):
        return estimator.quantiles_.mean(0), estimator.quantiles_.std(0) + 1e-3
    if knows("bsplines_"):
        ends = np.array([[spline.t[spline.k], spline.t[-spline.k - 1]] for spline in estimator.bsplines_])
        return ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2
    if knows("categories_"):
        return _first_categories(estimator), 0.0
    if knows("theta_"):
        return estimator.theta_.mean(0), np.sqrt(estimator.var_.mean(0))
    if knows("centroids_"):
        return estimator.centroids_.mean(0), estimator.centroids_.std(0) + 1e-3
    if knows("means_"):
        return estimator.means_.mean(0), estimator.means_.std(0) + 1e-3
    if hasattr(estimator, "_transformer_to_input_indices"):
        return _range_of_columns(estimator, width)
    for part in parts(estimator):
        return _range(part, width)
    kept = _kept_rows(estimator)
    return (0.0, 1.0) if kept is None else (kept.mean(0), kept.std(0) + 1e-3)


def _deviation(estimator):
    if getattr(estimator, "components_", None) is not None:
        return np.sqrt(estimator.explained_variance_ @ estimator.components_**2)
    return 1.0 if getattr(estimator, "scale_", None) is None else estimator.scale_


def _range_of_powers(estimator):
    """Return the input that becomes zero, and a spread that keeps inputs positive where they have to be."""
    ends = estimator.inverse_transform(np.outer([-1.0, 0, 1], np.ones(estimator.n_features_in_)))
    centre = np.nan_to_num(ends[1], nan=1.0)
    if estimator.method == "box-cox":
        return centre, centre / 60
    return centre, np.nan_to_num((ends[2] - ends[0]) / 2, nan=1.0)


def _first_categories(estimator):
    try:
        return np.array([float(values[0]) for values in estimator.categories_])
    except (TypeError, ValueError):
        return 0.0


def _range_of_columns(estimator, width):
    centre, spread = np.zeros(width), np.ones(width)
    for name, step, _ in estimator.transformers_:
        at = estimator._transformer_to_input_indices[name]
        if not is_word(step) and len(at):
            centre[at], spread[at] = _range(step, len(at))
    return centre, spread
