"""Random networks, each of which must pass the comparison of its gradients with a plain backward pass.

    python examples/fuzz_networks.py --seed 0 --n 200

Networks of random depth, width, activation, layers and dtype are drawn; none may be refused, and kernels must be
those of the dense Jacobian. Prints a table by kind, and ends with status 1 if a sound network was refused.
"""

import argparse
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from ntkrobust_sk import Model, Stateless, Variables, gram
from ntkrobust_sk.execution.precision import enable_x64

ACTIVATIONS = {f.__name__: f for f in (jax.nn.relu, jnp.tanh, jax.nn.gelu, jnp.abs, jax.nn.silu, jnp.sin)}
LAYERS = ("dense", "columns", "scaled", "tied", "normalised", "fourier", "convolution", "residual", "one bias")
# how inputs and layers are rounded, and how far kernels may be from the dense Jacobian in float64
DTYPES = {"float32": 1e-3, "float64": 1e-3, "bfloat16 layers": 0.2, "float16 layers": 0.03}


def draw(seed: int):
    """A random network: its kind, a function of parameters and inputs (n, 12), and the parameters."""
    random = np.random.default_rng(seed)
    layers = random.choice(LAYERS, size=random.integers(1, 6)).tolist()
    activation = str(random.choice(list(ACTIVATIONS)))
    dtype = str(random.choice(list(DTYPES), p=[0.5, 0.2, 0.2, 0.1]))
    width, n_outputs = int(random.integers(2, 13)), int(random.integers(1, 4))
    params = {"first": normal(random, 12, width), "last": normal(random, width, n_outputs)}
    for i, layer in enumerate(layers):
        params[f"w{i}"] = normal(random, *((3, 1, 1) if layer == "convolution" else (width, width)))
        params[f"b{i}"] = normal(random, *((1, 1) if layer in ("one bias", "convolution") else (width,)))

    def apply(params, x):
        low = jnp.dtype(dtype.split()[0]) if "layers" in dtype else None
        h = (x if low is None else x.astype(low)) @ cast(params["first"], low)
        for i, layer in enumerate(layers):
            w, b = cast(params[f"w{i}"], low), cast(params[f"b{i}"], low)
            h = ACTIVATIONS[activation](step(layer, h, w, b, cast(params["first"], low)))
        return (h @ cast(params["last"], low)).astype(x.dtype)

    return (dtype, activation, *layers), apply, params


def step(layer, h, w, b, first):
    """One layer of a kind."""
    if layer == "columns":
        return (w @ h.T + b[:, None]).T
    if layer == "scaled":
        return h @ w / np.sqrt(len(w)).astype(np.float32).item() + b * 2
    if layer == "tied":
        return (h @ w + b) @ w.T + h @ first[: len(w)]
    if layer == "normalised":
        h = h - h.mean(1, keepdims=True)
        return (h / jnp.sqrt((h * h).mean(1, keepdims=True) + 0.1)) @ w + b
    if layer == "fourier":
        wide = h.astype(jnp.result_type(h.dtype, jnp.float32))
        found = jnp.fft.ifft(
            jnp.fft.fft(wide) * jax.lax.complex(w[0].astype(wide.dtype), w[-1].astype(wide.dtype))
        )
        return jnp.abs(found + 1j).astype(h.dtype) + b
    if layer == "convolution":
        return (
            jax.lax.conv_general_dilated(h[:, :, None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[
                ..., 0
            ]
            + b
        )
    if layer == "residual":
        return h + h @ w + b
    return h @ w + b


def normal(random, *shape):
    return (random.normal(size=shape) / np.sqrt(max(1, shape[0]))).astype(np.float32)


def cast(array, low):
    return array if low is None else array.astype(low)


def check(seed: int) -> tuple[tuple, str]:
    """The kind of a network, and what was found: "fine", "refused" or "wrong"."""
    kind, apply, params = draw(seed)
    with enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        X = np.random.default_rng(seed).normal(size=(5, 12)).astype(np.float32)
        J = jax.tree.leaves(jax.jit(jax.jacrev(apply))(exact, jnp.asarray(X, jnp.float64)))
        J = np.concatenate([np.asarray(leaf).reshape(5, -1, leaf[0, 0].size) for leaf in J], 2)
        K = np.einsum("ncp,mcp->nm", J, J) / J.shape[1]
        if kind[0] == "float64":
            return kind, outcome(kind, apply, exact, X, K)
    return kind, outcome(kind, apply, params, X, K)


def outcome(kind, apply, params, X, K):
    try:
        found = gram("trace", Model(Stateless(apply), Variables(params)), X)
    except ArithmeticError as error:
        return f"refused: {error}"
    # a network whose units are all off has no gradients, and the kernel 0
    far = np.abs(found - K).max() / max(np.abs(K).max(), np.finfo(np.float32).tiny)
    return "fine" if far < DTYPES[kind[0]] else f"wrong by {far:.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=200)
    arguments = parser.parse_args()
    table, not_fine = Counter(), 0
    for done, seed in enumerate(range(arguments.seed, arguments.seed + arguments.n), 1):
        kind, found = check(seed)
        not_fine += found != "fine"
        if found != "fine":
            print(f"seed {seed}: {kind}: {found[:150]}", flush=True)
        if done % 10 == 0:
            print(f"{done} of {arguments.n} networks, {not_fine} of them not fine", flush=True)
        for part in dict.fromkeys(kind):
            table[part, found.split()[0].strip(":")] += 1
    print(f"{'':18}{'fine':>7}{'refused':>9}{'wrong':>7}")
    for part in sorted({part for part, _ in table}):
        print(f"{part:18}{table[part, 'fine']:7}{table[part, 'refused']:9}{table[part, 'wrong']:7}")
    print(f"{arguments.n} networks, {not_fine} not fine")
    sys.exit(not_fine > 0)


if __name__ == "__main__":
    main()
