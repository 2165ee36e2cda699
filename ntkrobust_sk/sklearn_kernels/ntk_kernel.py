"""A tangent kernel as a kernel of scikit-learn's Gaussian processes, which all its kernel machines take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import numpy as np
from jax.tree_util import Partial
from numpy.typing import ArrayLike
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from .._validation import array, brief, number, positive_tuple
from ..execution.memory import parse_memory
from ..execution.precision import x64_enabled
from ..execution.tiles import pad_rows
from ..kernels.abstract_features import abstract_features
from ..kernels.edited_functions import known_by_code, told_apart
from ..kernels.fingerprint import hash_arrays
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.without_model import model_for
from ..networks.inputs import finite_inputs, host_inputs
from ..networks.model import Model
from ..sklearn_models.registry import DifferentiableCovariance
from ..tangent.gradient_lists import concatenate_tiles
from .kept_matrices import KeptMatrices

# Rows of a block of which the diagonal is taken.
BLOCK = 64


class NTKKernel(DifferentiableCovariance, Kernel):
    """A tangent kernel, times a scale, in scikit-learn's form: ``k(X, Y)`` is a matrix.

    It is a :class:`sklearn.gaussian_process.kernels.Kernel`: sums, products and powers with other kernels work,
    and Gaussian processes fit ``scale``. It is also a callable that :class:`sklearn.svm.SVC`,
    :class:`sklearn.kernel_ridge.KernelRidge`, :class:`sklearn.decomposition.KernelPCA`,
    :class:`sklearn.kernel_approximation.Nystroem` and :class:`sklearn.cluster.SpectralClustering` (``affinity=``)
    take, each of them with one call for a whole matrix: most of them call a bare function for each pair of rows.
    An affinity must not be negative, and ``NTKKernel(model) ** 2`` is not. :func:`~ntkrobust_sk.as_model` knows
    this kernel, so machines on it are attacked with gradients.

    Inner products are taken in double precision, so that the matrix of one set of inputs is positive semidefinite
    to rounding. The last matrices are kept while their models live, as many as fit in ``memory`` and 64 at most:
    within one process a search for hyperparameters computes each fold's once.

    Parameters
    ----------
    model : Model, default=None
        The network; None for a kernel that needs none, such as :class:`InfiniteNTK`.
    kernel : {"trace", "pseudo"} or callable, default="trace"
        With one number for each pair of inputs.
    scale : float, default=1.0
        Factor of the kernel, the hyperparameter; Gaussian processes search for its logarithm.
    scale_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        0 < low <= high.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows hold; scikit-learn's machines take rows alone. None takes inputs as
        they come.
    memory : str or int, default="2GiB"
        Budget as for :func:`~ntkrobust_sk.gram`.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken, as for :func:`~ntkrobust_sk.gram`.

    Raises
    ------
    TypeError, ValueError
        When it is called: for what is no model, a kernel of another kind, inputs that do not fit the network,
        a scale that is not positive, and bounds that are none.

    Examples
    --------
    >>> import jax
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import MLP, Model, NTKKernel
    >>> X, y = load_iris(return_X_y=True)
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> SVC(kernel=NTKKernel(model)).fit(X, y).score(X, y) > 0.95
    True

    A Gaussian process with noise:

    >>> from sklearn.gaussian_process import GaussianProcessRegressor
    >>> from sklearn.gaussian_process.kernels import WhiteKernel
    >>> kernel = NTKKernel(model, scale=0.1) + WhiteKernel(0.1)
    >>> process = GaussianProcessRegressor(kernel, normalize_y=True).fit(X, y)
    >>> mean, std = process.predict(X, return_std=True)
    >>> mean.shape, std.shape
    ((150,), (150,))
    """

    def __init__(
        self,
        model: Model | None = None,
        kernel: str | Callable = "trace",
        *,
        scale: float = 1.0,
        scale_bounds: tuple[float, float] | str = (1e-5, 1e5),
        input_shape: tuple[int, ...] | None = None,
        memory: str | int = "2GiB",
        params: str | Sequence[str] | None = None,
    ):
        self.model = model
        self.kernel = kernel
        self.scale = scale
        self.scale_bounds = scale_bounds
        self.input_shape = input_shape
        self.memory = memory
        self.params = params

    @property
    def hyperparameter_scale(self) -> Hyperparameter:
        """The scale, as scikit-learn describes a hyperparameter."""
        bounds = self.scale_bounds
        if not isinstance(bounds, str) or bounds != "fixed":
            said = f"scale_bounds must be 'fixed' or two numbers, 0 < low <= high, got {brief(bounds)}"
            try:
                bounds = array("scale_bounds", bounds, ndim=1, finite=True)
            except (TypeError, ValueError) as error:
                raise type(error)(said) from error
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(said)
        return Hyperparameter("scale", "numeric", self.scale_bounds)

    def __call__(self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False) -> Any:
        """Compute the matrix of inputs.

        Parameters
        ----------
        X : array (n, n_features) or (n, ...)
        Y : array (m, n_features) or (m, ...), default=None
            Columns' inputs; None means X.
        eval_gradient : bool, default=False
            Return the derivative with respect to the logarithm of the scale too; only where Y is None.

        Returns
        -------
        K : float64 array (n, m)
        K_gradient : float64 array (n, n, 1), or (n, n, 0) where the scale is fixed
            With ``eval_gradient``.
        """
        if eval_gradient and Y is not None:
            raise ValueError("the gradient is that of the matrix of X with itself: leave Y away")
        scale, symmetric = self._scale(), Y is None or Y is X
        X = self._inputs("X", X)
        K = scale * self._kept_matrix(X, None if symmetric else self._inputs("Y", Y))
        if not eval_gradient:
            return K
        return K, (np.empty((*K.shape, 0)) if self.hyperparameter_scale.fixed else K[:, :, None].copy())

    def diag(self, X: ArrayLike) -> np.ndarray:
        """Compute the kernel of each input with itself, (n,), without the whole matrix."""
        scale, X = self._scale(), self._inputs("X", X)
        known = _KEPT.get(self._owner(), self._which(X, None))
        if known is not None:
            return scale * known.diagonal()
        blocks = (self._matrix(X[at : at + BLOCK]).diagonal() for at in range(0, len(X), BLOCK))
        return scale * np.concatenate(list(blocks))

    def is_stationary(self) -> bool:
        """Return False: it depends on more than differences of inputs."""
        return False

    def __repr__(self) -> str:
        model = "" if self.model is None else f"{brief(self.model)}, "
        scale = f"{self.scale:.3g}" if isinstance(self.scale, float) else brief(self.scale)
        return f"NTKKernel({model}{self.kernel!r}, scale={scale})"

    def set_params(self, **params: Any) -> Self:
        """Set parameters by their names, as scikit-learn does.

        Raises
        ------
        ValueError
            For what is no parameter, and for a part (``model__x``) of a parameter that has none; nothing is set.
        """
        given = self.get_params(deep=False)
        for name in params:
            whole, _, part = name.partition("__")
            if whole not in given:
                raise ValueError(
                    f"{name!r} is no parameter of NTKKernel, whose parameters are {', '.join(sorted(given))}"
                )
            if part and not hasattr(given[whole], "set_params"):
                raise ValueError(
                    f"{name!r} is no parameter of NTKKernel: {whole}={brief(given[whole])} is set as a whole"
                )
        return super().set_params(**params)

    def as_function(self) -> Partial:
        """Return the kernel in JAX, a pytree: ``k(x, z)`` of rows (n, ...) and (m, ...), ``k(x)`` its diagonal."""
        kernel, model = self._kernel_and_model()
        shape = None if self.input_shape is None else positive_tuple("input_shape", self.input_shape)
        return Partial(_Covariance(known_by_code(kernel), shape, self.memory), model, self._scale())

    def remembered(self, z: np.ndarray) -> Any:
        """Return rows (m, ...) with their tangent features, or as they are where these do not fit in ``memory``.

        An attack asks for the kernel with the same training rows in each of its steps.
        """
        kernel, model = self._kernel_and_model()
        if not kernel.is_tangent:
            return z
        rows = host_inputs("z", self._inputs("z", z), model.variables.params)
        abstract = abstract_features(kernel, model, rows.shape[1:], rows.dtype)
        if len(rows) * abstract.row_bytes(abstract.n_directions) > parse_memory(self.memory):
            return z
        tiles = (pad_rows(rows[at : at + BLOCK], BLOCK) for at in range(0, len(rows), BLOCK))
        n_filled = math.ceil(len(rows) / BLOCK) * BLOCK
        features = concatenate_tiles((_features(kernel, model, tile) for tile in tiles), n_filled)
        # without the rows that fill the last tile
        own = [leaf.each(lambda array, axis: array.take(range(len(rows)), axis)) for leaf in features]
        return _Remembered(z, own)

    def _scale(self) -> float:
        """Return the scale; whatever else is a setting is looked at too."""
        parse_memory(self.memory)
        self.hyperparameter_scale  # noqa: B018 - raises for bounds that are none
        return number("scale", self.scale, above=0)

    def _kernel_and_model(self):
        kernel = resolve_kernel(self.kernel)
        if kernel.rank not in (None, 2):
            raise ValueError(_wrong_rank(kernel))
        return kernel, model_for(kernel, self.model, self.params)

    def _inputs(self, name, X) -> np.ndarray:
        X = array(name, X, finite=True)
        if X.ndim < 2 or len(X) == 0:
            raise ValueError(f"{name} must hold inputs of shape (n, ...) with n >= 1, got shape {X.shape}")
        if self.input_shape is None:
            return X
        shape = positive_tuple("input_shape", self.input_shape)
        if math.prod(X.shape[1:]) != math.prod(shape):
            raise ValueError(
                f"{name} must hold inputs of input_shape={shape}, which stands for {math.prod(shape)} features, "
                f"got shape {X.shape}"
            )
        return X.reshape(len(X), *shape)

    def _matrix(self, X, Y=None) -> np.ndarray:
        kernel, model = self._kernel_and_model()
        K = np.asarray(gram(kernel, model, X, Y, memory=self.memory, dtype="float64"))
        if K.ndim != 2:
            raise ValueError(_wrong_rank(kernel))
        return K

    def _kept_matrix(self, X, Y) -> np.ndarray:
        owner, key = self._owner(), self._which(X, Y)
        K = _KEPT.get(owner, key)
        if K is None:
            K = self._matrix(X, Y)
            _KEPT.put(owner, key, K, parse_memory(self.memory))
        return K

    def _which(self, X, Y):
        """Return what tells matrices of one owner apart: kernel, parameters of the model, inputs."""
        kernel, model = self._kernel_and_model()
        kernel = told_apart(kernel, model, X.shape[1:], host_inputs("X", X[:1], model.variables.params).dtype)
        # arrays of NumPy may change in place, JAX's do not
        changing = [leaf for leaf in jax.tree.leaves(model.variables) if not isinstance(leaf, jax.Array)]
        sides = [None if side is None else hash_arrays([side]) for side in (X, Y)]
        return kernel, model.network, hash_arrays(changing), x64_enabled(), *sides

    def _owner(self):
        """Return what matrices are kept for: the model, or a kernel that needs none."""
        self._kernel_and_model()  # says what is wrong with them
        return self.kernel if self.model is None else self.model


_KEPT = KeptMatrices()


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Remembered:
    """Rows (m, ...) as they came, and their tangent features."""

    rows: Any
    features: Any


@dataclass(frozen=True)
class _Covariance:
    """A tangent kernel as a function of rows: of NumPy by the tiles of ``gram``, of JAX to be differentiated."""

    kernel: Any
    input_shape: tuple[int, ...] | None
    memory: str | int

    def __call__(self, model, scale, x, z=None):
        if not isinstance(x, jax.Array):
            # what the estimator itself has computed, which is what it is compared with
            own = NTKKernel(
                model, self.kernel, scale=float(scale), input_shape=self.input_shape, memory=self.memory
            )
            return own.diag(x) if z is None else own(x, z.rows if isinstance(z, _Remembered) else z)
        if isinstance(z, _Remembered):
            x = x if self.input_shape is None else x.reshape(-1, *self.input_shape)
            return scale * _beside(self.kernel, model, x, z.features)
        if self.input_shape is not None:
            x, z = (None if of is None else of.reshape(-1, *self.input_shape) for of in (x, z))
        return scale * (_diagonal(self.kernel, model, x) if z is None else _block(self.kernel, model, x, z))


# outside of a compiled function JAX would run a kernel operation by operation
@partial(jax.jit, static_argnums=0)
def _block(kernel, model, x, z):
    return kernel(model, x, z)


@partial(jax.jit, static_argnums=0)
def _features(kernel, model, x):
    with jax.default_matmul_precision("highest"):
        return kernel.features(model, x)


@partial(jax.jit, static_argnums=0)
def _beside(kernel, model, x, features):
    """Return the block of inputs and of rows whose features are known."""
    x = finite_inputs("x", x, model.variables.params)
    with jax.default_matmul_precision("highest"):
        return kernel.contract(kernel.features(model, x), features)


@partial(jax.jit, static_argnums=0)
def _diagonal(kernel, model, x):
    return jax.vmap(lambda row: kernel(model, row[None], row[None])[0, 0])(x)


def _wrong_rank(kernel) -> str:
    return (
        f"kernel must give one number for each pair of inputs, as 'trace' and 'pseudo' do, got {kernel!r}; a "
        "machine of scikit-learn takes no matrix for each class"
    )
