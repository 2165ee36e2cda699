"""What makes a network more robust: the paper's training against early stopping, TRADES, MART, AWP and averages.

Each way trains the same network from the same weights on the same examples, with three seeds. Accuracy under
attack is that under AutoAttack, on test examples that nothing was chosen by. Differences from the paper's training
are taken seed by seed.

    python examples/robust_training.py digits "few digits"          # ten minutes on two cores
    python examples/robust_training.py cifar10 --data-dir DIR       # a quarter of an hour
    python examples/robust_training.py --write            # writes the tables into docs/guide/train.md

Results are kept in ``docs/results/robust_training.jsonl``, one line for each fit; what is there is not measured
again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from documents import DOCS, write_part
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    AWP,
    CNN,
    MART,
    MLP,
    PGD,
    TRADES,
    AdversarialKernelTrainer,
    AutoAttack,
    load_cifar10,
    load_digits_images,
    robust_accuracy,
)

KEPT = DOCS / "results" / "robust_training.jsonl"
SEEDS = (0, 1, 2)
WAYS = {
    "the paper's (clean and adversarial step)": {},
    "the paper's, early stopping": {"early_stopping": True},
    "TRADES": {"loss": TRADES(6.0)},
    "MART": {"loss": MART(5.0)},
    "the paper's, weights perturbed (AWP 0.01)": {"weight_perturbation": AWP(0.01)},
    "the paper's, averaged weights": {"ema_decay": 0.995},
    "adversarial step alone (Madry et al.)": {"clean_step": False},
    "TRADES, AWP 0.005, averaged, early stopping": {
        "loss": TRADES(6.0),
        "weight_perturbation": AWP(0.005),
        "ema_decay": 0.995,
        "early_stopping": True,
    },
}
SETTINGS = {
    "digits": {
        "epsilon": 0.1,
        "n_train": 600,
        "n_test": 200,
        "in training": {"n_steps": 7, "step_size": 0.025},
        "attack": {},
        "common": {
            "network": MLP(widths=(64, 64)),
            "max_epochs": 60,
            "batch_size": 64,
            "learning_rate": 0.05,
        },
    },
    # where training images are learned by heart under attack
    "few digits": {
        "epsilon": 0.15,
        "n_train": 200,
        "n_test": 300,
        "in training": {"n_steps": 5, "step_size": 0.06},
        "attack": {},
        "common": {
            "network": MLP(widths=(256, 256)),
            "max_epochs": 150,
            "batch_size": 64,
            "optimizer": "adam",
            "learning_rate": 0.003,
            "learning_rate_schedule": "constant",
        },
    },
    # averaged to 16 x 16 pixels, so that 24 fits and attacks take a quarter of an hour on two cores
    "cifar10": {
        "epsilon": 4 / 255,
        "n_train": 1000,
        "n_test": 300,
        "in training": {"n_steps": 5, "step_size": 2 / 255},
        "attack": {"n_steps": 30, "n_queries": 300},
        "common": {
            "network": CNN(widths=(16, 32), strides=(2, 2)),
            "max_epochs": 25,
            "batch_size": 64,
            "optimizer": "adam",
            "learning_rate": 0.005,
        },
    },
}


def examples(data, seed, data_dir, n_train, n_test):
    """Return training and test images, others for each seed."""
    if data != "cifar10":
        X, y = load_digits_images()
        sizes = {"train_size": n_train, "test_size": n_test, "random_state": seed, "stratify": y}
        return train_test_split(X, y, **sizes)
    parts = []
    for split, n in (("train", n_train), ("test", n_test)):
        X, y = load_cifar10(data_dir, split=split)
        X = X.reshape(len(X), 16, 2, 16, 2, 3).mean((2, 4))
        parts.append(train_test_split(X, y, train_size=n, test_size=10, random_state=seed, stratify=y)[::2])
    (X_train, y_train), (X_test, y_test) = parts
    return X_train, X_test, y_train, y_test


def measure(data, way, seed, data_dir):
    """Train in one way with one seed, and return what it came to."""
    settings = SETTINGS[data]
    X_train, X_test, y_train, y_test = examples(data, seed, data_dir, settings["n_train"], settings["n_test"])
    epsilon, started = settings["epsilon"], time.monotonic()
    attack = PGD(epsilon, **settings["in training"])
    options = {"learning_rate_schedule": "piecewise"} | settings["common"] | {"attack": attack} | WAYS[way]
    trainer = AdversarialKernelTrainer(**options, random_state=seed).fit(X_train, y_train)
    trained = time.monotonic()
    return {
        "data": data,
        "way": way,
        "seed": seed,
        "clean": trainer.score(X_test, y_test),
        "robust": robust_accuracy(
            trainer, X_test, y_test, AutoAttack(epsilon, **settings["attack"]), random_state=0
        ),
        "on training": trainer.robust_score(X_train[:500], y_train[:500], attack),
        "best epoch": getattr(trainer, "best_iter_", trainer.n_iter_),
        "training s": round(trained - started, 1),
        "attack s": round(time.monotonic() - trained, 1),
        "trainer": repr(options),
    }


def kept():
    """Return what was measured before, by data, way and seed."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    return {(line["data"], line["way"], line["seed"]): line for line in map(json.loads, lines)}


def spread(values, sign=""):
    """Write a mean and the standard deviation over seeds, in percent."""
    return f"{100 * np.mean(values):{sign}.1f} ± {100 * np.std(values, ddof=1):.1f}"


def table(data, found):
    """Write one data set's results as Markdown."""
    lines = [
        "| training | clean | AutoAttack | above the paper's | seeds above | training images, PGD |",
        "|---|---|---|---|---|---|",
    ]
    plain = next(iter(WAYS))
    for way in WAYS:
        runs = [found[data, way, seed] for seed in SEEDS if (data, way, seed) in found]
        if len(runs) < len(SEEDS) or any((data, plain, seed) not in found for seed in SEEDS):
            continue
        gains = [run["robust"] - found[data, plain, run["seed"]]["robust"] for run in runs]
        columns = [spread([run[name] for run in runs]) for name in ("clean", "robust")]
        columns += (
            ["", ""] if way == plain else [spread(gains, "+"), f"{sum(np.array(gains) > 0)} of {len(SEEDS)}"]
        )
        columns += [spread([run["on training"] for run in runs])]
        lines.append(f"| {way} | {' | '.join(columns)} |")
    return "\n".join(lines)


def written(found):
    """Write all that was measured as a part of a page."""
    parts = []
    for data, settings in SETTINGS.items():
        if not any(key[0] == data for key in found):
            continue
        name = {"digits": "Digits", "few digits": "Few digits", "cifar10": "CIFAR-10 at 16 × 16"}[data]
        radius = "4/255" if data == "cifar10" else f"{settings['epsilon']:g}"
        parts.append(
            f"**{name}**: {settings['n_train']:,} images to train on, {settings['n_test']} to test on, {radius} "
            f"in the maximum norm, {settings['common']['max_epochs']} epochs.\n\n{table(data, found)}"
        )
    return "\n\n".join(parts)


def main():
    """Measure what has not been measured, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", choices=[*SETTINGS, []], help="what to measure")
    parser.add_argument("--data-dir", default=None, help="where CIFAR-10 is")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/guide/train.md")
    parser.add_argument("--kept", type=Path, default=None, help="another file of results")
    given = parser.parse_args()
    if given.kept is not None:
        globals()["KEPT"] = given.kept
    for data in given.data:
        for way in WAYS:
            for seed in SEEDS:  # which share compiled code
                if (data, way, seed) in kept():
                    continue
                line = measure(data, way, seed, given.data_dir)
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    f"{data} {seed} {way}: {line['clean']:.3f} {line['robust']:.3f} {line['training s']} s + "
                    f"{line['attack s']} s",
                    flush=True,
                )
    print(written(kept()))
    if given.write:
        write_part(DOCS / "guide" / "train.md", "robust_training.py", written(kept()))


if __name__ == "__main__":
    main()
