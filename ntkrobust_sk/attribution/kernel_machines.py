"""What each training point contributes to the scores of a kernel machine, tile by tile.

A machine's score is s(x) = b + Σ_i K(x, x_i) α_i: a sum over its training points, of which each has its own signed
term (a representer value, Yeh et al. 2018, arXiv:1811.09720). It says exactly how the score is put together with
the coefficients as they are. It does not say what the score would be after training without a point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from .._validation import array, brief, integer, is_finite, job_count
from ..execution.memory import parse_memory, readable
from ..kernels.gram_matrix import checked_sides
from ..kernels.ntk import Kernel
from ..kernels.plan import make_plan
from ..kernels.tiles import TileJob, own_digits
from ..kernels.workers import finished_tiles
from ..networks.model import Model


@dataclass(frozen=True, eq=False)
class TopContributions:
    """The training points that contribute most to a score, and those that contribute most against it.

    Attributes
    ----------
    helpful, harmful : int array (n, k)
        Positions of training points, the largest contribution first, and the most negative one first.
    helpful_values, harmful_values : float64 array (n, k)
        Their contributions.

    Examples
    --------
    >>> import numpy as np
    >>> top = TopContributions.of_matrix(np.array([[0.5, -2.0, 3.0]]), 1)
    >>> top.helpful, top.harmful
    (array([[2]]), array([[1]]))
    """

    helpful: np.ndarray
    helpful_values: np.ndarray
    harmful: np.ndarray
    harmful_values: np.ndarray

    @classmethod
    def of_matrix(cls, contributions: ArrayLike, k: int) -> TopContributions:
        """Take the k largest and the k smallest of each row of contributions (n, m)."""
        contributions = array("contributions", contributions, ndim=2, finite=True).astype(np.float64)
        k = integer("k", k, low=1, high=contributions.shape[1])
        places = np.broadcast_to(np.arange(contributions.shape[1]), contributions.shape)
        return cls(*_largest(contributions, places, k), *_negated(*_largest(-contributions, places, k)))


def contributions(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike,
    X_fit: ArrayLike,
    dual_coef: ArrayLike,
    *,
    memory: str | int = "2GiB",
    n_jobs: int | None = None,
) -> np.ndarray:
    """Compute the signed terms of the scores of a kernel machine, one for each training point.

    Of kernels with one number for a pair the terms are K(x, x_i) α_ic, of the class kernel K_c(x, x_i) α_ic, of
    the full kernel Σ_d K_cd(x, x_i) α_id. Summed over the training points they are the score without its offset.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
    model : Model
        Or None for a kernel that needs none.
    X : array (n, ...)
        Inputs whose scores are taken apart.
    X_fit : array (m, ...)
        Training inputs.
    dual_coef : array (m, T)
        What :func:`~ntkrobust_sk.solve` returns.
    memory : str or int, default="2GiB"
        Budget as for :func:`~ntkrobust_sk.gram`; the result has to fit in it too.
    n_jobs : int, default=None
        Worker processes, as for :func:`~ntkrobust_sk.gram`.

    Returns
    -------
    float64 array (n, m, T)

    Raises
    ------
    MemoryError
        If the result takes more than ``memory``; :func:`top_contributions` needs no room for it.
    ValueError
        If dual coefficients and inputs do not fit each other.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> from ntkrobust_sk.attribution import contributions
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> X_fit, dual = np.eye(4), np.arange(8.0).reshape(4, 2)
    >>> terms = contributions("trace", model, X_fit[:3], X_fit, dual)
    >>> terms.shape, bool(np.allclose(terms.sum(1), gram("trace", model, X_fit[:3], X_fit) @ dual))
    ((3, 4, 2), True)
    """
    kernel, model, X, X_fit = checked_inputs(kernel, model, X, X_fit)
    dual_coef = _checked_coefficients(X_fit, dual_coef)
    shape = (len(X), *dual_coef.shape)
    _require_room(shape, memory)
    result = np.empty(shape)
    for rows, columns, terms in _tiles(kernel, model, X, X_fit, dual_coef, None, memory, n_jobs):
        result[rows, columns] = terms
    return _finite(result, kernel)


def top_contributions(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike,
    X_fit: ArrayLike,
    dual_coef: ArrayLike,
    readout: ArrayLike,
    k: int,
    *,
    memory: str | int = "2GiB",
    n_jobs: int | None = None,
) -> TopContributions:
    """Find the training points that contribute most to a score of each input, and most against it.

    Contributions are computed tile by tile, and only the k largest of each side are kept: memory does not grow
    with the number of training points.

    Parameters
    ----------
    kernel, model, X, X_fit, dual_coef, memory, n_jobs
        As for :func:`contributions`.
    readout : array (n, T)
        The score of each input, as weights of the machine's T scores: a row of zeros with a 1 is one of them.
    k : int
        At most the number of training points.

    Returns
    -------
    TopContributions

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ntkrobust_sk import MLP, Model
    >>> from ntkrobust_sk.attribution import top_contributions
    >>> network = MLP(n_outputs=2)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> dual = np.array([[3.0, 0], [1, 0], [-2, 0], [0, 5]])
    >>> top = top_contributions("trace", model, np.ones((1, 4)), np.ones((4, 4)), dual, np.array([[1, 0]]), 2)
    >>> top.helpful, top.harmful
    (array([[0, 1]]), array([[2, 3]]))
    """
    kernel, model, X, X_fit = checked_inputs(kernel, model, X, X_fit)
    dual_coef = _checked_coefficients(X_fit, dual_coef)
    readout = array("readout", readout, ndim=2, finite=True).astype(np.float64)
    if readout.shape != (wanted := (len(X), dual_coef.shape[1])):
        raise ValueError(f"readout must be {wanted}, a row of weights for each input, got shape {readout.shape}")
    k = integer("k", k, low=1, high=len(X_fit))
    best = {}
    for rows, columns, terms in _tiles(kernel, model, X, X_fit, dual_coef, readout, memory, n_jobs):
        _finite(terms, kernel)
        places = np.broadcast_to(np.arange(columns.start, columns.stop), terms.shape)
        found = (places, terms, places, -terms)
        if rows.start in best:
            found = [np.concatenate(both, axis=1) for both in zip(best[rows.start], found, strict=True)]
        best[rows.start] = (*_largest(found[1], found[0], k), *_largest(found[3], found[2], k))
    helpful, values, harmful, negated = (
        np.concatenate(parts) for parts in zip(*(best[at] for at in sorted(best)), strict=True)
    )
    return TopContributions(helpful, values, *_negated(harmful, negated))


def checked_inputs(
    kernel: str | Callable, model: Model | None, X: ArrayLike, X_fit: ArrayLike
) -> tuple[Kernel, Model, np.ndarray, np.ndarray]:
    """Return kernel, model, inputs and training inputs, in NumPy, if they fit each other."""
    kernel, model, inputs, training = checked_sides(kernel, model, X, X_fit, ("X", "X_fit"))
    return kernel, model, inputs, cast(np.ndarray, training)


def _tiles(
    kernel, model, X, X_fit, dual_coef, readout, memory, n_jobs
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield contributions of a tile of training points to a tile of inputs, with their places.

    They are (rows, columns, T), or (rows, columns) to what is read out.
    """
    job_count(n_jobs)
    budget, n_rows = parse_memory(memory), max(len(X), len(X_fit))
    # terms are large and of both signs where the ridge is small, so their sum shows the rounding of each
    dtype = own_digits(kernel, model) or ("float64" if kernel.is_tangent else None)
    plan = make_plan(kernel, model, X.shape[1:], budget, n_rows=n_rows, dtype=dtype, inputs=X.dtype)
    job = TileJob(kernel, model, X, X_fit, plan, dtype)
    for (i, j), (block,) in finished_tiles(job, job.tiles(), n_jobs, width=plan.panel):
        rows, columns = (
            slice(at * plan.rows, min((at + 1) * plan.rows, len(of))) for at, of in ((i, X), (j, X_fit))
        )
        if block.ndim > 2 and block.shape[2] != dual_coef.shape[1]:
            raise ValueError(
                f"dual_coef must have a column for each of the {block.shape[2]} outputs of {brief(kernel)}, got "
                f"shape {dual_coef.shape}"
            )
        block = np.asarray(block, np.float64)[: rows.stop - rows.start, : columns.stop - columns.start]
        yield rows, columns, _terms(block, dual_coef[columns], None if readout is None else readout[rows])


def _terms(block, dual, readout) -> np.ndarray:
    """Compute the terms (n, m, T) of a block of any rank, or (n, m) of what is read out of the T scores."""
    # what overflows is found in the result
    with np.errstate(over="ignore", invalid="ignore"):
        if readout is None:
            return (block @ dual[:, :, None])[..., 0] if block.ndim == 4 else _paired(block) * dual
        if block.ndim == 2:
            return block * (readout @ dual.T)
        equation = "nmc,mc,nc->nm" if block.ndim == 3 else "nmcd,md,nc->nm"
        return np.einsum(equation, block, dual, readout, optimize=True)


def _paired(block):
    return block[:, :, None] if block.ndim == 2 else block


def _largest(values, places, k) -> tuple[np.ndarray, np.ndarray]:
    """Return places and values of the k largest of each row, in order; of equal ones the first."""
    order = np.lexsort((places, -values))[:, :k]
    return np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)


def _negated(places, values):
    return places, -values


def _checked_coefficients(X_fit, dual_coef) -> np.ndarray:
    dual_coef = array("dual_coef", dual_coef, ndim=2, finite=True).astype(np.float64, copy=False)
    if len(dual_coef) != len(X_fit) or not dual_coef.shape[1]:
        raise ValueError(
            f"dual_coef must be (m, T) for the m = {len(X_fit)} training inputs, got shape {dual_coef.shape}"
        )
    return dual_coef


def _require_room(shape, memory):
    size, budget = 8 * int(np.prod(shape, dtype=object)), parse_memory(memory)
    if size > budget:
        raise MemoryError(
            f"contributions of shape {shape} take {readable(size)}, more than the budget of {readable(budget)}; "
            "take fewer inputs at once, ask for the largest ones alone, or raise memory"
        )


def _finite(terms, kernel) -> np.ndarray:
    if not is_finite(terms):
        raise FloatingPointError(
            f"contributions by {brief(kernel)} are not finite; look for overflow in the network's parameters, in "
            "the inputs or in dual_coef"
        )
    return terms
