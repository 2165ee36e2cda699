"""
Scikit-learn's kernel machines on tangent kernels
=================================================

A Gram matrix is a NumPy array, so whatever takes ``kernel="precomputed"`` takes a tangent kernel. Here are
:class:`~sklearn.svm.SVC` and :class:`~sklearn.decomposition.KernelPCA` on the kernel of a network before
training, after benign training, and after adversarial training.
"""

import jax
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.decomposition import KernelPCA
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, Model, TraceNTK, as_model, gram, robust_accuracy

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype("float32") / 16, y, train_size=400, test_size=300, random_state=0, stratify=y
)
network = MLP(n_outputs=10)
start = Model(network, network.init(jax.random.key(0), (64,)))
models = {"before training": start}
for name, attack in {"benign training": None, "adversarial training": PGD(0.15, n_steps=10)}.items():
    trainer = AdversarialKernelTrainer(start, attack=attack, max_epochs=30, random_state=0)
    models[name] = trainer.fit(X_train, y_train).model_


# %%
# :func:`~ntkrobust_sk.gram` gives the matrix of the training images, and that of test against training images.
# Scikit-learn cuts a precomputed matrix into folds by itself, so ``GridSearchCV`` works as usual. Each kernel is
# divided by the mean of its diagonal: so the same values of ``C`` make sense for all. With the kernel as a
# function as well, :func:`~ntkrobust_sk.as_model` makes the machine a function of the image, which can be
# attacked.
@jax.jit
def kernel(model, scale, x, z):
    return TraceNTK()(model, x, z) / scale


scores = {}
for name, model in models.items():
    K_train, K_test = gram("trace", model, X_train), gram("trace", model, X_test, X_train)
    scale = K_train.diagonal().mean()
    search = GridSearchCV(SVC(kernel="precomputed"), {"C": [0.1, 1, 10, 100]}, cv=3).fit(K_train / scale, y_train)
    attacked = as_model(search.best_estimator_, kernel=jax.tree_util.Partial(kernel, model, scale), X_fit=X_train)
    robust = robust_accuracy(attacked, X_test[:100], y_test[:100], PGD(0.1, n_steps=10))
    scores[name] = f"SVC {search.score(K_test / scale, y_test):.2f}, under attack {robust:.2f}"
    print(f"{name}: C = {search.best_params_['C']}, {scores[name]}")

# %%
# The first two kernel principal components of the 300 test images, on which nothing was trained. Every image is
# drawn as its digit. No machine has seen an attacked image: what robustness it has comes with the kernel. Here
# the step from no training to benign training is the larger one, and the difference between benign and
# adversarial is within what 100 attacked images can tell.
figure, axes = plt.subplots(1, 3, figsize=(10, 4.1), layout="constrained")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    Z = KernelPCA(2, kernel="precomputed").fit_transform(gram("trace", model, X_test))
    for digit in range(10):
        ax.scatter(*Z[y_test == digit].T, marker=f"${digit}$", s=40, lw=0.2, color=f"C{digit}")
    ax.set(title=f"{name}\n{scores[name]}", xticks=[], yticks=[])
    ax.set(xlabel="first kernel component", ylabel="second kernel component")
plt.show()
