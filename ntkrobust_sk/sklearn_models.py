"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores.

Each adapter reads an estimator's fitted attributes and writes down, in JAX, what its ``decision_function``,
``predict_proba`` or ``predict`` computes. Pipelines and the like are compositions of such functions, so that an
attack acts on the *inputs* of a pipeline, in their units.

A model is a ``Partial`` of a function of this module, and whatever was fitted is among its leaves: so the models
of two estimators of one kind are trees of one structure, and what was compiled for one serves the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted

from .loops import Shaped, as_pytree


def as_model(estimator, *, kernel=None, X_fit=None):
    """The scores of a fitted estimator as a differentiable function of its input.

    Parameters
    ----------
    estimator : fitted estimator
        A linear model, a support vector machine, kernel ridge, a Gaussian process, a multi-layer perceptron;
        scalers, PCA, kernel PCA, kernel approximations, polynomial features, feature selection; a Pipeline,
        ColumnTransformer or FeatureUnion of those; a search over them; or one of this library.
    kernel : callable, default=None
        ``kernel(x, z) -> (n, m)`` in JAX, for a kernel machine whose own kernel is a callable or precomputed.
    X_fit : array (m, d), default=None
        Training inputs, for a kernel machine that was fitted on a precomputed matrix.

    Returns
    -------
    callable pytree
        From inputs (n, d) to scores (n, C) in the order of ``classes_``, or predictions (n, T) of a regressor, or
        features of a transformer. Scores of two classes are 0 and the decision function. Those of a Gaussian
        process classifier are log probabilities. A multi-class support vector machine gives the one-vs-rest
        decision function. In x64 they agree with scikit-learn's to rounding.

    Raises
    ------
    TypeError
        If there is no adapter for the estimator (or for a step of it), or a kernel is needed.
    NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import as_model
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), SVC()).fit(X, y)
    >>> model = as_model(pipeline)
    >>> bool(abs(model(X) - pipeline.decision_function(X)).max() < 1e-4)
    True
    """
    check_is_fitted(estimator)
    if hasattr(estimator, "_predictor") and hasattr(estimator, "input_shape_"):
        return Partial(Shaped(tuple(estimator.input_shape_)), estimator._predictor())
    name = type(estimator).__name__
    adapter = ADAPTERS.get(name) if type(estimator).__module__.startswith("sklearn.") else None
    if adapter is None:
        raise TypeError(
            f"there is no differentiable form of {type(estimator).__module__}.{name}; the black-box attack "
            "Square works on whatever gives scores"
        )
    return adapter(estimator, kernel, X_fit) if adapter in NEED_KERNEL else adapter(estimator)


# Scores


def _of_two_classes(decision):
    """Scores (n, 2) of a decision function (n,) that is positive for the second class."""
    return jnp.stack([jnp.zeros_like(decision), decision], axis=1)


def _affine(weights, offset, x):
    return x @ weights + offset


def _binary_affine(weights, offset, x):
    return _of_two_classes((x @ weights + offset)[:, 0])


def _linear(estimator):
    weights, offset = np.atleast_2d(estimator.coef_).T, np.atleast_1d(estimator.intercept_)
    return Partial(_binary_affine if _is_binary(estimator, weights.shape[1]) else _affine, weights, offset)


def _is_binary(estimator, n_scores):
    return hasattr(estimator, "classes_") and n_scores == 1


ACTIVATIONS = {
    "identity": lambda h: h,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": lambda h: jnp.maximum(h, 0),
}


def _perceptron(estimator):
    if estimator.out_activation_ not in ("identity", "logistic", "softmax"):
        raise TypeError(f"MLP with the output activation {estimator.out_activation_!r} has no differentiable form")
    binary = _is_binary(estimator, estimator.n_outputs_)
    hidden = _Hidden(estimator.activation)
    parts = [Partial(_affine, *layer) for layer in zip(estimator.coefs_, estimator.intercepts_, strict=True)]
    for at in reversed(range(1, len(parts))):
        parts.insert(at, Partial(hidden))
    return Partial(_chained, [*parts, Partial(_first_of_two)] if binary else parts)


@dataclass(frozen=True)
class _Hidden:
    """An activation, by name."""

    name: str

    def __call__(self, h):
        return ACTIVATIONS[self.name](h)


def _first_of_two(x):
    return _of_two_classes(x[:, 0])


# Kernel machines


def _linear_kernel(gamma, coef0, degree, x, z):
    return x @ z.T


def _poly_kernel(gamma, coef0, degree, x, z):
    return (gamma * (x @ z.T) + coef0) ** degree


def _sigmoid_kernel(gamma, coef0, degree, x, z):
    return jnp.tanh(gamma * (x @ z.T) + coef0)


def _rbf_kernel(gamma, coef0, degree, x, z):
    return jnp.exp(-gamma * expanded_distances(x, z))


def _laplacian_kernel(gamma, coef0, degree, x, z):
    return jnp.exp(-gamma * jnp.abs(x[:, None] - z).sum(2))


def _cosine_kernel(gamma, coef0, degree, x, z):
    return _unit(x) @ _unit(z).T


# scikit-learn's, between x (n, d) and z (m, d)
KERNELS = {
    "cosine": _cosine_kernel,
    "laplacian": _laplacian_kernel,
    "linear": _linear_kernel,
    "poly": _poly_kernel,
    "polynomial": _poly_kernel,
    "rbf": _rbf_kernel,
    "sigmoid": _sigmoid_kernel,
}


def squared_distances(x, z):
    """(n, m), of rows x (n, d) and z (m, d), by differences: exact where they are close."""
    return jnp.sum((x[:, None] - z) ** 2, axis=2)


def expanded_distances(x, z):
    """The same as |x|² + |z|² − 2⟨x, z⟩ from the rows' centre: one product, for what is smooth where they meet."""
    centre = z.mean(0)
    x, z = x - centre, z - centre
    return jnp.sum(x**2, axis=1)[:, None] + jnp.sum(z**2, axis=1) - 2 * x @ z.T


def _unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _kernel_of(estimator, given, gamma):
    """``kernel(x, z)`` of a machine, a pytree."""
    own = estimator.kernel
    if given is not None:
        return as_pytree(given)
    if callable(own) or own == "precomputed":
        raise TypeError(
            f"{type(estimator).__name__} has a {'callable' if callable(own) else 'precomputed'} kernel, which has "
            "no gradient: give as_model(..., kernel=k) with k(x, z) -> (n, m) in JAX"
        )
    if own not in KERNELS:
        raise TypeError(f"the kernel {own!r} has no differentiable form here; give kernel=..., in JAX")
    parameters = {"coef0": estimator.coef0, "degree": estimator.degree, "gamma": gamma}
    if "kernel_params" in estimator.get_params(deep=False) and estimator.kernel_params:
        parameters |= estimator.kernel_params
    defaults = {"gamma": 1 / estimator.n_features_in_, "coef0": 1.0, "degree": 3.0}
    numbers = [default if parameters[name] is None else parameters[name] for name, default in defaults.items()]
    return Partial(KERNELS[own], *map(float, numbers))


def _training_inputs(estimator, kept, X_fit, index=slice(None)):
    if estimator.kernel != "precomputed":
        return np.asarray(kept, np.float64)
    if X_fit is None:
        raise TypeError(
            f"{type(estimator).__name__} was fitted on a precomputed kernel matrix: give as_model(..., X_fit=X) "
            "with the training inputs"
        )
    return np.asarray(X_fit, np.float64)[index]


def _support_vectors(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, getattr(estimator, "_gamma", None))
    # with a callable kernel, scikit-learn keeps all training inputs and none as support vectors
    kept = estimator._BaseLibSVM__Xfit[estimator.support_] if callable(estimator.kernel) else None
    kept = estimator.support_vectors_ if kept is None else kept
    z = _training_inputs(estimator, kept, X_fit, estimator.support_)
    dual, offset = np.asarray(estimator.dual_coef_), estimator.intercept_
    if not hasattr(estimator, "classes_"):
        return Partial(_expansion, k, z, dual.T, offset)
    if len(estimator.classes_) == 2:
        return Partial(_binary_expansion, k, z, dual.T, offset)
    # one classifier for each pair of classes: what it takes from each class's support vectors
    ends = np.cumsum([0, *estimator.n_support_])
    pairs = list(combinations(range(len(estimator.classes_)), 2))
    weights = np.zeros((len(pairs), len(z)))
    for row, (i, j) in zip(weights, pairs, strict=True):
        row[ends[i] : ends[i + 1]] = dual[j - 1, ends[i] : ends[i + 1]]
        row[ends[j] : ends[j + 1]] = dual[i, ends[j] : ends[j + 1]]
    # +1 for the first class of a pair, −1 for the second
    sides = np.zeros((len(pairs), len(estimator.classes_)))
    for row, (i, j) in zip(sides, pairs, strict=True):
        row[i], row[j] = 1, -1

    return Partial(_votes, k, z, weights.T, offset, sides, weights.T @ sides, offset @ sides)


def _expansion(kernel, z, weights, offset, x):
    return kernel(x, z) @ weights + offset


def _binary_expansion(kernel, z, weights, offset, x):
    return _of_two_classes((kernel(x, z) @ weights + offset)[:, 0])


def _votes(kernel, z, weights, offset, sides, summed_weights, summed_offset, x):
    block = kernel(x, z)
    signs = jnp.where(block @ weights + offset > 0, 1.0, 0.0)
    votes = signs @ jnp.maximum(sides, 0) + (1 - signs) @ jnp.maximum(-sides, 0)
    # the decisions summed up by class: votes have no gradient, so there are as many columns to go back through
    confidence = block @ summed_weights + summed_offset
    return votes + confidence / (3 * (jnp.abs(confidence) + 1))


def _kernel_ridge(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, estimator.gamma)
    z = _training_inputs(estimator, estimator.X_fit_, X_fit)
    dual = estimator.dual_coef_.reshape(len(z), -1)
    return Partial(_expansion, k, z, dual, 0.0)


def _kernel_pca(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, getattr(estimator, "gamma_", estimator.gamma))
    z = _training_inputs(estimator, estimator.X_fit_, X_fit)
    kept = np.flatnonzero(estimator.eigenvalues_)
    scaled = np.zeros_like(estimator.eigenvectors_)
    scaled[:, kept] = estimator.eigenvectors_[:, kept] / np.sqrt(estimator.eigenvalues_[kept])
    centerer = estimator._centerer

    return Partial(_centred_expansion, k, z, scaled, centerer.K_fit_rows_, centerer.K_fit_all_)


def _centred_expansion(kernel, z, scaled, means, mean, x):
    block = kernel(x, z)
    return (block - means - block.mean(1, keepdims=True) + mean) @ scaled


def _nystroem(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, estimator.gamma)
    z = _training_inputs(estimator, estimator.components_, X_fit)
    return Partial(_expansion, k, z, estimator.normalization_.T, 0.0)


# Gaussian processes


def covariance(kernel):
    """``k(x, z)`` of a scikit-learn Gaussian process kernel between different points, a pytree."""
    name = type(kernel).__name__
    if name in ("Sum", "Product"):
        return Partial(_sum if name == "Sum" else _product, covariance(kernel.k1), covariance(kernel.k2))
    if name == "Exponentiation":
        return Partial(_power, covariance(kernel.kernel), kernel.exponent)
    if name == "ConstantKernel":
        return Partial(_constant, kernel.constant_value)
    if name == "WhiteKernel":
        return Partial(_constant, 0.0)
    if name == "DotProduct":
        return Partial(_dot_product, kernel.sigma_0)
    if name == "RBF":
        return Partial(_squared_exponential, kernel.length_scale)
    if name == "RationalQuadratic":
        return Partial(_rational_quadratic, kernel.alpha, kernel.length_scale)
    if name == "ExpSineSquared":
        return Partial(_periodic, kernel.length_scale, kernel.periodicity)
    if name == "Matern" and kernel.nu in MATERN:
        return Partial(MATERN[kernel.nu], kernel.length_scale)
    raise TypeError(f"the Gaussian process kernel {kernel!r} has no differentiable form here")


def _sum(first, second, x, z):
    return first(x, z) + second(x, z)


def _product(first, second, x, z):
    return first(x, z) * second(x, z)


def _power(inner, exponent, x, z):
    return inner(x, z) ** exponent


def _constant(value, x, z):
    return jnp.full((len(x), len(z)), value, x.dtype)


def _dot_product(sigma_0, x, z):
    return x @ z.T + sigma_0**2


def _squared_exponential(length_scale, x, z):
    return jnp.exp(-expanded_distances(x / length_scale, z / length_scale) / 2)


def _rational_quadratic(alpha, length_scale, x, z):
    return (1 + squared_distances(x, z) / (2 * alpha * length_scale**2)) ** -alpha


def _periodic(length_scale, periodicity, x, z):
    angles = jnp.pi * _root(squared_distances(x, z)) / periodicity
    return jnp.exp(-2 * (jnp.sin(angles) / length_scale) ** 2)


def _matern_half(length_scale, x, z):
    return jnp.exp(-_root(squared_distances(x / length_scale, z / length_scale)))


def _matern_three_halves(length_scale, x, z):
    r = _root(3 * squared_distances(x / length_scale, z / length_scale))
    return (1 + r) * jnp.exp(-r)


def _matern_five_halves(length_scale, x, z):
    r = _root(5 * squared_distances(x / length_scale, z / length_scale))
    return (1 + r + r**2 / 3) * jnp.exp(-r)


# By the smoothness ν.
MATERN = {
    0.5: _matern_half,
    1.5: _matern_three_halves,
    2.5: _matern_five_halves,
    math.inf: _squared_exponential,
}


def _root(squares):
    """Square root, with the derivative 0 at 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _gaussian_regressor(estimator):
    mean, std = (np.atleast_1d(value) for value in (estimator._y_train_mean, estimator._y_train_std))
    dual = estimator.alpha_.reshape(len(estimator.X_train_), -1) * std
    return Partial(_expansion, covariance(estimator.kernel_), estimator.X_train_, dual, mean)


# ∫ σ(z) N(z | μ, s²) dz as a sum of error functions (Williams & Barber 1998); the constants are scikit-learn's.
LAMBDAS = np.array([0.41, 0.4, 0.37, 0.44, 0.39])[:, None]
COEFFICIENTS = np.array([-1854.8214151, 3516.89893646, 221.29346712, 128.12323805, -2010.49422654])[:, None]


def _laplace(binary):
    """Probability (n,) of the second class in a binary Gaussian process classifier."""
    k, z = covariance(binary.kernel_), binary.X_train_
    # white noise is in a point's own variance, and not in covariances
    noise = float(binary.kernel_.diag(z[:1])[0] - np.asarray(_own_variance(k, jnp.asarray(z[:1], float)))[0])
    return Partial(_averaged_sigmoid, k, z, binary.y_train_ - binary.pi_, binary.W_sr_, binary.L_, noise)


def _own_variance(kernel, x):
    return jax.vmap(lambda row: kernel(row[None], row[None])[0, 0])(x)


def _averaged_sigmoid(kernel, z, residual, root, factor, noise, x):
    cross = kernel(x, z)
    mean = cross @ residual
    v = jax.scipy.linalg.solve_triangular(factor, root[:, None] * cross.T, lower=True)
    spread = _own_variance(kernel, x) + noise - jnp.sum(v**2, axis=0)
    alpha = 1 / (2 * spread)
    gamma = LAMBDAS * mean
    integrals = jnp.sqrt(jnp.pi / alpha) * jax.scipy.special.erf(gamma * jnp.sqrt(alpha / (alpha + LAMBDAS**2)))
    integrals = integrals / (2 * jnp.sqrt(spread * 2 * jnp.pi))
    return jnp.sum(COEFFICIENTS * integrals, axis=0) + 0.5 * COEFFICIENTS.sum()


def _gaussian_classifier(estimator):
    if len(estimator.classes_) == 2:
        return Partial(_log_of_two, _laplace(estimator.base_estimator_))
    if estimator.multi_class != "one_vs_rest":
        raise TypeError("a Gaussian process classifier has a differentiable form for one_vs_rest only")
    return Partial(_log_of_many, [_laplace(e) for e in estimator.base_estimator_.estimators_])


TINY = 1e-30


def _log_of_two(binary, x):
    p = binary(x)
    return jnp.log(jnp.maximum(jnp.stack([1 - p, p], axis=1), TINY))


def _log_of_many(binaries, x):
    p = jnp.stack([binary(x) for binary in binaries], axis=1)
    return jnp.log(jnp.maximum(p / p.sum(1, keepdims=True), TINY))


# Transformers


def _shift_and_scale(shift, scale, low, high, x):
    return jnp.clip((x - shift) * scale, low, high)


def _scaler(shift, scale, low=-np.inf, high=np.inf):
    numbers = [np.zeros(1) if shift is None else shift, np.ones(1) if scale is None else scale, low, high]
    return Partial(_shift_and_scale, *numbers)


def _standard(estimator):
    shift = estimator.mean_ if estimator.with_mean else None
    return _scaler(shift, None if estimator.scale_ is None else 1 / estimator.scale_)


def _min_max(estimator):
    low, high = estimator.feature_range if estimator.clip else (-np.inf, np.inf)
    return _scaler(-estimator.min_ / estimator.scale_, estimator.scale_, low, high)


def _robust(estimator):
    return _scaler(estimator.center_, None if estimator.scale_ is None else 1 / estimator.scale_)


def _sum_of_sizes(x):
    return jnp.abs(x).sum(1, keepdims=True)


def _euclidean(x):
    return _root((x**2).sum(1, keepdims=True))


def _largest_size(x):
    return jnp.abs(x).max(1, keepdims=True)


LENGTHS = {"l1": _sum_of_sizes, "l2": _euclidean, "max": _largest_size}


def _normalizer(estimator):
    return Partial(_of_length_one, Partial(LENGTHS[estimator.norm]))


def _of_length_one(length, x):
    size = length(x)
    return x / jnp.where(size == 0, 1, size)


def _pca(estimator):
    basis = estimator.components_.T
    if estimator.whiten:
        basis = basis / np.sqrt(np.maximum(estimator.explained_variance_, np.finfo(float).eps))
    return Partial(_projected, estimator.mean_, basis)


def _projected(mean, basis, x):
    return (x - mean) @ basis


def _rbf_sampler(estimator):
    weights, offset = estimator.random_weights_, estimator.random_offset_
    share = math.sqrt(2 / estimator.n_components)
    return Partial(_random_waves, share, weights, offset)


def _random_waves(share, weights, offset, x):
    return share * jnp.cos(x @ weights + offset)


def _polynomial(estimator):
    # which features are multiplied, with a last one that is 1 to fill up
    n, degree = estimator.n_features_in_, max(int(estimator.powers_.sum(1).max()), 1)
    factors = np.full((len(estimator.powers_), degree), n)
    for row, powers in zip(factors, estimator.powers_, strict=True):
        multiplied = np.repeat(np.arange(n), powers)
        row[: len(multiplied)] = multiplied

    return Partial(_products_of, factors)


def _products_of(factors, x):
    return jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)[:, factors].prod(2)


def _selector(estimator):
    return Partial(_chosen, np.flatnonzero(estimator.get_support()))


def _chosen(columns, x):
    return x[:, columns]


# Compositions


def _chained(parts, x):
    for part in parts:
        x = part(x)
    return x


def _side_by_side(parts, columns, weights, x):
    blocks = [w * part(x[:, c]) for part, c, w in zip(parts, columns, weights, strict=True)]
    return jnp.concatenate(blocks, axis=1)


def _unchanged(x):
    return x


def _part(step):
    return Partial(_unchanged) if step is None or isinstance(step, str) else as_model(step)


def _pipeline(estimator, kernel, X_fit):
    *before, (_, last) = estimator.steps
    parts = [_part(step) for _, step in before]
    parts.append(_part(last) if isinstance(last, str) else as_model(last, kernel=kernel, X_fit=X_fit))
    return Partial(_chained, parts)


def _union(estimator):
    given = estimator.transformer_weights or {}
    steps = [(name, step) for name, step in estimator.transformer_list if not _drops(step)]
    every = np.arange(estimator.n_features_in_)
    weights = [given.get(name, 1.0) for name, _ in steps]
    return Partial(_side_by_side, [_part(step) for _, step in steps], [every] * len(steps), weights)


def _columns(estimator):
    parts, columns = [], []
    for name, step, _ in estimator.transformers_:
        index = np.asarray(estimator._transformer_to_input_indices[name], int)
        if not _drops(step) and len(index):
            parts.append(_part(step))
            columns.append(index)
    return Partial(_side_by_side, parts, columns, [1.0] * len(parts))


def _drops(step):
    return isinstance(step, str) and step == "drop"


def _function(estimator):
    if estimator.func is not None:
        raise TypeError("a FunctionTransformer with a function of its own has no differentiable form")
    return Partial(_unchanged)


def _search(estimator, kernel, X_fit):
    return as_model(estimator.best_estimator_, kernel=kernel, X_fit=X_fit)


def _frozen(estimator, kernel, X_fit):
    return as_model(estimator.estimator, kernel=kernel, X_fit=X_fit)


LINEAR = """ARDRegression BayesianRidge ElasticNet ElasticNetCV HuberRegressor Lasso LassoCV
LinearDiscriminantAnalysis LinearRegression LinearSVC LinearSVR LogisticRegression LogisticRegressionCV Perceptron
Ridge RidgeCV RidgeClassifier RidgeClassifierCV SGDClassifier SGDRegressor"""
ADAPTERS = dict.fromkeys(LINEAR.split(), _linear)
ADAPTERS |= dict.fromkeys(("SVC", "NuSVC", "SVR", "NuSVR"), _support_vectors)
ADAPTERS |= dict.fromkeys(("MLPClassifier", "MLPRegressor"), _perceptron)
ADAPTERS |= dict.fromkeys(("SelectKBest", "SelectPercentile", "SelectFromModel", "VarianceThreshold"), _selector)
ADAPTERS |= dict.fromkeys(("GridSearchCV", "RandomizedSearchCV"), _search)
ADAPTERS |= {
    "ColumnTransformer": _columns,
    "FeatureUnion": _union,
    "FrozenEstimator": _frozen,
    "FunctionTransformer": _function,
    "GaussianProcessClassifier": _gaussian_classifier,
    "GaussianProcessRegressor": _gaussian_regressor,
    "KernelPCA": _kernel_pca,
    "KernelRidge": _kernel_ridge,
    "MaxAbsScaler": lambda estimator: _scaler(None, 1 / estimator.scale_),
    "MinMaxScaler": _min_max,
    "Normalizer": _normalizer,
    "Nystroem": _nystroem,
    "PCA": _pca,
    "Pipeline": _pipeline,
    "PolynomialFeatures": _polynomial,
    "RBFSampler": _rbf_sampler,
    "RobustScaler": _robust,
    "StandardScaler": _standard,
}
NEED_KERNEL = {_support_vectors, _kernel_ridge, _kernel_pca, _nystroem, _pipeline, _search, _frozen}
