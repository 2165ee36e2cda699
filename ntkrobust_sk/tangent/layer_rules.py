"""Products, convolutions and look-ups, whose gradients are outer products."""

import itertools
import math

import jax
import jax.numpy as jnp

from .gradients import Layout, OuterProducts

# The bytes of an array entry, written and read again, take the time of about so many multiply-adds.
ENTRY_COST = 30

# Equations as outer products. Each takes the equation, its inputs, which of them come from parameters (one
# does), and the output's cotangents (R, *output.shape); there is one example, so n = 1.


def _product(eqn, inputs, from_params, cotangents) -> OuterProducts:
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
    layout = Layout(shape).followed_by("transpose", (*wb, *w_free, *wc))
    layout = layout.followed_by("reshape", (n_groups, n_out, n_in))
    # integers would be taken for rows of a table
    seen = h.astype(cotangents.dtype).transpose(*b, *free, *c).reshape(1, n_groups, n_positions, n_in)
    # the output's axes: batch, the left operand's free ones, the right operand's
    order = (n_positions, n_out) if at == 1 else (n_out, n_positions)
    delta = cotangents.reshape(len(cotangents), 1, n_groups, *order)
    return OuterProducts(seen, delta if at == 1 else delta.swapaxes(3, 4), layout)


def _convolution(eqn, inputs, from_params, cotangents) -> OuterProducts | None:
    if from_params != [False, True] or eqn.params["batch_group_count"] != 1:
        return None
    numbers, n_groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    shape = jnp.shape(inputs[1])
    c_out, c_in, *spatial = numbers.rhs_spec
    size = math.prod(shape[d] for d in spatial)
    out = shape[c_out] // n_groups
    layout = Layout(shape).followed_by("transpose", (c_out, *spatial, c_in))
    layout = layout.followed_by("reshape", (n_groups, out, size * shape[c_in]))
    patches = _patches(eqn, inputs[0]).astype(cotangents.dtype)  # (s, window, channels)
    seen = patches.reshape(len(patches), size, n_groups, -1).transpose(2, 0, 1, 3)
    batch, channels, *places = (d + 1 for d in numbers.out_spec)
    delta = jnp.transpose(cotangents, (0, batch, *places, channels))
    delta = delta.reshape(len(delta), len(patches), n_groups, out).swapaxes(1, 2)
    return OuterProducts(seen.reshape(1, n_groups, len(patches), -1), delta[:, None], layout)


def _look_up(eqn, inputs, from_params, cotangents) -> OuterProducts | None:
    """Return the gradient of a table of which rows are looked up, one for each index."""
    numbers, table, indices = eqn.params["dimension_numbers"], jnp.shape(inputs[0]), inputs[1]
    whole_rows = tuple(eqn.params["slice_sizes"]) == (1, *table[1:])
    plain = numbers.collapsed_slice_dims == (0,) and numbers.start_index_map == (0,)
    out_ndim = cotangents.ndim - 1
    last = tuple(range(out_ndim - len(table) + 1, out_ndim))
    if from_params != [True, False] or not (whole_rows and plain and numbers.offset_dims == last):
        return None
    n_rows, n_out = table[0], math.prod(table[1:])
    layout = Layout(table).followed_by("reshape", (1, n_rows, n_out)).followed_by("transpose", (0, 2, 1))
    seen = indices.reshape(1, 1, -1, 1)
    delta = cotangents.reshape(len(cotangents), 1, 1, seen.shape[2], n_out)
    if eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        delta = jnp.where((seen >= 0) & (seen < n_rows), delta, 0)
    return OuterProducts(seen.clip(0, n_rows - 1), delta, layout)


LINEAR = {"dot_general": _product, "conv_general_dilated": _convolution, "gather": _look_up}


def _patches(eqn, lhs):
    """Return what the filter sees at each position: (S, window, input channels).

    S goes over the convolution's batch and output positions.

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
