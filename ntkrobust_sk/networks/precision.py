"""Mixed precision: a network whose products round their operands, whatever library it was written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp

from .._validation import check_choice
from ..execution.precision import DIGITS
from ..execution.rewriting import rewritten
from .inputs import LogitsAndState, PyTree, params_dtype
from .model import Model, Network, Variables, require_network
from .wrappers import in_mode, network_within

PRODUCTS = ("dot_general", "conv_general_dilated")


def _in_bf16(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    params = eqn.params | {"precision": None, "preferred_element_type": jnp.dtype(jnp.bfloat16)}
    product = eqn.primitive.bind(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), **params)
    return product.astype(eqn.outvars[0].aval.dtype)


def _in_tf32(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    # a GPU rounds so by itself at its default precision; rounded here, it is the same on every device. The default
    # by name, since None would leave gradients to a surrounding jax.default_matmul_precision("highest")
    rounded = [jax.lax.reduce_precision(side, 8, DIGITS["tf32"]) for side in (lhs, rhs)]
    return eqn.primitive.bind(*rounded, **eqn.params | {"precision": (jax.lax.Precision.DEFAULT,) * 2})


PRECISIONS: dict[str, Callable] = {"bf16": _in_bf16, "tf32": _in_tf32}


@dataclass(frozen=True)
class MixedPrecision:
    """A network whose products, of matrices and in convolutions, take rounded operands; all else stays float32.

    Parameters, sums, batch norm and losses keep the dtype that they have. So do products of other than float32
    operands (a network in double precision stays one), and those inside of a network's loops, of its branches, and
    of functions that have derivatives of their own. :func:`~ntkrobust_sk.gram` rounds such a network's features
    alike, unless it is given another ``dtype``. By ``precision=``, the estimators and
    :class:`~ntkrobust_sk.KernelEvolution` make one of their own network.

    Parameters
    ----------
    network : Network
    precision : {"bf16", "tf32"}, default="bf16"
        "bf16": operands and results of products are bfloat16 (8 significant bits), the sums inside of a product
        are float32, as tensor cores compute them; compilers may leave results in float32. "tf32": operands have 11
        significant bits, results are float32. Gradients are products in the same precision. A CPU rounds alike,
        without the speed of a GPU; cotangents of "tf32" are rounded there after a product, not before it.

    Raises
    ------
    ValueError
        For another precision, and for a network that is in mixed precision already, in wrappers too.

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
    passes_key_on: ClassVar[bool] = True

    def __post_init__(self):
        require_network(self.network)
        check_choice("precision", self.precision, PRECISIONS)
        if (own := precision_of(self.network)) is not None:
            raise ValueError(
                f"network must have no precision of its own, got one in {own!r}, whose products would be rounded "
                "twice; give the network within that one instead"
            )

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw the network's own variables."""
        return self.network.init(key, input_shape)

    def apply(
        self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> LogitsAndState:
        """Compute logits (n, C) and the network's new state; a key in training is the network's."""

        def product_of(eqn):
            single = eqn.primitive.name in PRODUCTS and all(var.aval.dtype == jnp.float32 for var in eqn.invars)
            return partial(PRECISIONS[self.precision], eqn) if single else None

        return rewritten(in_mode(self.network, train, key), product_of)(params, state, x)


def precision_of(network: object) -> str | None:
    """Return the precision of a network that is one in mixed precision, or a wrapper around one; else None.

    >>> from ntkrobust_sk import MLP, Normalized
    >>> precision_of(Normalized(MixedPrecision(MLP(3), "tf32"), (0.5,), (0.25,))), precision_of(MLP(3))
    ('tf32', None)
    """
    if isinstance(network, MixedPrecision):
        return network.precision
    held = network_within(network)
    return None if held is None else precision_of(held)


def in_precision(network: Network, precision: str | None) -> Network:
    """Return a network in a precision, in place of the one that it is in; None leaves it as it is.

    >>> from ntkrobust_sk import MLP
    >>> in_precision(MixedPrecision(MLP(3), "tf32"), "bf16") == MixedPrecision(MLP(3), "bf16")
    True
    """
    own = precision_of(network)
    if precision is None or own == precision:
        return network
    if own is None:
        return MixedPrecision(network, precision)
    if isinstance(network, MixedPrecision):
        return replace(network, precision=precision)
    return replace(cast(Any, network), network=in_precision(cast(Network, network_within(network)), precision))


def with_precision(model: Model, precision: str | None) -> Model:
    """Return a model whose network is in a precision; None leaves it as it is.

    Parameters
    ----------
    model : Model
    precision : {"bf16", "tf32"} or None

    Raises
    ------
    ValueError
        For another precision, and for parameters in another dtype than float32, whose products would not round.
    """
    if precision is None:
        return model
    dtype = params_dtype(model.variables.params)
    if dtype != jnp.float32:
        raise ValueError(
            f"precision={precision!r} rounds products of float32, but the network's parameters are in {dtype}; "
            "leave precision out, or give parameters in float32"
        )
    return Model(in_precision(model.network, precision), model.variables)
