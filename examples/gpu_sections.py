"""The sections of ``gpu_check.py``: functions of a report and of whether sizes are toys."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import ntkrobust_sk
from ntkrobust_sk import (
    APGD,
    CNN,
    FGSM,
    FMN,
    PGD,
    AdversarialKernelTrainer,
    AutoAttack,
    Cholesky,
    Clean,
    Eigh,
    EmpiricalNTKClassifier,
    Model,
    ResNet18,
    SingularGramError,
    gram,
    linearize,
    load_digits_images,
    solve,
    train,
)
from ntkrobust_sk._arrays import cupy_or_none, to_numpy, to_solver_array
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.precision import DIGITS, enable_x64
from ntkrobust_sk.kernels.ntk import KERNELS, resolve_kernel
from ntkrobust_sk.kernels.plan import make_plan
from ntkrobust_sk.kernels.predictors import make_predictor
from ntkrobust_sk.tangent.gradients import DenseGradients

# Of the largest entry. Those of docs/benchmarks.md, measured for a CNN at 32 x 32, doubled.
GRAM_ERRORS = {None: 1e-5, "float64": 5e-6, np.float64: 5e-6, "tf32": 3e-4, "bf16": 1.6e-3}
EPSILON, ROUNDING = 8 / 255, 1e-6


class NotRun(Exception):
    """Why a section, or what is left of it, cannot be run here."""


class Report:
    """The findings of a section, on disk after each figure, so that nothing is lost if the section is ended."""

    def __init__(self, path: Path):
        self.path, self.started = path, time.monotonic()
        self.content = {"status": "running", "figures": {}, "checks": []}
        self.write()

    def note(self, name: str, value) -> None:
        """A figure that nobody can be wrong about."""
        self.content["figures"][name] = value
        self.write()

    def check(self, what: str, value, at_most=None, at_least=None) -> None:
        """A figure with its limits, or something that must be true."""
        if at_most is None and at_least is None:
            value, ok = bool(value), bool(value)
        else:
            value = float(value)
            ok = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        limits = {"at_most": at_most, "at_least": at_least}
        self.content["checks"].append({"what": what, "value": value, **limits, "ok": ok})
        self.write()

    def end(self, status: str, **found) -> None:
        """The section's last word; what was found wrong goes before."""
        wrong = not all(check["ok"] for check in self.content["checks"])
        self.content |= {
            "status": "failed" if wrong else status,
            "seconds": time.monotonic() - self.started,
            **found,
        }
        self.content["memory"] = peak_memory()
        self.write()

    def write(self) -> None:
        """JSON, whole or not at all."""
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.content, default=str))
        beside.replace(self.path)


def run(names, folder: Path, toy: bool, sections=None) -> None:
    """Sections by name, here or of another file, each to its file in the folder."""
    for name in names:
        report = Report(folder / f"{name}.json")
        try:
            (globals() if sections is None else sections)[f"check_{name}"](report, toy)
        except NotRun as reason:
            report.end("not run", reason=str(reason))
        except Exception as error:
            traceback.print_exc()
            where = traceback.format_exc()[-2000:]
            report.end("failed", reason=f"{type(error).__name__}: {str(error)[:300]}", traceback=where)
        else:
            report.end("passed")


def on_gpu() -> bool:
    """Tell whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def require_gpu(toy: bool = False) -> None:
    """NotRun unless there is a GPU, or sizes are toys."""
    if not (toy or on_gpu()):
        raise NotRun("no GPU: JAX sees none; --toy runs what a CPU can")


def require_cupy():
    """CuPy with a GPU, or NotRun."""
    if cupy_or_none() is None:
        raise NotRun("no GPU: CuPy is not installed, or sees none")
    return cupy_or_none()


def peak_memory() -> dict:
    """Bytes that JAX has had in use at most in this process, and that CuPy holds."""
    found = {"jax": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}
    if (cupy := cupy_or_none()) is not None:
        found["cupy_pool"] = cupy.get_default_memory_pool().total_bytes()
    return found


def seconds_of(call, repeats: int = 3) -> tuple[float, float, object]:
    """Seconds of the first call and the median of others, and the last result, when the device has finished."""
    taken = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        result = call()
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)])
        if (cupy := cupy_or_none()) is not None:
            cupy.cuda.Device().synchronize()
        taken.append(time.perf_counter() - start)
    return taken[0], float(np.median(taken[1:] or taken)), result


def relative(found, expected) -> float:
    """Largest difference, of the largest entry."""
    found, expected = np.asarray(to_numpy(found), float), np.asarray(expected, float)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def drawn(network, shape, seed=0) -> Model:
    """A network with its own initial weights."""
    return Model(network, network.init(jax.random.key(seed), shape))


def images(n, size, seed=0) -> np.ndarray:
    """Uniform images (n, size, size, 3)."""
    return np.random.default_rng(seed).random((n, size, size, 3), dtype=np.float32)


# The sections


def check_device(report, toy):
    """Who we are."""
    report.note("python", sys.version.split()[0])
    for module in (jax, np, scipy, ntkrobust_sk):
        report.note(module.__name__, module.__version__)
    report.note("machine", f"{platform.machine()}, {os.cpu_count()} cores")
    report.note("devices", [f"{device.platform}: {device.device_kind}" for device in jax.devices()])
    report.note("jax_memory_limit", (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"))
    names = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    report.note("environment", {name: os.environ.get(name) for name in names})
    if (cupy := cupy_or_none()) is not None:
        report.note("cupy", cupy.__version__)
        free, total = cupy.cuda.runtime.memGetInfo()
        report.note("free_memory", free)
        report.note("total_memory", total)
    require_gpu(toy)
    report.check("a product is right", float(jnp.ones((64, 64)).sum()), 4096, 4096)


def check_handover(report, toy):
    """JAX's arrays are CuPy's without a copy, also when JAX has let go of them."""
    require_gpu()
    cupy = require_cupy()
    for dtype in ("float32", "float64"):
        with enable_x64(True):
            K = jnp.eye(1000, dtype=dtype) + 1
            K.block_until_ready()
            found = to_solver_array(K)
            report.check(f"{dtype}: the same memory", found.data.ptr == K.unsafe_buffer_pointer())
            report.check(f"{dtype}: CuPy's", isinstance(found, cupy.ndarray) and found.dtype == dtype)
            del K
            report.check(f"{dtype}: sum", float(found.sum()), 1_001_000, 1_001_000)


def check_solvers(report, toy):
    """Solutions are SciPy's, by CuPy where there is a GPU."""
    require_gpu(toy)
    n, rng = 200 if toy else 2000, np.random.default_rng(0)
    factor = rng.normal(size=(n, n))
    A, B = factor @ factor.T / n + np.eye(n), rng.normal(size=(n, 10))
    expected = scipy.linalg.solve(A, B, assume_a="pos")
    xp = np if cupy_or_none() is None else cupy_or_none()
    report.note("solved_by", xp.__name__)
    for solver in (Cholesky(), Eigh(), Eigh(rcond=1e-12)):
        _, warm, found = seconds_of(lambda solver=solver: solver(xp.asarray(A), xp.asarray(B)), 1)
        name = f"{type(solver).__name__}{'' if getattr(solver, 'rcond', None) is None else ' with rcond'}"
        report.check(f"{name}: error", relative(found, expected), 1e-10)
        report.note(f"{name}: seconds", warm)
        report.check(f"{name} answers in the library that was asked", isinstance(found, xp.ndarray))
        try:
            solver(xp.asarray(A - 3 * np.eye(n)), xp.asarray(B))
            report.check(f"{name} refuses an indefinite matrix", False)
        except SingularGramError:
            report.check(f"{name} refuses an indefinite matrix", True)
    few, weight = n // 10, rng.uniform(0, 2, n // 10)
    for rank, shape in ((2, ()), (3, (3,)), (4, (3, 3))):
        roots = rng.normal(size=(few, 3, 3 * few))
        blocks = np.einsum("icp,jdp->ijcd", roots, roots)
        K = {2: blocks[:, :, 0, 0], 3: np.einsum("ijcc->ijc", blocks), 4: blocks}[rank]
        given = (rng.normal(size=(few, 3)),)
        expected = solve(K, *given, alpha=0.1, sample_weight=weight)
        found = solve(xp.asarray(K), *given, alpha=0.1, sample_weight=weight)
        report.check(f"kernels of rank {rank}, weighted: error", relative(found, expected), 1e-9)
        assert K.shape[2:] == shape


@cache
def ceilings(size: int) -> dict:
    """Operations a second of products, by precision, and bytes a second of copies, on this device."""
    found = {}
    for name, dtype, precision in (
        ("bf16", jnp.bfloat16, "default"),
        ("tf32", jnp.float32, "TF32_TF32_F32" if on_gpu() else "highest"),
        ("fp32", jnp.float32, "highest"),
    ):
        A = jnp.ones((size, size), dtype)

        def product(A, B, precision=precision):
            with jax.default_matmul_precision(precision):
                return jnp.matmul(A, B, preferred_element_type=jnp.float32)

        compiled = jax.jit(product)
        found[name] = 2 * size**3 / seconds_of(lambda A=A, compiled=compiled: compiled(A, A), 5)[1]
    values = jnp.ones(size * size * 4, jnp.float32)
    copied = jax.jit(lambda values: values + 1)
    found["copy"] = 2 * values.nbytes / seconds_of(lambda: copied(values), 5)[1]
    return found


def rates(toy) -> dict:
    """The ceilings at the size that fits."""
    return ceilings(256 if toy else 8192)


def check_rates(report, toy):
    """Measure what this device does at most."""
    require_gpu(toy)
    for name, rate in rates(toy).items():
        report.note(f"{name}: T{'B' if name == 'copy' else 'FLOP'}/s", rate / 1e12)


def exact_kernels(model, X) -> dict:
    """Kernels by their definition, by name: Jacobians in double precision, on a CPU."""
    with jax.default_device(jax.devices("cpu")[0]), enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), model.variables)

        def scores(params):
            return model.network.apply(params, double.state, jnp.asarray(X, jnp.float64))[0]

        leaves = jax.tree.leaves(jax.jacrev(scores)(double.params))
        J = np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    full = np.tensordot(J, J, axes=(2, 2)).transpose(0, 2, 1, 3)
    n_outputs = full.shape[2]
    return {
        "full": full,
        "class": np.einsum("ijcc->ijc", full),
        "trace": np.einsum("ijcc->ij", full) / n_outputs,
        "pseudo": full.sum((2, 3)) / n_outputs,
    }


def check_kernels(report, toy):
    """Every kernel in every precision, against float64 on a CPU."""
    require_gpu(toy)
    size, n, few = (8, 20, 6) if toy else (32, 600, 16)
    network = CNN(n_outputs=4, widths=(4, 4), strides=(1, 2)) if toy else CNN(n_outputs=10)
    model, X = drawn(network, (size, size, 3)), images(n, size)
    exact = exact_kernels(model, X[:few])
    for kernel, expected in exact.items():
        # entries do not depend on the other rows; blocks of all classes for all of them would be large
        rows = X[: 4 * few] if kernel == "full" else X
        for dtype, limit in GRAM_ERRORS.items():
            if dtype in DIGITS and kernel in ("class", "full"):
                continue  # the same products as the trace kernel's
            K = gram(kernel, model, rows, dtype=dtype, memory="1GiB" if toy else "8GiB")
            name = "float32" if dtype is None else getattr(dtype, "__name__", dtype)
            what = f"{kernel}, {name}{' (NumPy type)' if dtype is np.float64 else ''}"
            # in NumPy, since JAX by itself reads no double precision
            report.check(f"{what}: error", relative(np.asarray(K)[:few, :few], expected), limit)
            if dtype is None:
                stays = isinstance(K, jax.Array if on_gpu() else np.ndarray)
                report.check(f"{what}: where it belongs", stays)
    layers = gram("trace", model, X, by_layer=True)
    found = sum(np.asarray(layer, float) for layer in layers.values())[:few, :few]
    report.check("by layer: error", relative(found, exact["trace"]), GRAM_ERRORS[None])


def check_estimators(report, toy):
    """Digits from pixels to robust accuracy."""
    require_gpu(toy)
    X, y = load_digits_images()
    n, few = (900, 40) if toy else (1400, 300)
    network, attack = CNN(n_outputs=10, widths=(8, 16), strides=(2, 2)), PGD(0.1, 5)
    trainer = AdversarialKernelTrainer(network, max_epochs=8, attack=PGD(0.1, 3), random_state=0)
    report.note("training: seconds", seconds_of(lambda: trainer.fit(X[:n], y[:n]), 0)[0])
    machine = EmpiricalNTKClassifier(trainer.model_, alpha=1e-2).fit(X[:n], y[:n])
    K = gram("trace", trainer.model_, X[:few])
    report.note("solved_by", type(solve(K, np.eye(10)[y[:few]], alpha=1e-2)).__module__.split(".")[0])
    if on_gpu():
        report.check(
            "CuPy solves", cupy_or_none() is not None and report.content["figures"]["solved_by"] == "cupy"
        )
    for name, estimator, least in (("network", trainer, 0.4), ("kernel machine", machine, 0.7)):
        clean = estimator.score(X[-few:], y[-few:])
        robust = estimator.robust_score(X[-few:], y[-few:], attack=attack)
        report.check(f"{name}: accuracy", clean, at_least=least)
        report.check(f"{name}: robust accuracy", robust, at_most=clean)
        answers = estimator.predict(X[-few:])
        report.check(
            f"{name}: predictions are those that are scored", abs((answers == y[-few:]).mean() - clean), 1e-6
        )


def check_cholesky(report, toy):
    """Factorisations beyond the sizes that 32-bit integers count, in single precision."""
    if toy:
        sizes, xp = (300,), np
    else:
        require_gpu()
        sizes, xp = (46_341, 50_000), require_cupy()
    for n in sizes:
        if xp is not np:
            xp.get_default_memory_pool().free_all_blocks()
            free = xp.cuda.runtime.memGetInfo()[0]
            if free < 3.2 * 4 * n**2:
                report.note(
                    f"{n}: left out", f"{3.2 * 4 * n**2 / 1e9:.0f} GB are needed, {free / 1e9:.0f} are free"
                )
                continue
        rng = np.random.default_rng(0)
        u = xp.asarray((3 * rng.normal(size=n) / np.sqrt(n)).astype(np.float32))
        x = xp.asarray(rng.normal(size=n).astype(np.float32))
        # 2 I + u uᵀ: the right-hand side of a known solution needs no product with it
        A = u[:, None] * u[None, :]
        xp.reshape(A, (n * n,))[:: n + 1] += 2
        b = 2 * x + u * (u @ x)
        start = time.perf_counter()
        found = Cholesky(max_residual=1e-3)(A, b)
        error = float(xp.linalg.norm(found - x) / xp.linalg.norm(x))
        seconds = time.perf_counter() - start
        report.check(f"{n}: seconds", seconds, 20)
        report.check(f"{n}: error of the solution (residual at most 1e-3)", error, 1e-3)
        report.note(f"{n}: TFLOP/s", n**3 / 3 / seconds / 1e12)
        del A, found
    if not report.content["checks"]:
        raise NotRun("; ".join(map(str, report.content["figures"].values())))


def check_attacks(report, toy):
    """Attacks in compiled loops stay inside of ball and bounds, on networks and on what kernels make of them."""
    require_gpu(toy)
    size, n, steps = (6, 8, 3) if toy else (16, 128, 20)
    n_outputs, widths, strides = (4, (4,), (2,)) if toy else (10, (16, 32), (2, 2))
    model, X = drawn(CNN(n_outputs, widths, strides), (size, size, 3)), images(n, size)
    y = np.asarray(model(X).argmax(1)).astype(np.int32)
    targets = np.eye(model(X[:1]).shape[1])[y]
    machine = make_predictor(KERNELS["trace"], model, X, targets, np.zeros(targets.shape[1]))
    attacks = [PGD(EPSILON, steps), PGD(0.5, steps, norm="l2"), PGD(5.0, steps, norm="l1"), APGD(EPSILON, steps)]
    if not toy:
        several = AutoAttack(EPSILON, n_steps=10, n_queries=100, n_targets=2)
        attacks += [FGSM(EPSILON), FMN(EPSILON, steps), several]
    cases = [("network", model, attack) for attack in attacks]
    cases += [("linearised", linearize(model), attacks[0]), ("kernel machine", machine, attacks[0])]
    orders = {"linf": np.inf, "l2": 2, "l1": 1}
    for of, scores, attack in cases:
        norm, name = getattr(attack, "norm", "linf"), f"{type(attack).__name__} on the {of}"

        def examples(scores=scores, attack=attack):
            return attack_in_tiles(attack, scores, X, y, key=jax.random.key(0), rows=64)

        first, warm, found = seconds_of(examples, 0 if toy else 1)
        moved = (found.astype(float) - X).reshape(n, -1)
        away = np.linalg.norm(moved, orders[norm], axis=1).max() / attack.epsilon
        report.check(f"{name}, {norm}: distance in radii", away, 1 + 1e-4)
        report.check(
            f"{name}, {norm}: in bounds", found.min() >= 0 and found.max() <= 1 and np.isfinite(found).all()
        )
        report.note(f"{name}, {norm}: seconds", warm)
        report.note(f"{name}, {norm}: seconds of the first call", first)


def pair_operations(kernel, model, shape, n_directions=None) -> float:
    """Operations of the inner products of one pair of rows, of all directions or of some, from shapes."""
    x, count = jax.ShapeDtypeStruct((2, *shape), np.float32), 0
    directions = jax.eval_shape(resolve_kernel(kernel).output_directions, model, x)
    some = jax.ShapeDtypeStruct((n_directions or directions.shape[0], *directions.shape[1:]), directions.dtype)
    for leaf in jax.eval_shape(resolve_kernel(kernel).features, model, x, some):
        if isinstance(leaf, DenseGradients):
            count += 2 * leaf.values.shape[0] * leaf.values.shape[2]
        else:
            r, _, groups, positions, n_out = leaf.cotangents.shape
            count += 2 * groups * positions**2 * (leaf.inputs.shape[3] + r * n_out)
    return float(count)


def forward_operations(model, shape) -> float:
    """Operations of the network's answer to one row, as the compiler counts them."""
    rows = 8
    x = jax.ShapeDtypeStruct((rows, *shape), np.float32)
    return jax.jit(lambda model, x: model(x)).lower(model, x).cost_analysis()["flops"] / rows


def share_of_floor(report, what, seconds, operations, rate) -> None:
    """Tell how near a timing is to what the ceiling allows."""
    report.note(f"{what}: seconds", seconds)
    report.note(f"{what}: share of its floor", operations / rate / seconds)


def check_resnet(report, toy):
    """The pseudo kernel of a ResNet-18: compilation, a warm call beside its floor, memory beside the plan."""
    require_gpu(toy)
    size, n, memory = (8, 8, "1GiB") if toy else (32, 1024, "30GiB")
    network = CNN(n_outputs=4, widths=(4, 4), strides=(1, 2)) if toy else ResNet18(n_outputs=10)
    model, X = drawn(network, (size, size, 3)), images(n, size)
    shape, names = X.shape[1:], ("tf32",) if toy else ("tf32", "bf16", None)
    for dtype in names:
        label, start = dtype or "fp32", time.perf_counter()
        plan = make_plan(KERNELS["pseudo"], model, shape, memory, n_rows=n, dtype=dtype)
        report.note(f"{label}: seconds to plan", time.perf_counter() - start)
        report.note(f"{label}: plan", str(plan))

        def matrix(dtype=dtype, plan=plan):
            return gram("pseudo", model, X, dtype=dtype, plan=plan)

        first, warm, K = seconds_of(matrix, 1)
        report.note(f"{label}: seconds of the first call", first)
        operations = pair_operations("pseudo", model, shape) * n * (n + plan.rows) / 2
        share_of_floor(report, f"{label}: {n} rows", warm, operations, rates(toy)[label])
        report.note(f"{label}: planned bytes", plan.peak_bytes)
        report.note(f"{label}: peak bytes so far", peak_memory()["jax"])
        K = np.asarray(K, float)
        report.check(f"{label}: symmetric", np.array_equal(K, K.T))
        report.check(
            f"{label}: least eigenvalue over the largest", np.linalg.eigvalsh(K)[0] / np.trace(K), at_least=-1e-3
        )


def check_training(report, toy):
    """Two-step training against PGD-20: seconds a batch beside their floor."""
    require_gpu(toy)
    import optax

    size, n, batch, steps = (8, 16, 8, 2) if toy else (32, 2048, 128, 20)
    network = CNN(n_outputs=4, widths=(4,), strides=(2,)) if toy else ResNet18(n_outputs=10)
    model, X = drawn(network, (size, size, 3)), images(n, size)
    y = (np.arange(n) % 4).astype(np.int32)
    attacks, stamps = (Clean(), PGD(EPSILON, steps)), [time.perf_counter()]
    states = train(
        model, X, y, epochs=3, batch_size=batch, attacks=attacks, key=jax.random.key(0), optimizer=optax.sgd(0.01)
    )
    for state in states:
        jax.block_until_ready(state.model)
        stamps.append(time.perf_counter())
    report.check("finite loss", np.isfinite(float(state.loss)))
    report.note("seconds to the first state and epoch", stamps[2] - stamps[0])
    each = (stamps[-1] - stamps[-2]) / (n // batch)
    # forward and two gradients for each update, forward and one for each step
    operations = batch * forward_operations(model, X.shape[1:]) * (2 * 3 + 2 * steps)
    share_of_floor(report, "a batch", each, operations, rates(toy)["tf32"])


def check_steps(report, toy):
    """Steps of attacks a second, at two sizes of tiles."""
    require_gpu(toy)
    size, n, steps = (8, 8, 2) if toy else (32, 512, 20)
    network = CNN(n_outputs=4, widths=(4,), strides=(2,)) if toy else ResNet18(n_outputs=10)
    model, X = drawn(network, (size, size, 3)), images(n, size)
    y, forward = np.zeros(n, np.int32), forward_operations(model, X.shape[1:])
    for name, scores, cost in (("network", model, 2), ("linearised", linearize(model), 6)):
        for rows in (n // 4, n):

            def examples(scores=scores, rows=rows):
                return attack_in_tiles(PGD(EPSILON, steps), scores, X, y, key=jax.random.key(0), rows=rows)

            first, warm, _ = seconds_of(examples, 1)
            what = f"PGD-{steps} on the {name}, {n} images, tiles of {rows}"
            share_of_floor(report, what, warm, n * steps * cost * forward, rates(toy)["tf32"])
            report.note(f"{what}: seconds of the first call", first)


def check_gram(report, toy):
    """A large kernel, its solution and its predictor."""
    require_gpu(toy)
    size, n, memory = (8, 24, "1GiB") if toy else (32, 10_000, "45GiB")
    network = CNN(n_outputs=4, widths=(4, 4), strides=(1, 2)) if toy else ResNet18(n_outputs=10)
    model, X = drawn(network, (size, size, 3)), images(n, size)
    n_outputs = network.n_outputs
    targets = np.eye(n_outputs)[np.arange(n) % n_outputs] - 1 / n_outputs
    first, warm, K = seconds_of(lambda: gram("pseudo", model, X, dtype="tf32", memory=memory), 1)
    operations = pair_operations("pseudo", model, X.shape[1:]) * n * n / 2
    share_of_floor(report, f"{n} rows", warm, operations, rates(toy)["tf32"])
    report.note(f"{n} rows: seconds of the first call", first)
    report.note("50,000 rows: seconds, by the same rate", warm * (50_000 / n) ** 2)
    first, warm, dual = seconds_of(lambda: solve(K, targets, alpha=1e-2), 1)
    report.note("solve: seconds", warm)
    start = time.perf_counter()
    machine = make_predictor(KERNELS["pseudo"], model, X, dual, np.zeros(n_outputs), memory=memory)
    jax.block_until_ready(machine.tangents)
    report.note("fold: seconds", time.perf_counter() - start)
    few = min(n, 512)
    expected = np.asarray(gram("pseudo", model, X[:few], X, memory=memory), float) @ to_numpy(dual)
    report.check("predictions: error", relative(machine(X[:few]), expected), 5e-2)
