"""
Transfer between dynamics
=========================

A network can go on training in three ways: with all its parameters (standard dynamics), linearised around where
it is, or linearised without the logits that it has there (centred). Do adversarial examples against one of these
fool the others too?
"""

import matplotlib.pyplot as plt
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from ntkrobust_sk import (
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    TransferDisplay,
    load_digits_images,
    transfer_matrix,
)

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=200, random_state=0, stratify=y)

# %%
# Stage 1: a network is trained for three epochs. From there, three models go on by the three dynamics. A fourth
# one is kernel ridge regression on the same tangent kernel, in closed form. A network from another seed shares
# nothing with them but the data.
first = AdversarialKernelTrainer("mlp", max_epochs=3, random_state=0).fit(X_train, y_train)
models = {}
for name, dynamics in {"standard": "standard", "linearised": "linearized", "centred": "centered"}.items():
    models[name] = AdversarialKernelTrainer(
        first.model_, dynamics=dynamics, learning_rate=0.01, max_epochs=20, random_state=1
    ).fit(X_train, y_train)
models["kernel ridge"] = EmpiricalNTKClassifier(FrozenEstimator(first), alpha=1e-2).fit(X_train, y_train)
models["another seed"] = AdversarialKernelTrainer("mlp", max_epochs=20, random_state=2).fit(X_train, y_train)

# %%
# Every model is attacked, and every model answers the examples made on each. The diagonal is the usual robust
# accuracy. Here the three dynamics share their adversarial examples almost entirely. Kernel ridge regression has
# the same kernel, and yet shares fewer of them than the network of another seed does: a common kernel alone does
# not make examples transfer, the solution on it counts too.
found = transfer_matrix(models, X_test, y_test, PGD(0.1, n_steps=20))
for name, clean in zip(found.names, found.clean, strict=True):
    print(f"{name}: clean accuracy {clean:.3f}")
figure, ax = plt.subplots(figsize=(6.6, 5.2), layout="constrained")
TransferDisplay(found.matrix, found.names).plot(ax, cmap="cividis")
ax.set_title("Accuracy on adversarial examples, epsilon 0.1")
plt.show()
