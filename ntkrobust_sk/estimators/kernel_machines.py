"""Stage 2 as estimators: kernel machines on a network's tangent kernel, closed-form or by gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ..solvers.calibration import fitted_temperature
from ..solvers.copies import distinct_spectrum
from ..solvers.filters import Ridge
from .attackable import TangentClassifier
from .regressor import TangentRegressor
from .shared import allowed
from .tangent_machine import TangentMachine


@dataclass(eq=False, repr=False, kw_only=True)
class EmpiricalNTKClassifier(TangentClassifier, TangentMachine):
    """A classifier with the empirical tangent kernel of a network: stage 2, lazy training.

    The closed-form solvers regress on the classes' indicators, less their (weighted) frequencies, which are
    added back to the scores.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from. An :class:`AdversarialKernelTrainer` is cloned and fitted inside ``fit``
        (so cross-validation does not leak, and ``estimator__max_epochs`` is a grid axis: "freeze at epoch
        t"); in a :class:`sklearn.frozen.FrozenEstimator` it is taken as it is; a Model is taken as given; a
        network, by name or object, gives its kernel at initialisation, and None the default network's.
    kernel : {"trace", "class", "full", "pseudo", "precomputed"} or callable, default="trace"
        See :mod:`ntkrobust_sk.kernels`. With "precomputed" X holds the kernel, as for :class:`sklearn.svm.SVC`:
        K(X, X) (n, n) in ``fit``, K(X_test, X) (m, n) later; what needs inputs, such as attacks, is an error.
        Not used by ``solver="sgd"``, which moves in the whole tangent space.
    alpha : float, default=1e-2
        Ridge, dimensionless: λ = alpha · mean(diag K), so that one value serves every network and kernel
        (:class:`sklearn.kernel_ridge.KernelRidge` takes λ itself).
    solver : {"cholesky", "eigh", "cg", "nystrom", "eigenpro", "auto", "sgd"} or callable, default="cholesky"
        Of kernel regression: "cholesky" and "eigh" are exact, "cg" is exact to a tolerance, "nystrom" solves on
        landmarks, "eigenpro" on tangent features (of the trace, pseudo or a projected kernel). "cg" and "nystrom"
        take the kernel as an operator (see :func:`~ntkrobust_sk.gram_operator`) where its matrix and a copy do not
        fit in ``memory``. "auto" chooses by size, memory and kernel; ``solver_`` says what. Or "sgd": gradient
        descent in the tangent space on the cross-entropy, which with an ``attack`` is the paper's adversarial
        training on a frozen kernel.
    dynamics : {"centered", "linearized"}, default="centered"
        With "sgd": f(x) = J(x) ω, or f(x; θ_t) + J(x) ω.
    attack : callable, default=None
        Attack in training with "sgd", and the default one of ``robust_score``.
    clean_step : bool, default=True
        With "sgd" and an attack: a clean update before each adversarial one, as in the paper.
    max_epochs : int, default=20
    batch_size : int, default=128
    learning_rate : float, default=0.01
    momentum : float, default=0.9
        Of "sgd".
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    class_weight : dict, "balanced" or None, default=None
    calibrate : bool, default=False
        Fit the temperature of ``predict_proba`` to leave-one-out scores, in closed form. Takes an
        eigendecomposition of the Gram matrix, ten to thirty times the work of the Cholesky solver.
    memory : str or int, default="2GiB"
        Budget for tangent features, and for the Gram matrix of iterative solvers.
    cache : path or joblib.Memory, default=None
        Folder in which Gram matrices are kept, and fits of an unfitted ``estimator``, by what they are computed
        from: a search over ``alpha`` then computes each of them once. See :doc:`/guide/select`. Only what has an
        integer ``random_state`` is computed from the same twice.
    gram_store : path, default=None
        Folder in which ``gram(kernel, model_, X, store=...)`` has left the Gram matrix of the training rows: it is
        verified, and read in place of a computation.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        Of the network's products and of the kernel's, in ``fit``, predictions and attacks: see
        :class:`~ntkrobust_sk.MixedPrecision`. An unfitted ``estimator`` is trained in its own ``precision``. None
        leaves the network as it is.
    verbose : int, default=0

    Attributes
    ----------
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
    temperature_ : float
        Of ``predict_proba``; 1 without ``calibrate``.
    ridge_ : float
        λ.
    prior_variance_ : array (C,)
        σ² of the Gaussian process whose mean the scores are.
    weight_fit_ : array (n,) or None
        These seven with all solvers but "sgd".
    solver_ : callable or "sgd"
        The solver that was taken, with its parameters.
    n_iter_ : int
        Iterations or epochs, of iterative solvers.
    residual_ : float
        The relative residual that an iterative solver has left; above its tolerance ``fit`` warns.
    input_shape_ : tuple of int
    n_features_in_ : int

    References
    ----------
    Loo et al. 2022, arXiv:2210.12030.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import EmpiricalNTKClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = EmpiricalNTKClassifier(alpha=1e-3, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    calibrate: bool = field(default=False, metadata=allowed("boolean"))

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit on inputs X (n, n_features) or (n, h, w, c) and labels y (n,) of any type.

        ``sample_weight`` (n,) weighs the samples, also in the fit of an unfitted ``estimator``.
        """
        self._validate_params()
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight, self._source_shape())
        if self.calibrate and self.solver == "sgd":
            raise ValueError(
                "calibrate=True needs a solver in closed form, such as solver='cholesky', got solver='sgd', whose "
                "scores are logits of a cross-entropy"
            )
        targets = np.eye(len(self.classes_))[encoded]
        return self._fit_machine(X, self.classes_[encoded], targets, sample_weight, labels=encoded)

    def _look_at_left_out(self, K, targets, labels, sample_weight):
        self.temperature_ = 1.0
        if self.calibrate:
            rows = K if self._precomputed else self.X_fit_
            left_out = distinct_spectrum(K, rows, targets, sample_weight).left_out(Ridge(self.alpha))
            self.temperature_ = fitted_temperature(left_out, labels, sample_weight)


@dataclass(eq=False, repr=False, kw_only=True)
class EmpiricalNTKRegressor(TangentRegressor, TangentMachine):
    """A kernel ridge regressor with the empirical tangent kernel of a network.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from. An :class:`AdversarialKernelTrainer` is cloned and fitted inside ``fit``
        (so cross-validation does not leak, and ``estimator__max_epochs`` is a grid axis: "freeze at epoch
        t"); in a :class:`sklearn.frozen.FrozenEstimator` it is taken as it is; a Model is taken as given; a
        network, by name or object, gives its kernel at initialisation, and None the default network's.
    kernel : {"trace", "class", "full", "pseudo", "precomputed"} or callable, default="trace"
        See :mod:`ntkrobust_sk.kernels`. With "precomputed" X holds the kernel, as for :class:`sklearn.svm.SVC`:
        K(X, X) (n, n) in ``fit``, K(X_test, X) (m, n) later; what needs inputs, such as attacks, is an error.
        Not used by ``solver="sgd"``, which moves in the whole tangent space.
    alpha : float, default=1e-2
        Ridge, dimensionless: λ = alpha · mean(diag K), so that one value serves every network and kernel
        (:class:`sklearn.kernel_ridge.KernelRidge` takes λ itself).
    solver : {"cholesky", "eigh", "cg", "nystrom", "eigenpro", "auto", "sgd"} or callable, default="cholesky"
        Of kernel regression: "cholesky" and "eigh" are exact, "cg" is exact to a tolerance, "nystrom" solves on
        landmarks, "eigenpro" on tangent features (of the trace, pseudo or a projected kernel). "cg" and "nystrom"
        take the kernel as an operator (see :func:`~ntkrobust_sk.gram_operator`) where its matrix and a copy do not
        fit in ``memory``. "auto" chooses by size, memory and kernel; ``solver_`` says what. Or "sgd": gradient
        descent in the tangent space on the squared error, which with an ``attack`` is the paper's adversarial
        training on a frozen kernel.
    dynamics : {"centered", "linearized"}, default="centered"
        With "sgd": f(x) = J(x) ω, or f(x; θ_t) + J(x) ω.
    attack : callable, default=None
        Attack in training with "sgd", and the default one of ``robust_score``.
    clean_step : bool, default=True
        With "sgd" and an attack: a clean update before each adversarial one, as in the paper.
    max_epochs : int, default=20
    batch_size : int, default=128
    learning_rate : float, default=0.01
    momentum : float, default=0.9
        Of "sgd".
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    memory : str or int, default="2GiB"
        Budget for tangent features, and for the Gram matrix of iterative solvers.
    cache : path or joblib.Memory, default=None
        Folder in which Gram matrices are kept, and fits of an unfitted ``estimator``, by what they are computed
        from: a search over ``alpha`` then computes each of them once. See :doc:`/guide/select`. Only what has an
        integer ``random_state`` is computed from the same twice.
    gram_store : path, default=None
        Folder in which ``gram(kernel, model_, X, store=...)`` has left the Gram matrix of the training rows: it is
        verified, and read in place of a computation.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        Of the network's products and of the kernel's, in ``fit``, predictions and attacks: see
        :class:`~ntkrobust_sk.MixedPrecision`. An unfitted ``estimator`` is trained in its own ``precision``. None
        leaves the network as it is.
    verbose : int, default=0

    Attributes
    ----------
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
        λ.
    prior_variance_ : array (T,)
        σ² of the Gaussian process whose mean the machine is.
    noise_std_ : array (T,)
        √(σ² λ), the standard deviation of its noise.
    weight_fit_ : array (n,) or None
        These seven with all solvers but "sgd".
    solver_ : callable or "sgd"
        The solver that was taken, with its parameters.
    n_iter_ : int
        Iterations or epochs, of iterative solvers.
    residual_ : float
        The relative residual that an iterative solver has left; above its tolerance ``fit`` warns.
    input_shape_ : tuple of int
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from ntkrobust_sk import EmpiricalNTKRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = EmpiricalNTKRegressor(alpha=1.0, random_state=0).fit(X[:200], y[:200])
    >>> reg.predict(X[200:]).shape
    (242,)
    """

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit on inputs X (n, n_features) or (n, h, w, c) and real targets y (n,) or (n, T)."""
        self._validate_params()
        X, y, targets, sample_weight = self._validated_targets(X, y, sample_weight, self._source_shape())
        return self._fit_machine(X, y, targets, sample_weight, labels=targets)
