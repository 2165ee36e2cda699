"""scikit-learn estimators: networks trained adversarially, and regression on their tangent kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    MultiOutputMixin,
    RegressorMixin,
    TransformerMixin,
    clone,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)
from tqdm.auto import tqdm

from ._backend import to_numpy
from .attacks import Clean, attack_in_tiles, check_bounds
from .gram import gram, pad_rows, parse_memory, plan_tiles
from .kernels import resolve_kernel
from .networks import CNN, MLP, Model, check_choice, check_model, n_params, params_dtype
from .predictors import make_predictor
from .resnet import ResNet18
from .solvers import resolve_solver, solve
from .tangent import linearize
from .training import TrainingDivergedError, TrainState, initial_state, train

NETWORKS = {"mlp": MLP(), "cnn": CNN(), "resnet18": ResNet18()}
DYNAMICS = ("standard", "linearized", "centered")
# Rows evaluated or attacked at once by a network; fixed, so that no answer depends on the other rows.
NETWORK_ROWS = 128
# One optimiser for all estimators: learning rate and momentum are data, so other values do not recompile.
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)


class _TangentEstimator(BaseEstimator):
    """What all estimators share: inputs as flat rows or as images, and a seed."""

    _number_constraints = {
        "input_shape": ["array-like", None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _validated(self, X, y="no_validation", *, reset, known_shape=None, **options):
        """X as (n, *input_shape_) and y, checked by scikit-learn; images come flattened to its checks."""
        X, image_shape = _as_rows(X)
        checked = validate_data(self, X, y, reset=reset, dtype=[np.float64, np.float32], **options)
        X, y = checked if isinstance(checked, tuple) else (checked, None)
        if reset:
            self.input_shape_ = _input_shape(self.input_shape, image_shape, known_shape, X.shape[1])
        elif image_shape is not None and image_shape != self.input_shape_:
            raise ValueError(
                f"{type(self).__name__} was fitted on inputs of shape {self.input_shape_}, got images of shape "
                f"{image_shape}"
            )
        return X.reshape(-1, *self.input_shape_), y

    def _key(self) -> jax.Array:
        return _key_of(self.random_state)

    def _evaluate(self, X) -> np.ndarray:
        """Scores (n, T) of raw inputs."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        return evaluate(self._predictor(), X, self._rows())


class _AttackedMixin:
    """Adversarial examples and the score on them, for estimators whose predictor is a model."""

    def perturb(self, X, y, attack=None, *, random_state=0):
        """Adversarial examples against this very estimator.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
            Inputs, in the units in which the attack's epsilon and bounds are given.
        y : array (n,)
            True labels (or targets), of those seen in ``fit``.
        attack : callable, default=None
            ``attack(model, x, y, key=key)``, such as :class:`~ntkrobust_sk.PGD`; None is the one that the
            estimator was trained with.
        random_state : int, RandomState or None, default=0

        Returns
        -------
        array shaped like X
        """
        check_is_fitted(self)
        attack = self.attack if attack is None else attack
        if not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"an attack is needed, such as attack=PGD(epsilon=8/255), got {attack!r}; the estimator was "
                f"fitted with attack={self.attack!r}"
            )
        shape = np.shape(X)
        X, _ = self._validated(X, reset=False)
        X = X.astype(params_dtype(self.model_.variables.params), copy=False)
        targets = self._attack_targets(y, len(X))
        X_adv = attack_in_tiles(
            attack, self._predictor(), X, targets, key=_key_of(random_state), rows=self._rows()
        )
        return X_adv.reshape(shape)

    def robust_score(self, X, y, attack=None, *, sample_weight=None, random_state=0) -> float:
        """The estimator's score on adversarial examples: robust accuracy, or R² of a regressor.

        All inputs are attacked, also those that are answered wrongly as they are.

        Parameters
        ----------
        X, y, attack, random_state
            As for :meth:`perturb`.
        sample_weight : array (n,), default=None

        Returns
        -------
        float
        """
        X_adv = self.perturb(X, y, attack, random_state=random_state)
        return self.score(X_adv, y, sample_weight=sample_weight)


class _ClassifierMixin(_AttackedMixin, ClassifierMixin):
    """Labels, probabilities and the encoding of classes."""

    def _validated_labels(self, X, y, sample_weight, known_shape=None):
        X, y = self._validated(X, y, reset=True, known_shape=known_shape)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes, but y holds one class only: "
                f"{self.classes_[0]!r}"
            )
        if sample_weight is not None or self.class_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X.reshape(len(X), -1), ensure_non_negative=True
            )
            sample_weight = sample_weight * compute_sample_weight(self.class_weight, y)
        return X, encoded.astype(np.int32), sample_weight

    def _attack_targets(self, y, n_samples):
        y = np.asarray(y)
        if y.shape != (n_samples,):
            raise ValueError(
                f"y must hold one label for each of the {n_samples} samples, got shape {y.shape}"
            )
        unseen = np.setdiff1d(y, self.classes_)
        if len(unseen):
            raise ValueError(f"y contains labels that were not seen in fit: {unseen[:5].tolist()}")
        return np.searchsorted(self.classes_, y).astype(np.int32)

    def decision_function(self, X) -> np.ndarray:
        """Logits or scores of each class.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)

        Returns
        -------
        array (n, C), or (n,) for two classes: the second's score minus the first's
        """
        scores = self._evaluate(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X) -> np.ndarray:
        """Softmax of the scores, (n, C), columns in the order of ``classes_``.

        Probabilities of a network trained by cross-entropy. Scores of kernel *regression* estimate the
        classes' indicators, so their softmax ranks classes but is not calibrated: wrap the estimator in
        :class:`sklearn.calibration.CalibratedClassifierCV` where that matters.
        """
        return np.asarray(jax.nn.softmax(self._evaluate(X), axis=1))

    def predict(self, X) -> np.ndarray:
        """Labels (n,) of the highest scores."""
        return self.classes_[self._evaluate(X).argmax(1)]

    def score(self, X, y, sample_weight=None) -> float:
        """Accuracy on X (n, n_features) or (n, h, w, c) and labels y (n,)."""
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))


class AdversarialKernelTrainer(_ClassifierMixin, _TangentEstimator):
    """A neural network trained benignly or adversarially: stage 1, where the kernel is learned.

    Parameters
    ----------
    network : {"mlp", "cnn", "resnet18"}, Network or Model, default=None
        What to train. None is "cnn" for images and "mlp" otherwise; a network without ``n_outputs`` gets the
        number of classes; a Model is where training starts from.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold, flattened in this order. None takes it from X.
    attack : callable, default=None
        Attack in training, such as ``PGD(4 / 255)``. None is benign training.
    clean_step : bool, default=True
        Before each adversarial update make a clean one on the same batch, as the paper's code does. False is
        the adversarial training of Madry et al. 2018 (arXiv:1706.06083).
    dynamics : {"standard", "linearized", "centered"}, default="standard"
        Train the network, or its linearisation around where it starts, with or without the logits there.
    max_epochs : int, default=20
    batch_size : int, default=128
    learning_rate : float, default=0.05
        The paper's ResNet-18 takes 0.1, and 0.01 on a frozen kernel.
    momentum : float, default=0.9
    class_weight : dict, "balanced" or None, default=None
    random_state : int, RandomState or None, default=None
        Seed of initial weights, data order and attack noise.
    verbose : int, default=0
        1 shows a progress bar over epochs.

    Attributes
    ----------
    classes_ : array (C,)
    model_ : Model
        The trained network; ``model_(x)`` are its logits.
    loss_curve_ : list of float
        Loss of the last update of each epoch.
    input_shape_ : tuple of int
    n_features_in_ : int
    n_iter_ : int
        Epochs trained.

    Raises
    ------
    TrainingDivergedError
        When loss or update become non-finite; ``model_`` is then the last finite model.

    References
    ----------
    Loo et al. 2022, *Evolution of Neural Tangent Kernels under Benign and Adversarial Training*,
    arXiv:2210.12030.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import PGD, AdversarialKernelTrainer
    >>> X, y = load_iris(return_X_y=True)
    >>> attack = PGD(epsilon=0.3, n_steps=5, bounds=None)
    >>> trainer = AdversarialKernelTrainer(attack=attack, random_state=0).fit(X, y)
    >>> trainer.gram(X[:10]).shape
    (10, 10)
    """

    _parameter_constraints = {
        **_TangentEstimator._number_constraints,
        "network": "no_validation",
        "attack": [callable, None],
        "clean_step": ["boolean"],
        "dynamics": [StrOptions(set(DYNAMICS))],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        network=None,
        *,
        input_shape=None,
        attack=None,
        clean_step=True,
        dynamics="standard",
        max_epochs=20,
        batch_size=128,
        learning_rate=0.05,
        momentum=0.9,
        class_weight=None,
        random_state=None,
        verbose=0,
    ):
        self.network = network
        self.input_shape = input_shape
        self.attack = attack
        self.clean_step = clean_step
        self.dynamics = dynamics
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Train on inputs and labels.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        y : array (n,) of labels of any type
        sample_weight : array (n,), default=None

        Returns
        -------
        self
        """
        self._validate_params()
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight)
        key_init, key_train = jax.random.split(self._key())
        model = initial_model(self.network, self.input_shape_, len(self.classes_), key_init)
        if self.dynamics != "standard":
            model = linearize(model, centered=self.dynamics == "centered")
        _fit_by_sgd(self, model, X, encoded, sample_weight, key_train)
        return self

    def gram(self, X, Y=None, *, kernel="trace", memory="2GiB"):
        """Empirical NTK of the trained network.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        Y : array (m, n_features) or (m, h, w, c), default=None
            Columns' inputs; None means X.
        kernel : {"trace", "class", "full", "pseudo"} or callable, default="trace"
        memory : str or int, default="2GiB"

        Returns
        -------
        NumPy array (n, m), (n, m, C) or (n, m, C, C)
        """
        return _estimator_gram(self, kernel, X, Y, memory)

    def _predictor(self):
        return self.model_

    def _rows(self):
        return NETWORK_ROWS


class _KernelMachine(_TangentEstimator):
    """Source of the kernel, closed-form and gradient-based fits, shared by classifier and regressor."""

    _machine_constraints = {
        **_TangentEstimator._number_constraints,
        "estimator": "no_validation",
        "kernel": "no_validation",
        "alpha": [Interval(Real, 0, None, closed="left")],
        "solver": "no_validation",
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
        """Fit on targets (n, T); ``labels`` are what a training loss takes: classes, or the targets."""
        kernel = resolve_kernel(self.kernel)
        if self.solver != "sgd":
            resolve_solver(self.solver)
        key_model, key_train = jax.random.split(self._key())
        model = _source_model(self, X, y, targets.shape[1], sample_weight, key_model)
        self.model_ = model
        if self.solver == "sgd":
            self._require_matching_outputs(model, targets.shape[1], "solver='sgd'")
            _fit_by_sgd(
                self,
                linearize(model, centered=self.dynamics == "centered"),
                X,
                labels,
                sample_weight,
                key_train,
            )
            self.predictor_, self.model_ = self.model_, model
            return self
        if getattr(kernel, "rank", 2) > 2:
            self._require_matching_outputs(model, targets.shape[1], f"kernel={self.kernel!r}")
        self.X_fit_ = X.astype(params_dtype(model.variables.params))
        K = gram(kernel, model, self.X_fit_, memory=self.memory, progress=self.verbose > 0)
        offset = np.average(targets, axis=0, weights=sample_weight)
        dual = solve(K, targets - offset, alpha=self.alpha, solver=self.solver, sample_weight=sample_weight)
        self.dual_coef_, self.intercept_ = to_numpy(dual), offset
        self.predictor_ = make_predictor(
            kernel, model, self.X_fit_, self.dual_coef_, offset, memory=self.memory
        )
        return self

    def _require_matching_outputs(self, model, n_targets, what):
        n_outputs = check_model(model, self.input_shape_)
        if n_outputs != n_targets:
            raise ValueError(
                f"{what} needs one network output for each class or target, but the network has {n_outputs} "
                f"and y has {n_targets}; use kernel='trace' or 'pseudo', or a network with n_outputs={n_targets}"
            )

    def _source_shape(self):
        """Input shape of the estimator that the kernel comes from, where it has one."""
        for name in ("input_shape_", "input_shape"):
            shape = getattr(self.estimator, name, None)
            if shape is not None:
                return tuple(shape)
        return None

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
        return _estimator_gram(self, self.kernel, X, Y, self.memory)

    def _predictor(self):
        return self.predictor_

    def _rows(self):
        if self.solver == "sgd":
            return NETWORK_ROWS
        return plan_tiles(
            resolve_kernel(self.kernel), self.model_, self.input_shape_, parse_memory(self.memory)
        )[0]


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
class EmpiricalNTKClassifier(_ClassifierMixin, _KernelMachine):
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
class EmpiricalNTKRegressor(_AttackedMixin, RegressorMixin, MultiOutputMixin, _KernelMachine):
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
            sample_weight = _check_sample_weight(
                sample_weight, X.reshape(len(X), -1), ensure_non_negative=True
            )
        self._one_target = y.ndim == 1
        targets = y.reshape(len(y), -1).astype(float)
        return self._fit_machine(X, y, targets, sample_weight, labels=targets)

    def predict(self, X) -> np.ndarray:
        """Predictions (n,) or (n, T) for X (n, n_features) or (n, h, w, c)."""
        scores = self._evaluate(X)
        return scores[:, 0] if self._one_target else scores

    def score(self, X, y, sample_weight=None) -> float:
        """R² on X (n, n_features) or (n, h, w, c) and targets y (n,) or (n, T)."""
        return float(r2_score(y, self.predict(X), sample_weight=sample_weight))

    def _attack_targets(self, y, n_samples):
        y = np.asarray(y, dtype=float)
        if len(y) != n_samples or not np.isfinite(y).all():
            raise ValueError(f"y must hold finite targets for each of the {n_samples} samples")
        return y.reshape(n_samples, -1).astype(params_dtype(self.model_.variables.params))


class TangentFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _TangentEstimator):
    """A network's tangent features: rows whose inner products are the empirical NTK.

    Any linear model on them is a kernel machine on the network's tangent kernel.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from, as for :class:`EmpiricalNTKClassifier`. A network without ``n_outputs``
        gets one output.
    kernel : {"pseudo", "trace"}, default="pseudo"
        "pseudo": P features, ∇g(x) with g = (1/√C) Σ_c f_c. "trace": C·P features, ∇f_c(x) / √C.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    memory : str or int, default="2GiB"
        Budget: a result that is larger is refused.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    model_ : Model
    input_shape_ : tuple of int
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import TangentFeatures, gram
    >>> X, _ = load_iris(return_X_y=True)
    >>> features = TangentFeatures(random_state=0).fit(X)
    >>> Z = features.transform(X)
    >>> bool(np.allclose(Z @ Z.T, gram("pseudo", features.model_, X), rtol=1e-4))
    True
    """

    _parameter_constraints = {
        **{k: v for k, v in _TangentEstimator._number_constraints.items() if k != "verbose"},
        "estimator": "no_validation",
        "kernel": [StrOptions({"pseudo", "trace"})],
        "memory": [str, Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self, estimator=None, *, kernel="pseudo", input_shape=None, memory="2GiB", random_state=None
    ):
        self.estimator = estimator
        self.kernel = kernel
        self.input_shape = input_shape
        self.memory = memory
        self.random_state = random_state

    _source_shape = _KernelMachine._source_shape

    def fit(self, X, y=None):
        """Learn the input shape, and the network where ``estimator`` has to be fitted (then y is needed)."""
        self._validate_params()
        X, _ = self._validated(X, reset=True, known_shape=self._source_shape())
        self.model_ = _source_model(self, X, y, 1, None, self._key())
        n_outputs = check_model(self.model_, self.input_shape_)
        copies = n_outputs if self.kernel == "trace" else 1
        self._n_features_out = copies * n_params(self.model_.variables.params)
        return self

    def transform(self, X):
        """Features (n, P) or (n, C·P) of X (n, n_features) or (n, h, w, c)."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        dtype = params_dtype(self.model_.variables.params)
        size, budget = len(X) * self._n_features_out * dtype.itemsize, parse_memory(self.memory)
        if size > budget:
            raise MemoryError(
                f"{len(X)} rows of {self._n_features_out:,} tangent features take {size / 2**30:.2f} GiB, more "
                f"than memory={self.memory!r}; transform fewer rows at once, use kernel='pseudo', or raise it"
            )
        kernel = resolve_kernel(self.kernel)
        rows, _ = plan_tiles(kernel, self.model_, self.input_shape_, budget)
        return evaluate(partial(_feature_rows, kernel, self.model_), X.astype(dtype), rows)


@partial(jax.jit, static_argnums=0)
def _feature_rows(kernel, model, x):
    leaves = kernel.features(model, x)
    scale = 1.0 if leaves[0].ndim == 2 else 1.0 / math.sqrt(leaves[0].shape[1])
    return scale * jnp.concatenate([leaf.reshape(len(x), -1) for leaf in leaves], axis=1)


def evaluate(model, X: np.ndarray, rows: int) -> np.ndarray:
    """Scores (n, T) of a model over X (n, ...), in tiles of exactly ``rows`` rows."""
    model = model if jax.tree.structure(model) != jax.tree.structure(0) else jax.tree_util.Partial(model)
    tiles = [X[start : start + rows] for start in range(0, len(X), rows)]
    return np.concatenate([np.asarray(_call(model, pad_rows(tile, rows)))[: len(tile)] for tile in tiles])


@jax.jit
def _call(model, x):
    return model(x)


def initial_model(network, input_shape, n_outputs: int, key) -> Model:
    """A model for the data: a Model as it is, a network (or its name) initialised with the right outputs."""
    if network is None:
        network = "cnn" if len(input_shape) == 3 else "mlp"
    if isinstance(network, str):
        check_choice("network", network, NETWORKS)
        network = NETWORKS[network]
    if not isinstance(network, Model):
        if getattr(network, "n_outputs", n_outputs) is None:
            network = replace(network, n_outputs=n_outputs)
        network = Model(network, _init(network, key, tuple(input_shape)))
    check_model(network, input_shape)
    return network


@partial(jax.jit, static_argnums=(0, 2))
def _init(network, key, input_shape):
    return network.init(key, input_shape)


def _source_model(self, X, y, n_outputs, sample_weight, key) -> Model:
    """The model whose tangent kernel the estimator takes, by what ``estimator`` is."""
    source = self.estimator
    if not hasattr(source, "fit"):
        return initial_model(source, self.input_shape_, n_outputs, key)
    if y is None:
        raise ValueError(f"fit needs y, because {source!r} has to be trained on labels")
    fit_params = {}
    if sample_weight is not None and has_fit_parameter(source, "sample_weight"):
        fit_params["sample_weight"] = sample_weight
    self.estimator_ = clone(source).fit(X, y, **fit_params)
    model = getattr(self.estimator_, "model_", None)
    if not isinstance(model, Model):
        raise ValueError(
            f"estimator must leave a Model in `model_` when fitted, as AdversarialKernelTrainer does; "
            f"{source!r} does not"
        )
    return model


def _fit_by_sgd(self, model, X, y, sample_weight, key):
    """Train ``model`` by the estimator's parameters; sets ``model_``, ``loss_curve_`` and ``n_iter_``."""
    if self.attack is not None:
        check_bounds(self.attack, X)
    attacks = (Clean(),) if self.attack is None else (Clean(), self.attack)
    attacks = attacks if self.clean_step or self.attack is None else (self.attack,)
    state = with_hyperparameters(
        initial_state(model, key, SGD), learning_rate=self.learning_rate, momentum=self.momentum
    )
    states = train(
        state,
        X,
        y,
        optimizer=SGD,
        attacks=attacks,
        epochs=self.max_epochs,
        batch_size=self.batch_size,
        sample_weight=sample_weight,
    )
    self.loss_curve_ = []
    description = f"{type(self).__name__} ({'benign' if self.attack is None else type(self.attack).__name__})"
    bar = tqdm(states, description, self.max_epochs, disable=not self.verbose, unit="epoch", leave=False)
    try:
        for state in bar:
            self.loss_curve_.append(float(state.loss))
            bar.set_postfix(loss=f"{self.loss_curve_[-1]:.4f}", refresh=False)
    except TrainingDivergedError as error:
        self.model_ = error.state.model
        raise
    self.model_, self.n_iter_ = state.model, self.max_epochs


def with_hyperparameters(state: TrainState, **values) -> TrainState:
    """The state with other values of the optimiser's injected hyperparameters."""
    dtype = params_dtype(state.model.variables.params)
    values = {name: jnp.asarray(value, dtype) for name, value in values.items()}
    opt_state = state.opt_state._replace(hyperparams={**state.opt_state.hyperparams, **values})
    return replace(state, opt_state=opt_state)


def _estimator_gram(self, kernel, X, Y, memory) -> np.ndarray:
    check_is_fitted(self)
    X, _ = self._validated(X, reset=False)
    Y = None if Y is None else self._validated(Y, reset=False)[0]
    return np.asarray(gram(kernel, self.model_, X, Y, memory=memory))


def _key_of(random_state) -> jax.Array:
    return jax.random.key(int(check_random_state(random_state).randint(np.iinfo(np.int32).max)))


def _as_rows(X):
    """Flat rows, and the shape of the images that they were, or None."""
    if isinstance(X, np.ndarray | jax.Array) and X.ndim > 2:
        X = np.asarray(X)
        return X.reshape(len(X), -1), X.shape[1:]
    return X, None


def _input_shape(given, image_shape, known_shape, n_features) -> tuple[int, ...]:
    """The shape of one input, from the parameter, the images, the source of the kernel or the row length."""
    shape = tuple(int(size) for size in given) if given is not None else image_shape or known_shape
    if shape is None:
        return (n_features,)
    if math.prod(shape) != n_features or min(shape) < 1:
        raise ValueError(
            f"input_shape={shape} stands for {math.prod(shape)} features, but X has {n_features} for each sample"
        )
    if given is not None and image_shape is not None and shape != image_shape:
        raise ValueError(f"input_shape={shape}, but X holds images of shape {image_shape}")
    return shape
