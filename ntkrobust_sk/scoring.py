"""Robust accuracy of any estimator, and as a scikit-learn scorer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_array, check_is_fitted

from .attacks import attack_in_tiles
from .estimators import NETWORK_ROWS, key_of, positions
from .keys import keys_of
from .loops import answers, as_pytree
from .networks import Model, params_dtype
from .sklearn_models import as_model
from .square import Square

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64

# Queries of the black-box attack that takes the place of one with gradients.
QUERIES = 1000
# Rows attacked at once of scikit-learn's estimators, most of which do so little for a row that a step's own cost
# counts; divides the numbers of examples that people choose.
ROWS = 200


def robust_accuracy(estimator, X, y, attack, *, sample_weight=None, random_state=0) -> float:
    """The estimator's score on adversarial examples: accuracy, or R² of a regressor.

    Parameters
    ----------
    estimator : fitted estimator
        One of this library; whatever :func:`~ntkrobust_sk.as_model` knows, Pipelines included; or any other
        classifier with scores, which is attacked as a black box. A FrozenEstimator or a search stands for what it
        holds.
    X : array (n, n_features), data frame, or (n, h, w, c)
        Inputs of the estimator, of a Pipeline those of its first step: epsilon and bounds are in *their* units.
    y : array (n,) or (n, T)
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`.
    sample_weight : array (n,), default=None
    random_state : int, RandomState or None, default=0

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If there is nothing in the estimator that can be attacked.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import PGD, robust_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), SVC()).fit(X, y)
    >>> robust_accuracy(pipeline, X, y, PGD(epsilon=0.5, bounds=None)) < pipeline.score(X, y)
    True
    """
    check_is_fitted(estimator)
    estimator = _held(estimator)
    if hasattr(estimator, "robust_score"):
        return estimator.robust_score(X, y, attack, sample_weight=sample_weight, random_state=random_state)
    X_adv = perturb(estimator, X, y, attack, random_state=random_state)
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    return float(estimator.score(X_adv, y, **weights))


def perturb(estimator, X, y, attack, *, random_state=0):
    """Adversarial examples against any estimator that :func:`robust_accuracy` takes.

    Parameters
    ----------
    estimator, X, y, attack, random_state
        As for :func:`robust_accuracy`.

    Returns
    -------
    array shaped like X, or a data frame if X is one

    Raises
    ------
    TypeError, ValueError
        As for :func:`robust_accuracy`; for labels outside of ``classes_``; for sparse or empty X.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ntkrobust_sk import FGSM, perturb
    >>> X, y = load_iris(return_X_y=True)
    >>> X_adv = perturb(LogisticRegression(max_iter=1000).fit(X, y), X, y, FGSM(0.5, bounds=None))
    >>> X_adv.shape, X_adv.dtype
    ((150, 4), dtype('float64'))
    """
    check_is_fitted(estimator)
    held = _held(estimator)
    if hasattr(held, "perturb"):
        return held.perturb(X, y, attack, random_state=random_state)
    subject = attackable(held, X, y)
    return subject.like(subject.perturb(subject.usable(attack), key_of(random_state)))


@dataclass(frozen=True, eq=False)
class Subject:
    """An estimator or a model as attacks see it, with inputs and labels that have been checked.

    Attributes
    ----------
    source : estimator or model
    model : callable pytree
        From inputs like ``X`` to scores.
    X : array (n, ...)
        Inputs in the precision in which they are attacked.
    y : int32 array (n,) or None
        Positions in ``classes``; of a regressor its targets, float (n, T).
    classes : array (C,) or None
    rows : int
        Of a tile.
    x64 : bool
        Whether double precision is needed.
    opaque : str or None
        Why there are no gradients, where there are none.
    given : array or data frame
        X as it came.
    """

    source: object
    model: Callable
    X: np.ndarray
    y: np.ndarray
    classes: np.ndarray | None
    rows: int
    x64: bool
    opaque: str | None
    given: object

    def usable(self, attack):
        """The attack, or one that needs no gradients where there are none, and a warning."""
        if not callable(attack) or isinstance(attack, type):
            raise TypeError(f"an attack is needed, such as PGD(epsilon=8/255), got {attack!r}")
        if isinstance(self.model, _BlackBox) and self.model.scores_of is None:
            name = type(self.source).__name__
            raise TypeError(f"{name} has neither decision_function nor predict_proba to attack")
        if self.opaque is None or isinstance(attack, Square):
            return attack
        if not all(hasattr(attack, name) for name in ("epsilon", "norm", "bounds")):
            raise TypeError(f"{self.opaque}, and {attack!r} states no ball in which Square could take its place")
        attack = Square(attack.epsilon, QUERIES, norm=attack.norm, bounds=attack.bounds)
        warnings.warn(
            f"{self.opaque}: so {type(self.source).__name__} is attacked as a black box, by {attack!r}. What "
            "stands may fall to an attack with gradients",
            UserWarning,
            stacklevel=3,
        )
        return attack

    def perturb(self, attack, key, at=slice(None)) -> np.ndarray:
        """Adversarial examples of the rows ``at``; ``key`` is one, or one for each of *all* rows."""
        keys = keys_of(key, len(self.X))
        with self.precision():
            X, y = self.X[at], self.y[at]
            return attack_in_tiles(attack, self.model, X, y, key=keys[at], rows=self.rows)

    def precision(self):
        """The context in which the model is called."""
        return enable_x64(self.x64)

    def answers(self, X) -> np.ndarray:
        """Positions in ``classes`` (n,) of the answers to inputs like ``X``; a regressor has none."""
        X = np.asarray(X, self.X.dtype).reshape(-1, *self.X.shape[1:])
        if self.own:
            with self.precision():
                return answers(self.model, X, self.rows)
        return positions(self.source.predict(self.like(X)), self.classes, len(X))

    @property
    def own(self) -> bool:
        """Whether an answer is the highest score, by definition: of models and of this library's estimators."""
        return not hasattr(self.source, "predict") or hasattr(self.source, "_predictor")

    def like(self, X):
        """Inputs in the form in which they came: a data frame, flat rows, or images."""
        if hasattr(self.given, "columns"):
            index = self.given.index if len(X) == len(self.given) else None
            return type(self.given)(X, columns=self.given.columns, index=index)
        return X.reshape(-1, *np.shape(self.given)[1:])


def attackable(estimator, X, y, *, classes=None, labelled=True) -> Subject:
    """An estimator, or a model, with inputs and labels, checked and ready to be attacked.

    Parameters
    ----------
    estimator : fitted estimator, or callable
        As for :func:`robust_accuracy`; or a function from inputs to scores, such as a
        :class:`~ntkrobust_sk.Model` or what :func:`~ntkrobust_sk.as_model` gives.
    X, y
        What is to be attacked.
    classes : array (C,), default=None
        What the scores of a model stand for; None is 0..C-1.
    labelled : bool, default=True
        Without, y is not looked at.

    Returns
    -------
    Subject

    Raises
    ------
    NotFittedError, TypeError, ValueError
        For what :func:`robust_accuracy` cannot attack.
    """
    if callable(estimator) and not hasattr(estimator, "fit"):
        return _model_subject(estimator, X, y, classes, labelled)
    check_is_fitted(estimator)
    estimator = _held(estimator)
    name = type(estimator).__name__
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise TypeError(f"{name} is no classifier and no regressor: there is no score to attack")
    if hasattr(estimator, "_predictor"):
        checked, _ = estimator._validated(X, reset=False)
        model, opaque, last = estimator._predictor(), None, estimator
    else:
        checked = check_array(
            X, dtype=[np.float64, np.float32], allow_nd=True, input_name="X", estimator=estimator
        )
        wanted = getattr(estimator, "n_features_in_", None)
        if checked.ndim == 2 and not hasattr(X, "columns") and wanted not in (None, checked.shape[1]):
            raise ValueError(f"X has {checked.shape[1]} features, but {name} was fitted on {wanted}")
        model, opaque = _model_of(estimator)
        last = _held(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator
    own, x64 = hasattr(last, "_predictor"), bool(jax.config.jax_enable_x64)
    # what scikit-learn computes in double precision is attacked in it; a call back's thread knows nothing of x64
    x64 |= not own and opaque is None
    dtype = params_dtype(last.model_.variables.params) if own else np.dtype(float if x64 else np.float32)
    classes = getattr(estimator, "classes_", None)
    y = _targets(y, classes, len(checked), dtype) if labelled else None
    rows = last._rows() if own else ROWS
    return Subject(estimator, model, checked.astype(dtype, copy=False), y, classes, rows, x64, opaque, X)


def _model_subject(model, X, y, classes, labelled):
    x64 = bool(jax.config.jax_enable_x64)
    dtype = params_dtype(model.variables.params) if isinstance(model, Model) else float if x64 else np.float32
    checked = check_array(X, dtype=[np.float64, np.float32], allow_nd=True, input_name="X").astype(dtype)
    model, shape = _own_arrays(as_pytree(model)), (1, *checked.shape[1:])
    try:
        scores = jax.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct(shape, checked.dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model fails on inputs of shape {shape}: {error}") from error
    if getattr(scores, "ndim", None) != 2:
        raise ValueError(f"a model gives scores (n, C), but on inputs of shape {shape} this one gives {scores}")
    known = np.arange(scores.shape[1]) if classes is None else np.asarray(classes)
    if len(known) != scores.shape[1]:
        raise ValueError(f"the model gives {scores.shape[1]} scores, but there are {len(known)} classes")
    try:
        y = positions(y, known, len(checked)) if labelled else None
    except ValueError as error:
        if classes is None:
            error.add_note(f"The labels of a function are the positions of its scores, 0 to {len(known) - 1}.")
        raise
    return Subject(model, model, checked, y, known, NETWORK_ROWS, x64, None, X)


def _targets(y, classes, n, dtype):
    """Positions in the classes, or a regressor's targets as columns."""
    if classes is not None:
        return positions(y, classes, n)
    if np.ndim(y) == 0 or len(y) != n:
        raise ValueError(f"y must hold one target for each of the {n} samples, got shape {np.shape(y)}")
    return np.asarray(y, dtype).reshape(n, -1)


def _held(estimator):
    """What a FrozenEstimator or a search holds."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "cv_results_"):
            raise NotFittedError(f"{type(estimator).__name__} has kept no estimator; fit it with refit=True")
        else:
            return estimator


def _model_of(estimator):
    """The estimator's differentiable form; or its scores alone, and why."""
    try:
        return _own_arrays(as_model(estimator)), None
    except TypeError as error:
        if not is_classifier(estimator):
            error.add_note("Only classifiers are attacked as black boxes.")
            raise
        return _BlackBox(estimator), str(error)


def _own_arrays(model):
    """The model with copies of its NumPy arrays: JAX keeps in mind in which precision it has traced one."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, model)


class _BlackBox:
    """A classifier's scores, through a call back to the host; without gradients."""

    def __init__(self, estimator):
        self.scores_of = getattr(estimator, "decision_function", None) or getattr(estimator, "predict_proba", None)
        self.n_classes = len(estimator.classes_)

    def __call__(self, x):
        return jax.pure_callback(self._on_host, jax.ShapeDtypeStruct((len(x), self.n_classes), x.dtype), x)

    def _on_host(self, x):
        scores = np.asarray(self.scores_of(np.asarray(x)), x.dtype)
        return np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores


@dataclass(frozen=True)
class RobustScorer:
    """``scorer(estimator, X, y)``: what :func:`make_robust_scorer` returns. Comparable and picklable."""

    attack: Callable
    random_state: int | None = 0
    request: bool | str | None = None

    def __call__(self, estimator, X, y, sample_weight=None) -> float:
        """:func:`robust_accuracy` under this attack."""
        return robust_accuracy(
            estimator, X, y, self.attack, sample_weight=sample_weight, random_state=self.random_state
        )

    def set_score_request(self, *, sample_weight: bool | str | None) -> RobustScorer:
        """A scorer that asks for ``sample_weight`` (or for metadata of the name given) under metadata routing."""
        return replace(self, request=sample_weight)

    def get_metadata_routing(self) -> MetadataRequest:
        """What scikit-learn's meta-estimators shall pass on to this scorer."""
        routing = MetadataRequest(owner=self)
        routing.score.add_request(param="sample_weight", alias=self.request)
        return routing


def make_robust_scorer(attack: Callable, *, random_state: int | None = 0) -> RobustScorer:
    """A scorer for ``GridSearchCV``, ``cross_validate`` and wherever scikit-learn takes ``scoring``.

    Parameters
    ----------
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`.
    random_state : int or None, default=0
        Seed of the attack; the same for every fold and candidate.

    Returns
    -------
    RobustScorer
        Called as ``scorer(estimator, X, y)``; higher is better.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from ntkrobust_sk import PGD, EmpiricalNTKClassifier, make_robust_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_robust_scorer(PGD(epsilon=0.3, n_steps=5, bounds=None))
    >>> cross_val_score(EmpiricalNTKClassifier(random_state=0), X, y, scoring=scorer, cv=3).shape
    (3,)
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"make_robust_scorer needs an attack such as PGD(epsilon=8/255), got {attack!r}")
    return RobustScorer(attack, random_state)
