"""The main job in minutes: does adversarial training act through the kernel?

Trains a small network benignly and adversarially, takes both empirical NTKs, regresses on each in closed
form, and trains adversarially on the frozen adversarial kernel (Loo et al. 2022, arXiv:2210.12030).
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from sklearn.frozen import FrozenEstimator
from tqdm.auto import tqdm

from .._files import explained, require_file, write_atomically, written_atomically
from .._locks import locked
from .._validation import LARGEST_SEED, integer, number
from .._validation import path as check_path
from ..analysis.metrics import effective_rank, kernel_distance
from ..attacks.pgd import PGD
from ..datasets.splits import load_splits
from ..datasets.subsets import chosen_indices, no_more
from ..estimators.kernel_machines import EmpiricalNTKClassifier
from ..estimators.trainer import AdversarialKernelTrainer


@dataclass(frozen=True)
class Demo:
    """Settings of one run.

    Attributes
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"}
    data_dir : str or None
        Folder with the canonical files; not needed for digits.
    network : str
        Name of the network, as :class:`~ntkrobust_sk.AdversarialKernelTrainer` takes it.
    n_train, n_test : int
        Images for training and for scoring, balanced over the classes (digits: all that remain).
    n_kernel : int
        Training images for kernels and closed-form regression.
    epsilon : float
        Radius of the L∞ ball, in [0, 1] pixel units.
    train_steps, test_steps : int
        PGD steps in training and in scoring.
    max_epochs : int
        Of each stage.
    alpha : float
        Ridge of the closed-form regression.
    random_state : int
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
        for name in ("n_train", "n_test", "n_kernel", "train_steps", "test_steps"):
            integer(name, getattr(self, name))
        integer("max_epochs", self.max_epochs, low=0)
        integer("random_state", self.random_state, low=0, high=LARGEST_SEED)
        for name in ("epsilon", "alpha"):
            number(name, getattr(self, name), low=0)


PRESETS = {
    "digits": Demo(),
    "mnist": Demo("mnist", n_train=2000, n_test=300, n_kernel=500, epsilon=0.1, test_steps=20, max_epochs=10),
    "fashion-mnist": Demo(
        "fashion-mnist", n_train=2000, n_test=300, n_kernel=500, epsilon=0.05, test_steps=20, max_epochs=10
    ),
    "cifar10": Demo(
        "cifar10", n_train=2000, n_test=300, epsilon=4 / 255, train_steps=7, test_steps=20, max_epochs=8
    ),
}


def run_demo(demo: Demo, out: str | os.PathLike) -> bool:
    """Run the demo; write ``results.json`` and ``figure.png`` to ``out``; print the table.

    Returns
    -------
    bool
        Whether both claims hold: the adversarial kernel's closed-form regression is at least 0.25 more robust
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
    with locked(out):
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

        shared = {"max_epochs": demo.max_epochs, "random_state": demo.random_state, "verbose": 1}
        trainers = {
            "initial": AdversarialKernelTrainer(demo.network, **shared | {"max_epochs": 0}),
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

    results = _results(demo, accuracy, grams, time.perf_counter() - start)
    _write_json(out / "results.json", results)
    draw(results, grams, out / "figure.png")
    print(table(results))
    print(f"Results and figure: {out.resolve()}")
    return all(claim["holds"] for claim in results["claims"])


def _results(demo, accuracy, grams, seconds) -> dict:
    names = list(grams)
    benign, adversarial = (accuracy[f"{kind} kernel, closed form"] for kind in ("benign", "adversarial"))
    gain = adversarial["robust"] - benign["robust"]
    clean_gap = adversarial["clean"] - benign["clean"]
    frozen = accuracy["adversarial kernel, frozen, adversarial training"]["robust"]
    network = accuracy["adversarial network"]["robust"]
    return {
        "settings": asdict(demo),
        "accuracy": accuracy,
        "kernel_distance": {a: {b: kernel_distance(grams[a], grams[b]) for b in names} for a in names},
        "effective_rank": {name: effective_rank(K) for name, K in grams.items()},
        "claims": [
            {
                "claim": "closed-form regression is at least 0.25 more robust on the adversarial than on the "
                "benign kernel, at clean accuracies within 0.05",
                "measured": f"{gain:+.3f} robust, {clean_gap:+.3f} clean",
                "holds": bool(gain >= 0.25 and abs(clean_gap) <= 0.05),
            },
            {
                "claim": "adversarial training on the frozen adversarial kernel is at least as robust as the "
                "adversarially trained network",
                "measured": f"{frozen:.3f} against {network:.3f} robust",
                "holds": bool(frozen >= network),
            },
        ],
        "seconds": round(seconds, 1),
        "hardware": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def table(results: dict) -> str:
    """The results as text."""
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
        verdict = "HOLDS" if claim["holds"] else "DOES NOT HOLD"
        lines.append(f"{verdict}: {claim['claim']} ({claim['measured']})")
    return "\n".join([*lines, ""])


def _write_json(path: Path, results: dict) -> None:
    """Written beside and moved, so that a file that is there is whole."""
    write_atomically(path, json.dumps(results, indent=2).encode() + b"\n")


def draw(results: dict, grams: dict, path: Path) -> None:
    """Accuracies, kernel distances and spectra as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, matrix, spectra = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_accuracies(bars, results)
    _draw_distances(matrix, results, figure)
    colors = {"initial": "#8a8a8a", "benign": "#3b6fb6", "adversarial": "#c8553d"}
    for name, K in grams.items():
        eigenvalues = np.linalg.eigvalsh(K.astype(float))[::-1]
        rank = results["effective_rank"][name]
        label = f"{name} (effective rank {rank:.1f})"
        spectra.loglog(np.arange(1, len(K) + 1), eigenvalues / eigenvalues.sum(), label=label, color=colors[name])
    spectra.set(xlabel="index", ylabel="share of the trace", title="Kernel spectrum", ylim=(1e-7, 1))
    spectra.legend(fontsize=8, loc="lower left", frameon=False)
    with written_atomically(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _draw_accuracies(axes, results):
    names = list(results["accuracy"])[::-1]
    at = np.arange(len(names))
    for offset, kind, color in ((0.2, "clean", "#9db4c9"), (-0.2, "robust", "#274b6d")):
        values = [results["accuracy"][name][kind] for name in names]
        drawn = axes.barh(at + offset, values, height=0.38, color=color, label=kind)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
    settings = results["settings"]
    axes.set_yticks(at, [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.set(xlim=(0, 1.12), xlabel="accuracy", title=f"{settings['data']}, PGD-{settings['test_steps']}")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_distances(axes, results, figure):
    names = list(results["kernel_distance"])
    values = np.array([[results["kernel_distance"][a][b] for b in names] for a in names])
    image = axes.imshow(values, cmap="Purples", vmin=0)
    for i, j in np.ndindex(values.shape):
        shade = "white" if values[i, j] > values.max() / 2 else "black"
        axes.text(j, i, f"{values[i, j]:.3f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8, rotation=90, va="center")
    axes.set_title("Kernel distance")
    figure.colorbar(image, ax=axes, shrink=0.7)


def settings_for(data: str, **given) -> Demo:
    """The preset of a data set with whatever is given (not None) in its place."""
    return replace(PRESETS[data], **{name: value for name, value in given.items() if value is not None})
