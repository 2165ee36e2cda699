"""The diagonal of a Gram matrix, without the matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..execution.interrupts import heard
from ..execution.tiles import MACHINE_ROWS, one_ahead, pad_rows
from ..networks.inputs import all_finite
from ..networks.model import Model
from .gram_matrix import checked_sides
from .operator import NetworkGram, gram_operator
from .tiles import own_precision


@heard()
def kernel_diag(
    kernel: str | Callable,
    model: Model | None,
    X: ArrayLike,
    *,
    memory: str | int = "2GiB",
    dtype: DTypeLike | None = None,
    params: str | Sequence[str] | None = None,
) -> np.ndarray:
    """Compute the diagonal of a kernel's Gram matrix over inputs, k(x, x), without the matrix.

    Each input meets itself alone: n entries are computed and not n², tile by tile, and memory does not grow with
    n. The trace kernel's is (1/C) Σ_c ‖∇f_c(x)‖², the class and full kernels' are ‖∇f_c(x)‖² for each c.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
        As for :func:`~ntkrobust_sk.gram`.
    model : Model
        Or None for a kernel of the inputs alone, such as :class:`InfiniteNTK`.
    X : array (n, ...)
    memory : str or int, default="2GiB"
        Budget in bytes for working space.
    dtype : "float32" or "float64", default=None
        In which it is computed, as for :func:`~ntkrobust_sk.gram_operator`; None is that of the parameters.
    params : str or sequence of str, default=None
        Of which parameters gradients are taken, as for :func:`~ntkrobust_sk.gram`.

    Returns
    -------
    NumPy array (n,), or (n, C) of the class and the full kernel

    Raises
    ------
    ValueError, TypeError
        As :func:`~ntkrobust_sk.gram`.
    MemoryError
        If one row does not fit in ``memory``.
    FloatingPointError
        If the result is not finite.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ntkrobust_sk import MLP, Model, gram
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> X = np.eye(4)
    >>> d = kernel_diag("trace", model, X)
    >>> d.shape, bool(np.allclose(d, gram("trace", model, X).diagonal(), rtol=1e-5))
    ((4,), True)
    """
    found, chosen, inputs, _ = checked_sides(kernel, model, X, None, params=params)
    operator = cast(NetworkGram, gram_operator(found, chosen, inputs, memory=memory, dtype=dtype))
    if found.is_tangent:
        diagonal = operator.diagonal()
        return diagonal.reshape(len(inputs), -1) if operator.rank > 2 else diagonal
    # in the precision that was asked for
    chosen, inputs = operator.model, operator.X
    rows = min(MACHINE_ROWS, 2 ** math.ceil(math.log2(len(inputs))))
    tiles = (pad_rows(inputs[at : at + rows], rows) for at in range(0, len(inputs), rows))
    with own_precision(operator):
        parts = one_ahead(_own_entries(found, chosen, tile) for tile in tiles)
        diagonal = np.concatenate([np.asarray(part) for part in parts])[: len(inputs)]
    if not all_finite([diagonal]):
        raise FloatingPointError(f"the diagonal of {found!r} has entries that are not finite; look for overflow")
    return diagonal


@partial(jax.jit, static_argnums=0)
def _own_entries(kernel, model, x):
    """Return the kernel of each row with itself, (n,) or (n, C); outputs with themselves of one of all pairs."""

    def one(row):
        block = kernel(model, row[None], row[None])[0, 0]
        return jnp.diagonal(block) if block.ndim == 2 else block

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, x)
