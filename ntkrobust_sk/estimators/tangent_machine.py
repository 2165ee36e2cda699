"""What the two kernel machines share: the source of the kernel, and fits in closed form or by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import jax
import numpy as np
from sklearn.utils._param_validation import StrOptions

from .._arrays import to_numpy
from .._validation import brief
from ..execution.devices import threads_for
from ..execution.memory import parse_memory
from ..execution.tiles import NETWORK_ROWS, movable, network_rows
from ..kernels.ntk import resolve_kernel
from ..kernels.tiles import TileJob
from ..kernels.verified_store import verified_gram
from ..networks.inputs import params_dtype
from ..solvers.choice import SOLVERS, resolve_solver
from ..solvers.convergence import SolveReport
from ..solvers.direct import Cholesky, Eigh
from ..solvers.iterative import ConjugateGradient
from ..solvers.ridge import solve
from ..tangent.linearization import linearize
from .attackable import GradientDescent
from .closed_form import ClosedFormMachine
from .descent import fit_by_sgd
from .kernel_forms import KernelForm, kernel_form, not_formed
from .precomputed import is_precomputed
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
        if self.solver != "sgd":
            resolve_solver(self.solver)
        if is_precomputed(self.kernel):
            form, job, K = self._matrix_form(X, self.alpha, self.solver), None, X
            self._forget()
        else:
            key_model, key_train = jax.random.split(self._key())
            model = self._take_model(X, y, targets, sample_weight, key_model, regresses=labels is targets)
            if self.solver == "sgd":
                return self._fit_by_descent(model, X, labels, targets.shape[1], sample_weight, key_train)
            form, job, K = self._kernel_to_solve(model, X, targets.shape[1])
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
        self._keep_prior(
            targets - offset, report.ridge, sample_weight, self.dual_coef_ if _is_exact(report) else None
        )
        self._look_at_left_out(K, targets, labels, sample_weight)
        return self

    def _fit_by_descent(self, model, X, labels, n_targets, sample_weight, key):
        self._require_matching_outputs(model, X.dtype, n_targets, "solver='sgd'")
        if self.gram_store is not None:
            raise ValueError("gram_store holds a Gram matrix, which solver='sgd' does not take; leave it out")
        if self.attack is not None:
            X = movable(model, X, params_dtype(model.variables.params), NETWORK_ROWS)
        start = linearize(model, centered=self.dynamics == "centered")
        self.solver_ = "sgd"
        fit_by_sgd(self, "predictor_", start, X, labels, sample_weight, key)
        return self

    def _kernel_to_solve(self, model, X, n_targets) -> tuple[KernelForm, TileJob | None, Any]:
        """Return solver and form, the job that has kept features or None, and the kernel in that form."""
        kernel, memory = resolve_kernel(self.kernel), parse_memory(self.memory)
        rank = self._kernel_rank(kernel, X)
        form = kernel_form(self.solver, kernel, rank, len(X), n_targets, alpha=self.alpha, memory=memory)
        if form.form != "matrix" and vars(self).get("calibrate"):
            raise ValueError(
                f"calibrate=True takes leave-one-out scores from the Gram matrix, which is not formed with solver="
                f"{self.solver!r} and memory={self.memory!r}; give more memory, or calibrate=False"
            )
        if form.form == "matrix":
            job = self._training_job(kernel, X, n_targets, getattr(form.solver, "n_arrays", 1))
            return form, job, self._training_gram(job)
        X = self._training_inputs(kernel, X, n_targets)
        if self.gram_store is None:
            return form, None, not_formed(form, kernel, rank, model, X, memory)
        if form.form == "features":
            raise ValueError(
                "gram_store holds a Gram matrix, but solver='eigenpro' takes tangent features; leave one out"
            )
        return form, None, verified_gram(self.gram_store, kernel, model, X, memory)

    def _look_at_left_out(self, K, targets, labels, sample_weight):
        """Learn from what is predicted for rows that are left out, where that was asked for."""

    @property
    def _rows(self) -> int:
        return super()._rows if "dual_coef_" in vars(self) else network_rows()


def _is_exact(report: SolveReport) -> bool:
    """Tell whether a solver has found the dual coefficients of the ridge itself, to its tolerance."""
    direct = isinstance(report.solver, Cholesky | Eigh)
    return direct or (isinstance(report.solver, ConjugateGradient) and report.converged)
