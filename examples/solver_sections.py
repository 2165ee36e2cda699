"""Cases of examples/bench_solvers.py: solvers of kernel regression against SciPy's and scikit-learn's.

Each case is a function of that script's options, and returns one row of its table. Memory is that of processes of
their own: ``python examples/solver_sections.py --peak WHICH`` prints what one solution adds to the resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import scipy.linalg
from documents import alternating_seconds, bar, largest_resident
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import spotrf, spotrs
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline

from ntkrobust_sk import (
    MLP,
    AdversarialKernelTrainer,
    Cholesky,
    ConjugateGradient,
    EigenPro,
    EmpiricalNTKClassifier,
    FeatureGram,
    Nystrom,
    gram,
    load_digits_images,
    solve,
)

N, N_OUTPUTS, ALPHA, TOLERANCE = 8000, 10, 1e-3, 1e-6
N_ROWS, N_FEATURES = 1_000_000, 20


def smooth_kernel(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel of random points in eight dimensions, in double precision, and targets."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 8))
    squares = np.sum(X**2, axis=1)
    K = X @ X.T
    K *= 2
    K -= squares
    K -= squares[:, None]
    K /= 2 * 8
    return np.exp(K, out=K), np.sin(X @ draw.normal(size=(8, N_OUTPUTS)))


def image_kernel(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """The trace kernel of an MLP at initialisation on shifted scans of digits, in single precision; targets."""
    images, labels = load_digits_images()
    draw = np.random.default_rng(0)
    shifts = draw.permutation(9 * len(images))[:n]
    rows, columns = shifts // 9 % len(images), shifts % 9
    X = np.stack(
        [
            np.roll(images[i].reshape(8, 8), (s // 3 - 1, s % 3 - 1), (0, 1))
            for i, s in zip(rows, columns, strict=True)
        ]
    )
    X = X.reshape(n, 64).astype(np.float32)
    trained = AdversarialKernelTrainer(MLP(widths=(256, 256)), max_epochs=0, random_state=0).fit(X, labels[rows])
    Y = np.eye(N_OUTPUTS)[labels[rows]]
    return np.asarray(gram("trace", trained.model_, X)), Y - Y.mean(0)


def with_ridge(K: np.ndarray) -> np.ndarray:
    """The system that a solver gets."""
    A = K.astype(float)
    A.flat[:: len(A) + 1] += ALPHA * np.trace(K) / len(K)
    return A


def direct_time(options):
    """Cholesky beside SciPy's solver and KernelRidge, in time."""
    K, Y = smooth_kernel()
    A, ridge = with_ridge(K), ALPHA * np.trace(K) / len(K)
    machine = KernelRidge(alpha=ridge, kernel="precomputed")
    ours, whole, theirs, sklearns = alternating_seconds(
        lambda: Cholesky()(A, Y),
        lambda: solve(K, Y, alpha=ALPHA),
        lambda: scipy.linalg.solve(A, Y, assume_a="pos"),
        lambda: machine.fit(K, Y).dual_coef_,
        repeats=options.repeats,
    )
    holds = ours / theirs <= 1.15 and whole < sklearns
    detail = f"Cholesky {ours}, SciPy {theirs}; solve {whole}, KernelRidge {sklearns}"
    figure = f"{ours / theirs:.2f}; {whole / sklearns:.2f} of KernelRidge"
    case = f"N={N:,} dense, 10 outputs: Cholesky / scipy.linalg.solve(assume_a='pos'), time"
    return bar(case, "<= 1.15; faster than KernelRidge", figure, holds, detail)


def direct_memory(options):
    """The same, in peak memory."""
    ours, whole, theirs = (peak(which) for which in ("cholesky", "solve", "scipy"))
    detail = f"arrays of the size of the matrix: Cholesky {ours:.2f}, solve {whole:.2f}, SciPy {theirs:.2f}"
    case = f"N={N:,} dense, 10 outputs: Cholesky / scipy.linalg.solve(assume_a='pos'), memory besides the matrix"
    return bar(case, "<= 1.15", ours / theirs, ours / theirs <= 1.15, detail)


def least_by_hand(K, Y):
    """The least that a factorisation in single precision takes, with corrections to the tolerance."""
    ridge = ALPHA * np.trace(K) / len(K)
    A = np.array(K, np.float32)
    A.flat[:: len(A) + 1] += ridge
    L, _ = spotrf(A.T, lower=True, clean=False, overwrite_a=True)
    X, R, error, steps = np.zeros_like(Y), Y, 1.0, 0
    while error > TOLERANCE and steps < 20:
        X = X + spotrs(L, np.asfortranarray(R, np.float32), lower=True)[0]
        # few rows in double precision at once, of a matrix that is not
        blocks = [K] if K.dtype == float else (K[at : at + 128].astype(float) for at in range(0, len(K), 128))
        product = np.concatenate([dgemm(1.0, rows.T, X, trans_a=True) for rows in blocks])
        R = Y - product - ridge * X
        error, steps = np.max(np.linalg.norm(R, axis=0) / np.linalg.norm(Y, axis=0)), steps + 1
    return error, steps


def cg_time(options, kernel, what: str):
    """Conjugate gradients beside Cholesky, and beside the least that a factorisation takes."""
    K, Y = kernel()
    found = {}

    def by(name, solver):
        found[name] = solve(K, Y, alpha=ALPHA, solver=solver, return_report=True)

    ours, direct, least = alternating_seconds(
        lambda: by("cg", "cg"),
        lambda: by("cholesky", "cholesky"),
        lambda: found.update(least=least_by_hand(K, Y)),
        repeats=options.repeats,
    )
    report, (error, steps) = found["cg"][1], found["least"]
    detail = (
        f"{report.n_iter} iterations to {report.residual:.1e}; cg {ours}, Cholesky {direct}. By hand, a "
        f"factorisation in single precision and corrections, without any check: {least}, {least / direct:.2f} of "
        f"Cholesky, {steps} iterations to {error:.1e}; cg takes {ours / least:.2f} of that; "
        f"{report.detail}"
    )
    case = f"N={N:,}, alpha 1e-3, 10 outputs, {what}: cg / Cholesky, time"
    holds = (ours / direct <= 1 / 3 or ours / least <= 1.2) and report.residual <= TOLERANCE
    return bar(case, "<= 1/3, or 1.2 times the least by hand", ours / direct, holds, detail)


def operator_predictions(options, n: int = 2000):
    """Predictions of a machine whose kernel is never formed, beside those of dense solutions."""
    images, labels = load_digits_images()
    rows = np.random.default_rng(0).integers(0, len(images), n + 500)
    X = images.reshape(-1, 64)[rows] + np.random.default_rng(1).normal(0, 0.05, (n + 500, 64))
    X, y, X_test = X[:n].astype(np.float32), labels[rows][:n], X[n:].astype(np.float32)
    given = {"alpha": ALPHA, "random_state": 0}
    dense = EmpiricalNTKClassifier("mlp", **given).fit(X, y)
    never = EmpiricalNTKClassifier("mlp", solver="cg", memory="40MiB", **given).fit(X, y)
    K, K_test = (gram("trace", dense.model_, *of, dtype="float64") for of in ((X,), (X_test, X)))
    Y = np.eye(N_OUTPUTS)[y]
    scores = K_test @ solve(K, Y - Y.mean(0), alpha=ALPHA)
    error, single = (
        float(abs(K_test @ machine.dual_coef_ - scores).max() / abs(scores).max()) for machine in (never, dense)
    )
    detail = (
        f"{never.n_iter_} iterations to {never.residual_:.1e}; largest difference of 500 rows' scores, matrix in "
        f"double precision. A dense solution of the matrix in single precision differs by {single:.1e}"
    )
    case = f"N={n:,}, alpha 1e-3: predictions of solver='cg' with an operator, against a dense solution"
    return bar(case, "<= 1e-4", f"{error:.1e}", error <= 1e-4, detail)


def tabular(n: int = N_ROWS, seed: int = 0):
    """Synthetic rows of 20 features in two classes: the sign of a random function of waves and products."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n + 20_000, N_FEATURES)).astype(np.float32)
    waves = np.sin(X @ draw.normal(size=(N_FEATURES, 40)).astype(np.float32) / 3) @ draw.normal(size=40)
    y = (waves + 2 * X[:, 0] * X[:, 1] + draw.normal(size=len(X)) > 0).astype(int)
    return X[:n], y[:n], X[n:], y[n:]


def million(which: str, n: int = N_ROWS) -> dict:
    """Fit one machine on a million rows, in this process: accuracy, seconds and the largest resident size."""
    X, y, X_test, y_test = tabular(n)
    before = largest_resident()
    start = time.perf_counter()
    if which == "sklearn":
        # as many landmarks as take about the time of the others
        machine = make_pipeline(
            Nystroem(gamma=1 / 40, n_components=500, random_state=0), RidgeClassifier(alpha=1.0)
        )
        accuracy = machine.fit(X, y).score(X_test, y_test)
    elif which == "nystrom":
        machine = EmpiricalNTKClassifier(
            "mlp", solver=Nystrom(n_landmarks=500), kernel="pseudo", alpha=1e-5, random_state=0
        )
        accuracy = machine.fit(X, y).score(X_test, y_test)
    else:
        features = RBFSampler(gamma=1 / 40, n_components=800, random_state=0).fit(X[:2])
        Y = np.eye(2)[y]
        K = FeatureGram(X, features.transform)
        dual = solve(K, Y - Y.mean(0), alpha=1e-5, solver=EigenPro(max_epochs=3))
        weights = K.fold(dual)
        accuracy = np.mean((features.transform(X_test) @ weights).argmax(1) == y_test)
    seconds = time.perf_counter() - start
    largest = largest_resident()
    return {"accuracy": float(accuracy), "seconds": seconds, "peak": largest, "data": before}


def million_rows(which: str, bar_of: str = "within 4 GiB; accuracy beside scikit-learn's"):
    """One of ours beside Nystroem and RidgeClassifier, each in a process of its own."""
    ours, theirs = in_a_process("--million", which), in_a_process("--million", "sklearn")
    gib = ours["peak"] / 2**30
    case = f"{N_ROWS:,} rows of 20 features, synthetic, solver={which!r}: accuracy on 20,000 others"
    detail = (
        f"{ours['seconds']:.0f} s and {gib:.1f} GiB; Nystroem(500) + RidgeClassifier {theirs['accuracy']:.3f} in "
        f"{theirs['seconds']:.0f} s and {theirs['peak'] / 2**30:.1f} GiB"
    )
    holds = gib <= 4 and ours["accuracy"] >= theirs["accuracy"] - 0.005
    return bar(case, bar_of, ours["accuracy"], holds, detail)


def peak(which: str) -> float:
    """What one solution adds to the largest resident size, in matrices, in a process of its own."""
    return in_a_process("--peak", which)["arrays"]


def peak_here(which: str) -> dict:
    """Solve once, and look."""
    K, Y = smooth_kernel()
    A = K if which == "solve" else with_ridge(K)
    del K
    before = largest_resident()
    held = resident()
    solvers = {
        "cholesky": lambda: Cholesky()(A, Y),
        "solve": lambda: solve(A, Y, alpha=ALPHA),
        "scipy": lambda: scipy.linalg.solve(A, Y, assume_a="pos"),
        "cg": lambda: ConjugateGradient()(A, Y),
    }
    solvers[which]()
    largest = largest_resident()
    return {"arrays": (max(largest, before) - held) / A.nbytes}


def resident() -> int:
    """The bytes that this process has in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def in_a_process(*arguments: str) -> dict:
    """Run this script, and return what it prints."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


SECTIONS = {
    "direct-time": direct_time,
    "direct-memory": direct_memory,
    "cg-digits": lambda options: cg_time(options, image_kernel, "trace kernel of an MLP on shifted digits"),
    "cg-smooth": lambda options: cg_time(options, smooth_kernel, "Gaussian kernel in eight dimensions"),
    "operator-predictions": operator_predictions,
    "million-nystrom": lambda options: million_rows("nystrom"),
    "million-eigenpro": lambda options: million_rows("eigenpro"),
}


def main() -> None:
    """Look at one process, for a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--million", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=N_ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_here(options.peak)))
    elif options.million:
        print(json.dumps(million(options.million, options.rows)))


if __name__ == "__main__":
    main()
