"""What the two kernel machines share: the source of the kernel, and fits in closed form or by gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import jax
import numpy as np
from sklearn.utils._param_validation import StrOptions

from .._arrays import to_numpy
from .._validation import fitting, require_resolution
from ..execution.memory import parse_memory
from ..execution.tiles import NETWORK_ROWS, machine_rows, movable, network_rows
from ..kernels.gram_matrix import gram_of
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor, training_job
from ..networks.inputs import host_inputs, params_dtype
from ..networks.named import n_logits
from ..solvers.direct import SOLVERS, resolve_solver
from ..solvers.ridge import solve
from ..tangent.linearization import linearize
from .attackable import AttackableEstimator
from .shared import KernelSource, allowed, at_least
from .trainer import fit_by_sgd


@dataclass(eq=False, repr=False, kw_only=True)
class TangentMachine(KernelSource, AttackableEstimator):
    """A kernel machine on a network's tangent kernel, fitted in closed form or by gradient descent."""

    kernel: str | Callable = "trace"
    alpha: float = field(default=1e-2, metadata=allowed(at_least(0, Real)))
    solver: str | Callable = field(default="cholesky", metadata=allowed(StrOptions({*SOLVERS, "sgd"}), callable))
    dynamics: str = field(default="centered", metadata=allowed(StrOptions({"linearized", "centered"})))
    predictor_: Callable = field(init=False)

    def _fit_machine(self, X, y, targets, sample_weight, labels):
        """Fit on targets (n, T) of y; ``labels`` are what a training loss takes: classes, or the targets."""
        kernel = resolve_kernel(self.kernel)
        solver = None if self.solver == "sgd" else resolve_solver(self.solver)
        for name in ("X_fit_", "dual_coef_", "intercept_", "loss_curve_", "n_iter_"):
            # an earlier fit with another solver may have left what this one will not set
            vars(self).pop(name, None)
        key_model, key_train = jax.random.split(self._key())
        model = self._source_model(X, y, targets.shape[1], sample_weight, key_model)
        self.model_ = model
        if labels is targets:
            dtype = params_dtype(model.variables.params)
            fitting("y", targets, dtype)
            require_resolution("y", y, dtype, targets=True)
        if solver is None:
            self._require_matching_outputs(model, X.dtype, targets.shape[1], "solver='sgd'")
            if self.attack is not None:
                X = movable(model, X, params_dtype(model.variables.params), NETWORK_ROWS)
            start = linearize(model, centered=self.dynamics == "centered")
            fit_by_sgd(self, "predictor_", start, X, labels, sample_weight, key_train)
            return self
        self.X_fit_ = host_inputs("X", X, model.variables.params)
        if _rank(kernel, model, self.X_fit_) > 2:
            self._require_matching_outputs(model, X.dtype, targets.shape[1], f"kernel={self.kernel!r}")
        # before the kernel is computed in vain, this asks whether predictions fit in memory
        job = training_job(
            kernel,
            model,
            self.X_fit_,
            targets.shape[1],
            memory=self.memory,
            n_arrays=getattr(solver, "n_arrays", 1),
        )
        K = gram_of(job, progress=self.verbose > 0)
        offset = np.average(targets, axis=0, weights=sample_weight)
        dual = solve(K, targets - offset, alpha=self.alpha, solver=solver, sample_weight=sample_weight)
        self.dual_coef_, self.intercept_ = to_numpy(dual), offset
        self.predictor_ = make_predictor(
            kernel,
            model,
            self.X_fit_,
            self.dual_coef_,
            offset,
            memory=self.memory,
            plan=job.plan,
            features=job.kept or None,
        )
        return self

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
        return self._gram(self.kernel, X, Y, self.memory)

    def _scores(self):
        return self.predictor_

    @property
    def _rows(self) -> int:
        if self.solver == "sgd":
            return network_rows()
        return machine_rows(self.predictor_, tuple(self.input_shape_), self._dtype, parse_memory(self.memory))


def _rank(kernel, model, X) -> int:
    """Return the rank of the kernel's blocks, as stated or found without computing one."""
    if kernel.rank is not None:
        return kernel.rank
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    return jax.eval_shape(kernel, model, x, x).ndim
