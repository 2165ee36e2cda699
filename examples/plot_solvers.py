"""
What a preconditioner saves
===========================

Conjugate gradients solve kernel regression with products alone. How many they need depends on the kernel's
spectrum: tangent kernels have a few very large eigenvalues, and many small ones.
"""

# %%
# The kernel of a small network on 800 digits, and the system of kernel regression with little ridge.

import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ntkrobust_sk import MLP, ConjugateGradient, Model, gram, load_digits_images, solve

images, labels = load_digits_images()
X, Y = images[:800], np.eye(10)[labels[:800]]
network = MLP(widths=(64,), n_outputs=10)
K = gram("trace", Model(network, network.init(jax.random.key(0), (8, 8, 1))), X, dtype="float64")

# %%
# The residual after some iterations, all ten classes at once. ``rank`` is how many pivots the preconditioner has:
# columns of the kernel, chosen at random in proportion to what earlier ones leave of the diagonal.

ranks, counts = [1, 30, 100, 300], [1, 2, 5, 10, 15, 20, 30, 40, 60]
residuals = {}
with warnings.catch_warnings():
    # it is stopped early on purpose
    warnings.simplefilter("ignore", ConvergenceWarning)
    for rank in ranks:
        solvers = [ConjugateGradient(max_iter=n, rank=rank, tol=1e-12) for n in counts]
        reports = [solve(K, Y, alpha=1e-4, solver=solver, return_report=True)[1] for solver in solvers]
        residuals[rank] = [report.residual for report in reports]

# %%
# With one pivot, sixty iterations are not enough. With three hundred they are; but such a preconditioner costs as
# many columns of the kernel, and products with them in each iteration.

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
colors = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(ranks)))
for (rank, values), color in zip(residuals.items(), colors, strict=True):
    ax.semilogy(counts, values, "o-", color=color, markersize=4, label=f"{rank} pivot{'s' * (rank > 1)}")
ax.set(xlabel="iterations", ylabel="relative residual")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(title="preconditioner", frameon=False)
plt.show()
for rank, values in residuals.items():
    print(f"{rank} pivots: residual {values[-1]:.0e} after {counts[-1]} iterations")
