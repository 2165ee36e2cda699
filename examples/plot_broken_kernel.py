"""
A broken kernel, caught
=======================

A kernel of your own is a function ``kernel(model, x1, x2)``. Mistakes in it are easily made and hard to see: what
comes out still looks like a matrix. :mod:`ntkrobust_sk.testing` checks the laws that every tangent kernel keeps.
Here are a right kernel and four mistakes.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen

from ntkrobust_sk import Model, from_flax, load_digits_images, testing


class Network(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x.reshape(len(x), -1)))
        return linen.Dense(3)(jnp.tanh(x))


X = load_digits_images()[0][:6]
network = from_flax(Network())
model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))


# %%
# The right kernel: inner products of the gradients of all logits with respect to all parameters.
def gradients(model, x, train=False):
    params, state = model.variables
    jacobian = jax.jacrev(lambda params: model.network.apply(params, state, x, train=train)[0])(params)
    return jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)], axis=1)


def right(model, x1, x2):
    return gradients(model, x1) @ gradients(model, x2).T


# %%
# The mistakes: batch norm takes its statistics from whatever else is in the block; only one of two inputs is
# normalised; a distance stands in place of a product; the product is squared.
def batch_norm_in_training(model, x1, x2):
    return gradients(model, x1, train=True) @ gradients(model, x2, train=True).T


def half_a_cosine(model, x1, x2):
    return right(model, x1, x2) / (gradients(model, x1) ** 2).sum(1, keepdims=True)


def distance_for_product(model, x1, x2):
    return -((gradients(model, x1)[:, None] - gradients(model, x2)) ** 2).sum(2)


def squared(model, x1, x2):
    return right(model, x1, x2) ** 2


# %%
# Each check raises ``AssertionError`` and says what it found; ``check_kernel`` runs all of them. No mistake is
# caught by every check, and the one with batch norm, which is easily made, by a single one.
kernels = [right, batch_norm_in_training, half_a_cosine, distance_for_product, squared]
laws = ["symmetric", "positive_semidefinite", "permutation_equivariance", "tiling_invariance", "scaling"]
broken = np.zeros((len(kernels), len(laws)))
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for i, j in np.ndindex(broken.shape):
    try:
        getattr(testing, f"check_{laws[j]}")(kernels[i], model, X)
    except AssertionError as error:
        broken[i, j] = 1
        print(f"{kernels[i].__name__}, {laws[j]}: {str(error).split(': ')[-1]}")
    ax.text(j, i, "caught" if broken[i, j] else "passes", ha="center", va="center")
ax.imshow(broken, cmap="coolwarm", vmin=-1, vmax=2, aspect="auto")
ax.set_xticks(range(len(laws)), [law.replace("_", "\n") for law in laws])
ax.set_yticks(range(len(kernels)), [kernel.__name__.replace("_", " ") for kernel in kernels])
ax.set(title="What each check says of each kernel", xlabel="check", ylabel="kernel")
plt.show()
