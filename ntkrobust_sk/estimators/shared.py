"""What the estimators share: inputs as rows or images, labels, attacks on themselves, the first network."""

from __future__ import annotations

from fractions import Fraction
from numbers import Integral

import jax
import numpy as np
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._portable import without_jax_arrays
from .._validation import brief, fitting, integer, number, require_numbers, require_regular
from .._validation import seed as checked_seed
from ..attacks.entry import require_attack
from ..attacks.threat_model import admitted
from ..attacks.tiled import attack_in_tiles
from ..execution.keys import key_of
from ..execution.memory import parse_memory
from ..execution.tiles import evaluate, evaluate_attacked, movable
from ..kernels.gram_matrix import gram
from ..networks.inputs import params_dtype
from ..tables.frames import as_table, require_free, require_own_names, warn_of_fixed
from .answers import as_answer, kept_dtypes, require_finite_answers, warn_of_gain
from .inputs import (
    as_rows,
    checked_weights,
    input_shape,
    positions,
    require_finite_targets,
    require_one_kind,
    weights_to_score,
)


class TangentEstimator(BaseEstimator):
    """What all estimators share: inputs as flat rows or as images, and a seed."""

    _shared_constraints = {
        "input_shape": ["array-like", None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __getstate__(self):
        return without_jax_arrays(super().__getstate__())

    def _validated(self, X, y="no_validation", *, reset, known_shape=None, **options):
        """X as (n, *input_shape_) and y, checked by scikit-learn; images come flattened to its checks."""
        require_numbers("X", X)
        if options.get("y_numeric"):
            require_numbers("y", y)
        require_regular("y", y)
        if hasattr(X, "columns"):
            require_own_names(list(X.columns))
        is_array = isinstance(X, np.ndarray | jax.Array)
        if is_array and not reset and X.shape == self.input_shape_ and X.ndim > 1:
            raise ValueError(
                f"X must hold inputs of shape (n, ...), got one of shape {np.shape(X)}; write X[None]"
            )
        X, image_shape = as_rows(X)
        checked = validate_data(self, X, y, reset=reset, dtype=kept_dtypes(X), **options)
        X, y = checked if isinstance(checked, tuple) else (checked, None)
        if options.get("y_numeric"):
            require_finite_targets(y)
        fitting("X", X, jax.dtypes.canonicalize_dtype(X.dtype))
        if reset:
            self.input_shape_ = input_shape(self.input_shape, image_shape, known_shape, X.shape[1])
        elif image_shape is not None and image_shape != self.input_shape_:
            raise ValueError(
                f"{type(self).__name__} was fitted on inputs of shape {self.input_shape_}, but X holds images of "
                f"shape {image_shape}"
            )
        return X.reshape(-1, *self.input_shape_), y

    def _validate_params(self):
        # fractions are real numbers, but scikit-learn asks NumPy whether they are NaN
        given = {k: float(v) if isinstance(v, Fraction) else v for k, v in self.get_params(deep=False).items()}
        validate_parameter_constraints(self._parameter_constraints, given, caller_name=type(self).__name__)
        # scikit-learn takes True for 1, and infinity for a number
        for name, constraints in self._parameter_constraints.items():
            intervals = [] if isinstance(constraints, str) else [c for c in constraints if isinstance(c, Interval)]
            value = getattr(self, name)
            if intervals and not (value is None or name == "memory"):
                check = integer if issubclass(intervals[0].type, Integral) else number
                check(name, value, low=intervals[0].left)
        checked_seed("random_state", self.random_state)
        if hasattr(self, "memory"):
            parse_memory(self.memory)

    def _key(self) -> jax.Array:
        return key_of(self.random_state)

    def _evaluate(self, X) -> np.ndarray:
        """Scores (n, T) of raw inputs, in the inputs' dtype; of integers in double precision."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        return as_answer(evaluate(self._predictor(), X, self._rows()), X)

    def _gram(self, kernel, X, Y, memory) -> np.ndarray:
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        Y = None if Y is None else self._validated(Y, reset=False)[0]
        return np.asarray(gram(kernel, self.model_, X, Y, memory=memory))


class AttackedMixin:
    """Adversarial examples and the score on them, for estimators whose predictor is a model."""

    def _validate_params(self):
        super()._validate_params()
        if isinstance(self.attack, type):
            name = self.attack.__name__
            raise TypeError(f"attack must be an instance: write {name}(...), not {name}")
        if self.attack is not None:
            require_attack(self.attack)

    def perturb(self, X, y, attack=None, *, random_state=0):
        """Adversarial examples against this very estimator.

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
        X_adv, table = self._attacked(X, y, attack, random_state)
        if table is None:
            return X_adv.reshape(np.shape(X))
        own = self._validated(X, reset=False)[0].astype(X_adv.dtype, copy=False)
        # what has not moved is what it was, to the last digit
        kept = X_adv.reshape(len(own), -1) == own.reshape(len(own), -1)
        return table.like(np.where(kept, table.numbers, X_adv.reshape(len(own), -1)))

    def _attacked(self, X, y, attack, random_state):
        """Adversarial examples (n, *input_shape_), and the Table of a data frame or None."""
        check_is_fitted(self)
        attack = self.attack if attack is None else attack
        if not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"an attack is needed, such as attack=PGD(epsilon=8/255), got {attack!r}; the estimator was "
                f"fitted with attack={self.attack!r}"
            )
        require_attack(attack)
        checked, _ = self._validated(X, reset=False)
        table = as_table(X)
        if table is not None:
            require_free(table)
            warn_of_fixed(table)
            attack = table.within(attack)
        checked = movable(self._predictor(), checked, params_dtype(self.model_.variables.params), self._rows())
        checked = admitted(attack, checked, checked.dtype)
        checked = fitting("X", checked, params_dtype(self.model_.variables.params))
        targets = self._attack_targets(y, len(checked))
        key = key_of(random_state)
        X_adv = attack_in_tiles(attack, self._predictor(), checked, targets, key=key, rows=self._rows())
        if table is not None:
            X_adv = np.where(table.fixed, checked.reshape(len(X_adv), -1), X_adv.reshape(len(X_adv), -1))
        return X_adv.reshape(checked.shape), table

    def robust_score(self, X, y, attack=None, *, sample_weight=None, random_state=0) -> float:
        """The estimator's score on adversarial examples: robust accuracy, or R² of a regressor.

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
        X_adv, _ = self._attacked(X, y, attack, random_state)
        inputs, _ = self._validated(X, reset=False)
        scores = evaluate_attacked(self._predictor(), X_adv, inputs, self._rows())
        robust = self._score(y, self._answers(scores), sample_weight)
        clean = evaluate(self._predictor(), inputs, self._rows())
        warn_of_gain(robust, self._score(y, self._answers(clean), sample_weight), len(inputs))
        return robust


class TangentClassifierMixin(AttackedMixin, ClassifierMixin):
    """Labels, probabilities and the encoding of classes."""

    def _validated_labels(self, X, y, sample_weight, known_shape=None):
        X, y = self._validated(X, y, reset=True, known_shape=known_shape)
        require_one_kind(y)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes, but y holds one class only: "
                f"{self.classes_[0]!r}"
            )
        if sample_weight is not None or self.class_weight is not None:
            sample_weight = checked_weights(sample_weight, X) * compute_sample_weight(self.class_weight, y)
            # once more, since weights of classes may be negative too, or leave nothing
            sample_weight = checked_weights(sample_weight, X)
        return X, encoded.astype(np.int32), sample_weight

    def _attack_targets(self, y, n_samples):
        return positions(y, self.classes_, n_samples)

    def decision_function(self, X) -> np.ndarray:
        """Logits or scores of each class.

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

    def predict_proba(self, X) -> np.ndarray:
        """Softmax of the scores, (n, C), columns in the order of ``classes_``.

        Probabilities of a network trained by cross-entropy. Scores of kernel *regression* estimate the
        classes' indicators, so their softmax ranks classes but is not calibrated: wrap the estimator in
        :class:`sklearn.calibration.CalibratedClassifierCV` where that matters.
        """
        return scipy.special.softmax(self._evaluate(X), axis=1)

    def predict(self, X) -> np.ndarray:
        """Labels (n,) of the highest scores."""
        return self._answers(self._evaluate(X))

    def score(self, X, y, sample_weight=None) -> float:
        """Accuracy on X (n, n_features) or (n, h, w, c) and labels y (n,)."""
        return self._score(y, self.predict(X), sample_weight)

    def _answers(self, scores):
        return self.classes_[scores.argmax(1)]

    def _score(self, y, answers, sample_weight):
        sample_weight = weights_to_score(y, len(answers), sample_weight)
        try:
            return float(accuracy_score(y, answers, sample_weight=sample_weight))
        except (TypeError, ValueError) as error:
            raise ValueError(f"y must hold labels, such as {brief(self.classes_.tolist())}: {error}") from error
