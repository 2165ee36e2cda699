"""The guard of adapters: what an adapter computes against what its estimator answers, when the model is made.

The rows that both are asked about come from what the estimator itself remembers of its training inputs (kept rows,
means, ranges), inside and outside of their range, and from inputs at hand. Both run in NumPy, in double precision.
"""

import warnings
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax
from sklearn.pipeline import Pipeline

from .._validation import brief
from ..execution.devices import one_thread_each
from .arrays import dense
from .discriminants import deciding_scores
from .kernel_machines import one_vs_rest
from .registry import DifferentiableEstimator
from .remembered_rows import AT_HAND, KEPT, core, is_word, may_refuse, parts, rows_near

# Relative differences that rounding may make of sums of many terms of both signs, by the dtype of the answers.
PRECISION = {4: 1e-3, 8: 1e-6}
# What differs by more is compared with what rounding the inputs changes in the estimator's answers, times this.
NOISE = 30
# Relative differences that a model may have in single precision before there is a warning.
SINGLE = 1e-2
# Probabilities are rounded absolutely: a Gaussian process's are sums of terms of the order of 1,000.
ROUNDED, ROUNDED_SINGLE = 1e-12, 1e-3


def check_agreement(
    estimator: Any, form: Any, X: Any = None, kernel: Any = None, X_fit: Any = None, single: bool = False
) -> None:
    """Raise TypeError where a form's scores are not the estimator's, nor its answers those of the highest scores.

    Parameters
    ----------
    estimator : fitted estimator
    form : callable
        From arrays (n, d) of NumPy to what the estimator answers.
    X : array (n, d), default=None
        Inputs at hand, some of which are compared too.
    kernel, X_fit
        As they were given to :func:`~ntkrobust_sk.as_model`.
    single : bool, default=False
        Whether to warn if the form's scores are others in single precision.
    """
    if isinstance(core(estimator), DifferentiableEstimator):
        # this library's own estimators are their own models; what stands before them in a pipeline is not
        if not hasattr(estimator, "steps") or len(estimator.steps) == 1:
            return
        estimator, form = estimator[:-1], type(form)(form.func, form.args[0][:-1])
    last, between = core(estimator), cast(Callable, kernel)
    precomputed = getattr(last, "kernel", None) == "precomputed"
    z = np.asarray(X_fit if precomputed else [], np.float64)
    rows = z[:KEPT] if precomputed else rows_near(estimator)
    if X is not None and X.shape[1:] == rows.shape[1:]:
        rows = np.concatenate([rows, X[:: max(len(X) // AT_HAND, 1)][:AT_HAND]])
    if kernel is not None:
        rows = rows[-KEPT:]
        _check_kernel(kernel, rows, rows[:2])
    if precomputed and getattr(getattr(last, "X_fit_", None), "shape", None) == (len(z), len(z)):
        _check_matrix(estimator, np.asarray(between(rows, z)), dense("X_fit_", last.X_fit_[: len(rows)]))
    z = z[last.component_indices_] if precomputed and hasattr(last, "components_") else z

    def own(x):
        # estimators with copy=False write into what they are given
        return np.asarray(between(x, z)) if precomputed else _named(estimator, x.copy())

    if may_refuse(estimator):
        # where it has an answer, it tells itself
        rows = np.array([row for row in [*rows, *abs(rows)] if _is_answered(estimator, own, row)])
        if not len(rows):
            raise TypeError(f"{type(estimator).__name__} gives no answers on any of the inputs that were tried")
    compare(estimator, form, rows, own)
    if single and kernel is None:
        _warn_of_single_precision(estimator, form, rows, own)


def _is_answered(estimator, own, row) -> bool:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return bool(np.isfinite(_own_scores(estimator, _method_of(estimator), own(row[None]))).all())
        except ValueError:
            return False


def _warn_of_single_precision(estimator, form, rows, own):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        method = _method_of(estimator)
        expected = _own_scores(estimator, method, own(rows))
        found = _as_columns(jax.tree.map(_in_single, form)(rows.astype(np.float32))).astype(np.float32)
        found = _comparable(method, found, expected)
        wrong = _beyond_rounding(method, found, expected, SINGLE, ROUNDED_SINGLE)
    if wrong.any():
        off = np.nanmax(abs(found - expected))
        warnings.warn(
            f"in single precision the model of {type(estimator).__name__} does not give its {method}: "
            f"{wrong.any(1).sum()} of {len(rows)} rows differ by more than {SINGLE:.0%}, by up to {off:.3g}: "
            "call jax.config.update('jax_enable_x64', True), or use robust_accuracy, which computes in double "
            "precision",
            UserWarning,
            stacklevel=5,
        )


def _in_single(leaf):
    is_double = isinstance(leaf, np.ndarray | np.floating) and leaf.dtype == np.float64
    return leaf.astype(np.float32) if is_double else leaf


def _check_kernel(kernel, x, z):
    wanted = f"kernel(x, z) must give ({len(x)}, {len(z)}) real numbers for x {x.shape} and z {z.shape}"
    try:
        block = jax.eval_shape(kernel, *(jax.ShapeDtypeStruct(a.shape, jnp.result_type(float)) for a in (x, z)))
    except Exception as error:
        raise TypeError(f"{wanted}, in JAX, but it fails: {str(error).splitlines()[0]}") from error
    shape, dtype = getattr(block, "shape", None), getattr(block, "dtype", np.dtype(object))
    if shape != (len(x), len(z)) or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{wanted}, got {brief(block) if shape is None else f'shape {shape} and dtype {dtype}'}")


def _check_matrix(estimator, block, known):
    """Check that the kernel of the training inputs is the matrix that the machine was fitted on and has kept."""
    off = abs(block - known).max()
    if not off <= PRECISION[4] * abs(known).max():
        raise TypeError(
            f"kernel(X_fit, X_fit) is not the matrix that {type(estimator).__name__} was fitted on: they "
            f"differ by up to {off:.3g}. Give the kernel and the inputs, in their order, that it was computed from"
        )


def compare(estimator: Any, form: Callable, rows: np.ndarray, own: Callable = lambda x: x) -> None:
    """Raise TypeError unless a form gives an estimator's scores and answers on some rows.

    Parameters
    ----------
    estimator : fitted estimator
    form : callable
        From rows to scores (n, C), predictions or features, in double precision.
    rows : float array (n, ...)
    own : callable, default=identity
        From rows to what the estimator takes.
    """
    # threads of NumPy's products would spin for a while, and take a core from the attack that follows
    with warnings.catch_warnings(), np.errstate(all="ignore"), one_thread_each():
        # of feature names, and of what overflows far away
        warnings.simplefilter("ignore")
        _compare(estimator, form, rows, own)


def _compare(estimator, form, rows, own):
    name, method = type(estimator).__name__, _method_of(estimator)
    try:
        last, given = _ahead(estimator, own(rows))
        expected = _own_scores(last, method, given.copy() if hasattr(given, "copy") else given)
        labels = np.asarray(last.predict(given)) if hasattr(estimator, "classes_") else None
    except Exception as error:
        raise TypeError(f"{name}.{method} itself fails on inputs that {name} was fitted for: {error}") from error
    if not np.isfinite(expected).any(0).all():
        raise TypeError(f"{name}.{method} gives no finite numbers")
    if labels is not None and labels.ndim == 2:
        raise TypeError(f"{name} gives several labels to one input, for which there is no differentiable form")
    try:
        scores = _as_columns(form(rows))
    except (ValueError, IndexError) as error:
        raise TypeError(
            f"the differentiable form of {name} does not fit its fitted attributes: {error}"
        ) from error
    if labels is not None and scores.shape[1] != len(estimator.classes_):
        raise TypeError(f"{name} has {len(estimator.classes_)} classes, and {scores.shape[1]} scores")
    found = _comparable(method, scores, expected)
    wrong = _beyond_rounding(method, found, expected)
    if wrong.any() and found.shape == expected.shape:
        noise = abs(_own_scores(estimator, method, own(_rounded(rows, found.dtype))) - expected)
        wrong &= ~(abs(found - expected) <= NOISE * (noise + np.median(noise, axis=0)))
    if wrong.any():
        by = f", by up to {np.nanmax(abs(found - expected)):.3g}" if found.shape == expected.shape else ""
        raise TypeError(
            f"the differentiable form of {name} does not give its own {method}: {wrong.any(1).sum()} of "
            f"{len(rows)} rows differ{by}{_culprit(estimator, form, rows, own)}; something changes it "
            "that is not read here"
        )
    if labels is not None:
        _check_labels(estimator, scores, labels)


def _check_labels(estimator, scores, labels):
    """Check that the class of the highest score is the answer, where one is clearly the highest."""
    ordered = np.sort(scores, axis=1)
    # votes of pairs of classes may be tied, and then predict and decision_function have different rules
    clear = 2 / 3 if _is_pairwise(estimator) else 0.02
    sure = ordered[:, -1] - ordered[:, -2] > clear if scores.shape[1] > 1 else np.ones(len(scores), bool)
    classes = np.asarray(estimator.classes_)
    other = sure & (classes[scores.argmax(1)] != labels)
    if other.any():
        raise TypeError(
            f"{type(estimator).__name__} answers {brief(labels[other].tolist()[0])} where its highest score is "
            f"that of {brief(classes.tolist()[scores[other][0].argmax()])}: its scores do not decide its answers"
        )


# Those that answer by another method than their first one.
METHODS = {"BaggingClassifier": "predict_proba"}


def _method_of(estimator) -> str:
    if (name := type(core(estimator)).__name__) in METHODS:
        return METHODS[name]
    if hasattr(estimator, "decision_function"):
        return "decision_function"
    if hasattr(estimator, "classes_") and hasattr(estimator, "predict_proba"):
        return "predict_proba"
    return "predict" if hasattr(estimator, "predict") else "transform"


def _ahead(estimator, x):
    """Return the last step of a Pipeline and what it is given for x, so that the others run once."""
    if type(estimator) is not Pipeline or is_word(estimator.steps[-1][1]):
        return estimator, x
    for _, step in estimator.steps[:-1]:
        x = x if is_word(step) else step.transform(x)
    return estimator.steps[-1][1], x


def _is_pairwise(estimator) -> bool:
    return hasattr(core(estimator), "decision_function_shape") and len(estimator.classes_) > 2


def _own_scores(estimator, method, x):
    """Return the estimator's own answers (n, k), as they are compared: probabilities by their logarithm."""
    if type(estimator).__name__ == "NearestCentroid":
        return deciding_scores(estimator, x)
    scores = _as_columns(getattr(estimator, method)(x))
    if _is_pairwise(estimator) and core(estimator).decision_function_shape == "ovo":
        return one_vs_rest(scores, len(estimator.classes_))
    return np.log(np.maximum(scores, np.finfo(scores.dtype).tiny)) if method == "predict_proba" else scores


def _comparable(method, scores, expected):
    """Return a form's scores (n, C) as :func:`_own_scores` gives the estimator's."""
    if method == "predict_proba":
        return log_softmax(scores, axis=1)
    if scores.shape[1] == 2 and expected.shape[1] == 1:
        return scores[:, 1:] - scores[:, :1]
    return scores


def _as_columns(values) -> np.ndarray:
    """Return answers as an array (n, k): those of a data frame, sparse ones, or one number for each row."""
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return values.reshape(len(values), -1)


def _beyond_rounding(method, found, expected, precision=None, rounded=ROUNDED):
    if found.shape != expected.shape:
        return np.ones((len(expected), 1), bool)
    finite = np.isfinite(expected)
    size = np.where(finite, abs(expected), 0)
    precision = precision or PRECISION[min(expected.dtype.itemsize, found.dtype.itemsize)]
    allowed = precision * (size + np.median(size, axis=0)) + 1e-12 * size.max(initial=0)
    if method == "predict_proba":
        allowed += rounded / np.exp(expected)
    return finite & ~(abs(found - expected) <= allowed)


def _rounded(rows, dtype):
    """Return the rows with other last bits, of numbers of a precision."""
    signs = np.where(np.indices(rows.shape).sum(0) % 2, 1, -1)
    return rows * (1 + 2 * np.finfo(dtype).eps * signs)


def _culprit(estimator, form, rows, own) -> str:
    """Name the first step of a Pipeline whose own form differs, for the message."""
    if not hasattr(estimator, "steps"):
        return ""
    given = own(rows)
    for (name, step), part in zip(estimator.steps, form.args[0], strict=True):
        if hasattr(step, "transform") and not isinstance(step, str):
            given = step.transform(given)
            expected = _as_columns(given)
            if _beyond_rounding("transform", _as_columns(part(rows)), expected).any():
                return f", at the step {name!r}"
            rows = expected
    return ""


def _named(estimator, x):
    """Return rows as a data frame, where an estimator finds its columns by their names."""
    names = getattr(estimator, "feature_names_in_", None)
    return x if names is None or not _finds_columns(estimator) else frame_of(names, x)


def frame_of(names: Any, x: np.ndarray) -> Any:
    """Return rows (n, d) as a data frame with these names, of pandas or, where it is missing, of polars."""
    try:
        import pandas as frames
    except ImportError:
        import polars as frames
    return frames.DataFrame(dict(zip(names, x.T, strict=True)))


def _finds_columns(estimator) -> bool:
    return hasattr(estimator, "_transformer_to_input_indices") or any(map(_finds_columns, parts(estimator)))
