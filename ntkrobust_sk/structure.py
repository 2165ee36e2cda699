"""Per-example gradients of any network, read from the structure of its jaxpr.

``vmap(grad)`` makes XLA compute every example's weight gradient as a grouped convolution, which is slow by
orders of magnitude. But a network's gradient needs one cotangent for each place where parameters *meet*
the data (a convolution, a matrix product, the addition of a bias), and those cotangents come from one
ordinary backward pass. So: walk the jaxpr, add a zero probe to the output of every such equation, take the
VJP with respect to the probes, and finish each equation on its own. Nothing is declared by the network's
author, and any differentiable equation is allowed, because what is left is always that equation's own VJP.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
INLINED |= {"checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr"}


def per_example_gradients(apply: Callable, params, x: jax.Array):
    """Gradient of every output of every example with respect to the parameters.

    Parameters
    ----------
    apply : callable
        ``apply(params, x)`` with x (n, ...) returns (n, C); each row a function of its own input alone.
    params : pytree of arrays
    x : array (n, ...)

    Returns
    -------
    pytree like params, each leaf (n, C, *leaf.shape)
        ∂ f_c(x_i) / ∂ leaf.

    Examples
    --------
    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    >>> g = per_example_gradients(lambda p, x: jnp.tanh(x) @ p["w"], params, jnp.ones((5, 2)))
    >>> g["w"].shape
    (5, 2, 2, 2)
    """

    def one(z):
        meetings, cotangents, operands_of, logits = _meet(apply, params, z[None])
        gradients = [m.operand_gradients(c) for m, c in zip(meetings, cotangents, strict=True)]
        _, pull = jax.vjp(operands_of, params)
        return jax.vmap(lambda g: pull(g)[0], axis_size=logits.shape[1])(gradients)

    return jax.vmap(one)(x)


def contract_gradients(apply: Callable, params, x: jax.Array, tangents) -> jax.Array:
    """Σ_c ⟨∂f_c(x_i)/∂θ, tangents_ct⟩ without the gradients: one number for each example and each t.

    A convolution whose gradient is cheaper to form than to avoid has it formed; see ``_forms_gradient``.

    Parameters
    ----------
    apply, params, x
        As for :func:`per_example_gradients`.
    tangents : pytree like params, each leaf (C, T, *leaf.shape)

    Returns
    -------
    array (n, T)

    Examples
    --------
    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> contract_gradients(lambda p, x: x @ p, w, jnp.ones((5, 2)), jnp.ones((2, 3, 2, 2))).shape
    (5, 3)
    """

    n_tangents = jax.tree.leaves(tangents)[0].shape[1]

    def one(z):
        meetings, cotangents, operands_of, logits = _meet(apply, params, z[None])
        push = jax.vmap(jax.vmap(lambda t: jax.jvp(operands_of, (params,), (t,))[1]))
        terms = zip(meetings, cotangents, push(tangents), strict=True)
        return sum((m.contract(c, t) for m, c, t in terms), start=jnp.zeros(n_tangents, logits.dtype))

    return jax.vmap(one)(x)


@dataclass
class _Meeting:
    """One evaluation of an equation in which parameters meet data."""

    eqn: Any
    inputs: list
    from_params: list[bool]

    def operands(self) -> list:
        """The inputs that depend on parameters alone."""
        return [value for value, own in zip(self.inputs, self.from_params, strict=True) if own]

    def rebind(self, operands: list) -> list:
        """The equation's outputs as a function of those inputs."""
        replaced = iter(operands)
        mixed = zip(self.inputs, self.from_params, strict=True)
        return _bind(self.eqn, [next(replaced) if own else value for value, own in mixed])

    def operand_gradients(self, cotangents: list) -> list:
        """Cotangents (C, ...) of the outputs, pulled back to the operands."""
        if self._is_plain_convolution():
            patches, delta = _patches(self.eqn, self.inputs[0]), _positions_first(self.eqn, cotangents[0])
            gradient = _filter_shaped(self.eqn, jnp.einsum("sk,cso->cko", patches, delta))
            return [gradient.astype(self.inputs[1].dtype)]
        outputs, pull = jax.vjp(self.rebind, self.operands())

        def pull_one(cotangent):
            filled = [jnp.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangent, strict=True)]
            return pull(filled)[0]

        return jax.vmap(pull_one)(cotangents)

    def contract(self, cotangents: list, tangents: list) -> jax.Array:
        """Σ_c ⟨gradient of the operands at output c, tangents (C, T, ...)⟩, an array (T,)."""
        if self._is_plain_convolution():
            patches, delta = _patches(self.eqn, self.inputs[0]), _positions_first(self.eqn, cotangents[0])
            return _contract_convolution(patches, delta, _as_matrices(self.eqn, tangents[0]))

        def push(tangent):
            return jax.jvp(self.rebind, (self.operands(),), (tangent,))[1]

        changes = jax.vmap(jax.vmap(push))(tangents)
        terms = [(c, d) for c, d in zip(cotangents, changes, strict=True) if c is not None]
        return sum(jnp.einsum("ce,cte->t", _flat(c, 1), _flat(d, 2)) for c, d in terms)

    def _is_plain_convolution(self) -> bool:
        params = self.eqn.params
        return (
            self.eqn.primitive.name == "conv_general_dilated"
            and self.from_params == [False, True]
            and params["feature_group_count"] == params["batch_group_count"] == 1
            and all(d == 1 for d in params["lhs_dilation"])
        )


@dataclass
class _Walk:
    """Evaluates a jaxpr, keeping apart what depends on parameters alone and what depends on the data."""

    probes: list | None = None
    meetings: list[_Meeting] = field(default_factory=list)

    def run(self, jaxpr, consts, args, kinds) -> tuple[list, list[str]]:
        """Values and kinds ("const", "params" or "data") of the outputs."""
        env = dict(zip(jaxpr.constvars, ((c, "const") for c in consts), strict=True))
        env |= dict(zip(jaxpr.invars, zip(args, kinds, strict=True), strict=True))

        def read(atom):
            return (atom.val, "const") if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            pairs = [read(atom) for atom in eqn.invars]
            inputs, kinds = [value for value, _ in pairs], [kind for _, kind in pairs]
            env |= dict(zip(eqn.outvars, self._equation(eqn, inputs, kinds), strict=True))
        outputs = [read(atom) for atom in jaxpr.outvars]
        return [value for value, _ in outputs], [kind for _, kind in outputs]

    def _equation(self, eqn, inputs, kinds) -> list[tuple]:
        meets = "params" in kinds and "data" in kinds
        if meets and eqn.primitive.name in INLINED:
            inner = eqn.params[INLINED[eqn.primitive.name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
            return list(zip(*self.run(jaxpr, consts, inputs, kinds), strict=True))
        outputs = _bind(eqn, inputs)
        own = [
            k == "params" and jnp.issubdtype(jnp.result_type(v), jnp.inexact)
            for v, k in zip(inputs, kinds, strict=True)
        ]
        if meets and any(own) and any(jnp.issubdtype(out.dtype, jnp.inexact) for out in outputs):
            self.meetings.append(_Meeting(eqn, inputs, own))
            if self.probes is not None:
                outputs = [
                    out if p is None else out + p
                    for out, p in zip(outputs, self.probes[len(self.meetings) - 1], strict=True)
                ]
        kind = "data" if "data" in kinds else "params" if "params" in kinds else "const"
        return [(out, kind) for out in outputs]


def _bind(eqn, inputs) -> list:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # JAX before 0.10 returns the subfunctions beside the parameters
    subfuns, bind_params = bound if isinstance(bound, tuple) else ((), bound)
    outputs = eqn.primitive.bind(*subfuns, *inputs, **bind_params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _meet(apply, params, z):
    """Where parameters meet the one example z (1, ...), each output's cotangents there, and the operands.

    Returns the list of meetings; for each the cotangents, a list of arrays (C, *output.shape) or None for
    outputs that cannot be differentiated; the function from parameters to all meetings' operands; and shape
    and dtype of the logits.
    """

    def apply_to_data(params, z):
        logits = apply(params, z)
        # logits of parameters alone would meet the data nowhere and look as if they had no gradient
        return jnp.where((z == 0).all(), logits, logits)

    closed, logits = jax.make_jaxpr(apply_to_data, return_shape=True)(params, z)

    def walk(at, probes):
        walker = _Walk(probes)
        leaves = jax.tree.leaves(at)
        kinds = ["params"] * len(leaves) + ["data"]
        outputs, _ = walker.run(closed.jaxpr, closed.consts, [*leaves, z], kinds)
        return outputs[0][0], walker.meetings

    def probe(var):
        return jnp.zeros(var.aval.shape, var.aval.dtype) if jnp.issubdtype(var.aval.dtype, jnp.inexact) else None

    meetings = walk(params, None)[1]
    probes = [[probe(var) for var in meeting.eqn.outvars] for meeting in meetings]
    _, pull = jax.vjp(lambda p: walk(params, p)[0], probes)
    cotangents = jax.vmap(lambda c: pull(c)[0])(jnp.eye(logits.shape[1], dtype=logits.dtype))
    return meetings, cotangents, lambda at: [meeting.operands() for meeting in walk(at, None)[1]], logits


def _flat(array, n_axes: int):
    """All but the first axes made one."""
    return array.reshape(*array.shape[:n_axes], -1)


# The bytes of a gradient entry, written and read again, take the time of about so many multiply-adds.
ENTRY_COST = 30


def _forms_gradient(n_positions: int, n_tangents: int) -> bool:
    """Whether forming a filter's gradient, S multiply-adds an entry, and contracting it with T tangents is
    cheaper than contracting cotangents and tangents first, S·T an entry."""
    return n_positions + n_tangents + ENTRY_COST < n_positions * n_tangents


def _contract_convolution(patches, delta, matrices):
    """(T,) from patches (S, K), cotangents (C, S, O) and tangents (C, T, K, O)."""
    if _forms_gradient(len(patches), matrices.shape[1]):
        return jnp.einsum("cko,ctko->t", jnp.einsum("sk,cso->cko", patches, delta), matrices)
    return jnp.einsum("stk,sk->t", jnp.einsum("cso,ctko->stk", delta, matrices), patches)


def _patches(eqn, lhs):
    """What the filter sees at each position: (S, K), S over the convolution's batch and output positions,
    K over the filter's window and input channels.

    A filter's gradient is Σ_positions patch ⊗ cotangent, one matrix product; XLA would compute the same sum
    as a grouped convolution.
    """
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    image = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    config = [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), config)
    size = [eqn.invars[1].aval.shape[d] for d in numbers.rhs_spec[2:]]
    out_size = [eqn.outvars[0].aval.shape[d] for d in numbers.out_spec[2:]]
    windows = []
    for offset in itertools.product(*map(range, size)):
        start = [o * d for o, d in zip(offset, params["rhs_dilation"], strict=True)]
        limit = [b + (n - 1) * s + 1 for b, n, s in zip(start, out_size, params["window_strides"], strict=True)]
        strides = (1, *params["window_strides"], 1)
        windows.append(jax.lax.slice(image, (0, *start, 0), (len(image), *limit, image.shape[-1]), strides))
    return jnp.stack(windows, axis=-2).reshape(len(image) * math.prod(out_size), -1)


def _positions_first(eqn, cotangents):
    """Cotangents (C, *out.shape) as (C, S, O)."""
    batch, channels, *spatial = (d + 1 for d in eqn.params["dimension_numbers"].out_spec)
    moved = jnp.transpose(cotangents, (0, batch, *spatial, channels))
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _as_matrices(eqn, filters):
    """Filters (..., *rhs.shape) as (..., K, O)."""
    n_axes = filters.ndim - len(eqn.invars[1].aval.shape)
    c_out, c_in, *spatial = (d + n_axes for d in eqn.params["dimension_numbers"].rhs_spec)
    moved = jnp.transpose(filters, (*range(n_axes), *spatial, c_in, c_out))
    return moved.reshape(*moved.shape[:n_axes], -1, moved.shape[-1])


def _filter_shaped(eqn, matrices):
    """The inverse of ``_as_matrices`` for (C, K, O)."""
    c_out, c_in, *spatial = eqn.params["dimension_numbers"].rhs_spec
    shape, order = eqn.invars[1].aval.shape, (*spatial, c_in, c_out)
    moved = matrices.reshape(-1, *(shape[d] for d in order))
    return jnp.transpose(moved, (0, *(order.index(d) + 1 for d in range(len(order)))))
