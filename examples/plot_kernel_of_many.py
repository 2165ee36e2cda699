"""
Measuring a kernel whose matrix is never formed
===============================================

The paper measures kernels on a few hundred images. By :func:`~ntkrobust_sk.gram_operator` products with a kernel
take time in proportion to the number of images, so its measures can be estimated on many more.
"""

# %%
# All 1,797 digits, and each of them moved by a pixel in four directions: 8,985 images. Their kernel has 81 million
# entries.

import matplotlib.pyplot as plt
import numpy as np

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    effective_rank,
    gram_operator,
    load_digits_images,
    target_alignment,
)
from ntkrobust_sk.analysis import Probes

images, labels = load_digits_images()
X = np.concatenate([images, *(np.roll(images, step, axis) for step in (-1, 1) for axis in (1, 2))])
order = np.random.default_rng(0).permutation(len(X))
X, y = X[order], np.tile(labels, 5)[order]
settings = {"max_epochs": 5, "random_state": 0}
models = {
    name: AdversarialKernelTrainer(MLP(widths=(32,)), attack=attack, **settings).fit(X, y).model_
    for name, attack in {"benign": None, "adversarial": PGD(0.1, n_steps=5)}.items()
}

# %%
# The operator multiplies some random columns. What comes out are floats that know their standard error: Hutch++
# finds the directions in which the kernel is largest, where sums are exact, and estimates the rest.

sizes, probes = [512, 2048, len(X)], Probes(n_range=8, n_random=24)
Y = np.eye(10)[y]
ranks, alignments = {}, {}
for name, model in models.items():
    operators = [gram_operator("trace", model, X[:n]) for n in sizes]
    ranks[name] = [effective_rank(K, "participation", probes=probes) for K in operators]
    alignments[name] = [
        target_alignment(K, Y[:n], centered=True, probes=probes) for K, n in zip(operators, sizes, strict=True)
    ]

# %%
# Bars are three standard errors. From 512 images on the measures hardly change, so a few hundred are enough to
# tell these two kernels apart. Without the constant part, more of a kernel is outside of the few directions in
# which sums are exact, and alignments are known less well.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, found, label in zip(axes, (ranks, alignments), ("participation ratio", "centred alignment"), strict=True):
    for (name, values), color in zip(found.items(), ["#2f6db3", "#c44e36"], strict=True):
        bars = [3 * value.standard_error for value in values]
        ax.errorbar(sizes, values, bars, fmt="o-", color=color, capsize=3, label=name)
    ax.set(xscale="log", xlabel="number of images", ylabel=label, title=f"{label.capitalize()} of the kernel")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
plt.show()
