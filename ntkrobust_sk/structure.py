"""Per-example gradients of any network, read from the structure of its jaxpr.

``vmap(grad)`` makes XLA compute every example's weight gradient as a grouped convolution, which is slow by
orders of magnitude. But a network's gradient needs one cotangent for each place where parameters *meet*
the data (a convolution, a matrix product, the addition of a bias), and those cotangents come from one
ordinary backward pass. So: walk the jaxpr, add a zero probe to the output of every such equation, take the
VJP with respect to the probes, and finish each equation on its own. Nothing is declared by the network's
author, and any differentiable equation is allowed, because what is left is always that equation's own VJP.

Products, convolutions and table look-ups give their gradients as outer products (:class:`.factors.Factors`),
provided that they take a parameter array as it is, or reshaped, transposed, cast or times a number.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from .execution.convolutions import INLINED, bind, is_strided, plain_convolution, subjaxpr
from .factors import ENTRY_COST, AffineFactors, Factors, Layout, Whole, forms_gradient, joined, separated
from .networks.inputs import params_dtype

# Control flow around layers hides them: each example, output by output, goes backward through all of it.
OPAQUE = ("scan", "while", "cond", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def layer_gradients(
    apply: Callable, params, x: jax.Array, seeds: jax.Array, *, all_pairs: bool = False
) -> list[Whole | Factors]:
    """Gradients of ⟨seed_r, f(x_i)⟩ with respect to the parameters, one array's after the other.

    Parameters
    ----------
    apply : callable
        ``apply(params, x)`` with x (n, ...) returns (n, C); each row a function of its own input alone.
    params : pytree of arrays
    x : array (n, ...)
    seeds : array (R, C)
    all_pairs : bool, default=False
        Whether gradients of different seeds will be contracted with each other, which decides what is
        cheaper: gradients, or their factors.

    Returns
    -------
    list of Whole or Factors
        In the order of ``jax.tree.leaves(params)``; a bias may be in the entry of its weights
        (:class:`.factors.AffineFactors`), and :func:`.factors.separated` gives it one of its own.
    """

    def one(z):
        return _gradients(apply, params, z[None], seeds, all_pairs)

    def seeds_second(leaf: Whole | Factors):
        if isinstance(leaf, Whole):
            return Whole(jnp.moveaxis(leaf.values[:, :, 0], 0, 1), leaf.layout)
        cotangents = jnp.moveaxis(leaf.cotangents[:, :, 0], 0, 1)
        return replace(leaf, inputs=leaf.inputs[:, 0], cotangents=cotangents)

    return [seeds_second(leaf) for leaf in jax.vmap(one)(x)]


def per_example_gradients(apply: Callable, params, x: jax.Array):
    """Gradient of every output of every example with respect to the parameters.

    Parameters
    ----------
    apply, params, x
        As for :func:`layer_gradients`.

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
    logits = jax.eval_shape(apply, params, x)
    gradients = separated(layer_gradients(apply, params, x, jnp.eye(logits.shape[1], dtype=logits.dtype)))
    leaves, tree = jax.tree.flatten(params)
    shaped = [
        jnp.moveaxis(g.layout.undo(g.whole().values), 0, 1).astype(jnp.result_type(leaf))
        for g, leaf in zip(gradients, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shaped)


def contract_gradients(apply: Callable, params, x: jax.Array, tangents, seeds=None) -> jax.Array:
    """Σ_r ⟨∂⟨seed_r, f(x_i)⟩/∂θ, tangents_rt⟩ without the gradients: one number for each example and each t.

    A convolution whose gradient is cheaper to form than to avoid has it formed; see ``_forms_gradient``.

    Parameters
    ----------
    apply, params, x
        As for :func:`layer_gradients`.
    tangents : pytree like params, each leaf (R, T, *leaf.shape)
    seeds : array (R, C), default=None
        None is the identity, R = C.

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
        met = _meet(apply, params, z[None])
        identity = jnp.eye(met.logits.shape[1], dtype=met.logits.dtype)
        units, size = _in_units(identity if seeds is None else seeds, met.logits.dtype)
        cotangents = met.cotangents(units)
        push = jax.vmap(jax.vmap(lambda t: jax.jvp(met.operands_of, (params,), (t,))[1]))
        terms = zip(met.meetings, cotangents, push(tangents), strict=True)
        start = jnp.zeros(n_tangents, params_dtype(params))
        return size.astype(start.dtype) * sum((m.contract(c, t, start.dtype) for m, c, t in terms), start=start)

    return jax.vmap(one)(x)


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
class _Meeting:
    """One evaluation of an equation in which parameters meet data."""

    eqn: Any
    inputs: list
    kinds: list
    # the meeting whose output, needed nowhere else, is one of the inputs
    after: _Meeting | None = None

    def __post_init__(self):
        self.from_params = [
            isinstance(kind, _FromParams) and jnp.issubdtype(jnp.result_type(value), jnp.inexact)
            for value, kind in zip(self.inputs, self.kinds, strict=True)
        ]

    def sources(self) -> list[_FromParams]:
        """Where the operands come from."""
        return [kind for kind, own in zip(self.kinds, self.from_params, strict=True) if own]

    def operands(self) -> list:
        """The inputs that depend on parameters alone."""
        return [value for value, own in zip(self.inputs, self.from_params, strict=True) if own]

    def rebind(self, operands: list) -> list:
        """The equation's outputs as a function of those inputs."""
        replaced = iter(operands)
        mixed = zip(self.inputs, self.from_params, strict=True)
        return bind(self.eqn, [next(replaced) if own else value for value, own in mixed])

    def factors(self, cotangents: list) -> Factors | None:
        """The only operand's gradient as factors, where the equation is linear in it in such a way."""
        form = LINEAR.get(self.eqn.primitive.name)
        if form is None or sum(self.from_params) != 1 or cotangents[0] is None:
            return None
        return form(self.eqn, self.inputs, self.from_params, cotangents[0])

    def operand_gradients(self, cotangents: list) -> list:
        """Cotangents (R, ...) of the outputs, pulled back to the operands."""
        factors = self.factors(cotangents)
        if factors is not None and factors.inputs.dtype.kind not in "iu":
            (operand,) = self.operands()
            return [factors.layout.undo(factors.whole().values[:, 0]).astype(operand.dtype)]
        outputs, pull = jax.vjp(self.rebind, self.operands())

        def pull_one(cotangent):
            filled = [jnp.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangent, strict=True)]
            return pull(filled)[0]

        return jax.vmap(pull_one)(cotangents)

    def contract(self, cotangents: list, tangents: list, dtype) -> jax.Array:
        """Σ_c ⟨gradient of the operands at output c, tangents (C, T, ...)⟩, an array (T,), summed in ``dtype``
        or better."""
        factors = self.factors(cotangents) if self.eqn.primitive.name == "conv_general_dilated" else None
        if factors is not None and factors.inputs.shape[1] == 1:
            # (s, k), (c, s, o) and (c, t, o, k)
            matrices = factors.layout.view(tangents[0])[:, :, 0]
            found = _contract_convolution(factors.inputs[0, 0], factors.cotangents[:, 0, 0], matrices)
            return found.real.astype(dtype)

        def push(tangent):
            return jax.jvp(self.rebind, (self.operands(),), (tangent,))[1]

        changes = jax.vmap(jax.vmap(push))(tangents)
        terms = [(c, d) for c, d in zip(cotangents, changes, strict=True) if c is not None]
        return sum(_summed(_flat(c, 1), _flat(d, 2), dtype) for c, d in terms)


@dataclass
class _Walk:
    """Evaluates a jaxpr, keeping apart what depends on parameters alone and what depends on the data."""

    probes: list | None = None
    # what depends on data is left out, where only the operands are wanted
    operands_only: bool = False
    meetings: list[_Meeting] = field(default_factory=list)

    def run(self, jaxpr, consts, args, kinds) -> tuple[list, list]:
        """Values and kinds (CONST, DATA or _FromParams) of the outputs."""
        env = dict(zip(jaxpr.constvars, ((c, CONST) for c in consts), strict=True))
        env |= dict(zip(jaxpr.invars, zip(args, kinds, strict=True), strict=True))

        def read(atom):
            return (atom.val, CONST) if isinstance(atom, Literal) else env[atom]

        read_in = Counter(
            v for v in (*jaxpr.outvars, *itertools.chain(*(e.invars for e in jaxpr.eqns))) if _is_var(v)
        )
        met = {}
        for eqn in jaxpr.eqns:
            pairs = [read(atom) for atom in eqn.invars]
            inputs, kinds = [value for value, _ in pairs], [kind for _, kind in pairs]
            env |= dict(zip(eqn.outvars, self._equation(eqn, inputs, kinds), strict=True))
            if self.meetings and self.meetings[-1].eqn is eqn:
                self.meetings[-1].after = next((met[v] for v in eqn.invars if _is_var(v) and v in met), None)
                if read_in[eqn.outvars[0]] == 1:
                    met[eqn.outvars[0]] = self.meetings[-1]
        outputs = [read(atom) for atom in jaxpr.outvars]
        return [value for value, _ in outputs], [kind for _, kind in outputs]

    def _equation(self, eqn, inputs, kinds) -> list[tuple]:
        from_params = [kind for kind in kinds if isinstance(kind, _FromParams)]
        if from_params and eqn.primitive.name in INLINED:
            return list(zip(*self.run(*subjaxpr(eqn), inputs, kinds), strict=True))
        if self.operands_only and DATA in kinds:
            outputs = [None] * len(eqn.outvars)
        elif self.probes is not None and DATA in kinds and is_strided(eqn):
            # only where cotangents are wanted: what has a rule of its own cannot be pushed forward
            outputs = [plain_convolution(eqn, *inputs)]
        else:
            outputs = bind(eqn, inputs)
        if not from_params:
            return [(out, DATA if DATA in kinds else CONST) for out in outputs]
        if DATA not in kinds:
            leaves = frozenset().union(*(kind.leaves for kind in from_params))
            return [(out, _FromParams(leaves, _origin(eqn, inputs, kinds))) for out in outputs]
        meeting = _Meeting(eqn, inputs, kinds)
        if any(meeting.from_params) and any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
            self.meetings.append(meeting)
            if self.probes is not None:
                probes = self.probes[len(self.meetings) - 1]
                outputs = [out if p is None else out + p for out, p in zip(outputs, probes, strict=True)]
        return [(out, DATA) for out in outputs]


def _is_var(atom) -> bool:
    return not isinstance(atom, Literal)


def _origin(eqn, inputs, kinds) -> _Origin | None:
    """The origin of an equation's output where it only reorders, casts or scales one parameter array."""
    name, shapes = eqn.primitive.name, [jnp.shape(value) for value in inputs]
    out = eqn.outvars[0].aval
    at = next(i for i, kind in enumerate(kinds) if isinstance(kind, _FromParams))
    origin, others = kinds[at].origin, [value for i, value in enumerate(inputs) if i != at]
    if origin is None or any(kind is not CONST for i, kind in enumerate(kinds) if i != at):
        return None
    if name == "transpose":
        return origin._replace(layout=origin.layout.then("transpose", eqn.params["permutation"]))
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim") and math.prod(shapes[at]) == out.size:
        # axes of length one may change places, the others keep their order
        return origin._replace(layout=origin.layout.then("reshape", out.shape))
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
class _Met:
    """Where parameters meet one example, and how to pull cotangents back to there.

    Attributes
    ----------
    meetings : list of _Meeting
    cotangents : callable
        From seeds (R, C) to a list for each meeting, of arrays (R, *output.shape) or None for outputs that
        cannot be differentiated.
    operands_of : callable
        From parameters to all meetings' operands.
    logits : shape and dtype
    """

    meetings: list[_Meeting]
    cotangents: Callable
    operands_of: Callable
    logits: Any


def _meet(apply, params, z) -> _Met:
    """Follow the one example z (1, ...) through the network."""

    def apply_to_data(params, z):
        logits = apply(params, z)
        # logits of parameters alone would meet the data nowhere and look as if they had no gradient
        return jnp.where((z == 0).all(), logits, logits)

    closed, logits = jax.make_jaxpr(apply_to_data, return_shape=True)(params, z)

    def walk(at, probes, operands_only=False):
        walker = _Walk(probes, operands_only)
        leaves = jax.tree.leaves(at)
        kinds = [_FromParams(frozenset([i]), _Origin(i, Layout(jnp.shape(v)))) for i, v in enumerate(leaves)]
        outputs, _ = walker.run(closed.jaxpr, closed.consts, [*leaves, z], [*kinds, DATA])
        return None if operands_only else outputs[0][0], walker.meetings

    def probe(var):
        return jnp.zeros(var.aval.shape, var.aval.dtype) if jnp.issubdtype(var.aval.dtype, jnp.inexact) else None

    meetings = walk(params, None)[1]
    probes = [[probe(var) for var in meeting.eqn.outvars] for meeting in meetings]

    def cotangents(seeds):
        _, pull = jax.vjp(lambda p: walk(params, p)[0], probes)
        return jax.vmap(lambda seed: pull(seed)[0])(seeds)

    def operands_of(at):
        return [meeting.operands() for meeting in walk(at, None, operands_only=True)[1]]

    return _Met(meetings, cotangents, operands_of, logits)


def _gradients(apply, params, z, seeds, all_pairs) -> list[Whole | Factors]:
    """:func:`layer_gradients` of the one example z (1, ...)."""
    met = _meet(apply, params, z)
    units, size = _in_units(seeds, met.logits.dtype)
    cotangents = met.cotangents(units)
    leaves, tree = jax.tree.flatten(params)
    dtype = params_dtype(params)
    uses = [[] for _ in leaves]
    for meeting, delta in zip(met.meetings, cotangents, strict=True):
        _warn_if_opaque(meeting)
        for source in meeting.sources():
            for leaf in source.leaves:
                uses[leaf].append(_as_of_parameter(meeting, source, delta, size, dtype))
    n_seeds = met.logits.shape[1] if all_pairs or len(seeds) > 1 else 1
    found = [_joined_uses(parts) for parts in uses]
    rest = [i for i, factors in enumerate(found) if factors is None]
    pulled = _pulled_back(met, cotangents, leaves, tree, rest) if any(uses[i] for i in rest) else {}
    biases = _biases(met, uses)
    with_weights, result = set(), []
    for i, (factors, leaf) in enumerate(zip(found, leaves, strict=True)):
        if factors is None:
            flat = pulled.get(i, jnp.zeros((len(seeds), *jnp.shape(leaf)), jnp.result_type(leaf)))
            flat = flat.reshape(len(seeds), 1, -1).astype(dtype) * size.astype(dtype)
            result.append(Whole(flat, Layout(jnp.shape(leaf))))
        elif factors.inputs.dtype.kind not in "iu" and forms_gradient(
            *factors.inputs.shape[2:], factors.cotangents.shape[-1], n_seeds, all_pairs
        ):
            result.append(factors.whole())
        elif i in biases:
            bias_layout = Layout(jnp.shape(leaves[biases[i]])).then(
                "reshape", (1, factors.cotangents.shape[-1], 1)
            )
            result.append(
                AffineFactors(factors.inputs, factors.cotangents, factors.layout, biases[i], bias_layout)
            )
            with_weights.add(biases[i])
        else:
            result.append(factors)
    return [leaf for i, leaf in enumerate(result) if i not in with_weights]


def _in_units(seeds, dtype) -> tuple[jax.Array, jax.Array]:
    """Seeds in units of their largest entry, and that entry.

    Zeros and ones are exact in half precision, where 1/√C is not: its rounding would be in all gradients alike.
    """
    size = jnp.abs(seeds).max()
    size = jnp.where(size > 0, size, 1)
    return (seeds / size).astype(dtype), size


def _biases(met, uses) -> dict[int, int]:
    """Weights and their biases, as positions of parameter arrays.

    A bias is added to what a product or convolution gives along the last axis, the weights' outputs, before
    anything else happens to it; neither array is used elsewhere.
    """
    found = {}
    for meeting in met.meetings:
        layer = meeting.after
        if meeting.eqn.primitive.name != "add" or layer is None or not _gives_outputs_last(layer.eqn):
            continue
        (bias, *_), (weights, *others) = meeting.sources(), layer.sources()
        origins = [source.origin for source in (bias, weights)]
        of_complex = jnp.issubdtype(layer.eqn.outvars[0].aval.dtype, jnp.complexfloating)
        # weights come second, so that the last axis is their outputs
        if of_complex or layer.from_params != [False, True]:
            continue
        if others or any(o is None or not _is_one(o.scale) or len(uses[o.leaf]) > 1 for o in origins):
            continue
        (operand,), out = meeting.operands(), layer.eqn.outvars[0].aval.shape
        if jnp.shape(operand) == (*[1] * (len(out) - 1), out[-1]):
            found[weights.origin.leaf] = bias.origin.leaf
    return found


def _gives_outputs_last(eqn) -> bool:
    """Whether the last axis of an equation's output holds its weights' outputs, all of them."""
    if eqn.primitive.name == "conv_general_dilated":
        last = eqn.outvars[0].aval.ndim - 1
        return eqn.params["feature_group_count"] == 1 and eqn.params["dimension_numbers"].out_spec[1] == last
    if eqn.primitive.name != "dot_general":
        return False
    (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
    return not batched and eqn.invars[1].aval.ndim - len(contracted) == 1


def _is_one(scale) -> bool:
    return isinstance(scale, float) and scale == 1.0


def _as_of_parameter(meeting, source, cotangents, size, dtype) -> Factors | None:
    """The meeting's factors, times ``size``, as those of the (real) parameter array that its operand is, if it is
    one."""
    factors = None if source.origin is None else meeting.factors(cotangents)
    if factors is None:
        return None
    seen = source.origin.layout
    layout = Layout(seen.shape, _merged((*seen.steps, *factors.layout.steps)))
    scale = size if _is_one(source.origin.scale) else size * source.origin.scale
    # sums over positions and rows in the parameters' own precision, whatever their layer computes in; scaled in it
    # too, since what is rounded there would be so in all gradients alike
    wide = jnp.promote_types(factors.cotangents.dtype, dtype)
    inputs, scaled = factors.inputs, (factors.cotangents.astype(wide) * scale).astype(wide)
    if jnp.iscomplexobj(scaled):
        # of a real array the real part counts: Re(δ h) is the sum of two real products, at twice the positions
        if inputs.dtype.kind in "iu":
            scaled = scaled.real
        else:
            inputs = jnp.concatenate([inputs.real, inputs.imag], axis=-2)
            scaled = jnp.concatenate([scaled.real, -scaled.imag], axis=-2)
    inputs = inputs if inputs.dtype.kind in "iu" else inputs.astype(dtype)
    return Factors(inputs, scaled.astype(dtype), layout)


def _merged(steps):
    """Steps without the reshapes that another reshape follows."""
    pairs = itertools.pairwise((*steps, ("end", ())))
    return tuple(step for step, after in pairs if not step[0] == after[0] == "reshape")


def _joined_uses(parts) -> Factors | None:
    """All uses of one parameter array as one, if all are factors of the same layout."""
    if not parts or any(part is None or part.layout != parts[0].layout for part in parts):
        return None
    return joined(parts) if len({part.inputs.dtype for part in parts}) == 1 else None


def _pulled_back(met, cotangents, leaves, tree, rest) -> dict[int, jax.Array]:
    """Gradients (R, *leaf.shape) of the parameter arrays in ``rest``, through the operands that they enter."""
    concerned = [any(source.leaves & set(rest) for source in meeting.sources()) for meeting in met.meetings]

    def operands_of(some):
        whole = list(leaves)
        for i, leaf in zip(rest, some, strict=True):
            whole[i] = leaf
        operands = met.operands_of(jax.tree.unflatten(tree, whole))
        return [part for part, kept in zip(operands, concerned, strict=True) if kept]

    pairs = zip(met.meetings, cotangents, concerned, strict=True)
    gradients = [meeting.operand_gradients(c) for meeting, c, kept in pairs if kept]
    _, pull = jax.vjp(operands_of, [leaves[i] for i in rest])
    return dict(zip(rest, jax.vmap(lambda g: pull(g)[0])(gradients), strict=True))


_WARNED = set()


def _warn_if_opaque(meeting) -> None:
    name = meeting.eqn.primitive.name
    if name in OPAQUE and name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(
            f"this network has parameters inside a `{name}`, whose layers cannot be seen: their gradients are "
            f"taken by one backward pass through the whole `{name}` for every example and output, which is exact "
            "but can be ten to a thousand times slower than layer by layer. Write a loop over "
            "layers as a Python loop if you can",
            UserWarning,
            stacklevel=2,
        )


# Equations as outer products. Each takes the equation, its inputs, which of them come from parameters (one
# does), and the output's cotangents (R, *output.shape); there is one example, so n = 1.


def _product(eqn, inputs, from_params, cotangents) -> Factors:
    (contracted, batched) = eqn.params["dimension_numbers"]
    at = from_params.index(True)
    h = inputs[1 - at]
    c, b = contracted[1 - at], batched[1 - at]
    free = [d for d in range(h.ndim) if d not in (*c, *b)]
    n_groups, n_in = math.prod(h.shape[d] for d in b), math.prod(h.shape[d] for d in c)
    n_positions = math.prod(h.shape[d] for d in free)
    shape = jnp.shape(inputs[at])
    wc, wb = contracted[at], batched[at]
    w_free = [d for d in range(len(shape)) if d not in (*wc, *wb)]
    n_out = math.prod(shape[d] for d in w_free)
    layout = Layout(shape).then("transpose", (*wb, *w_free, *wc)).then("reshape", (n_groups, n_out, n_in))
    # integers would be taken for rows of a table
    seen = h.astype(cotangents.dtype).transpose(*b, *free, *c).reshape(1, n_groups, n_positions, n_in)
    # the output's axes: batch, the left operand's free ones, the right operand's
    order = (n_positions, n_out) if at == 1 else (n_out, n_positions)
    delta = cotangents.reshape(len(cotangents), 1, n_groups, *order)
    return Factors(seen, delta if at == 1 else delta.swapaxes(3, 4), layout)


def _convolution(eqn, inputs, from_params, cotangents) -> Factors | None:
    if from_params != [False, True] or eqn.params["batch_group_count"] != 1:
        return None
    numbers, n_groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    shape = jnp.shape(inputs[1])
    c_out, c_in, *spatial = numbers.rhs_spec
    size = math.prod(shape[d] for d in spatial)
    out = shape[c_out] // n_groups
    layout = Layout(shape).then("transpose", (c_out, *spatial, c_in))
    layout = layout.then("reshape", (n_groups, out, size * shape[c_in]))
    patches = _patches(eqn, inputs[0]).astype(cotangents.dtype)  # (s, window, channels)
    seen = patches.reshape(len(patches), size, n_groups, -1).transpose(2, 0, 1, 3)
    batch, channels, *places = (d + 1 for d in numbers.out_spec)
    delta = jnp.transpose(cotangents, (0, batch, *places, channels))
    delta = delta.reshape(len(delta), len(patches), n_groups, out).swapaxes(1, 2)
    return Factors(seen.reshape(1, n_groups, len(patches), -1), delta[:, None], layout)


def _look_up(eqn, inputs, from_params, cotangents) -> Factors | None:
    """Rows of a table, one for each index."""
    numbers, table, indices = eqn.params["dimension_numbers"], jnp.shape(inputs[0]), inputs[1]
    whole_rows = tuple(eqn.params["slice_sizes"]) == (1, *table[1:])
    plain = numbers.collapsed_slice_dims == (0,) and numbers.start_index_map == (0,)
    out_ndim = cotangents.ndim - 1
    last = tuple(range(out_ndim - len(table) + 1, out_ndim))
    if from_params != [True, False] or not (whole_rows and plain and numbers.offset_dims == last):
        return None
    n_rows, n_out = table[0], math.prod(table[1:])
    layout = Layout(table).then("reshape", (1, n_rows, n_out)).then("transpose", (0, 2, 1))
    seen = indices.reshape(1, 1, -1, 1)
    delta = cotangents.reshape(len(cotangents), 1, 1, seen.shape[2], n_out)
    if eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        delta = jnp.where((seen >= 0) & (seen < n_rows), delta, 0)
    return Factors(seen.clip(0, n_rows - 1), delta, layout)


LINEAR = {"dot_general": _product, "conv_general_dilated": _convolution, "gather": _look_up}


def _summed(cotangents, changes, dtype):
    """Σ_ce ⟨cotangents (c, e), changes (c, t, e)⟩, (t,)."""
    wide = jnp.promote_types(cotangents.dtype, dtype)
    return jnp.einsum("ce,cte->t", cotangents, changes, preferred_element_type=wide).real.astype(dtype)


def _flat(array, n_axes: int):
    """All but the first axes made one."""
    return array.reshape(*array.shape[:n_axes], -1)


def _forms_gradient(n_positions: int, n_tangents: int) -> bool:
    """Whether forming a filter's gradient, S multiply-adds an entry, and contracting it with T tangents is
    cheaper than contracting cotangents and tangents first, S·T an entry."""
    return n_positions + n_tangents + ENTRY_COST < n_positions * n_tangents


def _contract_convolution(patches, delta, matrices):
    """(T,) from patches (S, K), cotangents (C, S, O) and tangents (C, T, O, K)."""
    if _forms_gradient(len(patches), matrices.shape[1]):
        return jnp.einsum("cok,ctok->t", jnp.einsum("sk,cso->cok", patches, delta), matrices)
    return jnp.einsum("stk,sk->t", jnp.einsum("cso,ctok->stk", delta, matrices), patches)


def _patches(eqn, lhs):
    """What the filter sees at each position: (S, window, input channels), S over the convolution's batch and
    output positions.

    A filter's gradient is Σ_positions patch ⊗ cotangent, one matrix product; XLA would compute the same sum
    as a grouped convolution.
    """
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    image = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    between = [d - 1 for d in params["lhs_dilation"]]
    around = [(low, high, d) for (low, high), d in zip(params["padding"], between, strict=True)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    size = [eqn.invars[1].aval.shape[d] for d in numbers.rhs_spec[2:]]
    out_size = [eqn.outvars[0].aval.shape[d] for d in numbers.out_spec[2:]]
    windows = []
    for offset in itertools.product(*map(range, size)):
        start = [o * d for o, d in zip(offset, params["rhs_dilation"], strict=True)]
        limit = [b + (n - 1) * s + 1 for b, n, s in zip(start, out_size, params["window_strides"], strict=True)]
        strides = (1, *params["window_strides"], 1)
        windows.append(jax.lax.slice(image, (0, *start, 0), (len(image), *limit, image.shape[-1]), strides))
    windows = jnp.stack(windows, axis=-2)
    return windows.reshape(len(image) * math.prod(out_size), *windows.shape[-2:])


def pushes_forward(apply: Callable, params, x) -> bool:
    """Whether tangents can be pushed through a network: not where it has a backward pass of its own alone
    (``custom_vjp``), nor, without loss of digits, where its parameters have several dtypes."""
    if len({jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}) > 1:
        return False
    return not holds_custom_vjp(jax.make_jaxpr(apply)(params, x).jaxpr)


def holds_custom_vjp(jaxpr) -> bool:
    """Whether a jaxpr holds a function that has a backward pass of its own alone."""
    return any(
        eqn.primitive.name.startswith("custom_vjp") or any(map(holds_custom_vjp, subjaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def subjaxprs(eqn) -> list:
    """All jaxprs inside of an equation."""
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    inner = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in inner if hasattr(value, "eqns")]
