"""
What an answer rests on
=======================

A kernel machine's score is a sum over its training images, so each image has a contribution of its own, for or
against a class. We look at the images that an answer rests on, before and after an attack has changed it, and then
take the most helpful ones away.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator

from ntkrobust_sk import (
    PGD,
    AdversarialKernelTrainer,
    AttributionDisplay,
    EmpiricalNTKClassifier,
    gram,
    load_digits_images,
    solve,
)

X, y = load_digits_images()
X_train, y_train, X_test, y_test = X[:400], y[:400], X[400:500], y[400:500]
trainer = AdversarialKernelTrainer("mlp", max_epochs=20, random_state=0).fit(X_train, y_train)
machine = EmpiricalNTKClassifier(FrozenEstimator(trainer), alpha=1e-2).fit(X_train, y_train)

# %%
# ``attribute`` gives the contribution of every training image to every score. With the intercept they sum to the
# decision function, up to rounding in single precision. They are far larger than their sum: much of what one image
# says for a class, others take back.
contributions = machine.attribute(X_test)
scores = machine.decision_function(X_test)
off = abs(contributions.sum(axis=1) + machine.intercept_ - scores).max()
print(f"contributions {contributions.shape} sum to the scores within {off:.1e}")
print(f"largest score {abs(scores).max():.2f}, largest contribution {abs(contributions).max():.0f}")

# %%
# Three test digits that an attack changes. In each row are the training images with the largest contributions to
# the score of the answer, and with the most negative ones. Before the attack the digit's own class speaks for it.
# Under attack another class does: images which were of no weight before. Under each image are its label and its
# contribution.
attack = PGD(0.2, n_steps=20)
attacked = machine.perturb(X_test, y_test, attack)
changed = np.flatnonzero((machine.predict(X_test) == y_test) & (machine.predict(attacked) != y_test))[:3]
AttributionDisplay.from_estimator(machine, X_test[changed], y_test[changed], attack=attack, labels=y_train)

# %%
# Are these the images that matter? In five draws of 200 training images and 100 test images we add up the
# contributions to the true classes' scores over the test images, take away the images with the largest sums, and
# fit the machine again. Taking away as many at random is the comparison. The test images here choose what is taken
# away, so this is a check of the contributions, not a way to choose training data.
K = gram("trace", trainer.model_, X[:600])
shares = [0.0, 0.1, 0.2, 0.4]
ways = ["most helpful", "random", "most harmful"]
true_scores = np.zeros((len(ways), 5, len(shares)))
for seed in range(5):
    rng = np.random.default_rng(seed)
    train, test = np.split(rng.permutation(600)[:300], [200])

    def fitted(rows):
        """Return the dual coefficients and the offset of a machine on some rows."""
        targets = np.eye(10)[y[rows]]
        return solve(K[np.ix_(rows, rows)], targets - targets.mean(0), alpha=1e-2), targets.mean(0)

    dual, _ = fitted(train)
    total = np.einsum("nm,mn->m", K[np.ix_(test, train)], dual[:, y[test]])
    orders = [np.argsort(-total), rng.permutation(200), np.argsort(total)]
    for i, order in enumerate(orders):
        for j, share in enumerate(shares):
            rows = train[order[round(share * 200) :]]
            dual, offset = fitted(rows)
            found = K[np.ix_(test, rows)] @ dual + offset
            true_scores[i, seed, j] = found[np.arange(100), y[test]].mean()

fell = true_scores[:, :, :1] - true_scores
for way, fall in zip(ways, fell[:, :, 2], strict=True):
    print(f"without the {way} fifth the true score falls by", ", ".join(f"{value:.3f}" for value in fall))

# %%
# The most helpful fifth matters more than any other fifth in each of the five draws. The most harmful images are
# about as dispensable as random ones: they speak against some test images and for others.
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for way, curves, color in zip(ways, true_scores, ["#c44e36", "#5a5a5a", "#2f6db3"], strict=True):
    ax.plot(np.multiply(shares, 100), curves.T, color=color, alpha=0.25)
    ax.plot(np.multiply(shares, 100), curves.mean(0), "o-", color=color, lw=2, label=f"{way} first")
ax.set(xlabel="training images taken away (%)", ylabel="mean score of the true class")
ax.set_title("Without the most helpful images the true scores fall")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
