"""
Machines on one layer at a time
===============================

``params=`` restricts a tangent kernel to some layers. We train a network on digits, benignly and adversarially,
and fit one kernel machine on each of its layers: which is enough to classify, and which resists an attack?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    gram,
    parameter_names,
    target_alignment,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, train_size=500, test_size=200, random_state=0, stratify=y
)
attack = PGD(0.1, n_steps=10)

# %%
# A layer is the beginning of its parameters' names. The kernels of all layers add up to the whole kernel.
network = MLP(n_outputs=10, widths=(64, 64, 64))
layers = {f"layer {i + 1}": f"dense_{i}" for i in range(4)} | {"all": None}
trained = {}
for name, own in {"benign": None, "adversarial": attack}.items():
    trainer = AdversarialKernelTrainer(network, attack=own, max_epochs=30, random_state=0).fit(X_train, y_train)
    trained[name] = FrozenEstimator(trainer)
model = trained["benign"].model_
print(parameter_names(model))
parts = sum(gram("trace", model, X_test, params=params) for params in layers.values() if params)
whole = gram("trace", model, X_test)
print("largest difference of the sum to the whole, relative:", f"{abs(parts - whole).max() / whole.max():.1e}")

# %%
# One machine for each layer: attacks follow the gradient of its own kernel, and no other layer's gradients are
# formed. The alignment is that of the layer's kernel with the one-hot labels of the test rows, centred.
found = {}
for name, source in trained.items():
    for layer, params in layers.items():
        machine = EmpiricalNTKClassifier(source, params=params, alpha=1e-2).fit(X_train, y_train)
        K = machine.gram(X_test)
        found[name, layer] = (
            target_alignment(K, np.eye(10)[y_test], centered=True),
            machine.score(X_test, y_test),
            machine.robust_score(X_test, y_test, attack),
        )
        numbers = "alignment {:.2f}, accuracy {:.3f}, under attack {:.3f}".format(*found[name, layer])
        print(f"{name:<12} {layer:<8} {numbers}")

# %%
# One bar for each kind of training.
titles = ("centred alignment with the classes", "accuracy", "accuracy under attack, ε = 0.1")
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
for place, (name, color) in enumerate(zip(trained, ["#2f6db3", "#c44e36"], strict=True)):
    at = np.arange(len(layers)) + 0.36 * (place - 0.5)
    for ax, of, title in zip(axes, range(3), titles, strict=True):
        ax.barh(at, [found[name, layer][of] for layer in layers], 0.34, color=color, label=name)
        ax.set(xlabel=title, xlim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
axes[0].set(yticks=range(len(layers)), yticklabels=list(layers), ylim=(len(layers) - 0.4, -0.6))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
plt.show()
