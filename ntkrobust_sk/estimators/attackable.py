"""Estimators that are differentiable functions, and attacks on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.tree_util import Partial
from numpy.typing import ArrayLike
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from .._validation import fitting
from ..attacks.entry import require_attack
from ..execution.keys import key_of
from ..execution.tiles import Shaped, evaluate, evaluate_attacked, movable
from ..networks.inputs import params_dtype
from ..sklearn_models.differentiable import DifferentiableEstimator
from ..tables.frames import as_table, require_free, warn_of_fixed
from ..targets.target import AttackTarget, Seed
from .answers import as_answer
from .shared import TangentEstimator


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


class AttackableEstimator(DifferentiableEstimator, TangentEstimator):
    """A classifier or a regressor that is a differentiable function, with attacks on itself."""

    attack: Callable | None
    classes_: np.ndarray

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
        """Return the fitted function from inputs (n, *input_shape_) to scores (n, T), a callable pytree."""

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
            From inputs (n, n_features) or (n, *input_shape_) to scores (n, C) in the order of ``classes_``, or to
            predictions (n, T) of a regressor.
        """
        check_is_fitted(self)
        return Partial(Shaped(tuple(self.input_shape_)), self._scores())

    def _evaluate(self, X: ArrayLike) -> np.ndarray:
        """Return the scores (n, T) of raw inputs, in the inputs' dtype; of integers in double precision."""
        check_is_fitted(self)
        inputs, _ = self._validated(X, reset=False)
        return as_answer(evaluate(self.as_model(), inputs, self._rows), inputs)

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

    def perturb(self, X: Any, y: ArrayLike, attack: Callable | None = None, *, random_state: Seed = 0) -> Any:
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

        Returns
        -------
        array shaped like X, or a data frame if X is one
            Columns of numbers keep their dtype, but integers that have become other numbers are floating (give
            ``bounds=Box(integers=...)`` to keep them integers). Boolean columns of a frame stay as they are.
        """
        target, attack = self.attack_target(X, y), self._attack_or_own(attack)
        return target.in_original_form(target.perturb(target.attack_for(attack), key_of(random_state)))

    def robust_score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        attack: Callable | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        random_state: Seed = 0,
    ) -> float:
        """Return the estimator's score on adversarial examples: robust accuracy, or R² of a regressor.

        All inputs are attacked, also those that are answered wrongly as they are; where that makes the score
        better than that of the inputs themselves, a warning says so.

        Parameters
        ----------
        X, y, attack, random_state
            As for :meth:`perturb`.
        sample_weight : array (n,), default=None

        Returns
        -------
        float
        """
        target, attack = self.attack_target(X, y), self._attack_or_own(attack)
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
