"""
Adversarial images in four norms
================================

What the nearest adversarial image looks like depends on how distance is measured. :class:`~ntkrobust_sk.FMN`
searches for it in the L∞, L2 and L1 norms, and :class:`~ntkrobust_sk.SigmaZero` by the number of changed pixels.
"""

# %%
# A small network, trained against attacks in L∞, and the first test image of each digit that it answers rightly.

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from ntkrobust_sk import CNN, FMN, PGD, AdversarialKernelTrainer, ImageGridDisplay, SigmaZero, load_digits_images

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=1000, random_state=0, stratify=y)
network, attack = CNN(widths=(16, 32, 64), strides=(1, 2, 2)), PGD(0.15, n_steps=7)
trainer = AdversarialKernelTrainer(network, attack=attack, batch_size=32, max_epochs=10, random_state=0)
right = trainer.fit(X_train, y_train).predict(X_test) == y_test
x = X_test[[np.flatnonzero(right & (y_test == digit))[0] for digit in range(10)]]
labels = np.arange(10)

# %%
# ``nearest`` gives the nearest wrongly answered points that an attack finds, whatever its epsilon is.

attacks = {"L∞": FMN(1.0), "L2": FMN(1.0, norm="l2"), "L1": FMN(1.0, norm="l1"), "L0": SigmaZero(64)}
nearest = {
    norm: np.asarray(attack.nearest(trainer.model_, x, labels, key=jax.random.key(0))[0])
    for norm, attack in attacks.items()
}

# %%
# Median lengths of the changes: each row is an attack, each column a measure. The smallest number of each column
# stands on the diagonal, where the attack has minimised what is measured.

orders = {"L∞": np.inf, "L2": 2, "L1": 1, "L0": 0}
print("minimised" + "".join(f"{norm:>8}" for norm in orders))
for norm, points in nearest.items():
    changes = (points - x).reshape(len(x), -1)
    lengths = [np.median(np.linalg.norm(changes, ord=order, axis=1)) for order in orders.values()]
    print(f"{norm:<9}" + "".join(f"{length:8.2f}" for length in lengths))

# %%
# The images, with the network's answers in their corners. In L∞ a little changes nearly everywhere; in L1 and L0 a
# few pixels change a lot. Training was against L∞ alone: a handful of pixels is enough to get around it.

side, (figure, ax) = x.shape[1] + 1, plt.subplots(figsize=(7.5, 4), layout="constrained")
ImageGridDisplay({"digits": x, **nearest}, titles=labels).plot(ax)
for row, points in enumerate([x, *nearest.values()]):
    for column, answer in enumerate(trainer.predict(points)):
        disc = {"boxstyle": "circle,pad=0.15", "fc": "#a9cdf0" if answer == column else "#f0a58c", "ec": "none"}
        ax.text(column * side + 6.9, row * side + 6.6, answer, fontsize=9, ha="center", va="center", bbox=disc)
ax.set_title("Nearest adversarial images: a blue answer is right, a red one wrong", fontsize=11)

# %%
# The changes alone: orange pixels become darker, purple ones brighter, white ones stay.

colours = plt.get_cmap("PuOr")
changes = {norm: colours(0.5 + (points - x)[..., 0] / 2)[..., :3] for norm, points in nearest.items()}
figure, ax = plt.subplots(figsize=(7.5, 3.3), layout="constrained")
ImageGridDisplay(changes, titles=labels).plot(ax)
ax.set_title("Changes of grey values, from −1 (orange) to +1 (purple)", fontsize=11)
plt.show()
