"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores.

Each adapter reads an estimator's fitted attributes and writes down what its ``decision_function``,
``predict_proba`` or ``predict`` computes. Pipelines and the like are compositions of such functions, so that an
attack acts on the *inputs* of a pipeline, in their units.

A model is a ``Partial`` of a function, and whatever was fitted is among its leaves: so the models of two
estimators of one kind are trees of one structure, and what was compiled for one serves the other.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from .._validation import array, brief, fitting
from ..execution.tiles import Shaped
from ..networks.inputs import require_finite
from ..networks.model import Model, advice, is_foreign
from . import gaussian_processes as processes
from . import kernel_machines as machines
from . import linear, transformers
from .arrays import namespace
from .guard import check_agreement
from .remembered_rows import core, width_of


def as_model(estimator, *, kernel=None, X_fit=None):
    """Write the scores of a fitted estimator as a differentiable function of its input.

    The function is compared with the estimator's own scores and answers, on a few rows inside and outside of the
    range that it was trained on: what the estimator computes in another way than is known here is refused.

    Parameters
    ----------
    estimator : fitted estimator
        A linear model, a support vector machine, kernel ridge, a Gaussian process, a multi-layer perceptron;
        scalers, imputers, PCA, kernel PCA, kernel approximations, polynomial features, feature selection; a
        Pipeline, ColumnTransformer or FeatureUnion of those; a search over them; or one of this library. It may
        have been fitted on sparse inputs; the model takes dense ones.
    kernel : callable, default=None
        ``kernel(x, z) -> (n, m)`` in JAX, for a kernel machine whose own kernel is a callable or precomputed.
    X_fit : array (m, d), default=None
        Training inputs, for a kernel machine that was fitted on a precomputed matrix.

    Returns
    -------
    callable pytree
        From inputs (n, d) to scores (n, C) in the order of ``classes_``, or predictions (n, T) of a regressor, or
        features of a transformer. Scores of two classes are 0 and the decision function. Those of a Gaussian
        process classifier are log probabilities. A multi-class support vector machine gives the one-vs-rest
        decision function. In x64 they agree with scikit-learn's to rounding.

    Warns
    -----
    UserWarning
        If the scores are far from the estimator's in single precision, in which the model runs outside of x64.

    Raises
    ------
    TypeError
        If there is no adapter for the estimator (or for a step of it), if the adapter does not give the
        estimator's own scores, or if a kernel is needed.
    ValueError
        For ``X_fit`` of another number of rows than the estimator was fitted on.
    NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import as_model
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), SVC()).fit(X, y)
    >>> model = as_model(pipeline)
    >>> bool(abs(model(X) - pipeline.decision_function(X)).max() < 1e-4)
    True
    """
    # robust_accuracy and its like compute in double precision, and come by the other door
    return model_on(None, estimator, kernel, X_fit, single=jnp.result_type(float) == np.float32)


def model_on(X, estimator, kernel=None, X_fit=None, single=False):
    """:func:`as_model`, compared on some rows of X (n, d) too; it warns if ``single`` precision is bad."""
    _check_estimator(estimator)
    _check_kernel(estimator, kernel, X_fit)
    form = _form(estimator, kernel, X_fit)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(form)):
        raise TypeError(f"the fitted attributes of {type(estimator).__name__} hold complex numbers")
    check_agreement(estimator, form, X, kernel, X_fit, single)
    return Partial(
        _Inputs(_shape_of_inputs(estimator, X_fit), type(estimator).__name__, _imputes(estimator)), form
    )


def _check_estimator(estimator):
    wanted = "as_model takes a fitted estimator, such as LogisticRegression().fit(X, y)"
    if inspect.isclass(estimator):
        raise TypeError(f"{wanted}, got the class {estimator.__name__}")
    if is_foreign(estimator):
        raise TypeError(f"{wanted}, got {brief(estimator)}{advice(estimator)}")
    if isinstance(estimator, Model) or (callable(estimator) and not hasattr(estimator, "fit")):
        name = getattr(estimator, "__name__", type(estimator).__name__)
        raise TypeError(f"{wanted}; {name} is a function already: give it to the attack as it is")
    if not hasattr(estimator, "fit"):
        raise TypeError(f"{wanted}, got {brief(estimator)}")
    check_is_fitted(estimator)


def _check_kernel(estimator, kernel, X_fit):
    if kernel is None and X_fit is None:
        return
    name = type(estimator).__name__
    if not hasattr(core(estimator), "kernel") or type(core(estimator)).__name__ not in MACHINES:
        raise TypeError(f"{name} takes no kernel from outside: leave kernel and X_fit away")
    if kernel is not None and (not callable(kernel) or inspect.isclass(kernel)):
        raise TypeError(f"kernel must be a function k(x, z) -> (n, m) in JAX, got {brief(kernel)}")


def _shape_of_inputs(estimator, X_fit):
    """Of one input, or None."""
    last = core(estimator)
    if getattr(last, "kernel", None) == "precomputed":
        return np.shape(X_fit)[1:]
    if hasattr(estimator, "_predictor"):
        return tuple(estimator.input_shape_)
    width = width_of(estimator)
    return None if width is None else (width,)


@dataclass(frozen=True)
class _Inputs:
    """The door of a model: inputs as arrays, of the shape that its estimator was fitted on."""

    shape: tuple[int, ...] | None
    # estimators whose models have one form share what is compiled
    name: str = field(compare=False)
    # whether NaN stands for what an imputer fills in
    imputes: bool = False

    def __call__(self, form, x):
        if not isinstance(x, jax.Array):
            x = array("x", x)
            x = jnp.asarray(fitting("x", x, jax.dtypes.canonicalize_dtype(x.dtype)))
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"x must be an array of real numbers, got {brief(x)}")
        shape = self.shape
        if shape is not None and x.shape[1:] not in (shape, (math.prod(shape),)):
            wanted = ", ".join(map(str, ("n", *shape)))
            raise ValueError(f"x: this model of {self.name} takes inputs of shape ({wanted}), got shape {x.shape}")
        if not self.imputes:
            return form(require_finite("x", x))
        require_finite("x", jnp.where(jnp.isnan(x), 0, x))
        return require_finite("what the model makes of x", form(x))


def _imputes(estimator) -> bool:
    """Whether NaN may be filled in somewhere in the estimator; where it is not, the result tells."""
    from sklearn.impute import SimpleImputer

    return any(isinstance(part, SimpleImputer) for part in (estimator, *estimator.get_params().values()))


def _form(estimator, kernel=None, X_fit=None, transforms=False):
    """What the estimator computes, of arrays of NumPy or JAX: its scores, or what it ``transforms`` to."""
    if hasattr(estimator, "_predictor") and hasattr(estimator, "input_shape_") and not transforms:
        return Partial(Shaped(tuple(estimator.input_shape_)), estimator._predictor())
    name = type(estimator).__name__ if type(estimator).__module__.startswith("sklearn.") else None
    if name in COMPOSITIONS:
        return COMPOSITIONS[name](estimator, kernel, X_fit, transforms)
    if name in MACHINES and hasattr(estimator, "transform") >= transforms:
        return MACHINES[name](estimator, kernel, X_fit)
    if transforms and name in ALSO_TRANSFORM:
        return ALSO_TRANSFORM[name](estimator)
    if name in ADAPTERS and hasattr(estimator, "transform") >= transforms:
        return ADAPTERS[name](estimator)
    raise TypeError(
        f"there is no differentiable form of {type(estimator).__module__}.{type(estimator).__name__}; the "
        "black-box attack Square works on whatever gives scores"
    )


# Compositions


def _part(step):
    passes = step is None or isinstance(step, str)
    return Partial(transformers.unchanged) if passes else _form(step, transforms=True)


def _pipeline(estimator, kernel, X_fit, transforms):
    *before, (_, last) = estimator.steps
    parts = [_part(step) for _, step in before]
    if getattr(core(last), "kernel", None) == "precomputed" and not all(isinstance(s, str) for _, s in before):
        raise TypeError(
            "a Pipeline that transforms a precomputed kernel matrix is no function of inputs: give as_model its "
            "last step"
        )
    parts.append(_part(last) if isinstance(last, str) else _form(last, kernel, X_fit, transforms))
    return Partial(linear.chained, parts)


def _union(estimator, kernel, X_fit, transforms):
    steps = [(name, step, None) for name, step in estimator.transformer_list]
    return _side_by_side(steps, estimator.transformer_weights)


def _columns(estimator, kernel, X_fit, transforms):
    found = estimator._transformer_to_input_indices
    steps = [(name, step, np.asarray(found[name], int)) for name, step, _ in estimator.transformers_]
    return _side_by_side(steps, estimator.transformer_weights)


def _side_by_side(steps, weights):
    """Transformers next to each other, each on its columns: steps are (name, step, columns or None for all)."""
    kept = [(name, step, at) for name, step, at in steps if not _drops(step) and (at is None or len(at))]
    weights = [(weights or {}).get(name) for name, _, _ in kept]
    factors = [1.0 if weight is None else float(weight) for weight in weights]
    return Partial(_joined, [_part(step) for _, step, _ in kept], [at for _, _, at in kept], factors)


def _joined(parts, columns, weights, x):
    blocks = [x[:, :0]]
    for part, at, weight in zip(parts, columns, weights, strict=True):
        blocks.append(weight * part(x if at is None else x[:, at]))
    return namespace(x).concatenate(blocks, axis=1)


def _drops(step):
    return isinstance(step, str) and step == "drop"


def _search(estimator, kernel, X_fit, transforms):
    if not hasattr(estimator, "best_estimator_"):
        raise NotFittedError(f"{type(estimator).__name__} has kept no estimator; fit it with refit=True")
    return _form(estimator.best_estimator_, kernel, X_fit, transforms)


def _frozen(estimator, kernel, X_fit, transforms):
    return _form(estimator.estimator, kernel, X_fit, transforms)


# By scikit-learn's names: what holds other estimators; what may need a kernel; the rest.
COMPOSITIONS = {
    "ColumnTransformer": _columns,
    "FeatureUnion": _union,
    "FrozenEstimator": _frozen,
    "GridSearchCV": _search,
    "Pipeline": _pipeline,
    "RandomizedSearchCV": _search,
}
MACHINES = {
    "KernelPCA": machines.kernel_pca,
    "KernelRidge": machines.kernel_ridge,
    "NuSVC": machines.support_vectors,
    "NuSVR": machines.support_vectors,
    "Nystroem": machines.nystroem,
    "SVC": machines.support_vectors,
    "SVR": machines.support_vectors,
}
LINEAR = """ARDRegression BayesianRidge ElasticNet ElasticNetCV HuberRegressor Lasso LassoCV
LinearDiscriminantAnalysis LinearRegression LinearSVC LinearSVR LogisticRegression LogisticRegressionCV Perceptron
Ridge RidgeCV RidgeClassifier RidgeClassifierCV SGDClassifier SGDRegressor"""
SELECTORS = "SelectFromModel SelectKBest SelectPercentile VarianceThreshold"
ADAPTERS = dict.fromkeys(LINEAR.split(), linear.linear) | dict.fromkeys(SELECTORS.split(), transformers.selector)
ADAPTERS |= {
    "FunctionTransformer": transformers.function,
    "GaussianProcessClassifier": processes.gaussian_classifier,
    "GaussianProcessRegressor": processes.gaussian_regressor,
    "MLPClassifier": linear.perceptron,
    "MLPRegressor": linear.perceptron,
    "MaxAbsScaler": transformers.max_abs,
    "MinMaxScaler": transformers.min_max,
    "Normalizer": transformers.normalizer,
    "PCA": transformers.pca,
    "PolynomialFeatures": transformers.polynomial,
    "RBFSampler": transformers.rbf_sampler,
    "RobustScaler": transformers.robust,
    "SimpleImputer": transformers.imputer,
    "StandardScaler": transformers.standard,
}
# Of those that give scores, what they transform to in the middle of a Pipeline.
ALSO_TRANSFORM = {"LinearDiscriminantAnalysis": linear.discriminant_axes}
