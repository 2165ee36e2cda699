"""
100,000 points by tangent features
==================================

The Gram matrix of 100,000 points has 10 billion entries. :class:`~ntkrobust_sk.TangentFeatures` needs no matrix:
random projections of a network's tangent features stand for its kernel, and any linear model on them is nearly a
kernel machine. The points are scikit-learn's digits, each in 75 versions: shifted by a pixel, and rotated a
little.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate, shift
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split

from ntkrobust_sk import MLP, TangentFeatures, load_digits_images

SHIFTS = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]


def versions(images, angles):
    """Return images rotated by each angle, and then shifted by a pixel in four directions or not at all."""
    turned = [rotate(images, angle, axes=(2, 1), reshape=False, order=1) for angle in angles]
    return np.stack([shift(some, (0, *by, 0), order=0) for some in turned for by in SHIFTS])


# %%
# Scans are split first, so that no version of a test scan is trained on. Test scans are moved too, by angles in
# between. All points come from 1,334 scans: they tell less than 100,000 scans would.
X, y = load_digits_images()
X, X_test, y, y_test = train_test_split(X, y, train_size=1334, random_state=0, stratify=y)
X = versions(X, [0, 2, -2, 4, -4, 6, -6, 8, -8, 10, -10, 12, -12, 14, -14])
moved, y_moved = versions(X_test, [-9, -3, 3, 9]), np.tile(y_test, 20)
print(f"{X.shape[0]} versions of {X.shape[1]} scans: {X.shape[0] * X.shape[1]:,} points")

# %%
# A linear classifier on the pixels, and the same one on tangent features of a network that was never trained: 128
# or 512 random projections stand for all of them. The first training points are the scans as they are; then come
# more and more versions of them.
accuracies, n_versions = {}, [1, 5, 15, 75]
for n_components in (None, 128, 512):
    start = time.perf_counter()
    if n_components is None:
        name, Z, Z_test = "64 pixels", X, moved
    else:
        name = f"{n_components} projections"
        features = TangentFeatures(MLP(widths=(128,)), n_components=n_components, random_state=0).fit(X[0])
        Z, Z_test = (features.transform(images.reshape(-1, 8, 8, 1)) for images in (X, moved))
    Z, Z_test = Z.reshape(*X.shape[:2], -1), Z_test.reshape(len(y_moved), -1)
    seconds = time.perf_counter() - start
    accuracies[name] = []
    for n in n_versions:
        classifier = RidgeClassifier().fit(Z[:n].reshape(n * len(y), -1), np.tile(y, n))
        accuracies[name].append(classifier.score(Z_test, y_moved))
    print(f"{name}: {Z.nbytes / 2**20:.0f} MiB, features in {seconds:.1f} s, accuracy {accuracies[name][-1]:.3f}")
print(f"the Gram matrix would take {(X.shape[0] * X.shape[1]) ** 2 * 4 / 2**30:.0f} GiB")

# %%
# Above: a scan and seven of its versions. Below: accuracy on test scans that were moved. More points help all
# three classifiers, and most the one with most features.
figure = plt.figure(figsize=(7, 6), layout="constrained")
grid = figure.add_gridspec(2, 8, height_ratios=[1, 4.5])
for place, version in enumerate([0, 1, 2, 3, 4, 30, 65, 70]):
    ax = figure.add_subplot(grid[0, place], xticks=[], yticks=[])
    ax.imshow(X[version, 3, ..., 0], cmap="gray_r")
ax = figure.add_subplot(grid[1, :])
for (name, values), style in zip(accuracies.items(), ["s-", "o-", "^-"], strict=True):
    color = {"s-": "#8a8a8a", "o-": "#e69f00", "^-": "#2f6db3"}[style]
    ax.semilogx(np.multiply(n_versions, len(y)), values, style, color=color, label=name)
ax.set(xlabel="training points", ylabel="accuracy on moved test scans")
ax.set_title("Ridge classifiers on pixels and on tangent features")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()
