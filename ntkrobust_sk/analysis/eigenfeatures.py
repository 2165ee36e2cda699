"""A kernel's eigenvectors as features: how useful and how robust each is, and what they look like.

With K = Σ_i λ_i v_i v_iᵀ on training inputs X and targets Y, kernel regression is a sum of predictors
f_i(x) = λ_i⁻¹ K(x, X) v_i v_iᵀ Y, one for each eigenvector (Tsilivis & Kempe 2022, arXiv:2210.05577).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._arrays import eigh, to_gpu_of, to_numpy
from .._validation import array, brief, check_lengths, integer
from ..attacks.entry import require_attack
from ..attacks.tiled import attack_in_tiles
from ..execution.memory import parse_memory
from ..execution.tiles import MACHINE_ROWS, evaluate, machine_rows, movable
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor, training_job
from ..networks.inputs import host_inputs, params_dtype
from ..networks.model import Model, require_model
from ..solvers.matrices import require_symmetric
from .checked import EIGENVECTOR_ARRAYS

# Eigenvalues below this share of the largest are rounding.
NEGLIGIBLE = 1e-7


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FeaturePredictor:
    """The predictor of one eigenfeature: x ↦ φ(x) wᵀ.

    Attributes
    ----------
    feature : callable pytree
        From inputs (n, ...) to φ, (n, 1).
    weights : array (1, C)
    """

    feature: Callable
    weights: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the scores (n, C) of inputs (n, ...)."""
        return self.feature(x) @ self.weights


@dataclass(frozen=True)
class NTKFeatures:
    """The eigenfeatures that :func:`ntk_features` finds.

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
    kernel: str | Callable,
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    attack: Callable,
    *,
    n_features: int,
    key: jax.Array,
    K: ArrayLike | None = None,
    memory: str | int = "2GiB",
) -> NTKFeatures:
    """Compute usefulness and robustness of a kernel's leading eigenfeatures.

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
    K = gram(kernel, model, X, memory=memory) if K is None else K
    source, K = K, np.asarray(array("K", K), dtype=np.float64)
    if K.ndim != 2:
        raise ValueError(f"eigenfeatures need a kernel of rank 2, such as 'trace'; {kernel!r} has rank {K.ndim}")
    if K.shape != (len(X), len(X)):
        raise ValueError(f"K must be the Gram matrix of X, of shape {(len(X), len(X))}, got {K.shape}")
    if attack is not no_attack:
        moved = movable(model, X_test, params_dtype(params), MACHINE_ROWS)
    targets = _indicators(y)
    eigenvalues, eigenvectors = leading_eigenpairs(source, n_features)
    usefulness, robustness = np.empty((2, len(eigenvalues)))
    # features of X are computed once for all predictors, if they fit
    job = training_job(kernel, model, X, 1, memory=memory)
    for i, (value, vector) in enumerate(zip(eigenvalues, eigenvectors.T, strict=True)):
        dual = vector[:, None] / value
        feature = make_predictor(kernel, model, X, dual, [0.0], memory=memory, plan=job.plan, features=job.kept)
        weights = jnp.asarray((vector @ targets)[None], params_dtype(params))
        predictor = FeaturePredictor(feature, weights)
        if i == 0:  # the others have the same shapes
            rows = machine_rows(predictor, X_test.shape[1:], X_test.dtype, parse_memory(memory))
        usefulness[i] = np.mean(evaluate(predictor, X_test, rows).argmax(1) == y_test)
        if attack is no_attack:
            robustness[i] = usefulness[i]
            continue
        X_adv = attack_in_tiles(attack, predictor, moved, y_test, key=key, rows=rows)
        robustness[i] = np.mean(evaluate(predictor, X_adv, rows).argmax(1) == y_test)
    return NTKFeatures(eigenvalues, eigenvectors, usefulness, robustness)


def leading_eigenpairs(K, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n largest eigenvalues of a Gram matrix that are no rounding, and their eigenvectors (N, n)."""
    source, K = K, np.asarray(array("K", K), dtype=np.float64)
    require_symmetric(K, "K")
    eigenvalues, eigenvectors = map(to_numpy, eigh(to_gpu_of(K, source, EIGENVECTOR_ARRAYS)))
    if not eigenvalues[-1] > 0:
        raise ValueError(f"K must have a positive eigenvalue, but the largest is {eigenvalues[-1]:.3g}")
    n = min(n, int(np.sum(eigenvalues > NEGLIGIBLE * eigenvalues[-1])))
    return eigenvalues[::-1][:n], eigenvectors[:, ::-1][:, :n]


def _labels(name, y) -> np.ndarray:
    y = array(name, y, ndim=1)
    if y.dtype.kind not in "iu" or not y.size or y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must hold integer labels 0..C-1, got {brief(y)}")
    return y.astype(np.int32)


def class_kernels(K_classes, y) -> tuple[np.ndarray, np.ndarray]:
    """Return a class kernel (n, n, C) in double precision and labels 0..C-1 (n,)."""
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


def no_attack(model, x, y, *, key):
    """Return the inputs as they are."""
    return x
