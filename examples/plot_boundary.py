"""
The decision boundary under attack
==================================

One plane through a handwritten digit and two adversarial examples of it: one against a network that was trained
benignly, one against a network that was trained adversarially. The plane is coloured by what each network answers.
"""

# %%
# The two networks differ in their training only. :class:`~ntkrobust_sk.AdversarialKernelTrainer` without an attack
# trains benignly.

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import distance_transform_edt
from sklearn.model_selection import train_test_split

from ntkrobust_sk import CNN, PGD, AdversarialKernelTrainer, ImageGridDisplay, load_digits_images

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=1000, test_size=100, random_state=0)
epsilon, settings = 0.15, {"batch_size": 32, "max_epochs": 10, "random_state": 0}
attack, network = PGD(epsilon, n_steps=40), CNN(widths=(16, 32, 64), strides=(1, 2, 2))
trainers = {
    name: AdversarialKernelTrainer(network, attack=in_training, **settings).fit(X_train, y_train)
    for name, in_training in {"benign": None, "adversarial": PGD(epsilon, n_steps=7)}.items()
}

# %%
# ``perturb`` attacks all test images. Shown is the first one that falls against the first network and stands
# against the second one, as far as this attack tells.

X_adv = {name: trainer.perturb(X_test, y_test, attack) for name, trainer in trainers.items()}
right = {name: trainer.predict(X_adv[name]) == y_test for name, trainer in trainers.items()}
for name, trainer in trainers.items():
    print(f"{name}: accuracy {trainer.score(X_test, y_test):.2f}, under attack {right[name].mean():.2f}")
chosen = np.flatnonzero(~right["benign"] & right["adversarial"])[0]
x, label = X_test[chosen], y_test[chosen]

# %%
# The first axis leads from the digit to its first adversarial example. The second one is orthogonal to it and
# leads towards the other example. Lengths are Euclidean, with grey values from 0 to 1.

first, second = (X_adv[name][chosen] - x for name in trainers)
axis_1 = first / np.linalg.norm(first)
axis_2 = second - np.vdot(second, axis_1) * axis_1
axis_2 /= np.linalg.norm(axis_2)
across, up = np.meshgrid(*[np.linspace(-2.2, 2.2, 121, dtype=x.dtype)] * 2)
moves = across[..., None, None, None] * axis_1 + up[..., None, None, None] * axis_2
reach = abs(moves).max((2, 3, 4))
places = {
    name: (np.vdot(z, axis_1), np.vdot(z, axis_2)) for name, z in zip(trainers, (first, second), strict=True)
}

# %%
# Blue is where the answer is right, red where it is wrong; the numbers are the answers. Inside the dashed line no
# pixel changes by more than epsilon. On the left a wrong answer reaches into it, on the right the boundary stays
# away. The plane also holds points with grey values below 0 or above 1, where no attack may go.

figure, axes = plt.subplots(1, 3, figsize=(8, 3.7), layout="constrained", width_ratios=[5, 5, 1.6])
for (name, trainer), ax in zip(trainers.items(), axes[:2], strict=True):
    answers = trainer.predict((x + moves).reshape(-1, *x.shape)).reshape(across.shape)
    ax.contourf(across, up, answers == label, levels=[-0.5, 0.5, 1.5], colors=["#f3d2c8", "#cfe0f2"])
    ax.contour(across, up, reach, levels=[epsilon], colors="black", linestyles="--", linewidths=1.2)
    for digit in np.unique(answers):
        ax.contour(across, up, answers == digit, levels=[0.5], colors="0.35", linewidths=0.7)
        depth = distance_transform_edt(np.pad((answers == digit) & (reach > epsilon), 1))[1:-1, 1:-1]
        if depth.max() > 5:
            at = np.unravel_index(depth.argmax(), depth.shape)
            ax.text(across[at], up[at], digit, fontsize=13, color="0.25", ha="center", va="center")
    ax.plot(0, 0, "ko", ms=7, mfc="white", label="digit")
    for (place, at), marker in zip(places.items(), "^s", strict=True):
        ax.plot(*at, f"k{marker}", ms=7, mfc="white", label=f"against {place}")
    ax.set(title=f"{name} training", aspect="equal", xlabel="towards the first example")
axes[0].set_ylabel("towards the second example")
images = {"digit": x, "against\nbenign": x + first, "against\nadversarial": x + second}
ImageGridDisplay({name: image[None] for name, image in images.items()}).plot(axes[2]).ax_.tick_params(labelsize=9)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
plt.show()
