"""How sure a kernel machine in closed form is: variances of its Gaussian process, and what is unlike training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted

from .._validation import number
from ..execution.memory import host_bytes_free, parse_memory, readable
from ..execution.tiles import MACHINE_ROWS, Shaped, evaluate
from ..kernels.edited_functions import told_apart
from ..kernels.ntk import resolve_kernel
from ..kernels.posterior import OutOfDistribution, Posterior, PriorVariance, make_posterior
from ..networks.inputs import host_inputs, params_dtype
from ..solvers.copies import Copies, find_copies
from ..solvers.direct import SingularGramError
from ..solvers.iterative import IterativeSolver
from .inputs import as_answer
from .kernel_forms import matrix_bytes, rank_of
from .precomputed import PrecomputedMachine

# Posteriors of machines that were asked for one, with the coefficients that they belong to.
_POSTERIORS: WeakKeyDictionary[Any, tuple[np.ndarray, Posterior]] = WeakKeyDictionary()


class UncertaintyMixin(PrecomputedMachine):
    """What a machine with dual coefficients knows of its own errors.

    It is the mean of a Gaussian process with prior covariance σ² K and noise variance σ² λ / w_i, where λ is the
    ridge (``ridge_``) and w_i the sample weight; σ² (``prior_variance_``) is the maximum of the marginal
    likelihood, in closed form: σ² = Σ_i (y_i - μ) α_i / Σ_i w_i with the process's α = (K + λ W⁻¹)⁻¹ (y - μ). It
    is 0 for targets that do not differ. The coefficients of a machine whose solver approximates are not this α,
    which is then computed when it is asked for; and deviations are those from what the machine predicts.
    """

    X_fit_: np.ndarray
    ridge_: float
    weight_fit_: np.ndarray | None
    # centred targets (n, T), where the solver approximates
    _centred: np.ndarray

    @cached_property
    def prior_variance_(self) -> np.ndarray:
        """σ² (T,) of the Gaussian process: the variance of the prior in units of the kernel's."""
        check_is_fitted(self)
        if "_centred" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no prior_variance_: it was not fitted in closed form")
        if self._precomputed:
            raise ValueError(
                "the variance of the prior is found with the dual coefficients where these are exact: fit with "
                "solver='cholesky', or with solver='cg' so that it converges; a precomputed kernel is not kept to "
                "find it later"
            )
        posterior, copies, weight = self._posterior(), self._copies(), self._weights_of_rows()
        means = copies.means(self._centred, weight)
        # what copies of a row differ by is noise
        apart = (weight[:, None] * (self._centred - means[copies.of]) ** 2).sum(0)
        if self.ridge_ == 0 and apart.any():
            raise SingularGramError(
                "copies of a training row have different targets, which have no likelihood without noise: take "
                "alpha > 0"
            )
        explained = posterior.regression(means[copies.of[posterior.seen]])[1]
        return self._scale_of(explained + apart / (self.ridge_ or 1.0), self._centred)

    def ood_score(self, X: Any) -> np.ndarray:
        """Return how far inputs are out of distribution: the share of the prior variance that training leaves.

        r(x) = (k(x, x) - k(x, X) (K + λ W⁻¹)⁻¹ k(X, x)) / k(x, x), from 0, where the function is known, to 1,
        where the training data say nothing. It does not depend on labels or targets. Class and full kernels sum
        variances over outputs.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)

        Returns
        -------
        array (n,)

        Raises
        ------
        ValueError
            For a machine that was fitted by gradient descent.
        SingularGramError
            If the Gram matrix with the ridge is singular.
        MemoryError
            If the Gram matrix and its factor do not fit: of an iterative solver in ``memory``, of others in what
            the machine has left.
        """
        prior, posterior, inputs, _ = self._variances(X)
        prior, posterior = prior.sum(1), posterior.sum(1)
        known = prior > 0
        return as_answer(
            np.where(known, posterior / np.where(known, prior, 1), 1.0).clip(0, 1), inputs, "OOD scores"
        )

    def ood_model(self, level: float = 0.95) -> Callable:
        """Return a detector of what is unlike the training data, as a function that can be attacked.

        Its two scores are 0 and logit(r) - logit(t): label 0 is "like the training data", label 1 "unlike". The
        threshold t is such that a share ``level`` of the training rows, each left out in turn with all of its
        copies, counts as like. A row of weight two counts as a row that is written twice.

        Parameters
        ----------
        level : float, default=0.95
            In (0, 1).

        Returns
        -------
        callable pytree
            From inputs (n, n_features) or (n, ...) to scores (n, 2). Any attack takes it: on label 0 it raises
            :meth:`ood_score`, on label 1 it hides what is unlike.
        """
        level = number("level", level, above=0, below=1)
        posterior = self._posterior()
        threshold = jnp.asarray(posterior.threshold(level), self._working_dtype())
        return self._as_model(OutOfDistribution(self._variance_model(posterior), threshold))

    def _keep_prior(
        self, centred: np.ndarray, ridge: float, sample_weight: np.ndarray | None, dual: np.ndarray | None
    ) -> None:
        """Keep what the Gaussian process needs besides dual coefficients, for centred targets (n, T).

        ``dual`` (n, T) is (K + λ W⁻¹)⁻¹ (y - μ), or None where the solver has not found it.
        """
        self.ridge_, self.weight_fit_ = float(ridge), sample_weight
        if dual is None:
            self._centred = centred
        else:
            self.prior_variance_ = self._scale_of(np.einsum("ic,ic->c", centred, dual), centred)

    def _scale_of(self, explained: np.ndarray, centred: np.ndarray) -> np.ndarray:
        """Return σ² (T,) of the products Σ_i (y_i - μ) α_i (T,)."""
        weight = self._weights_of_rows()
        scale = np.maximum(explained / weight.sum(), 0)
        # not what rounding of the mean leaves
        scale = np.where(np.ptp(centred[weight > 0], axis=0) > 0, scale, 0.0)
        mixes = not self._precomputed and getattr(resolve_kernel(self._fitted_kernel), "rank", None) == 4
        # a full kernel has one prior for all targets together
        return np.full_like(scale, scale.mean()) if mixes else scale

    def _weights_of_rows(self) -> np.ndarray:
        """Return the weights (n,) of the training rows."""
        return np.ones(len(self.dual_coef_)) if self.weight_fit_ is None else np.asarray(self.weight_fit_)

    def _copies(self) -> Copies:
        return find_copies(self.X_fit_)

    def _gap(self) -> np.ndarray | None:
        """Return dual coefficients (m, T) of the process's mean less this machine's, or None if equal."""
        if "_centred" not in vars(self):
            return None
        copies, posterior = self._copies(), self._posterior()
        at = copies.of[posterior.seen]
        exact, _ = posterior.regression(copies.means(self._centred, self._weights_of_rows())[at])
        own = np.zeros((len(copies.first), exact.shape[1]))
        np.add.at(own, copies.of, self.dual_coef_)
        return exact - own[at]

    def _prior_scale(self) -> np.ndarray:
        """Return σ² (T,), with a warning where targets that do not differ have made it zero."""
        check_is_fitted(self)
        found = self.prior_variance_
        if not (found > 0).all():
            which = "the targets" if not found.any() else f"those of column {np.flatnonzero(found == 0)[0]}"
            warnings.warn(
                f"standard deviations are 0 for all inputs, since {which} do not differ between the training rows "
                "of positive weight: the variance of the prior, which is fitted to them (prior_variance_), is 0. "
                "This is not certainty; fit on rows with different targets",
                UserWarning,
                stacklevel=3,
            )
        return found

    def _variances(self, X):
        """Return prior and posterior variances (n, C) or (n, 1) in double precision, and the checked inputs.

        Fourth is the kernel of the inputs with the distinct training rows.
        """
        check_is_fitted(self)
        posterior = self._posterior()
        inputs, _ = self._validated(X, reset=False)
        x = host_inputs("X", inputs, self.model_.variables.params)
        kernel = told_apart(resolve_kernel(self._fitted_kernel), self.model_, x.shape[1:], x.dtype)
        prior = evaluate(PriorVariance(kernel, self.model_), x, MACHINE_ROWS).astype(np.float64)
        block = self._kernel_of(kernel, x, self.X_fit_)[:, posterior.seen]
        return prior, posterior.variances(prior, block), inputs, block

    def _posterior(self) -> Posterior:
        """Return the posterior, made of the Gram matrix when it is first asked for, and kept with the fit."""
        check_is_fitted(self)
        self._require_inputs("variances need k(x, x), the diagonal of the Gram matrix of the inputs themselves")
        if not hasattr(self, "ridge_"):
            raise ValueError(
                f"{type(self).__name__} knows variances where it was fitted in closed form, and this one has no "
                "ridge_: fit it again, with solver='cholesky' for example"
            )
        known = _POSTERIORS.get(self)
        if known is None or known[0] is not self.dual_coef_:
            copies = self._copies()
            weight = copies.weights(self._weights_of_rows())
            seen = copies.first[weight > 0]
            self._require_room_for_posterior(len(seen))
            K = self._kernel_of(
                self._fitted_kernel, self.X_fit_ if len(seen) == len(self.X_fit_) else self.X_fit_[seen]
            )
            known = self.dual_coef_, make_posterior(K, self.ridge_, weight[weight > 0], seen)
            _POSTERIORS[self] = known
        return known[1]

    def _require_room_for_posterior(self, n: int) -> None:
        """Raise MemoryError unless the Gram matrix of n rows and its factor fit, before it is computed."""
        rank = rank_of(resolve_kernel(self._fitted_kernel), self.model_, self.X_fit_)
        # the factor in double precision besides the matrix
        needed = 3 * matrix_bytes(rank, n, self.dual_coef_.shape[1])
        if isinstance(vars(self).get("solver_"), IterativeSolver):
            room, named = parse_memory(self.memory), f"memory={self.memory!r}"
        else:
            room = host_bytes_free()
            named = "" if room is None else f"the {readable(room)} that this machine has left"
        if room is not None and needed > room:
            raise MemoryError(
                f"variances need the Gram matrix of the {n:,} training rows and its factor in double precision, "
                f"{readable(needed)}, which is more than {named}; give more memory, or ask a machine that was "
                "fitted on fewer rows"
            )

    def _variance_model(self, posterior):
        return posterior.pytree(
            resolve_kernel(self._fitted_kernel), self.model_, self.X_fit_, self._working_dtype()
        )

    def _working_dtype(self):
        """Return the dtype of variances: that of the parameters, or single precision in place of half."""
        return jnp.promote_types(params_dtype(self.model_.variables.params), jnp.float32)

    def _as_model(self, function: Callable) -> Callable:
        return Partial(Shaped(tuple(self.input_shape_)), function)
