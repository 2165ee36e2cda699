"""What all estimators share: inputs as rows or images, a seed, checked parameters, and the source of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Integral
from typing import Any, ClassVar

import jax
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from .._frames import require_own_names
from .._portable import without_jax_arrays
from .._validation import (
    brief,
    checked_seed,
    fitting,
    integer,
    number,
    positive_tuple,
    require_numbers,
    require_regular,
)
from ..execution.keys import key_of
from ..execution.memory import parse_memory
from ..kernels.cached_gram import cached_gram, make_job
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.without_model import model_for
from ..networks.model import Model
from ..networks.named import NETWORKS, initial_model
from ..networks.precision import PRECISIONS, with_precision
from ..saving.content_cache import ContentCache, resolve_cache
from ..saving.savable import Savable
from ..targets.target import Seed
from .fitted_before import fitted_as_before
from .inputs import as_rows, input_shape, kept_dtypes, require_finite_targets, require_resolved
from .nested import NestedParameters

# What a message shows of networks with parameters.
NETWORK = "a network, such as MLP(widths=(64,))"
SITE = "https://ntkrobust-sk.readthedocs.io/en/stable"


def allowed(*constraints: Any, named: Mapping[str, Any] | None = None, such_as: str = "") -> dict[str, Any]:
    """Return the metadata of a parameter that takes what scikit-learn's constraints say; without it, anything.

    Fields of what it holds are parameters too (``solver__max_residual``): ``named`` are the objects that strings
    stand for, and ``such_as`` is the text of an object that has fields, for messages.
    """
    return {"constraints": list(constraints) or "no_validation", "named": named or {}, "such_as": such_as}


def at_least(low: int, kind: type = Integral) -> Interval:
    """Return the constraint of an integer, or of a number of another kind."""
    return Interval(kind, low, None, closed="left")


def _metadata_of(estimator, name) -> Mapping[str, Any]:
    return next((f.metadata for f in fields(estimator) if f.name == name), {})


@dataclass(eq=False, repr=False, kw_only=True)
class TangentEstimator(NestedParameters, Savable, BaseEstimator):
    """An estimator of inputs that are flat rows or images, with a seed.

    The fields of ``__init__`` are the parameters.
    """

    input_shape: tuple[int, ...] | None = field(default=None, metadata=allowed("array-like", None))
    random_state: Seed = field(default=None, metadata=allowed("random_state"))
    precision: str | None = field(default=None, metadata=allowed(StrOptions(set(PRECISIONS)), None))
    input_shape_: tuple[int, ...] = field(init=False)
    model_: Model = field(init=False)

    # scikit-learn's HTML of an estimator links to its page of the site
    _doc_link_module = "ntkrobust_sk"
    _doc_link_template: ClassVar[Any] = f"{SITE}/api/ntkrobust_sk.{{name}}.html"

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        return {"name": type(self).__name__}

    @property
    def _parameter_constraints(self) -> dict[str, Any]:
        return {f.name: f.metadata.get("constraints", "no_validation") for f in fields(self) if f.init}

    def _objects_by_name(self, name: str) -> Mapping[str, Any]:
        return _metadata_of(self, name).get("named", {})

    def _examples_of(self, name: str) -> str:
        return _metadata_of(self, name).get("such_as", "")

    def __getstate__(self):
        state: Any = super().__getstate__()
        return without_jax_arrays(state)

    def _validated(
        self, X: Any, y: Any = "no_validation", *, reset: bool, known_shape=None, **options
    ) -> tuple[np.ndarray, Any]:
        """Return X as ``(n, *input_shape_)`` and y, checked by scikit-learn, which sees images as flat rows."""
        require_numbers("X", X)
        if options.get("y_numeric"):
            require_numbers("y", y)
        require_regular("y", y)
        if hasattr(X, "columns"):
            require_own_names(list(X.columns))
        is_array = isinstance(X, np.ndarray | jax.Array)
        if is_array and not reset and X.shape == self.input_shape_ and X.ndim > 1:
            raise ValueError(
                f"X must hold inputs of shape (n, ...), got one of shape {np.shape(X)}; write X[None]"
            )
        X, image_shape = as_rows(X)
        checked: Any = validate_data(self, X, y, reset=reset, dtype=kept_dtypes(X), **options)
        X, y = checked if isinstance(checked, tuple) else (checked, None)
        if options.get("y_numeric"):
            require_finite_targets(y)
            # numbers that are written as text, which scikit-learn reads in X and in lists of objects alone
            y = y.astype(float) if y.dtype.kind in "SU" else y
        fitting("X", X, jax.dtypes.canonicalize_dtype(X.dtype))
        if reset:
            self.input_shape_ = input_shape(self.input_shape, image_shape, known_shape, X.shape[1])
        elif image_shape is not None and image_shape != self.input_shape_:
            raise ValueError(
                f"{type(self).__name__} was fitted on inputs of shape {self.input_shape_}, but X holds images of "
                f"shape {image_shape}"
            )
        return X.reshape(-1, *self.input_shape_), y

    def _validate_params(self):
        # fractions are real numbers, but scikit-learn asks NumPy whether they are NaN
        given: dict[str, Any] = {
            k: float(v) if isinstance(v, Fraction) else v for k, v in self.get_params(deep=False).items()
        }
        validate_parameter_constraints(self._parameter_constraints, given, caller_name=type(self).__name__)
        # scikit-learn takes True for 1, and infinity for a number
        for name, constraints in self._parameter_constraints.items():
            intervals = [] if isinstance(constraints, str) else [c for c in constraints if isinstance(c, Interval)]
            value = getattr(self, name)
            if intervals and not (value is None or name == "memory"):
                check = integer if issubclass(intervals[0].type, Integral) else number
                check(name, value, low=intervals[0].left)
        checked_seed("random_state", self.random_state)
        if "memory" in self._parameter_constraints:
            parse_memory(given["memory"])

    def _key(self) -> jax.Array:
        """Return a key from ``random_state``."""
        return key_of(self.random_state)

    def _gram(self, kernel, X, Y, memory) -> np.ndarray:
        """Return a kernel's Gram matrix of raw inputs at the fitted model."""
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False)
        Y = None if Y is None else self._validated(Y, reset=False)[0]
        return np.asarray(gram(kernel, self.model_, X, Y, memory=memory))


@dataclass(eq=False, repr=False, kw_only=True)
class KernelSource(TangentEstimator):
    """An estimator that takes its kernel from another one, from a network or from a model: ``estimator``."""

    estimator: Any = field(default=None, kw_only=False, metadata=allowed(named=NETWORKS, such_as=NETWORK))
    memory: str | int = field(default="2GiB", metadata=allowed(str, at_least(1)))
    cache: Any = None
    params: Any = field(default=None, metadata=allowed(str, "array-like", None))
    estimator_: Any = field(init=False)

    def _validate_params(self):
        super()._validate_params()
        resolve_cache("cache", self.cache)

    @property
    def _cache(self) -> ContentCache | None:
        return resolve_cache("cache", self.cache)

    @property
    def _by_tiles(self) -> bool:
        """Whether Gram matrices have the last bits of those that a cache keeps, which is settled by the fit."""
        return vars(self).get("_cached", self._cache is not None)

    def _kernel_of(self, kernel: str | Callable, X: np.ndarray, Y: np.ndarray | None = None) -> np.ndarray:
        """Return the Gram matrix of a kernel of the fitted model over inputs (n, ...), or that in the cache."""
        if not self._by_tiles:
            return np.asarray(gram(kernel, self.model_, X, Y, memory=self.memory))
        return np.asarray(cached_gram(make_job(kernel, self.model_, X, Y, self.memory), self._cache))

    def _source_shape(self) -> tuple[int, ...] | None:
        """Return the input shape of the estimator that the kernel comes from, where it has one.

        What is cloned forgets what it was fitted on, so only a frozen estimator's fitted shape counts.
        """
        fitted = ("input_shape_",) if isinstance(self.estimator, FrozenEstimator) else ()
        for name in (*fitted, "input_shape"):
            shape = getattr(self.estimator, name, None)
            if shape is not None:
                return positive_tuple(f"estimator.{name}", shape)
        return None

    def _source_model(self, X, y, n_outputs, sample_weight, key) -> Model:
        """Return the model whose tangent kernel the estimator takes, by what ``estimator`` is."""
        source = self.estimator
        if not hasattr(source, "fit"):
            model = initial_model(source, self.input_shape_, n_outputs, key, X.dtype)
            model = with_precision(model, self.precision)
            require_resolved(X, model)
            return self._restricted(model)
        if isinstance(source, type) or not hasattr(source, "get_params"):
            way = f"; write {source.__name__}(...)" if isinstance(source, type) else ""
            raise TypeError(f"estimator must be an instance of a scikit-learn estimator, got {brief(source)}{way}")
        if y is None and not isinstance(source, FrozenEstimator):
            raise ValueError(f"fit needs y, because {source!r} has to be trained on labels")
        fit_params = {}
        if sample_weight is not None and has_fit_parameter(source, "sample_weight"):
            fit_params["sample_weight"] = sample_weight
        self.estimator_ = fitted_as_before(clone(source), self._cache, X, y, **fit_params)
        model = getattr(self.estimator_, "model_", None)
        if not isinstance(model, Model):
            raise ValueError(
                f"estimator must leave a Model in `model_` when fitted, as AdversarialKernelTrainer does; "
                f"{source!r} does not"
            )
        rounded = with_precision(model, self.precision)
        if not isinstance(self.estimator_, TangentEstimator) or rounded.network is not model.network:
            # otherwise its own fit has looked
            require_resolved(X, rounded)
        return self._restricted(rounded)

    def _restricted(self, model: Model) -> Model:
        """Return the model with those parameters alone that ``params`` chooses, for kernels that have any."""
        kernel = "trace" if vars(self).get("solver") == "sgd" else vars(self).get("kernel", "trace")
        return model_for(resolve_kernel(kernel), model, self.params)
