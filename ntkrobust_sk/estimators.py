"""What the estimators share: inputs as rows or images, labels, attacks on themselves, the first network."""

from __future__ import annotations

import math
import warnings
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
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ._portable import without_jax_arrays
from ._validation import (
    array,
    brief,
    fitting,
    integer,
    is_finite,
    number,
    positive_tuple,
    require_numbers,
    require_regular,
)
from ._validation import seed as checked_seed
from .attacks.entry import require_attack
from .attacks.threat_model import admitted
from .attacks.tiled import attack_in_tiles
from .execution.keys import key_of
from .execution.memory import parse_memory
from .execution.tiles import evaluate, evaluate_attacked, movable
from .kernels.gram_matrix import gram
from .networks.inputs import params_dtype
from .tables.frames import as_table, require_free, require_own_names, warn_of_fixed

# What reaches networks as it is, besides floating numbers.
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


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
        X, image_shape = _as_rows(X)
        checked = validate_data(self, X, y, reset=reset, dtype=kept_dtypes(X), **options)
        X, y = checked if isinstance(checked, tuple) else (checked, None)
        if options.get("y_numeric"):
            require_finite_targets(y)
        fitting("X", X, jax.dtypes.canonicalize_dtype(X.dtype))
        if reset:
            self.input_shape_ = _input_shape(self.input_shape, image_shape, known_shape, X.shape[1])
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


# A gain by an attack that is told of: of the score, and in examples, since random starts move a few answers.
GAIN, GAINED = 0.01, 2.5


def warn_of_gain(robust: float, clean: float, n: int) -> None:
    """Warn if an attack has made the score of n examples better than that of the inputs themselves."""
    if robust - clean > max(GAIN, GAINED / n):
        warnings.warn(
            f"the attack makes the answers better: the score is {robust:.3f} on adversarial examples and "
            f"{clean:.3f} on the inputs themselves. Its gradients are no guide for this model, so its robust "
            "score is far too high; attack with Square or AutoAttack too, and see check_evaluation",
            UserWarning,
            stacklevel=3,
        )


def weights_to_score(y, n: int, sample_weight) -> np.ndarray | None:
    """Weights (n,) of a score, or an error that names what does not fit n answers, ``y`` or the weights."""
    require_regular("y", y)
    n_labels = np.shape(y)[:1] if isinstance(y, list | tuple) else getattr(y, "shape", ())[:1]
    if n_labels not in ((), (n,)):
        raise ValueError(f"y must hold one label or target for each of {n} samples, got {n_labels[0]}")
    if sample_weight is None:
        return None
    sample_weight = array("sample_weight", sample_weight, ndim=1)
    if len(sample_weight) != n:
        raise ValueError(f"sample_weight must hold one weight for each of {n} samples, got {len(sample_weight)}")
    if not (np.isfinite(sample_weight) & (sample_weight >= 0)).all() or not sample_weight.any():
        raise ValueError(
            "sample_weight must hold finite weights >= 0, at least one of them above 0, got weights from "
            f"{sample_weight.min()} to {sample_weight.max()}"
        )
    return sample_weight


def require_one_kind(y: np.ndarray) -> None:
    """Raise ValueError for labels that have no order: missing ones, and text among numbers.

    >>> require_one_kind(np.array(["Rome", None], dtype=object))
    Traceback (most recent call last):
    ValueError: Unknown label type: y must hold labels of one kind, text or numbers, got None among them (the...
    """
    if y.dtype.kind != "O":
        return
    labels = y.tolist()
    is_text = [isinstance(label, str) for label in labels]
    odd = [label is None or text != is_text[0] for label, text in zip(labels, is_text, strict=True)]
    if any(odd):
        at = odd.index(True)
        raise ValueError(
            "Unknown label type: y must hold labels of one kind, text or numbers, got "
            f"{brief(labels[at])} among them (the first: row {at}); write a label for what is missing, or "
            "leave these rows out"
        )


def require_finite_targets(y) -> None:
    """Raise ValueError for targets that hold NaN or infinity."""
    if not np.isfinite(np.asarray(y, dtype=float)).all():
        raise ValueError("y must hold finite targets, but has NaN or infinity")


def checked_weights(sample_weight, X) -> np.ndarray:
    """Weights (n,) of the samples X (n, ...), each finite and >= 0; None is one for each."""
    if sample_weight is not None:
        sample_weight = array("sample_weight", sample_weight, ndim=1)
    weights = _check_sample_weight(sample_weight, X.reshape(len(X), -1), ensure_non_negative=True)
    if not weights.any():
        raise ValueError("sample_weight must hold at least one non-zero weight, all are zero")
    return weights


def positions(y, classes, n_samples: int) -> np.ndarray:
    """Where labels y (n,) stand in ``classes`` (C,), int32 (n,).

    Raises
    ------
    ValueError
        For another number of labels than samples, and for labels that are not in ``classes``.
    """
    if isinstance(y, np.ma.MaskedArray):
        raise TypeError("y must hold one label for each sample, got a masked array; leave masked samples out")
    try:
        y = np.asarray(y)
    except (TypeError, ValueError) as error:
        raise TypeError(f"y must hold one label for each sample, got {brief(y)}: {error}") from None
    # one column of a data frame
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (n_samples,):
        raise ValueError(f"y must hold one label for each of the {n_samples} samples of X, got shape {y.shape}")
    # not by sorting, which would take the strings "0", "1" for the numbers and fails on mixed types
    position = {label: i for i, label in enumerate(classes.tolist())}
    labels = y.tolist()
    if unseen := [label for label in dict.fromkeys(labels) if label not in position]:
        raise ValueError(f"y contains labels that were not seen in fit: {unseen[:5]}")
    return np.array([position[label] for label in labels], dtype=np.int32)


def as_answer(values: np.ndarray, X: np.ndarray, what: str = "scores") -> np.ndarray:
    """Finite scores or features in the inputs' dtype, or in double precision where these are integers."""
    with np.errstate(over="ignore"):
        values = values.astype(X.dtype if X.dtype.kind == "f" else np.float64, copy=False)
    return require_finite_answers(values, what)


def require_finite_answers(values: np.ndarray, what: str = "scores") -> np.ndarray:
    """Scores or features (n, ...), or ValueError: what is not finite is no answer."""
    if not is_finite(values):
        lost = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        said = "NaN" if np.isnan(values).any() else "infinite"
        raise ValueError(
            f"the {what} of {lost.sum()} of {len(values)} inputs are {said} in {values.dtype} (the "
            f"first: row {lost.argmax()}), so there is no answer to them: inputs or targets of training are too "
            "large for it, or weights are not finite. Scale the data"
        )
    return values


def kept_dtypes(X) -> list:
    """The dtypes that inputs may have; the first is that of what has another one."""
    floating = [np.float64, np.float32]
    if isinstance(X, list | tuple):
        kinds = {np.asarray(X).dtype.kind}
    else:
        # a frame's columns: pandas' dtypes have a kind, those of polars say it by a method
        dtypes = [X.dtype] if hasattr(X, "dtype") else getattr(X, "dtypes", [None])
        kinds = {getattr(d, "kind", "i" if getattr(d, "is_integer", bool)() else None) for d in dtypes}
    return [np.int64, *INTEGERS, *floating] if kinds and kinds <= {"i", "u"} else floating


def _as_rows(X):
    """Flat rows, and the shape of the images that they were, or None."""
    if isinstance(X, np.ndarray | jax.Array) and X.ndim > 2:
        X = np.asarray(X)
        return X.reshape(len(X), math.prod(X.shape[1:])), X.shape[1:]
    return X, None


def _input_shape(given, image_shape, known_shape, n_features) -> tuple[int, ...]:
    """The shape of one input, from the parameter, the images, the source of the kernel or the row length."""
    shape = image_shape or known_shape if given is None else positive_tuple("input_shape", given)
    if shape is None:
        return (n_features,)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"input_shape={shape} stands for {math.prod(shape)} features, but X has {n_features} for each sample"
        )
    if given is not None and image_shape is not None and shape != image_shape:
        raise ValueError(f"input_shape={shape}, but X holds images of shape {image_shape}")
    # a network that was fitted on rows may take them as images, but images of one shape are not those of another
    if known_shape is not None and len(known_shape) > 1 and shape != known_shape:
        raise ValueError(f"inputs are of shape {shape}, but the estimator takes images of shape {known_shape}")
    return shape
