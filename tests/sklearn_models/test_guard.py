"""The guard of adapters: what differs from the estimator's own answers is refused, whatever made it differ."""

import tempfile
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA, KernelPCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectFromModel, SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor, kernels
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, Model, as_model, perturb, robust_accuracy
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.sklearn_models.conversion import model_on
from ntkrobust_sk.sklearn_models.guard import check_agreement
from ntkrobust_sk.sklearn_models.remembered_rows import rows_near

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
X = (X - X.min(0)) / np.ptp(X, 0)
Y2, NAMES = (Y > 0).astype(int), ["a", "b", "c", "d"]
TARGETS = np.stack([X[:, 0] * X[:, 1], np.sin(X[:, 2])], 1)
FRAME, SPARSE = pd.DataFrame(X, columns=NAMES), sp.csr_matrix(X)
random = np.random.default_rng(3)
QUERIES = np.concatenate([X[::10] + 0.03 * random.normal(size=(15, 4)), random.normal(0, 2, (9, 4))])
FEW = {"hidden_layer_sizes": (4,), "max_iter": 5, "random_state": 0}


def changed(estimator, **parameters):
    return estimator.set_params(**parameters)


def edited(estimator, **attributes):
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


def columns(weights=None, remainder="drop", step=StandardScaler):
    two = [("s", step(), [2, 0]), ("q", MinMaxScaler(), [1])]
    return ColumnTransformer(two, transformer_weights=weights, remainder=remainder)


def own_answers(estimator, x):
    """As models give them."""
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(x))
    if hasattr(estimator, "classes_"):
        return np.log(estimator.predict_proba(x))
    found = (estimator.predict if hasattr(estimator, "predict") else estimator.transform)(x)
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return found.reshape(len(x), -1)


# Kinds of estimators whose answers depend on something that is easily forgotten.
FOLLOWED = {
    "weights of columns": lambda: make_pipeline(columns({"s": 0.1, "q": 10}), LogisticRegression()).fit(X, Y),
    "weights of the rest": lambda: make_pipeline(columns({"remainder": 7.0}, MinMaxScaler()), SVC()).fit(X, Y),
    "weights of what passes": lambda: columns({"remainder": 7.0, "q": None}, "passthrough").fit(X),
    "weights set after fit": lambda: changed(columns().fit(X), transformer_weights={"s": 3}),
    "a union whose first is dropped": lambda: FeatureUnion(
        [("d", "drop"), ("p", "passthrough"), ("s", StandardScaler())], transformer_weights={"p": 3}
    ).fit(X),
    "columns by a mask": lambda: ColumnTransformer([("s", StandardScaler(), [True, False, True, False])]).fit(X),
    "columns given twice": lambda: ColumnTransformer(
        [("s", StandardScaler(), [0, 0, 1]), ("m", MinMaxScaler(), [0, -1])]
    ).fit(X),
    "no columns": lambda: ColumnTransformer([("s", "drop", [0])]).fit(X),
    "columns by name, frames between": lambda: make_pipeline(
        ColumnTransformer([("s", StandardScaler(), ["c", "a"])], remainder="passthrough").set_output(
            transform="pandas"
        ),
        SVC(),
    ).fit(FRAME, Y),
    "columns by a selector": lambda: make_pipeline(
        ColumnTransformer([("s", StandardScaler(), make_column_selector("a|c"))]), SVC()
    ).fit(FRAME, Y),
    "no mean, after fit": lambda: changed(StandardScaler().fit(X), with_mean=False),
    "no scale, after fit": lambda: changed(StandardScaler().fit(X), with_std=False),
    "no range, after fit": lambda: changed(RobustScaler().fit(X), with_scaling=False),
    "no centre, after fit": lambda: changed(RobustScaler().fit(X), with_centering=False),
    "clipped, after fit": lambda: changed(MinMaxScaler().fit(X), clip=True, feature_range=(0.2, 0.5)),
    "written in place": lambda: make_pipeline(StandardScaler(copy=False), SVC()).fit(X.copy(), Y),
    "a scale of zero": lambda: edited(MinMaxScaler().fit(X), scale_=np.zeros(4)),
    "whitened, after fit": lambda: changed(PCA(3).fit(X), whiten=True),
    "whitened without variance": lambda: PCA(whiten=True).fit(np.c_[X[:, :3], X[:, 0]]),
    "in single precision": lambda: make_pipeline(PCA(3), LogisticRegression()).fit(X.astype(np.float32), Y),
    "powers": lambda: PolynomialFeatures((2, 3), interaction_only=True, order="F").fit(X),
    "no power": lambda: PolynomialFeatures(0).fit(X),
    "lengths of zero": lambda: make_pipeline(MinMaxScaler(), Normalizer("max"), SVC()).fit(X, Y),
    "an unfitted normalizer": lambda: Normalizer("l1"),
    "kernel_params that kernel PCA does not read": lambda: KernelPCA(
        3, kernel="rbf", kernel_params={"gamma": 9.0}
    ).fit(X),
    "kernel_params that kernel ridge does not read": lambda: KernelRidge(
        kernel="rbf", gamma=0.1, kernel_params={"gamma": 9.0}
    ).fit(X, Y),
    "kernel_params that Nystroem reads": lambda: Nystroem(kernel_params={"gamma": 0.3}, n_components=10).fit(X),
    "kernel_params under gamma": lambda: Nystroem(
        gamma=0.7, kernel_params={"gamma": 0.3}, n_components=10, random_state=0
    ).fit(X),
    "gamma, after fit": lambda: changed(KernelRidge(kernel="rbf", gamma=0.1).fit(X, Y), gamma=3.0),
    "a power that is no integer": lambda: KernelRidge(kernel="poly", degree=2.5).fit(X, Y),
    "components counted anew": lambda: changed(RBFSampler(n_components=7).fit(X), n_components=9),
    "eigenvalues of zero": lambda: KernelPCA(kernel="linear", remove_zero_eig=False).fit(X),
    "decisions of pairs": lambda: make_pipeline(StandardScaler(), SVC(kernel="poly")).fit(X, Y),
    "another kernel, after fit": lambda: changed(SVC().fit(X, Y), kernel="linear"),
    "another degree, after fit": lambda: changed(SVC(kernel="poly").fit(X, Y), degree=2),
    "gamma of an SVC, after fit": lambda: changed(SVC().fit(X, Y), gamma=5.0),
    "an intercept that is only shown": lambda: edited(SVC().fit(X, Y), intercept_=np.ones(3)),
    "the intercept that counts": lambda: edited(SVC().fit(X, Y2), _intercept_=np.ones(1)),
    "support far away": lambda: SVC(gamma=1e4).fit(X, Y),
    "edited weights": lambda: edited(LogisticRegression().fit(X, Y), coef_=np.ones((3, 4))),
    "no intercept": lambda: LogisticRegression(fit_intercept=False).fit(X, Y2),
    "one feature": lambda: LogisticRegression().fit(X[:, :1], Y2),
    "bools": lambda: LogisticRegression().fit(X, Y > 0),
    "names": lambda: MLPClassifier(**FEW).fit(X, np.array(["x", "y", "z"])[Y]),
    "crammer and singer": lambda: LinearSVC(multi_class="crammer_singer").fit(X, Y),
    "crammer and singer, two classes": lambda: LinearSVC(multi_class="crammer_singer").fit(X, Y2),
    "poisson": lambda: MLPRegressor(**FEW, loss="poisson").fit(X, Y + 1),
    "another activation, after fit": lambda: changed(MLPClassifier(**FEW).fit(X, Y), activation="tanh"),
    "no hidden layer": lambda: MLPClassifier((), max_iter=5).fit(X, Y2),
    "two targets": lambda: MLPRegressor(**FEW).fit(X, TARGETS),
    "one target of two axes": lambda: LinearRegression().fit(X, TARGETS[:, :1]),
    "an analysis in the middle": lambda: make_pipeline(LinearDiscriminantAnalysis(), SVC()).fit(X, Y),
    "one axis of it": lambda: make_pipeline(LinearDiscriminantAnalysis(solver="eigen", n_components=1), SVC()).fit(
        X, Y
    ),
    "an analysis in a union": lambda: make_pipeline(
        make_union(LinearDiscriminantAnalysis(), StandardScaler()), SVC()
    ).fit(X, Y),
    "an analysis in a pipeline in the middle": lambda: make_pipeline(
        make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()), SVC()
    ).fit(X, Y),
    "a frozen analysis in the middle": lambda: make_pipeline(
        FrozenEstimator(LinearDiscriminantAnalysis().fit(X, Y)), SVC()
    ).fit(X, Y),
    "an analysis in the end": lambda: make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(X, Y),
    "noise that depends on the input": lambda: GaussianProcessClassifier(
        kernels.DotProduct() * kernels.WhiteKernel(0.3) + kernels.RBF(), optimizer=None
    ).fit(X, Y),
    "one against one, of two": lambda: GaussianProcessClassifier(optimizer=None, multi_class="one_vs_one").fit(
        X, Y2
    ),
    "targets in units": lambda: GaussianProcessRegressor(normalize_y=True, alpha=1e-3, optimizer=None).fit(
        X, 100 + 7 * TARGETS
    ),
    "chosen by a model": lambda: make_pipeline(
        SelectFromModel(LogisticRegression(), threshold="median", max_features=2), SVC()
    ).fit(X, Y),
    "more chosen, after fit": lambda: changed(SelectKBest(k=2).fit(X, Y), k=3),
    "steps from a cache": lambda: make_pipeline(StandardScaler(), PCA(2), SVC(), memory=tempfile.mkdtemp()).fit(
        X, Y
    ),
    "a search's own choice": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10]}, refit=lambda results: 1
    ).fit(X, Y),
    "a search in the middle": lambda: make_pipeline(GridSearchCV(PCA(), {"n_components": [1, 2]}), SVC()).fit(
        X, Y
    ),
    "what passes first and last": lambda: Pipeline(
        [("a", "passthrough"), ("b", StandardScaler()), ("c", "passthrough")]
    ).fit(X),
    "far from zero": lambda: make_pipeline(PCA(2), SVC()).fit(X + 1e6, Y),
    "very small": lambda: make_pipeline(StandardScaler(), SVC()).fit(X * 1e-12, Y),
    "a constant feature": lambda: make_pipeline(StandardScaler(), SVC()).fit(
        np.c_[X[:, :3], np.full(150, 3.3)], Y
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_model_follows_what_the_estimator_itself_looks_at(name):
    estimator = FOLLOWED[name]()
    offset, scale = {"far from zero": (1e6, 1.0), "very small": (0.0, 1e-12)}.get(name, (0.0, 1.0))
    x = offset + scale * QUERIES[:, : getattr(estimator, "n_features_in_", 4)]
    with enable_x64(True):
        found = np.asarray(as_model(estimator)(x))
    frame = pd.DataFrame(x, columns=NAMES) if hasattr(estimator, "feature_names_in_") else x
    expected = own_answers(estimator, frame.copy())
    if not hasattr(estimator, "decision_function") and hasattr(estimator, "classes_"):
        found = found - np.log(np.exp(found - found.max(1, keepdims=True)).sum(1, keepdims=True))
        found -= found.max(1, keepdims=True) - expected.max(1, keepdims=True)
    found = found[:, 1] - found[:, 0] if expected.ndim == 1 else found
    # an estimator fitted in single precision has six places
    tolerance = 1e-4 if name == "in single precision" else 1e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# Sparse


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator, y",
    [
        (SVC(), Y),
        (SVC(kernel="poly", coef0=0.3), Y2),
        (NuSVC(kernel="linear", nu=0.2), Y),
        (SVR(), TARGETS[:, 0]),
        (LinearSVC(random_state=0), Y),
        (LogisticRegression(), Y),
        (KernelRidge(kernel="rbf"), Y),
        (make_pipeline(Nystroem(n_components=9, random_state=0), LogisticRegression()), Y),
        (make_pipeline(MaxAbsScaler(), KernelPCA(3, kernel="rbf"), Ridge()), Y),
        (MLPClassifier(**FEW), Y2),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_what_was_fitted_on_sparse_inputs_is_attacked_like_its_dense_twin(estimator, y):
    from sklearn.base import clone

    dense, other = clone(estimator).fit(X, y), clone(estimator).fit(SPARSE, y)
    with enable_x64(True):
        twins = [np.asarray(as_model(e)(QUERIES)) for e in (dense, other)]
    np.testing.assert_allclose(*twins, rtol=1e-3, atol=1e-3 * abs(twins[0]).max())
    attack = PGD(0.1, 10)
    if hasattr(dense, "classes_"):
        assert robust_accuracy(other, X, y, attack) == pytest.approx(
            robust_accuracy(dense, X, y, attack), abs=0.01
        )


@pytest.mark.slow
def test_an_svc_fitted_on_sparse_iris_has_the_robust_accuracy_of_its_dense_twin():
    assert robust_accuracy(SVC().fit(SPARSE, Y), X, Y, PGD(0.1, 10)) == pytest.approx(2 / 3)


def test_sparse_weights_are_made_dense():
    logistic, sgd = LogisticRegression().fit(X, Y), SGDClassifier(penalty="l1", random_state=0).fit(X, Y2)
    for estimator in (logistic, sgd):
        expected = estimator.decision_function(QUERIES)
        found = np.asarray(as_model(estimator.sparsify())(QUERIES))
        shown = found[:, 1] if expected.ndim == 1 else found
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-4)


def test_sparse_inputs_are_refused_with_the_way_out():
    clf = LogisticRegression().fit(X, Y)
    for call in (
        lambda: as_model(clf)(SPARSE),
        lambda: robust_accuracy(clf, SPARSE, Y, PGD(0.1)),
        lambda: perturb(clf, SPARSE, Y, PGD(0.1)),
    ):
        with pytest.raises(TypeError, match=r"toarray\(\)"):
            call()


# What differs


def weighted_pipeline(weights):
    two = [("s", StandardScaler(), [2, 0]), ("q", MinMaxScaler(), [1, 3])]
    data = load_iris().data
    return make_pipeline(
        ColumnTransformer(two, transformer_weights=weights), LogisticRegression(max_iter=2000)
    ).fit(data, Y)


@pytest.mark.slow
def test_weights_of_columns_and_the_same_in_the_coefficients_are_one_function():
    first, second = weighted_pipeline({"s": 0.1, "q": 10.0}), weighted_pipeline(None)
    second[-1].coef_ = first[-1].coef_ * np.array([0.1, 0.1, 10, 10])
    second[-1].intercept_ = first[-1].intercept_
    data, attack = load_iris().data, PGD(0.3, 20, bounds=None)
    np.testing.assert_allclose(as_model(first)(data), first.decision_function(data), atol=1e-4)
    accuracies = [robust_accuracy(pipeline, data, Y, attack) for pipeline in (first, second)]
    assert accuracies == [pytest.approx(0.607, abs=1e-3)] * 2


class Other(SVC):
    def decision_function(self, X):
        return -super().decision_function(X)


Disguised = type("SVC", (Other,), {"__module__": "sklearn.svm._classes"})


@pytest.mark.parametrize(
    "estimator, message",
    [
        (lambda: changed(PolynomialFeatures(2).fit(X), include_bias=False), "its own transform"),
        (lambda: edited(SVC().fit(X, Y), decision_function=lambda x: np.ones((len(x), 3))), "decision_function"),
        (lambda: edited(SVC().fit(X, Y), predict=lambda x: np.zeros(len(x), int)), "do not decide its answers"),
        (lambda: edited(Ridge().fit(X, Y), predict=lambda x: x[:, 0]), "its own predict"),
        (lambda: edited(Ridge().fit(X, Y), predict=lambda x: 1 / 0), "Ridge.predict itself fails"),
        (lambda: Disguised().fit(X, Y), "its own decision_function"),
        (lambda: Other().fit(X, Y), "no differentiable form of .*Other"),
        (lambda: edited(LogisticRegression().fit(X, Y), coef_=1j * np.ones((3, 4))), "real numbers"),
        (lambda: edited(LogisticRegression().fit(X, Y), coef_=np.ones((3, 4), object)), "real numbers"),
        (lambda: edited(LogisticRegression().fit(X, Y), coef_=np.full((3, 4), np.nan)), "no finite numbers"),
        (lambda: edited(LogisticRegression().fit(X, Y), classes_=np.array([0, 1])), "2 classes, and 3 scores"),
        (lambda: edited(MLPClassifier(**FEW).fit(X, Y), activation="gelu"), "activations 'gelu'"),
        (lambda: RidgeClassifier().fit(X, np.stack([Y > 0, Y > 1], 1).astype(int)), "several labels"),
        (lambda: MLPClassifier(**FEW).fit(X, np.stack([Y > 0, Y > 1], 1).astype(int)), "several labels"),
        (lambda: RidgeClassifier().fit(X, np.zeros(150, int)), "1 classes"),
        (lambda: FunctionTransformer(kw_args={"a": 1}), "itself fails"),
        (
            lambda: TransformedTargetRegressor(Ridge(), transformer=QuantileTransformer(n_quantiles=9)).fit(X, Y),
            "way back of QuantileTransformer",
        ),
    ],
)
def test_what_has_another_function_than_its_adapter_is_refused(estimator, message):
    with pytest.raises(TypeError, match=message):
        as_model(estimator())


def test_the_step_that_differs_is_named():
    pipeline = make_pipeline(MinMaxScaler(), PCA(2), SVC()).fit(X, Y)
    pipeline[1].transform = lambda x: 2 * PCA.transform(pipeline[1], x)
    with pytest.raises(TypeError, match="at the step 'pca'"):
        as_model(pipeline)


@pytest.mark.slow
def test_what_differs_is_attacked_as_a_black_box_with_a_warning_that_says_so():
    clf = Disguised().fit(X, Y)
    with pytest.warns(UserWarning, match=r"SVC does not give its own decision_function: .* as a black box"):
        accuracy = robust_accuracy(clf, X, Y, PGD(0.1))
    assert 0.1 < accuracy <= clf.score(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robust_accuracy(SVC().fit(X, Y), X, Y, PGD(0.1))


# The guard sees each fitted number: of the models of these estimators, one leaf after the other is changed.
GUARDED = {
    "logistic": LogisticRegression(),
    "two classes": LogisticRegression(),
    "svc": SVC(),
    "pipeline": make_pipeline(StandardScaler(), SVC(kernel="poly", coef0=0.5)),
    "boxed": make_pipeline(MinMaxScaler(), SVC(gamma=20.0)),
    "clipped": make_pipeline(MinMaxScaler(clip=True, feature_range=(0.1, 0.9)), SVC(kernel="sigmoid", gamma=0.1)),
    "robust": make_pipeline(RobustScaler(), PCA(3, whiten=True), NuSVC(nu=0.2)),
    "kernel pca": make_pipeline(MaxAbsScaler(), KernelPCA(3, kernel="rbf", gamma=5.0), LogisticRegression()),
    "nystroem": make_pipeline(StandardScaler(), Nystroem(n_components=20, gamma=0.5, random_state=0), Ridge()),
    "random features": make_pipeline(RBFSampler(gamma=1.0, n_components=9, random_state=0), RidgeClassifier()),
    "ridge": KernelRidge(kernel="laplacian", gamma=1.0),
    "mlp": MLPClassifier(**FEW),
    "gp": GaussianProcessClassifier(1.5 * kernels.RBF(0.7), optimizer=None),
    "gp regression": GaussianProcessRegressor(kernels.RationalQuadratic(), alpha=0.1, optimizer=None),
    "columns": make_pipeline(columns({"s": 0.1, "q": 10.0}), SVC()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GUARDED)
def test_a_model_with_one_number_changed_is_refused(name):
    rows = slice(None, None, 3)
    estimator = GUARDED[name].fit(X[rows], (Y2 if name == "two classes" else Y)[rows])
    form = as_model(estimator).args[0]
    leaves, tree = jax.tree.flatten(form)
    check_agreement(estimator, form)
    seen = 0
    for at, leaf in enumerate(leaves):
        leaf = np.asarray(leaf)
        if leaf.dtype.kind != "f" or not np.isfinite(leaf).all() or not leaf.any():
            continue
        wrong = jax.tree.unflatten(tree, [*leaves[:at], leaf * 1.01, *leaves[at + 1 :]])
        rows = rows_near(estimator)
        if np.allclose(form(rows), wrong(rows), rtol=1e-12, atol=0):
            # such as the degree of a kernel that has none
            continue
        with pytest.raises(TypeError, match="does not give its own"):
            check_agreement(estimator, wrong)
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", GUARDED)
def test_the_guard_runs_in_numpy_and_compiles_nothing(name):
    estimator = GUARDED[name].fit(X[::3], Y[::3])
    assert type(as_model(estimator).args[0](rows_near(estimator))) is np.ndarray


def test_rows_come_from_inside_and_outside_of_the_training_range():
    far = X * np.array([1, 10, 100, 1000]) + 50
    estimators = [StandardScaler(), MinMaxScaler(), RobustScaler(), PCA(4), SVC(), KernelPCA(), SelectKBest(k=2)]
    for estimator in [*estimators, columns(), make_pipeline(MinMaxScaler(), SVC())]:
        rows = rows_near(estimator.fit(far, Y))
        np.testing.assert_array_equal(rows, rows_near(estimator))
        if type(estimator) is SelectKBest:
            continue
        inside = ((far.min(0) <= rows) & (rows <= far.max(0)))[:, :3]
        assert inside.all(1).sum() >= 3 and not inside.all(1).all(), type(estimator)


def test_inputs_at_hand_are_compared_too():
    clf = LogisticRegression().fit(X, Y)
    scores = clf.decision_function
    # another function at one place alone, which no estimator can know of
    clf.decision_function = lambda x: scores(x) + (np.abs(x - 0.123).max(1) < 1e-9)[:, None]
    as_model(clf)
    with pytest.raises(TypeError, match="1 of 16 rows differ"):
        model_on(np.concatenate([X[:7], np.full((1, 4), 0.123)]), clf)


# At the door


def squares(x, z):
    return (x @ z.T + 1) ** 2


@pytest.mark.parametrize(
    "thing, message",
    [
        (None, "takes a fitted estimator, .* got None"),
        (5, "got 5"),
        ("clf", "got 'clf'"),
        (X, "got an array"),
        ([SVC()], "got \\[SVC"),
        (SVC, "the class SVC"),
        (squares, "squares is a function already"),
        (as_model(Ridge().fit(X, Y)), "is a function already"),
        (Model(MLP(3), MLP(3).init(jax.random.key(0), (4,))), "Model is a function already"),
        (MLP(3), "got MLP"),
    ],
)
def test_what_is_no_fitted_estimator_is_refused_by_name(thing, message):
    with pytest.raises(TypeError, match=message):
        as_model(thing)


def test_a_search_that_kept_no_estimator_says_what_to_write():
    with pytest.raises(Exception, match="refit=True"):
        as_model(GridSearchCV(SVC(), {"C": [1, 10]}, refit=False, cv=2).fit(X, Y))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (X[:, :3], ValueError, r"this model of SVC takes inputs of shape \(n, 4\), got shape \(150, 3\)"),
        (X[0], ValueError, r"got shape \(4,\)"),
        (np.ones((2, 2, 2)), ValueError, r"got shape \(2, 2, 2\)"),
        ([["a", "b", "c", "d"]], TypeError, "array of real numbers"),
        ("x", TypeError, "array of real numbers"),
        (None, TypeError, "array of real numbers"),
        (1j * X, TypeError, "real numbers"),
        (jax.numpy.ones((2, 4), complex), TypeError, "real numbers"),
        (np.ma.array(X), TypeError, "masked"),
        (FRAME.assign(a="Rome"), TypeError, "array of real numbers"),
    ],
)
def test_a_model_says_which_inputs_it_takes(x, error, message):
    with pytest.raises(error, match=message):
        as_model(SVC().fit(X, Y))(x)


@pytest.mark.slow
@pytest.mark.parametrize("x", [X[:2].tolist(), FRAME[:2], X[:2].astype(">f8"), jax.numpy.asarray(X[:2])])
def test_a_model_takes_lists_frames_and_arrays_of_any_byte_order(x):
    clf = LogisticRegression().fit(X, Y)
    np.testing.assert_allclose(as_model(clf)(x), clf.decision_function(X[:2]), rtol=1e-5, atol=1e-5)


def test_inputs_of_another_width_are_named_inside_of_compiled_functions_too():
    with pytest.raises(ValueError, match=r"takes inputs of shape \(n, 4\)"):
        jax.jit(as_model(SVC().fit(X, Y)))(X[:, :3].astype(np.float32))
    trainer = AdversarialKernelTrainer(max_epochs=0, random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match=r"AdversarialKernelTrainer takes inputs of shape \(n, 4\)"):
        as_model(trainer)(X[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"kernel": 5}, TypeError, r"kernel must be a function k\(x, z\)"),
        ({"kernel": "rbf"}, TypeError, r"kernel must be a function k\(x, z\)"),
        ({"kernel": lambda x: x}, TypeError, "must give .* but it fails"),
        ({"kernel": lambda x, z: x}, TypeError, r"must give \(4, 2\) .* got shape \(4, 4\)"),
        ({"kernel": lambda x, z: None}, TypeError, "must give .* got None"),
        ({"kernel": lambda x, z: 1j * squares(x, z)}, TypeError, "dtype complex"),
        ({"kernel": lambda x, z: np.asarray(x) @ np.asarray(z).T}, TypeError, "in JAX, but it fails"),
        (
            {"kernel": lambda x, z: 2 * squares(x, z)},
            TypeError,
            "not the matrix that KernelRidge was fitted",
        ),
        ({"X_fit": X[::-1]}, TypeError, "not the matrix that KernelRidge was fitted"),
        ({"X_fit": X[:9]}, ValueError, "X_fit must hold the 150 inputs"),
        ({"X_fit": None}, TypeError, "X_fit"),
        ({"X_fit": SPARSE}, TypeError, "toarray"),
        ({"X_fit": "X"}, TypeError, "X_fit must be an array"),
        ({"X_fit": 5}, ValueError, "X_fit must be an array"),
    ],
)
def test_kernels_and_training_inputs_from_outside_are_checked(given, error, message):
    machine = KernelRidge(kernel="precomputed").fit(np.asarray(squares(X, X)), Y)
    as_model(machine, kernel=squares, X_fit=X)
    with pytest.raises(error, match=message):
        as_model(machine, **{"kernel": squares, "X_fit": X} | given)


def test_a_kernel_that_is_not_the_estimator_s_own_is_refused():
    own = SVC(kernel=squares).fit(X, Y)
    as_model(own, kernel=squares)
    with pytest.raises(TypeError, match="its own decision_function"):
        as_model(own, kernel=lambda x, z: 2 * squares(x, z))
    with pytest.raises(TypeError, match="its own decision_function"):
        as_model(SVC(gamma=1.0).fit(X, Y), kernel=squares)


def test_what_needs_no_kernel_takes_none():
    for given in ({"kernel": squares}, {"X_fit": X}):
        with pytest.raises(TypeError, match="LogisticRegression takes no kernel from outside"):
            as_model(LogisticRegression().fit(X, Y), **given)


def test_a_precomputed_matrix_that_a_pipeline_scales_is_no_function_of_inputs():
    pipeline = make_pipeline(StandardScaler(), SVC(kernel="precomputed")).fit(squares(X, X), Y)
    with pytest.raises(TypeError, match="give as_model its last step"):
        as_model(pipeline, kernel=squares, X_fit=X)


# Imputers

HOLES = np.where(np.random.default_rng(5).random(X.shape) < 0.1, np.nan, X)
EMPTY = np.c_[HOLES[:, :2], np.full(len(X), np.nan), HOLES[:, 2]]
IMPUTERS = {
    "complete": (lambda: SimpleImputer(), X),
    "mean": (lambda: SimpleImputer(), HOLES),
    "indicators": (lambda: SimpleImputer(strategy="median", add_indicator=True), HOLES),
    "an empty column": (lambda: SimpleImputer(strategy="most_frequent", add_indicator=True), EMPTY),
    "an empty column that is kept": (lambda: SimpleImputer(keep_empty_features=True), EMPTY),
    "a constant": (lambda: SimpleImputer(strategy="constant", fill_value=3.0, add_indicator=True), EMPTY),
    "a number that is missing": (lambda: SimpleImputer(missing_values=X[0, 0], add_indicator=True), X),
    "minus one": (lambda: SimpleImputer(missing_values=-1, strategy="constant"), np.nan_to_num(HOLES, nan=-1.0)),
    "a statistic of one's own": (lambda: SimpleImputer(strategy=np.max), HOLES),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping features")
@pytest.mark.parametrize("name", IMPUTERS)
def test_an_imputer_is_a_function_of_what_is_known_and_has_no_gradient_where_nothing_is(name):
    make, data = IMPUTERS[name]
    imputer = make().fit(data)
    clf = make_pipeline(make(), StandardScaler(), LogisticRegression()).fit(data, Y)
    missing = imputer.missing_values
    incomplete = QUERIES.copy()
    incomplete[::3, 1] = missing
    for x in (QUERIES, incomplete):
        with enable_x64(True):
            found, scores = np.asarray(as_model(imputer)(x)), np.asarray(as_model(clf)(x))
            slopes = jax.grad(lambda x: as_model(imputer)(x).sum())(x)
        np.testing.assert_allclose(found, imputer.transform(x.copy()), rtol=1e-12)
        np.testing.assert_allclose(scores, clf.decision_function(x.copy()), rtol=1e-6, atol=1e-9)
        kept = imputer.keep_empty_features | ~np.isnan(imputer.statistics_.astype(float))
        unknown = np.isnan(x) if np.isnan(missing) else x == missing
        np.testing.assert_array_equal(slopes, ~unknown & kept)


@pytest.mark.slow
def test_nan_that_no_imputer_fills_in_is_refused():
    first = ColumnTransformer([("n", SimpleImputer(), [0])], remainder="passthrough").fit(X)
    holed = QUERIES.copy()
    holed[0, 0] = np.nan
    assert np.isfinite(np.asarray(as_model(first)(holed))).all()
    for value, where in ((np.nan, 1), (np.inf, 0)):
        holed[1, where] = value
        with pytest.raises(ValueError, match="must be finite"):
            as_model(first)(holed)
        holed[1, where] = 0.0


@pytest.mark.slow
@pytest.mark.parametrize("columns", [False, True])
def test_pipelines_with_imputers_are_attacked_by_their_gradients(columns):
    first = ColumnTransformer([("n", SimpleImputer(), [3, 1])], remainder=SimpleImputer())
    clf = make_pipeline(first if columns else SimpleImputer(), LogisticRegression()).fit(X, Y)
    twin = LogisticRegression().fit(first.fit_transform(X) if columns else X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = robust_accuracy(clf, X, Y, PGD(0.1, 10))
    assert found == robust_accuracy(twin, X[:, [3, 1, 0, 2]] if columns else X, Y, PGD(0.1, 10)) < clf.score(X, Y)


def test_an_imputer_that_was_fitted_without_indicators_or_numbers_is_refused():
    with pytest.raises(TypeError, match="fitted without it"):
        as_model(changed(SimpleImputer().fit(X), add_indicator=True))
    words = SimpleImputer(strategy="most_frequent").fit(np.array([["a"], ["b"]], object))
    with pytest.raises(TypeError, match="no numbers"):
        as_model(words)


def test_an_imputer_in_front_leaves_the_guard_the_rows_that_a_machine_keeps():
    data = 1e4 + 5 * X
    plain = make_pipeline(StandardScaler(), SVC()).fit(data, Y)
    np.testing.assert_allclose(rows_near(make_pipeline(SimpleImputer(), *plain).fit(data, Y)), rows_near(plain))


# Kernels' numbers


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda v: np.array(v, np.float32)])
def test_length_scales_may_come_as_lists(kind):
    scales = kind([1.0, 2, 1, 1])
    inner = kernels.RBF(scales) * kernels.ConstantKernel(2) + kernels.Matern(scales, nu=0.5) ** 2
    inner += kernels.Matern(scales, nu=np.inf) * kernels.Matern(scales, nu=1.5) + kernels.Matern(scales, nu=2.5)
    for estimator, y in (
        (GaussianProcessClassifier(inner, optimizer=None), Y2),
        (GaussianProcessClassifier(kernels.RBF(scales), optimizer=None), Y),
        (GaussianProcessRegressor(inner, optimizer=None, alpha=0.1), X[:, 0]),
    ):
        with enable_x64(True):
            found = np.asarray(as_model(estimator.fit(X, y))(X[::9]))
        found = found - np.log(np.exp(found).sum(1, keepdims=True)) if hasattr(estimator, "classes_") else found
        np.testing.assert_allclose(found, own_answers(estimator, X[::9]), rtol=1e-5, atol=1e-6)


# Single precision


def ill_conditioned():
    data = load_iris().data
    features = Nystroem(kernel="polynomial", degree=2, coef0=3, gamma=0.1, n_components=20, random_state=0)
    return make_pipeline(features, LinearSVC()).fit(data, Y), data


@pytest.mark.slow
def test_a_model_whose_answers_are_others_in_single_precision_says_so_and_what_to_do():
    clf, data = ill_conditioned()
    with pytest.warns(
        UserWarning, match=r"single precision the model of Pipeline.*enable_x64.*robust_acc"
    ) as seen:
        model = as_model(clf)
    assert seen[0].filename == __file__
    assert (np.asarray(model(data)).argmax(1) != clf.predict(data)).mean() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with enable_x64(True):
            exact = as_model(clf)(data)
        robust_accuracy(clf, data, Y, PGD(0.1, 2, bounds=None))
        robust_accuracy(clf, pd.DataFrame(data), Y, PGD(0.1, 2, bounds=None))
    assert (np.asarray(exact).argmax(1) == clf.predict(data)).all()


@pytest.mark.parametrize("offset", [1e6, 1e9])
def test_data_far_from_zero_are_not_for_single_precision(offset):
    clf = make_pipeline(StandardScaler(), LogisticRegression()).fit(X + offset, Y)
    with pytest.warns(UserWarning, match="single precision"):
        as_model(clf)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FOLLOWED.keys() - {"far from zero"}))
def test_ordinary_estimators_do_well_in_single_precision(name):
    estimator = FOLLOWED[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_model(estimator)
