"""Where an estimator's kernel comes from: another estimator, a network or a model."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import has_fit_parameter

from .._validation import brief, positive_tuple, require_resolution
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..networks.named import initial_model
from .shared import TangentEstimator


class KernelSource(TangentEstimator):
    """An estimator that takes its kernel from another one, from a network or from a model: ``estimator``."""

    estimator: Any
    estimator_: Any

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
            require_resolution("X", X, params_dtype(model.variables.params))
            return model
        if isinstance(source, type) or not hasattr(source, "get_params"):
            way = f"; write {source.__name__}(...)" if isinstance(source, type) else ""
            raise TypeError(f"estimator must be an instance of a scikit-learn estimator, got {brief(source)}{way}")
        if y is None and not isinstance(source, FrozenEstimator):
            raise ValueError(f"fit needs y, because {source!r} has to be trained on labels")
        fit_params = {}
        if sample_weight is not None and has_fit_parameter(source, "sample_weight"):
            fit_params["sample_weight"] = sample_weight
        copy: Any = clone(source)
        self.estimator_ = copy.fit(X, y, **fit_params)
        model = getattr(self.estimator_, "model_", None)
        if not isinstance(model, Model):
            raise ValueError(
                f"estimator must leave a Model in `model_` when fitted, as AdversarialKernelTrainer does; "
                f"{source!r} does not"
            )
        if not isinstance(self.estimator_, TangentEstimator):  # which has looked in its own fit
            require_resolution("X", X, params_dtype(model.variables.params))
        return model
