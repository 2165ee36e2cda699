"""
The picture of the README
=========================

The tangent kernels of a small convolutional network after benign and after adversarial training on digits, and the
accuracy under attack of plain kernel ridge regression on each.

Run ``python examples/readme_picture.py``; it writes ``docs/_static/readme.png``. A minute on 2 CPU cores.
"""

import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    CNN,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    RobustnessCurveDisplay,
    effective_rank,
    load_digits_images,
)

EPSILON, N_SHOWN, LARGEST = 0.15, 100, 60_000
OUT = Path(__file__).parents[1] / "docs" / "_static" / "readme.png"


def kernels_and_machines():
    """Train both networks; return their cosines on shown images, and kernel machines on them, with test data."""
    X, y = load_digits_images()
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, train_size=1000, test_size=300, random_state=0, stratify=y
    )
    shown = np.concatenate([np.flatnonzero(y_train == digit)[: N_SHOWN // 10] for digit in range(10)])
    settings = {"network": CNN(widths=(16, 32, 64), strides=(1, 2, 2)), "batch_size": 32, "max_epochs": 10}
    kernels, machines = {}, {}
    for name, attack in {"benign": None, "adversarial": PGD(EPSILON, n_steps=7)}.items():
        trainer = AdversarialKernelTrainer(**settings, attack=attack, random_state=0).fit(X_train, y_train)
        K = trainer.gram(X_train[shown])
        kernels[name] = K / np.sqrt(np.outer(K.diagonal(), K.diagonal()))
        machines[f"on the {name} kernel"] = EmpiricalNTKClassifier(FrozenEstimator(trainer)).fit(
            X_train[:400], y_train[:400]
        )
        print(f"{name}: effective rank {effective_rank(K):.1f}")
    return kernels, machines, X_test, y_test


def draw(kernels, machines, X, y):
    """Draw both kernels and the machines' accuracy under attack."""
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5), width_ratios=(1, 1, 1.15), layout="constrained")
    middles = np.arange(10) * (N_SHOWN // 10) + (N_SHOWN // 10 - 1) / 2
    for ax, (name, cosines) in zip(axes, kernels.items(), strict=False):
        drawn = ax.imshow(cosines, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        ax.set_xticks(middles, range(10))
        ax.set_yticks(middles, range(10))
        ax.tick_params(length=0)
        ax.set(title=f"kernel after {name} training", xlabel="digit")
    axes[0].set_ylabel("digit")
    figure.colorbar(drawn, ax=axes[:2], label="cosine of gradients", shrink=0.85)
    epsilons = [0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21]
    found = RobustnessCurveDisplay.from_estimator(
        machines, X, y, PGD(EPSILON, n_steps=20), epsilons=epsilons, ax=axes[2]
    )
    for name, values in found.accuracies.items():
        print(f"machine {name}, accuracy by epsilon:")
        print("  ".join(f"{e:g} {value:.3f}" for e, value in zip(epsilons, values, strict=True)))
    for line, color in zip(axes[2].lines, ("#2f6db3", "#c44e36"), strict=True):
        line.set(color=color, lw=2)
    axes[2].legend(frameon=False, loc="lower left")
    axes[2].set(title="a kernel machine on each", ylabel="accuracy under attack")
    axes[2].set_xlabel("size of the attack, L∞")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    figure = draw(*kernels_and_machines())
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    picture.seek(0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(options.out, optimize=True)
    size = options.out.stat().st_size
    print(f"{options.out}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"the picture may have {LARGEST:,} bytes at most")


if __name__ == "__main__":
    main()
