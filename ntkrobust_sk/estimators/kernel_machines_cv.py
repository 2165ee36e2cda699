"""Kernel machines that choose their own regularisation, and say how sure they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from .attackable import TangentClassifier
from .regressor import TangentRegressor
from .selection import SelectingMachine


@dataclass(eq=False, repr=False, kw_only=True)
class EmpiricalNTKClassifierCV(TangentClassifier, SelectingMachine):
    """A classifier with a network's tangent kernel that chooses its own ridge, and gives calibrated probabilities.

    One eigendecomposition of the Gram matrix gives exact leave-one-out scores for all ridges. The temperature of
    ``predict_proba`` is fitted to those of the chosen one.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from, as for :class:`EmpiricalNTKClassifier`.
    kernel : {"trace", "class", "full", "pseudo", "precomputed"} or callable, default="trace"
        See :mod:`ntkrobust_sk.kernels`. With "precomputed" X holds the kernel, as for :class:`sklearn.svm.SVC`:
        K(X, X) (n, n) in ``fit``, K(X_test, X) (m, n) later; what needs inputs, such as attacks, is an error.
    alphas : array-like of float, default=None
        Candidate ridges, each >= 0 and dimensionless as ``alpha`` of :class:`EmpiricalNTKClassifier`. Those that
        regularise too little for the precision of the Gram matrix are left out with a warning. None: from 1e-6, or
        as soon as the precision allows, to 100, two for each power of ten.
    stopping_times : array-like of float, default=None
        Times at which gradient flow on the squared error is stopped, candidates in place of ``alphas``; both
        together are an error. A time is in units of one over the mean diagonal of the Gram matrix: t fits about as
        much as alpha = 1/t.
    scoring : {"squared_error", "accuracy", "log_loss", "gcv", "robust"}, default="squared_error"
        The first three are those of leave-one-out scores: the squared error to the classes' indicators, the
        accuracy, and the log-likelihood at the best temperature. "gcv" is generalised cross-validation, in closed
        form too; "robust" the score under ``attack``, in ``cv`` folds. Of equal scores the most regularised one
        is chosen.
    cv : int, splitter or iterable, default=5
        Folds of "robust", as scikit-learn takes them.
    attack : callable, default=None
        Attack of "robust", and the default one of ``robust_score``.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    class_weight : dict, "balanced" or None, default=None
    memory : str or int, default="2GiB"
        Budget for tangent features.
    cache : path or joblib.Memory, default=None
        Folder in which Gram matrices are kept, and fits of an unfitted ``estimator``, by what they are computed
        from. See :doc:`/guide/select`.
    gram_store : path, default=None
        Folder in which ``gram(kernel, model_, X, store=...)`` has left the Gram matrix of the training rows: it is
        verified, and read in place of a computation.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        As for :class:`EmpiricalNTKClassifier`.
    verbose : int, default=0

    Attributes
    ----------
    alpha_ : float
        The chosen one.
    stopping_time_ : float
        The chosen one, in place of ``alpha_``, with ``stopping_times``.
    scores_ : array (k,)
        Of each candidate, higher is better: minus an error, or a score. NaN for those left out.
    best_score_ : float
    left_out_ : array (n, C)
        What the chosen machine predicts for each training row without that row.
    temperature_ : float
        Of ``predict_proba``, fitted to ``left_out_``.
    classes_ : array (C,)
    model_ : Model
        The network whose tangent kernel this is.
    kernel_ : str or callable
        The kernel that was fitted; a ``kernel`` that is set later belongs to the next fit.
    predictor_ : callable pytree
        From inputs ``(n, *input_shape_)`` to scores (n, C).
    X_fit_ : array ``(n, *input_shape_)``
    dual_coef_ : array (n, C)
    intercept_ : array (C,)
    ridge_ : float
        λ; with ``stopping_times`` that of alpha = 1 / ``stopping_time_``, for variances.
    prior_variance_ : array (C,)
        σ² of the Gaussian process whose mean the machine is.
    weight_fit_ : array (n,) or None
    input_shape_ : tuple of int
    n_features_in_ : int

    Notes
    -----
    A row is left out whole, with all rows that are equal to it: the machine is fitted to all others, with *their*
    weighted mean of targets and *their* mean diagonal, by which alpha is a ridge, so its answer is that of a new
    fit to them. A row of weight two and a row that is written twice are the same. What is not left out is the
    network: an unfitted ``estimator`` is trained on all rows once, and knows them. Take a FrozenEstimator that
    was trained on other data, or ``GridSearchCV`` of :class:`EmpiricalNTKClassifier`, where that matters. With
    ``scoring="robust"`` the same holds for folds.

    References
    ----------
    Golub, Heath & Wahba 1979, *Generalized cross-validation*; Ali et al. 2019, arXiv:1810.10082.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import EmpiricalNTKClassifierCV
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = EmpiricalNTKClassifierCV(alphas=[1e-3, 1e-1, 10.0], random_state=0).fit(X, y)
    >>> clf.alpha_ in (1e-3, 1e-1, 10.0), clf.predict_proba(X).shape
    (True, (150, 3))
    """

    SCORINGS: ClassVar[tuple[str, ...]] = ("squared_error", "accuracy", "log_loss", "gcv", "robust")

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Choose and fit on inputs X (n, n_features) or (n, h, w, c) and labels y (n,) of any type.

        ``sample_weight`` (n,) weighs the samples, also in scores and in the fit of an unfitted ``estimator``.
        """
        self._validate_params()
        given = X, y
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight, self._source_shape())
        targets = np.eye(len(self.classes_))[encoded]
        return self._select(X, self.classes_[encoded], targets, sample_weight, encoded, given)


@dataclass(eq=False, repr=False, kw_only=True)
class EmpiricalNTKRegressorCV(TangentRegressor, SelectingMachine):
    """A regressor with a network's tangent kernel that chooses its own ridge.

    One eigendecomposition of the Gram matrix gives exact leave-one-out predictions for all ridges.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from, as for :class:`EmpiricalNTKRegressor`.
    kernel : {"trace", "class", "full", "pseudo", "precomputed"} or callable, default="trace"
        See :mod:`ntkrobust_sk.kernels`. With "precomputed" X holds the kernel, as for :class:`sklearn.svm.SVC`:
        K(X, X) (n, n) in ``fit``, K(X_test, X) (m, n) later; what needs inputs, such as attacks, is an error.
    alphas : array-like of float, default=None
        Candidate ridges, each >= 0 and dimensionless as ``alpha`` of :class:`EmpiricalNTKRegressor`. Those that
        regularise too little for the precision of the Gram matrix are left out with a warning. None: from 1e-6, or
        as soon as the precision allows, to 100, two for each power of ten.
    stopping_times : array-like of float, default=None
        Times at which gradient flow on the squared error is stopped, candidates in place of ``alphas``; both
        together are an error. A time is in units of one over the mean diagonal of the Gram matrix: t fits about as
        much as alpha = 1/t.
    scoring : {"squared_error", "gcv", "robust"}, default="squared_error"
        "squared_error" is that of leave-one-out predictions. "gcv" is generalised cross-validation, in closed
        form too; "robust" the score under ``attack``, in ``cv`` folds. Of equal scores the most regularised one
        is chosen.
    cv : int, splitter or iterable, default=5
        Folds of "robust", as scikit-learn takes them.
    attack : callable, default=None
        Attack of "robust", and the default one of ``robust_score``.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    memory : str or int, default="2GiB"
        Budget for tangent features.
    cache : path or joblib.Memory, default=None
        Folder in which Gram matrices are kept, and fits of an unfitted ``estimator``, by what they are computed
        from. See :doc:`/guide/select`.
    gram_store : path, default=None
        Folder in which ``gram(kernel, model_, X, store=...)`` has left the Gram matrix of the training rows: it is
        verified, and read in place of a computation.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        As for :class:`EmpiricalNTKRegressor`.
    verbose : int, default=0

    Attributes
    ----------
    alpha_ : float
        The chosen one.
    stopping_time_ : float
        The chosen one, in place of ``alpha_``, with ``stopping_times``.
    scores_ : array (k,)
        Of each candidate, higher is better: minus an error, or a score. NaN for those left out.
    best_score_ : float
    left_out_ : array (n, T)
        What the chosen machine predicts for each training row without that row.
    model_ : Model
        The network whose tangent kernel this is.
    kernel_ : str or callable
        The kernel that was fitted; a ``kernel`` that is set later belongs to the next fit.
    predictor_ : callable pytree
        From inputs ``(n, *input_shape_)`` to predictions (n, T).
    X_fit_ : array ``(n, *input_shape_)``
    dual_coef_ : array (n, T)
    intercept_ : array (T,)
    ridge_ : float
        λ; with ``stopping_times`` that of alpha = 1 / ``stopping_time_``, for variances.
    prior_variance_ : array (T,)
        σ² of the Gaussian process whose mean the machine is.
    noise_std_ : array (T,)
        √(σ² λ), the standard deviation of its noise.
    weight_fit_ : array (n,) or None
    input_shape_ : tuple of int
    n_features_in_ : int

    Notes
    -----
    A row is left out whole, with all rows that are equal to it: the machine is fitted to all others, with *their*
    weighted mean of targets and *their* mean diagonal, by which alpha is a ridge, so its answer is that of a new
    fit to them. A row of weight two and a row that is written twice are the same. What is not left out is the
    network: an unfitted ``estimator`` is trained on all rows once, and knows them. Take a FrozenEstimator that
    was trained on other data, or ``GridSearchCV`` of :class:`EmpiricalNTKRegressor`, where that matters. With
    ``scoring="robust"`` the same holds for folds.

    References
    ----------
    Golub, Heath & Wahba 1979, *Generalized cross-validation*; Ali et al. 2019, arXiv:1810.10082.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from ntkrobust_sk import EmpiricalNTKRegressorCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = EmpiricalNTKRegressorCV(random_state=0).fit(X[:200], y[:200])
    >>> mean, std = reg.predict(X[200:], return_std=True)
    >>> mean.shape, std.shape, bool((std > 0).all())
    ((242,), (242,), True)
    """

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Choose and fit on inputs X (n, n_features) or (n, h, w, c) and real targets y (n,) or (n, T)."""
        self._validate_params()
        given = X, y
        X, y, targets, sample_weight = self._validated_targets(X, y, sample_weight, self._source_shape())
        return self._select(X, y, targets, sample_weight, None, given)
