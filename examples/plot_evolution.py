"""
The kernel moves while a network trains
=======================================

The tangent kernel of a network is measured again and again while it trains, benignly and adversarially, from
three seeds. Is the adversarially trained kernel another one, and when does it change?
"""

# %%
# :func:`~ntkrobust_sk.train` is a generator: it yields the state of training at the epochs that are asked for.
# Each batch is one update for each of ``attacks``: on clean images alone, or on clean images and then on attacked
# ones.

import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from ntkrobust_sk import CNN, PGD, Clean, Model, gram, kernel_distance, load_digits_images, train
from ntkrobust_sk.displays import EvolutionDisplay, KernelDistanceDisplay

X, y = load_digits_images()
regimes = {"benign": (Clean(),), "adversarial": (Clean(), PGD(0.15, n_steps=5))}
network, epochs = CNN(10, widths=(16, 32, 64), strides=(1, 2, 2)), [0, 0.5, 1, 2, 3, 4, 6, 8, 12, 16]
settings = {"optimizer": optax.sgd(0.05, momentum=0.9), "epochs": epochs, "batch_size": 32}


def kernels_of(seed, attacks):
    """Train from a seed, and return the kernel of the same 100 images at each of the epochs."""
    start = Model(network, network.init(jax.random.key(seed), (8, 8, 1)))
    states = train(start, X[:1000], y[:1000], key=jax.random.key(100 + seed), attacks=attacks, **settings)
    return [gram("trace", state.model, X[1000:1100]) for state in states]


kernels = {name: [kernels_of(seed, attacks) for seed in range(3)] for name, attacks in regimes.items()}

# %%
# :func:`~ntkrobust_sk.kernel_distance` is one minus the cosine of two kernels: it does not see their scale. Left,
# how far each kernel has moved from its start. Right, how far the kernels of two runs are apart at the same epoch:
# two seeds of one regime, or two regimes from one seed. Lines are means of three, and bands their range. In the
# first epochs two seeds differ as much as two regimes do; later the regimes lie further apart than the seeds.


def curve(pairs):
    """Return the epochs, and the distance of the kernels of each pair of runs at each of them."""
    return epochs, np.array([[kernel_distance(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs])


to_start = {name: curve([(run, [run[0]] * len(run)) for run in runs]) for name, runs in kernels.items()}
apart = {f"two seeds, {name}": curve(itertools.combinations(runs, 2)) for name, runs in kernels.items()}
apart["benign and adversarial"] = curve(zip(*kernels.values(), strict=True))
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
EvolutionDisplay(to_start, "kernel distance to the start").plot(axes[0])
EvolutionDisplay(apart, "kernel distance of two runs").plot(axes[1])
axes[0].set_title("How far each kernel has moved")
axes[1].set_title("How far two kernels are apart")

# %%
# All states of one seed against each other. Along the diagonal each state meets itself. The light square in the
# benign block is a kernel that has come to rest; the adversarial one still moves.

states = [*kernels["benign"][0], *kernels["adversarial"][0]]
matrix = [[kernel_distance(a, b) for b in states] for a in states]
figure, ax = plt.subplots(figsize=(6, 4.8), layout="constrained")
groups = [(name, len(epochs)) for name in regimes]
KernelDistanceDisplay(matrix, [f"{epoch:g}" for epoch in epochs] * 2, groups).plot(ax)
ax.set_title("Kernel distances between all states of one seed")
plt.show()
