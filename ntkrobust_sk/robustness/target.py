"""Estimators and functions, checked with inputs and labels, as targets of attacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier, is_regressor
from sklearn.utils.validation import check_array, check_is_fitted

from .._validation import brief, fitting, require_numbers
from ..attacks.capabilities import InBall, needs_gradients
from ..attacks.entry import how_to_make, with_two_columns
from ..attacks.norms import NORMS
from ..attacks.square import Square
from ..estimators.attackable import AttackableEstimator
from ..estimators.inputs import kept_dtypes
from ..execution.loops import form_of
from ..execution.precision import x64_enabled
from ..execution.tiles import NETWORK_ROWS, as_pytree, movable, network_rows, tile_rows
from ..networks.inputs import params_dtype
from ..networks.model import Model, failure
from ..sklearn_models.registry import DifferentiableEstimator
from ..sklearn_models.remembered_rows import unwrap
from ..tables.frames import as_table, check_rows, require_free, warn_of_fixed
from ..targets.labels import encode_labels
from ..targets.target import AttackTarget
from .black_box import BlackBox, forget_error
from .readings import last_step, own_arrays, scores_of, through_scikit_learn
from .refusals import of_an_attack, refusal, takes_what_is_finite, told_of_the_attack

# Rows that may be attacked at once of scikit-learn's estimators, most of which do so little for a row that a
# step's own cost counts. Each of these numbers is compiled for, and few rows of padding are left by them.
ROWS = (50, 100, 200, 300, 400)
# Queries of the black-box attack that takes the place of one with gradients.
QUERIES = 1000


@dataclass(frozen=True, eq=False)
class EstimatorTarget(AttackTarget):
    """An estimator of scikit-learn, or of another library, under attack: ``predict`` gives its answers.

    Attributes
    ----------
    box : BlackBox or None
        What the model asks, where there are no gradients.
    """

    box: BlackBox | None = None
    coded: ClassVar[bool] = True

    def attack_for(self, attack: Any) -> Any:
        """Return the attack that this target can be attacked with, kept to the features that may change.

        Where there are no gradients and the attack needs them, it is Square in the same ball, and a warning.

        Raises
        ------
        TypeError
            For what is no attack; where there are no gradients, for an attack that does not say that it needs none
            and states no ball in which Square could take its place.
        """
        attack = self.within(self._taken(attack))
        if self.box is not None and self.box.note is not None:
            warnings.warn(self.box.note, UserWarning, stacklevel=3)
        needs = needs_gradients(attack)
        if self.no_gradient_because is None or (needs is not None and not needs):
            return attack
        if needs is None:
            raise TypeError(
                f"{self.no_gradient_because}; an attack that asks for scores alone says so by needs_gradients = "
                f"False, which {attack!r} does not. Set that attribute, or give Square(epsilon)"
            )
        if not isinstance(attack, InBall) or attack.norm not in NORMS:
            raise TypeError(
                f"{self.no_gradient_because}, and {attack!r} states no ball in which Square could take its place: "
                f"it knows {', '.join(NORMS)}"
            )
        # without its bounds, which of a data frame fill a page
        shown = f"Square(epsilon={attack.epsilon:.4g}, n_queries={QUERIES}, norm={attack.norm!r})"
        attack = Square(attack.epsilon, QUERIES, norm=attack.norm, bounds=attack.bounds)
        warnings.warn(
            f"{self.no_gradient_because}: so {type(self.source).__name__} is attacked as a black box, by "
            f"{shown} in the bounds that were given. What stands may fall to an attack with gradients",
            UserWarning,
            stacklevel=3,
        )
        return attack

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Give the context in which the model is called, with the errors of the estimator as they are."""
        try:
            with super().precision():
                yield
        except (Exception, KeyboardInterrupt) as error:
            if self.box is None or self.box.error is None:
                raise
            forget_error()
            own, self.box.error = self.box.error, None
            if isinstance(error, KeyboardInterrupt):
                raise error from None
            raise of_an_attack(self.source, self.given, own) from None

    def require_taken(self, X_adv: Any) -> None:
        """Raise the error of an estimator that refuses adversarial examples, in the form of X, with its cause."""
        if takes_what_is_finite(self.source, X_adv):
            return
        if (error := refusal(self.source, X_adv)) is not None:
            raise of_an_attack(self.source, self.given, error, X_adv) from error

    def answers(self, X: ArrayLike) -> np.ndarray:
        """Return the positions in ``classes`` (n,) of what ``predict`` says of inputs like ``X``."""
        X = np.asarray(X, self.X.dtype).reshape(-1, *self.X.shape[1:])
        given = self.in_original_form(X)
        with told_of_the_attack(self.source, self.given, given):
            found = self.source.predict(given)
        return encode_labels(found, self.classes, len(X))

    def score(self, X: np.ndarray, y: ArrayLike, sample_weight: np.ndarray | None = None) -> float:
        """Return the estimator's own score of inputs like ``X``."""
        if getattr(getattr(y, "dtype", None), "kind", None) == "O" and len(self.classes):
            # metrics want to know of what type labels are
            y = self.classes[self.y]
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        given = self.in_original_form(X)
        with told_of_the_attack(self.source, self.given, given):
            return float(self.source.score(given, y, **weights))


def attackable(
    estimator: Any, X: Any, y: Any, *, classes: Any = None, labelled: bool = True, categories: tuple = ()
) -> AttackTarget:
    """Check an estimator, or a model, with inputs and labels, and make it ready to be attacked.

    Parameters
    ----------
    estimator : fitted estimator, or callable
        As for :func:`~ntkrobust_sk.robust_accuracy`; or a function from inputs to scores, such as a
        :class:`~ntkrobust_sk.Model` or what :func:`~ntkrobust_sk.as_model` gives.
    X, y
        What is to be attacked.
    classes : array (C,), default=None
        What the scores of a model stand for; None is 0..C-1.
    labelled : bool, default=True
        Without, y is not looked at.
    categories : tuple, default=()
        Columns whose categories attacks may move, from :func:`~ntkrobust_sk.attacks.categories.categories_of`.

    Returns
    -------
    AttackTarget

    Raises
    ------
    NotFittedError, TypeError, ValueError
        For what :func:`robust_accuracy` cannot attack.
    """
    estimator = under_attack(estimator)
    check_rows(X)
    if is_function(estimator):
        return _function_target(estimator, X, y, classes, labelled)
    name = type(estimator).__name__
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise TypeError(f"{name} is no classifier and no regressor: there is no score to attack")
    classes = getattr(estimator, "classes_", None)
    if is_classifier(estimator) and (classes is None or isinstance(classes, list)):
        raise TypeError(
            f"{name} has {'no classes_' if classes is None else 'classes of several outputs'}; what is attacked "
            "gives one label of its classes_ to each input"
        )
    if isinstance(estimator, AttackableEstimator):
        return estimator.attack_target(X, y, labelled=labelled)
    found = through_scikit_learn(estimator, X, as_table(X), categories)
    if found.table is not None:
        warn_of_fixed(found.table)
    last, inputs = last_step(estimator), found.X
    # what scikit-learn computes in double precision is attacked in it
    rows, dtype, x64 = tile_rows(len(inputs), ROWS), np.dtype(float), True
    if isinstance(last, DifferentiableEstimator) and found.no_gradient_because is None:
        rows, dtype, x64 = last._rows, last._dtype, x64_enabled()
        inputs = fitting("X", movable(found.model, inputs, dtype, rows), dtype)
    return EstimatorTarget(
        source=estimator,
        model=found.model,
        X=inputs.astype(dtype, copy=False),
        y=_targets(y, classes, len(inputs), dtype) if labelled else np.zeros(0, np.int32),
        classes=np.zeros(0) if classes is None else classes,
        rows=rows,
        given=X,
        table=found.table,
        data_dtype=None if found.table is not None else _dtype_of(X),
        x64=x64,
        no_gradient_because=found.no_gradient_because,
        box=found.box,
    )


def is_function(estimator: Any) -> bool:
    """Return whether this is a function from inputs to scores, and no estimator."""
    return callable(estimator) and not hasattr(estimator, "fit")


def under_attack(estimator: Any) -> Any:
    """Return a function from inputs to scores, or a fitted estimator: what was given, or what that stands for.

    Raises
    ------
    TypeError
        For a class, a network without variables, an attack, and whatever else is neither.
    NotFittedError

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> under_attack(SVC)
    Traceback (most recent call last):
    TypeError: estimator must be a fitted estimator, or a function from inputs to scores such as a Model, got the
    class SVC; write SVC(...).fit(X, y)
    """
    if isinstance(estimator, type):
        said = f"the class {estimator.__name__}; write {how_to_make(estimator)}"
    elif hasattr(estimator, "needs_gradients"):
        said = f"the attack {brief(estimator)}; the order is (estimator, X, y, attack)"
    elif is_function(estimator):
        return estimator
    elif hasattr(estimator, "fit"):
        check_is_fitted(estimator)
        return unwrap(estimator)
    else:
        said = brief(estimator)
        said += "; write Model(network, variables)" if hasattr(estimator, "apply") else ""
    raise TypeError(
        f"estimator must be a fitted estimator, or a function from inputs to scores such as a Model, got {said}"
    )


def _function_target(model, X, y, classes, labelled) -> AttackTarget:
    """Return a function from inputs to scores as a target."""
    if isinstance(model, Model):
        dtype = params_dtype(model.variables.params)
    else:
        dtype = np.dtype(float if x64_enabled() else np.float32)
    table = as_table(X)
    is_model = isinstance(getattr(model, "model", model), Model)
    kinds: Any = kept_dtypes(X) if is_model else [np.float64, np.float32]
    checked = check_array(X, dtype=kinds, allow_nd=True, input_name="X")
    checked = fitting("X", movable(model, checked, dtype, NETWORK_ROWS), dtype)
    if table is not None:
        require_free(table)
        warn_of_fixed(table)
    checked = checked.astype(dtype)
    model, shape = own_arrays(as_pytree(model)), (1, *checked.shape[1:])
    try:
        scores = scores_of(form_of(model, checked[:1]))
    except Exception as error:  # a stranger's function may raise anything
        raise failure(model, shape, checked.dtype, error, "estimator: ") from error
    if getattr(scores, "ndim", None) != 2:
        raise ValueError(f"a model gives scores (n, C), but on inputs of shape {shape} this one gives {scores}")
    if scores.shape[1] == 1:
        # as in attacks: the score of label 1 against label 0
        model, scores = with_two_columns(model), jax.ShapeDtypeStruct((1, 2), scores.dtype)
    known = np.arange(scores.shape[1]) if classes is None else np.asarray(classes)
    if len(known) != scores.shape[1]:
        raise ValueError(f"the model gives {scores.shape[1]} scores, but there are {len(known)} classes")
    try:
        labels = encode_labels(y, known, len(checked)) if labelled else np.zeros(0, np.int32)
    except ValueError as error:
        if classes is None and "not seen in fit" in str(error):
            raise ValueError(
                f"the labels of a function are the positions of its scores, 0 to {len(known) - 1}, got {brief(y)}"
            ) from None
        raise
    return AttackTarget(
        source=model,
        model=model,
        X=checked,
        y=labels,
        classes=known,
        rows=network_rows(),
        given=X,
        table=table,
        data_dtype=None if table is not None else _dtype_of(X),
    )


def _targets(y, classes, n, dtype) -> np.ndarray:
    """Return positions in the classes, or a regressor's targets as columns."""
    if classes is not None:
        return encode_labels(y, classes, n)
    if np.ndim(y) == 0 or len(y) != n:
        raise ValueError(f"y must hold one target for each of the {n} samples, got shape {np.shape(y)}")
    return np.asarray(y, dtype).reshape(n, -1)


def _dtype_of(X) -> np.dtype | None:
    """Return the floating dtype in which an array came, or None."""
    dtype = getattr(X, "dtype", None)
    return dtype if isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize in (2, 4, 8) else None


def classifier_under_attack(function: str, estimator: Any, X: Any, y: Any, **options) -> AttackTarget:
    """Check what has classes, as :func:`attackable` does, on behalf of a function."""
    estimator = under_attack(estimator)
    if not hasattr(X, "columns"):
        require_numbers("X", X)
    if not is_function(estimator) and is_regressor(estimator):
        raise TypeError(
            f"{function} counts right answers, but {type(estimator).__name__} is a regressor; "
            "robust_accuracy gives its R² on attacked inputs"
        )
    return attackable(estimator, X, y, **options)
