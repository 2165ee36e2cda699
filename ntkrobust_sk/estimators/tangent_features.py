"""A network's tangent features as a scikit-learn transformer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from ..execution.memory import parse_memory
from ..kernels.feature_rows import FeatureRows
from ..kernels.ntk import resolve_kernel
from ..kernels.projected import ProjectedNTK
from ..networks.inputs import host_inputs, n_params, params_dtype
from ..networks.named import n_logits
from .inputs import as_answer
from .shared import KernelSource, allowed, at_least

# Rows of a tile.
ROWS = 64


@dataclass(eq=False, repr=False, kw_only=True)
class TangentFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, KernelSource):
    """A network's tangent features: rows whose inner products are the empirical NTK.

    Any linear model on them is a kernel machine on the network's tangent kernel.

    Parameters
    ----------
    estimator : estimator, FrozenEstimator, Network, Model or str, default=None
        Where the kernel comes from, as for :class:`EmpiricalNTKClassifier`. A network without ``n_outputs``
        gets one output.
    kernel : {"pseudo", "trace"}, default="pseudo"
        "pseudo": P features, ∇g(x) with g = (1/√C) Σ_c f_c. "trace": C·P features, ∇f_c(x) / √C.
    n_components : int, default=None
        Number of random projections of those features, whose inner products are unbiased estimates of the
        kernel's; see :class:`ProjectedNTK`. None keeps all features.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold. None takes it from ``estimator`` or X.
    memory : str or int, default="2GiB"
        Budget: a result that is larger is refused.
    cache : path or joblib.Memory, default=None
        Folder in which the fits of an unfitted ``estimator`` are kept, by what they are computed
        from. See :doc:`/guide/select`.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken: names or patterns such as "layers.3.*", as for
        :func:`~ntkrobust_sk.gram`. None is all of them.
    random_state : int, RandomState or None, default=None
    precision : {"bf16", "tf32"}, default=None
        Of the network's products: see :class:`~ntkrobust_sk.MixedPrecision`. None leaves the network as it is.

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

    kernel: str = field(default="pseudo", metadata=allowed(StrOptions({"pseudo", "trace"})))
    n_components: int | None = field(default=None, metadata=allowed(at_least(1), None))

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn the input shape, and the network where ``estimator`` has to be fitted (then y is needed)."""
        self._validate_params()
        X, _ = self._validated(X, reset=True, known_shape=self._source_shape())
        of_model, of_projection = jax.random.split(self._key())
        self.model_ = self._source_model(X, y, 1, None, of_model)
        n_outputs = n_logits(self.model_, self.input_shape_, X.dtype)
        copies = n_outputs if self.kernel == "trace" else 1
        self._n_features_out = self.n_components or copies * n_params(self.model_.variables.params)
        self._kernel = resolve_kernel(self.kernel)
        if self.n_components is not None:
            seed = int(jax.random.randint(of_projection, (), 0, np.iinfo(np.int32).max))
            self._kernel = ProjectedNTK(int(self.n_components), seed, of=self.kernel)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return features (n, P) or (n, C·P) of X (n, n_features) or (n, h, w, c)."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        dtype = params_dtype(self.model_.variables.params)
        size, budget = len(X) * self._n_features_out * dtype.itemsize, parse_memory(self.memory)
        if size > budget:
            raise MemoryError(
                f"{len(X)} rows of {self._n_features_out:,} tangent features take {size / 2**30:.2f} GiB, more "
                f"than memory={self.memory!r}; transform fewer rows at once, use kernel='pseudo', or raise it"
            )
        # as many at once however many there are: a row's features depend on nothing but the row, to the last bit
        inputs = host_inputs("X", X, self.model_.variables.params)
        result = FeatureRows(self._kernel, self.model_, inputs, budget, ROWS)(inputs)
        return as_answer(result, X, "features")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
