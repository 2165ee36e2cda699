"""What a kernel's eigenvectors look like as images, and which of them are like a class."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, check_lengths, integer, number
from ..execution.tiles import pad_rows
from ..networks.inputs import host_inputs, params_dtype
from ..networks.model import Model, Variables, check_model, require_model
from ..solvers.matrices import require_symmetric
from ..solvers.ridge import solve
from .eigenfeatures import class_kernels


@dataclass(frozen=True)
class EigenfeatureImages:
    """The images that :func:`eigenfeature_images` draws.

    Attributes
    ----------
    images : array ``(C, *input_shape)``
    cosines : array (C,)
        cos(∇f_c(x), v_c) at the end.
    """

    images: np.ndarray
    cosines: np.ndarray


def eigenfeature_images(
    model: Model,
    X: ArrayLike,
    coefficients: ArrayLike,
    *,
    n_steps: int = 100,
    step_size: float = 0.02,
    bounds: tuple | None = (0.0, 1.0),
) -> EigenfeatureImages:
    """Draw for each output c the image whose gradient points most along v_c = Σ_i u_ic ∇f_c(x_i).

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

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, load_digits_images
    >>> X, y = load_digits_images()
    >>> network = MLP(widths=(16,), n_outputs=10)
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> drawn = eigenfeature_images(model, X[:50], np.eye(10)[y[:50]], n_steps=5)
    >>> drawn.images.shape, drawn.cosines.shape
    ((10, 8, 8, 1), (10,))
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
    """Return low and high of images, if both are finite."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be (low, high), got {brief(bounds)}")
    low = number("low of bounds", bounds[0])
    return low, number("high of bounds", bounds[1], above=low)


def regression_coefficients(K_classes: ArrayLike, y: ArrayLike, *, alpha: float = 1e-2) -> np.ndarray:
    """Compute K_c⁻¹ y_c for every class: ridge regression on ±1 by each class kernel, (n, C) of (n, n, C).

    ``alpha`` is relative to each kernel's mean diagonal.
    """
    K_classes, y = class_kernels(K_classes, y)
    columns = [
        solve(K_classes[:, :, c], np.where(y == c, 1.0, -1.0)[:, None], alpha=alpha)[:, 0]
        for c in range(K_classes.shape[2])
    ]
    return np.stack(columns, axis=1)


def class_eigenvectors(K_classes: ArrayLike, y: ArrayLike, index: int = 0) -> np.ndarray:
    """Return eigenvector ``index`` of each class kernel, (n, C), signed to favour the kernel's own class."""
    (K_classes, y), columns = class_kernels(K_classes, y), []
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
    """Compute Σ_i u_i ∇f_c(x_i), a pytree like the parameters."""
    total = None
    for start in range(0, len(X), rows):
        u = coefficients[start : start + rows]
        x, u = pad_rows(X[start : start + rows], rows), jnp.pad(u, (0, rows - len(u)))
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
