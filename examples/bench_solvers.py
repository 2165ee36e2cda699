"""Kernel machines and kernels beyond the size at which a dense matrix ends.

Each case prints its row; with ``--write`` it is added to docs/results/bench_solvers.jsonl, and the latest row of
each case makes the table in docs/benchmarks.md:

    python examples/bench_solvers.py --only operator-growth measures --write

Times are medians of one run, and figures are ratios within it; memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import log10
from pathlib import Path

import jax
import numpy as np
import scipy.linalg
from documents import (
    BENCHMARKS,
    HISTORY,
    alternating_seconds,
    bar,
    largest_resident,
    machine,
    now,
    table_of_bars,
    write_part,
)
from scipy.sparse.linalg import aslinearoperator
from sklearn.model_selection import GridSearchCV
from solver_sections import SECTIONS

from ntkrobust_sk import (
    CNN,
    MLP,
    EmpiricalNTKClassifier,
    Model,
    effective_rank,
    gram,
    gram_operator,
    kernel_alignment,
    kernel_distance,
    kernel_norm,
    kernel_trace,
    load_digits_images,
    load_experiment,
    load_trained,
    solve,
    target_alignment,
)
from ntkrobust_sk.analysis import Probes
from ntkrobust_sk.evolution.running import splits_of
from ntkrobust_sk.execution.devices import one_thread_each
from ntkrobust_sk.kernels import workers
from ntkrobust_sk.solvers.filters import Ridge
from ntkrobust_sk.solvers.spectrum import spectrum

SCRIPT = "bench_solvers.py"
PACKAGES = ("jax", "numpy", "scipy", "scikit-learn")
CASES: dict[str, Callable[[argparse.Namespace], dict]] = {}


def case(name: str):
    """Enter a case under its name."""

    def enter(measure):
        CASES[name] = measure
        return measure

    return enter


def in_a_process(which: str, *given) -> dict:
    """Run a function of this script in a process of its own, and return what it prints."""
    command = [sys.executable, __file__, "--child", which, *map(str, given)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def digits_like(n: int, seed: int = 0) -> np.ndarray:
    """Digits of 8 × 8 pixels with noise, as many as are asked for."""
    rng, images = np.random.default_rng(seed), load_digits_images()[0]
    noisy = images[rng.integers(0, len(images), n)] + 0.1 * rng.normal(size=(n, *images.shape[1:]))
    return noisy.astype(np.float32)


def digits_model(seed: int = 0) -> Model:
    """An MLP for digits, at initialisation."""
    network = MLP(n_outputs=10)
    return Model(network, network.init(jax.random.key(seed), (8, 8, 1)))


# Products that are never formed


def products(small: int, large: int, repeats: int) -> dict:
    """Time products of both sizes in turn, and look at the memory that they take."""
    model, X = digits_model(), digits_like(large)
    sizes = {n: gram_operator("trace", model, X[:n]) for n in (small, large)}
    V = np.random.default_rng(1).normal(size=(large, 10))
    sizes[small] @ V[:small]  # compiles
    before, seconds = largest_resident(), {n: [] for n in sizes}
    for _ in range(repeats):
        for n, K in sizes.items():
            start = time.perf_counter()
            K @ V[:n]
            seconds[n].append(time.perf_counter() - start)
    return {"bytes": largest_resident() - before, "seconds": {n: float(np.median(s)) for n, s in seconds.items()}}


@case("operator-growth")
def operator_growth(options) -> dict:
    """Ten columns at N = 5,000 and 50,000."""
    small, large = 5_000, 50_000
    found = in_a_process("products", small, large, options.repeats)
    short, long = found["seconds"].values()
    exponent = log10(long / short) / log10(large / small)
    return bar(
        f"K V by `gram_operator`, MLP on digits, 10 columns: exponent of time from N={small:,} to {large:,}",
        "≤ 1.1, and memory grows by < 1 GiB",
        f"{exponent:.2f}, {found['bytes'] / 2**20:,.0f} MiB",
        exponent <= 1.1 and found["bytes"] < 2**30,
        f"{short:.2f} s and {long:.2f} s; the matrix would take {4 * large**2 / 2**30:.1f} GiB",
    )


@case("operator-error")
def operator_error(options) -> dict:
    """Products against those with the dense matrix."""
    model, X = digits_model(), digits_like(2000)
    K = np.asarray(gram("trace", model, X, dtype="float64"))
    V = np.random.default_rng(1).normal(size=(2000, 10))
    exact = K @ V
    errors = [
        np.abs(gram_operator("trace", model, X, dtype=dtype) @ V - exact).max() / np.abs(exact).max()
        for dtype in ("float32", "float64")
    ]
    return bar(
        "K V by `gram_operator` against the dense matrix, N=2,000: largest difference, of the largest entry",
        "≤ 1e-5",
        f"{errors[0]:.1e}",
        bool(errors[0] <= 1e-5),
        f"{errors[1]:.1e} in double precision, against single-precision features",
    )


# Measures without the matrix


@case("measures")
def measures(options) -> dict:
    """Estimates at N = 500 against exact numbers, in 100 draws."""
    X, y = load_digits_images()
    X, Y = X[:500], np.eye(10)[y[:500]]
    K, other = (np.asarray(gram("trace", digits_model(seed), X), np.float64) for seed in (0, 1))
    asked = {
        "trace": lambda K, **given: kernel_trace(K, **given),
        "norm": lambda K, **given: kernel_norm(K, **given),
        "participation": lambda K, **given: effective_rank(K, "participation", **given),
        "effective rank": lambda K, **given: effective_rank(K, **given),
        "alignment": lambda K, **given: kernel_alignment(K, other, **given),
        "distance": lambda K, **given: kernel_distance(K, other, **given),
        "target alignment": lambda K, **given: target_alignment(K, Y, **given),
    }
    within, errors, operator = {}, {}, aslinearoperator(K)
    with one_thread_each():
        for name, measure in asked.items():
            exact = measure(K)
            draws = [measure(operator, probes=Probes(random_state=seed)) for seed in range(100)]
            within[name] = sum(abs(d - exact) <= 3 * d.standard_error for d in draws)
            errors[name] = np.mean([d.standard_error for d in draws]) / abs(exact)
    return bar(
        "estimates by Hutch++ and Lanczos within 3 standard errors of the exact number, N=500, of 100 draws",
        "≥ 95",
        str(min(within.values())),
        min(within.values()) >= 95,
        "; ".join(f"{name} {within[name]} (± {errors[name]:.2g} of it)" for name in within),
    )


def of_cifar(folder: str, data: str, minutes: float) -> dict:
    """Measure one state of a run on as many training images as there is time for."""
    splits = splits_of(replace(load_experiment(folder), data_dir=data), None)
    model = load_trained(folder, "benign", splits=splits)
    X, Y = splits.X, np.eye(10)[splits.y]
    probes, few = Probes(n_range=4, n_random=8), 128

    def measured(n):
        K, start = gram_operator("pseudo", model, X[:n]), time.perf_counter()
        rank = effective_rank(K, "participation", probes=probes)
        aligned = target_alignment(K, Y[:n], centered=True, probes=probes)
        seconds = time.perf_counter() - start
        estimates = {"rank": rank, "aligned": aligned}
        numbers = {name: [float(found), found.standard_error] for name, found in estimates.items()}
        return {"n": n, "seconds": seconds, **numbers}

    measured(few)  # compiles
    before = largest_resident()
    each = measured(few)["seconds"] / few
    n = min(len(X), int(60 * minutes / each) // few * few)
    return measured(n) | {"bytes": largest_resident() - before, "all": len(X) * each}


@case("cifar")
def cifar(options) -> dict:
    """Effective rank and alignment of CIFAR-10's training images."""
    if options.run is None or options.data is None:
        raise SystemExit("cifar needs --run (the folder of an evolution of cifar10, 50,000 images) and --data")
    found = in_a_process("of_cifar", options.run, options.data, options.minutes)
    (rank, rank_error), (aligned, aligned_error) = found["rank"], found["aligned"]
    return bar(
        f"pseudo kernel of a trained CNN on {found['n']:,} CIFAR-10 images: participation, alignment",
        "stated",
        f"{rank:.3g} ± {rank_error:.1g}, {aligned:.3f} ± {aligned_error:.1g}",
        True,
        f"{found['seconds'] / 60:.1f} minutes, {found['bytes'] / 2**20:,.0f} MiB; all 50,000 would take "
        f"{found['all'] / 60:.0f} minutes by that count, their matrix {4 * 50_000**2 / 2**30:.1f} GiB",
    )


# Model selection


def drawn_kernel(n: int):
    """Draw a kernel matrix of random features, and ten targets."""
    random = np.random.default_rng(0)
    features = random.normal(size=(n, 2 * n)) / np.sqrt(2 * n)
    return features @ features.T, random.normal(size=(n, 10))


@case("leave-one-out")
def leave_one_out(options) -> dict:
    """Exact leave-one-out errors of 50 alphas, beside one eigendecomposition of SciPy's."""
    (K, Y), alphas = drawn_kernel(2000), np.logspace(-4, 2, 50)

    def errors():
        found = spectrum(K, Y)
        return [((left - Y) ** 2).mean() for left in found.left_out_each([Ridge(alpha) for alpha in alphas])]

    ours, eigh = alternating_seconds(errors, lambda: scipy.linalg.eigh(K), repeats=options.repeats)
    return bar(
        "exact leave-one-out of 50 alphas / one `scipy.linalg.eigh`, N=2,000, 10 targets",
        "≤ 1.5",
        ours / eigh,
        ours / eigh <= 1.5,
        f"{ours} and {eigh}",
    )


@case("leave-one-out-error")
def leave_one_out_error(options) -> dict:
    """Leave-one-out in closed form against a fit without each row, weights included."""
    K, Y = drawn_kernel(100)
    weight, worst = np.random.default_rng(0).integers(1, 4, size=100).astype(float), 0.0
    for alpha, given in product((1e-3, 1e-1, 10.0), (None, weight)):
        found = spectrum(K, Y, given).left_out(Ridge(alpha))
        for i in range(100):
            rest = np.delete(np.arange(100), i)
            of_rest = None if given is None else given[rest]
            offset = np.average(Y[rest], axis=0, weights=of_rest)
            dual = solve(K[np.ix_(rest, rest)], Y[rest] - offset, alpha=alpha, sample_weight=of_rest)
            worst = max(worst, abs(offset + K[i, rest] @ dual - found[i]).max())
    return bar(
        "exact leave-one-out against refits, N=100: largest difference",
        "≤ 1e-6",
        f"{worst:.1e}",
        bool(worst <= 1e-6),
        "three alphas, with weights and without",
    )


def searched(alphas, n_jobs: int | None) -> list[str]:
    """Search over alphas with an empty cache, and return the names of its files."""
    X, y = (part[:900] for part in load_digits_images())
    network = CNN(n_outputs=10, widths=(16, 32), strides=(1, 2))
    with tempfile.TemporaryDirectory() as folder:
        estimator = EmpiricalNTKClassifier(network, cache=folder, random_state=0)
        GridSearchCV(estimator, {"alpha": alphas}, cv=3, n_jobs=n_jobs).fit(X, y)
        return sorted(path.name for path in Path(folder).iterdir())


def search(options, n_jobs: int | None) -> dict:
    """A grid search over 8 alphas beside one over a single alpha, both with an empty cache."""
    alphas, names = np.logspace(-4, 1, 8), []
    one, all_ = alternating_seconds(
        lambda: names.append(searched(alphas[:1], n_jobs)),
        lambda: names.append(searched(alphas, n_jobs)),
        repeats=options.repeats,
    )
    return bar(
        f"`GridSearchCV` over 8 alphas / over one, cv=3, with a cache, n_jobs={n_jobs}",
        "≤ 1.3",
        all_ / one,
        all_ / one <= 1.3 and all(files == names[0] for files in names),
        f"{all_} and {one}; 900 digits, CNN 16-32, trace kernel; the same {len(names[0])} matrices are kept",
    )


@case("search")
def search_here(options) -> dict:
    """By this process."""
    return search(options, None)


@case("search-jobs")
def search_by_workers(options) -> dict:
    """By two workers."""
    return search(options, 2)


@case("search-tiles")
def search_tiles(options) -> dict:
    """Tiles of both searches, counted."""
    computed, compute, alphas = [], workers.compute_tiles, np.logspace(-4, 1, 8)

    def counting(job, tiles):
        computed.extend(tiles)
        return compute(job, tiles)

    workers.compute_tiles = counting
    counts = []
    for some in (alphas[:1], alphas):
        computed.clear()
        searched(some, None)
        counts.append(len(computed))
    workers.compute_tiles = compute
    return bar(
        "tiles computed by `GridSearchCV` over 8 alphas, and over one",
        "the same",
        f"{counts[1]} and {counts[0]}",
        counts[0] == counts[1] > 0,
        "the searches above, in one process",
    )


# Solvers, in a file of their own


CASES.update(SECTIONS)

CHILDREN = {
    "products": lambda small, large, repeats: products(int(small), int(large), int(repeats)),
    "of_cifar": lambda folder, data, minutes: of_cifar(folder, data, float(minutes)),
}


def write(name: str, row: dict) -> None:
    """Add a row to the history, and make the table of each case's latest one."""
    history = HISTORY / f"{Path(SCRIPT).stem}.jsonl"
    history.parent.mkdir(exist_ok=True)
    before = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
    line = {"name": name, "at": now(), "on": machine(PACKAGES), **row}
    lines = [*before, json.dumps(line, ensure_ascii=False)]
    history.write_text("\n".join(lines) + "\n", encoding="utf-8")
    latest = {found["name"]: found for found in map(json.loads, lines)}
    rows = [latest[name] for name in CASES if name in latest]
    table = table_of_bars("case", rows)
    # rows of several days may come from several machines; each row's figures are from one
    machines = " and ".join(sorted({found["on"] for found in rows}))
    write_part(BENCHMARKS, SCRIPT, f"`python examples/{SCRIPT} --write`, {now()}, on {machines}.\n\n{table}")


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--write", action="store_true", help="the rows into docs/benchmarks.md, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", help="folder of an evolution of cifar10, for the case cifar")
    parser.add_argument("--data", help="folder of CIFAR-10, for the case cifar")
    parser.add_argument("--minutes", type=float, default=10, help="time for the case cifar")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        which, *given = options.child
        print(json.dumps(CHILDREN[which](*given)))
        return
    for name in options.only:
        row = CASES[name](options)
        print(table_of_bars("case", [row]).splitlines()[-1], flush=True)
        if options.write:
            # after every case, so that what was measured is kept whatever happens
            write(name, row)


if __name__ == "__main__":
    main()
