"""Per-example gradients of any network, read from the structure of its jaxpr.

``vmap(grad)`` makes XLA compute every example's weight gradient as a grouped convolution, which is slow by
orders of magnitude. But a network's gradient needs one cotangent for each place where parameters *meet*
the data (a convolution, a matrix product, the addition of a bias), and those cotangents come from one
ordinary backward pass. So: walk the jaxpr, add a zero probe to the output of every such equation, take the
VJP with respect to the probes, and finish each equation on its own. Nothing is declared by the network's
author, and any differentiable equation is allowed, because what is left is always that equation's own VJP.

Products, convolutions and table look-ups give their gradients as outer products
(:class:`.gradients.OuterProducts`), provided that they take a parameter array as it is, or reshaped, transposed,
cast or times a number.
"""

import itertools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..networks.inputs import PyTree, params_dtype
from ..networks.model import Model, Variables
from .contractions import contract_outer_products
from .gradient_lists import concatenate_uses, split_biases
from .gradients import AffineOuterProducts, DenseGradients, Gradients, Layout, OuterProducts
from .jaxpr import find_parameter_uses, holds_custom_vjp
from .layer_rules import ENTRY_COST

# A row's gradient, once formed, is contracted with about so many others: the rows of a tile.
USES_PER_GRADIENT = 64
# Control flow around layers hides them: each example, output by output, goes backward through all of it.
OPAQUE = ("scan", "while", "cond", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def layer_gradients(
    apply: Callable, params: PyTree, x: jax.Array, directions: jax.Array, *, all_pairs: bool = False
) -> list[Gradients]:
    """Compute the gradients of ⟨d_r, f(x_i)⟩ with respect to the parameters, one array's after the other.

    Parameters
    ----------
    apply : callable
        ``apply(params, x)`` with x (n, ...) returns (n, C); each row a function of its own input alone.
    params : pytree of arrays
    x : array (n, ...)
    directions : array (R, C)
    all_pairs : bool, default=False
        Whether gradients of different directions will be contracted with each other, which decides what is
        cheaper: dense gradients, or outer products.

    Returns
    -------
    list of DenseGradients or OuterProducts
        In the order of ``jax.tree.leaves(params)``; a bias may be in the entry of its weights
        (:class:`.gradients.AffineOuterProducts`), and
        :func:`.gradient_lists.split_biases` gives it one of its own.
    """

    def one(z):
        return _gradients(apply, params, z[None], directions, all_pairs)

    return [leaf.each(_examples_in_place) for leaf in jax.vmap(one)(x)]


def _examples_in_place(array, axis):
    """Move the axis of examples, which vmap puts first, to where the one example was."""
    return jnp.moveaxis(array[(slice(None),) * (axis + 1) + (0,)], 0, axis)


def per_example_gradients(apply: Callable, params: PyTree, x: jax.Array) -> PyTree:
    """Compute the gradient of every output of every example with respect to the parameters.

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
    gradients = split_biases(layer_gradients(apply, params, x, jnp.eye(logits.shape[1], dtype=logits.dtype)))
    leaves, tree = jax.tree.flatten(params)
    shaped = [
        jnp.moveaxis(g.layout.inverse(g.dense().values), 0, 1).astype(jnp.result_type(leaf))
        for g, leaf in zip(gradients, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shaped)


def contract_gradients(
    apply: Callable,
    params: PyTree,
    x: jax.Array,
    tangents: PyTree,
    directions: jax.Array | None = None,
    *,
    each: bool = False,
) -> jax.Array:
    """Compute Σ_r ⟨∂⟨d_r, f(x_i)⟩/∂θ, tangents_rt⟩ without the gradients, for each example and each t.

    A layer whose gradient is cheaper to form than to avoid has it formed; see :mod:`.contractions`.

    Parameters
    ----------
    apply, params, x
        As for :func:`layer_gradients`.
    tangents : pytree like params, each leaf (R, T, *leaf.shape)
    directions : array (R, C), default=None
        None is the identity, R = C.
    each : bool, default=False
        Whether directions are kept apart in place of summed.

    Returns
    -------
    array (n, T), or (n, R, T) with ``each``

    Examples
    --------
    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> contract_gradients(lambda p, x: x @ p, w, jnp.ones((5, 2)), jnp.ones((2, 3, 2, 2))).shape
    (5, 3)
    """
    n_directions, n_tangents = jax.tree.leaves(tangents)[0].shape[:2]
    start = jnp.zeros((n_directions, n_tangents) if each else n_tangents, params_dtype(params))

    def one(z):
        """Return the sum over what is no product, then outer products, and tangents of their weights."""
        traced = find_parameter_uses(apply, params, z[None])
        identity = jnp.eye(traced.logits.shape[1], dtype=traced.logits.dtype)
        units, size = _in_units(identity if directions is None else directions, traced.logits.dtype)
        push = jax.vmap(jax.vmap(lambda t: jax.jvp(traced.operands_of, (params,), (t,))[1]))
        found, products, of_products = start, [], []
        for use, delta, some in zip(traced.uses, traced.cotangents(units), push(tangents), strict=True):
            form = use.outer_products(delta)
            if form is None or form.inputs.dtype.kind in "iu":
                found += use.contract(delta, some, start.dtype, each=each)
            else:
                products.append(form)
                of_products += some
        return (found, products), (of_products, size)

    # products of matrices have all examples' positions as their rows
    (found, products), (of_products, size) = jax.vmap(one, out_axes=(0, None))(x)
    for form, some in zip(products, of_products, strict=True):
        found += contract_outer_products(form.each(_examples_in_place), some, start.dtype, each=each)
    return size.astype(start.dtype) * found


def tangent_features(model: Model, x: jax.Array, directions=None, *, all_pairs: bool = False) -> list[Gradients]:
    """Compute the gradients of every ⟨d_r, f⟩ at every input, one entry for each parameter array.

    Parameters
    ----------
    model : Model
    x : array (n, ...)
    directions : array (R, C), default=None
        Directions in output space; None is the identity, the logits themselves.
    all_pairs : bool, default=False
        Whether gradients of different directions will be contracted with each other.

    Returns
    -------
    list of DenseGradients or OuterProducts
        In the order of ``jax.tree.leaves(params)``, each for R directions and n examples; biases may be in the
        entry of their weights, see :func:`.gradient_lists.split_biases`.
    """
    directions = identity_directions(model, x) if directions is None else directions
    with jax.default_matmul_precision("highest"):
        return layer_gradients(_as_function(model), model.variables.params, x, directions, all_pairs=all_pairs)


def identity_directions(model: Model, x) -> jax.Array:
    """Return one direction for each logit, (C, C), in single precision at least."""
    logits = jax.eval_shape(lambda model, x: model(x), model, x)
    return jnp.eye(logits.shape[1], dtype=jnp.promote_types(logits.dtype, jnp.float32))


def contract_features(
    model: Model, x: jax.Array, tangents: PyTree, directions=None, *, each: bool = False
) -> jax.Array:
    """Compute Σ_r ⟨∇⟨d_r, f(x_i)⟩, W_rt⟩, an array (n, T), for tangents W with leaves (R, T, *leaf.shape).

    With ``each`` the terms for themselves, (n, R, T).
    """
    with jax.default_matmul_precision("highest"):
        return contract_gradients(_as_function(model), model.variables.params, x, tangents, directions, each=each)


def can_push(model: Model, x: jax.Array) -> bool:
    """Tell whether :func:`push` and :func:`contract_features` are possible, and as exact as the features.

    They are not where the network has a backward pass of its own alone (``custom_vjp``), nor, without loss of
    digits, where its parameters have several dtypes.
    """
    params = model.variables.params
    if len({jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}) > 1:
        return False
    return not holds_custom_vjp(jax.make_jaxpr(_as_function(model))(params, x).jaxpr)


def push(model: Model, x: jax.Array, tangents: PyTree) -> jax.Array:
    """Compute J(x) w for m tangent vectors w: array (m, n, C) from leaves (m, *leaf.shape)."""
    apply = _as_function(model)

    def one(tangent):
        return jax.jvp(lambda params: apply(params, x), (model.variables.params,), (tangent,))[1]

    with jax.default_matmul_precision("highest"):
        if len(jax.tree.leaves(tangents)[0]) == 1:
            # XLA knows an ordinary convolution better than one for each of a single tangent
            return one(jax.tree.map(lambda leaf: leaf[0], tangents))[None]
        return jax.vmap(one)(tangents)


def _as_function(model: Model):
    """Return the logits as a function of parameters and inputs."""
    return lambda params, x: Model(model.network, Variables(params, model.variables.state))(x)


def _gradients(apply, params, z, directions, all_pairs) -> list[Gradients]:
    """Compute :func:`layer_gradients` of the one example z (1, ...)."""
    traced = find_parameter_uses(apply, params, z)
    units, size = _in_units(directions, traced.logits.dtype)
    cotangents = traced.cotangents(units)
    leaves, tree = jax.tree.flatten(params)
    dtype = params_dtype(params)
    products = [[] for _ in leaves]
    for use, delta in zip(traced.uses, cotangents, strict=True):
        _warn_if_opaque(use)
        for source in use.sources():
            for leaf in source.leaves:
                products[leaf].append(_as_of_parameter(use, source, delta, size, dtype))
    n_directions = traced.logits.shape[1] if all_pairs or len(directions) > 1 else 1
    found = [_common_form(each) for each in products]
    rest = [i for i, form in enumerate(found) if form is None]
    pulled = _pulled_back(traced, cotangents, leaves, tree, rest) if any(products[i] for i in rest) else {}
    biases = _biases(traced, products)
    with_weights, result = set(), []
    for i, (form, leaf) in enumerate(zip(found, leaves, strict=True)):
        if form is None:
            flat = pulled.get(i, jnp.zeros((len(directions), *jnp.shape(leaf)), jnp.result_type(leaf)))
            flat = flat.reshape(len(directions), 1, -1).astype(dtype) * size.astype(dtype)
            result.append(DenseGradients(flat, Layout(jnp.shape(leaf))))
            continue
        n_positions, n_in = form.inputs.shape[2:]
        n_out, is_index = form.cotangents.shape[-1], form.inputs.dtype.kind in "iu"
        if not is_index and forms_gradient(n_positions, n_in, n_out, n_directions, all_pairs):
            result.append(form.dense())
        elif i in biases:
            bias_layout = Layout(jnp.shape(leaves[biases[i]])).followed_by("reshape", (1, n_out, 1))
            result.append(AffineOuterProducts(form.inputs, form.cotangents, form.layout, biases[i], bias_layout))
            with_weights.add(biases[i])
        else:
            result.append(form)
    return [leaf for i, leaf in enumerate(result) if i not in with_weights]


def forms_gradient(n_positions: int, n_in: int, n_out: int, n_directions: int, all_pairs: bool) -> bool:
    """Tell whether dense gradients are cheaper than outer products, in operations for each pair of rows.

    Dense: o·k for every pair of directions, and s·o·k once a row and direction. As outer products: the products of
    all positions' inputs, s²·k, and for every pair of directions those of the cotangents, s²·o, entries of two
    arrays that are multiplied. Depends on nothing but the network's shapes.
    """
    pairs = n_directions**2 if all_pairs else n_directions
    formed = pairs * n_out * n_in + n_directions * n_positions * n_out * n_in / USES_PER_GRADIENT
    factored = n_positions**2 * (n_in + pairs * (n_out + ENTRY_COST))
    return formed < factored


def _in_units(directions, dtype) -> tuple[jax.Array, jax.Array]:
    """Return directions in units of their largest entry, and that entry; or of one, where no digits are lost.

    Zeros and ones are exact in half precision, where 1/√C is not: its rounding would be in all gradients alike.
    """
    loses = jnp.finfo(dtype).eps > jnp.finfo(directions.dtype).eps
    size = jnp.where((largest := jnp.abs(directions).max()) > 0, largest, 1) if loses else jnp.ones((), dtype)
    return (directions / size).astype(dtype), size


def _biases(traced, products) -> dict[int, int]:
    """Return weights and their biases, as positions of parameter arrays.

    A bias is added to what a product or convolution gives along the last axis, the weights' outputs, before
    anything else happens to it; neither array is used elsewhere.
    """
    found = {}
    for use in traced.uses:
        layer = use.after
        if use.eqn.primitive.name != "add" or layer is None or not _gives_outputs_last(layer.eqn):
            continue
        (bias, *_), (weights, *others) = use.sources(), layer.sources()
        origins = [source.origin for source in (bias, weights)]
        of_complex = jnp.issubdtype(layer.eqn.outvars[0].aval.dtype, jnp.complexfloating)
        # weights come second, so that the last axis is their outputs
        if of_complex or layer.from_params != [False, True]:
            continue
        if others or any(o is None or not _is_one(o.scale) or len(products[o.leaf]) > 1 for o in origins):
            continue
        (operand,), out = use.operands(), layer.eqn.outvars[0].aval.shape
        if jnp.shape(operand) == (*[1] * (len(out) - 1), out[-1]):
            found[weights.origin.leaf] = bias.origin.leaf
    return found


def _gives_outputs_last(eqn) -> bool:
    """Tell whether the last axis of an equation's output holds its weights' outputs, all of them."""
    if eqn.primitive.name == "conv_general_dilated":
        last = eqn.outvars[0].aval.ndim - 1
        return eqn.params["feature_group_count"] == 1 and eqn.params["dimension_numbers"].out_spec[1] == last
    if eqn.primitive.name != "dot_general":
        return False
    (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
    return not batched and eqn.invars[1].aval.ndim - len(contracted) == 1


def _is_one(scale) -> bool:
    return isinstance(scale, float) and scale == 1.0


def _as_of_parameter(use, source, cotangents, size, dtype) -> OuterProducts | None:
    """Return the outer products of a use, times ``size``, as those of the (real) parameter array in it."""
    origin = source.origin
    form = None if origin is None else use.outer_products(cotangents)
    if origin is None or form is None:
        return None
    seen = origin.layout
    layout = Layout(seen.shape, _merged((*seen.steps, *form.layout.steps)))
    scale = size if _is_one(origin.scale) else size * origin.scale
    # sums over positions and rows in the parameters' own precision, whatever their layer computes in; scaled in it
    # too, since what is rounded there would be so in all gradients alike
    wide = jnp.promote_types(form.cotangents.dtype, dtype)
    inputs, scaled = form.inputs, (form.cotangents.astype(wide) * scale).astype(wide)
    if jnp.iscomplexobj(scaled):
        # of a real array the real part counts: Re(δ h) is the sum of two real products, at twice the positions
        if inputs.dtype.kind in "iu":
            scaled = scaled.real
        else:
            inputs = jnp.concatenate([inputs.real, inputs.imag], axis=-2)
            scaled = jnp.concatenate([scaled.real, -scaled.imag], axis=-2)
    inputs = inputs if inputs.dtype.kind in "iu" else inputs.astype(dtype)
    return OuterProducts(inputs, scaled.astype(dtype), layout)


def _merged(steps):
    """Leave out the reshapes that another reshape follows."""
    pairs = itertools.pairwise((*steps, ("end", ())))
    return tuple(step for step, after in pairs if not step[0] == after[0] == "reshape")


def _common_form(parts) -> OuterProducts | None:
    """Return all uses of one parameter array as one, if all are outer products of the same layout."""
    if not parts or any(part is None or part.layout != parts[0].layout for part in parts):
        return None
    return concatenate_uses(parts) if len({part.inputs.dtype for part in parts}) == 1 else None


def _pulled_back(traced, cotangents, leaves, tree, rest) -> dict[int, jax.Array]:
    """Compute gradients (R, *leaf.shape) of the arrays in ``rest``, through the operands that they enter."""
    concerned = [any(source.leaves & set(rest) for source in use.sources()) for use in traced.uses]

    def operands_of(some):
        whole = list(leaves)
        for i, leaf in zip(rest, some, strict=True):
            whole[i] = leaf
        operands = traced.operands_of(jax.tree.unflatten(tree, whole))
        return [part for part, kept in zip(operands, concerned, strict=True) if kept]

    pairs = zip(traced.uses, cotangents, concerned, strict=True)
    gradients = [use.operand_gradients(c) for use, c, kept in pairs if kept]
    _, pull = jax.vjp(operands_of, [leaves[i] for i in rest])
    return dict(zip(rest, jax.vmap(lambda g: pull(g)[0])(gradients), strict=True))


_WARNED = set()


def _warn_if_opaque(use) -> None:
    name = use.eqn.primitive.name
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
