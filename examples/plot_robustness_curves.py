"""
Robustness curves with intervals
================================

Accuracy under attack over the size of the attack, for two networks and for a kernel machine on the kernel that the
second one has learned. Bands are 95 % Clopper–Pearson intervals: they say how much the number of test images
leaves open.
"""

# %%
# A benignly and an adversarially trained network. The machine is kernel regression on the tangent kernel of the
# second one, and sees clean images only.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from ntkrobust_sk import FMN, MLP, PGD, load_digits_images, robustness_report
from ntkrobust_sk.displays import RobustnessCurveDisplay
from ntkrobust_sk.estimators import AdversarialKernelTrainer, EmpiricalNTKClassifier

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=1000, test_size=150, random_state=0)
settings = {"batch_size": 32, "learning_rate": 0.1, "max_epochs": 20, "random_state": 0}
network, attack = MLP(widths=(64,)), PGD(0.15, n_steps=7)
benign = AdversarialKernelTrainer(network, **settings).fit(X_train, y_train)
adversarial = AdversarialKernelTrainer(network, attack=attack, **settings).fit(X_train, y_train)
machine = EmpiricalNTKClassifier(FrozenEstimator(adversarial)).fit(X_train[:100], y_train[:100])

# %%
# :func:`~ntkrobust_sk.robustness_report` attacks at each radius what still stands, and also looks for the nearest
# wrong answers.

epsilons = [0.05, 0.1, 0.15, 0.2, 0.25]
classifiers = {"benign": benign, "adversarial": adversarial, "machine on the adversarial kernel": machine}
attacks = {"attacks": PGD(0.15, n_steps=20), "nearest": FMN(1.0, n_steps=30)}
reports = {
    name: robustness_report(classifier, X_test, y_test, epsilons, **attacks)
    for name, classifier in classifiers.items()
}
print(reports["adversarial"])

# %%
# Points are accuracies under PGD, with their intervals. Thin lines are the share of images for which neither
# attack has found a wrong answer within epsilon. For the networks it stays near the points up to the epsilon of
# training; at 0.2 each attack finds what the other one misses. For the machine it lies far below. PGD climbs the
# cross-entropy, FMN descends the margin, which is the stronger attack on scores of kernel regression. PGD alone
# would put the machine above the network whose kernel it has.

accuracies = {name: [report.clean_accuracy, *report.accuracies[0]] for name, report in reports.items()}
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
RobustnessCurveDisplay([0, *epsilons], accuracies).plot(ax)
grid = np.linspace(0, epsilons[-1], 200)
for line, report in zip(list(ax.lines), reports.values(), strict=True):
    ax.fill_between(epsilons, *report.intervals[0].T, color=line.get_color(), alpha=0.15, lw=0)
    ax.plot(grid, (report.distances > grid[:, None]).mean(1), color=line.get_color(), lw=0.9)
    line.set_linestyle("none")
ax.axvline(attack.epsilon, color="0.6", lw=1, ls=":")
ax.text(attack.epsilon + 0.002, 0.98, "epsilon in training", fontsize=9, color="0.35", va="top")
ax.legend(frameon=False, fontsize=9, loc="lower left")
ax.set(
    title="PGD alone overrates the kernel machine",
    xlabel="epsilon (L∞, with grey values from 0 to 1)",
)
ax.set_ylabel("accuracy on 150 test images")
plt.show()

# %%
# A report alone draws itself, with its intervals. Keywords go to matplotlib, as in scikit-learn's displays.

ax = reports["adversarial"].plot(line_kw={"linewidth": 2})
ax.set_title("The adversarial network under PGD")
plt.show()
