"""Empirical neural tangent kernels.

k(x, x') = J(x) J(x')ᵀ is C × C for every pair, J(x) = ∂f(x)/∂θ being the network's Jacobian with respect to
its parameters. The four kernels here keep all of it or the part that their name says.

A kernel is a frozen dataclass with ``kernel(model, x1, x2) -> block``, the block's rank telling its kind:
2 (n, m), 3 (n, m, C) for one kernel per class, 4 (n, m, C, C) for all of it. Those that come from tangent
features f also give ``features(model, x)`` and ``contract(f1, f2)``, which :func:`~ntkrobust_sk.gram` calls
to compute every example's features once, and ``fold`` and ``predict``, the primal side: training points
enter once, as tangents, and predictions cost the same however many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .networks import Model, PyTree, check_choice
from .tangent import (
    contract_features,
    contract_summed_features,
    push,
    summed_features,
    tangent_features,
)

HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class TraceNTK:
    """Mean over the classes of the class kernels: K(x, x') = (1/C) Σ_c ⟨∇f_c(x), ∇f_c(x')⟩.

    The combined kernel of Loo et al. 2022 (arXiv:2210.12030), the trace of the full kernel **divided by C**
    (neural-tangents' ``trace_axes=(-1,)``). It has no cross-class terms.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> TraceNTK()(model, jax.numpy.ones((2, 4)), jax.numpy.ones((5, 4))).shape
    (2, 5)
    """

    rank = 2

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Block (n, m) of inputs (n, ...) and (m, ...)."""
        return _block(self, model, x1, x2)

    def features(self, model: Model, x: jax.Array) -> list[jax.Array]:
        """Per-example gradients, a list of (n, C, p)."""
        return tangent_features(model, x)

    def contract(self, f1: list[jax.Array], f2: list[jax.Array]) -> jax.Array:
        """Block (n, m) of two sets of features."""
        return _sum_over_leaves("ncp,mcp->nm", f1, f2) / f1[0].shape[1]

    def fold(self, features: list[jax.Array], dual: jax.Array) -> list[jax.Array]:
        """Tangents W_kt = (1/C) Σ_i dual_it ∇f_k(x_i), a list of (C, T, p), of coefficients (n, T)."""
        return _weighted_sum("nkp,nt->ktp", features, dual / features[0].shape[1])

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Scores (n, T): Σ_k ⟨∇f_k(x), W_kt⟩."""
        return contract_features(model, x, tangents)


@dataclass(frozen=True)
class ClassNTK:
    """One kernel for each class: K_c(x, x') = ⟨∇f_c(x), ∇f_c(x')⟩, rank 3.

    Their mean over c is :class:`TraceNTK`. Kernel regression solves one system per class.
    """

    rank = 3

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Block (n, m, C) of inputs (n, ...) and (m, ...)."""
        return _block(self, model, x1, x2)

    def features(self, model: Model, x: jax.Array) -> list[jax.Array]:
        """Per-example gradients, a list of (n, C, p)."""
        return tangent_features(model, x)

    def contract(self, f1: list[jax.Array], f2: list[jax.Array]) -> jax.Array:
        """Block (n, m, C) of two sets of features."""
        return _sum_over_leaves("ncp,mcp->nmc", f1, f2)

    def fold(self, features: list[jax.Array], dual: jax.Array) -> list[jax.Array]:
        """Tangents w_c = Σ_i dual_ic ∇f_c(x_i), a list of (C, p), of coefficients (n, C)."""
        return _weighted_sum("ncp,nc->cp", features, dual)

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Scores (n, C): ⟨∇f_c(x), w_c⟩."""
        return jnp.einsum("cnc->nc", push(model, x, tangents))


@dataclass(frozen=True)
class FullNTK:
    """The whole kernel, C × C for every pair: K(x, x')_cd = ⟨∇f_c(x), ∇f_d(x')⟩, rank 4.

    Its predictor is exactly the centred linearised network at the displacement Jᵀα, so a prediction costs
    one JVP however many training points there were.
    """

    rank = 4

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Block (n, m, C, C) of inputs (n, ...) and (m, ...)."""
        return _block(self, model, x1, x2)

    def features(self, model: Model, x: jax.Array) -> list[jax.Array]:
        """Per-example gradients, a list of (n, C, p)."""
        return tangent_features(model, x)

    def contract(self, f1: list[jax.Array], f2: list[jax.Array]) -> jax.Array:
        """Block (n, m, C, C) of two sets of features."""
        return _sum_over_leaves("ncp,mdp->nmcd", f1, f2)

    def fold(self, features: list[jax.Array], dual: jax.Array) -> list[jax.Array]:
        """The one tangent w = Jᵀ dual = Σ_ic dual_ic ∇f_c(x_i), a list of (1, p), of coefficients (n, C)."""
        return [leaf[None] for leaf in _weighted_sum("ncp,nc->p", features, dual)]

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Scores (n, C): J(x) w."""
        return push(model, x, tangents)[0]


@dataclass(frozen=True)
class PseudoNTK:
    """Kernel of the scaled sum of logits: K(x, x') = ⟨∇g(x), ∇g(x')⟩ with g = (1/√C) Σ_c f_c.

    N × N at 1/C of the trace kernel's cost (Mohamadi et al. 2023, arXiv:2206.12543). It approaches the trace
    kernel for wide networks at initialisation; on trained networks it is another kernel, so report its
    distance from :class:`TraceNTK` where you use it in that one's place.
    """

    rank = 2

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Block (n, m) of inputs (n, ...) and (m, ...)."""
        return _block(self, model, x1, x2)

    def features(self, model: Model, x: jax.Array) -> list[jax.Array]:
        """Per-example gradients of g, a list of (n, p)."""
        scale = 1.0 / math.sqrt(_n_outputs(model, x))
        return [scale * leaf for leaf in summed_features(model, x)]

    def contract(self, f1: list[jax.Array], f2: list[jax.Array]) -> jax.Array:
        """Block (n, m) of two sets of features."""
        return _sum_over_leaves("np,mp->nm", f1, f2)

    def fold(self, features: list[jax.Array], dual: jax.Array) -> list[jax.Array]:
        """Tangents w_t = Σ_i dual_it ∇g(x_i), a list of (T, p), of coefficients (n, T)."""
        return _weighted_sum("np,nt->tp", features, dual)

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Scores (n, T): ⟨∇g(x), w_t⟩."""
        return contract_summed_features(model, x, tangents) / math.sqrt(_n_outputs(model, x))


KERNELS = {"trace": TraceNTK(), "class": ClassNTK(), "full": FullNTK(), "pseudo": PseudoNTK()}


def resolve_kernel(kernel) -> Callable:
    """The kernel of that name, or the callable itself.

    >>> resolve_kernel("trace")
    TraceNTK()
    """
    if isinstance(kernel, str):
        check_choice("kernel", kernel, KERNELS)
        return KERNELS[kernel]
    if isinstance(kernel, type):
        raise TypeError(f"kernel must be an instance: write {kernel.__name__}(...), not {kernel.__name__}")
    if not callable(kernel):
        raise ValueError(
            f"kernel must be one of {', '.join(map(repr, KERNELS))} or a callable "
            f"kernel(model, x1, x2) -> block, got {kernel!r}"
        )
    return kernel


def _block(kernel, model, x1, x2):
    return kernel.contract(kernel.features(model, x1), kernel.features(model, x2))


def _sum_over_leaves(equation, leaves1, leaves2):
    pairs = zip(leaves1, leaves2, strict=True)
    return sum(jnp.einsum(equation, a, b, precision=HIGHEST) for a, b in pairs)


def _n_outputs(model, x):
    return jax.eval_shape(model, x).shape[1]


def _weighted_sum(equation, leaves, dual):
    """Sums over examples in the dtype of ``dual``."""
    return [jnp.einsum(equation, leaf.astype(dual.dtype), dual, precision=HIGHEST) for leaf in leaves]
