"""Estimators that are differentiable functions, with attacks on them; classifiers with labels of any type."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.tree_util import Partial
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, is_classifier
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .._validation import brief, fitting
from ..attacks.entry import require_attack
from ..execution.keys import key_of
from ..execution.tiles import Shaped, evaluate, evaluate_attacked, movable
from ..networks.inputs import params_dtype
from ..sklearn_models.registry import DifferentiableEstimator
from ..tables.frames import as_table, require_free, warn_of_fixed
from ..targets.labels import encode_labels, weights_to_score
from ..targets.target import AttackTarget, Seed
from .inputs import as_answer, checked_weights, require_finite_answers, require_one_kind
from .shared import TangentEstimator, allowed, at_least

POSITIVE = allowed(Interval(Real, 0, None, closed="neither"))


def _sharpened(model: Callable, factor: Any, x: Any) -> Any:
    scores = model(x)
    return scores * jnp.asarray(factor, scores.dtype)


@dataclass(frozen=True, eq=False)
class _OwnTarget(AttackTarget):
    """An estimator of this library under attack: it is scored by what its model gives."""

    source: AttackableEstimator

    def score(self, X: np.ndarray, y: ArrayLike, sample_weight: np.ndarray | None = None) -> float:
        """Return accuracy or R²; where scores are NaN under attack, those of the inputs themselves count."""
        with self.precision():
            if X is self.X:
                scores = evaluate(self.model, X, self.rows)
            else:
                scores = evaluate_attacked(self.model, X, self.X, self.rows)
        return self.source._score(y, self.source._answers(scores), sample_weight)


@dataclass(eq=False, repr=False, kw_only=True)
class GradientDescent:
    """The parameters of what is trained by gradient descent, with or without an attack."""

    clean_step: bool = field(default=True, metadata=allowed("boolean"))
    max_epochs: int = field(default=20, metadata=allowed(at_least(0)))
    batch_size: int = field(default=128, metadata=allowed(at_least(1)))
    learning_rate: float = field(default=0.01, metadata=POSITIVE)
    momentum: float = field(default=0.9, metadata=allowed(Interval(Real, 0, 1, closed="left")))


@dataclass(eq=False, repr=False, kw_only=True)
class AttackableEstimator(DifferentiableEstimator, TangentEstimator):
    """A classifier or a regressor that is a differentiable function, and is attacked by itself."""

    attack: Callable | None = field(
        default=None, metadata=allowed(callable, None, such_as="an attack, such as PGD(epsilon=8/255)")
    )
    verbose: int = field(default=0, metadata=allowed("verbose"))
    classes_: np.ndarray = field(init=False)

    @abstractmethod
    def _answers(self, scores: np.ndarray) -> np.ndarray:
        """Return labels or predictions from scores (n, T)."""

    @abstractmethod
    def _score(self, y: ArrayLike, answers: np.ndarray, sample_weight: ArrayLike | None) -> float:
        """Return the score of answers to inputs with labels or targets y."""

    @abstractmethod
    def _attack_targets(self, y: ArrayLike, n_samples: int) -> np.ndarray:
        """Return labels as positions in the classes (n,), or real targets (n, T)."""

    @abstractmethod
    def _scores(self) -> Callable:
        """Return the fitted function from inputs ``(n, *input_shape_)`` to scores (n, T), a callable pytree."""

    @property
    def _dtype(self) -> np.dtype:
        return params_dtype(self.model_.variables.params)

    def _validate_params(self):
        super()._validate_params()
        if isinstance(self.attack, type):
            name = self.attack.__name__
            raise TypeError(f"attack must be an instance: write {name}(...), not {name}")
        if self.attack is not None:
            require_attack(self.attack)

    def as_model(self) -> Callable:
        """Return the scores as a differentiable function of the inputs.

        :func:`~ntkrobust_sk.as_model` of this estimator is this function behind checks of its inputs.

        Returns
        -------
        callable pytree
            From inputs (n, n_features) or (n, ...) to scores (n, C) in the order of ``classes_``, or to
            predictions (n, T) of a regressor.
        """
        check_is_fitted(self)
        return Partial(Shaped(tuple(self.input_shape_)), self._scores())

    def _evaluate(self, X: ArrayLike) -> np.ndarray:
        """Return the scores (n, T) of raw inputs, in the inputs' dtype; of integers in double precision."""
        check_is_fitted(self)
        inputs, _ = self._validated(X, reset=False)
        return as_answer(self._scores_of(inputs), inputs)

    def _scores_of(self, X: np.ndarray) -> np.ndarray:
        """Return the scores (n, T) of checked inputs (n, ...)."""
        return evaluate(self.as_model(), X, self._rows)

    def attack_target(self, X: ArrayLike, y: ArrayLike, *, labelled: bool = True) -> AttackTarget:
        """Return this estimator with checked inputs and labels, ready to be attacked.

        Parameters
        ----------
        X : array (n, n_features), data frame, or (n, h, w, c)
        y : array (n,) or (n, T)
        labelled : bool, default=True
            Without, y is not looked at.

        Returns
        -------
        :class:`~ntkrobust_sk.targets.AttackTarget`
        """
        check_is_fitted(self)
        inputs, _ = self._validated(X, reset=False)
        table = as_table(X)
        if table is not None:
            require_free(table)
            warn_of_fixed(table)
        model, dtype, classes = self.as_model(), self._dtype, self.classes_ if is_classifier(self) else np.zeros(0)
        inputs = movable(model, inputs, dtype, self._rows)
        return _OwnTarget(
            source=self,
            model=model,
            X=fitting("X", inputs, dtype),
            y=self._attack_targets(y, len(inputs)) if labelled else np.zeros(0, np.int32),
            classes=classes,
            rows=self._rows,
            given=X,
            table=table,
            data_dtype=inputs.dtype,
        )

    def perturb(
        self,
        X: Any,
        y: ArrayLike,
        attack: Callable | None = None,
        *,
        random_state: Seed = 0,
        targets: Any = None,
        epsilon: Any = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> Any:
        """Return adversarial examples against this very estimator.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
            Inputs, in the units in which the attack's epsilon and bounds are given.
        y : array (n,)
            True labels (or targets), of those seen in ``fit``.
        attack : callable, default=None
            ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`; None is the one that the
            estimator was trained with.
        random_state : int, RandomState or None, default=0
        targets, epsilon, n_jobs, progress
            As for :func:`~ntkrobust_sk.robust_accuracy`.

        Returns
        -------
        array shaped like X, or a data frame if X is one
            Columns of numbers keep their dtype, and so integers stay integers; with ``bounds=Box(integers=[])``
            they become floating where they are other numbers. Boolean columns of a frame stay as they are.
        """
        target, attack = self.attack_target(X, y), self._attack_or_own(attack)
        target = target.asked(targets, epsilon, n_jobs, progress)
        return target.in_original_form(target.perturb(target.attack_for(attack), key_of(random_state)))

    def robust_score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        attack: Callable | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        random_state: Seed = 0,
        targets: Any = None,
        epsilon: Any = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> float:
        """Return the estimator's score on adversarial examples: robust accuracy, or R² of a regressor.

        All inputs are attacked, also those that are answered wrongly as they are; where that makes the score
        better than that of the inputs themselves, a warning says so.

        Parameters
        ----------
        X, y, attack, random_state, targets, epsilon, n_jobs, progress
            As for :meth:`perturb`.
        sample_weight : array (n,), default=None

        Returns
        -------
        float
        """
        target, attack = self.attack_target(X, y), self._attack_or_own(attack)
        target = target.asked(targets, epsilon, n_jobs, progress)
        return target.robust_score(attack, y, sample_weight=sample_weight, random_state=random_state)

    def _attack_or_own(self, attack: Callable | None) -> Callable:
        """Return the attack, or that of training in place of None."""
        attack = self.attack if attack is None else attack
        if not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"an attack is needed, such as attack=PGD(epsilon=8/255), got {attack!r}; the estimator was "
                f"fitted with attack={self.attack!r}"
            )
        return attack


@dataclass(eq=False, repr=False, kw_only=True)
class TangentClassifier(ClassifierMixin, AttackableEstimator):
    """A classifier with labels of any type, class weights and probabilities."""

    class_weight: dict | str | None = field(default=None, metadata=allowed(dict, StrOptions({"balanced"}), None))

    def _validated_labels(self, X: Any, y: Any, sample_weight: ArrayLike | None, known_shape=None):
        """Return X as (n, ...), labels as positions (n,), and weights (n,) or None; set ``classes_``."""
        X, y = self._validated(X, y, reset=True, known_shape=known_shape)
        require_one_kind(y)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes, but y holds one class only: "
                f"{brief(self.classes_.tolist()[0])}"
            )
        return X, encoded.astype(np.int32), self._weights(sample_weight, X, y)

    def _weights(self, sample_weight, X, y) -> np.ndarray | None:
        """Return weights of examples times those of their classes (n,), or None where there are neither."""
        if sample_weight is None and self.class_weight is None:
            return None
        weights = checked_weights(sample_weight, X) * self._class_weights(y)
        # once more, since weights of classes may be negative too, or leave nothing
        return checked_weights(weights, X)

    def _class_weights(self, y) -> np.ndarray:
        """Return the weights (n,) of the classes of labels; a class that a dict leaves out has weight 1."""
        if not isinstance(self.class_weight, dict):
            return compute_sample_weight(self.class_weight, y)
        known, given = self.classes_.tolist(), self.class_weight
        strange = [label for label in given if label not in known]
        # as in scikit-learn, a dict of all classes may name others too, of which there are none in this fold
        if strange and not set(known) <= set(given):
            raise ValueError(
                f"class_weight names {brief(strange[0])}, which is not among the labels of y, {brief(known)}"
            )
        return np.array([given.get(label, 1.0) for label in np.asarray(y).tolist()])

    def _attack_targets(self, y, n_samples):
        return encode_labels(y, self.classes_, n_samples)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return logits or scores of each class.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)

        Returns
        -------
        array (n, C), or (n,) for two classes: the second's score minus the first's
        """
        scores = self._evaluate(X)
        if len(self.classes_) != 2:
            return scores
        with np.errstate(over="ignore"):
            return require_finite_answers(scores[:, 1] - scores[:, 0])

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores over ``temperature_``, (n, C), in the order of ``classes_``.

        They are the probabilities of a network trained by cross-entropy, whose temperature is 1. Scores of kernel
        *regression* estimate the classes' indicators, so their softmax ranks classes, and is calibrated by a
        temperature that is fitted to leave-one-out scores: :class:`~ntkrobust_sk.EmpiricalNTKClassifierCV` always
        does so, :class:`~ntkrobust_sk.EmpiricalNTKClassifier` with ``calibrate=True``.
        """
        return scipy.special.softmax(self._evaluate(X) / self._temperature, axis=1)

    @property
    def _temperature(self) -> float:
        return vars(self).get("temperature_", 1.0)

    def calibrated_model(self) -> Callable:
        """Return the logits of ``predict_proba`` as a differentiable function of the inputs.

        Returns
        -------
        callable pytree
            From inputs (n, n_features) or (n, ...) to scores over the temperature (n, C). An attack by
            cross-entropy on the right labels lowers the confidence in them.
        """
        return Partial(_sharpened, self.as_model(), 1 / self._temperature)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the labels (n,) of the highest scores."""
        return self._answers(self._evaluate(X))

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on X (n, n_features) or (n, h, w, c) and labels y (n,)."""
        return self._score(y, self.predict(X), sample_weight)

    def _answers(self, scores):
        return self.classes_[scores.argmax(1)]

    def _score(self, y, answers, sample_weight):
        sample_weight = weights_to_score(y, len(answers), sample_weight)
        try:
            from sklearn.metrics import accuracy_score

            return float(accuracy_score(y, answers, sample_weight=sample_weight))
        except (TypeError, ValueError) as error:
            raise ValueError(f"y must hold labels, such as {brief(self.classes_.tolist())}: {error}") from error
