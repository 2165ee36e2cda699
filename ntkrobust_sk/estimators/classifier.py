"""What this library's classifiers share: labels, class weights and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets

from .._validation import brief
from ..targets.labels import encode_labels, weights_to_score
from .answers import require_finite_answers
from .attackable import AttackableEstimator
from .inputs import checked_weights, require_one_kind


class TangentClassifier(ClassifierMixin, AttackableEstimator):
    """A classifier with labels of any type, class weights and probabilities."""

    class_weight: dict | str | None

    def _validated_labels(self, X: Any, y: Any, sample_weight: ArrayLike | None, known_shape=None):
        """Return X as (n, *input_shape_), labels as positions (n,), and weights (n,) or None; set ``classes_``."""
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
            weights = checked_weights(sample_weight, X) * compute_sample_weight(self.class_weight, y)
            # once more, since weights of classes may be negative too, or leave nothing
            sample_weight = checked_weights(weights, X)
        return X, encoded.astype(np.int32), sample_weight

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
        """Return the softmax of the scores, (n, C), columns in the order of ``classes_``.

        They are the probabilities of a network trained by cross-entropy. Scores of kernel *regression* estimate
        the classes' indicators, so their softmax ranks classes but is not calibrated: wrap the estimator in
        :class:`sklearn.calibration.CalibratedClassifierCV` where that matters.
        """
        return scipy.special.softmax(self._evaluate(X), axis=1)

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
            return float(accuracy_score(y, answers, sample_weight=sample_weight))
        except (TypeError, ValueError) as error:
            raise ValueError(f"y must hold labels, such as {brief(self.classes_.tolist())}: {error}") from error
