"""An estimator as attacks see it: a function from numbers to scores, with inputs and labels that were checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.utils.validation import check_array, check_is_fitted

from .._validation import brief, fitting, require_numbers
from ..attacks.capabilities import InBall, needs_gradients
from ..attacks.entry import how_to_make, with_two_columns
from ..attacks.norms import NORMS
from ..attacks.square import Square
from ..attacks.threat_model import admitted
from ..attacks.tiled import attack_in_tiles
from ..estimators.answers import kept_dtypes
from ..estimators.inputs import positions
from ..execution.interrupts import heard
from ..execution.keys import keys_of
from ..execution.loops import form_of
from ..execution.tiles import NETWORK_ROWS, answers, as_pytree, movable
from ..networks.inputs import params_dtype
from ..networks.model import Model, failure
from ..tables.frames import Table, as_table, check_rows, require_free, warn_of_fixed
from .black_box import BlackBox, forget_error
from .readings import QUERIES, as_given, held, last_step, own_arrays, scores_of, through_scikit_learn

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64

# Rows attacked at once of scikit-learn's estimators, most of which do so little for a row that a step's own cost
# counts; divides the numbers of examples that people choose.
ROWS = 200


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
    table : Table or None
        Of a data frame, and of an array of which some columns are fixed.
    box : BlackBox or None
        What the model asks, where there are no gradients.
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
    table: Table | None = None
    box: BlackBox | None = None

    @property
    def free(self) -> np.ndarray:
        """Which features attacks may change, bool, shaped like one input."""
        return np.ones(self.X.shape[1:], bool) if self.table is None else ~self.table.fixed

    def usable(self, attack):
        """The attack, kept to the features that may change.

        Where there are no gradients and the attack needs them, it is Square in the same ball, and a warning.

        Raises
        ------
        TypeError
            For what is no attack; where there are no gradients, for an attack that does not say that it needs none
            and states no ball in which Square could take its place.
        """
        if not callable(attack) or isinstance(attack, type):
            raise TypeError(f"an attack is needed, such as PGD(epsilon=8/255), got {attack!r}")
        attack = self.within(attack)
        if self.box is not None and self.box.note is not None:
            warnings.warn(self.box.note, UserWarning, stacklevel=3)
        needs = needs_gradients(attack)
        if self.opaque is None or (needs is not None and not needs):
            return attack
        if needs is None:
            raise TypeError(
                f"{self.opaque}; an attack that asks for scores alone says so by needs_gradients = False, which "
                f"{attack!r} does not. Set that attribute, or give Square(epsilon)"
            )
        if not isinstance(attack, InBall) or attack.norm not in NORMS:
            raise TypeError(f"{self.opaque}, and {attack!r} states no ball in which Square could take its place")
        attack = Square(attack.epsilon, QUERIES, norm=attack.norm, bounds=attack.bounds)
        warnings.warn(
            f"{self.opaque}: so {type(self.source).__name__} is attacked as a black box, by {attack!r}. What "
            "stands may fall to an attack with gradients",
            UserWarning,
            stacklevel=3,
        )
        return attack

    def within(self, attack):
        """The attack with bounds that keep to the features that may change."""
        return attack if self.table is None else self.table.within(attack)

    def inputs(self, attack, at=slice(None)) -> np.ndarray:
        """The inputs of the rows ``at``, checked against the attack's bounds."""
        return admitted(attack, self.X[at], None if self.table is not None else _dtype_of(self.given))

    def perturb(self, attack, key, at=slice(None), look=True) -> np.ndarray:
        """Adversarial examples of the rows ``at``; ``key`` is one, or one for each of *all* rows."""
        keys = keys_of(key, len(self.X))
        X = self.inputs(attack, at)
        with self.precision():
            found = attack_in_tiles(attack, self.model, X, self.y[at], key=keys[at], rows=self.rows, look=look)
        return found if self.table is None else np.where(self.free, found, X)

    @contextmanager
    def precision(self):
        """The context in which the model is called: its precision, and the errors of its estimator as they are."""
        try:
            with heard(), enable_x64(self.x64):
                yield
        except (Exception, KeyboardInterrupt) as error:
            if self.box is None or self.box.error is None:
                raise
            forget_error()
            own, self.box.error = self.box.error, None
            raise error if isinstance(error, KeyboardInterrupt) else own from None

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
        if self.table is None:
            return X.reshape(-1, *np.shape(self.given)[1:])
        X = np.asarray(X, float)
        if X.shape == self.X.shape:
            # what has not moved is what it was, to the last digit
            X = np.where((X == self.X) & self.free, self.table.numbers, X)
        return as_given(self.table, X, coded=not self.own)

    def read(self, given) -> np.ndarray:
        """Inputs in the form in which they came, of the same rows as ``X``, as this subject's numbers."""
        if self.table is None or not self.table.has_names:
            X = np.asarray(given, self.X.dtype).reshape(self.X.shape)
        else:
            X = as_table(given).numbers.astype(self.X.dtype)
        return np.where(self.free, X, self.X)


def attackable(estimator, X, y, *, classes=None, labelled=True) -> Subject:
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

    Returns
    -------
    Subject

    Raises
    ------
    NotFittedError, TypeError, ValueError
        For what :func:`robust_accuracy` cannot attack.
    """
    estimator = under_attack(estimator)
    if is_function(estimator):
        return _model_subject(estimator, X, y, classes, labelled)
    name = type(estimator).__name__
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise TypeError(f"{name} is no classifier and no regressor: there is no score to attack")
    classes = getattr(estimator, "classes_", None)
    if is_classifier(estimator) and (classes is None or isinstance(classes, list)):
        raise TypeError(
            f"{name} has {'no classes_' if classes is None else 'classes of several outputs'}; what is attacked "
            "gives one label of its classes_ to each input"
        )
    check_rows(X)
    table, box = as_table(X), None
    if hasattr(estimator, "_predictor"):
        checked, _ = estimator._validated(X, reset=False)
        model, opaque, last = estimator._predictor(), None, estimator
    else:
        last = last_step(estimator)
        checked, table, model, opaque, box = through_scikit_learn(estimator, X, table)
    if table is not None:
        warn_of_fixed(table)
    own, x64 = hasattr(last, "_predictor") and opaque is None, bool(jax.config.jax_enable_x64)
    # what scikit-learn computes in double precision is attacked in it
    x64 |= not own
    dtype = params_dtype(last.model_.variables.params) if own else np.dtype(float)
    if own:
        checked = fitting("X", movable(model, checked, dtype, last._rows()), dtype)
    y = _targets(y, classes, len(checked), dtype) if labelled else None
    rows, checked = last._rows() if own else ROWS, checked.astype(dtype, copy=False)
    return Subject(estimator, model, checked, y, classes, rows, x64, opaque, X, table, box)


def is_function(estimator) -> bool:
    """Whether this is a function from inputs to scores, and no estimator."""
    return callable(estimator) and not hasattr(estimator, "fit")


def under_attack(estimator):
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
        return held(estimator)
    else:
        said = brief(estimator)
        said += "; write Model(network, variables)" if hasattr(estimator, "apply") else ""
    raise TypeError(
        f"estimator must be a fitted estimator, or a function from inputs to scores such as a Model, got {said}"
    )


def _model_subject(model, X, y, classes, labelled):
    x64 = bool(jax.config.jax_enable_x64)
    dtype = params_dtype(model.variables.params) if isinstance(model, Model) else float if x64 else np.float32
    check_rows(X)
    table = as_table(X)
    kinds = kept_dtypes(X) if isinstance(getattr(model, "model", model), Model) else [np.float64, np.float32]
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
        y = positions(y, known, len(checked)) if labelled else None
    except ValueError as error:
        if classes is None and "not seen in fit" in str(error):
            raise ValueError(
                f"the labels of a function are the positions of its scores, 0 to {len(known) - 1}, got {brief(y)}"
            ) from None
        raise
    return Subject(model, model, checked, y, known, NETWORK_ROWS, x64, None, X, table)


def _targets(y, classes, n, dtype):
    """Positions in the classes, or a regressor's targets as columns."""
    if classes is not None:
        return positions(y, classes, n)
    if np.ndim(y) == 0 or len(y) != n:
        raise ValueError(f"y must hold one target for each of the {n} samples, got shape {np.shape(y)}")
    return np.asarray(y, dtype).reshape(n, -1)


def _dtype_of(X):
    """The floating dtype in which an array came, or None."""
    dtype = getattr(X, "dtype", None)
    return dtype if isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize in (2, 4, 8) else None


def classifier_under_attack(function: str, estimator, X, y, **options) -> Subject:
    """:func:`~ntkrobust_sk.robustness.target.attackable` of what has classes, on behalf of a function."""
    estimator = under_attack(estimator)
    if not hasattr(X, "columns"):
        require_numbers("X", X)
    if not is_function(estimator) and is_regressor(estimator):
        raise TypeError(
            f"{function} counts right answers, but {type(estimator).__name__} is a regressor; "
            "robust_accuracy gives its R² on attacked inputs"
        )
    return attackable(estimator, X, y, **options)
