"""A classifier asked on the host: its scores, in the form that attacks without gradients need.

Whatever is read of a classifier, its highest score must be the answer that ``predict`` gives, or an attack would
stop at points that are answered rightly and go on at others. So scores are compared with the answers on the user's
rows before they are used.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from sklearn.pipeline import Pipeline

from ..execution.interrupts import pressed
from ..sklearn_models.kernel_machines import one_vs_rest
from ..targets.labels import encode_labels

# Share of rows on which scores must agree with the answers to be worth more than the answers alone.
WORTH = 0.5


class BlackBox:
    """The scores of a fitted classifier that is asked on the host, of rows in the form in which attacks see them.

    Parameters
    ----------
    estimator : fitted classifier
    like : callable
        From float64 rows (m, d) to what the estimator takes.
    X : float64 array (m, d)
        Rows on which scores are compared with answers.

    Attributes
    ----------
    note : str or None
        Where the scores' highest is not what ``predict`` answers, or there are none, what is done instead.
    error : Exception, KeyboardInterrupt or None
        The last that the estimator has raised, or that of Ctrl-C.
    """

    def __init__(self, estimator, like: Callable, X: np.ndarray):
        self.estimator, self.like, self.classes = estimator, like, estimator.classes_
        self.error = self.note = None
        self.scores_of, self.lifts = self._chosen(X)
        self._number = next(_NUMBERS)
        _BOXES[self._number] = self

    @property
    def model(self) -> Partial:
        """Return the function from rows to scores (m, C), a pytree that knows this object by number."""
        return Partial(_Asked(len(self.classes)), np.int32(self._number))

    def answers(self, given: Any) -> np.ndarray:
        """Return the positions in the classes (m,) of what ``predict`` answers."""
        found = np.asarray(self.estimator.predict(given))
        if found.shape != (len(given),):
            raise TypeError(
                f"{type(self.estimator).__name__}.predict gives {found.shape} labels for {len(given)} inputs; "
                "what is attacked gives one label for each"
            )
        return encode_labels(found, self.classes, len(found))

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Return scores (m, C) of rows (m, d)."""
        given = self.like(X)
        found = None if self.scores_of is None else self.scores_of(given)
        if found is not None and not self.lifts and np.isfinite(found).all():
            return found
        answers = self.answers(given)
        one_hot = np.eye(len(self.classes))[answers]
        if found is None:
            return one_hot
        found = np.where(np.isfinite(found).all(1, keepdims=True), found, one_hot)
        at, wrong = np.arange(len(found)), found.argmax(1) != answers
        step = 1e-3 * (np.ptp(found, axis=1) + 1e-6)
        found[at[wrong], answers[wrong]] = (found.max(1) + step)[wrong]
        return found

    def _chosen(self, X):
        """Return a function from inputs to scores, or None; and whether its highest must be made the answer."""
        name, given = type(self.estimator).__name__, self.like(X)
        answers, found = self.answers(given), []
        for of, scores_of in _readings(self.estimator, len(self.classes)):
            scores = scores_of(given)
            if scores is None or not np.isfinite(scores).all():
                found.append((0.0, of, None))
                continue
            agreement = np.mean(scores.argmax(1) == answers)
            if agreement == 1:
                return scores_of, False
            found.append((agreement, of, scores_of))
        if not found:
            instead = f"{name} has neither decision_function nor predict_proba"
            self.note = _ANSWERS_ALONE.format(instead)
            return None, False
        agreement, of, scores_of = max(found, key=lambda entry: entry[0])
        missed = f"{of} of {name} is not one finite score for each class, the highest that of predict's answer"
        if agreement <= WORTH:
            self.note = _ANSWERS_ALONE.format(missed)
            return None, False
        share = f"({1 - agreement:.0%} of the rows differ)"
        self.note = (
            f"{missed} {share}: it is attacked by {of} with the score of predict's answer put above the others"
        )
        return scores_of, True


_ANSWERS_ALONE = (
    "{}: it is attacked by predict's answers alone, 1 for the answer and 0 for the other classes, which show an "
    "attack no way. Its robust accuracy may be far too high"
)
_NUMBERS, _BOXES = itertools.count(), weakref.WeakValueDictionary()


@dataclass(frozen=True)
class _Asked:
    """A call back to the host; in double precision bits are sent, since its thread knows nothing of x64."""

    n_classes: int

    def __call__(self, number, x):
        shape = (len(x), self.n_classes)
        if x.dtype != np.float64:
            return jax.pure_callback(_on_host, jax.ShapeDtypeStruct(shape, x.dtype), number, x)
        bits = jax.lax.bitcast_convert_type(x, np.uint32)
        found = jax.pure_callback(_bits_on_host, jax.ShapeDtypeStruct((*shape, 2), np.uint32), number, bits)
        return jax.lax.bitcast_convert_type(found, np.float64)


def _on_host(number, x):
    """Ask the black box of this number for scores of rows."""
    box = _BOXES[int(number)]
    try:
        if pressed():
            # an error ends the program, which the main thread waits for
            raise KeyboardInterrupt
        return box.scores(np.asarray(x, np.float64)).astype(x.dtype)
    except (Exception, KeyboardInterrupt) as error:
        box.error = error
        raise


def forget_error() -> None:
    """Run a program that ends well: JAX keeps how the last one has ended, and prints it when Python ends."""
    _nothing().block_until_ready()


@jax.jit
def _nothing():
    return jax.pure_callback(lambda: np.float32(0), jax.ShapeDtypeStruct((), np.float32))


def _is_no_interrupt(record) -> bool:
    """Return whether a log record tells of something else than Ctrl-C."""
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))


# where JAX tells of errors of callbacks; that of Ctrl-C is the user's own
logging.getLogger("jax._src.callback").addFilter(_is_no_interrupt)


def _bits_on_host(number, bits):
    """Ask the black box for scores in double precision, both ways as bits."""
    bits = np.ascontiguousarray(bits)
    scores = _on_host(number, bits.view(np.float64)[..., 0])
    return np.ascontiguousarray(scores).view(np.uint32).reshape(*scores.shape, 2)


def _readings(estimator, n_classes):
    """Yield names and functions that may give scores, the most telling first."""
    # some methods are there only to say that they are not
    decision, probabilities = (getattr(estimator, name, None) for name in ("decision_function", "predict_proba"))
    if callable(decision):
        plain = ("decision_function", lambda given: _as_scores(decision(given), n_classes))
        pairs = ("decision_function", lambda given: _votes(decision(given), n_classes))
        yield from (pairs, plain) if _is_pairwise(estimator) else (plain, pairs)
    if callable(probabilities):
        yield "predict_proba", lambda given: _as_scores(probabilities(given), n_classes)


def _is_pairwise(estimator) -> bool:
    """Return whether an estimator decides between pairs of classes."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return getattr(estimator, "decision_function_shape", None) == "ovo" and len(estimator.classes_) > 2


def _as_scores(found, n_classes):
    """Return scores (m, C), float64, or None for what is something else."""
    if isinstance(found, list) and len({np.shape(part) for part in found}) != 1:
        return None
    found = np.asarray(found)
    if found.dtype.kind not in "biuf":
        return None
    found = found.astype(np.float64)
    if n_classes == 2 and (found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 1)):
        return np.stack([np.zeros(len(found)), found.ravel()], 1)
    return found if found.ndim == 2 and found.shape[1] == n_classes else None


def _votes(found, n_classes):
    """Return scores of classes from those of their pairs, or None for what is something else."""
    found, n_pairs = np.asarray(found), n_classes * (n_classes - 1) // 2
    if n_classes < 3 or found.ndim != 2 or found.shape[1] != n_pairs or found.dtype.kind not in "iuf":
        return None
    return one_vs_rest(found, n_classes)
