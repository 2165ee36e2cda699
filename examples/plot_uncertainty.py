"""
How sure is a kernel machine?
=============================

A kernel machine is the mean of a Gaussian process, so it knows how little the training data say about an input.
What does it say of clean digits, of attacked ones, and of images that are no digits? Can that be attacked, too?
"""

# %%
# A network is trained on 600 digits and frozen. :class:`~ntkrobust_sk.EmpiricalNTKClassifierCV` chooses its ridge
# by leave-one-out on 300 others, all ridges from one eigendecomposition. The temperature of its probabilities is
# fitted to the same leave-one-out scores.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from ntkrobust_sk import PGD, AdversarialKernelTrainer, EmpiricalNTKClassifierCV, load_digits_images, perturb

X, y = load_digits_images()
X_network, X_rest, y_network, y_rest = train_test_split(X, y, train_size=600, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X_rest, y_rest, train_size=300, random_state=0)
trainer = AdversarialKernelTrainer("mlp", max_epochs=20, batch_size=32, random_state=0).fit(X_network, y_network)
machine = EmpiricalNTKClassifierCV(FrozenEstimator(trainer), kernel="pseudo").fit(X_train, y_train)
print(f"alpha {machine.alpha_:g}, temperature {machine.temperature_:.3f}")
right = machine.predict(X_test) == y_test
print(f"accuracy {right.mean():.3f}, mean confidence {machine.predict_proba(X_test).max(1).mean():.3f}")

# %%
# Out of distribution are negatives of digits, and noise. ``ood_score`` is the share of the prior variance that
# training leaves. ``ood_model`` makes a detector of it, a function like any other: label 0 is "like the training
# data", label 1 "unlike". An attack on label 0 raises the score of digits, one on label 1 hides what is no digit.

shown = slice(0, 100)
digits, labels = X_test[shown], machine.predict(X_test[shown])
random, attack = np.random.default_rng(0), PGD(0.1, n_steps=20)
detector, zeros, ones = machine.ood_model(), np.zeros(100, int), np.ones(100, int)
images = {
    "digits": digits,
    "attacked: class": perturb(machine.calibrated_model(), digits, labels, attack),
    "attacked: raised": perturb(detector, digits, zeros, attack),
    "noise": random.uniform(size=digits.shape).astype(digits.dtype),
    "negatives": 1 - digits,
    "negatives, hidden": perturb(detector, 1 - digits, ones, attack),
}
scores = {name: machine.ood_score(some) for name, some in images.items()}
threshold = np.quantile(scores["digits"], 0.95)
for name, score in scores.items():
    confidence = machine.predict_proba(images[name]).max(1).mean()
    print(f"{name:<18} unlike {(score > threshold).mean():.2f}, mean confidence {confidence:.2f}")

# %%
# Left: the accuracy of digits whose confidence is about the same. The softmax of kernel scores is far too unsure;
# with its temperature it is right. Right: OOD scores, with 95 % of the clean digits left of the dashed line. An
# attack on the class hardly shows there, one on the score does, and no small change makes a digit of a negative.

figure, (left, axis) = plt.subplots(1, 2, figsize=(8.4, 3.7), layout="constrained", width_ratios=[1, 1.5])
left.plot([0, 1], [0, 1], "--", color="0.6", lw=1)
plain = np.exp(machine.decision_function(X_test))
for name, proba, colour in (
    ("softmax of scores", plain / plain.sum(1, keepdims=True), "#c44e36"),
    ("with the temperature", machine.predict_proba(X_test), "#2f6db3"),
):
    parts = np.array_split(np.argsort(proba.max(1)), 8)
    means = [[proba.max(1)[part].mean(), right[part].mean()] for part in parts]
    left.plot(*np.transpose(means), "o-", color=colour, label=name)
left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
left.legend(frameon=False, fontsize=9, loc="lower right")
for at, score in enumerate(reversed(scores.values())):
    axis.plot(score, at + random.uniform(-0.25, 0.25, len(score)), ".", color="#2f6db3", alpha=0.4, mew=0)
    axis.plot(np.median(score), at, "k|", ms=20, mew=2)
axis.set_yticks(range(6), list(scores)[::-1])
axis.axvline(threshold, color="0.4", ls="--", lw=1)
axis.set(xscale="log", xlabel="OOD score: share of the prior variance that is left")
for ax in (left, axis):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
