"""
Is a robust accuracy to be believed?
====================================

A scikit-learn network on digits: its accuracy under several attacks and radii, with intervals and distances; radii
that randomised smoothing certifies. Then a defence that only hides its gradients, a network whose inputs are
rounded, and the checks that find it out.

Run ``python examples/evaluate_robustness.py``; ``--write`` puts what it prints into ``docs/evaluation.md``. A few
minutes on 2 CPU cores.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from documents import DOCS, write_part
from sklearn.neural_network import MLPClassifier

from ntkrobust_sk import (
    PGD,
    AdversarialKernelTrainer,
    certified_accuracy,
    check_evaluation,
    load_digits_images,
    robustness_report,
)
from ntkrobust_sk.attacks.tiled import attack_in_tiles

N_TEST, RADII, SIGMA = 200, [0.02, 0.05, 0.1], 0.25
CERTIFIED = [0, 0.25, 0.5, 0.75]
ATTACK = PGD(0.1)


def rounded(model, x):
    """A defence that hides gradients: the network sees quarters."""
    return model(jnp.round(x * 4) / 4)


def standing(model, X, y):
    """Robust accuracy of a function, under the attack alone."""
    X_adv = attack_in_tiles(ATTACK, model, X, y, key=jax.random.key(0), rows=len(X))
    return (np.asarray(model(X_adv)).argmax(1) == y).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--write", action="store_true", help="put the results into docs/evaluation.md")
    options = parser.parse_args()
    X, y = load_digits_images()
    X = X.reshape(len(X), -1)
    X_train, y_train, X_test, y_test = X[:-N_TEST], y[:-N_TEST], X[-N_TEST:], y[-N_TEST:]

    classifier = MLPClassifier((32,), max_iter=300, random_state=0).fit(X_train, y_train)
    sections = {"report": str(robustness_report(classifier, X_test, y_test, RADII))}
    certified = certified_accuracy(classifier, X_test, y_test, CERTIFIED, sigma=SIGMA)
    pairs = zip(CERTIFIED, certified, strict=True)
    sections["certificates"] = "\n".join(f"radius {radius}: {share:.3f}" for radius, share in pairs)

    model = AdversarialKernelTrainer("mlp", random_state=0).fit(X_train, y_train).model_
    hidden = jax.tree_util.Partial(rounded, model)
    alone, behind = (standing(f, X_test, y_test) for f in (model, hidden))
    checks = check_evaluation(hidden, X_test, y_test, ATTACK)
    sections["checks"] = f"robust accuracy alone {alone:.3f}, with rounded inputs {behind:.3f}\n\n{checks}"

    for name, text in sections.items():
        print(f"{name}\n\n{text}\n")
        if options.write:
            write_part(DOCS / "evaluation.md", name, f"```\n{text}\n```")


if __name__ == "__main__":
    main()
