"""Stage 2 as estimators: kernel machines on a network's tangent kernel, closed-form or by gradient descent."""

from __future__ import annotations

from numbers import Integral, Real

import jax
import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils._param_validation import Interval, StrOptions

from .._arrays import to_numpy
from .._validation import fitting, require_numbers, require_resolution
from ..execution.tiles import MACHINE_ROWS, NETWORK_ROWS, movable
from ..kernels.gram_matrix import gram_of
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor, training_job
from ..networks.inputs import host_inputs, params_dtype
from ..networks.named import n_logits
from ..solvers.direct import SOLVERS, resolve_solver
from ..solvers.ridge import solve
from ..tangent.linearization import linearize
from .inputs import checked_weights, require_finite_targets, weights_to_score
from .kernel_source import KernelSourceMixin
from .shared import AttackedMixin, TangentClassifierMixin, TangentEstimator
from .trainer import fit_by_sgd


class _KernelMachine(KernelSourceMixin, TangentEstimator):
    """Source of the kernel, closed-form and gradient-based fits, shared by classifier and regressor."""

    _machine_constraints = {
        **TangentEstimator._shared_constraints,
        "estimator": "no_validation",
        "kernel": "no_validation",
        "alpha": [Interval(Real, 0, None, closed="left")],
        "solver": [StrOptions({*SOLVERS, "sgd"}), callable],
        "dynamics": [StrOptions({"linearized", "centered"})],
        "attack": [callable, None],
        "clean_step": ["boolean"],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "memory": [str, Interval(Integral, 1, None, closed="left")],
    }

    def _fit_machine(self, X, y, targets, sample_weight, labels):
        """Fit on targets (n, T) of y; ``labels`` are what a training loss takes: classes, or the targets."""
        kernel = resolve_kernel(self.kernel)
        for name in ("X_fit_", "dual_coef_", "intercept_", "loss_curve_", "n_iter_"):
            # an earlier fit with another solver may have left what this one will not set
            vars(self).pop(name, None)
        if self.solver != "sgd":
            resolve_solver(self.solver)
        key_model, key_train = jax.random.split(self._key())
        model = self._source_model(X, y, targets.shape[1], sample_weight, key_model)
        self.model_ = model
        if labels is targets:
            dtype = params_dtype(model.variables.params)
            fitting("y", targets, dtype)
            require_resolution("y", y, dtype, targets=True)
        if self.solver == "sgd":
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
        job = training_job(kernel, model, self.X_fit_, targets.shape[1], memory=self.memory)
        K = gram_of(job, progress=self.verbose > 0)
        offset = np.average(targets, axis=0, weights=sample_weight)
        dual = solve(K, targets - offset, alpha=self.alpha, solver=self.solver, sample_weight=sample_weight)
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

    def gram(self, X, Y=None):
        """Gram matrix of the fitted kernel.

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

    def _predictor(self):
        return self.predictor_

    def _rows(self):
        return NETWORK_ROWS if self.solver == "sgd" else MACHINE_ROWS


def _rank(kernel, model, X) -> int:
    """Rank of the kernel's blocks, as stated or found without computing one."""
    if kernel.rank is not None:
        return kernel.rank
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    return jax.eval_shape(kernel, model, x, x).ndim


_MACHINE_PARAMETERS = """estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from. An :class:`AdversarialKernelTrainer` is cloned and fitted inside ``fit``
        (so cross-validation does not leak, and ``estimator__max_epochs`` is a grid axis: "freeze at epoch
        t"); in a :class:`sklearn.frozen.FrozenEstimator` it is taken as it is; a Model is taken as given; a
        network, by name or object, gives its kernel at initialisation, and None the default network's.
    kernel : {{"trace", "class", "full", "pseudo"}} or callable, default="trace"
        See :mod:`ntkrobust_sk.kernels`. Not used by ``solver="sgd"``, which moves in the whole tangent space.
    alpha : float, default=1e-2
        Ridge, dimensionless: λ = alpha · mean(diag K), so that one value serves every network and kernel
        (:class:`sklearn.kernel_ridge.KernelRidge` takes λ itself).
    solver : {{"cholesky", "eigh", "sgd"}} or callable, default="cholesky"
        Closed-form kernel regression, or "sgd": gradient descent in the tangent space {loss}, which with an
        ``attack`` is the paper's adversarial training on a frozen kernel.
    dynamics : {{"centered", "linearized"}}, default="centered"
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
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X."""


def _documented(loss):
    """Insert the parameters that classifier and regressor share into their docstrings."""

    def decorate(cls):
        cls.__doc__ = cls.__doc__.replace("{parameters}", _MACHINE_PARAMETERS.format(loss=loss))
        return cls

    return decorate


@_documented("on the cross-entropy")
class EmpiricalNTKClassifier(TangentClassifierMixin, _KernelMachine):
    """Classification with the empirical tangent kernel of a network: stage 2, lazy training.

    The closed-form solvers regress on the classes' indicators, less their (weighted) frequencies, which are
    added back to the scores.

    Parameters
    ----------
    {parameters}
    class_weight : dict, "balanced" or None, default=None
    memory : str or int, default="2GiB"
        Budget for tangent features.
    random_state : int, RandomState or None, default=None
    verbose : int, default=0

    Attributes
    ----------
    classes_ : array (C,)
    model_ : Model
        The network whose tangent kernel this is.
    predictor_ : callable pytree
        From inputs (n, *input_shape_) to scores (n, C).
    X_fit_ : array (n, *input_shape_)
    dual_coef_ : array (n, C)
    intercept_ : array (C,)
        These three with the closed-form solvers only.
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

    _parameter_constraints = {
        **_KernelMachine._machine_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        estimator=None,
        *,
        kernel="trace",
        alpha=1e-2,
        solver="cholesky",
        dynamics="centered",
        attack=None,
        clean_step=True,
        max_epochs=20,
        batch_size=128,
        learning_rate=0.01,
        momentum=0.9,
        input_shape=None,
        class_weight=None,
        memory="2GiB",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.kernel = kernel
        self.alpha = alpha
        self.solver = solver
        self.dynamics = dynamics
        self.attack = attack
        self.clean_step = clean_step
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.input_shape = input_shape
        self.class_weight = class_weight
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Fit on inputs X (n, n_features) or (n, h, w, c) and labels y (n,) of any type.

        ``sample_weight`` (n,) weighs the samples, also in the fit of an unfitted ``estimator``.
        """
        self._validate_params()
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight, self._source_shape())
        targets = np.eye(len(self.classes_))[encoded]
        return self._fit_machine(X, self.classes_[encoded], targets, sample_weight, labels=encoded)


@_documented("on the squared error")
class EmpiricalNTKRegressor(AttackedMixin, RegressorMixin, MultiOutputMixin, _KernelMachine):
    """Kernel ridge regression with the empirical tangent kernel of a network.

    Parameters
    ----------
    {parameters}
    memory : str or int, default="2GiB"
        Budget for tangent features.
    random_state : int, RandomState or None, default=None
    verbose : int, default=0

    Attributes
    ----------
    model_ : Model
        The network whose tangent kernel this is.
    predictor_ : callable pytree
        From inputs (n, *input_shape_) to predictions (n, T).
    X_fit_ : array (n, *input_shape_)
    dual_coef_ : array (n, T)
    intercept_ : array (T,)
        These three with the closed-form solvers only.
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

    _parameter_constraints = _KernelMachine._machine_constraints

    def __init__(
        self,
        estimator=None,
        *,
        kernel="trace",
        alpha=1e-2,
        solver="cholesky",
        dynamics="centered",
        attack=None,
        clean_step=True,
        max_epochs=20,
        batch_size=128,
        learning_rate=0.01,
        momentum=0.9,
        input_shape=None,
        memory="2GiB",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.kernel = kernel
        self.alpha = alpha
        self.solver = solver
        self.dynamics = dynamics
        self.attack = attack
        self.clean_step = clean_step
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.input_shape = input_shape
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Fit on inputs X (n, n_features) or (n, h, w, c) and real targets y (n,) or (n, T)."""
        self._validate_params()
        X, y = self._validated(
            X, y, reset=True, known_shape=self._source_shape(), multi_output=True, y_numeric=True
        )
        if sample_weight is not None:
            sample_weight = checked_weights(sample_weight, X)
        self._one_target = y.ndim == 1
        targets = y.reshape(len(y), -1).astype(float)
        return self._fit_machine(X, y, targets, sample_weight, labels=targets)

    def predict(self, X) -> np.ndarray:
        """Predictions (n,) or (n, T) for X (n, n_features) or (n, h, w, c)."""
        return self._answers(self._evaluate(X))

    def score(self, X, y, sample_weight=None) -> float:
        """R² on X (n, n_features) or (n, h, w, c) and targets y (n,) or (n, T)."""
        return self._score(y, self.predict(X), sample_weight)

    def _answers(self, scores):
        return scores[:, 0] if self._one_target else scores

    def _score(self, y, answers, sample_weight):
        require_numbers("y", y)
        sample_weight = weights_to_score(y, len(answers), sample_weight)
        if (np.shape(y)[1:] or (1,)) != (answers.shape[1:] or (1,)):
            raise ValueError(f"y must be shaped like predictions, {answers.shape}, got shape {np.shape(y)}")
        if y is not None:
            require_finite_targets(y)
            # R² has no units, but its squares overflow or vanish in those of very large or very small targets
            y, answers = (np.asarray(of, dtype=float) for of in (y, answers))
            exponent = np.frexp(abs(y).max(axis=0))[1]
            exponent = np.where(abs(exponent) > 400, exponent, 0)
            y, answers = np.ldexp(y, -exponent), np.ldexp(answers, -exponent)
        return float(r2_score(y, answers, sample_weight=sample_weight))

    def _attack_targets(self, y, n_samples):
        require_numbers("y", y)
        if hasattr(y, "tocsr"):
            raise TypeError("y must be a dense array of targets, got a sparse matrix; write y.toarray()")
        y = np.asarray(y, dtype=float)
        if y.shape[:1] != (n_samples,) or not np.isfinite(y).all():
            raise ValueError(f"y must hold finite targets for each of the {n_samples} samples")
        return y.reshape(n_samples, -1).astype(params_dtype(self.model_.variables.params))
