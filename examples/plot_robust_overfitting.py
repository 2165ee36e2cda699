"""
Robust overfitting
==================

A network that is trained adversarially for long learns its training images under attack by heart: there its loss
goes to zero. On other images the loss under attack falls at first and then rises again, far above where it was
(Rice et al. 2020). Early stopping on held-out images under attack keeps the network of the best epoch.
"""

# %%
# Two hundred digits to train on, and a wide network. ``partial_fit`` trains for one epoch, so that the network can
# be attacked in between: on the images that it is trained on, and on those that it never sees.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, load_digits_images

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=200, test_size=300, random_state=0, stratify=y
)
settings = {
    "network": MLP(widths=(256, 256)),
    "attack": PGD(0.15, n_steps=5),
    "clean_step": False,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "random_state": 0,
}
sets = {"training images": (X_train, y_train), "other images": (X_test, y_test)}
trainer = AdversarialKernelTrainer(**settings)
epochs, curves = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256], {name: [] for name in sets}
for epoch in range(1, epochs[-1] + 1):
    trainer.partial_fit(X_train, y_train, classes=np.arange(10))
    for name, (images, labels) in sets.items() if epoch in epochs else ():
        p = trainer.predict_proba(trainer.perturb(images, labels))
        curves[name].append((log_loss(labels, p), accuracy_score(labels, p.argmax(1))))

# %%
# Early stopping holds out a fifth of the training images, by class, and looks at them after each epoch, under the
# same attack. What is left to train on is less: that is its price.

stopped = AdversarialKernelTrainer(
    **settings, max_epochs=epochs[-1], early_stopping=True, validation_fraction=0.2, n_iter_no_change=60
).fit(X_train, y_train)
p = stopped.predict_proba(stopped.perturb(X_test, y_test))
kept = log_loss(y_test, p), accuracy_score(y_test, p.argmax(1))
last = curves["other images"][-1]
print(f"the last of {epochs[-1]} epochs: loss {last[0]:.2f}, accuracy {last[1]:.2f} under attack")
print(f"epoch {stopped.best_iter_}, which was kept: loss {kept[0]:.2f}, accuracy {kept[1]:.2f}")

# %%
# Accuracy under attack does not fall here, as it does on larger data; the loss tells that the network has become
# sure of wrong answers.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for ax, values, title in zip(axes, (0, 1), ("cross-entropy under attack", "accuracy under attack"), strict=True):
    for name, curve in curves.items():
        ax.plot(epochs, [point[values] for point in curve], marker=".", label=name)
    ax.plot(stopped.best_iter_, kept[values], "k*", markersize=11, label="other images, early stopping")
    ax.set(xscale="log", xlabel="epochs", title=title)
axes[1].set_ylim(0, 1.02)
axes[1].legend(frameon=False, loc="lower right")
plt.show()
