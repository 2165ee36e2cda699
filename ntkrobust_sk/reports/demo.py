"""The demo: a small run that asks whether adversarial training acts through the kernel.

Trains a small network benignly and adversarially, takes both empirical NTKs, regresses on each in closed
form, and trains adversarially on the frozen adversarial kernel (Loo et al. 2022, arXiv:2210.12030).
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.frozen import FrozenEstimator
from tqdm.auto import tqdm

from .._drawing import COLORS
from .._files import explained, require_file, write_atomically, written_atomically
from .._locks import held
from .._validation import check_path, integer
from ..analysis.metrics import kernel_distance
from ..analysis.spectra import effective_rank
from ..attacks.pgd import PGD
from ..datasets.splits import chosen_indices, load_splits, no_more
from ..displays.kernels import KernelDistanceDisplay, SpectrumDisplay, spectrum
from ..estimators.kernel_machines import EmpiricalNTKClassifier
from ..estimators.trainer import AdversarialKernelTrainer
from ..evolution.claims import HOLDS, closed_form_gains, frozen_kernel_gains
from ..evolution.presets import PRESETS
from ..evolution.setting_checks import check_numbers
from .evidence import Learning


@dataclass(frozen=True)
class Demo:
    """Settings of one run.

    Attributes
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"}
    data_dir : str or None
        Folder with the canonical files; not needed for digits.
    network : str
        Name of the network, of those that :class:`~ntkrobust_sk.AdversarialKernelTrainer` knows.
    n_train, n_test : int
        Images for training and for scoring, balanced over the classes (digits: all that remain).
    n_kernel : int
        Training images for kernels and closed-form regression.
    epsilon : float
        Radius of the L∞ ball, in [0, 1] pixel units.
    train_steps, test_steps : int
        PGD steps in training and in scoring.
    max_epochs : int
        Epochs of each stage.
    alpha : float
        Ridge of the closed-form regression.
    random_state : int
        Seed.
    """

    data: str = "digits"
    data_dir: str | None = None
    network: str = "cnn"
    n_train: int = 1397
    n_test: int = 400
    n_kernel: int = 500
    epsilon: float = 0.15
    train_steps: int = 10
    test_steps: int = 40
    max_epochs: int = 20
    alpha: float = 1e-2
    random_state: int = 0

    def __post_init__(self):
        # now, and not in the minute in which each is needed
        check_numbers(self)
        integer("n_kernel", self.n_kernel)


# Sizes that let the demo take minutes, in place of those of the experiment on the same data.
SMALL_SIZES = {"n_train": 2000, "n_test": 300, "max_epochs": 10}
SIZES = {
    "digits": {},
    "mnist": SMALL_SIZES,
    "fashion-mnist": SMALL_SIZES,
    "cifar10": SMALL_SIZES | {"max_epochs": 8},
}


def settings_for(data: str, **given: Any) -> Demo:
    """Return the demo's settings for a data set, with whatever is given (not None) in their place."""
    of_demo = {field.name for field in fields(Demo)}
    settings = {name: value for name, value in PRESETS[data].items() if name in of_demo} | SIZES[data]
    given = {name: value for name, value in given.items() if value is not None}
    return Demo(**{"data": data} | settings | given)


def run_demo(demo: Demo, out: str | os.PathLike) -> bool:
    """Run the demo; write ``results.json`` and ``figure.png`` to ``out``; print the table.

    Returns
    -------
    bool
        Both claims hold, and the benign network has learned enough for verdicts: the adversarial kernel's
        closed-form regression is at least 0.25 more robust
        than the benign kernel's, at clean accuracies within 0.05; and adversarial training on the frozen
        adversarial kernel is at least as robust as the adversarially trained network.

    Raises
    ------
    FolderInUseError
        If another process writes into ``out``.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the demo draws a figure with matplotlib: pip install 'ntkrobust_sk[plot]'")
    out = check_path("out", out)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "figure.png"):
        require_file(out / name)
    with held(out):
        return _run(demo, out)


def _run(demo: Demo, out: Path) -> bool:
    start = time.perf_counter()
    X, y, X_test, y_test = load_splits(
        demo.data, demo.data_dir, n_train=demo.n_train, n_test=demo.n_test, random_state=demo.random_state
    )
    if demo.n_kernel < (n_classes := len(np.unique(y))):
        raise ValueError(
            f"n_kernel={demo.n_kernel} cannot hold one of each of the {n_classes} classes; ask for more"
        )
    demo = replace(demo, n_kernel=no_more("n_kernel", demo.n_kernel, len(y), "training examples"))
    kernel_set = chosen_indices(y, demo.n_kernel, demo.random_state)
    test_attack = PGD(demo.epsilon, n_steps=demo.test_steps)
    train_attack = PGD(demo.epsilon, n_steps=demo.train_steps)

    accuracy, grams = {}, {}
    shared: dict[str, Any] = {"max_epochs": demo.max_epochs, "random_state": demo.random_state, "verbose": 1}
    with tqdm(total=11, desc="demo", unit="stage") as bar:

        def stage(name, result=None):
            bar.set_postfix_str(name)
            bar.update()
            return result

        def score(name, estimator):
            accuracy[name] = {
                "clean": estimator.score(X_test, y_test),
                "robust": estimator.robust_score(X_test, y_test, test_attack),
            }
            stage(f"scored: {name}")

        trainers = {
            "initial": AdversarialKernelTrainer(demo.network, **{**shared, "max_epochs": 0}),
            "benign": AdversarialKernelTrainer(demo.network, **shared),
            "adversarial": AdversarialKernelTrainer(demo.network, attack=train_attack, **shared),
        }
        for name, trainer in trainers.items():
            trainer.fit(X, y)
            grams[name] = stage(f"trained, with its kernel: {name}", trainer.gram(X[kernel_set]))
        for name in ("benign", "adversarial"):
            score(f"{name} network", trainers[name])
        for name in ("benign", "adversarial"):
            frozen = FrozenEstimator(trainers[name])
            machine = EmpiricalNTKClassifier(frozen, alpha=demo.alpha, verbose=1)
            score(f"{name} kernel, closed form", stage("regressed", machine.fit(X[kernel_set], y[kernel_set])))
        frozen = FrozenEstimator(trainers["adversarial"])
        machine = EmpiricalNTKClassifier(frozen, solver="sgd", attack=train_attack, **shared)
        score("adversarial kernel, frozen, adversarial training", stage("trained", machine.fit(X, y)))

    learning = Learning.of("benign", accuracy["benign network"]["clean"], n_classes)
    results = _results(demo, accuracy, grams, learning, time.perf_counter() - start)
    write_atomically(out / "results.json", json.dumps(results, indent=2).encode() + b"\n")
    _draw(results, grams, out / "figure.png")
    print(table(results))
    print(f"Results and figure: {out.resolve()}")
    return all(claim["holds"] and claim["counts"] for claim in results["claims"])


def _results(demo, accuracy, grams, learning, seconds) -> dict[str, Any]:
    claims = closed_form_gains(accuracy), frozen_kernel_gains(accuracy)
    return {
        "settings": asdict(demo),
        "accuracy": accuracy,
        "kernel_distance": {a: {b: kernel_distance(grams[a], grams[b]) for b in grams} for a in grams},
        "effective_rank": {name: effective_rank(K) for name, K in grams.items()},
        "claims": [
            {"claim": claim.statistic, "measured": claim.measured, "holds": claim.verdict == HOLDS}
            | {"counts": learning.is_enough, "reason": learning.why_not}
            for claim in claims
        ],
        "seconds": round(seconds, 1),
        "hardware": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def table(results: dict[str, Any]) -> str:
    """Write the results as text."""
    settings = results["settings"]
    lines = [
        "",
        f"{settings['data']}, {settings['network']}, L∞ PGD-{settings['test_steps']} with epsilon "
        f"{settings['epsilon']:.4g}, seed {settings['random_state']}, {results['seconds']:.0f} s",
        "",
        f"{'predictor':<52}{'clean':>8}{'robust':>8}",
    ]
    lines += [f"{n:<52}{a['clean']:>8.3f}{a['robust']:>8.3f}" for n, a in results["accuracy"].items()]
    names = list(results["effective_rank"])
    lines += ["", f"{'kernel distance':<24}" + "".join(f"{n:>14}" for n in names) + f"{'eff. rank':>14}"]
    for name in names:
        distances = "".join(f"{results['kernel_distance'][name][other]:>14.3f}" for other in names)
        lines.append(f"{name:<24}{distances}{results['effective_rank'][name]:>14.1f}")
    lines.append("")
    for claim in results["claims"]:
        verdict = ("HOLDS" if claim["holds"] else "DOES NOT HOLD") if claim["counts"] else "NO VERDICT"
        lines.append(f"{verdict}: {claim['claim']} ({claim['measured']})")
    if not results["claims"][0]["counts"]:
        lines.append(f"No verdicts: {results['claims'][0]['reason']}")
    return "\n".join([*lines, ""])


def _draw(results, grams, path) -> None:
    """Draw accuracies, kernel distances and spectra as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, matrix, spectra = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_accuracies(bars, results)
    distances = [list(row.values()) for row in results["kernel_distance"].values()]
    KernelDistanceDisplay(distances, list(grams)).plot(matrix, cmap="Purples", values_format=".2g")
    matrix.set_title("Kernel distance")
    matrix.tick_params(labelsize=8)
    SpectrumDisplay({name: spectrum(K) for name, K in grams.items()}).plot(spectra)
    for line in spectra.lines:
        line.set_label(f"{line.get_label()} (effective rank {results['effective_rank'][line.get_label()]:.1f})")
    _legend_below(spectra, ncols=1)
    spectra.set_title("Kernel spectrum")
    with written_atomically(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _draw_accuracies(axes, results) -> None:
    names = list(results["accuracy"])[::-1]
    at = np.arange(len(names))
    for offset, kind in ((0.2, "clean"), (-0.2, "robust")):
        values = [results["accuracy"][name][kind] for name in names]
        drawn = axes.barh(at + offset, values, height=0.38, color=COLORS[kind], label=kind)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
    settings = results["settings"]
    axes.set_yticks(at, [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.set(xlim=(0, 1.12), xlabel="accuracy", title=f"{settings['data']}, PGD-{settings['test_steps']}")
    _legend_below(axes, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(axes, ncols) -> None:
    """Put the legend where it hides nothing."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=ncols, frameon=False)
