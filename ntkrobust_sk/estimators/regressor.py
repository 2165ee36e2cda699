"""Regressors with a network's tangent kernel: targets, predictions with their standard deviation, and R²."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from .._validation import fitting, flag, require_numbers
from ..kernels.posterior import PosteriorDeviation
from ..solvers.rows import kernel_scores
from ..targets.labels import weights_to_score
from .closed_form import ClosedFormMachine
from .inputs import as_answer, checked_weights, require_finite_targets


@dataclass(eq=False, repr=False, kw_only=True)
class TangentRegressor(RegressorMixin, MultiOutputMixin, ClosedFormMachine):
    """A regressor of one or several real targets."""

    def _validated_targets(self, X: Any, y: Any, sample_weight: ArrayLike | None, known_shape=None):
        """Return X as (n, ...), y as it was given, as columns (n, T), and weights (n,) or None."""
        X, y = self._validated(X, y, reset=True, known_shape=known_shape, multi_output=True, y_numeric=True)
        if sample_weight is not None:
            sample_weight = checked_weights(sample_weight, X)
        self._one_target = y.ndim == 1
        return X, y, y.reshape(len(y), -1).astype(float), sample_weight

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return predictions, and how sure they are.

        The machine is the posterior mean of a Gaussian process with prior covariance σ² K and noise variance σ² λ
        (Rasmussen & Williams 2006, *Gaussian Processes for Machine Learning*, ch. 2). λ is the ridge, ``alpha`` in
        units of the mean diagonal; σ² maximises the marginal likelihood, in closed form. The first call with
        ``return_std`` computes and factors the Gram matrix once more.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        return_std : bool, default=False

        Returns
        -------
        y : array (n,) or (n, T)
        std : array shaped like y
            With ``return_std``: the posterior standard deviation of the function, without the noise, as
            scikit-learn's ``GaussianProcessRegressor`` has it. An observation deviates by
            ``np.hypot(std, noise_std_)``. Where the solver approximates ("nystrom", "eigenpro", one of your own,
            or "cg" that has not converged), y is not the posterior mean m: then std is the root of the mean
            squared deviation from y, √(σ² v + (m - y)²) with the posterior variance σ² v.

        Raises
        ------
        ValueError
            With ``return_std``, for a machine that was fitted by gradient descent.
        SingularGramError
            With ``return_std``, if the Gram matrix with the ridge is singular.
        MemoryError
            With ``return_std``, if the Gram matrix and its factor do not fit: of an iterative solver in
            ``memory``, of others in what the machine has left.

        Warns
        -----
        UserWarning
            With ``return_std``, where the targets do not differ between training rows, as with one row: σ² is 0
            then, and so are all deviations.
        """
        answers = self._answers(self._evaluate(X))
        return (answers, self._answers(self._deviations(X))) if flag("return_std", return_std) else answers

    @property
    def noise_std_(self) -> np.ndarray:
        """The standard deviation (T,) of the noise of an observation of weight one, √(σ² λ)."""
        check_is_fitted(self)
        return np.sqrt(self._prior_scale() * self.ridge_)

    def std_model(self) -> Callable:
        """Return the standard deviations of ``predict`` as a differentiable function of the inputs.

        Returns
        -------
        callable pytree
            From inputs (n, n_features) or (n, ...) to deviations (n, T). An attack on targets of zero makes the
            machine as unsure as it can.
        """
        variance, dtype, gap = self._variance_model(self._posterior()), self._working_dtype(), self._gap()
        scale = jnp.asarray(self._prior_scale(), dtype)
        gap = None if gap is None else jnp.asarray(fitting("dual coefficients", gap, dtype))
        return self._as_model(PosteriorDeviation(variance, scale, gap))

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return R² on X (n, n_features) or (n, h, w, c) and targets y (n,) or (n, T)."""
        return self._score(y, self.predict(X), sample_weight)

    def _deviations(self, X: Any) -> np.ndarray:
        """Return the standard deviations (n, T) of the function at inputs."""
        _, posterior, inputs, block = self._variances(X)
        squares, gap = posterior * self._prior_scale(), self._gap()
        if gap is not None:
            squares = squares + kernel_scores(block, gap) ** 2
        return as_answer(np.sqrt(squares), inputs, "standard deviations")

    def _answers(self, scores):
        return scores[:, 0] if self._one_target else scores

    def _score(self, y, answers, sample_weight):
        require_numbers("y", y)
        sample_weight = weights_to_score(y, len(answers), sample_weight)
        if (np.shape(y)[1:] or (1,)) != (answers.shape[1:] or (1,)):
            raise ValueError(f"y must be shaped like predictions, {answers.shape}, got shape {np.shape(y)}")
        if y is not None:
            require_finite_targets(y)
            # R² has no units, but its squares overflow or vanish in those of very large or very small targets
            y, answers = (np.asarray(of, dtype=float) for of in (y, answers))
            exponent = np.frexp(abs(y).max(axis=0))[1]
            exponent = np.where(abs(exponent) > 400, exponent, 0)
            y, answers = np.ldexp(y, -exponent), np.ldexp(answers, -exponent)
        from sklearn.metrics import r2_score

        return float(r2_score(y, answers, sample_weight=sample_weight))

    def _attack_targets(self, y, n_samples):
        require_numbers("y", y)
        if hasattr(y, "tocsr"):
            raise TypeError("y must be a dense array of targets, got a sparse matrix; write y.toarray()")
        y = np.asarray(y, dtype=float)
        if y.shape[:1] != (n_samples,) or not np.isfinite(y).all():
            raise ValueError(f"y must hold finite targets for each of the {n_samples} samples")
        return y.reshape(n_samples, -1).astype(self._dtype)
