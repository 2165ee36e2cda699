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
import warnings
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from ..networks.inputs import params_dtype
from .costs import forms_gradient
from .gradient_lists import joined, separated
from .gradients import AffineFactors, Factors, Layout, Whole
from .jaxpr import meet

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
        met = meet(apply, params, z[None])
        identity = jnp.eye(met.logits.shape[1], dtype=met.logits.dtype)
        units, size = _in_units(identity if seeds is None else seeds, met.logits.dtype)
        cotangents = met.cotangents(units)
        push = jax.vmap(jax.vmap(lambda t: jax.jvp(met.operands_of, (params,), (t,))[1]))
        terms = zip(met.meetings, cotangents, push(tangents), strict=True)
        start = jnp.zeros(n_tangents, params_dtype(params))
        return size.astype(start.dtype) * sum((m.contract(c, t, start.dtype) for m, c, t in terms), start=start)

    return jax.vmap(one)(x)


def _gradients(apply, params, z, seeds, all_pairs) -> list[Whole | Factors]:
    """:func:`layer_gradients` of the one example z (1, ...)."""
    met = meet(apply, params, z)
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
