"""Mixed precision: a network whose products round their operands, whatever library it was written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._validation import check_choice
from ..execution.precision import DIGITS
from ..execution.rewriting import rewritten
from .inputs import LogitsAndState, PyTree
from .model import Network, Variables, require_network

PRODUCTS = ("dot_general", "conv_general_dilated")


def _in_bf16(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    params = eqn.params | {"precision": None, "preferred_element_type": jnp.dtype(jnp.bfloat16)}
    product = eqn.primitive.bind(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), **params)
    return product.astype(eqn.outvars[0].aval.dtype)


def _in_tf32(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    # a GPU rounds so by itself at JAX's default precision; rounded here, it is the same on every device
    rounded = [jax.lax.reduce_precision(side, 8, DIGITS["tf32"]) for side in (lhs, rhs)]
    return eqn.primitive.bind(*rounded, **eqn.params | {"precision": None})


PRECISIONS: dict[str, Callable] = {"bf16": _in_bf16, "tf32": _in_tf32}


@dataclass(frozen=True)
class MixedPrecision:
    """A network whose products, of matrices and in convolutions, take rounded operands; all else stays float32.

    Parameters, sums, batch norm and losses keep the dtype that they have. So do products of other than float32
    operands (a network in double precision stays one), and those inside of a network's loops, of its branches, and
    of functions that have derivatives of their own.

    Parameters
    ----------
    network : Network
    precision : {"bf16", "tf32"}, default="bf16"
        "bf16": operands and results of products are bfloat16 (8 significant bits), the sums inside of a product
        are float32, as tensor cores compute them. "tf32": operands have 11 significant bits, results are float32.
        Gradients are products in the same precision. A CPU rounds alike, without the speed of a GPU; cotangents of
        "tf32" are rounded there after a product, not before it.

    Raises
    ------
    ValueError
        For another precision.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3, widths=(64,))
    >>> variables = network.init(jax.random.key(0), (4,))
    >>> x = jax.random.normal(jax.random.key(1), (8, 4))
    >>> exact, rounded = Model(network, variables)(x), Model(MixedPrecision(network), variables)(x)
    >>> rounded.dtype, 1e-4 < float(abs(rounded - exact).max() / abs(exact).max()) < 2e-2
    (dtype('float32'), True)
    """

    network: Network
    precision: str = "bf16"

    def __post_init__(self):
        require_network(self.network)
        check_choice("precision", self.precision, PRECISIONS)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw the network's own variables."""
        return self.network.init(key, input_shape)

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Compute logits (n, C) and the network's new state."""

        def product_of(eqn):
            single = eqn.primitive.name in PRODUCTS and all(var.aval.dtype == jnp.float32 for var in eqn.invars)
            return partial(PRECISIONS[self.precision], eqn) if single else None

        return rewritten(partial(self.network.apply, train=train), product_of)(params, state, x)
