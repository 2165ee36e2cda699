"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores.

Each adapter reads an estimator's fitted attributes and writes down what its ``decision_function``,
``predict_proba`` or ``predict`` computes. Pipelines and the like are compositions of such functions, so that an
attack acts on the *inputs* of a pipeline, in their units.

A model is a ``Partial`` of a function, and whatever was fitted is among its leaves: so the models of two
estimators of one kind are trees of one structure, and what was compiled for one serves the other.
"""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted

from .._validation import array, brief, fitting
from ..networks.inputs import require_finite
from ..networks.model import Model, advice, is_foreign
from .guard import check_agreement
from .registry import MACHINES, DifferentiableEstimator, form_of
from .remembered_rows import core, width_of


def as_model(estimator: Any, *, kernel: Any = None, X_fit: Any = None) -> Partial:
    """Write the scores of a fitted estimator as a differentiable function of its input.

    The function is compared with the estimator's own scores and answers, on a few rows inside and outside of the
    range that it was trained on: what the estimator computes in another way than is known here is refused.

    Parameters
    ----------
    estimator : fitted estimator
        A linear model, a support vector machine, kernel ridge, a Gaussian process, a multi-layer perceptron, a
        discriminant analysis, naive Bayes with Gaussian densities, nearest centroids; scalers, imputers, PCA,
        kernel PCA, kernel approximations, polynomial features, splines, quantiles, powers, functions in JAX,
        encoders of numbers, feature selection; a Pipeline, ColumnTransformer or FeatureUnion of those; voting,
        stacking, bagging, one against the rest, calibration; a search over them; or one of this library. It may
        have been fitted on sparse inputs; the model takes dense ones.
    kernel : callable, default=None
        ``kernel(x, z) -> (n, m)`` in JAX, for a kernel machine whose own kernel is a callable or precomputed.
        Compile it with ``jax.jit``: the comparison calls it by itself, and JAX runs what is not compiled
        operation by operation.
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

    A machine on a precomputed Gram matrix needs the kernel as a function:

    >>> import jax
    >>> @jax.jit
    ... def kernel(x, z):
    ...     return (1 + x @ z.T) ** 2
    >>> machine = SVC(kernel="precomputed").fit(kernel(X, X), y)
    >>> as_model(machine, kernel=kernel, X_fit=X)(X).shape
    (150, 3)
    """
    # robust_accuracy and its like compute in double precision, and come by the other door
    return model_on(None, estimator, kernel, X_fit, single=jnp.result_type(float) == np.float32)


def model_on(X: Any, estimator: Any, kernel: Any = None, X_fit: Any = None, single: bool = False) -> Partial:
    """Return :func:`as_model`, compared on rows of X (n, d) too; warn if ``single`` precision is bad."""
    _check_estimator(estimator)
    _check_kernel(estimator, kernel, X_fit)
    form = form_of(estimator, kernel, X_fit)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(form)):
        raise TypeError(f"the fitted attributes of {type(estimator).__name__} hold complex numbers")
    check_agreement(estimator, form, X, kernel, X_fit, single)
    shape = _shape_of_inputs(estimator, X_fit)
    return Partial(_Inputs(shape, type(estimator).__name__, _imputes(estimator)), form)


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
    """Return the shape of one input, or None where it is not known."""
    last = core(estimator)
    if getattr(last, "kernel", None) == "precomputed":
        return np.shape(X_fit)[1:]
    if isinstance(estimator, DifferentiableEstimator):
        return tuple(estimator.input_shape_)
    width = width_of(estimator)
    return None if width is None else (width,)


@dataclass(frozen=True)
class _Inputs:
    """The checks before a model: inputs become arrays of the shape that its estimator was fitted on."""

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
    """Return whether NaN may be filled in somewhere in the estimator; where it is not, the result tells."""
    from sklearn.impute import SimpleImputer

    return any(isinstance(part, SimpleImputer) for part in (estimator, *estimator.get_params().values()))
