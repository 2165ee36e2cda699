"""Fitted scikit-learn estimators as models: differentiable functions from inputs to scores.

Each adapter reads an estimator's fitted attributes and writes down, in JAX, what its ``decision_function``,
``predict_proba`` or ``predict`` computes. Pipelines and the like are compositions of such functions, so that an
attack acts on the *inputs* of a pipeline, in their units.
"""

from __future__ import annotations

import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.utils.validation import check_is_fitted


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
        return Partial(_reshaped(tuple(estimator.input_shape_)), estimator._predictor())
    name = type(estimator).__name__
    adapter = ADAPTERS.get(name) if type(estimator).__module__.startswith("sklearn.") else None
    if adapter is None:
        raise TypeError(
            f"there is no differentiable form of {type(estimator).__module__}.{name}; the black-box attack "
            "Square works on whatever gives scores"
        )
    return adapter(estimator, kernel, X_fit) if adapter in NEED_KERNEL else adapter(estimator)


def _reshaped(shape):
    def call(predictor, x):
        return predictor(x.reshape(-1, *shape))

    return call


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
    activation, last = ACTIVATIONS[estimator.activation], len(estimator.coefs_) - 1
    if estimator.out_activation_ not in ("identity", "logistic", "softmax"):
        raise TypeError(f"MLP with the output activation {estimator.out_activation_!r} has no differentiable form")
    binary = _is_binary(estimator, estimator.n_outputs_)

    def call(layers, x):
        for i, (weights, offset) in enumerate(layers):
            x = x @ weights + offset
            x = x if i == last else activation(x)
        return _of_two_classes(x[:, 0]) if binary else x

    return Partial(call, list(zip(estimator.coefs_, estimator.intercepts_, strict=True)))


# Kernel machines


KERNELS = ("cosine", "laplacian", "linear", "poly", "polynomial", "rbf", "sigmoid")


def pairwise(name: str, x, z, gamma=None, coef0=1.0, degree=3.0):
    """scikit-learn's kernel of that name (one of ``KERNELS``) between x (n, d) and z (m, d)."""
    gamma = 1.0 / x.shape[1] if gamma is None else gamma
    if name == "linear":
        return x @ z.T
    if name in ("poly", "polynomial"):
        return (gamma * (x @ z.T) + coef0) ** degree
    if name == "sigmoid":
        return jnp.tanh(gamma * (x @ z.T) + coef0)
    if name == "rbf":
        return jnp.exp(-gamma * squared_distances(x, z))
    if name == "laplacian":
        return jnp.exp(-gamma * jnp.abs(x[:, None] - z).sum(2))
    return _unit(x) @ _unit(z).T  # cosine


def squared_distances(x, z):
    """(n, m), of rows x (n, d) and z (m, d), by differences: exact where they are close."""
    return jnp.sum((x[:, None] - z) ** 2, axis=2)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _kernel_of(estimator, given, gamma):
    """``kernel(x, z)`` of a machine, and whether it sees training inputs that the machine has not kept."""
    own = estimator.kernel
    if given is not None:
        return given
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
    return lambda x, z: pairwise(own, x, z, **parameters)


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
        return Partial(lambda z, dual, offset, x: k(x, z) @ dual.T + offset, z, dual, offset)
    if len(estimator.classes_) == 2:
        return Partial(
            lambda z, dual, offset, x: _of_two_classes((k(x, z) @ dual.T + offset)[:, 0]), z, dual, offset
        )
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

    def call(z, weights, offset, sides, x):
        decisions = k(x, z) @ weights.T + offset
        votes = jnp.where(decisions[:, :, None] * sides > 0, 1.0, 0.0).sum(1)
        confidence = decisions @ sides
        return votes + confidence / (3 * (jnp.abs(confidence) + 1))

    return Partial(call, z, weights, offset, sides)


def _kernel_ridge(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, estimator.gamma)
    z = _training_inputs(estimator, estimator.X_fit_, X_fit)
    dual = estimator.dual_coef_.reshape(len(z), -1)
    return Partial(lambda z, dual, x: k(x, z) @ dual, z, dual)


def _kernel_pca(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, getattr(estimator, "gamma_", estimator.gamma))
    z = _training_inputs(estimator, estimator.X_fit_, X_fit)
    kept = np.flatnonzero(estimator.eigenvalues_)
    scaled = np.zeros_like(estimator.eigenvectors_)
    scaled[:, kept] = estimator.eigenvectors_[:, kept] / np.sqrt(estimator.eigenvalues_[kept])
    centerer = estimator._centerer

    def call(z, scaled, means, mean, x):
        block = k(x, z)
        return (block - means - block.mean(1, keepdims=True) + mean) @ scaled

    return Partial(call, z, scaled, centerer.K_fit_rows_, centerer.K_fit_all_)


def _nystroem(estimator, kernel, X_fit):
    k = _kernel_of(estimator, kernel, estimator.gamma)
    z = _training_inputs(estimator, estimator.components_, X_fit)
    return Partial(lambda z, basis, x: k(x, z) @ basis.T, z, estimator.normalization_)


# Gaussian processes


def covariance(kernel):
    """``k(x, z)`` of a scikit-learn Gaussian process kernel between different points."""
    name = type(kernel).__name__
    if name in ("Sum", "Product"):
        first, second = covariance(kernel.k1), covariance(kernel.k2)
        if name == "Sum":
            return lambda x, z: first(x, z) + second(x, z)
        return lambda x, z: first(x, z) * second(x, z)
    if name == "Exponentiation":
        inner = covariance(kernel.kernel)
        return lambda x, z: inner(x, z) ** kernel.exponent
    if name == "ConstantKernel":
        return lambda x, z: jnp.full((len(x), len(z)), kernel.constant_value, x.dtype)
    if name == "WhiteKernel":
        return lambda x, z: jnp.zeros((len(x), len(z)), x.dtype)
    if name == "DotProduct":
        return lambda x, z: x @ z.T + kernel.sigma_0**2
    if name == "RBF":
        return lambda x, z: jnp.exp(-squared_distances(x / kernel.length_scale, z / kernel.length_scale) / 2)
    if name == "RationalQuadratic":
        scale = 2 * kernel.alpha * kernel.length_scale**2
        return lambda x, z: (1 + squared_distances(x, z) / scale) ** -kernel.alpha
    if name == "ExpSineSquared":
        length, period = kernel.length_scale, kernel.periodicity
        return lambda x, z: jnp.exp(-2 * (jnp.sin(jnp.pi * _root(squared_distances(x, z)) / period) / length) ** 2)
    if name == "Matern" and kernel.nu in (0.5, 1.5, 2.5, math.inf):
        return lambda x, z: _matern(squared_distances(x / kernel.length_scale, z / kernel.length_scale), kernel.nu)
    raise TypeError(f"the Gaussian process kernel {kernel!r} has no differentiable form here")


def _root(squares):
    """Square root, with the derivative 0 at 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _matern(squares, nu):
    if nu == math.inf:
        return jnp.exp(-squares / 2)
    r = _root(squares) * math.sqrt(2 * nu)
    series = {0.5: 1.0, 1.5: 1 + r, 2.5: 1 + r + r**2 / 3}[nu]
    return series * jnp.exp(-r)


def _gaussian_regressor(estimator):
    k, n = covariance(estimator.kernel_), len(estimator.X_train_)

    def call(z, dual, mean, std, x):
        return (k(x, z) @ dual) * std + mean

    mean, std = (np.atleast_1d(value) for value in (estimator._y_train_mean, estimator._y_train_std))
    return Partial(call, estimator.X_train_, estimator.alpha_.reshape(n, -1), mean, std)


# ∫ σ(z) N(z | μ, s²) dz as a sum of error functions (Williams & Barber 1998); the constants are scikit-learn's.
LAMBDAS = np.array([0.41, 0.4, 0.37, 0.44, 0.39])[:, None]
COEFFICIENTS = np.array([-1854.8214151, 3516.89893646, 221.29346712, 128.12323805, -2010.49422654])[:, None]


def _laplace(binary):
    """Probability (n,) of the second class in a binary Gaussian process classifier."""
    k, diagonal = covariance(binary.kernel_), binary.kernel_.diag

    def call(z, residual, root, factor, variance, x):
        cross = k(x, z)
        mean = cross @ residual
        v = jax.scipy.linalg.solve_triangular(factor, root[:, None] * cross.T, lower=True)
        own = jax.vmap(lambda row: k(row[None], row[None])[0, 0])(x)
        spread = own + variance - jnp.sum(v**2, axis=0)
        alpha = 1 / (2 * spread)
        gamma = LAMBDAS * mean
        integrals = jnp.sqrt(jnp.pi / alpha) * jax.scipy.special.erf(
            gamma * jnp.sqrt(alpha / (alpha + LAMBDAS**2))
        )
        integrals = integrals / (2 * jnp.sqrt(spread * 2 * jnp.pi))
        return jnp.sum(COEFFICIENTS * integrals, axis=0) + 0.5 * COEFFICIENTS.sum()

    # white noise is in a point's own variance, and not in covariances
    z = binary.X_train_
    own = np.asarray(jax.vmap(lambda row: k(row[None], row[None])[0, 0])(jnp.asarray(z[:1], float)))
    noise = float(diagonal(z[:1])[0] - own[0])
    return Partial(call, z, binary.y_train_ - binary.pi_, binary.W_sr_, binary.L_, noise)


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


def _shift_and_scale(x, shift, scale, low=-np.inf, high=np.inf):
    return jnp.clip((x - shift) * scale, low, high)


def _scaler(shift, scale, low=-np.inf, high=np.inf):
    numbers = [np.zeros(1) if shift is None else shift, np.ones(1) if scale is None else scale, low, high]
    return Partial(lambda shift, scale, low, high, x: _shift_and_scale(x, shift, scale, low, high), *numbers)


def _standard(estimator):
    shift = estimator.mean_ if estimator.with_mean else None
    return _scaler(shift, None if estimator.scale_ is None else 1 / estimator.scale_)


def _min_max(estimator):
    low, high = estimator.feature_range if estimator.clip else (-np.inf, np.inf)
    return _scaler(-estimator.min_ / estimator.scale_, estimator.scale_, low, high)


def _robust(estimator):
    return _scaler(estimator.center_, None if estimator.scale_ is None else 1 / estimator.scale_)


def _normalizer(estimator):
    length = {
        "l1": lambda x: jnp.abs(x).sum(1, keepdims=True),
        "l2": lambda x: _root((x**2).sum(1, keepdims=True)),
        "max": lambda x: jnp.abs(x).max(1, keepdims=True),
    }[estimator.norm]

    def call(x):
        size = length(x)
        return x / jnp.where(size == 0, 1, size)

    return Partial(call)


def _pca(estimator):
    basis = estimator.components_.T
    if estimator.whiten:
        basis = basis / np.sqrt(np.maximum(estimator.explained_variance_, np.finfo(float).eps))
    return Partial(lambda mean, basis, x: (x - mean) @ basis, estimator.mean_, basis)


def _rbf_sampler(estimator):
    weights, offset = estimator.random_weights_, estimator.random_offset_
    share = math.sqrt(2 / estimator.n_components)
    return Partial(lambda weights, offset, x: share * jnp.cos(x @ weights + offset), weights, offset)


def _polynomial(estimator):
    # which features are multiplied, with a last one that is 1 to fill up
    n, degree = estimator.n_features_in_, max(int(estimator.powers_.sum(1).max()), 1)
    factors = np.full((len(estimator.powers_), degree), n)
    for row, powers in zip(factors, estimator.powers_, strict=True):
        multiplied = np.repeat(np.arange(n), powers)
        row[: len(multiplied)] = multiplied

    def call(factors, x):
        return jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)[:, factors].prod(2)

    return Partial(call, factors)


def _selector(estimator):
    return Partial(lambda chosen, x: x[:, chosen], np.flatnonzero(estimator.get_support()))


# Compositions


def _chained(parts, x):
    for part in parts:
        x = part(x)
    return x


def _side_by_side(parts, columns, weights, x):
    blocks = [w * part(x[:, c]) for part, c, w in zip(parts, columns, weights, strict=True)]
    return jnp.concatenate(blocks, axis=1)


def _identity():
    return Partial(lambda x: x)


def _part(step):
    return _identity() if step is None or isinstance(step, str) else as_model(step)


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
    return _identity()


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
