"""The kernel engine against neural-tangents, and against its own promises.

Prints a table, checks that both libraries agree to 1e-4 of the largest entry, and with ``--write`` puts the table
into docs/benchmarks.md:

    pip install --no-deps neural-tangents==0.6.5 frozendict
    python examples/bench_gram.py --write

All figures are ratios within one run, times are medians. The peer is neural-tangents 0.6.5 with ``vmap_axes=0``
and ``jit``, with the tile that is fastest for it. It is charged its median time for one tile times the number of
tiles in the upper half of the matrix, as its whole matrix would often take many minutes. Half an hour on 2 CPU
cores; leave them alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from documents import Seconds, alternating_seconds, bar, now, table_of_bars, write_benchmark

from ntkrobust_sk import CNN, MLP, PGD, Model, ResNet18, gram, solve
from ntkrobust_sk.execution.devices import host_threads
from ntkrobust_sk.kernels.gram_matrix import gram_of
from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.plan import make_plan
from ntkrobust_sk.kernels.predictors import make_predictor, training_job
from ntkrobust_sk.kernels.tiles import TileJob, contract_on_host
from ntkrobust_sk.kernels.whole import is_small, matrix_program
from ntkrobust_sk.networks.model import Variables

SEED = 0
AGREEMENT = 1e-4
# Budget with which a matrix of 1,024 rows takes a quarter of the peer's memory.
SMALL = "160MiB"
NETWORKS = {
    "MLP 784-512-512-10": (MLP(n_outputs=10, widths=(512, 512)), (784,)),
    "CNN 32-32-64-64": (CNN(n_outputs=10, widths=(32, 32, 64, 64), strides=(1, 2, 2, 1)), (32, 32, 3)),
    "ResNet18": (ResNet18(n_outputs=10), (32, 32, 3)),
}
# Of neural-tangents: what it calls a kernel of ours.
PEER_AXES = {
    "trace": {"trace_axes": (-1,)},
    "full": {"trace_axes": ()},
    "class": {"trace_axes": (), "diagonal_axes": (-1,)},
    "pseudo": {"trace_axes": ()},
}
IMPLEMENTATIONS = {1: "JACOBIAN_CONTRACTION", 2: "NTK_VECTOR_PRODUCTS", 3: "STRUCTURED_DERIVATIVES"}


def draw(name: str, n: int):
    """A model at initialisation and n random inputs."""
    network, shape = NETWORKS[name]
    model = Model(network, network.init(jax.random.key(SEED), shape))
    return model, np.asarray(jax.random.normal(jax.random.key(SEED + 1), (n, *shape)))


def median_seconds(function, *arguments, repeats: int = 5) -> float:
    """Median of some calls after a first one, which compiles."""
    return alternating_seconds(partial(function, *arguments), repeats=repeats)[0]


def peer_kernel(model, kernel: str, implementation: int = 3):
    """neural-tangents' kernel as a compiled function of two blocks of inputs."""
    nt = import_neural_tangents()

    def logits(params, x):
        out = Model(model.network, Variables(params, model.variables.state))(x)
        return out.sum(1, keepdims=True) / np.sqrt(out.shape[1]) if kernel == "pseudo" else out

    chosen = nt.NtkImplementation[IMPLEMENTATIONS[implementation]]
    block = jax.jit(nt.empirical_ntk_fn(logits, **PEER_AXES[kernel], vmap_axes=0, implementation=chosen))

    def of(x1, x2):
        with jax.default_matmul_precision("highest"):
            K = block(x1, x2, model.variables.params)
        return K[:, :, 0, 0] if kernel == "pseudo" else K

    return of


def require_agreement(ours, peers) -> float:
    """The largest difference relative to the largest entry."""
    error = float(np.abs(np.asarray(ours) - np.asarray(peers)).max() / np.abs(np.asarray(peers)).max())
    if not error < AGREEMENT:
        raise SystemExit(f"the libraries disagree by {error:.2g}")
    return error


def peer_seconds(name: str, kernel: str, n: int, tiles, implementation: int = 3, repeats: int = 3):
    """Seconds of the peer's n × n matrix with its best tile, that tile, and its function for a block."""
    best = (np.inf, None, None)
    for tile in tiles:
        model, X = draw(name, tile)
        block = partial(peer_kernel(model, kernel, implementation), X, X)
        per_side = -(-n // tile)
        seconds = median_seconds(block, repeats=repeats) * per_side * (per_side + 1) / 2
        print(f"    neural-tangents, {name}, {kernel}, tiles of {tile}: {seconds:.3g} s for {n} rows", flush=True)
        if seconds < best[0]:
            require_agreement(gram(kernel, model, X), block())
            best = (seconds, tile, block)
    return best


def compare(name, kernel, n, least, *, tiles, repeats=5, implementation=3, what=None):
    """One line of the table: the peer's time over ours."""
    model, X = draw(name, n)
    _, tile, block = peer_seconds(name, kernel, n, tiles, implementation)
    ours, of_block = alternating_seconds(partial(gram, kernel, model, X), block, repeats=repeats)
    per_side = -(-n // tile)
    peers = of_block * per_side * (per_side + 1) / 2
    ratio = peers / ours
    case = what or f"{name}, N={n:,}, {kernel}: neural-tangents / ours"
    detail = f"ours {ours}, theirs {peers:.3g} s (tiles of {tile})"
    return bar(case, f"≥ {least}", f"{ratio:.3g}", ratio >= least, detail)


def program_alone(model, X, Y):
    """The compiled program of a small matrix with its inputs on the device; None where it is computed in tiles."""
    plan = make_plan(KERNELS["trace"], model, X.shape[1:], 2**31, n_rows=len(X))
    job = TileJob(KERNELS["trace"], model, X, Y, plan)
    return partial(matrix_program(job), model, *map(jax.device_put, (X, Y))) if is_small(job) else None


def rectangular(name: str, n: int, least: float, repeats: int = 7) -> dict:
    """The peer's time over ours for one set with another, and for one set with itself; both in one block.

    What a call cannot be faster than is stated too, where one program computes the matrix: that program alone.
    """
    model, both = draw(name, 2 * n)
    X, Y = both[:n], both[n:]
    block = peer_kernel(model, "trace")
    require_agreement(gram("trace", model, X, Y), block(X, Y))
    calls = [partial(gram, "trace", model, X, Y), partial(block, X, Y), partial(gram, "trace", model, X)]
    alone = program_alone(model, X, Y)
    ours, theirs, symmetric, *floor = alternating_seconds(*calls, *([alone] if alone else []), repeats=repeats)
    case = f"{name}, N={n:,}, trace, X with other rows Y: neural-tangents / ours"
    detail = f"ours {ours}, theirs {theirs}; X with itself: ours {symmetric}"
    limit, measured, holds = f"≥ {least}", f"{theirs / ours:.3g}", theirs >= least * ours
    for one in floor:
        limit, detail = f"{limit}, or ≤ 1.2× the program alone", f"{detail}; the program alone {one}"
        measured, holds = f"{measured}, {ours / one:.3g}×", holds or ours <= 1.2 * one
    return bar(case, limit, measured, holds, detail)


def passes(kernel: str, n: int = 16, repeats: int = 5) -> dict:
    """Time of a ResNet-18's Gram matrix over that of one forward and a backward pass a direction."""
    model, X = draw("ResNet18", n)
    forward = jax.jit(lambda model, x: model(x))

    def total(params, x):
        return Model(model.network, Variables(params, model.variables.state))(x).sum()

    there_and_back = jax.jit(jax.grad(total))
    calls = [
        partial(gram, kernel, model, X),
        partial(forward, model, X),
        partial(there_and_back, model.variables.params, X),
    ]
    ours, one, both = alternating_seconds(*calls, repeats=repeats)
    n_backward = 1 if kernel == "pseudo" else 10
    needed = one + n_backward * (both - one)
    case = f"ResNet18, N={n}, {kernel}: time over a forward and {n_backward} backward passes of the batch"
    detail = f"ours {ours}; forward {one}, forward and backward {both}"
    return bar(case, "≤ 1.5", f"{ours / needed:.3g}", ours <= 1.5 * needed, detail)


def first_call(name: str, kernel: str, most: float, n: int = 16, repeats: int = 5) -> dict:
    """Seconds of the first Gram matrix of a process, compilation and the check of the network included."""
    seconds = Seconds([in_own_process("first", n, kernel, name)["seconds"] for _ in range(repeats)])
    case = f"{name}, N={n}, {kernel}: the first call in a process"
    return bar(case, f"≤ {most} s", str(seconds), seconds <= most, "imports and initialisation not counted")


def contraction() -> dict:
    """Rate of contracting tiles' features, as many pairs as threads, against the machine's own matrix product."""
    model, X = draw("CNN 32-32-64-64", 1024)
    kernel = KERNELS["trace"]
    plan = make_plan(kernel, model, X.shape[1:], 2**31)
    job = TileJob(kernel, model, X, None, plan)
    left, right = job.row_features(0), job.row_features(1)
    lefts = [left] * host_threads()
    flops = sum(2 * plan.rows**2 * leaf.values.size / plan.rows for leaf in left if hasattr(leaf, "values"))
    seconds = median_seconds(contract_on_host, job, lefts, right, repeats=15)
    rate = flops * len(lefts) / seconds
    A = np.asarray(jax.random.normal(jax.random.key(0), (2048, 2048)))
    sgemm = 2 * 2048**3 / median_seconds(np.matmul, A, A.T.copy(), repeats=15)
    case = "contraction phase, CNN trace: share of the machine's sgemm rate"
    detail = f"{rate / 1e9:.0f} of {sgemm / 1e9:.0f} GFLOP/s"
    return bar(case, "≥ 50 %", f"{rate / sgemm:.0%}", rate >= 0.5 * sgemm, detail)


def growth() -> dict:
    """Time of twice the rows over time of the rows."""
    seconds = {}
    for n in (1024, 2048):
        model, X = draw("CNN 32-32-64-64", n)
        seconds[n] = median_seconds(gram, "trace", model, X, repeats=3)
    ratio = seconds[2048] / seconds[1024]
    case = "CNN trace: time(N=2,048) / time(N=1,024)"
    detail = f"{seconds[2048]:.3g} s and {seconds[1024]:.3g} s"
    return bar(case, "≤ 4.4", f"{ratio:.3g}", ratio <= 4.4, detail)


def prediction() -> dict:
    """Time of predicting 1,000 points, trained on few and on many."""
    seconds = {}
    for n in (500, 4000):
        model, X = draw("MLP 784-512-512-10", n)
        dual = np.random.default_rng(SEED).normal(size=(n, 10))
        predictor = make_predictor(KERNELS["trace"], model, X, dual, np.zeros(10))
        query = jnp.asarray(draw("MLP 784-512-512-10", 1000)[1])
        answer = jax.jit(lambda predictor, query: predictor(query))
        seconds[n] = median_seconds(answer, predictor, query, repeats=15)
    ratio = seconds[4000] / seconds[500]
    case = "predicting 1,000 points (MLP, trace): trained on 4,000 / on 500"
    detail = f"{seconds[4000] * 1e3:.3g} ms and {seconds[500] * 1e3:.3g} ms"
    return bar(case, "0.85 to 1.15", f"{ratio:.3g}", 0.85 <= ratio <= 1.15, detail)


def fit(n: int, repeats: int, memory: str = "2GiB") -> dict:
    """Time of the closed-form fit of a trace kernel that computes features twice, over the one that keeps them."""
    model, X = draw("CNN 32-32-64-64", n)
    targets, found = np.eye(10)[np.arange(n) % 10] - 0.1, {}

    def fitted(keeps: bool):
        job = training_job("trace", model, X, 10, memory=memory)
        if job.kept is None:
            raise SystemExit(f"the features of {n} rows do not fit")
        job = job if keeps else replace(job, kept=None)
        dual = solve(gram_of(job), targets, alpha=1e-2)
        found[keeps] = make_predictor("trace", model, X, dual, np.full(10, 0.1), plan=job.plan, features=job.kept)
        return found[keeps]

    # each in the memory that one of its own kind has left: the next call pays for what the system was given back
    seconds = {True: [], False: []}
    for _ in range(repeats):
        for keeps, times in seconds.items():
            fitted(keeps)
            start = time.perf_counter()
            jax.block_until_ready(fitted(keeps))
            times.append(time.perf_counter() - start)
    kept, twice = (float(np.median(times)) for times in seconds.values())
    same = all(map(np.array_equal, *map(jax.tree.leaves, found.values())))
    case = f"fit of a CNN's trace kernel, N={n:,}: features computed twice / once"
    detail = f"{twice:.3g} s and {kept:.3g} s; predictors {'equal' if same else 'NOT equal'} to the bit"
    return bar(case, "≥ 1", f"{twice / kept:.3g}", same and twice >= kept, detail)


def attack_step(name: str) -> dict:
    """Time of one PGD step on the full-kernel machine over a forward pass of the network."""
    n_steps, n = 10, 128
    model, X = draw(name, n)
    dual = np.random.default_rng(SEED).normal(size=(n, 10))
    predictor = make_predictor(KERNELS["full"], model, X, dual, np.zeros(10))
    x, y = jnp.asarray(X), jnp.arange(n) % 10
    forward = jax.jit(lambda model, x: model(x))
    one = median_seconds(forward, model, x, repeats=15)
    attack = PGD(0.1, n_steps=n_steps, bounds=None)
    step = median_seconds(partial(attack, key=jax.random.key(0)), predictor, x, y) / n_steps
    case = f"one attack step on the full-kernel machine ({name}): in forward passes"
    detail = f"{step * 1e3:.3g} ms and {one * 1e3:.3g} ms, {n} inputs"
    return bar(case, "≤ 6", f"{step / one:.3g}", step <= 6 * one, detail)


def in_own_process(*arguments) -> dict:
    """Measure what ``--peak`` prints: peak memory can only be measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak(which: str, n: int, memory: str, tile) -> dict:
    """Peak resident memory of this process after a CNN trace kernel, and the seconds of computing it again
    if they are asked for."""
    found = {"result": 0, "seconds": 0.0}
    if which == "first":
        # a kernel and a network, where memory and tile stand for the others
        model, X = draw(tile, n)
        start = time.perf_counter()
        gram(memory, model, X)
        return found | {"seconds": time.perf_counter() - start}
    model, X = draw("CNN 32-32-64-64", n)
    if which in ("ours", "timed"):
        found["result"] = gram("trace", model, X, memory=memory).nbytes
    elif which == "theirs":
        jax.block_until_ready(peer_kernel(model, "trace")(X[:tile], X[:tile]))
    # not getrusage, whose figure starts with what the parent process held
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    if which == "timed":
        start = time.perf_counter()
        gram("trace", model, X, memory=memory)
        found["seconds"] = time.perf_counter() - start
    return found | {"peak": int(kibibytes) * 1024}


def memory_at_1024() -> dict:
    """Our peak at N = 1,024 over the peer's with its best tile, both less what the imports take, and our time."""
    seconds, tile, _ = peer_seconds("CNN 32-32-64-64", "trace", 1024, (8, 16, 32, 64))
    idle, theirs = (in_own_process(which, 1024, SMALL, tile) for which in ("idle", "theirs"))
    ours = in_own_process("timed", 1024, SMALL, tile)
    used, above = ours["peak"] - idle["peak"], theirs["peak"] - idle["peak"]
    faster = seconds / ours["seconds"]
    case = f"the same with memory='{SMALL}': our peak memory / neural-tangents' (tiles of {tile})"
    detail = (
        f"{used / 2**20:,.0f} and {above / 2**20:,.0f} MiB above imports; {ours['seconds']:.3g} s and "
        f"{seconds:.3g} s"
    )
    return bar(
        case,
        "≤ 0.25, ≥ 4× faster",
        f"{used / above:.3g}, {faster:.3g}×",
        used <= above / 4 and faster >= 4,
        detail,
    )


def memory_at_4096() -> dict:
    """Peak resident memory at N = 4,096 with a budget of 1 GiB."""
    found = in_own_process("ours", 4096, "1GiB", 1)
    over = (found["peak"] - found["result"]) / 2**30 - 1
    case = "CNN trace, N=4,096, memory='1GiB': peak less budget and result"
    detail = f"peak {found['peak'] / 2**30:.2f} GiB"
    return bar(case, "≤ 0.7 GiB", f"{over:.2f} GiB", over <= 0.7, detail)


def rounding() -> dict:
    """Error of products of rounded features, relative to the largest entry."""
    model, X = draw("CNN 32-32-64-64", 256)
    exact = gram("trace", model, X, dtype="float64")
    names = ("float32", "tf32", "bf16")
    errors = [np.abs(gram("trace", model, X, dtype=name) - exact).max() / exact.max() for name in names]
    case = "CNN trace, N=256: error of products in float32, tf32 and bf16, of the largest entry"
    detail = "against products in float64 of the same features"
    return bar(case, "none stated", ", ".join(f"{error:.1e}" for error in errors), True, detail)


AUTHORS = "the same CNN, N=32: the authors' way (implementation 2, 4×4 tiles) / ours"
CASES = {
    "mlp-full": lambda: compare("MLP 784-512-512-10", "full", 64, 1, tiles=(64,), repeats=41),
    "mlp-trace": lambda: compare("MLP 784-512-512-10", "trace", 64, 1, tiles=(64,), repeats=41),
    "mlp-1024": lambda: compare("MLP 784-512-512-10", "trace", 1024, 2, tiles=(64, 256, 1024)),
    "cnn-32": lambda: compare("CNN 32-32-64-64", "trace", 32, 2, tiles=(8, 16, 32)),
    "cnn-1024": lambda: compare("CNN 32-32-64-64", "trace", 1024, 4, tiles=(8, 16, 32, 64), repeats=3),
    "authors": lambda: compare("CNN 32-32-64-64", "trace", 32, 30, tiles=(4,), implementation=2, what=AUTHORS),
    "resnet-class": lambda: compare("ResNet18", "class", 64, 3, tiles=(1, 2, 4), repeats=3),
    "resnet-pseudo": lambda: compare("ResNet18", "pseudo", 64, 3, tiles=(1, 2, 4, 8), repeats=3),
    "mlp-16-other": lambda: rectangular("MLP 784-512-512-10", 16, 1.2, repeats=41),
    "mlp-64-other": lambda: rectangular("MLP 784-512-512-10", 64, 1.2, repeats=41),
    "mlp-256-other": lambda: rectangular("MLP 784-512-512-10", 256, 1.2, repeats=11),
    "cnn-32-other": lambda: rectangular("CNN 32-32-64-64", 32, 2.5),
    "resnet-class-passes": lambda: passes("class"),
    "resnet-pseudo-passes": lambda: passes("pseudo"),
    "resnet-class-first": lambda: first_call("ResNet18", "class", 12.5),
    "resnet-pseudo-first": lambda: first_call("ResNet18", "pseudo", 7),
    "contraction": contraction,
    "growth": growth,
    "memory-1024": memory_at_1024,
    "memory-4096": memory_at_4096,
    "rounding": rounding,
    "prediction": prediction,
    "fit-200": lambda: fit(200, repeats=3),
    "fit-500": lambda: fit(500, repeats=3),
    "fit-2000": lambda: fit(2000, repeats=3, memory="8GiB"),
    "attack-mlp": lambda: attack_step("MLP 784-512-512-10"),
    "attack-cnn": lambda: attack_step("CNN 32-32-64-64"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md, too")
    parser.add_argument("--peak", nargs=4, metavar=("WHICH", "N", "MEMORY", "TILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        which, n, memory, tile = options.peak
        print(json.dumps(peak(which, int(n), memory, tile if which == "first" else int(tile))))
        return
    lines, at = [], now()
    for name in options.cases:
        lines.append(CASES[name]())
        print(table_of_bars("case", lines).splitlines()[-1], flush=True)
        if options.write:
            # after every case, so that what was measured is kept whatever happens
            write_benchmark("bench_gram.py", "case", lines, ("jax", "numpy", "neural-tangents"), at)


if __name__ == "__main__":
    main()
