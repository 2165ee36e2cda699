"""Adapters: scores are the estimator's own, gradients those of finite differences, attacks act on inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn import datasets, decomposition, ensemble, feature_selection, kernel_approximation, linear_model, svm
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor, kernels
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, as_model, perturb
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.sklearn_models import DifferentiableEstimator, discriminants, ensembles, registry

X, Y3 = datasets.make_classification(
    70, 6, n_informative=5, n_redundant=0, n_classes=3, n_clusters_per_class=1, random_state=0
)
Y2 = (Y3 > 0).astype(int)
TARGETS = np.stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]], 1)
TINY = np.finfo(float).tiny
ALL, ODD = slice(None), slice(1, None, 2)
few = {"max_iter": 30, "random_state": 0}

CLASSIFIERS = {
    "logistic": linear_model.LogisticRegression(),
    "ridge": linear_model.RidgeClassifier(),
    "linear svc": svm.LinearSVC(),
    "sgd": linear_model.SGDClassifier(random_state=0),
    "discriminant": LinearDiscriminantAnalysis(),
    "svc, rbf": svm.SVC(),
    "svc, poly": svm.SVC(kernel="poly", degree=2, coef0=0.5, gamma="auto"),
    "svc, sigmoid": svm.SVC(kernel="sigmoid", gamma=0.05),
    "svc, linear": svm.SVC(kernel="linear"),
    "nu svc": svm.NuSVC(nu=0.3),
    "mlp": MLPClassifier((8, 5), **few),
    "mlp, tanh": MLPClassifier((8,), activation="tanh", **few),
    "mlp, logistic": MLPClassifier((8,), activation="logistic", **few),
    "gaussian process": GaussianProcessClassifier(1.5 * kernels.RBF(2.0), optimizer=None),
    "noisy gaussian process": GaussianProcessClassifier(
        kernels.RBF(1.3) + kernels.WhiteKernel(0.1), optimizer=None
    ),
    "nystroem": make_pipeline(
        kernel_approximation.Nystroem(n_components=20, random_state=0), linear_model.LogisticRegression()
    ),
    "random features": make_pipeline(
        kernel_approximation.RBFSampler(gamma=0.1, n_components=30, random_state=0), linear_model.RidgeClassifier()
    ),
    "scaled": make_pipeline(StandardScaler(), svm.SVC()),
    "chain": Pipeline(
        [
            ("scale", RobustScaler()),
            ("nothing", "passthrough"),
            ("square", PolynomialFeatures(2)),
            ("vary", feature_selection.VarianceThreshold()),
            ("best", feature_selection.SelectKBest(k=10)),
            ("pca", decomposition.PCA(4, whiten=True)),
            ("svc", svm.SVC(probability=False)),
        ]
    ),
    "search": GridSearchCV(make_pipeline(MinMaxScaler(), svm.SVC()), {"svc__C": [1.0, 10.0]}, cv=2),
    "columns": make_pipeline(
        ColumnTransformer(
            [("a", MaxAbsScaler(), [4, 0]), ("b", "drop", [1]), ("c", MinMaxScaler(clip=True), slice(2, 4))],
            remainder="passthrough",
        ),
        linear_model.LogisticRegression(),
    ),
    "union": make_pipeline(
        FeatureUnion(
            [("pca", decomposition.PCA(2)), ("norm", Normalizer()), ("none", "drop")],
            transformer_weights={"pca": 3.0},
        ),
        svm.LinearSVC(),
    ),
    "kernel pca": make_pipeline(
        decomposition.KernelPCA(5, kernel="rbf", gamma=0.1), FunctionTransformer(), linear_model.RidgeClassifier()
    ),
}


def softened(x, by):
    """A user's function in JAX."""
    return jnp.tanh(x / by)


SCALED = make_pipeline(StandardScaler(), linear_model.LogisticRegression())
MEMBERS = [("a", SCALED), ("b", GaussianNB()), ("c", QuadraticDiscriminantAnalysis(reg_param=0.1))]
CLASSIFIERS |= {
    "quantiles": make_pipeline(QuantileTransformer(n_quantiles=40), linear_model.LogisticRegression()),
    "normal quantiles": make_pipeline(
        QuantileTransformer(n_quantiles=40, output_distribution="normal"), linear_model.LogisticRegression()
    ),
    "powers": make_pipeline(PowerTransformer(), linear_model.LogisticRegression()),
    "positive powers": make_pipeline(
        MinMaxScaler((1, 2)), PowerTransformer("box-cox", standardize=False), linear_model.LogisticRegression()
    ),
    "function": make_pipeline(FunctionTransformer(np.tanh), linear_model.LogisticRegression()),
    "function of JAX": make_pipeline(
        FunctionTransformer(softened, kw_args={"by": 3.0}), linear_model.LogisticRegression()
    ),
    "naive Bayes": GaussianNB(),
    "quadratic discriminant": QuadraticDiscriminantAnalysis(reg_param=0.1),
    "centroids": NearestCentroid(),
    "centroids, manhattan": NearestCentroid(metric="manhattan"),
    "centroids with priors": NearestCentroid(priors="empirical", shrink_threshold=0.1),
    "voting": ensemble.VotingClassifier(MEMBERS, voting="soft", weights=[1, 2, 0.5]),
    "stacking": ensemble.StackingClassifier([*MEMBERS[:2], ("d", svm.SVC())], cv=2),
    "stacking on inputs": ensemble.StackingClassifier([("a", svm.LinearSVC())], passthrough=True, cv=2),
    "bagging": ensemble.BaggingClassifier(SCALED, n_estimators=3, max_features=4, random_state=0),
    "one against the rest": OneVsRestClassifier(SCALED),
    "one against the rest by probability": OneVsRestClassifier(GaussianNB()),
    "calibrated": CalibratedClassifierCV(svm.LinearSVC(), cv=2),
    "calibrated, isotonic": CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=2),
    "calibrated, temperature": CalibratedClassifierCV(svm.SVC(), method="temperature", cv=2),
    "voting of calibrated": ensemble.VotingClassifier(
        [("a", CalibratedClassifierCV(svm.SVC(), cv=2)), ("b", OneVsRestClassifier(SCALED))], voting="soft"
    ),
} | {
    f"splines, {beyond}": make_pipeline(
        SplineTransformer(extrapolation=beyond, include_bias=beyond != "linear"), linear_model.LogisticRegression()
    )
    for beyond in ("constant", "linear", "continue", "periodic")
}
REGRESSORS = {
    "voting": ensemble.VotingRegressor([("a", linear_model.Ridge()), ("b", svm.SVR())]),
    "stacking": ensemble.StackingRegressor([("a", linear_model.Ridge()), ("b", svm.SVR())], cv=2),
    "bagging": ensemble.BaggingRegressor(linear_model.Ridge(), n_estimators=3, max_features=4, random_state=0),
    "logarithms": TransformedTargetRegressor(linear_model.Ridge(), func=np.arcsinh, inverse_func=np.sinh),
    "powers of targets": TransformedTargetRegressor(linear_model.Ridge(), transformer=PowerTransformer()),
    "scaled targets": TransformedTargetRegressor(linear_model.Ridge(), transformer=MinMaxScaler((1, 3))),
    "ridge": linear_model.Ridge(),
    "lasso": linear_model.Lasso(0.01),
    "svr": svm.SVR(),
    "kernel ridge, rbf": KernelRidge(kernel="rbf", gamma=0.2),
    "kernel ridge, poly": KernelRidge(kernel="poly", degree=2, coef0=0.7),
    "kernel ridge, default": KernelRidge(),
    "kernel ridge, laplacian": KernelRidge(kernel="laplacian"),
    "kernel ridge, cosine": KernelRidge(kernel="cosine"),
    "mlp": MLPRegressor(hidden_layer_sizes=(8,), **few),
    "gp, rbf": GaussianProcessRegressor(
        2.0 * kernels.RBF([1.0, 2, 3, 4, 5, 6]) + kernels.WhiteKernel(0.1), optimizer=None, normalize_y=True
    ),
    "gp, matern": GaussianProcessRegressor(kernels.Matern(2.0, nu=1.5), alpha=0.1, optimizer=None),
    "gp, matern 2.5": GaussianProcessRegressor(kernels.Matern(2.0, nu=2.5), alpha=0.1, optimizer=None),
    "gp, matern 0.5": GaussianProcessRegressor(kernels.Matern(2.0, nu=0.5), alpha=0.1, optimizer=None),
    "gp, sum of products": GaussianProcessRegressor(
        kernels.RationalQuadratic(2.0, 1.5) * kernels.ConstantKernel(2.0) + kernels.DotProduct(1.0) ** 2,
        alpha=0.5,
        optimizer=None,
    ),
    "gp, periodic": GaussianProcessRegressor(kernels.ExpSineSquared(1.5, 3.0), alpha=20, optimizer=None),
}


def own_scores(estimator, x):
    if isinstance(estimator, NearestCentroid):
        return discriminants.deciding_scores(estimator, x)
    if hasattr(estimator, "decision_function") and not isinstance(estimator, ensemble.BaggingClassifier):
        return estimator.decision_function(x)
    return (
        np.log(np.maximum(estimator.predict_proba(x), TINY))
        if hasattr(estimator, "predict_proba")
        else estimator.predict(x)
    )


# beyond a clip, and on flat pieces, these hand on the slope that is nearest (test_white_against_black.py)
STRAIGHT_THROUGH = ("columns", "quantiles", "splines, constant")


def assert_a_model_of(estimator, x, scores, straight_through=False):
    """Scores to 1e-6, and the gradient of a mixture of them by central differences, where these are not zero."""
    with enable_x64(True):
        model = as_model(estimator)
        found = np.asarray(model(jnp.asarray(x)))
        assert found.shape[0] == len(x) and found.ndim == 2
        shown = found[:, 1] - found[:, 0] if scores.ndim == 1 and found.shape[1] == 2 else found
        by_probability = not hasattr(estimator, "decision_function") and hasattr(estimator, "predict_proba")
        if by_probability or isinstance(estimator, ensemble.BaggingClassifier):
            shown = np.asarray(jax.nn.log_softmax(found))
        np.testing.assert_allclose(shown.reshape(scores.shape), scores, rtol=1e-6, atol=1e-6)
        mixture = np.cos(np.arange(found.shape[1]) + 1)
        compiled = jax.jit(lambda m, z: m(z))
        gradient = np.asarray(jax.jit(jax.grad(lambda z, m: (m(z) @ mixture).sum()))(jnp.asarray(x), model))
        step = 1e-6
        for feature in range(x.shape[1]):
            moved = [x + sign * step * (np.arange(x.shape[1]) == feature) for sign in (1, -1)]
            values = [np.asarray(compiled(model, jnp.asarray(z))) @ mixture for z in moved]
            difference = np.subtract(*values) / (2 * step)
            own = difference != 0 if straight_through else slice(None)
            np.testing.assert_allclose(gradient[own, feature], difference[own], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(compiled(model, jnp.asarray(x)), found, rtol=1e-9, atol=1e-9)


# near the data, and not on them: some kernels have a kink there
QUERIES = X[:12] + 0.05 * np.random.default_rng(1).normal(size=(12, 6))


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_s_scores_and_their_gradient(name, n_classes, monkeypatch):
    if "isotonic" in name:
        # a mean of folds, of which one may be flat where another one is not: their own slopes are compared
        monkeypatch.setattr(ensembles, "guided", lambda form, low, high: form)
    y = np.array(["no", "yes", "perhaps"])[Y2 if n_classes == 2 else Y3]
    estimator = CLASSIFIERS[name].fit(X, y)
    assert_a_model_of(
        estimator, QUERIES, own_scores(estimator, QUERIES), any(part in name for part in STRAIGHT_THROUGH)
    )
    with enable_x64(True):
        answers = estimator.classes_[np.asarray(as_model(estimator)(jnp.asarray(X))).argmax(1)]
    # votes may be tied
    agreed = np.mean(answers == estimator.predict(X))
    assert agreed == 1 or ("svc" in name and n_classes == 3 and agreed > 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_s_predictions_and_their_gradient(name):
    for y in (TARGETS[:, 0], TARGETS):
        if y.ndim == 2 and name in ("svr", "voting", "stacking", "logarithms"):
            continue
        estimator = REGRESSORS[name].fit(X, y)
        predictions = estimator.predict(QUERIES)
        assert_a_model_of(estimator, QUERIES, predictions)


@pytest.mark.slow
def test_kernels_of_one_s_own_and_precomputed_ones_need_the_kernel_in_jax():
    def kernel(x, z):
        return (x @ z.T + 1) ** 2 / 10

    own = svm.SVC(kernel=kernel).fit(X, Y3)
    precomputed = svm.SVC(kernel="precomputed").fit(kernel(X, X), Y3)
    ridge = KernelRidge(kernel="precomputed").fit(kernel(X, X), TARGETS)
    expected = own.decision_function(QUERIES)
    np.testing.assert_allclose(precomputed.decision_function(kernel(QUERIES, X)), expected)
    with enable_x64(True):
        for estimator in (own, precomputed):
            np.testing.assert_allclose(as_model(estimator, kernel=kernel, X_fit=X)(QUERIES), expected, rtol=1e-6)
        found = as_model(ridge, kernel=kernel, X_fit=X)(QUERIES)
        np.testing.assert_allclose(found, ridge.predict(kernel(QUERIES, X)), rtol=1e-6)
        piped = make_pipeline(StandardScaler(), svm.SVC(kernel=kernel)).fit(X, Y3)
        found = as_model(GridSearchCV(piped, {}, cv=2).fit(X, Y3), kernel=kernel)(QUERIES)
        np.testing.assert_allclose(found, piped.decision_function(QUERIES), rtol=1e-6)
    with pytest.raises(TypeError, match="callable kernel"):
        as_model(own)
    with pytest.raises(TypeError, match="precomputed kernel"):
        as_model(precomputed)
    with pytest.raises(TypeError, match="X_fit"):
        as_model(precomputed, kernel=kernel)


@pytest.mark.slow
def test_estimators_of_this_library_are_their_own_predictors():
    trainer = AdversarialKernelTrainer(MLP(widths=(6,)), max_epochs=2, random_state=0).fit(X, Y3)
    model = as_model(make_pipeline(StandardScaler(), FrozenEstimator(trainer)).fit(X))
    scores = trainer.decision_function(StandardScaler().fit(X).transform(QUERIES))
    np.testing.assert_allclose(model(QUERIES.astype(np.float32)), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_attacks_act_on_the_inputs_of_a_pipeline():
    scale = np.array([1, 10, 100, 1, 1, 1])
    pipeline = make_pipeline(StandardScaler(), svm.SVC()).fit(X * scale, Y3)
    attack, x = PGD(1.0, n_steps=20, bounds=None), (X * scale).astype(np.float32)
    x_adv = np.asarray(attack(as_model(pipeline), x, Y3.astype(np.int32), key=jax.random.key(0)))
    # the ball is in the units of the inputs
    assert np.abs(x_adv - x).max() == pytest.approx(1.0, rel=1e-3)
    assert pipeline.score(x_adv, Y3) < pipeline.score(x, Y3) - 0.1


def test_models_of_one_structure_share_their_compiled_code():
    traced = []

    @jax.jit
    def call(model, x):
        traced.append(1)
        return model(x)

    for C in (0.1, 1.0):
        call(as_model(linear_model.LogisticRegression(C=C).fit(X, Y3)), QUERIES)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "estimator, error, message",
    [
        (ensemble.RandomForestClassifier(3).fit(X, Y2), TypeError, "RandomForestClassifier"),
        (
            make_pipeline(FunctionTransformer(lambda x: np.abs(x)), svm.SVC()).fit(X, Y2),
            TypeError,
            "FunctionTransformer",
        ),
        (svm.SVC(), NotFittedError, "not fitted"),
        (KernelRidge(kernel="chi2", gamma=1.0).fit(np.abs(X), Y2), TypeError, "kernel 'chi2'"),
    ],
    ids=["forest", "function", "unfitted", "chi2"],
)
def test_what_has_no_differentiable_form_is_refused(estimator, error, message):
    with pytest.raises(error, match=message):
        as_model(estimator)(QUERIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS | REGRESSORS)
def test_what_was_compiled_for_one_estimator_serves_another_of_its_kind(name):
    estimator, y = (CLASSIFIERS[name], Y3) if name in CLASSIFIERS else (REGRESSORS[name], TARGETS[:, 0])
    first, second = (jax.tree.structure(as_model(clone(estimator).fit(X[rows], y[rows]))) for rows in (ALL, ODD))
    assert first == second


def test_an_adapter_enters_itself(monkeypatch):
    class Doubler(StandardScaler):
        def transform(self, X):
            return 2 * np.asarray(X)

    Doubler.__module__, fitted = "sklearn.preprocessing", Doubler().fit(X)
    with pytest.raises(TypeError, match=r"no differentiable form of sklearn\.preprocessing\.Doubler"):
        as_model(fitted)
    monkeypatch.setattr(registry, "ADAPTERS", registry.ADAPTERS | {})

    @registry.adapts("Doubler", into=registry.ADAPTERS)
    def doubled(estimator):
        return Partial(lambda x: 2 * x)

    np.testing.assert_allclose(as_model(fitted)(QUERIES), 2 * QUERIES, rtol=1e-5)


@pytest.mark.slow
def test_estimators_of_this_library_write_models_of_rows_and_of_images():
    images = X[:, :4].reshape(-1, 2, 2, 1).astype(np.float32)
    trainer = AdversarialKernelTrainer(MLP(widths=(5,)), max_epochs=1, random_state=0).fit(images, Y3)
    assert isinstance(trainer, DifferentiableEstimator)
    model = trainer.as_model()
    for inputs in (images, images.reshape(70, 4)):
        np.testing.assert_array_equal(model(inputs), as_model(trainer)(inputs))
    np.testing.assert_allclose(model(images), trainer.decision_function(images), rtol=1e-5)
    with pytest.raises(NotFittedError):
        AdversarialKernelTrainer().as_model()


@pytest.mark.slow
def test_a_gaussian_process_is_a_model_in_single_precision_after_it_was_attacked_in_double():
    process = GaussianProcessClassifier().fit(X[:20], Y3[:20])
    perturb(process, X[:5], Y3[:5], PGD(0.1, 1, bounds=None))
    found = np.asarray(as_model(process)(X[:5].astype(np.float32)))
    np.testing.assert_allclose(np.exp(found), process.predict_proba(X[:5]), atol=1e-3)
