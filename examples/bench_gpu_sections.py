"""The sections of ``bench_gpu.py``: functions of a report and of whether sizes are toys; their plan on paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from array_api_compat import array_namespace
from gpu_sections import (
    EPSILON,
    check_device,
    drawn,
    forward_operations,
    images,
    on_gpu,
    pair_operations,
    rates,
    relative,
    require_gpu,
    seconds_of,
    share_of_floor,
)
from plan_gram import FEATURES, PRODUCTS, shapes_of, size_of

from ntkrobust_sk import (
    CNN,
    PGD,
    Cholesky,
    MixedPrecision,
    Model,
    Network,
    ResNet18,
    gram,
    solve,
    train,
)
from ntkrobust_sk._arrays import cupy_or_none, eigh, to_numpy
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.memory import parse_memory, readable
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.plan import make_plan
from ntkrobust_sk.kernels.predictors import make_predictor
from ntkrobust_sk.networks.inputs import n_params
from ntkrobust_sk.networks.model import Variables

__all__ = ["check_device"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of all sections.

    Attributes
    ----------
    network : Network
    size : int
        Height and width of an image.
    small : int
        Rows of the kernels that are compared with double precision.
    rows : tuple of int
        Rows of the large kernels.
    predicted : int
        Rows whose seconds are predicted.
    memory : str
        Of features.
    peers : int
        Rows of the kernels that others compute too, where they fit.
    left_out : int
        Rows of the kernel of which each is left out.
    n_alphas : int
    n_batches, batch, steps : int
        Of training, and of its attack.
    attacked : int
        Images that are attacked at once.
    """

    network: Network
    size: int
    small: int
    rows: tuple[int, ...]
    predicted: int
    memory: str
    peers: int
    left_out: int
    n_alphas: int
    n_batches: int
    batch: int
    steps: int
    attacked: int


FULL = Sizes(
    ResNet18(n_outputs=10), 32, 512, (1000, 5000, 10_000), 50_000, "45GiB", 256, 10_000, 20, 16, 128, 20, 512
)
TOY = Sizes(CNN(n_outputs=4, widths=(4, 4), strides=(1, 2)), 8, 40, (16, 24), 40, "1GiB", 8, 40, 3, 4, 8, 2, 16)
# Of the small kernels and their solutions, as docs/gpu.md promises them for single precision.
GRAM_ERROR, DUAL_ERROR = 1e-4, 1e-6
# Seconds that cold compilers are given by a plan, for each section; and that a process takes to start.
COMPILING = {
    "small": 40,
    "pseudo": 100,
    "class": 90,
    "training": 150,
    "leave_one_out": 5,
    "tiles": 5,
    "peers": 150,
}
STARTING = 12
# Operations a second that a plan counts with: training and attacks have TF32 in convolutions, eigenvectors are in
# double precision.
CONVOLUTIONS, EIGENVECTORS = 100e12, 2e12


def sizes(toy: bool) -> Sizes:
    """Return the sizes of a run."""
    require_gpu(toy)
    return TOY if toy else FULL


def check_small(report, toy):
    """Small kernels against double precision, solutions against NumPy, and an attack through their machine."""
    s = sizes(toy)
    network = CNN(n_outputs=10, widths=(8,), strides=(2,)) if toy else CNN(n_outputs=10)
    model, X = drawn(network, (s.size, s.size, 3)), images(s.small, s.size)
    y = np.random.default_rng(1).integers(0, 10, s.small)
    targets, few = np.eye(10)[y] - 0.1, min(s.small, 32)
    for kernel in ("trace", "pseudo"):
        _, seconds, K = seconds_of(lambda kernel=kernel: gram(kernel, model, X, memory=s.memory), 3)
        report.note(f"{kernel}, {s.small} rows of a CNN: seconds", seconds)
        _, seconds, dual = seconds_of(lambda K=K: solve(K, targets, alpha=1e-2), 3)
        report.note(f"{kernel}: seconds to solve", seconds)
        report.note(f"{kernel}: solved by", type(dual).__module__.split(".")[0])
        # on a CPU, since GPUs lack algorithms for convolutions in double precision
        with jax.default_device(jax.devices("cpu")[0]), enable_x64(True):
            double = Model(model.network, jax.tree.map(lambda leaf: leaf.astype("float64"), model.variables))
            exact = np.asarray(gram(kernel, double, X[:few].astype("float64"), memory=s.memory))
        K = np.asarray(K, float)
        reference = np.linalg.solve(K + 1e-2 * np.diag(K).mean() * np.eye(s.small), targets)
        report.check(f"{kernel}: error", relative(K[:few, :few], exact), GRAM_ERROR)
        error = np.linalg.norm(to_numpy(dual) - reference) / np.linalg.norm(reference)
        report.check(f"{kernel}: error of the solution", error, DUAL_ERROR)
        machine = make_predictor(KERNELS[kernel], model, X, dual, np.full(10, 0.1), memory=s.memory)

        def attacked(machine=machine):
            attack, labels = PGD(4 / 255, n_steps=10), y[: len(X[:256])].astype(np.int32)
            return attack_in_tiles(attack, machine, X[:256], labels, key=jax.random.key(1), rows=64)

        _, seconds, found = seconds_of(attacked, 3)
        report.note(f"{kernel}: seconds of PGD-10 on {len(found)} images", seconds)
        report.check(f"{kernel}: distance in radii", abs(found - X[:256]).max() / (4 / 255), 1 + 1e-4)


def check_pseudo(report, toy):
    """Pseudo kernels of a ResNet-18."""
    kernel_at_all_sizes(report, toy, "pseudo")


def check_class(report, toy):
    """Class kernels of a ResNet-18: one for each output."""
    kernel_at_all_sizes(report, toy, "class")


def kernel_at_all_sizes(report, toy, kernel):
    """Time a kernel at growing sizes, as shares of the product rate, and tell what more rows would take."""
    s = sizes(toy)
    model, X = drawn(s.network, (s.size, s.size, 3)), images(max(s.rows), s.size)
    shape, rate = X.shape[1:], rates(toy)["tf32"]
    report.note("product rate: TFLOP/s", rate / 1e12)
    plan = make_plan(KERNELS[kernel], model, shape, s.memory, n_rows=max(s.rows), dtype="tf32")
    report.note("plan", str(plan))
    pair, before = pair_operations(kernel, model, shape), None
    for n in s.rows:

        def matrix(n=n):
            return gram(kernel, model, X[:n], dtype="tf32", plan=plan)

        # programs are compiled at the first size; later ones compile four small ones
        first, warm, K = seconds_of(matrix, 1 if n == s.rows[0] else 0)
        report.note(f"{n} rows: seconds of the first call", first)
        height = -(-n // plan.rows)
        operations = pair * plan.rows**2 * height * (height + 1) / 2
        share_of_floor(report, f"{n} rows", warm, operations, rate)
        report.note(f"{s.predicted} rows: seconds, by {n} rows", warm * (s.predicted / n) ** 2)
        first_rows = np.asarray(K[: s.rows[0], : s.rows[0]], float)
        report.check(f"{n} rows: symmetric", np.array_equal(first_rows, first_rows.swapaxes(0, 1)))
        if before is not None:
            report.check(
                f"{n} rows: first ones are those of the smaller matrix", relative(first_rows, before), 1e-5
            )
        before, K = first_rows, None


def check_training(report, toy):
    """Updates and attack steps a second, in single precision (JAX's default) and in bf16."""
    s = sizes(toy)
    X = images(s.n_batches * s.batch, s.size)
    y = (np.arange(len(X)) % s.network.n_outputs).astype(np.int32)
    for precision in ("default", "bf16"):
        network = s.network if precision == "default" else MixedPrecision(s.network, precision)
        model, rate = drawn(network, X.shape[1:]), rates(toy)["tf32" if precision == "default" else precision]
        forward = forward_operations(model, X.shape[1:])
        states = train(model, X, y, epochs=2, batch_size=s.batch, key=jax.random.key(0), optimizer=optax.sgd(0.01))

        def epoch(states=states):
            return jax.block_until_ready(next(states))

        first, _, _ = seconds_of(epoch, 0)
        warm, _, state = seconds_of(epoch, 0)
        report.check(f"{precision}: finite loss", np.isfinite(float(state.loss)))
        report.note(f"{precision}: seconds of the first epoch", first)
        share_of_floor(report, f"{precision}: an update", warm / s.n_batches, 3 * forward * s.batch, rate)
        report.note(f"{precision}: updates/s", s.n_batches / warm)
        trained, x, labels = state.model, X[: s.attacked], y[: s.attacked]

        def attacked(trained=trained, x=x, labels=labels):
            attack = PGD(EPSILON, s.steps)
            return attack_in_tiles(attack, trained, x, labels, key=jax.random.key(0), rows=s.attacked)

        first, warm, found = seconds_of(attacked, 1)
        report.note(f"{precision}: seconds of the first attack", first)
        report.check(f"{precision}: distance in radii", abs(found - x).max() / EPSILON, 1 + 1e-4)
        what = f"{precision}: PGD-{s.steps} on {len(x)} images"
        share_of_floor(report, what, warm, 2 * forward * len(x) * s.steps, rate)
        report.note(f"{precision}: steps of an image/s", len(x) * s.steps / warm)


def check_leave_one_out(report, toy):
    """A path of ridges with the error of leaving each example out, from one set of eigenvectors."""
    s = sizes(toy)
    n, rng = s.left_out, np.random.default_rng(0)
    factors = rng.normal(size=(n, 2 * n if toy else 512)).astype(np.float32)
    K = factors @ factors.T / factors.shape[1]
    K[np.arange(n), np.arange(n)] += 0.1
    Y = rng.normal(size=(n, 10))
    cupy = cupy_or_none()
    A, B = (values.astype(float) if cupy is None else cupy.asarray(values, dtype=float) for values in (K, Y))
    alphas = np.geomspace(1e-3, 10, s.n_alphas)

    def path():
        values, vectors = eigh(A)
        squares, coefficients = vectors * vectors, vectors.T @ B
        found = []
        for alpha in alphas:
            # the residual without example i is u_i / G_ii, G = (K + alpha I)^-1 and u = G Y
            inverse = 1 / (values + alpha)
            found.append((vectors @ (inverse[:, None] * coefficients)) / (squares @ inverse)[:, None])
        return found

    first, _, residuals = seconds_of(path, 0)
    report.note(f"{n} rows, {len(alphas)} ridges: seconds", first)
    report.note("solved by", array_namespace(A).__name__)
    # three examples that are truly left out
    errors = []
    for i in (0, n // 2, n - 1):
        others = np.arange(n) != i
        rest = A[others][:, others]
        rest[np.arange(n - 1), np.arange(n - 1)] += alphas[0]
        answer = A[i, others] @ Cholesky()(rest, B[others])
        errors.append(relative(B[i] - answer, to_numpy(residuals[0][i])))
    report.check("residuals are those of examples that are left out: error", max(errors), 1e-6)
    seconds, _, found = seconds_of(lambda: Cholesky()(A, B), 0)
    report.note(f"Cholesky, {n} rows: seconds", seconds)
    report.check("Cholesky: answers where it was asked", type(found) is type(A))


def check_tiles(report, toy):
    """Products of one layer's features in tiles of 512 and of 1,024 rows: whether larger ones pay."""
    s = sizes(toy)
    width, rate = (4096, rates(toy)["tf32"]) if toy else (589_824, rates(toy)["tf32"])
    precision = "TF32_TF32_F32" if on_gpu() else "highest"
    for rows in (16, 32) if s is TOY else (512, 1024):
        A = jnp.ones((rows, width), jnp.float32)

        def product(A, B):
            with jax.default_matmul_precision(precision):
                return A @ B.T

        compiled = jax.jit(product)
        _, warm, found = seconds_of(lambda A=A, compiled=compiled: compiled(A, A), 5)
        report.check(f"tiles of {rows}: right", float(abs(found - width).max() / width), 1e-3)
        share_of_floor(report, f"one layer, tiles of {rows}", warm, 2 * rows**2 * width, rate)


def check_peers(report, toy):
    """The same kernels by `jax.jacrev` and by neural-tangents, where these fit."""
    s = sizes(toy)
    free = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**30)
    for kernel in ("pseudo", "class"):
        model = drawn(s.network, (s.size, s.size, 3))
        n_outputs, network = s.network.n_outputs, model.network

        def logits(params, x, model=model, network=network, kernel=kernel, n_outputs=n_outputs):
            scores = Model(network, Variables(params, model.variables.state))(x)
            return scores.sum(1, keepdims=True) / np.sqrt(n_outputs) if kernel == "pseudo" else scores

        # Jacobians whole, twice, in half of the memory; a power of two
        a_row = 4 * n_params(model.variables.params) * (1 if kernel == "pseudo" else n_outputs)
        n = min(s.peers, 2 ** int(np.log2(max(1, free / 4 / a_row))))
        report.note(f"{kernel}: rows that fit", f"{n}: Jacobians take {readable(a_row)} a row")
        X = images(n, s.size)
        _, ours, K = seconds_of(lambda kernel=kernel, X=X, model=model: gram(kernel, model, X, memory=s.memory), 2)
        report.note(f"{kernel}, {n} rows: seconds", ours)

        def by_jacobians(params, X, logits=logits):
            one = jax.vmap(jax.jacrev(lambda params, x: logits(params, x[None])[0]), (None, 0))
            with jax.default_matmul_precision("highest"):
                leaves = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(one(params, X))]
                return sum(jnp.einsum("ncp,mcp->nmc", leaf, leaf) for leaf in leaves)

        program = jax.jit(by_jacobians)
        first, warm, expected = seconds_of(
            lambda program=program, model=model, X=X: program(model.variables.params, X), 2
        )
        expected = np.asarray(expected).reshape(K.shape)
        report.check(f"{kernel}: error against jax.jacrev", relative(K, expected), GRAM_ERROR)
        report.note(f"{kernel}, jax.jacrev: seconds of the first call", first)
        report.note(f"{kernel}, jax.jacrev: seconds", warm)
        report.note(f"{kernel}: share of the time of jax.jacrev", ours / warm)
        try:
            nt = import_neural_tangents()
        except ImportError as error:
            report.note(f"{kernel}, neural-tangents: left out", str(error))
            continue
        axes = {"trace_axes": (), **({} if kernel == "pseudo" else {"diagonal_axes": (-1,)})}
        structured = nt.NtkImplementation.STRUCTURED_DERIVATIVES
        block = jax.jit(nt.empirical_ntk_fn(logits, **axes, vmap_axes=0, implementation=structured))

        def by_neural_tangents(block=block, model=model, X=X):
            with jax.default_matmul_precision("highest"):
                return block(X, X, model.variables.params)

        first, warm, found = seconds_of(by_neural_tangents, 2)
        report.check(f"{kernel}: error against neural-tangents", relative(found.reshape(K.shape), K), GRAM_ERROR)
        report.note(f"{kernel}, neural-tangents: seconds of the first call", first)
        report.note(f"{kernel}, neural-tangents: seconds", warm)
        report.note(f"{kernel}: share of the time of neural-tangents", ours / warm)


# On paper


def plan(sections, options) -> tuple[str, dict[str, float]]:
    """Return a table of what would run, with floors and time-outs; and predicted seconds with cold caches."""
    s = TOY if options.toy else FULL
    operations = operations_of(s)
    rows, seconds, process = [["section", "work", "TFLOP", "floor", "predicted", "ended after"]], {}, None
    for section in sections:
        if section.name not in options.only:
            continue
        work, flop, floor = operations.get(section.name, ("versions, memory, one product", 0.0, 0.0))
        # twice the floor, since nothing runs at its ceiling
        predicted = 2 * floor + COMPILING.get(section.name, 0) + (STARTING if section.process != process else 0)
        process, seconds[section.name] = section.process, predicted
        figures = f"{flop / 1e12:.3g}", f"{floor:.3g} s", f"{predicted:.0f} s", f"{section.seconds:g} s"
        rows.append([section.name, work, *figures])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += ["", f"predicted in all: {sum(seconds.values()):.0f} s of {options.seconds:.0f}"]
    left_out = [section.name for section in sections if section.name not in options.only]
    lines += [f"left out: {', '.join(left_out)}"] if left_out else []
    rates = f"products {PRODUCTS['tf32'] / 1e12:g}, features {FEATURES / 1e12:g}, training {CONVOLUTIONS / 1e12:g}"
    lines += [f"TFLOP/s assumed: {rates}; cold caches; nothing of it has been measured on a GPU"]
    return "\n".join(lines), seconds


@cache
def operations_of(s: Sizes) -> dict:
    """Return what sections do, with operations and seconds at the assumed rates."""
    shape = (s.size, s.size, 3)
    model = shapes_of(s.network, shape)
    forward, found = forward_operations(model, shape), {}
    for kernel in ("pseudo", "class"):
        memory = parse_memory(s.memory)
        counted = [size_of(kernel, model, shape, forward, n, memory, "tf32", 1) for n in s.rows]
        # the smallest once more, when everything is compiled
        times = [2 if n == s.rows[0] else 1 for n in s.rows]
        flop = sum(time * (size.features + size.products) for time, size in zip(times, counted, strict=True))
        floor = sum(time * size.seconds("tf32", 1) for time, size in zip(times, counted, strict=True))
        found[kernel] = f"{kernel} kernel of {', '.join(f'{n:,}' for n in s.rows)} rows, TF32", flop, floor
    updates = 2 * 2 * s.n_batches * s.batch * 3 * forward
    steps = 2 * 2 * s.attacked * s.steps * 2 * forward
    work = f"{s.n_batches} updates and PGD-{s.steps} on {s.attacked} images, twice, float32 and bf16"
    found["training"] = work, updates + steps, (updates + steps) / CONVOLUTIONS
    flop = 9.0 * s.left_out**3
    found["leave_one_out"] = f"{s.n_alphas} ridges, {s.left_out:,} rows", flop, flop / EIGENVECTORS
    found["small"] = f"CNN, {s.small} rows, trace and pseudo, against float64", 0.0, 2.0
    found["tiles"] = "products of one layer, tiles of 512 and 1,024", 0.0, 1.0
    flop = 3 * s.peers * (1 + 2 * s.network.n_outputs) * forward
    # gradients of single examples are convolutions in groups, at a small part of the rate
    found["peers"] = f"both kernels of {s.peers} rows or fewer, by three programs", flop, 20 * flop / FEATURES
    return found
