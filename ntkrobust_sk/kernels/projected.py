"""Random projections of tangent features: k numbers an example, whose inner products estimate the kernel.

No projection matrix of P × k is ever formed. A gradient that was formed is hashed: every entry gets a random
sign and one of k places (a count sketch; Charikar et al. 2002, Weinberger et al. 2009, arXiv:0902.2206), at one
addition an entry however large k is. A gradient kept as factors Σ_s δ_s ⊗ h_s is projected on random rank-one
matrices b_j ⊗ a_j, Σ_s ⟨b_j, δ_s⟩⟨a_j, h_s⟩, and is never formed at all. Both are unbiased, with a variance of the
order of K(x, x) K(x', x') / k.
"""

import math
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._validation import LARGEST_SEED, check_choice, integer
from ..networks.inputs import PyTree
from ..networks.model import Model
from ..tangent.gradient_lists import split_biases
from ..tangent.gradients import DenseGradients, Gradients, Layout
from .ntk import KERNELS, TangentGradients, TangentKernel

PROJECTABLE = {name: KERNELS[name] for name in ("trace", "pseudo")}


@dataclass(frozen=True)
class ProjectedNTK(TangentKernel):
    """An unbiased estimate of the trace (or pseudo) kernel from k random projections of the tangent features.

    Memory N × k and time linear in N; the error falls as 1/√k. The same seed gives the same projections, so
    matrices of different inputs belong together; networks at different parameters share them too.

    Parameters
    ----------
    n_components : int, default=4096
        k.
    seed : int, default=0
    of : {"trace", "pseudo"}, default="trace"

    Examples
    --------
    >>> from ntkrobust_sk import MLP, Model, TraceNTK, gram
    >>> network = MLP(n_outputs=3)
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> X = jax.random.normal(jax.random.key(1), (6, 4))
    >>> exact, estimate = gram(TraceNTK(), model, X), gram(ProjectedNTK(n_components=2**14), model, X)
    >>> bool(abs(estimate - exact).max() < 0.1 * exact.max())
    True
    """

    n_components: int = 4096
    seed: int = 0
    of: str = "trace"

    rank = 2
    has_gradients = False

    def __post_init__(self):
        object.__setattr__(self, "n_components", integer("n_components", self.n_components, high=2**31 - 1))
        if not isinstance(self.seed, Tracer):  # of a mean over seeds, compiled once
            object.__setattr__(self, "seed", integer("seed", self.seed, low=0, high=LARGEST_SEED))
        check_choice("of, the kernel to project,", self.of, PROJECTABLE)

    @property
    def base(self) -> TangentKernel:
        """The kernel that is estimated."""
        return PROJECTABLE[self.of]

    def output_directions(self, model: Model, x: jax.Array) -> jax.Array:
        """Return the directions in output space, (R, C)."""
        return self.base.output_directions(model, x)

    def features(self, model: Model, x: jax.Array, directions: jax.Array | None = None) -> TangentGradients:
        """Compute the projections (n, k) of the gradients of all directions together, as one entry."""
        keys = jax.random.split(jax.random.key(self.seed), len(jax.tree.leaves(model.variables.params)))
        leaves = split_biases(self.base.features(model, x, directions))
        with jax.default_matmul_precision("highest"):
            parts = [_project(key, leaf, self.n_components) for key, leaf in zip(keys, leaves, strict=True)]
            projected = cast(jax.Array, sum(parts))
        return [DenseGradients(projected[None], Layout((self.n_components,)))]

    def predict(self, model: Model, tangents: PyTree, x: jax.Array) -> jax.Array:
        """Compute the scores (n, T) of what ``fold`` makes of dual coefficients."""
        (projected,) = self.features(model, x)
        return jnp.einsum(
            "rnk,rtk->nt", cast(DenseGradients, projected).values, tangents[0], precision=jax.lax.Precision.HIGHEST
        )


def _project(key, leaf: Gradients, k: int) -> jax.Array:
    return _hashed(key, leaf.values, k) if isinstance(leaf, DenseGradients) else _rank_one(key, leaf, k)


def _hashed(key, gradients, k):
    """Compute the count sketch (n, k) of gradients (r, n, p).

    The r·p entries are laid in rows of k, each row with random signs and turned by a random number of
    places; then the rows are summed. Entries of one row never meet, others do with probability 1/k.
    """
    n_directions, n, p = gradients.shape
    rows_each = -(-p // k)
    rows = jnp.pad(gradients, ((0, 0), (0, 0), (0, rows_each * k - p))).reshape(n_directions, n, rows_each, k)
    of_sign, of_turn = jax.random.split(key)
    signs = _signs(of_sign, (n_directions, rows_each, k), gradients.dtype)
    turns = jax.random.randint(of_turn, (n_directions, rows_each), 0, k, jnp.int32)
    places = (jnp.arange(k) - turns[..., None]) % k
    turned = jnp.take_along_axis(rows * signs[:, None], places[:, None], axis=3)
    return turned.sum((0, 2))


def _rank_one(key, leaf, k):
    """Project Σ_s δ_s ⊗ h_s on k random rank-one sign matrices, over √k: (n, k)."""
    n_directions, n, n_groups, n_positions, n_out = leaf.cotangents.shape
    of_inputs, of_cotangents = jax.random.split(key)
    b = _signs(of_cotangents, (n_groups, n_directions * n_out, k), leaf.cotangents.dtype)
    cotangents = leaf.cotangents.transpose(1, 2, 3, 0, 4).reshape(n, n_groups, n_positions, -1) @ b
    n_in = math.prod(leaf.layout.shape) // (n_groups * n_out)
    a = _signs(of_inputs, (n_groups, n_in, k), leaf.cotangents.dtype)
    is_index = leaf.inputs.dtype.kind in "iu"
    inputs = a[0][leaf.inputs[:, 0, :, 0]][:, None] if is_index else leaf.inputs @ a
    return (inputs * cotangents).sum((1, 2)) / math.sqrt(k)


def _signs(key, shape, dtype):
    """Draw 1 and -1, the same ones of a key in single and in double precision."""
    # JAX's rademacher draws uniform numbers in its default dtype, and those of 64 bits are others
    return 2 * jax.random.bernoulli(key, jnp.float32(0.5), shape).astype(dtype) - 1
