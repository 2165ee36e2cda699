"""What bf16 and TF32 products cost in accuracy: networks, kernels, attacks and training, against float32.

    python examples/bench_precision.py [--write]

Two minutes on 2 cores. A CPU rounds as a GPU does, so no GPU is needed. ``--write`` puts the tables into
docs/gpu.md; ``--toy`` runs the same at sizes that mean nothing.
"""

import argparse
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from documents import DOCS, machine, now, write_part
from sklearn.frozen import FrozenEstimator

from ntkrobust_sk import (
    CNN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    MixedPrecision,
    Model,
    Network,
    ResNet18,
    gram,
    load_digits_images,
    perturb,
)

PRECISIONS = ("bf16", "tf32")
EPSILON = 0.15
PACKAGES = ("ntkrobust_sk", "jax", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes
    ----------
    n_train, n_test : int
        Examples of training, and of scores.
    n_fit : int
        Training examples of kernel regression.
    n_rows : int
        Inputs of the first table.
    epochs, seeds, steps : int
        Of training; repetitions; of PGD in training.
    width : int or None
        Of the ResNet-18; None leaves it out.
    kernels : tuple of str
    """

    n_train: int = 1200
    n_test: int = 597
    n_fit: int = 400
    n_rows: int = 64
    epochs: int = 15
    seeds: int = 3
    steps: int = 5
    width: int | None = 8
    kernels: tuple[str, ...] = ("full", "trace", "pseudo")


TOY = Sizes(
    n_train=120, n_test=60, n_fit=40, n_rows=6, epochs=2, seeds=2, steps=2, width=None, kernels=("pseudo",)
)


def error(found, exact) -> str:
    """Write the largest error, and the median in brackets, in units of the largest entry."""
    found, exact = (np.asarray(values, np.float64) for values in (found, exact))
    errors = np.abs(found - exact) / np.abs(exact).max()
    return f"{errors.max():.1e} ({np.median(errors):.1e})"


@jax.jit
def scores(model, X):
    """Compute logits; compiled, as attacks and training are."""
    return model(X)


@jax.jit
def input_gradients(model, X, y):
    """Compute the gradient of each row's cross-entropy with respect to the row."""

    def loss(x):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), y[:, None], axis=1).sum()

    return jax.grad(loss)(X)


def errors(sizes: Sizes, X, y) -> list[dict]:
    """Compare logits, gradients and Gram entries of networks as they are drawn, at the first rows of X."""
    networks: dict[str, Network] = {"MLP": MLP(10), "CNN": CNN(10, widths=(16, 16), strides=(1, 2))}
    if sizes.width is not None:
        name = f"ResNet-18, width {sizes.width}"
        networks[name] = ResNet18(10, width=sizes.width, zero_last_layer=False)
    X, y, rows = X[: sizes.n_rows], jnp.asarray(y[: sizes.n_rows]), []
    for name, network in networks.items():
        model = Model(network, network.init(jax.random.key(0), X.shape[1:]))
        # programs for the others of a ResNet-18 take minutes to compile
        kernels = sizes.kernels if isinstance(network, MLP | CNN) else ("pseudo",)
        exact = {kernel: gram(kernel, model, X) for kernel in kernels}
        for precision in PRECISIONS:
            rounded = Model(MixedPrecision(network, precision), model.variables)
            row = {"network": name, "precision": precision, "logits": error(scores(rounded, X), scores(model, X))}
            row["input gradients"] = error(input_gradients(rounded, X, y), input_gradients(model, X, y))
            row |= dict.fromkeys((f"{kernel} kernel" for kernel in sizes.kernels), "")
            for kernel in kernels:
                row[f"{kernel} kernel"] = error(gram(kernel, rounded, X), exact[kernel])
            rows.append(row)
    return rows


def evaluated(trainers, X, y) -> list[dict]:
    """Attack networks that float32 has trained, in each precision; answers are its own, and those of float32.

    Differences are taken example by example: their mean over networks, and its standard error over examples.
    """
    attack, right = PGD(EPSILON, n_steps=20), {}
    for trainer in trainers:
        exact = trainer.model_
        for precision in ("float32", *PRECISIONS):
            network = exact.network if precision == "float32" else MixedPrecision(exact.network, precision)
            model = Model(network, exact.variables)
            X_adv = np.asarray(perturb(model, X, y, attack))
            for judge, judging in {precision: model, "float32": exact}.items():
                right.setdefault((precision, judge), []).append(np.asarray(scores(judging, X_adv)).argmax(1) == y)
    right = {pair: np.mean(found, axis=0) for pair, found in right.items()}
    rows = []
    for (precision, judge), found in right.items():
        difference = 100 * (found - right["float32", "float32"])
        of_mean = difference.std(ddof=1) / np.sqrt(len(y))
        rows.append(
            {
                "attacked in": precision,
                "answers in": judge,
                "robust accuracy": f"{100 * found.mean():.2f} %",
                "difference": f"{difference.mean():+.2f} ± {of_mean:.2f} points" if precision != "float32" else "",
            }
        )
    return rows


def mean_and_error(values) -> str:
    """Write a mean over seeds in percent, with its standard error."""
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1) / np.sqrt(len(values)):.2f} %"


def trained(sizes: Sizes, data) -> tuple[list[dict], list]:
    """Train in each precision, and regress on the kernels of float32's networks; return rows and networks."""
    X, y, X_test, y_test = data
    attack, rows, made = PGD(EPSILON, n_steps=20), [], {}
    settings = {"attack": PGD(EPSILON, n_steps=sizes.steps), "max_epochs": sizes.epochs}
    for precision in (None, *PRECISIONS):
        made[precision] = [
            AdversarialKernelTrainer(MLP(), precision=precision, random_state=seed, **settings).fit(X, y)
            for seed in range(sizes.seeds)
        ]
    machines = {
        precision: [
            EmpiricalNTKClassifier(FrozenEstimator(trainer), precision=precision).fit(
                X[: sizes.n_fit], y[: sizes.n_fit]
            )
            for trainer in made[None]
        ]
        for precision in (None, *PRECISIONS)
    }
    for name, fitted in (("adversarial training", made), ("regression on the kernels of float32", machines)):
        for precision, estimators in fitted.items():
            rows.append(
                {
                    "what": name,
                    "precision": precision or "float32",
                    "clean": mean_and_error([e.score(X_test, y_test) for e in estimators]),
                    "robust": mean_and_error([e.robust_score(X_test, y_test, attack) for e in estimators]),
                }
            )
    return rows, made[None]


def table(rows: list[dict]) -> str:
    """Write rows as a table in Markdown."""
    lines = [" | ".join(rows[0]), "|".join(["---"] * len(rows[0])), *(" | ".join(row.values()) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def main(arguments: list[str] | None = None) -> dict[str, list[dict]]:
    """Run the script, and return the rows of its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small sizes, for a test of this script")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gpu.md")
    options = parser.parse_args(arguments)
    if options.toy and options.write:
        parser.error("--toy prints figures that are not for the documents")
    sizes, (X, y) = TOY if options.toy else Sizes(), load_digits_images()
    X, y = np.asarray(X, np.float32), np.asarray(y)
    data = X[: sizes.n_train], y[: sizes.n_train], X[-sizes.n_test :], y[-sizes.n_test :]
    of_training, networks = trained(sizes, data)
    found = {
        "errors": errors(sizes, X, y),
        "evaluation": evaluated(networks, *data[2:]),
        "training": of_training,
    }
    how = {
        "errors": "Largest error, and in brackets the median, in units of the largest entry: "
        f"{sizes.n_rows} digits, networks as they are drawn. Where rounding turns a ReLU on or off, all gradients "
        "of that digit change: the largest errors are of single digits.",
        "evaluation": f"PGD-20 with ε = {EPSILON} on {sizes.n_test} test digits, {sizes.seeds} MLPs that were "
        "trained in float32.",
        "training": f"The same attack; means over {sizes.seeds} seeds with their standard errors. Training: "
        f"{sizes.n_train} digits, {sizes.epochs} epochs, PGD-{sizes.steps}. Regression: {sizes.n_fit} digits, "
        "trace kernel, alpha = 0.01.",
    }
    text = "\n\n".join(f"{how[name]}\n\n{table(rows)}" for name, rows in found.items())
    print(text)
    if options.write:
        head = f"`python examples/bench_precision.py --write`, {now()}, on {machine(PACKAGES)}."
        write_part(DOCS / "gpu.md", "bench_precision.py", f"{head}\n\n{text}")
    return found


if __name__ == "__main__":
    main()
