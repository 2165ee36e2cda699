"""
Certificates against attacks
============================

An attack shows how robust a classifier is at most, a certificate how robust it is at least. Randomised smoothing
certifies the vote of a classifier under Gaussian noise. We attack this very vote, and look at the gap between the
two, for a network trained on clean digits and for one trained on noisy ones.
"""

from dataclasses import dataclass

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm
from sklearn.model_selection import train_test_split

from ntkrobust_sk import PGD, AdversarialKernelTrainer, certify, load_digits_images, perturb

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=150, random_state=0, stratify=y)
sigma, n_samples, alpha, radii = 0.25, 10_000, 0.001, np.linspace(0, 1.25, 6)
everywhere = np.linspace(0, 1.25, 251)


# %%
# Training takes any function ``attack(model, x, y, key=key)``. This one adds the noise that the vote will see.
@dataclass(frozen=True)
class Noise:
    sigma: float

    def __call__(self, model, x, y, *, key):
        return x + self.sigma * jax.random.normal(key, x.shape, x.dtype)


# %%
# The vote has no gradient, so the attack climbs a smooth stand-in: the mean probability over 32 fixed draws of
# noise (Salman et al. 2019, `arXiv:1906.04584 <https://arxiv.org/abs/1906.04584>`_). Then the vote itself answers
# the attacked images. Certificates hold for inputs without bounds, so the attack has none.
noise = sigma * jax.random.normal(jax.random.key(0), (32, 1, 8, 8, 1))


def smoothed(model, x):
    probabilities = jax.nn.softmax(model((x + noise).reshape(-1, 8, 8, 1)))
    return jax.numpy.log(probabilities.reshape(len(noise), len(x), -1).mean(0))


# %%
# One certificate holds for all radii up to its own; the attack runs at six, and an image that has fallen at one
# counts as fallen at all larger ones. The truth lies in the grey: no attack brings the vote below the blue line,
# but for the error probability ``alpha`` of each certificate.
# Stronger attacks or more draws narrow the gap: no certificate reaches further than the dotted line, however
# robust the vote is.
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
trainings = {"trained on clean images": None, "trained on noisy images": Noise(sigma)}
for ax, (name, attack) in zip(axes, trainings.items(), strict=True):
    trainer = AdversarialKernelTrainer("mlp", attack=attack, clean_step=False, max_epochs=40, random_state=0)
    trainer.fit(X_train, y_train)
    found = certify(trainer, X_test, sigma=sigma, n_samples=n_samples, alpha=alpha)
    right = (found.labels == y_test) & ~found.abstains
    certified = np.mean(right & (found.radii >= everywhere[:, None]), axis=1)
    standing, attacked = np.ones(len(y_test), bool), []
    for radius in radii:
        vote = jax.tree_util.Partial(smoothed, trainer.model_)
        X_adv = perturb(vote, X_test, y_test, PGD(radius, n_steps=30, norm="l2", bounds=None))
        standing &= certify(trainer, X_adv, sigma=sigma, n_selection=1000, n_samples=1).labels == y_test
        attacked.append(standing.mean())
    print(f"{name}: at radius {radii[2]}, {certified[100]:.2f} certified, {attacked[2]:.2f} stand under attack")
    bound = np.interp(everywhere, radii, attacked)
    ax.fill_between(everywhere, certified, bound, color="#d9d9d9", label="not known")
    ax.plot(radii, attacked, "o-", color="#c44e36", label="right under attack")
    ax.plot(everywhere, certified, color="#2f6db3", label="certified")
    limit = sigma * norm.ppf(alpha ** (1 / n_samples))
    ax.axvline(limit, color="#5a5a5a", ls=":", label=f"limit of {n_samples:,} draws")
    ax.set(xlabel="L2 radius (images in [0, 1])", title=name, ylim=(0, 1.02))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("share of test images")
axes[1].legend(frameon=False)
plt.show()
