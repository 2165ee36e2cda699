"""TRAK: scores of training points for networks that were trained by gradient descent.

A network near the end of training is taken for logistic regression on its tangent features, projected to k numbers
an example; of that the effect of leaving out a point is known in closed form (Park et al. 2023,
arXiv:2303.14186).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from .._validation import LARGEST_SEED, brief, integer, number
from ..execution.memory import parse_memory, readable
from ..execution.tiles import evaluate, network_rows
from ..kernels.plan import make_plan
from ..kernels.projected import ProjectedNTK
from ..kernels.tiles import tile_program
from ..networks.inputs import LogitsAndState, PyTree
from ..networks.model import Model, Network, Variables, check_model, require_model
from ..solvers.ridge import solve
from ..targets.labels import encode_labels
from .kernel_machines import checked_inputs


@dataclass(frozen=True)
class Margins:
    """A network whose outputs are the margins z_c − log Σ_{c' ≠ c} exp z_c', the log-odds of each class."""

    network: Network

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw the network's own variables."""
        return self.network.init(key, input_shape)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute margins (n, C) and the network's new state."""
        logits, state = self.network.apply(params, state, x, train=train)
        others = jnp.where(jnp.eye(logits.shape[1], dtype=bool), -jnp.inf, logits[:, None])
        return logits - jax.scipy.special.logsumexp(others, axis=2), state


def trak_scores(
    models: Model | Sequence[Model],
    X_fit: ArrayLike,
    y_fit: ArrayLike,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_components: int = 2048,
    alpha: float = 1.0,
    random_state: int = 0,
    memory: str | int = "2GiB",
) -> np.ndarray:
    """Estimate what each training point contributes to the margins of a network trained by gradient descent.

    With the projected gradients φ of the margin of an example's own class, Φ those of the training points, and
    their probabilities p, a training point i has for an example x the score

        τ_i(x) = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φ(x_i) (1 − p_i),

    about what leaving it out would take from the margin of x (Park et al. 2023, arXiv:2303.14186, eq. 13-17). Of
    several models, which differ in their seeds, both factors are averaged; one model's scores are noisy.

    Parameters
    ----------
    models : Model or sequence of Models
        Trained networks with C >= 2 logits, such as ``model_`` of :class:`AdversarialKernelTrainer`.
    X_fit : array (m, ...)
        Training inputs, in the shape that the network takes.
    y_fit : int array (m,)
        Their labels as positions 0, ..., C − 1 of the logits.
    X : array (n, ...)
    y : int array (n,)
        Labels of the margins that are taken apart; true ones, or predicted ones.
    n_components : int, default=2048
        k, the number of random projections.
    alpha : float, default=1.0
        Ridge λ, in units of the mean squared length of φ over the training points. Networks with more parameters
        than examples need much of it: with little, scores follow the noise of one training.
    random_state : int, default=0
        Seed of the projections, the same for all models.
    memory : str or int, default="2GiB"
        Budget for gradients; projections of all examples have to fit in it too.

    Returns
    -------
    float64 array (n, m)
        Positive where the training point supports the label.

    Raises
    ------
    TypeError
        For what is no Model.
    ValueError
        For labels that are no positions of logits, and networks with a single logit.
    MemoryError
        If the projections do not fit.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import AdversarialKernelTrainer, trak_scores
    >>> X, y = load_iris(return_X_y=True)
    >>> models = [AdversarialKernelTrainer(random_state=seed).fit(X, y).model_ for seed in range(2)]
    >>> trak_scores(models, X, y, X[:5], y[:5], n_components=64).shape
    (5, 150)
    """
    models = _checked_models(models)
    seed = integer("random_state", random_state, low=0, high=LARGEST_SEED)
    kernel = ProjectedNTK(integer("n_components", n_components, low=1), seed, of="pseudo")
    alpha, budget = number("alpha", alpha, above=0), parse_memory(memory)
    products, doubts = [], []
    for model in models:
        margins = Model(Margins(model.network), model.variables)
        _, _, queries, training = checked_inputs(kernel, margins, X, X_fit)
        n_logits = check_model(margins, training.shape[1:], training.dtype)
        if n_logits < 2:
            raise ValueError(f"margins need two logits or more, but the network has {n_logits}")
        positions = [
            _encoded(name, of, n_logits, len(rows))
            for name, of, rows in (("y_fit", y_fit, training), ("y", y, queries))
        ]
        _require_room(len(training) + len(queries), kernel.n_components, budget)
        phi_fit, phi = (
            _projected(kernel, margins, rows, of, budget)
            for rows, of in zip((training, queries), positions, strict=True)
        )
        products.append(_products(phi, phi_fit, alpha))
        known = evaluate(margins, training, network_rows())[np.arange(len(training)), positions[0]]
        doubts.append(scipy.special.expit(-known.astype(np.float64)))
    return np.mean(products, axis=0) * np.mean(doubts, axis=0)


def _products(phi, phi_fit, alpha) -> np.ndarray:
    """Compute φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ Φᵀ by whichever of the two Gram matrices is smaller; λ = alpha · mean |φ_i|²."""
    m, k = phi_fit.shape
    if m <= k:
        return solve(phi_fit @ phi_fit.T, phi_fit @ phi.T, alpha=alpha).T
    # the mean diagonal of ΦᵀΦ is m / k of that of ΦΦᵀ
    return solve(phi_fit.T @ phi_fit, phi.T, alpha=alpha * k / m).T @ phi_fit.T


def _projected(kernel, margins, X, positions, memory) -> np.ndarray:
    """Return projected gradients (n, k) of the margins of the classes at ``positions`` (n,), as float64."""
    plan = make_plan(kernel, margins, X.shape[1:], memory, n_rows=len(X), inputs=X.dtype)
    program = tile_program(kernel, margins, plan, X)
    (direction,) = program.passes.values()
    result = np.empty((len(X), kernel.n_components))
    for position in np.unique(positions):
        # one class after the other: the examples of a tile share the output of which gradients are taken
        of_class = jnp.zeros_like(direction).at[0, position].set(1)
        program, own = replace(program, passes={0: of_class}), np.flatnonzero(positions == position)
        for at in range(0, len(own), plan.rows):
            rows = own[at : at + plan.rows]
            (found,) = program(X[rows])
            result[rows] = np.asarray(found.values[0])[: len(rows)]
    if not np.isfinite(result).all():
        raise FloatingPointError(
            "gradients of the margins are not finite; look for overflow in the parameters or X"
        )
    return result


def _checked_models(models: Any) -> list[Model]:
    found = [models] if isinstance(models, Model) else models
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
        return [require_model(models, "models")]
    return [require_model(model, f"models[{at}]") for at, model in enumerate(found)]


def _encoded(name, y, n_logits, n_rows) -> np.ndarray:
    try:
        return encode_labels(y, np.arange(n_logits), n_rows)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} must hold positions 0, ..., {n_logits - 1} among the network's logits, one for each of "
            f"{n_rows} inputs, got {brief(y)}: {error}"
        ) from None


def _require_room(n_rows, k, budget):
    if (size := 8 * n_rows * k) > budget:
        raise MemoryError(
            f"{k:,} projections of {n_rows:,} examples take {readable(size)}, more than the budget of "
            f"{readable(budget)}; take fewer n_components, or raise memory"
        )
