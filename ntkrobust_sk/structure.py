"""Per-example gradients of any network, read from the structure of its jaxpr.

``vmap(grad)`` makes XLA compute every example's weight gradient as a grouped convolution, which is slow by
orders of magnitude. But a network's gradient needs one cotangent for each place where parameters *meet*
the data (a convolution, a matrix product, the addition of a bias), and those cotangents come from one
ordinary backward pass. So: walk the jaxpr, add a zero probe to the output of every such equation, take the
VJP with respect to the probes, and finish each equation on its own. Nothing is declared by the network's
author, and any differentiable equation is allowed, because what is left is always that equation's own VJP.
"""

from __future__ import annotations

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
    >>> g = per_example_gradients(lambda p, x: jnp.tanh(x) @ p["w"], params, jnp.zeros((5, 2)) + 1.0)
    >>> g["w"].shape
    (5, 2, 2, 2)
    """
    return jax.vmap(lambda z: _example_gradients(apply, params, z[None]))(x)


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
        if meets and any(jnp.issubdtype(out.dtype, jnp.inexact) for out in outputs):
            own = [
                k == "params" and jnp.issubdtype(jnp.result_type(v), jnp.inexact)
                for v, k in zip(inputs, kinds, strict=True)
            ]
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


def _example_gradients(apply, params, z):
    """Gradients (C, *leaf.shape) of the one example z (1, ...)."""
    closed, out_shape = jax.make_jaxpr(apply, return_shape=True)(params, z)
    leaves, tree = jax.tree.flatten(params)

    def walk(param_leaves, probes):
        walker = _Walk(probes)
        kinds = ["params"] * len(leaves) + ["data"]
        outputs, _ = walker.run(closed.jaxpr, closed.consts, [*param_leaves, z], kinds)
        return outputs[0][0], walker.meetings

    def probe_like(meeting):
        return [
            jnp.zeros(v.aval.shape, v.aval.dtype) if jnp.issubdtype(v.aval.dtype, jnp.inexact) else None
            for v in meeting.eqn.outvars
        ]

    meetings = walk(leaves, None)[1]
    probes = [probe_like(meeting) for meeting in meetings]
    logits, pull = jax.vjp(lambda p: walk(leaves, p)[0], probes)
    cotangents = jax.vmap(lambda c: pull(c)[0])(jnp.eye(out_shape.shape[1], dtype=logits.dtype))
    at_operands = [
        _operand_gradients(meeting, cotangent)
        for meeting, cotangent in zip(meetings, cotangents, strict=True)
    ]
    _, pull_operands = jax.vjp(lambda p: [m.operands() for m in walk(p, None)[1]], leaves)
    return jax.tree.unflatten(tree, jax.vmap(lambda g: pull_operands(g)[0])(at_operands))


def _operand_gradients(meeting: _Meeting, cotangents: list) -> list:
    """Cotangents (C, ...) of an equation's outputs, pulled back to its parameter operands."""
    if _is_plain_convolution(meeting):
        return [_convolution_gradient(meeting.eqn, meeting.inputs[0], cotangents[0])]
    outputs, pull = jax.vjp(meeting.rebind, meeting.operands())

    def pull_one(cotangent):
        filled = [jnp.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangent, strict=True)]
        return pull(filled)[0]

    return jax.vmap(pull_one)(cotangents)


def _is_plain_convolution(meeting: _Meeting) -> bool:
    eqn = meeting.eqn
    return (
        eqn.primitive.name == "conv_general_dilated"
        and meeting.from_params == [False, True]
        and eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1
        and all(d == 1 for d in eqn.params["lhs_dilation"])
    )


def _convolution_gradient(eqn, lhs, cotangents):
    """Filter gradients (C, *rhs.shape) as one matrix product of patches with the cotangents (C, *out.shape).

    A filter's gradient is Σ_positions patch ⊗ cotangent; XLA would do the same sum as a grouped convolution.
    """
    numbers = eqn.params["dimension_numbers"]
    spatial = numbers.lhs_spec[2:]
    rhs_shape = eqn.invars[1].aval.shape
    size = [rhs_shape[d] for d in numbers.rhs_spec[2:]]
    c_out, c_in = rhs_shape[numbers.rhs_spec[0]], rhs_shape[numbers.rhs_spec[1]]
    out_size = [eqn.outvars[0].aval.shape[d] for d in numbers.out_spec[2:]]
    # batch and positions first, channels last
    image = jnp.transpose(lhs, (numbers.lhs_spec[0], *spatial, numbers.lhs_spec[1]))
    config = [(0, 0, 0), *((lo, hi, 0) for lo, hi in eqn.params["padding"]), (0, 0, 0)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), config)
    patches = jnp.stack(
        [
            _window(image, offset, out_size, eqn.params["window_strides"], eqn.params["rhs_dilation"])
            for offset in _offsets(size)
        ]
    )
    patches = patches.reshape(math.prod(size), -1, c_in)
    delta = jnp.transpose(
        cotangents,
        (0, numbers.out_spec[0] + 1, *(d + 1 for d in numbers.out_spec[2:]), numbers.out_spec[1] + 1),
    ).reshape(cotangents.shape[0], -1, c_out)
    gradient = jnp.einsum("ksi,cso->ckio", patches, delta)
    gradient = gradient.reshape(-1, *size, c_in, c_out)
    places = [0] * len(rhs_shape)
    for axis, d in enumerate((*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])):
        places[d] = axis + 1
    return jnp.transpose(gradient, (0, *places))


def _offsets(size):
    return [()] if not size else [(i, *rest) for i in range(size[0]) for rest in _offsets(size[1:])]


def _window(image, offset, out_size, strides, dilation):
    """What the filter entry at ``offset`` sees at every position."""
    start = [o * d for o, d in zip(offset, dilation, strict=True)]
    limit = [b + (n - 1) * s + 1 for b, n, s in zip(start, out_size, strides, strict=True)]
    return jax.lax.slice(image, (0, *start, 0), (image.shape[0], *limit, image.shape[-1]), (1, *strides, 1))
