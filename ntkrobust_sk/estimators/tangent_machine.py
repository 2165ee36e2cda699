"""What the two kernel machines share: the source of the kernel, and fits in closed form or by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from numbers import Real

import jax
import numpy as np
from sklearn.utils._param_validation import StrOptions

from .._arrays import to_numpy
from .._validation import brief
from ..execution.devices import threads_for
from ..execution.memory import parse_memory
from ..execution.tiles import NETWORK_ROWS, movable, network_rows
from ..kernels.ntk import resolve_kernel
from ..networks.inputs import params_dtype
from ..solvers.choice import SOLVERS, resolve_solver
from ..solvers.ridge import solve
from ..tangent.linearization import linearize
from .attackable import GradientDescent
from .closed_form import ClosedFormMachine
from .descent import fit_by_sgd
from .kernel_forms import kernel_form, not_formed
from .shared import allowed, at_least

NAMES = {*SOLVERS, "auto", "sgd"}


@dataclass(eq=False, repr=False, kw_only=True)
class TangentMachine(GradientDescent, ClosedFormMachine):
    """A kernel machine on a network's tangent kernel, fitted in closed form or by gradient descent."""

    alpha: float = field(default=1e-2, metadata=allowed(at_least(0, Real)))
    solver: str | Callable = field(
        default="cholesky",
        metadata=allowed(
            StrOptions(NAMES), callable, named=SOLVERS, such_as="a solver, such as ConjugateGradient()"
        ),
    )
    dynamics: str = field(default="centered", metadata=allowed(StrOptions({"linearized", "centered"})))

    def _fit_machine(self, X, y, targets, sample_weight, labels):
        """Fit on targets (n, T) of y; ``labels`` are what a training loss takes: classes, or the targets."""
        kernel = resolve_kernel(self.kernel)
        by_descent = self.solver == "sgd"
        if not by_descent:
            resolve_solver(self.solver)
        key_model, key_train = jax.random.split(self._key())
        model = self._take_model(X, y, targets, sample_weight, key_model, regresses=labels is targets)
        if by_descent:
            self._require_matching_outputs(model, X.dtype, targets.shape[1], "solver='sgd'")
            if self.attack is not None:
                X = movable(model, X, params_dtype(model.variables.params), NETWORK_ROWS)
            start = linearize(model, centered=self.dynamics == "centered")
            self.solver_ = "sgd"
            fit_by_sgd(self, "predictor_", start, X, labels, sample_weight, key_train)
            return self
        rank, n_targets, memory = self._kernel_rank(kernel, X), targets.shape[1], parse_memory(self.memory)
        form = kernel_form(self.solver, kernel, rank, len(X), n_targets, alpha=self.alpha, memory=memory)
        if form.form != "matrix" and vars(self).get("calibrate"):
            raise ValueError(
                f"calibrate=True takes leave-one-out scores from the Gram matrix, which is not formed with solver="
                f"{self.solver!r} and memory={self.memory!r}; give more memory, or calibrate=False"
            )
        if form.form == "matrix":
            job = self._training_job(kernel, X, n_targets, getattr(form.solver, "n_arrays", 1))
            K = self._training_gram(job)
        else:
            job, X = None, self._training_inputs(kernel, X, n_targets)
            K = not_formed(form, kernel, rank, model, X, memory)
        offset = np.average(targets, axis=0, weights=sample_weight)
        with threads_for(math.isqrt(K.size)) if form.form == "matrix" else nullcontext():
            dual, report = solve(
                K,
                targets - offset,
                alpha=self.alpha,
                solver=form.solver,
                sample_weight=sample_weight,
                return_report=True,
            )
        self.solver_ = form.solver
        if report.residual is not None:
            self.n_iter_, self.residual_ = report.n_iter, report.residual
        if self.verbose:
            print(
                f"{type(self).__name__}: {brief(form.solver)} of a kernel as {form.form}. {report.detail}".strip()
            )
        self._keep(job, to_numpy(dual), offset)
        self._keep_prior(targets - offset, report.ridge, sample_weight)
        self._look_at_left_out(K, targets, labels, sample_weight)
        return self

    def _look_at_left_out(self, K, targets, labels, sample_weight):
        """Learn from what is predicted for rows that are left out, where that was asked for."""

    @property
    def _rows(self) -> int:
        return network_rows() if self.solver == "sgd" else super()._rows
