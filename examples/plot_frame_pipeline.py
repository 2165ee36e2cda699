"""
Passengers of the Titanic, attacked by the names of columns
===========================================================

A data frame of text, integers and missing values. A pipeline fills, scales and encodes its columns; gradient
boosting takes them as they are. How many answers hang on some years of age, or on one category?
"""

# %%
# The passengers are read from the copy in scikit-learn's tests; ``fetch_openml("titanic", version=1)`` gives the
# same. Attacked are some of whom all is known: a column with missing values stays as it is.

import gzip
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import sklearn
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ntkrobust_sk import PGD, Box, Square, perturb, robust_accuracy

warnings.filterwarnings("ignore", "attacks leave these columns")
path = f"{sklearn.__path__[0]}/datasets/tests/data/openml/id_40945/data-v1-dl-16826755.arff.gz"
with gzip.open(path, "rt") as file:
    lines = [line.split() for line in iter(file.readline, "@data\n")]
    frame = pd.read_csv(file, names=[line[1].strip("'") for line in lines if "@attribute" in line], na_values="?")
numbers, categories = ["age", "sibsp", "parch", "fare"], ["sex", "embarked", "pclass"]
test = frame.dropna(subset=numbers + categories).sample(120, random_state=0).index
X, y = frame[numbers + categories], frame["survived"]
X_train, X_test, y_train, y_test = X.drop(index=test), X.loc[test], y.drop(index=test), y.loc[test]
filled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
columns = make_column_transformer((filled, numbers), (OneHotEncoder(), categories))
boosting = HistGradientBoostingClassifier(categorical_features=categories, max_iter=30, random_state=0)
models = {"logistic regression": make_pipeline(columns, LogisticRegression()), "gradient boosting": boosting}
models = {name: model.fit(X_train, y_train) for name, model in models.items()}

# %%
# A :class:`~ntkrobust_sk.Box` says by name which columns may change, between which values, and which categories
# may move: age and fare by epsilon, and then class or port of one's ticket, too. Categories are tried; numbers are
# attacked through the pipeline's gradients, or by random search, since gradient boosting has none.

either = Box.from_data(X, mask=["age", "fare"], categories=["embarked", "pclass"], n_changes=1)
boxes = {"numbers": Box.from_data(X, mask=["age", "fare"]), "numbers, one category": either}
epsilons = [0, 2, 5, 10]
attacks = {
    "logistic regression": lambda epsilon, box: PGD(epsilon, 10, bounds=box),
    "gradient boosting": lambda epsilon, box: Square(epsilon, 50, bounds=box),
}
curves = {
    (model, name): [robust_accuracy(models[model], X_test, y_test, attack(e, box)) for e in epsilons]
    for model, attack in attacks.items()
    for name, box in boxes.items()
}

# %%
# :func:`~ntkrobust_sk.perturb` gives a frame back, with the dtypes of the one that it got, and with categories
# that the encoder knows. The bars count passengers whose right answer is now a wrong one, by what has moved.

counts = {}
for model, estimator in models.items():
    X_adv = perturb(estimator, X_test, y_test, attacks[model](10, either))
    turned = (estimator.predict(X_test) == y_test) & (estimator.predict(X_adv) != y_test)
    moved = (X_adv != X_test).loc[turned, ["embarked", "pclass"]]
    counts[model] = [*moved.sum(), (~moved.any(axis=1)).sum()]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
style = dict(zip(models, ["#2f6db3", "#c44e36"], strict=True))
for (model, name), curve in curves.items():
    mark = "o:" if name == "numbers" else "s-"
    axes[0].plot(epsilons, curve, mark, color=style[model], label=f"{model}: {name}")
axes[0].set(title="Accuracy under attack", xlabel="epsilon (years, pounds)", ylabel="accuracy", ylim=(0, 1))
axes[0].legend(frameon=False, fontsize=8, loc="lower left")
shown, title = pd.DataFrame(counts, ["port", "class", "numbers alone"]), "Turned by ±10, and moving"
shown.plot.bar(ax=axes[1], color=style, legend=False, rot=0, ylabel="passengers", title=title)
plt.show()
