"""
A pipeline on a data frame, attacked within a box
=================================================

Patients with diabetes in a data frame. A pipeline scales the numbers, encodes the category, and classifies. The
attack may change two columns only, within the ranges that were observed: how much hangs on them?
"""

# %%
# Scikit-learn's diabetes data, as they were measured. Has the disease progressed more than in the median patient?
# ``sex`` is a category of two codes.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from ntkrobust_sk import PGD, Box, perturb, robust_accuracy

X, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X["sex"] = X["sex"].astype("category")
y = np.where(progression > progression.median(), "more", "less")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=150, random_state=0, stratify=y)
numbers = X.columns.drop("sex")
columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["sex"]))
pipeline = make_pipeline(columns, SVC()).fit(X_train, y_train)
print(f"accuracy {pipeline.score(X_test, y_test):.2f}")

# %%
# A :class:`~ntkrobust_sk.Box` says which columns may change, and between which values: here the body mass index,
# for which epsilon is in kg/m², and the blood pressure, for which it is in mmHg. A category never changes; the
# warning that says so is switched off. Epsilon is one number for both: to allow more of one,
# change its unit.

warnings.filterwarnings("ignore", "attacks leave these columns")
low, high = (bound.reindex(X.columns, fill_value=0) for bound in (X[numbers].min(), X[numbers].max()))


def attack(epsilon, free):
    """Return an attack on these columns alone."""
    return PGD(epsilon, n_steps=20, bounds=Box(low, high, mask=X.columns.isin(free)))


allowed = {"blood pressure": ["bp"], "body mass index": ["bmi"], "both": ["bmi", "bp"]}
epsilons = np.linspace(0, 5, 6)
curves = {
    name: [robust_accuracy(pipeline, X_test, y_test, attack(epsilon, free)) for epsilon in epsilons]
    for name, free in allowed.items()
}

# %%
# :func:`~ntkrobust_sk.perturb` gives a frame back, with the columns of the one that it got. Each arrow is a
# patient whose right answer the attack has turned into a wrong one.

X_adv = perturb(pipeline, X_test, y_test, attack(2.0, ["bmi", "bp"]))
print(X_adv.compare(X_test, result_names=("attacked", "given")).head(3).round(2).to_string())
turned = (pipeline.predict(X_test) == y_test) & (pipeline.predict(X_adv) != y_test)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for (name, curve), style in zip(curves.items(), ["s:", "^--", "o-"], strict=True):
    axes[0].plot(epsilons, curve, style, label=name)
axes[0].set(title="Accuracy under attack", xlabel="epsilon (kg/m², mmHg)", ylabel="accuracy", ylim=(0, 1))
axes[0].legend(frameon=False, fontsize=9, loc="lower left", title="may change", alignment="left")
axes[1].plot(X_test["bmi"], X_test["bp"], ".", color="0.75", label="all test patients")
for answer, color in {"more": "#c44e36", "less": "#2f6db3"}.items():
    start, end = (frame.loc[turned & (y_test == answer), ["bmi", "bp"]].T.to_numpy() for frame in (X_test, X_adv))
    way = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.007, "headwidth": 4}
    axes[1].quiver(*start, *(end - start), color=color, label=f"no longer “{answer}”", **way)
axes[1].set(title="Answers turned by ±2", xlabel="body mass index (kg/m²)", ylabel="blood pressure (mmHg)")
axes[1].legend(frameon=False, fontsize=9, loc="lower right")
plt.show()
