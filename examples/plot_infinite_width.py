"""
The kernel of infinite width
============================

The wider a network, the less its tangent kernel at initialisation depends on the weights that were drawn.
:class:`~ntkrobust_sk.InfiniteNTK` is the limit, which neural-tangents computes in closed form. Here the kernels of
wider and wider networks approach it.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from ntkrobust_sk import PGD, EmpiricalNTKClassifier, InfiniteNTK, gram, kernel_distance, load_digits_images, solve

X, y = load_digits_images()
X = X.reshape(len(X), -1)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=150, test_size=150, random_state=0, stratify=y
)
Y_train = np.eye(10)[y_train] - np.eye(10)[y_train].mean(0)


def fully_connected(width):
    def network(stax):
        return stax.serial(*[stax.Dense(width), stax.Relu()] * 2, stax.Dense(10))

    return InfiniteNTK(network)


# %%
# One object is both: the kernel of infinite width, and by ``finite`` a network of the widths that are written
# down. Each of these is drawn eight times, and its kernel is solved for the classes of 150 digits.
limit = fully_connected(1)
n, both = len(X_train), np.concatenate([X_train, X_test])
K_limit = gram(limit, None, both)
widths, n_draws = [32, 128, 512, 2048], 8
errors = np.zeros((len(widths), n_draws))
accuracies = np.zeros((len(widths), n_draws))
for i, width in enumerate(widths):
    # made once: what is compiled for a network serves all its weights
    kernel = fully_connected(width)
    for seed in range(n_draws):
        model = kernel.finite(jax.random.key(seed), (64,))
        K = gram("trace", model, both)
        errors[i, seed] = np.linalg.norm(K - K_limit) / np.linalg.norm(K_limit)
        dual = solve(K[:n, :n], Y_train, alpha=1e-3)
        accuracies[i, seed] = ((K[n:, :n] @ dual).argmax(1) == y_test).mean()
slope = np.polyfit(np.log(widths), np.log(errors.mean(1)), 1)[0]
print("relative error:", ", ".join(f"{w}: {e:.3f}" for w, e in zip(widths, errors.mean(1), strict=True)))
print(f"it falls as width to the power {slope:.2f}")
print(f"distance of the widest kernel to the limit: {kernel_distance(K, K_limit):.1e}")

# %%
# The limit goes wherever a kernel goes. A kernel machine on it needs no network, and is attacked like any other.
infinite = EmpiricalNTKClassifier(kernel=limit, alpha=1e-3, random_state=0).fit(X_train, y_train)
attack = PGD(0.1, n_steps=10)
print(f"infinite width: accuracy {infinite.score(X_test, y_test):.3f}", end="")
print(f", under attack {infinite.robust_score(X_test, y_test, attack):.3f}")

# %%
# The error falls as one over the root of the width: each layer averages over its neurons. Machines on the kernels
# of wide networks answer as the one on the limit does; those on narrow ones depend on the draw.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
left.loglog(widths, errors, "o", color="#2f6db3", alpha=0.5, mew=0)
left.loglog(widths, errors.mean(1), color="#2f6db3", label="mean of 8 networks")
reference = errors.mean(1)[0] * np.sqrt(widths[0] / np.array(widths))
left.loglog(widths, reference, "--", color="#5a5a5a", label="1 / √width")
left.set(title="The kernel approaches its limit", ylabel="relative error of the Gram matrix")
right.semilogx(widths, accuracies, "o", color="#2f6db3", alpha=0.5, mew=0)
right.semilogx(widths, accuracies.mean(1), color="#2f6db3", label="mean of 8 networks")
right.axhline(infinite.score(X_test, y_test), ls="--", color="#5a5a5a", label="infinite width")
right.set(title="Kernel machines on these kernels", ylabel="test accuracy")
for ax in (left, right):
    ax.set(xlabel="width of the hidden layers", xticks=widths, xticklabels=widths)
    ax.minorticks_off()
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
