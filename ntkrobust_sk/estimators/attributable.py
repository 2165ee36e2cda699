"""Kernel machines whose answers are taken apart into the contributions of their training points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from .._validation import brief, integer
from ..attribution.kernel_machines import TopContributions, contributions, top_contributions
from ..targets.labels import encode_labels
from .attackable import AttackableEstimator
from .precomputed import PrecomputedMachine


@dataclass(eq=False, repr=False, kw_only=True)
class AttributableMachine(PrecomputedMachine, AttackableEstimator):
    """A machine whose scores are sums over its training points, with dual coefficients."""

    X_fit_: np.ndarray = field(init=False)
    # of a regressor: whether targets were one number for each input
    _one_target: bool = field(init=False)

    def attribute(self, X: Any) -> np.ndarray:
        """Return the signed contribution of every training point to each answer: K(x, x_i) α_i.

        Summed over the training points, and with ``intercept_`` (of two classes the second's minus the first's),
        they are what ``decision_function`` or, of a regressor, ``predict`` gives. That holds for each kernel: the
        class kernel's contributions are K_c(x, x_i) α_ic, the full kernel's Σ_d K_cd(x, x_i) α_id. They say how
        this answer is put together, not what it would be after training without the point. With a network in
        mixed precision they sum to the answer within its digits.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)

        Returns
        -------
        float64 array (n, m, C) for m training points, or (n, m) for two classes or a single target
            In the order of ``X_fit_`` and of ``classes_``.

        Raises
        ------
        ValueError
            If the machine was fitted by ``solver="sgd"``, which leaves no coefficients of training points.
        MemoryError
            If the result does not fit in ``memory``; :meth:`top_attributions` needs no room for it.
        """
        X = self._attributed_inputs(X)
        found = (
            self._precomputed_terms(X)
            if self._precomputed
            else contributions(*self._machine(X), memory=self.memory)
        )
        if is_classifier(self):
            return found[:, :, 1] - found[:, :, 0] if len(self.classes_) == 2 else found
        return found[:, :, 0] if self._one_target else found

    def top_attributions(self, X: Any, k: int = 10, *, target: Any = None) -> TopContributions:
        """Return the k training points that contribute most to an answer, and the k most against it.

        Memory does not grow with the number of training points: contributions are computed tile by tile, and only
        the largest are kept.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        k : int, default=10
            At most the number of training points.
        target : array (n,) of labels, or int, default=None
            Whose score is taken apart: of a classifier a label for each input, and None is the predicted one (of
            two classes it is this one's score minus the other's); of a regressor with several targets the position
            of one.

        Returns
        -------
        :class:`~ntkrobust_sk.attribution.TopContributions`
            Positions in ``X_fit_``, and contributions.

        Raises
        ------
        ValueError
            As :meth:`attribute`; for a label that was not seen in ``fit``, and for k above the number of training
            points.
        """
        X = self._attributed_inputs(X)
        readout = self._readout(X, target)
        if self._precomputed:
            return TopContributions.of_matrix(self._precomputed_terms(X, readout), k)
        return top_contributions(*self._machine(X), readout, k, memory=self.memory)

    def _machine(self, X) -> tuple[Any, Any, Any, Any, Any]:
        return self._fitted_kernel, self.model_, X, self.X_fit_, self.dual_coef_

    def _attributed_inputs(self, X) -> np.ndarray:
        check_is_fitted(self)
        if "dual_coef_" not in vars(self):
            raise ValueError(
                f"{type(self).__name__} was fitted by gradient descent, which leaves no coefficients of training "
                "points: fit it with a solver in closed form, or take trak_scores for a network that was trained"
            )
        return self._validated(X, reset=False)[0]

    def _readout(self, X, target) -> np.ndarray:
        """Return whose score is taken apart, as weights (n, T) of the machine's scores."""
        n_targets = self.dual_coef_.shape[1]
        if is_classifier(self):
            labels: ArrayLike = self._answers(self._evaluate(X)) if target is None else target
            try:
                readout = np.eye(n_targets)[encode_labels(labels, self.classes_, len(X))]
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"target must hold a label for each input, got {brief(target)}: {error}"
                ) from None
            return 2 * readout - 1 if n_targets == 2 else readout
        if target is None and n_targets > 1:
            raise ValueError(f"this machine has {n_targets} targets: give target=0, ..., or {n_targets - 1}")
        position = integer("target", 0 if target is None else target, low=0, high=n_targets - 1)
        return np.broadcast_to(np.eye(n_targets)[position], (len(X), n_targets))
