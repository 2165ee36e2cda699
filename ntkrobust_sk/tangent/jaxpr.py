"""The walk through a network's jaxpr: where its parameters meet its data."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ..execution.convolutions import convolution_by_products, is_by_products, is_strided, phased_convolution
from ..execution.rewriting import INLINED, bind, subjaxpr
from .gradients import Layout, OuterProducts
from .layer_rules import LINEAR


class _Origin(NamedTuple):
    """A value that is one parameter array, as ``layout`` sees it, times ``scale``."""

    leaf: int
    layout: Layout
    scale: Any = 1.0


class _FromParams(NamedTuple):
    """A value that depends on parameters alone: on which arrays, and its origin if it is only one's."""

    leaves: frozenset
    origin: _Origin | None = None


DATA, CONST = "data", "const"


@dataclass
class ParameterUse:
    """One evaluation of an equation in which parameters meet data."""

    eqn: Any
    inputs: list
    kinds: list
    # the use whose output, needed nowhere else, is one of the inputs
    after: ParameterUse | None = None

    def __post_init__(self):
        self.from_params = [
            isinstance(kind, _FromParams) and jnp.issubdtype(jnp.result_type(value), jnp.inexact)
            for value, kind in zip(self.inputs, self.kinds, strict=True)
        ]

    def sources(self) -> list[_FromParams]:
        """Return where the operands come from."""
        return [kind for kind, own in zip(self.kinds, self.from_params, strict=True) if own]

    def operands(self) -> list:
        """Return the inputs that depend on parameters alone."""
        return [value for value, own in zip(self.inputs, self.from_params, strict=True) if own]

    def rebind(self, operands: list) -> list:
        """Evaluate the equation as a function of those inputs."""
        replaced = iter(operands)
        mixed = zip(self.inputs, self.from_params, strict=True)
        return bind(self.eqn, [next(replaced) if own else value for value, own in mixed])

    def outer_products(self, cotangents: list) -> OuterProducts | None:
        """Return the only operand's gradient as outer products, where the equation is linear in it so."""
        form = LINEAR.get(self.eqn.primitive.name)
        if form is None or sum(self.from_params) != 1 or cotangents[0] is None:
            return None
        return form(self.eqn, self.inputs, self.from_params, cotangents[0])

    def operand_gradients(self, cotangents: list) -> list:
        """Pull cotangents (R, ...) of the outputs back to the operands."""
        products = self.outer_products(cotangents)
        if products is not None and products.inputs.dtype.kind not in "iu":
            (operand,) = self.operands()
            return [products.layout.inverse(products.dense().values[:, 0]).astype(operand.dtype)]
        outputs, pull = jax.vjp(self.rebind, self.operands())

        def pull_one(cotangent):
            filled = [jnp.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangent, strict=True)]
            return pull(filled)[0]

        return jax.vmap(pull_one)(cotangents)

    def contract(self, cotangents: list, tangents: list, dtype, *, each: bool) -> jax.Array:
        """Return Σ_r ⟨gradient of the operands in direction r, tangents (R, T, ...)⟩, (T,).

        It is summed in ``dtype`` or better. With ``each`` the terms for themselves, (R, T).
        """
        operands = self.operands()
        n_outputs = sum(c[0].size for c in cotangents if c is not None)
        wide = [jnp.promote_types(jnp.result_type(operand), dtype) for operand in operands]
        kept = wide == [jnp.result_type(operand) for operand in operands]
        if kept and sum(map(jnp.size, operands)) < n_outputs:
            # biases and scales: their gradients are smaller than what they meet; narrow ones would round them
            terms = zip(self.operand_gradients(cotangents), tangents, strict=True)
        else:
            changes = jax.vmap(jax.vmap(self._pushed))(tangents)
            terms = [(c, d) for c, d in zip(cotangents, changes, strict=True) if c is not None]
        return cast(jax.Array, sum(_summed(_flat(c, 1), _flat(d, 2), dtype, each) for c, d in terms))

    def _pushed(self, tangent: list) -> list:
        """Push a tangent of the operands forward to the outputs."""
        return jax.jvp(self.rebind, (self.operands(),), (tangent,))[1]


@dataclass
class _Walk:
    """An evaluation of a jaxpr that keeps apart what depends on parameters alone and what depends on the data."""

    probes: list | None = None
    # what depends on data is left out, where only the operands are wanted
    operands_only: bool = False
    uses: list[ParameterUse] = field(default_factory=list)

    def run(self, jaxpr, consts, args, kinds) -> tuple[list, list]:
        """Return the values and kinds (CONST, DATA or _FromParams) of the outputs."""
        env = dict(zip(jaxpr.constvars, ((c, CONST) for c in consts), strict=True))
        env |= dict(zip(jaxpr.invars, zip(args, kinds, strict=True), strict=True))

        def read(atom):
            return (atom.val, CONST) if isinstance(atom, Literal) else env[atom]

        atoms = itertools.chain(jaxpr.outvars, *(eqn.invars for eqn in jaxpr.eqns))
        read_in = Counter(filter(_is_var, atoms))
        use_of = {}
        for eqn in jaxpr.eqns:
            pairs = [read(atom) for atom in eqn.invars]
            inputs, kinds = [value for value, _ in pairs], [kind for _, kind in pairs]
            env |= dict(zip(eqn.outvars, self._equation(eqn, inputs, kinds), strict=True))
            if self.uses and self.uses[-1].eqn is eqn:
                self.uses[-1].after = next((use_of[v] for v in eqn.invars if _is_var(v) and v in use_of), None)
                if read_in[eqn.outvars[0]] == 1:
                    use_of[eqn.outvars[0]] = self.uses[-1]
        outputs = [read(atom) for atom in jaxpr.outvars]
        return [value for value, _ in outputs], [kind for _, kind in outputs]

    def _equation(self, eqn, inputs, kinds) -> list[tuple]:
        from_params = [kind for kind in kinds if isinstance(kind, _FromParams)]
        if from_params and eqn.primitive.name in INLINED:
            inner, consts = subjaxpr(eqn)
            return list(zip(*self.run(inner, consts, inputs, kinds), strict=True))
        if self.operands_only and DATA in kinds:
            outputs = [None] * len(eqn.outvars)
        elif DATA in kinds and is_by_products(eqn):
            outputs = [convolution_by_products(eqn, *inputs)]
        elif self.probes is not None and DATA in kinds and is_strided(eqn):
            # only where cotangents are wanted: what has a rule of its own cannot be pushed forward
            outputs = [phased_convolution(eqn, *inputs)]
        else:
            outputs = bind(eqn, inputs)
        if not from_params:
            return [(out, DATA if DATA in kinds else CONST) for out in outputs]
        if DATA not in kinds:
            leaves = frozenset().union(*(kind.leaves for kind in from_params))
            return [(out, _FromParams(leaves, _origin(eqn, inputs, kinds))) for out in outputs]
        use = ParameterUse(eqn, inputs, kinds)
        if any(use.from_params) and any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
            self.uses.append(use)
            if self.probes is not None:
                probes = self.probes[len(self.uses) - 1]
                outputs = [out if p is None else out + p for out, p in zip(outputs, probes, strict=True)]
        return [(out, DATA) for out in outputs]


def _is_var(atom) -> bool:
    return not isinstance(atom, Literal)


def _origin(eqn, inputs, kinds) -> _Origin | None:
    """Return the origin of an output that only reorders, casts or scales one parameter array, or None."""
    name, shapes = eqn.primitive.name, [jnp.shape(value) for value in inputs]
    out = eqn.outvars[0].aval
    at = next(i for i, kind in enumerate(kinds) if isinstance(kind, _FromParams))
    origin, others = kinds[at].origin, [value for i, value in enumerate(inputs) if i != at]
    if origin is None or any(kind is not CONST for i, kind in enumerate(kinds) if i != at):
        return None
    if name == "transpose":
        return origin._replace(layout=origin.layout.followed_by("transpose", eqn.params["permutation"]))
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim") and math.prod(shapes[at]) == out.size:
        # axes of length one may change places, the others keep their order
        return origin._replace(layout=origin.layout.followed_by("reshape", out.shape))
    if name == "convert_element_type" and jnp.issubdtype(out.dtype, jnp.inexact):
        drops_part = jnp.iscomplexobj(inputs[at]) and not jnp.issubdtype(out.dtype, jnp.complexfloating)
        return None if drops_part else origin
    if name in ("copy", "copy_p", "reduce_precision", "optimization_barrier") and len(eqn.outvars) == 1:
        return origin
    if name == "neg":
        return origin._replace(scale=-origin.scale)
    scalar = len(others) == 1 and math.prod(jnp.shape(others[0])) == 1 and shapes[at] == out.shape
    if scalar and (name == "mul" or (name == "div" and at == 0)):
        factor = jnp.reshape(others[0], ())
        return origin._replace(scale=origin.scale * (factor if name == "mul" else 1 / factor))
    return None


@dataclass
class TracedNetwork:
    """The places where parameters meet one example, and how to pull cotangents back to them.

    Attributes
    ----------
    uses : list of ParameterUse
    cotangents : callable
        From directions (R, C) to a list for each use, of arrays (R, *output.shape) or None for outputs that
        cannot be differentiated.
    operands_of : callable
        From parameters to all uses' operands.
    logits : shape and dtype
    """

    uses: list[ParameterUse]
    cotangents: Callable
    operands_of: Callable
    logits: Any


def find_parameter_uses(apply, params, z) -> TracedNetwork:
    """Follow the one example z (1, ...) through the network."""

    def apply_to_data(params, z):
        logits = apply(params, z)
        # Logits of parameters alone would meet the data nowhere and look as if they had no gradient. Without this
        # the XLA of JAX 0.10.2 also fuses a trace kernel's products wrongly on a CPU ("__ynn_fusion"), in programs
        # of one's own of 25 to 60 rows: tests/kernels/test_compiled_by_users.py would tell.
        return jnp.where((z == 0).all(), logits, logits)

    closed, logits = jax.make_jaxpr(apply_to_data, return_shape=True)(params, z)

    def walk(at, probes, operands_only=False):
        walker = _Walk(probes, operands_only)
        leaves = jax.tree.leaves(at)
        kinds = [_FromParams(frozenset([i]), _Origin(i, Layout(jnp.shape(v)))) for i, v in enumerate(leaves)]
        outputs, _ = walker.run(closed.jaxpr, closed.consts, [*leaves, z], [*kinds, DATA])
        return None if operands_only else outputs[0][0], walker.uses

    def probe(var):
        return jnp.zeros(var.aval.shape, var.aval.dtype) if jnp.issubdtype(var.aval.dtype, jnp.inexact) else None

    uses = walk(params, None)[1]
    probes = [[probe(var) for var in use.eqn.outvars] for use in uses]

    def cotangents(directions):
        _, pull = jax.vjp(lambda p: walk(params, p)[0], probes)
        return jax.vmap(lambda direction: pull(direction)[0])(directions)

    def operands_of(at):
        return [use.operands() for use in walk(at, None, operands_only=True)[1]]

    return TracedNetwork(uses, cotangents, operands_of, logits)


def _summed(cotangents, changes, dtype, each):
    """Return Σ_re ⟨cotangents (r, e), changes (r, t, e)⟩, (t,), or the sums over e for themselves, (r, t)."""
    wide = jnp.promote_types(cotangents.dtype, dtype)
    equation = "re,rte->rt" if each else "re,rte->t"
    return jnp.einsum(equation, cotangents, changes, preferred_element_type=wide).real.astype(dtype)


def _flat(array, n_axes: int):
    """Make all but the first axes one."""
    return array.reshape(*array.shape[:n_axes], -1)


def holds_custom_vjp(jaxpr) -> bool:
    """Tell whether a jaxpr holds a function that has a backward pass of its own alone."""
    return any(
        eqn.primitive.name.startswith("custom_vjp") or any(map(holds_custom_vjp, subjaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def subjaxprs(eqn) -> list:
    """Return all jaxprs inside of an equation."""
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    inner = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in inner if hasattr(value, "eqns")]
