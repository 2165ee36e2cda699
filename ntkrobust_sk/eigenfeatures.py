"""A kernel's eigenvectors as features: how useful and how robust each is, and what they look like.

With K = Σ_i λ_i v_i v_iᵀ on training inputs X and targets Y, kernel regression is a sum of predictors
f_i(x) = λ_i⁻¹ K(x, X) v_i v_iᵀ Y, one for each eigenvector (Tsilivis & Kempe 2022, arXiv:2210.05577).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from ._backend import to_numpy
from ._validation import array, brief, check_lengths, integer, number
from .attacks.entry import require_attack
from .attacks.tiled import attack_in_tiles
from .estimators import TangentEstimator, as_answer
from .execution.tiles import MACHINE_ROWS, evaluate, movable
from .kernels.gram_matrix import gram
from .kernels.ntk import resolve_kernel
from .kernels.predictors import make_predictor
from .machines import KernelSourceMixin
from .networks.inputs import host_inputs, params_dtype
from .networks.model import Model, Variables, check_model, require_model
from .solvers.matrices import require_symmetric
from .solvers.ridge import solve

# Eigenvalues below this share of the largest are rounding.
NEGLIGIBLE = 1e-7


@partial(jax.tree_util.register_dataclass, data_fields=["feature", "weights"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FeaturePredictor:
    """Scores from one eigenfeature: x ↦ φ(x) wᵀ.

    Attributes
    ----------
    feature : callable pytree
        From inputs (n, ...) to φ, (n, 1).
    weights : array (1, C)
    """

    feature: Callable
    weights: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores (n, C)."""
        return self.feature(x) @ self.weights


@dataclass(frozen=True)
class NTKFeatures:
    """What :func:`ntk_features` finds.

    Attributes
    ----------
    eigenvalues : array (k,)
        Largest first.
    eigenvectors : array (n, k)
    usefulness : array (k,)
        Accuracy of each feature's own predictor.
    robustness : array (k,)
        The same, on examples attacked through that predictor.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    usefulness: np.ndarray
    robustness: np.ndarray


def ntk_features(
    kernel, model: Model, X, y, X_test, y_test, attack, *, n_features: int, key, K=None, memory="2GiB"
) -> NTKFeatures:
    """Usefulness and robustness of a kernel's leading eigenfeatures.

    Parameters
    ----------
    kernel : {"trace", "pseudo"} or callable of rank 2
    model : Model
    X : array (n, ...)
    y : int array (n,), labels 0..C-1
        The predictors' targets are their indicators, less the classes' frequencies.
    X_test, y_test
        What the predictors are scored on.
    attack : callable
        Through each feature's own predictor.
    n_features : int
        The leading ones; at most as many as are not rounding.
    key : JAX PRNG key
        Of the attack.
    K : array (n, n), default=None
        The Gram matrix, if it is there.
    memory : str or int, default="2GiB"

    Returns
    -------
    NTKFeatures

    Raises
    ------
    TypeError, ValueError
        For what is no model, attack, key or array of numbers, for lengths that differ, labels that are no integers
        >= 0, and a Gram matrix that is not (n, n), symmetric and finite.

    Examples
    --------
    >>> from ntkrobust_sk import MLP, PGD, load_digits_images
    >>> X, y = load_digits_images()
    >>> network = MLP(n_outputs=10)
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> attack = PGD(0.1, n_steps=5)
    >>> found = ntk_features(
    ...     "trace", model, X[:100], y[:100], X[100:200], y[100:200], attack, n_features=3, key=jax.random.key(1)
    ... )
    >>> bool((found.robustness <= found.usefulness).all()), found.eigenvectors.shape
    (True, (100, 3))
    """
    kernel, n_features = resolve_kernel(kernel), integer("n_features", n_features, low=0)
    params, attack = require_model(model).variables.params, require_attack(attack)
    X, X_test = (host_inputs(name, x, params) for name, x in (("X", X), ("X_test", X_test)))
    y, y_test = _labels("y", y), _labels("y_test", y_test)
    check_lengths(X=X, y=y)
    check_lengths(X_test=X_test, y_test=y_test)
    K = array("K", K) if K is not None else K
    K = np.asarray(to_numpy(gram(kernel, model, X, memory=memory) if K is None else K), dtype=np.float64)
    if K.ndim != 2:
        raise ValueError(f"eigenfeatures need a kernel of rank 2, such as 'trace'; {kernel!r} has rank {K.ndim}")
    if K.shape != (len(X), len(X)):
        raise ValueError(f"K must be the Gram matrix of X, of shape {(len(X), len(X))}, got {K.shape}")
    if attack is not _no_attack:
        moved = movable(model, X_test, params_dtype(params), MACHINE_ROWS)
    targets = _indicators(y)
    eigenvalues, eigenvectors = leading_eigenpairs(K, n_features)
    usefulness, robustness = np.empty((2, len(eigenvalues)))
    for i, (value, vector) in enumerate(zip(eigenvalues, eigenvectors.T, strict=True)):
        feature = make_predictor(kernel, model, X, vector[:, None] / value, [0.0], memory=memory)
        weights = jnp.asarray((vector @ targets)[None], params_dtype(params))
        predictor = FeaturePredictor(feature, weights)
        usefulness[i] = np.mean(evaluate(predictor, X_test, MACHINE_ROWS).argmax(1) == y_test)
        if attack is _no_attack:
            robustness[i] = usefulness[i]
            continue
        X_adv = attack_in_tiles(attack, predictor, moved, y_test, key=key, rows=MACHINE_ROWS)
        robustness[i] = np.mean(evaluate(predictor, X_adv, MACHINE_ROWS).argmax(1) == y_test)
    return NTKFeatures(eigenvalues, eigenvectors, usefulness, robustness)


def leading_eigenpairs(K, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues of a Gram matrix, or as many as are not rounding, and eigenvectors (N, n)."""
    K = np.asarray(array("K", K), dtype=np.float64)
    require_symmetric(K, "K")
    eigenvalues, eigenvectors = np.linalg.eigh(K)
    if not eigenvalues[-1] > 0:
        raise ValueError(f"K must have a positive eigenvalue, but the largest is {eigenvalues[-1]:.3g}")
    n = min(n, int(np.sum(eigenvalues > NEGLIGIBLE * eigenvalues[-1])))
    return eigenvalues[::-1][:n], eigenvectors[:, ::-1][:, :n]


def _labels(name, y) -> np.ndarray:
    y = array(name, y, ndim=1)
    if y.dtype.kind not in "iu" or not y.size or y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must hold integer labels 0..C-1, got {brief(y)}")
    return y.astype(np.int32)


def _class_kernels(K_classes, y) -> tuple[np.ndarray, np.ndarray]:
    """A class kernel (n, n, C) in double precision and labels 0..C-1 (n,)."""
    K_classes, y = array("K_classes", K_classes, ndim=3, finite=True).astype(np.float64), _labels("y", y)
    n, m, n_classes = K_classes.shape
    if n != m or not K_classes.size:
        raise ValueError(f"K_classes must have shape (n, n, C), got {K_classes.shape}")
    check_lengths(K_classes=K_classes, y=y)
    if y.max() >= n_classes:
        raise ValueError(f"y must hold labels 0..{n_classes - 1}, one for each kernel, got {y.max()}")
    return K_classes, y


def _indicators(y) -> np.ndarray:
    indicators = np.eye(int(y.max()) + 1)[y]
    return indicators - indicators.mean(0)


class RobustFeatureSelector(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, KernelSourceMixin, TangentEstimator
):
    """Coordinates on those eigenvectors of a tangent kernel that stay useful under attack.

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
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    usefulness_, robustness_, eigenvalues_ : array (n_candidates,)
        Scores on the training set itself.
    support_ : int array (n_features,)
        The chosen ones among the candidates, best first.
    features_ : callable pytree
        From inputs (n, *input_shape_) to φ: attack a linear model on it through this.
    model_ : Model
    X_fit_ : array (n, *input_shape_)
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

    _parameter_constraints = {
        **{k: v for k, v in TangentEstimator._shared_constraints.items() if k != "verbose"},
        "estimator": "no_validation",
        "kernel": [StrOptions({"trace", "pseudo"})],
        "attack": [callable, None],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_candidates": [Interval(Integral, 1, None, closed="left")],
        "criterion": [StrOptions({"robustness", "usefulness", "eigenvalue"})],
        "memory": [str, Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        kernel="trace",
        attack=None,
        n_features=10,
        n_candidates=30,
        criterion="robustness",
        input_shape=None,
        memory="2GiB",
        random_state=None,
    ):
        self.estimator = estimator
        self.kernel = kernel
        self.attack = attack
        self.n_features = n_features
        self.n_candidates = n_candidates
        self.criterion = criterion
        self.input_shape = input_shape
        self.memory = memory
        self.random_state = random_state

    def fit(self, X, y):
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
        K = np.asarray(gram(self.kernel, self.model_, self.X_fit_, memory=self.memory), np.float64)
        if self.criterion == "eigenvalue":
            self.eigenvalues_, vectors = leading_eigenpairs(K, self.n_candidates)
            order = np.arange(len(self.eigenvalues_))
        else:
            attack = self.attack if self.criterion == "robustness" else _no_attack
            found = ntk_features(
                self.kernel,
                self.model_,
                *(self.X_fit_, encoded) * 2,
                attack,
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

    def transform(self, X):
        """Features (n, n_features) of X (n, n_features_in) or (n, h, w, c)."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        return as_answer(evaluate(self.features_, X, MACHINE_ROWS), X, "features")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _no_attack(model, x, y, *, key):
    return x


@dataclass(frozen=True)
class EigenfeatureImages:
    """What :func:`eigenfeature_images` draws.

    Attributes
    ----------
    images : array (C, *input_shape)
    cosines : array (C,)
        cos(∇f_c(x), v_c) at the end.
    """

    images: np.ndarray
    cosines: np.ndarray


def eigenfeature_images(
    model: Model, X, coefficients, *, n_steps: int = 100, step_size: float = 0.02, bounds=(0.0, 1.0)
) -> EigenfeatureImages:
    """For each output c the image whose gradient points most along v_c = Σ_i u_ic ∇f_c(x_i).

    cos(∇f_c(x), v_c) is raised by signed-gradient steps from grey, the middle of the bounds, and the best image
    on the way is kept.

    Parameters
    ----------
    model : Model
    X : array (n, ...)
    coefficients : array (n, C)
        Column c: an eigenvector of the class kernel K_c, or :func:`regression_coefficients`.
    n_steps : int, default=100
    step_size : float, default=0.02
        Of a signed-gradient step, in units of the data.
    bounds : (low, high), default=(0.0, 1.0)

    Returns
    -------
    EigenfeatureImages

    Raises
    ------
    TypeError
        For what is no model or no array of numbers.
    ValueError
        For coefficients that are not (n, C), or all zero for an output, and numbers out of their ranges.

    References
    ----------
    Loo et al. 2022, arXiv:2210.12030, visualised kernels.
    """
    params = require_model(model).variables.params
    X, dtype = host_inputs("X", X, params), params_dtype(params)
    coefficients = array("coefficients", coefficients, ndim=2, finite=True)
    check_lengths(X=X, coefficients=coefficients)
    n_outputs = check_model(model, X.shape[1:], X.dtype)
    if coefficients.shape[1] != n_outputs:
        raise ValueError(
            f"coefficients must have a column for each of {n_outputs} outputs, got shape {coefficients.shape}"
        )
    n_steps, step_size = integer("n_steps", n_steps), number("step_size", step_size, above=0)
    low, high = _plain_range(bounds)
    coefficients = jnp.asarray(coefficients, dtype)
    images, cosines = [], []
    for c in range(coefficients.shape[1]):
        direction = _combined_gradient(model, X, coefficients[:, c], c)
        if not any(leaf.any() for leaf in jax.tree.leaves(direction)):
            raise ValueError(f"coefficients of output {c} point nowhere: their sum of gradients is zero")
        x = jnp.full((1, *X.shape[1:]), (low + high) / 2, dtype)
        best, highest = x, jnp.asarray(-jnp.inf, dtype)
        for _ in range(n_steps):
            x, best, highest = _ascend(model, direction, c, x, best, highest, step_size, low, high)
        images.append(np.asarray(best[0]))
        cosines.append(float(highest))
    return EigenfeatureImages(np.stack(images), np.array(cosines))


def _plain_range(bounds) -> tuple[float, float]:
    """Low and high of images, both finite."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be (low, high), got {brief(bounds)}")
    low = number("low of bounds", bounds[0])
    return low, number("high of bounds", bounds[1], above=low)


def regression_coefficients(K_classes, y, *, alpha: float = 1e-2) -> np.ndarray:
    """K_c⁻¹ y_c for every class: ridge regression on ±1 by each class kernel, (n, C) of (n, n, C).

    ``alpha`` is relative to each kernel's mean diagonal.
    """
    K_classes, y = _class_kernels(K_classes, y)
    columns = [
        solve(K_classes[:, :, c], np.where(y == c, 1.0, -1.0)[:, None], alpha=alpha)[:, 0]
        for c in range(K_classes.shape[2])
    ]
    return np.stack(columns, axis=1)


def class_eigenvectors(K_classes, y, index: int = 0) -> np.ndarray:
    """Eigenvector number ``index`` of each class kernel, (n, C), signed to favour the kernel's own class."""
    (K_classes, y), columns = _class_kernels(K_classes, y), []
    index = integer("index", index, low=0, high=len(y) - 1)
    for c in range(K_classes.shape[2]):
        require_symmetric(K_classes[:, :, c], f"K_classes[:, :, {c}]")
        _, vectors = np.linalg.eigh(K_classes[:, :, c])
        vector = vectors[:, -1 - index]
        own, others = (vector[rows].mean() if rows.any() else 0.0 for rows in (y == c, y != c))
        columns.append(vector if own >= others else -vector)
    return np.stack(columns, axis=1)


def _logit(model, params, x, c):
    return Model(model.network, Variables(params, model.variables.state))(x)[:, c]


def _combined_gradient(model, X, coefficients, c, rows: int = 64):
    """Σ_i u_i ∇f_c(x_i), a pytree like the parameters."""
    total = None
    for start in range(0, len(X), rows):
        missing = max(0, start + rows - len(X))
        x = np.concatenate([X[start : start + rows], np.repeat(X[:1], missing, axis=0)])
        u = jnp.concatenate([coefficients[start : start + rows], jnp.zeros(missing, coefficients.dtype)])
        part = _weighted_gradient(model, x, u, c)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


@jax.jit
def _weighted_gradient(model, x, weights, c):
    return jax.grad(lambda params: weights @ _logit(model, params, x, c))(model.variables.params)


@jax.jit
def _ascend(model, direction, c, x, best, highest, step_size, low, high):
    value, gradient = jax.value_and_grad(lambda z: _cosine(model, direction, c, z))(x)
    best = jnp.where(value > highest, x, best)
    highest = jnp.maximum(value, highest)
    return jnp.clip(x + step_size * jnp.sign(gradient), low, high), best, highest


def _cosine(model, direction, c, x):
    gradient = jax.grad(lambda params: _logit(model, params, x, c)[0])(model.variables.params)
    along = _inner(gradient, direction)
    squares = _inner(gradient, gradient) * _inner(direction, direction)
    # where the gradient is zero it points nowhere, and its own derivative shall be no NaN
    return jnp.where(squares > 0, along / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _inner(a, b):
    return sum(jnp.vdot(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
