"""
Spectrum and eigenfeatures of two kernels
=========================================

The tangent kernels of a benignly and of an adversarially trained network: how their eigenvalues fall, how robust
their leading eigenfeatures are, and what each kernel takes for a digit.
"""

# %%
# Two networks that differ in their training only, and their kernels of the same 200 test images.

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, load_digits_images
from ntkrobust_sk.analysis import class_eigenvectors, effective_rank, eigenfeature_images, ntk_features
from ntkrobust_sk.displays import ImageGridDisplay, SpectrumDisplay

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=1000, random_state=0, stratify=y)
X_fit, X_test, y_fit, y_test = X_test[:200], X_test[200:300], y_test[:200], y_test[200:300]
network, attack = MLP(widths=(128, 128)), PGD(0.15, n_steps=7)
settings = {"batch_size": 32, "max_epochs": 20, "random_state": 0}
trainers = {
    name: AdversarialKernelTrainer(network, attack=in_training, **settings).fit(X_train, y_train)
    for name, in_training in {"benign": None, "adversarial": attack}.items()
}
kernels = {name: trainer.gram(X_fit) for name, trainer in trainers.items()}

# %%
# Kernel regression is a sum of predictors, one for each eigenvector. :func:`~ntkrobust_sk.ntk_features` scores
# each of them by itself, on clean images and on images that are attacked through it. The adversarial kernel has
# the larger effective rank, and its features lose less under attack.

features = {}
for name, trainer in trainers.items():
    data = trainer.model_, X_fit, y_fit, X_test, y_test, attack
    features[name] = ntk_features("trace", *data, n_features=10, key=jax.random.key(0), K=kernels[name])

spectra = {
    f"{name}, effective rank {effective_rank(K):.1f}": np.linalg.eigvalsh(K)[::-1] for name, K in kernels.items()
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
SpectrumDisplay(spectra).plot(axes[0])
axes[0].set(title="Spectra of 200 test images", xlabel="index of the eigenvalue")
for (name, found), color in zip(features.items(), ["#2f6db3", "#c44e36"], strict=True):
    index = np.arange(1, len(found.usefulness) + 1)
    axes[1].plot(index, found.usefulness, "o-", color=color, label=name)
    axes[1].plot(index, found.robustness, "v:", color=color, mfc="white")
axes[1].set(
    title="Eigenfeatures: clean ●, attacked ▽",
    xlabel="index of the eigenfeature",
    ylabel="accuracy",
    ylim=(0, 0.4),
)
axes[1].legend(frameon=False)
axes[1].spines[["top", "right"]].set_visible(False)

# %%
# Each output has a kernel of its own. :func:`~ntkrobust_sk.eigenfeature_images` starts from grey and looks for
# the image whose gradient points most along an eigenvector: here the second one, since above the second
# eigenfeature is more useful than the first. Printed is the mean correlation with the mean images of the
# digits. The benign kernels of all ten digits share two kinds of images; those of the adversarial kernels
# differ more, and are more like their digits.

images = {"mean image": np.stack([X_train[y_train == digit].mean(0) for digit in range(10)])}
for name, trainer in trainers.items():
    coefficients = class_eigenvectors(trainer.gram(X_fit, kernel="class"), y_fit, index=1)
    images[name] = eigenfeature_images(trainer.model_, X_fit, coefficients, n_steps=60).images
    pairs = zip(images[name], images["mean image"], strict=True)
    print(f"{name}: {np.mean([np.corrcoef(image.ravel(), mean.ravel())[0, 1] for image, mean in pairs]):.2f}")
figure, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
ImageGridDisplay(images, titles=range(10)).plot(ax)
ax.set_title("Images along the second eigenvector of the kernel of each class", fontsize=11)
plt.show()
