"""
What fewer digits cost
======================

GPUs multiply matrices faster with fewer digits. ``dtype`` of :func:`~ntkrobust_sk.gram` rounds tangent features to
the 10 binary digits of TF32, or to the 7 of bfloat16. A CPU gives the same numbers, so the error can be measured
without a GPU. How large is it, and does a kernel machine notice?
"""

# %%
# The kernel of a trained network of 200 training and 200 test images. Double precision for sums is the
# reference: there, features have the single precision of the parameters.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from ntkrobust_sk import CNN, AdversarialKernelTrainer, gram, load_digits_images, solve

X, y = load_digits_images()
X, X_rest, y, y_rest = train_test_split(X, y, train_size=400, random_state=0, stratify=y)
trainer = AdversarialKernelTrainer(CNN(widths=(16, 32), strides=(2, 2)), max_epochs=8, random_state=0)
model = trainer.fit(X_rest, y_rest).model_
dtypes = {"float64": "float64", "float32": None, "TF32": "tf32", "bfloat16": "bf16"}
kernels = {name: np.asarray(gram("trace", model, X, dtype=dtype)) for name, dtype in dtypes.items()}

# %%
# The error of each entry is measured in units of the two inputs' own: :math:`\sqrt{K(x, x)\, K(x', x')}`.

exact = kernels.pop("float64")
size = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
errors = {name: abs(K - exact) / size for name, K in kernels.items()}
for name, error in errors.items():
    print(f"{name:<9} median error {np.median(error):.1e}, largest {error.max():.1e}")

# %%
# Kernel ridge regression on each matrix, over the ridge, and how far its scores are from those of the reference. A
# test image can get another answer only if its margin, the distance of its two highest scores, is smaller than
# twice the error. Here all errors, also those of bfloat16, are below a fifth of most margins: no answer changes.

alphas, n, one_hot = np.logspace(-6, 1, 8), len(X) // 2, np.eye(10)


def scores_on(K):
    """Return the scores of the test images (a, n, 10), at each alpha."""
    return np.stack([K[n:, :n] @ solve(K[:n, :n], one_hot[y[:n]], alpha=alpha) for alpha in alphas])


reference = scores_on(exact)
margins = np.diff(np.sort(reference)[..., -2:])[..., 0]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
for (name, error), color in zip(errors.items(), ["#5a5a5a", "#2f6db3", "#c44e36"], strict=True):
    scores = scores_on(kernels[name])
    print(f"{name}: {np.sum(scores.argmax(2) != reference.argmax(2), 1)} of {n} answers differ, by alpha")
    axes[0].hist(np.maximum(error, 1e-10).ravel(), np.logspace(-10, -2, 81), color=color, alpha=0.7, label=name)
    axes[1].loglog(alphas, abs(scores - reference).max((1, 2)), "o-", color=color, label=f"{name}, largest error")
axes[1].loglog(alphas, np.quantile(margins, 0.05, axis=1), "k--", label="5 % of the margins are smaller")
axes[0].set(xscale="log", yticks=[], xlabel="error of an entry, relative to the inputs' own")
axes[0].set_title("Entries of the kernel")
axes[1].set(xlabel="alpha (ridge over the mean diagonal)", ylabel="error of a score, margin")
axes[1].set_title("Scores of a kernel machine")
for ax in axes:
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
