"""Random pipelines of scikit-learn with random parameters, edits: no model differs without a word.

    python examples/fuzz_adapters.py                  # 2,000 pipelines, a few minutes
    python examples/fuzz_adapters.py -n 300 --seed 7

Each is fitted on random data, dense or sparse, in single or in double precision, and then perhaps changed: a
parameter is set or a fitted attribute is edited. Then either ``as_model`` raises TypeError, or its model gives
the estimator's own scores on rows that neither has seen. Ends with an error and the seed if one differs.
"""

from __future__ import annotations

import argparse
import collections
import sys
import warnings

import numpy as np
import scipy.sparse as sp
from scipy.special import log_softmax
from sklearn import decomposition, linear_model, preprocessing, svm
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.gaussian_process import GaussianProcessClassifier, kernels
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline

from ntkrobust_sk import as_model
from ntkrobust_sk.execution.precision import enable_x64

KERNELS = ["linear", "poly", "rbf", "sigmoid"]


def transformer(random):
    """One of those that as_model knows, with random parameters."""
    flip = lambda: bool(random.integers(2))  # noqa: E731
    made = [
        lambda: preprocessing.StandardScaler(with_mean=flip(), with_std=flip(), copy=flip()),
        lambda: preprocessing.MinMaxScaler((0, random.uniform(0.5, 2)), clip=flip()),
        lambda: preprocessing.RobustScaler(with_centering=flip(), with_scaling=flip(), unit_variance=flip()),
        lambda: preprocessing.MaxAbsScaler(),
        lambda: preprocessing.Normalizer(str(random.choice(["l1", "l2", "max"]))),
        lambda: preprocessing.PolynomialFeatures(2, interaction_only=flip(), include_bias=flip()),
        lambda: decomposition.PCA(int(random.integers(1, 3)), whiten=flip()),
        lambda: decomposition.KernelPCA(2, kernel=str(random.choice([*KERNELS, "cosine"])), gamma=0.3, degree=2),
        lambda: Nystroem(str(random.choice([*KERNELS, "laplacian"])), gamma=0.3, n_components=6, random_state=0),
        lambda: RBFSampler(gamma=0.3, n_components=6, random_state=0),
        lambda: SelectKBest(k=2),
        lambda: VarianceThreshold(0.0),
        lambda: LinearDiscriminantAnalysis(solver=str(random.choice(["svd", "eigen"]))),
        lambda: "passthrough",
    ]
    return made[random.integers(len(made))]()


def composed(random):
    """A transformer, a few next to each other with weights, or a pipeline of two."""
    kind = random.integers(6)
    if kind == 0:
        parts = [(str(i), transformer(random), list(random.permutation(4)[:2])) for i in range(2)]
        rest = "passthrough" if random.integers(2) else "drop"
        return ColumnTransformer(parts, remainder=rest, transformer_weights=weights(random), sparse_threshold=0)
    if kind == 1:
        parts = [(str(i), transformer(random)) for i in range(2)]
        return FeatureUnion(parts, transformer_weights=weights(random))
    if kind == 2:
        return Pipeline([(str(i), transformer(random)) for i in range(2)])
    return transformer(random)


def weights(random):
    """Draw weights for the parts 0 and 1, for one of them, or none."""
    return random.choice([None, {"0": 3.0}, {"0": 0.2, "1": 5.0}, {"1": 0.0}])


def last(random):
    """Draw an estimator that answers."""
    kernel = str(random.choice(KERNELS))
    # libsvm may go on for hours on large numbers
    svc = {
        "kernel": kernel,
        "gamma": random.choice(["scale", "auto"]),
        "coef0": 0.3,
        "degree": 2,
        "max_iter": 2000,
    }
    made = [
        lambda: linear_model.LogisticRegression(fit_intercept=bool(random.integers(2))),
        lambda: linear_model.RidgeClassifier(),
        lambda: linear_model.SGDClassifier(random_state=0, average=bool(random.integers(2))),
        lambda: LinearDiscriminantAnalysis(),
        lambda: svm.SVC(**svc, decision_function_shape=str(random.choice(["ovr", "ovo"]))),
        lambda: svm.NuSVC(**svc, nu=0.1),
        lambda: svm.LinearSVC(multi_class=str(random.choice(["ovr", "crammer_singer"])), random_state=0),
        lambda: MLPClassifier((5,), activation=str(random.choice(["relu", "tanh"])), max_iter=5, random_state=0),
        lambda: GaussianProcessClassifier(kernels.RBF() + kernels.WhiteKernel(), optimizer=None),
        lambda: linear_model.Ridge(),
        lambda: svm.SVR(**svc),
        lambda: KernelRidge(kernel=kernel, gamma=0.3, coef0=0.2, degree=2),
        lambda: MLPRegressor(hidden_layer_sizes=(5,), max_iter=5, random_state=0),
        lambda: transformer(random),
    ]
    return made[random.integers(len(made))]()


def changed(estimator, random) -> str:
    """Change a fitted pipeline, or not; in words what was done."""
    step = estimator[int(random.integers(len(estimator)))]
    kind = random.integers(4)
    if kind == 0 or isinstance(step, str):
        return ""
    if kind == 1:
        flags = {k: not v for k, v in step.get_params(deep=False).items() if isinstance(v, bool) and k != "copy"}
        numbers = {k: 2 * v for k, v in step.get_params(deep=False).items() if type(v) in (int, float)}
        found = flags | numbers
    else:
        found = {
            name: 1.5 * value + 0.1
            for name, value in vars(step).items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and name.endswith("_")
        }
    if not found:
        return ""
    name = sorted(found)[random.integers(len(found))]
    setattr(step, name, found[name])
    return f"{type(step).__name__}.{name} = ..."


def own_answers(estimator, x) -> np.ndarray:
    """As models give them."""
    if hasattr(estimator, "decision_function"):
        shape = getattr(estimator[-1], "decision_function_shape", None)
        if shape is not None:
            estimator[-1].decision_function_shape = "ovr"
        found = estimator.decision_function(x)
        if shape is not None:
            estimator[-1].decision_function_shape = shape
        return found
    if hasattr(estimator, "classes_"):
        return estimator.predict_proba(x)
    found = (estimator.predict if hasattr(estimator, "predict") else estimator.transform)(x)
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found).reshape(len(x), -1)


def one(seed: int) -> tuple[str, str]:
    """Make, fit, change and compare the pipeline of a seed: what came of it, and what it was."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-3, 4)
    X = scale * (random.normal(size=(40, 4)) + random.integers(0, 3))
    n_classes = int(random.integers(2, 4))
    y = np.digitize(X[:, 0] + X[:, 1], np.quantile(X[:, 0] + X[:, 1], np.arange(1, n_classes) / n_classes))
    steps = [(f"s{i}", composed(random)) for i in range(random.integers(0, 3))]
    estimator = Pipeline([*steps, ("last", last(random))])
    form = random.integers(8)
    given = sp.csr_matrix(X) if form == 0 else X.astype(np.float32) if form == 1 else X.copy()
    what = f"seed {seed}: {' '.join(str(estimator).split())}, {n_classes} classes, form {form}"
    try:
        estimator.fit(given, y)
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        return "not to be fitted", f"{what}: {error}"
    what += ", " + changed(estimator, random)
    try:
        model = as_model(estimator)
    except TypeError as error:
        return "refused", f"{what}: {error}"
    queries = np.concatenate([X[:10] + 0.05 * scale * random.normal(size=(10, 4)), 2 * X[:10]])
    expected, found = own_answers(estimator, queries.copy()), np.asarray(model(queries))
    if not hasattr(estimator, "decision_function") and hasattr(estimator, "classes_"):
        found = np.exp(log_softmax(found, axis=1))
    found = found[:, 1] - found[:, 0] if expected.ndim == 1 else found
    # differences of large numbers have few digits, which the estimator shows when its inputs are rounded
    noise = np.nanmax(abs(own_answers(estimator, queries * (1 + 4e-16)) - expected), axis=0)
    tolerance = 1e-3 if form == 1 else 1e-4
    allowed = tolerance * (abs(expected) + np.median(abs(expected)) + 1e-9) + 100 * noise
    same = found.shape == expected.shape and ((abs(found - expected) <= allowed) | ~np.isfinite(expected)).all()
    return ("agrees" if same else "DIFFERS"), what


def run(seeds) -> collections.Counter:
    """Count what came of each seed's pipeline; print those that differ."""
    counts = collections.Counter()
    with enable_x64(True), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for seed in seeds:
            came, what = one(seed)
            counts[came] += 1
            if came == "DIFFERS":
                print(came, what, flush=True)
    return counts


def main() -> int:
    """Run as many as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts = run(range(given.seed, given.seed + given.n))
    print(dict(counts))
    return counts["DIFFERS"]


if __name__ == "__main__":
    sys.exit(min(main(), 1))
