"""Kernels of infinitely wide networks, by neural-tangents, as kernels of this library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._validation import brief, check_choice, function
from ..networks.adapters import StaxNetwork
from ..networks.inputs import finite_inputs
from ..networks.model import Model
from .fingerprint import code_digest
from .neural_tangents_bridge import import_neural_tangents

KINDS = ("ntk", "nngp")
# Factors of two inputs, by which a network is seen to scale with them.
PROBED = ((2.0**-20, 2.0**-20), (2.0**-10, 2.0**14))


@dataclass(frozen=True)
class InfiniteNTK:
    """The tangent kernel of an infinitely wide network: the same for all weights, and all through training.

    neural-tangents computes it layer by layer: K(x, x') is the limit of ⟨∇f_c(x), ∇f_c(x')⟩ for each output c, and
    so of :class:`TraceNTK` (Jacot et al. 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720). It is a
    function of the inputs alone: give ``None`` where :func:`~ntkrobust_sk.gram` takes a model. It goes wherever a
    kernel goes: into stores, estimators and attacks. In single precision entries of near inputs have four digits
    where the network has ReLUs, since the angle between these inputs is the arc cosine of a number next to 1;
    ``gram(..., dtype="float64")`` computes in double precision. It does so too for inputs so large or small that
    squares of their variances leave single precision, which are an error there unless the network scales with its
    inputs: has no biases, and activations such as ReLU's.

    Parameters
    ----------
    network : tuple of functions, or callable
        ``(init_fn, apply_fn, kernel_fn)``, as ``neural_tangents.stax.serial`` returns them; or a function of the
        module ``stax`` that returns such a tuple. The functions of a tuple cannot be pickled: for joblib's workers
        and for files write a function in a module, ``def network(stax): return stax.serial(...)``.
    kind : {"ntk", "nngp"}, default="ntk"
        The tangent kernel, or the covariance of the outputs at initialisation: of the Gaussian process that the
        network is then.

    Raises
    ------
    TypeError
        For anything else than such a network.
    ImportError
        If neural-tangents is not installed.

    Examples
    --------
    ``gram(kernel, None, X)`` is its Gram matrix; neural-tangents is imported then.

    >>> from ntkrobust_sk import InfiniteNTK
    >>> def network(stax):
    ...     return stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(10))
    >>> kernel = InfiniteNTK(network)
    >>> kernel.kind, kernel.rank, kernel.needs_model
    ('ntk', 2, False)
    """

    network: Any
    kind: str = "ntk"

    rank: ClassVar[int] = 2
    needs_model: ClassVar[bool] = False

    def __post_init__(self):
        check_choice("kind", self.kind, KINDS)
        if isinstance(self.network, list):
            object.__setattr__(self, "network", tuple(self.network))
        if callable(self.network):
            function("network", self.network, "network(stax)", 1)
        else:
            _require_triple(self.network)

    def __deepcopy__(self, memo: dict) -> InfiniteNTK:
        # nothing in it can change, and what is kept for it is then kept for estimators' clones
        return self

    @property
    def functions(self) -> tuple[Callable, Callable, Callable]:
        """The functions ``(init_fn, apply_fn, kernel_fn)`` of the network."""
        return self.network if isinstance(self.network, tuple) else _made(self.network, code_digest(self.network))

    def finite(self, key: jax.Array, input_shape: tuple[int, ...]) -> Model:
        """Draw a network of the widths that its layers state, whose :class:`TraceNTK` approaches this kernel.

        Parameters
        ----------
        key : key of JAX
        input_shape : tuple of int

        Returns
        -------
        Model
        """
        init_fn, apply_fn, _ = self.functions
        network = StaxNetwork(init_fn, apply_fn)
        return Model(network, network.init(key, input_shape))

    def __call__(self, model: Model | None, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Compute the block (n, m) of inputs (n, ...) and (m, ...); the model is not looked at.

        Raises
        ------
        ValueError
            If the network cannot take such inputs, or has more than one number for a pair of them.
        """
        x1, x2 = (_as_numbers(name, x) for name, x in (("x1", x1), ("x2", x2)))
        kernel_fn = self.functions[2]
        try:
            # double precision has range enough
            scales = x1.dtype != np.float64 and _scales_with_inputs(kernel_fn, self.kind, x1.shape[1:])
            (near1, units1), (near2, units2) = map(_near_one, (x1, x2))
            inputs = (near1, near2) if scales else (x1, x2)
            with jax.default_matmul_precision("highest"):
                block = kernel_fn(*inputs, self.kind)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
            raise ValueError(f"{_unfit(x1)}: {error} ({type(error).__name__})") from error
        if block.shape != (len(x1), len(x2)):
            raise ValueError(
                f"{_unfit(x1)}: kernel_fn returns shape {block.shape} for {len(x1)} and {len(x2)} of them, not "
                "one number for each pair; end the network with GlobalAvgPool() or Flatten(), and Dense(n_outputs)"
            )
        if scales:
            return block * units1[:, None] * units2[None, :]
        return jnp.where(_in_range(x1, x2), block, jnp.nan)


@lru_cache(maxsize=64)
def _scales_with_inputs(kernel_fn, kind: str, shape: tuple[int, ...]) -> bool:
    """Tell whether K(a x, b x') = a b K(x, x'), as of networks without biases whose activations are like ReLU.

    Powers of two, which change no digit, show it; a bias shows beside inputs of 1e-6.
    """
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    with jax.ensure_compile_time_eval():
        block = jax.jit(partial(_block, kernel_fn, kind))
        plain = np.asarray(block(x, x))
        scaled = [np.asarray(block(x * a, x * b)) / (a * b) for a, b in PROBED]
    return all(np.allclose(each, plain, rtol=1e-6, atol=0) for each in scaled)


def _block(kernel_fn, kind, x1, x2):
    with jax.default_matmul_precision("highest"):
        return kernel_fn(x1, x2, kind)


def _near_one(x):
    """Return inputs (n, ...) each in a power of two near its largest entry, and these powers (n,)."""
    largest = jax.lax.stop_gradient(jnp.abs(x).reshape(len(x), -1).max(axis=1))
    _, exponents = jnp.frexp(jnp.where(largest > 0, largest, 1))
    smallest = jnp.finfo(x.dtype).minexp
    units = jnp.ldexp(jnp.ones_like(largest), jnp.maximum(exponents - 1, smallest))
    return x / units.reshape(-1, *[1] * (x.ndim - 1)), units


def _in_range(x1, x2):
    """Tell for which pairs (n, m) products of two variances, as neural-tangents takes them, keep their digits."""
    sizes = []
    for x in (x1, x2):
        near, units = _near_one(x)
        sizes.append(units * jnp.sqrt(jnp.mean(near**2, axis=tuple(range(1, x.ndim)))))
    # roots of the products of variances
    product = sizes[0][:, None] * sizes[1][None, :]
    limits = jnp.finfo(product.dtype)
    return (product == 0) | ((product > 10 * limits.tiny**0.5) & (product < 1e-2 * limits.max**0.5))


def _as_numbers(name, x):
    x = finite_inputs(name, x, jnp.zeros(1))
    return x.astype(jnp.result_type(float)) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _unfit(x):
    return f"the infinitely wide network cannot take inputs of shape (n, {', '.join(map(str, x.shape[1:]))})"


@lru_cache(maxsize=64)
def _made(network, code):
    return _require_triple(network(import_neural_tangents().stax))


def _require_triple(network):
    if not isinstance(network, tuple) or len(network) != 3 or not all(map(callable, network)):
        raise TypeError(
            "network must be (init_fn, apply_fn, kernel_fn), as neural_tangents.stax.serial(...) returns it, or "
            f"a function of the module stax that returns it, got {brief(network)}; jax.example_libraries.stax has "
            "no kernel_fn"
        )
    return network
