"""Machines on a Gram matrix that the user gives: ``kernel="precomputed"``, as scikit-learn's SVC takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._validation import brief, require_unmasked
from ..kernels.room import require_host_memory
from ..solvers.choice import resolve_solver, solver_of_matrix
from ..solvers.eigenpro import EigenPro
from ..solvers.matrices import require_symmetric
from ..solvers.rows import kernel_scores
from .inputs import as_rows
from .kernel_forms import KernelForm, require_ridge
from .shared import KernelSource, allowed

PRECOMPUTED = "precomputed"
# What has no say in a machine that is given its kernel as numbers, with the values that leave it out.
NO_SAY = {
    "estimator": None,
    "params": None,
    "input_shape": None,
    "precision": None,
    "gram_store": None,
    "attack": None,
}


@dataclass(eq=False, repr=False, kw_only=True)
class PrecomputedMachine(KernelSource):
    """What a machine does where X is K: a row for each input, a column for each training row."""

    kernel: str | Callable = field(
        default="trace", metadata=allowed(such_as="a kernel with parameters, such as ProjectedNTK(1000)")
    )
    kernel_: str | Callable = field(init=False)
    dual_coef_: np.ndarray = field(init=False)
    intercept_: np.ndarray = field(init=False)

    @property
    def _fitted_kernel(self) -> str | Callable:
        """Return the kernel that was fitted; before a fit, the parameter."""
        # the first versions' files have none
        return vars(self).get("kernel_", self.kernel)

    @property
    def _precomputed(self) -> bool:
        return is_precomputed(self._fitted_kernel)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # by it cross-validation splits rows and columns
        tags.input_tags.pairwise = is_precomputed(self.kernel)
        return tags

    def _validate_params(self):
        super()._validate_params()
        if not is_precomputed(self.kernel):
            return
        for name, nothing in NO_SAY.items():
            if (value := getattr(self, name, nothing)) is not nothing:
                raise ValueError(
                    f"kernel='precomputed' takes the numbers of X for the kernel, so {name}={brief(value)} has no "
                    "say in it: leave it out, or take another kernel"
                )

    def _validated(self, X: Any, y: Any = "no_validation", *, reset: bool, known_shape=None, **options):
        """Return X and y checked; a precomputed K(x, x_i) is square and symmetric where it is fitted on."""
        if not is_precomputed(self.kernel if reset else self._fitted_kernel):
            return super()._validated(X, y, reset=reset, known_shape=known_shape, **options)
        _require_matrix(X)
        try:
            K, y = super()._validated(X, y, reset=reset, known_shape=known_shape, **options)
        except ValueError as error:
            if reset or "features" not in str(error):
                raise
            raise ValueError(
                f"{error} With kernel='precomputed' X must be K(x, x_i): a row for each input, and a column for "
                "each training row in their order"
            ) from None
        if reset:
            _require_gram(K)
        return K, y

    def _matrix_form(self, K: np.ndarray, alpha: float, solver: str | Callable) -> KernelForm:
        """Return the solver of a matrix that is there, if its copies of the system fit in memory, too."""
        if solver == "sgd":
            raise ValueError(
                "solver='sgd' moves in the tangent space of a network, of which kernel='precomputed' knows "
                "nothing; take solver='cholesky', or another kernel"
            )
        found = resolve_solver(solver) or solver_of_matrix(len(K), alpha)
        if isinstance(found, EigenPro):
            raise ValueError(
                "solver='eigenpro' takes tangent features, of which kernel='precomputed' knows nothing; take "
                "solver='cg' or 'nystrom'"
            )
        require_ridge(found, alpha)
        require_host_memory(0, 8 * getattr(found, "n_arrays", 1) * len(K) ** 2, f"{len(K):,} rows")
        return KernelForm(found, "matrix")

    def _precomputed_scores(self, K: np.ndarray) -> np.ndarray:
        return kernel_scores(K, self.dual_coef_) + self.intercept_

    def _precomputed_terms(self, K: np.ndarray, readout: np.ndarray | None = None) -> np.ndarray:
        """Return K(x, x_i) α_i, (n, m, T), or (n, m) of the scores that are read out by (n, T)."""
        K = K.astype(np.float64, copy=False)
        return K[:, :, None] * self.dual_coef_ if readout is None else K * (readout @ self.dual_coef_.T)

    def _require_inputs(self, what: str, kernel: str | Callable | None = None) -> None:
        """Raise ValueError for what needs x itself, where only K(x, x_i) is known; None is the fitted kernel."""
        if is_precomputed(self._fitted_kernel if kernel is None else kernel):
            raise ValueError(
                f"{what}, but kernel='precomputed' knows numbers K(x, x_i) alone; fit the machine with "
                "kernel='trace' (or another one) and the network as estimator"
            )


def is_precomputed(kernel: str | Callable) -> bool:
    """Tell whether X is the kernel."""
    return isinstance(kernel, str) and kernel == PRECOMPUTED


def _require_matrix(X: Any) -> None:
    rows, image_shape = as_rows(X)
    if image_shape is not None:
        raise ValueError(
            f"X must be a matrix K(x, x_i) with kernel='precomputed', got shape {np.shape(X)}: of the class and "
            "the full kernel, with several numbers for a pair, give kernel='class' or 'full' and inputs"
        )
    require_unmasked("X", X)
    K = np.asarray(rows)
    if K.dtype.kind == "f" and K.ndim == 2 and len(wrong := np.argwhere(~np.isfinite(K))):
        i, j = wrong[0].tolist()
        raise ValueError(
            f"X must be a matrix K(x, x_i) of finite numbers with kernel='precomputed', but K[{i}, {j}] is "
            f"{K[i, j]} ({len(wrong):,} of {K.size:,} entries are NaN or infinity): see how it was computed"
        )


def _require_gram(K: np.ndarray) -> None:
    """Raise ValueError unless this is a Gram matrix of the training rows with themselves."""
    if K.shape[0] != K.shape[1]:
        raise ValueError(
            f"X must be the square matrix K(x_i, x_j) of the training rows with kernel='precomputed', got shape "
            f"{K.shape}; write fit(gram(kernel, model, X), y) and predict(gram(kernel, model, X_test, X))"
        )
    require_symmetric(K, "X, the precomputed kernel,")
    if not (np.diagonal(K) >= 0).all():
        at = int(np.argmin(np.diagonal(K)))
        raise ValueError(
            f"X must be a Gram matrix with kernel='precomputed', whose diagonal K(x, x) is not negative, got "
            f"{K[at, at]:.3g} at row {at}: a matrix of distances is none"
        )
