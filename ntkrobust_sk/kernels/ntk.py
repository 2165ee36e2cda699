"""Empirical neural tangent kernels.

k(x, x') = J(x) J(x')ᵀ is C × C for every pair, J(x) = ∂f(x)/∂θ being the network's Jacobian with respect to
its parameters. The kernels here keep all of it or the part that their name says.

A kernel is a frozen dataclass with ``kernel(model, x1, x2) -> block``, the block's rank telling its kind:
2 (n, m), 3 (n, m, C) for one kernel per class, 4 (n, m, C, C) for all of it. The tangent kernels differ in two
things only: the directions in output space of which they take gradients (``output_directions``), and whether the
inner products of those are summed, kept apart, or taken between all pairs (``rank``). They also give
``features(model, x, directions)`` and ``contract(f1, f2)``, which :func:`~ntkrobust_sk.gram` calls to compute
every example's features once, and ``fold`` and ``predict``, the primal side: training points enter once, as
tangents, and predictions cost the same however many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from .._validation import check_choice, function, unknown
from ..networks.inputs import PyTree, all_finite, finite_inputs
from ..networks.model import Model, check_model, require_model
from ..tangent.gradient_lists import contract_with_tangents, split_biases
from ..tangent.gradients import DenseGradients, Gradients
from ..tangent.per_example import can_push, contract_features, identity_directions, push, tangent_features

TangentGradients = list[Gradients]


@dataclass(frozen=True)
class TangentKernel:
    """A kernel of inner products of gradients of ⟨d_r, f⟩: what the empirical tangent kernels share."""

    rank: ClassVar[int]
    # Whether features are the gradients themselves, and may be computed for a few directions at a time.
    has_gradients: ClassVar[bool] = True

    # Whether features are tangent features, whose entries may be contracted by layer, rounded and folded.
    is_tangent: ClassVar[bool] = True

    needs_model: ClassVar[bool] = True
    # What computes it, where that is a function of somebody else's.
    function: ClassVar[None] = None

    @property
    def base(self) -> TangentKernel:
        """The kernel whose gradients these are."""
        return self

    @property
    def splits_directions(self) -> bool:
        """Whether no inner products of different directions are needed."""
        return self.has_gradients and self.rank < 4

    @property
    def reading(self) -> Any:
        """What decides how gradients are read, besides the network and the number of directions."""
        return self.rank == 4 if type(self).features is TangentKernel.features else self

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Compute the block (n, m, ...) of inputs (n, ...) and (m, ...)."""
        require_model(model)
        x1, x2 = (_checked(name, x, model) for name, x in (("x1", x1), ("x2", x2)))
        with jax.default_matmul_precision("highest"):
            block = self.contract(self.features(model, x1), self.features(model, x2))
        if not all_finite([block]):
            raise FloatingPointError(
                f"the block of {self!r} has entries that are not finite; look for overflow in the network's "
                "parameters, x1 or x2"
            )
        return block

    def output_directions(self, model: Model, x: jax.Array) -> jax.Array:
        """Return the directions d_r in output space, (R, C): here the logits, one by one."""
        return identity_directions(model, x)

    def features(self, model: Model, x: jax.Array, directions: jax.Array | None = None) -> TangentGradients:
        """Compute the gradients of ⟨d_r, f⟩ at every input, dense or as outer products, by parameter array.

        Biases may be in the entry of their weights.
        """
        directions = self.output_directions(model, x) if directions is None else directions
        return tangent_features(model, x, directions, all_pairs=self.rank == 4)

    def contract(self, f1: TangentGradients, f2: TangentGradients) -> jax.Array:
        """Compute the block of two sets of features, in NumPy if they are NumPy arrays."""
        # a list: all products before all sums is the order in the jaxpr by which stores know a kernel
        return cast(jax.Array, sum([self._contract_layer(a, b) for a, b in zip(f1, f2, strict=True)]))

    def blocks(
        self, model: Model, f1: TangentGradients, f2: TangentGradients, dtype: DTypeLike | None = None
    ) -> list[jax.Array]:
        """Compute one block for each entry of the features of two tiles, in ``dtype``; the kernel is their sum."""
        if dtype is None:
            return [self._contract_layer(a, b) for a, b in zip(f1, f2, strict=True)]
        # layer by layer: copies of all features at once would take more than a plan leaves room for
        return [self._contract_layer(a.astype(dtype), b.astype(dtype)) for a, b in zip(f1, f2, strict=True)]

    def block_entries(self, n_directions: int) -> int:
        """Count the entries of a block for each pair of inputs, in a pass over some directions."""
        return n_directions ** (self.rank - 2)

    def contraction_bytes(self, features: TangentGradients, itemsize: int) -> int:
        """Count what the inner products of two tiles take at most, layer by layer."""
        return max(_contraction_bytes(leaf, itemsize, self.rank == 4) for leaf in features)

    def entry(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Return a block as a function to be traced; features are the same of both inputs, and slow to trace."""
        features = self.features(model, x1)
        return self.contract(features, features)

    def _contract_layer(self, a, b):
        if self.rank == 4:
            return a.inner_all(b).transpose(1, 3, 0, 2)
        return a.inner_sum(b) if self.rank == 2 else a.inner(b).transpose(1, 2, 0)

    def fold(self, features: TangentGradients, dual: jax.Array) -> list[jax.Array]:
        """Fold training points into tangents, one array for each parameter array, by dual coefficients (n, T).

        Rank 2: W_rt = Σ_i dual_it ∇⟨d_r, f(x_i)⟩, ``(R, T, *leaf.shape)``. Rank 3: w_r = Σ_i dual_ir ∇⟨d_r,
        f(x_i)⟩, ``(R, *leaf.shape)``. Rank 4: their sum over r, ``(1, *leaf.shape)``.
        """
        n_directions = _n_directions(features[0])
        weights = jnp.broadcast_to(dual, (n_directions, *dual.shape)) if self.rank == 2 else dual.T[:, :, None]
        folded = [leaf.layout.inverse(leaf.weighted(weights)) for leaf in split_biases(features)]
        if self.rank == 2:
            return folded
        return [leaf[:, 0] if self.rank == 3 else leaf.sum(0) for leaf in folded]

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Compute the scores (n, T) of tangents as :meth:`fold` makes them."""
        if not can_push(model, x):
            return self._predict_from_features(model, tangents, x)
        if self.rank == 2:
            return contract_features(model, x, tangents, self.output_directions(model, x))
        if self.rank == 3:
            alone = jax.tree.map(lambda leaf: leaf[:, None], tangents)
            return contract_features(model, x, alone, self.output_directions(model, x), each=True)[:, :, 0]
        return push(model, x, tangents)[0]

    def _predict_from_features(self, model, tangents, x):
        """Compute the scores by products with the query's features, where nothing can be pushed forward."""
        features = split_biases(self.features(model, x))
        n_directions = _n_directions(features[0])
        terms = []
        for leaf, some in zip(features, jax.tree.leaves(tangents), strict=True):
            some = some if self.rank == 2 else jnp.broadcast_to(some, (n_directions, *some.shape[1:]))[:, None]
            terms.append(contract_with_tangents(leaf, some))
        scores = cast(jax.Array, sum(terms))
        return scores.sum(0) if self.rank == 2 else scores[:, :, 0].T


@dataclass(frozen=True)
class TraceNTK(TangentKernel):
    """The mean over the classes of the class kernels: K(x, x') = (1/C) Σ_c ⟨∇f_c(x), ∇f_c(x')⟩.

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

    def output_directions(self, model: Model, x: jax.Array) -> jax.Array:
        """Return the logits over √C, (C, C)."""
        identity = identity_directions(model, x)
        return identity / math.sqrt(len(identity))


@dataclass(frozen=True)
class ClassNTK(TangentKernel):
    """One kernel for each class: K_c(x, x') = ⟨∇f_c(x), ∇f_c(x')⟩, rank 3.

    Their mean over c is :class:`TraceNTK`. Kernel regression solves one system per class.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> ClassNTK()(model, jax.numpy.ones((2, 4)), jax.numpy.ones((5, 4))).shape
    (2, 5, 3)
    """

    rank = 3


@dataclass(frozen=True)
class FullNTK(TangentKernel):
    """The whole kernel, C × C for every pair: K(x, x')_cd = ⟨∇f_c(x), ∇f_d(x')⟩, rank 4.

    Its predictor is exactly the centred linearised network at the displacement Jᵀα, so a prediction costs
    one JVP however many training points there were.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> FullNTK()(model, jax.numpy.ones((2, 4)), jax.numpy.ones((5, 4))).shape
    (2, 5, 3, 3)
    """

    rank = 4


@dataclass(frozen=True)
class PseudoNTK(TangentKernel):
    """The kernel of the scaled sum of logits: K(x, x') = ⟨∇g(x), ∇g(x')⟩ with g = (1/√C) Σ_c f_c.

    N × N at 1/C of the trace kernel's cost (Mohamadi et al. 2023, arXiv:2206.12543). It approaches the trace
    kernel for wide networks at initialisation; on trained networks it is another kernel, so report its
    distance from :class:`TraceNTK` where you use it in that one's place.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> PseudoNTK()(model, jax.numpy.ones((2, 4)), jax.numpy.ones((5, 4))).shape
    (2, 5)
    """

    rank = 2

    def output_directions(self, model: Model, x: jax.Array) -> jax.Array:
        """Return the sum of the logits over √C, (1, C)."""
        identity = identity_directions(model, x)
        return identity.sum(0, keepdims=True) / math.sqrt(len(identity))


KERNELS = {"trace": TraceNTK(), "class": ClassNTK(), "full": FullNTK(), "pseudo": PseudoNTK()}


@dataclass(frozen=True, repr=False)
class CallableKernel:
    """A bare ``function(model, x1, x2) -> block`` as a kernel: its features are the inputs.

    Attributes
    ----------
    function : callable
        Hashable.
    computes : str
        The fingerprint of what it computes, where that is known: a function that was edited is another kernel.
    """

    function: Callable
    computes: str = field(default="", init=False)

    has_gradients: ClassVar[bool] = False
    is_tangent: ClassVar[bool] = False
    splits_directions: ClassVar[bool] = False

    @property
    def rank(self) -> int | None:
        """The rank of the blocks, if the function states one."""
        return getattr(self.function, "rank", None)

    @property
    def needs_model(self) -> bool:
        """Whether it depends on the model; a function of the inputs alone says ``needs_model = False``."""
        return getattr(self.function, "needs_model", True)

    def __repr__(self) -> str:
        return repr(self.function)

    def that_computes(self, computes: str) -> CallableKernel:
        """Return the kernel with another fingerprint."""
        kernel = CallableKernel(self.function)
        object.__setattr__(kernel, "computes", computes)
        return kernel

    def __call__(self, model: Model, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Return the block of inputs (n, ...) and (m, ...)."""
        return self.function(model, x1, x2)

    entry = __call__

    def output_directions(self, model: Model, x: jax.Array) -> jax.Array:
        """Return one direction, which nothing is taken of."""
        return jnp.ones((1, 1))

    def features(self, model: Model, x: jax.Array, directions: jax.Array | None = None) -> jax.Array:
        """Return the inputs."""
        return x

    def blocks(
        self, model: Model, f1: jax.Array, f2: jax.Array, dtype: DTypeLike | None = None
    ) -> list[jax.Array]:
        """Return the block of two tiles of inputs, alone in a list."""
        block = self(model, f1, f2)
        shape, n, m = jnp.shape(block), len(f1), len(f2)
        if shape[:2] != (n, m) or len(shape) > 4 or len(set(shape[2:])) > 1:
            raise ValueError(
                f"a kernel must return a block (n, m), (n, m, C) or (n, m, C, C), got {shape} for n = {n} and "
                f"m = {m} from {self!r}"
            )
        return [block if dtype is None else block.astype(np.dtype(dtype))]

    def block_entries(self, n_directions: int) -> int:
        """Return zero: how large a block is shows when the function is called."""
        return 0

    def contraction_bytes(self, features: jax.Array, itemsize: int) -> int:
        """Return zero: what the function takes is not known."""
        return 0


Kernel = TangentKernel | CallableKernel


def resolve_kernel(kernel: str | Callable) -> Kernel:
    """Return the kernel of a name, a tangent kernel itself, or any other callable as a :class:`CallableKernel`.

    >>> resolve_kernel("trace")
    TraceNTK()
    """
    otherwise = "a callable kernel(model, x1, x2) -> block"
    if isinstance(kernel, str):
        check_choice("kernel", kernel, KERNELS, otherwise)
        return KERNELS[kernel]
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, type):
        raise TypeError(f"kernel must be an instance: write {kernel.__name__}(...), not {kernel.__name__}")
    if not callable(kernel):
        raise ValueError(unknown("kernel", kernel, KERNELS, otherwise))
    function("kernel", kernel, "kernel(model, x1, x2)", 3)
    return CallableKernel(kernel)


def _checked(name, x, model):
    """Return inputs (n, ...) of a kernel as the network takes them."""
    x = finite_inputs(name, x, model.variables.params)
    if x.ndim < 2:
        raise ValueError(f"{name} must hold inputs of the model, of shape (n, ...), got shape {x.shape}")
    try:
        check_model(model, x.shape[1:], x.dtype)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    return x


def _n_directions(leaf) -> int:
    return len(leaf.values if isinstance(leaf, DenseGradients) else leaf.cotangents)


def _contraction_bytes(leaf: Gradients, itemsize: int, all_pairs: bool) -> int:
    """Count the bytes that an inner product of two tiles takes at most, in a precision of ``itemsize`` bytes.

    Parameters
    ----------
    leaf : DenseGradients or OuterProducts
        Shapes are enough.
    itemsize : int
        If larger than the features' own, they are copied.
    all_pairs : bool
        Whether products of different directions are taken.
    """
    arrays = jax.tree.leaves(leaf)
    copied = 2 * sum(math.prod(a.shape) * itemsize for a in arrays if itemsize > a.dtype.itemsize)
    if isinstance(leaf, DenseGradients):
        n_directions, n, _ = leaf.values.shape
        return copied + 2 * n_directions ** (1 + all_pairs) * n**2 * itemsize
    n_directions, n, n_groups, n_positions, _ = leaf.cotangents.shape
    once, blocks = n_groups * (n * n_positions) ** 2 * itemsize, 2 * n_directions ** (1 + all_pairs)
    return copied + (blocks * once if n_positions == 1 else 3 * once + blocks * n**2 * itemsize)
