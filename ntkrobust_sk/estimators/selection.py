"""Kernel machines that choose their regularisation: leave-one-out for all of it from one eigendecomposition."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import _safe_indexing

from .._validation import array, brief, check_choice, number
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor, training_job
from ..solvers.calibration import fitted_temperature, log_likelihood
from ..solvers.copies import DistinctSpectrum, distinct_spectrum
from ..solvers.direct import SingularGramError
from ..solvers.filters import Filter, GradientFlow, Ridge
from ..solvers.spectrum import spectrum
from ..solvers.units import unit_of
from .closed_form import ClosedFormMachine
from .precomputed import is_precomputed
from .shared import allowed

# From hardly to heavily regularised, two for each power of ten; precision may not allow for the first ones.
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(-6, 2, 17))
_NO_FOLDS = "cv must be a number of folds, a splitter of scikit-learn or (train, test) pairs of indices"
# Arrays of the size of one system that an eigendecomposition takes.
N_ARRAYS = 5


@dataclass(eq=False, repr=False, kw_only=True)
class SelectingMachine(ClosedFormMachine):
    """A kernel machine in closed form that chooses its ridge, or the time at which gradient flow stops."""

    SCORINGS: ClassVar[tuple[str, ...]] = ("squared_error", "gcv", "robust")

    alphas: Any = field(default=None, metadata=allowed("array-like", None))
    stopping_times: Any = field(default=None, metadata=allowed("array-like", None))
    scoring: str = "squared_error"
    cv: Any = field(default=5, metadata=allowed("cv_object"))

    def _validate_params(self):
        check_choice("scoring", self.scoring, self.SCORINGS)
        if self.scoring == "robust":
            self._require_inputs("scoring='robust' attacks the inputs x", self.kernel)
        super()._validate_params()
        if self.alphas is not None and self.stopping_times is not None:
            raise ValueError(
                "alphas and stopping_times are two kinds of candidates, of which a machine takes one: leave one "
                f"out, got alphas={brief(self.alphas)} and stopping_times={brief(self.stopping_times)}"
            )
        if self.scoring == "robust" and self.attack is None:
            raise ValueError("scoring='robust' needs an attack, such as attack=PGD(epsilon=8/255), got None")

    def _candidates(self) -> list[Filter]:
        """Return the candidates as filters, in their own order."""
        if self.stopping_times is None:
            alphas = ALPHAS if self.alphas is None else self.alphas
            return [Ridge(alpha) for alpha in _numbers("alphas", alphas, low=0)]
        return [GradientFlow(time) for time in _numbers("stopping_times", self.stopping_times, above=0)]

    def _select(self, X, y, targets, sample_weight, labels, given):
        """Fit on targets (n, T); ``labels`` are the classes' positions or None, ``given`` X and y as they came."""
        candidates = self._candidates()
        key_model, key_attack = jax.random.split(self._key())
        if is_precomputed(self.kernel):
            self._matrix_form(X, 0.0, "eigh")
            self._forget()
            job, K = None, X
        else:
            self._take_model(X, y, targets, sample_weight, key_model, regresses=labels is None)
            job = self._training_job(resolve_kernel(self.kernel), X, targets.shape[1], N_ARRAYS)
            K = np.asarray(self._training_gram(job))
        all_rows = distinct_spectrum(K, K if self._precomputed else self.X_fit_, targets, sample_weight)
        found = all_rows.found if isinstance(all_rows, DistinctSpectrum) else all_rows
        unit = 1.0 if self.scoring == "robust" else unit_of(targets)
        if self.scoring == "robust":
            # of folds, whose matrices are smaller, some more could be fitted
            usable = [of for of in candidates if found.holds(of)]
            robust = self._robust_scores(usable, K, targets, sample_weight, given, key_attack)
            known = dict(zip(usable, robust, strict=True))
            scores = [known.get(of, np.nan) for of in candidates]
        else:
            scores = self._scores_of_each(found, all_rows, candidates, targets, labels, sample_weight, unit)
        best = self._chosen(candidates, np.array(scores), found, unit)
        self._keep(job, all_rows.dual(best), found.offset)
        self.left_out_ = all_rows.left_out(best)
        alpha = best.alpha if isinstance(best, Ridge) else 1 / best.time
        # of gradient flow, the ridge beside it has a likelihood
        dual = self.dual_coef_ if isinstance(best, Ridge) else all_rows.dual(Ridge(alpha))
        self._keep_prior(targets - found.offset, alpha * found.scale, sample_weight, dual)
        if labels is not None:
            self.temperature_ = fitted_temperature(self.left_out_, labels, sample_weight)
        return self

    def _chosen(self, candidates, scores, found, unit) -> Filter:
        """Return the candidate of the highest score, in squares of a unit; of several the most regularised one."""
        beyond = [of for of in candidates if not found.in_range(of)]
        if len(beyond) == len(candidates):
            found.require(beyond[0])
        if np.isnan(scores).all():
            raise SingularGramError(
                f"none of {brief(candidates)} suits this Gram matrix: small alphas and long stopping_times leave "
                "it singular to its precision, where larger alphas or shorter times help"
            )
        refused = [of for of, score in zip(candidates, scores, strict=True) if np.isnan(score)]
        weak = [of for of in refused if of not in beyond]
        if beyond:
            warnings.warn(f"{found.out_of_range(beyond)}, and left out", UserWarning, stacklevel=4)
        if weak and (self.alphas is not None or self.stopping_times is not None):
            warnings.warn(
                f"{brief(weak)} regularise too little for the precision of this Gram matrix, and are left out",
                UserWarning,
                stacklevel=4,
            )
        tied = [of for of, score in zip(candidates, scores, strict=True) if score == np.nanmax(scores)]
        with np.errstate(over="ignore", under="ignore"):
            self.scores_ = scores * unit * unit
        self.best_score_ = float(np.nanmax(self.scores_))
        if not np.isfinite(self.scores_[~np.isnan(scores)]).all():
            raise ValueError(
                f"y must not be so large that squares of errors are beyond float64, but goes up to {unit:.0e} or "
                "more: divide it by its deviation"
            )
        if self.stopping_times is None:
            best = max(tied, key=lambda of: of.alpha)
            self.alpha_ = best.alpha
        else:
            best = min(tied, key=lambda of: of.time)
            self.stopping_time_ = best.time
        return best

    def _scores_of_each(self, found, all_rows, candidates, targets, labels, sample_weight, unit) -> list[float]:
        """Return the score of each filter, higher is better, in squares of a unit; NaN where it is not defined."""
        usable = [of for of in candidates if found.holds(of)]
        if self.scoring == "gcv":
            scores = {of: -found.gcv(of, unit) for of in usable if found.leaves_freedom(of)}
        else:
            left_out = zip(usable, all_rows.left_out_each(usable), strict=True)
            weight = None if sample_weight is None else sample_weight / unit_of(sample_weight)
            scores = {of: self._score_of(each / unit, targets / unit, labels, weight) for of, each in left_out}
        return [scores.get(of, np.nan) for of in candidates]

    def _score_of(self, predicted, targets, labels, sample_weight) -> float:
        """Return the score of what was predicted for rows (n, T) that were left out."""
        if self.scoring == "squared_error":
            return -float(np.average(((predicted - targets) ** 2).mean(1), weights=sample_weight))
        if self.scoring == "accuracy":
            return float(np.average(predicted.argmax(1) == labels, weights=sample_weight))
        return log_likelihood(
            predicted, labels, fitted_temperature(predicted, labels, sample_weight), sample_weight
        )

    def _robust_scores(self, candidates, K, targets, sample_weight, given, key) -> list[float]:
        """Return the mean score under attack of each filter over folds, with one decomposition for each."""
        X, y = given
        seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])
        folds = [
            self._fold_scores(candidates, K, targets, sample_weight, train, test, X, y, seed)
            for train, test in self._folds(np.asarray(y))
        ]
        # the machine of the last fold and candidate
        vars(self).pop("predictor_", None)
        return np.mean(folds, axis=0).tolist()

    def _folds(self, y) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the indices of the training and the test rows of each fold."""
        from sklearn.model_selection import check_cv

        n = len(y)
        try:
            splitter: Any = check_cv(self.cv, y, classifier=is_classifier(self))
            rows = np.arange(n)
            found = [(rows[train], rows[test]) for train, test in splitter.split(self.X_fit_, y)]
            whole = bool(found) and all(train.size and test.size for train, test in found)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{_NO_FOLDS} of {n} rows, got {brief(self.cv)}: {error}") from error
        if not whole:
            raise ValueError(f"{_NO_FOLDS} of {n} rows, none of them empty, got {brief(self.cv)}")
        return found

    def _fold_scores(self, candidates, K, targets, sample_weight, train, test, X, y, seed):
        """Return the score under attack on one fold of each filter fitted on the others."""
        weight = None if sample_weight is None else sample_weight[train]
        of_test = None if sample_weight is None else sample_weight[test]
        found = spectrum(K[np.ix_(train, train)], targets[train], weight)
        kernel, model, inputs = resolve_kernel(self.kernel), self.model_, self.X_fit_[train]
        job = training_job(kernel, model, inputs, targets.shape[1], memory=self.memory)
        X_test, y_test, scores = _safe_indexing(X, test), _safe_indexing(y, test), []
        for of in candidates:
            if not found.holds(of):
                scores.append(np.nan)
                continue
            dual = found.dual(of)
            self.predictor_ = make_predictor(
                kernel, model, inputs, dual, found.offset, memory=self.memory, plan=job.plan, features=job.kept
            )
            target = self.attack_target(X_test, y_test)
            attack = self._attack_or_own(None)
            scores.append(target.robust_score(attack, y_test, sample_weight=of_test, random_state=seed))
        return scores


def _numbers(name, values, **limits) -> list[float]:
    """Return a sequence of numbers as floats, one or more."""
    found = array(name, values, ndim=1)
    if not len(found):
        raise ValueError(f"{name} must hold at least one number, got {brief(values)}")
    return [number(f"{name}[{i}]", value, **limits) for i, value in enumerate(found.tolist())]
