"""
The tangent kernel of a Flax network, layer by layer
====================================================

The tangent kernel of a network is a sum: one kernel for each of its parameter arrays. We train a Flax network
with batch norm on digits, benignly and adversarially. Which layers is its kernel made of, and which of them know
the classes?
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import linen
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    PGD,
    AdversarialKernelTrainer,
    Model,
    from_flax,
    gram,
    load_digits_images,
    target_alignment,
)

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=200, random_state=0, stratify=y)


# %%
# A network as users of Flax write it. Its argument ``train`` is set by training; kernels and attacks see batch
# norm with the statistics that training has collected.
class Network(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        for width, stride in ((16, 1), (32, 2)):
            x = linen.Conv(width, (3, 3), strides=stride, use_bias=False)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return linen.Dense(10)(x.reshape(len(x), -1))


network = from_flax(Network())
start = Model(network, network.init(jax.random.key(0), (8, 8, 1)))

# %%
# Both networks start from the same weights.
models = {"initial": start}
for name, attack in {"benign": None, "adversarial": PGD(0.15, n_steps=10)}.items():
    trainer = AdversarialKernelTrainer(start, attack=attack, max_epochs=6, random_state=0).fit(X_train, y_train)
    robust = trainer.robust_score(X_test, y_test, attack=PGD(0.15))
    print(f"{name}: accuracy {trainer.score(X_test, y_test):.2f}, under attack {robust:.2f}")
    models[name] = trainer.model_

# %%
# With ``by_layer=True``, :func:`~ntkrobust_sk.gram` gives one matrix for each parameter array. We add up those of
# one Flax module. For each: its share of the trace of the whole kernel, and the centred alignment of its kernel
# with the one-hot labels (1 is perfect). Here training moves the kernel from the last layer to the convolutions,
# and all layers come to know the classes better, a little less so under adversarial training.
shares, alignments = {}, {}
for name, model in models.items():
    kernels = {}
    for path, K in gram("trace", model, X_test, by_layer=True).items():
        module = path.split("'")[1]
        kernels[module] = kernels.get(module, 0) + K
    whole = kernels["whole kernel"] = sum(kernels.values())
    shares[name] = {module: np.trace(K) / np.trace(whole) for module, K in kernels.items()}
    alignments[name] = {m: target_alignment(K, np.eye(10)[y_test], centered=True) for m, K in kernels.items()}
modules = ["Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1", "Dense_0", "whole kernel"]

figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
for place, (name, color) in enumerate(zip(models, ["#8a8a8a", "#2f6db3", "#c44e36"], strict=True)):
    at = np.arange(len(modules)) + 0.27 * (place - 1)
    for ax, found in zip(axes, (shares, alignments), strict=True):
        ax.barh(at, [found[name][module] for module in modules], 0.25, color=color, label=name)
        ax.spines[["top", "right"]].set_visible(False)
axes[0].set(yticks=range(len(modules)), yticklabels=modules, ylim=(5.6, -0.6))
axes[0].set(xlabel="share of the kernel's trace", title="What the kernel is made of")
axes[1].set(xlabel="centred alignment with the classes", title="What knows the classes")
axes[0].legend(frameon=False, loc="upper right")
plt.show()
