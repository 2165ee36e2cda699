"""What kernel machines in closed form share: the kernel's source, its Gram matrices and a cache of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._validation import check_path, fitting, require_resolution
from ..execution.devices import threads_for
from ..execution.memory import parse_memory
from ..execution.tiles import machine_rows
from ..kernels.cached_gram import cached_gram
from ..kernels.gram_matrix import gram_of
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor, require_room, training_job
from ..kernels.tiles import TileJob
from ..kernels.verified_store import verified_gram
from ..networks.inputs import host_inputs, params_dtype
from ..networks.named import n_logits
from ..solvers.rows import kernel_scores
from .attributable import AttributableMachine
from .kernel_forms import rank_of
from .uncertainty import UncertaintyMixin

# Fewer rows than these are answered by the predictor also where Gram matrices are kept: a file for each of them
# would be no gain.
LEAST_ROWS_KEPT = 16


@dataclass(eq=False, repr=False, kw_only=True)
class ClosedFormMachine(UncertaintyMixin, AttributableMachine):
    """A kernel machine on a network's tangent kernel, or on a precomputed one, with dual coefficients."""

    gram_store: Any = None

    def _validate_params(self):
        super()._validate_params()
        if self.gram_store is not None:
            check_path("gram_store", self.gram_store)

    def _take_model(self, X, y, targets, sample_weight, key, *, regresses):
        """Return and keep the model whose kernel this is; what an earlier fit has left goes."""
        self._forget()
        self.model_ = model = self._source_model(X, y, targets.shape[1], sample_weight, key)
        if regresses:
            dtype = params_dtype(model.variables.params)
            fitting("y", targets, dtype)
            require_resolution("y", y, dtype, targets=True)
        return model

    def _forget(self) -> None:
        """Delete what an earlier fit has left; from here on the kernel is this fit's."""
        for name in FITTED:
            vars(self).pop(name, None)
        self.kernel_ = self.kernel

    def _training_job(self, kernel, X, n_targets, n_arrays) -> TileJob:
        """Return the job of the Gram matrix of inputs X, which are kept."""
        X = self._training_inputs(kernel, X, n_targets)
        return training_job(kernel, self.model_, X, n_targets, memory=self.memory, n_arrays=n_arrays)

    def _training_inputs(self, kernel, X, n_targets) -> np.ndarray:
        """Keep the inputs, and return them; raise if the kernel's outputs or predictions do not fit."""
        model = self.model_
        self.X_fit_ = host_inputs("X", X, model.variables.params)
        if rank_of(kernel, model, self.X_fit_) > 2:
            self._require_matching_outputs(model, X.dtype, n_targets, f"kernel={self.kernel!r}")
        # before the kernel is computed in vain, this asks whether predictions fit in memory
        shape, budget = (len(X), n_targets), parse_memory(self.memory)
        require_room(kernel, model, self.X_fit_.shape[1:], shape, budget, self.X_fit_.dtype)
        return self.X_fit_

    def _kernel_rank(self, kernel, X) -> int:
        return rank_of(kernel, self.model_, host_inputs("X", X[:1], self.model_.variables.params))

    def _training_gram(self, job: TileJob) -> Any:
        """Return the Gram matrix of a job: from its store, computed, or from the cache."""
        if self.gram_store is not None:
            return verified_gram(self.gram_store, job.kernel, job.model, job.X, job.plan.memory).store.read()
        if self._cache is None:
            return gram_of(job, progress=self.verbose > 0)
        # what it would keep is for a predictor, which is made when it is needed
        return cached_gram(replace(job, kept=None), self._cache, progress=self.verbose > 0)

    def _keep(self, job: TileJob | None, dual_coef: np.ndarray, offset: np.ndarray) -> None:
        """Keep dual coefficients (n, T) and the offset (T,); without a cache, also the predictor of them."""
        self.dual_coef_, self.intercept_, self._cached = dual_coef, offset, self._cache is not None
        if self._cache is None and not self._precomputed:
            known = {} if job is None else {"plan": job.plan, "features": job.kept or None}
            self.predictor_ = self._make_predictor(**known)

    @cached_property
    def predictor_(self) -> Callable:
        """The scores as a function of inputs ``(n, *input_shape_)``: a callable pytree."""
        check_is_fitted(self)
        self._require_inputs("attacks and as_model take a function of the inputs x")
        return self._make_predictor()

    def _make_predictor(self, **known) -> Callable:
        X, dual = self.X_fit_, self.dual_coef_
        used = dual.any(axis=1)
        if 0 < np.count_nonzero(used) < len(X) / 2:
            # on landmarks, the others have no say
            X, dual, known = X[used], dual[used], {}
        made_of = X, dual, self.intercept_
        return make_predictor(
            resolve_kernel(self._fitted_kernel), self.model_, *made_of, memory=self.memory, **known
        )

    def _scores_of(self, X):
        if self._precomputed:
            return self._precomputed_scores(X)
        # as many as a validation fold has: what it is asked at other alphas too. By how it was fitted, so that it
        # answers the same to the bit from a file, which has no cache
        if not vars(self).get("_cached") or not LEAST_ROWS_KEPT <= len(X) <= len(self.X_fit_):
            return super()._scores_of(X)
        X = host_inputs("X", X, self.model_.variables.params)
        K = self._kernel_of(self._fitted_kernel, X, self.X_fit_)
        with threads_for(len(self.X_fit_)):
            return kernel_scores(K, self.dual_coef_) + self.intercept_

    def _require_matching_outputs(self, model, dtype, n_targets, what):
        """Raise ValueError unless the network has one output for each target, in the order of the same classes."""
        n_outputs = n_logits(model, self.input_shape_, dtype)
        if n_outputs != n_targets:
            raise ValueError(
                f"{what} needs one network output for each class or target, but the network has {n_outputs} "
                f"and y has {n_targets}; use kernel='trace' or 'pseudo', or a network with n_outputs={n_targets}"
            )
        source = self.estimator_ if hasattr(self.estimator, "fit") else None
        theirs, ours = (getattr(fitted, "classes_", None) for fitted in (source, self))
        if theirs is not None and ours is not None and theirs.tolist() != ours.tolist():
            raise ValueError(
                f"{what} pairs network outputs with classes, but the network was fitted on the classes "
                f"{theirs.tolist()} and y has {ours.tolist()}; use the same labels, kernel='trace' or 'pseudo', "
                "or pass the estimator's model_, to pair them by position"
            )

    def gram(self, X: Any, Y: Any = None) -> np.ndarray:
        """Return the Gram matrix of the fitted kernel.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        Y : array (m, n_features) or (m, h, w, c), default=None
            Columns' inputs; None means X.

        Returns
        -------
        NumPy array (n, m), (n, m, C) or (n, m, C, C), by the kernel's rank
        """
        self._require_inputs("gram computes the kernel of inputs")
        return self._gram(self._fitted_kernel, X, Y, self.memory)

    def _scores(self):
        return self.predictor_

    @property
    def _rows(self) -> int:
        return machine_rows(self.predictor_, tuple(self.input_shape_), self._dtype, parse_memory(self.memory))


# What an earlier fit with other settings may have left, and this one will not set.
FITTED = (
    *("predictor_", "X_fit_", "dual_coef_", "intercept_", "loss_curve_", "n_iter_", "solver_", "residual_"),
    *("ridge_", "weight_fit_", "prior_variance_", "_centred", "_cached", "temperature_"),
    *("alpha_", "stopping_time_", "scores_", "best_score_", "left_out_", "model_", "estimator_"),
)
