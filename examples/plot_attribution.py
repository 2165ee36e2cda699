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
# decision function. They are far larger than their sum: what one image says for a class, others take back.
contributions = machine.attribute(X_test)
scores = machine.decision_function(X_test)
off = abs(contributions.sum(axis=1) + machine.intercept_ - scores).max()
print(f"they sum to the scores within {off:.1e}")
print(f"largest score {abs(scores).max():.2f}, largest contribution {abs(contributions).max():.0f}")

# %%
# Three test digits that an attack changes. Each row has the training images with the largest contributions to
# the score of the answer, and those with the most negative ones. Before the attack the digit's own class speaks
# for it, under attack another one.
attack = PGD(0.2, n_steps=20)
attacked = machine.perturb(X_test, y_test, attack)
changed = np.flatnonzero((machine.predict(X_test) == y_test) & (machine.predict(attacked) != y_test))[:3]
AttributionDisplay.from_estimator(machine, X_test[changed], y_test[changed], attack=attack, labels=y_train)

# %%
# Are these the images that matter? In five draws of 200 training images and 100 test images we add up the
# contributions to the true classes' scores, take away the images with the largest sums, and fit the machine again;
# or as many at random. Test images choose what is taken away: this checks contributions, and chooses no data.
K = gram("trace", trainer.model_, X[:600])
shares, ways = [0.0, 0.1, 0.2, 0.4], ["most helpful", "random", "most harmful"]
true_scores = np.zeros((len(ways), 5, len(shares)))
for seed in range(5):
    rng = np.random.default_rng(seed)
    train, test = np.split(rng.permutation(600)[:300], [200])
    targets = np.eye(10)[y[train]] - np.eye(10)[y[train]].mean(0)
    dual = solve(K[np.ix_(train, train)], targets, alpha=1e-2)
    total = np.einsum("nm,mn->m", K[np.ix_(test, train)], dual[:, y[test]])
    for i, order in enumerate([np.argsort(-total), rng.permutation(200), np.argsort(total)]):
        for j, share in enumerate(shares):
            rows = train[order[round(share * 200) :]]
            offset = np.eye(10)[y[rows]].mean(0)
            dual = solve(K[np.ix_(rows, rows)], np.eye(10)[y[rows]] - offset, alpha=1e-2)
            true_scores[i, seed, j] = (K[np.ix_(test, rows)] @ dual + offset)[np.arange(100), y[test]].mean()

for way, fall in zip(ways, true_scores[:, :, 0] - true_scores[:, :, 2], strict=True):
    print(f"without the {way} fifth the true score falls by", ", ".join(f"{value:.3f}" for value in fall))

# %%
# The most helpful fifth matters more than a random one in each of the five draws. Without the most harmful images
# the scores hardly change.
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for way, curves, color in zip(ways, true_scores, ["#c44e36", "#5a5a5a", "#2f6db3"], strict=True):
    ax.plot(np.multiply(shares, 100), curves.T, color=color, alpha=0.25)
    ax.plot(np.multiply(shares, 100), curves.mean(0), "o-", color=color, lw=2, label=f"{way} first")
ax.set(xlabel="images taken away (%)", ylabel="mean score of the true class", title="Helpful images matter")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
