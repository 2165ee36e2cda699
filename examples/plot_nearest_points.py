"""
Nearest adversarial points
==========================

How far is the nearest image that is answered wrongly? :class:`~ntkrobust_sk.FMN` looks for it, image by image. We
compare a benignly and an adversarially trained network. Their distances tell the robust accuracy at every radius.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    FMN,
    PGD,
    AdversarialKernelTrainer,
    load_digits_images,
    minimal_perturbations,
    perturb,
    robust_accuracy,
)

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=200, random_state=0, stratify=y)
trained = {}
for name, attack in {"benign": None, "adversarial": PGD(0.5, n_steps=7, norm="l2")}.items():
    trainer = AdversarialKernelTrainer("mlp", attack=attack, max_epochs=30, random_state=0)
    trained[name] = trainer.fit(X_train, y_train)

# %%
# Ten test digits that both networks get right, and the nearest images found with another answer, in the L2 norm.
# What is found is an upper bound: the true nearest image may be nearer.
nearest = FMN(epsilon=10.0, norm="l2")
right = np.all([trainer.predict(X_test) == y_test for trainer in trained.values()], axis=0)
chosen = [np.flatnonzero(right & (y_test == digit))[0] for digit in range(10)]
images = X_test[chosen]
figure, axes = plt.subplots(3, 10, figsize=(9, 3.7), layout="constrained")
for row, name in zip(axes, ["as scanned", *trained], strict=True):
    found = perturb(trained[name], images, y_test[chosen], nearest) if name in trained else images
    answers = trained[name].predict(found) if name in trained else y_test[chosen]
    for ax, image, before, answer in zip(row, found, images, answers, strict=True):
        ax.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        distance = f" at {np.linalg.norm(image - before):.2f}" if name in trained else ""
        ax.set(xticks=[], yticks=[], xlabel=f"{answer}{distance}")
    row[0].set_ylabel(name)
figure.suptitle("The nearest image with another answer, and its L2 distance")

# %%
# The same for all 200 test images; what is answered wrongly as it is has distance 0. The share of images that are
# further away than a radius is the robust accuracy at that radius. :class:`~ntkrobust_sk.PGD` at three radii is a
# check: it searches a given ball and may miss what is in it. Here it lies on the curves or a little above: FMN
# finds more.
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
for (name, trainer), color in zip(trained.items(), ["#2f6db3", "#c44e36"], strict=True):
    distances = np.sort(minimal_perturbations(trainer, X_test, y_test, nearest))
    print(f"{name}: accuracy {trainer.score(X_test, y_test):.3f}, median distance {np.median(distances):.2f}")
    ax.step([0, *distances], 1 - np.arange(201) / 200, where="post", color=color, label=f"{name}, nearest points")
    radii = [0.25, 0.5, 1.0]
    accuracies = [robust_accuracy(trainer, X_test, y_test, PGD(radius, 40, norm="l2")) for radius in radii]
    ax.plot(radii, accuracies, "o", color=color, mfc="white", label=f"{name}, PGD")
ax.set(xlabel="L2 radius (images in [0, 1])", ylabel="share of images that stand", xlim=(0, 1.5), ylim=(0, 1))
ax.set_title("Distances tell the robust accuracy at every radius")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
