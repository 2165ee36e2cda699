"""Robust eigenfeatures, selected, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from ..analysis.eigenfeatures import leading_eigenpairs, no_attack, ntk_features
from ..attacks.entry import require_attack
from ..execution.memory import parse_memory
from ..execution.tiles import MACHINE_ROWS, evaluate, machine_rows, movable
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor
from ..networks.inputs import host_inputs, params_dtype
from .inputs import as_answer
from .shared import KernelSource, allowed, at_least


@dataclass(eq=False, repr=False, kw_only=True)
class RobustFeatureSelector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, KernelSource):
    """A transformer to those eigenvectors of a tangent kernel that stay useful under attack.

    φ_i(x) = λ_i^{-1/2} K(x, X) v_i, for the ``n_features`` eigenvectors of highest score among the leading
    ``n_candidates``. A linear model on them is kernel regression without the other directions: the split into
    robust and non-robust features of Tsilivis & Kempe 2022 (arXiv:2210.05577).

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from, as for :class:`EmpiricalNTKClassifier`.
    kernel : {"trace", "pseudo"}, default="trace"
    attack : callable
        ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`, taken through each feature's own
        predictor.
    n_features : int, default=10
        Features kept.
    n_candidates : int, default=30
        Leading eigenvectors that are scored.
    criterion : {"robustness", "usefulness", "eigenvalue"}, default="robustness"
        What is ranked: accuracy of a feature's predictor under attack, without, or nothing but its eigenvalue.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    memory : str or int, default="2GiB"
    cache : path or joblib.Memory, default=None
        Folder in which Gram matrices and fits of an unfitted ``estimator`` are kept, by what they are computed
        from. See :doc:`/guide/select`.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        Of the network's products and of the kernel's: see :class:`~ntkrobust_sk.MixedPrecision`. None leaves the
        network as it is.

    Attributes
    ----------
    usefulness_, robustness_, eigenvalues_ : array (n_candidates,)
        Scores on the training set itself.
    support_ : int array (n_features,)
        The chosen ones among the candidates, best first.
    features_ : callable pytree
        From inputs ``(n, *input_shape_)`` to φ: attack a linear model on it through this.
    model_ : Model
    X_fit_ : array ``(n, *input_shape_)``
    input_shape_ : tuple of int
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from ntkrobust_sk import PGD, RobustFeatureSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> X, y = X[:150] / 16, y[:150]
    >>> selector = RobustFeatureSelector(attack=PGD(0.1, n_steps=5), n_candidates=8, n_features=4, random_state=0)
    >>> selector.fit_transform(X, y).shape
    (150, 4)
    """

    kernel: str = field(default="trace", metadata=allowed(StrOptions({"trace", "pseudo"})))
    attack: Callable | None = field(
        default=None, metadata=allowed(callable, None, such_as="an attack, such as PGD(epsilon=8/255)")
    )
    n_features: int = field(default=10, metadata=allowed(at_least(1)))
    n_candidates: int = field(default=30, metadata=allowed(at_least(1)))
    criterion: str = field(
        default="robustness", metadata=allowed(StrOptions({"robustness", "usefulness", "eigenvalue"}))
    )

    def fit(self, X: Any, y: Any) -> Self:
        """Score the eigenfeatures of inputs X (n, n_features) or (n, h, w, c) and labels y (n,)."""
        self._validate_params()
        if self.criterion == "robustness":
            if self.attack is None:
                raise ValueError(
                    "criterion='robustness' needs an attack, such as attack=PGD(epsilon=8/255); got None"
                )
            require_attack(self.attack)
        X, y = self._validated(X, y, reset=True, known_shape=self._source_shape())
        check_classification_targets(y)
        classes, encoded = np.unique(y, return_inverse=True)
        key_model, key_attack = jax.random.split(self._key())
        self.model_ = self._source_model(X, y, len(classes), None, key_model)
        if self.criterion == "robustness":
            X = movable(self.model_, X, params_dtype(self.model_.variables.params), MACHINE_ROWS)
        self.X_fit_ = host_inputs("X", X, self.model_.variables.params)
        K = np.asarray(self._kernel_of(self.kernel, self.X_fit_), np.float64)
        if self.criterion == "eigenvalue":
            self.eigenvalues_, vectors = leading_eigenpairs(K, self.n_candidates)
            order = np.arange(len(self.eigenvalues_))
        else:
            found = ntk_features(
                self.kernel,
                self.model_,
                self.X_fit_,
                encoded,
                self.X_fit_,
                encoded,
                self.attack if self.attack and self.criterion == "robustness" else no_attack,
                n_features=self.n_candidates,
                key=key_attack,
                K=K,
                memory=self.memory,
            )
            self.eigenvalues_, vectors = found.eigenvalues, found.eigenvectors
            self.usefulness_, self.robustness_ = found.usefulness, found.robustness
            order = np.argsort(-getattr(found, self.criterion), kind="stable")
        self.support_ = order[: self.n_features]
        dual = vectors[:, self.support_] / np.sqrt(self.eigenvalues_[self.support_])
        offset = np.zeros(len(self.support_))
        self.features_ = make_predictor(
            resolve_kernel(self.kernel), self.model_, self.X_fit_, dual, offset, memory=self.memory
        )
        self._n_features_out = len(self.support_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return features (n, n_features) of X (n, n_features_in) or (n, h, w, c)."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        rows = machine_rows(self.features_, X.shape[1:], X.dtype, parse_memory(self.memory))
        return as_answer(evaluate(self.features_, X, rows), X, "features")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
