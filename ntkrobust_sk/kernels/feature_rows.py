"""Rows of tangent features, computed a tile at a time: what explicit feature maps and EigenPro take."""

from typing import cast

import jax
import numpy as np

from ..execution.memory import parse_memory
from ..networks.inputs import n_params, params_dtype
from ..networks.model import Model
from ..tangent.gradient_lists import split_biases
from .ntk import Kernel
from .plan import make_plan
from .projected import ProjectedNTK
from .tiles import tile_program


class FeatureRows:
    """The feature map of a tangent kernel as a function of inputs: rows whose inner products are the kernel's.

    Parameters
    ----------
    kernel : TraceNTK, PseudoNTK or ProjectedNTK
        Of rank 2.
    model : Model
    inputs : array (n, ...)
        Of the shape and dtype of those that will come, as :func:`.host_inputs` gives them.
    memory : str or int
        Budget for features of one tile.
    rows : int
        Of a tile.

    Attributes
    ----------
    n_features : int
        P of the pseudo kernel, C·P of the trace kernel, k of a projected one.

    Examples
    --------
    >>> from ntkrobust_sk import MLP, Model, PseudoNTK
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> X = np.ones((5, 4), np.float32)
    >>> FeatureRows(PseudoNTK(), model, X, "1GiB", 8)(X).shape
    (5, 515)
    """

    def __init__(self, kernel: Kernel, model: Model, inputs: np.ndarray, memory: str | int, rows: int):
        budget = parse_memory(memory)
        self._plan = make_plan(kernel, model, inputs.shape[1:], budget, n_rows=rows, inputs=inputs.dtype)
        self._program = tile_program(kernel, model, self._plan, inputs)
        self._dtype = params_dtype(model.variables.params)
        self._copies = self._plan.n_directions if kernel.has_gradients else 1
        if kernel.has_gradients:
            self.n_features = self._copies * n_params(model.variables.params)
        else:
            self.n_features = cast(ProjectedNTK, kernel).n_components

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Compute the features (n, k) of inputs (n, ...)."""
        plan, result = self._plan, np.empty((len(X), self.n_features), self._dtype)
        for tile in range(-(-len(X) // plan.rows)):
            at = slice(tile * plan.rows, (tile + 1) * plan.rows)
            for start in range(0, plan.n_directions, plan.directions):
                features = jax.tree.map(np.asarray, self._program(X[at], start))
                _write_columns(result[at], features, start, self._copies)
        return result


def _write_columns(rows, features, start, n_directions):
    """Place gradients of some directions in rows (n, P·n_directions): arrays in turn, directions in turn."""
    offset = 0
    for leaf in split_biases(features):
        gradients = leaf.dense()
        of_direction = gradients.layout.inverse(gradients.values).reshape(*gradients.values.shape)
        size = of_direction.shape[2]
        for direction, values in enumerate(of_direction[: n_directions - start], start):
            rows[:, offset + direction * size : offset + (direction + 1) * size] = values[: len(rows)]
        offset += n_directions * size
