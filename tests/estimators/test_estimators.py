"""The estimators: against scikit-learn's and dense solves, in scikit-learn's company, and with bad input."""

import pickle
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import optax
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import (
    CNN,
    FGSM,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Cholesky,
    Clean,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    FullNTK,
    Model,
    SingularGramError,
    Stateless,
    TangentFeatures,
    TraceNTK,
    TrainingDivergedError,
    Variables,
    gram,
    linearize,
    train,
)
from ntkrobust_sk.execution.keys import key_of
from ntkrobust_sk.kernels.predictors import DualPredictor, PrimalPredictor
from ntkrobust_sk.networks.named import NETWORKS

X, Y = load_iris(return_X_y=True)
X, Y = X[::2] / 8, Y[::2]  # 75 flowers in [0, 1]: more than one tile of rows
TARGETS = np.c_[X[:, 0] * X[:, 1], np.sin(7 * X[:, 2])]
WEIGHT = np.random.default_rng(0).integers(0, 4, size=len(X)).astype(float)
IMAGES, DIGITS = load_digits().images[:70, :, :, None] / 16, load_digits().target[:70]
ROWS = IMAGES.reshape(len(IMAGES), -1)
NETWORK = MLP(widths=(6,))
SMALL_CNN = CNN(widths=(4,), strides=(2,))
ATTACK = PGD(0.05, n_steps=3)
RATE = 0.1


def trainer(network=NETWORK, **settings):
    defaults = {"max_epochs": 4, "learning_rate": RATE, "batch_size": 32, "random_state": 0}
    return AdversarialKernelTrainer(network, **defaults | settings)


def classifier(estimator=NETWORK, **settings):
    return EmpiricalNTKClassifier(estimator, **{"random_state": 0} | settings)


def regressor(estimator=NETWORK, **settings):
    return EmpiricalNTKRegressor(estimator, **{"random_state": 0} | settings)


def fresh_model(n_outputs, network=NETWORK, input_shape=(4,), seed=3):
    network = type(network)(n_outputs, network.widths)
    return Model(network, network.init(jax.random.key(seed), input_shape))


@cache
def fitted_trainer():
    return trainer(max_epochs=30).fit(X, Y)


@cache
def image_trainer():
    return trainer(SMALL_CNN, max_epochs=2).fit(IMAGES, DIGITS)


def refused(message, call, *arguments):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


def indicators(y):
    return (y[:, None] == np.unique(y)).astype(float)


def centred(targets, weight):
    mean = np.average(targets, axis=0, weights=weight)
    return targets - mean, mean


# Oracles: scikit-learn's kernel ridge regression, dense solves, plain training


@pytest.mark.slow
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kernel", ["trace", "pseudo"])
def test_the_closed_form_equals_kernel_ridge_on_centred_targets(kernel, weight):
    alpha = 0.03
    reg = regressor(kernel=kernel, alpha=alpha).fit(X, TARGETS, weight)
    clf = classifier(kernel=kernel, alpha=alpha).fit(X, Y, weight)
    for machine, targets, scores in (
        (reg, TARGETS, reg.predict(X)),
        (clf, indicators(Y), clf.decision_function(X)),
    ):
        K = machine.gram(X).astype(float)
        ridge = KernelRidge(alpha=alpha * np.average(np.diag(K), weights=weight), kernel="precomputed")
        offsets, mean = centred(targets, weight)
        expected = ridge.fit(K, offsets, weight).predict(K) + mean
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        np.testing.assert_allclose(machine.intercept_, mean)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [None, WEIGHT + 1], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kernel", ["class", "full"])
def test_class_and_full_kernels_equal_a_dense_solve(kernel, weight):
    alpha, n_classes = 0.05, 3
    clf = classifier(kernel=kernel, alpha=alpha).fit(X, Y, weight)
    offsets, mean = centred(indicators(Y), weight)
    full = gram("full", clf.model_, X).astype(float)
    diagonal = np.einsum("iicc->ic", full)
    ridge = alpha * np.average(diagonal.mean(1), weights=weight)
    if kernel == "class":  # no terms between classes
        full = full * np.eye(n_classes)
    matrix = full.transpose(0, 2, 1, 3).reshape(n_classes * len(X), -1)
    noise = ridge / np.repeat(np.ones(len(X)) if weight is None else weight, n_classes)
    dual = np.linalg.solve(matrix + np.diag(noise), offsets.ravel())
    expected = (matrix @ dual).reshape(offsets.shape) + mean
    np.testing.assert_allclose(clf.decision_function(X), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "class", "full", "pseudo"])
def test_predictions_equal_the_sum_over_the_training_points(kernel):
    clf = classifier(kernel=kernel).fit(X[:60], Y[:60] % 3)
    assert isinstance(clf.predictor_, PrimalPredictor)
    equation = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}
    K = clf.gram(X[60:], clf.X_fit_).astype(float)
    expected = np.einsum(equation[K.ndim], K, clf.dual_coef_) + clf.intercept_
    scores = clf.decision_function(X[60:])
    expected = expected if scores.ndim == 2 else expected[:, 1] - expected[:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_few_training_points_are_kept_as_they_are():
    clf = classifier().fit(X[[0, 30, 70]], Y[[0, 30, 70]])
    assert isinstance(clf.predictor_, DualPredictor)
    K = clf.gram(X, clf.X_fit_)
    np.testing.assert_allclose(clf.decision_function(X), K @ clf.dual_coef_ + clf.intercept_, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dynamics", "attack", "clean_step"),
    [
        ("centered", None, True),
        ("linearized", None, False),
        ("centered", ATTACK, True),
        ("linearized", ATTACK, False),
    ],
    ids=["centred", "linearised", "centred, clean and adversarial", "linearised, adversarial"],
)
def test_gradient_descent_equals_training_the_linearisation(dynamics, clean_step, attack):
    model = fresh_model(3)
    settings = {"max_epochs": 3, "batch_size": 32, "learning_rate": RATE, "momentum": 0.5}
    clf = classifier(model, solver="sgd", dynamics=dynamics, attack=attack, clean_step=clean_step, **settings).fit(
        X, Y
    )
    attacks = (Clean(),) if attack is None else (Clean(), attack) if clean_step else (attack,)
    *_, state = train(
        linearize(model, centered=dynamics == "centered"),
        X,
        Y,
        key=jax.random.split(key_of(0))[1],
        optimizer=optax.sgd(RATE, 0.5),
        attacks=attacks,
        epochs=3,
        batch_size=32,
    )
    np.testing.assert_allclose(clf.decision_function(X), state.model(X), atol=1e-5)
    assert clf.n_iter_ == len(clf.loss_curve_) == 3
    assert clf.model_ is model


@pytest.mark.slow
def test_gradient_descent_of_a_regressor_is_on_the_squared_error():
    model = fresh_model(2)
    reg = regressor(model, solver="sgd", max_epochs=5).fit(X, TARGETS)
    *_, state = train(
        linearize(model, centered=True),
        X,
        TARGETS,
        key=jax.random.split(key_of(0))[1],
        optimizer=optax.sgd(0.01, 0.9),
        epochs=5,
    )
    np.testing.assert_allclose(reg.predict(X), state.model(X), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", ["standard", "linearized", "centered"])
def test_the_trainer_equals_plain_training(dynamics):
    model = fresh_model(3)
    fitted = trainer(model, dynamics=dynamics, attack=ATTACK).fit(X, Y)
    start = model if dynamics == "standard" else linearize(model, centered=dynamics == "centered")
    *_, state = train(
        start,
        X,
        Y,
        key=jax.random.split(key_of(0))[1],
        optimizer=optax.sgd(RATE, 0.9),
        attacks=(Clean(), ATTACK),
        epochs=4,
        batch_size=32,
    )
    np.testing.assert_allclose(fitted.decision_function(X), state.model(X), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [classifier, regressor])
def test_an_integer_weight_counts_like_copies(make):
    target = Y if make is classifier else TARGETS
    weighted = make(alpha=0.1).fit(X, target, WEIGHT)
    copies = np.repeat(np.arange(len(X)), WEIGHT.astype(int))
    repeated = make(alpha=0.1).fit(X[copies], target[copies])
    np.testing.assert_allclose(weighted._evaluate(X), repeated._evaluate(X), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [{0: 1.0, 1: 5.0, 2: 0.5}, {1: 4.0}, "balanced"], ids=str)
@pytest.mark.parametrize("make", [trainer, classifier])
def test_class_weights_equal_sample_weights(make, weights):
    kept = np.r_[0:25, 30:75]  # so that "balanced" is not all ones
    X_, y, weight = X[kept], Y[kept], WEIGHT[kept] + 1
    if weights == "balanced":
        per_class = len(y) / (3 * np.bincount(y))
    else:
        per_class = np.array([weights.get(c, 1.0) for c in range(3)])
    by_class = make(class_weight=weights).fit(X_, y, weight)
    by_sample = make().fit(X_, y, weight * per_class[y])
    np.testing.assert_allclose(by_class.decision_function(X), by_sample.decision_function(X), atol=1e-5)


# Labels


NAMES = {
    "str": np.array(["cat", "dog", "eel"]),
    "object": np.array(["cat", "dog", "eel"], dtype=object),
    "negative": np.array([-7, -2, 5]),
    "float": np.array([0.0, 2.0, 9.0]),
    "turned": np.array(["b", "c", "a"]),
    "bool": np.array([False, True]),
    "pair": np.array(["no", "yes"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "turned"])
@pytest.mark.parametrize("make", [trainer, classifier])
def test_labels_of_any_type_give_the_same_answers(make, kind):
    names = NAMES[kind]
    codes = Y if len(names) == 3 else (Y == 2).astype(int)
    plain, named = make().fit(X, codes), make().fit(X, names[codes])
    np.testing.assert_array_equal(named.classes_, names)
    assert named.predict(X).dtype == names.dtype
    np.testing.assert_array_equal(named.predict(X), names[plain.predict(X)])
    np.testing.assert_array_equal(named.decision_function(X), plain.decision_function(X))
    assert named.robust_score(X, names[codes], ATTACK) == plain.robust_score(X, codes, ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize("as_labels", [list, pd.Series, lambda y: pd.Series(y).astype("category")])
def test_labels_may_come_in_any_container(as_labels):
    y = np.array(["cat", "dog", "eel"])[Y]
    plain, contained = classifier().fit(X, y), classifier().fit(X, as_labels(y))
    np.testing.assert_array_equal(contained.predict(X), plain.predict(X))
    assert contained.robust_score(X, as_labels(y), ATTACK) == plain.robust_score(X, y, ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize("make", [trainer, classifier])
def test_probabilities_and_decisions_agree_with_the_labels(make):
    for y in (Y, (Y == 2).astype(int)):
        fitted = make().fit(X, y)
        probabilities = fitted.predict_proba(X)
        assert probabilities.shape == (len(X), len(fitted.classes_))
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
        np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(1)], fitted.predict(X))
        decision = fitted.decision_function(X)
        if len(fitted.classes_) == 2:
            assert decision.shape == (len(X),)
            np.testing.assert_array_equal((decision > 0).astype(int), fitted.predict(X))
        else:
            np.testing.assert_array_equal(decision.argmax(1), fitted.predict(X))


def test_strings_of_digits_are_not_taken_for_numbers():
    many = np.arange(40) % 20
    fitted = trainer(max_epochs=0).fit(np.linspace(0, 1, 40)[:, None], many)
    with pytest.raises(ValueError, match="not seen in fit"):
        fitted.perturb(np.linspace(0, 1, 40)[:, None], many.astype(str), ATTACK)


# Inputs: images, rows, dtypes, data frames


@pytest.mark.slow
@pytest.mark.parametrize("make", [trainer, classifier, regressor])
def test_images_and_rows_give_the_same_answers(make):
    of_images = make(SMALL_CNN).fit(IMAGES, DIGITS)
    of_rows = make(SMALL_CNN, input_shape=[8, 8, 1]).fit(ROWS, DIGITS)
    assert of_images.input_shape_ == of_rows.input_shape_ == (8, 8, 1)
    assert of_images.n_features_in_ == 64
    for fitted in (of_images, of_rows):
        np.testing.assert_array_equal(fitted.predict(IMAGES), of_images.predict(ROWS))
        # BLAS computes a product with itself in another order
        np.testing.assert_allclose(fitted.gram(IMAGES[:5]), of_rows.gram(ROWS[:5], ROWS[:5]), rtol=1e-6)
    flat, square = (of_images.perturb(inputs, DIGITS, ATTACK) for inputs in (ROWS, IMAGES))
    assert flat.shape == ROWS.shape and square.shape == IMAGES.shape
    np.testing.assert_array_equal(flat, square.reshape(flat.shape))


@pytest.mark.slow
def test_a_trainer_fitted_on_images_is_used_on_rows():
    frozen = FrozenEstimator(image_trainer())
    on_images, on_rows = classifier(frozen).fit(IMAGES, DIGITS), classifier(frozen).fit(ROWS, DIGITS)
    np.testing.assert_array_equal(on_images.decision_function(ROWS), on_rows.decision_function(IMAGES))
    features = [TangentFeatures(frozen).fit(inputs).transform(inputs) for inputs in (IMAGES, ROWS)]
    np.testing.assert_array_equal(*features)


@pytest.mark.slow
def test_the_default_network_follows_the_shape_of_the_inputs(monkeypatch):
    monkeypatch.setitem(NETWORKS, "cnn", SMALL_CNN)  # the default one takes long to compile
    assert isinstance(trainer(None, max_epochs=0).fit(X, Y).model_.network, MLP)
    assert isinstance(trainer(None, max_epochs=0).fit(IMAGES, DIGITS).model_.network, CNN)
    named = trainer("mlp", max_epochs=0).fit(IMAGES, DIGITS)
    assert named.input_shape_ == (8, 8, 1) and isinstance(named.model_.network, MLP)


@pytest.mark.slow
@pytest.mark.parametrize("make", [trainer, classifier, regressor])
def test_float32_and_float64_inputs_give_the_same_answers(make):
    single = X.astype(np.float32)
    of_single, of_double = make().fit(single, Y), make().fit(single.astype(float), Y)
    scores = of_single._evaluate(single)
    assert scores.dtype == np.float32 and of_double._evaluate(X).dtype == float
    np.testing.assert_allclose(scores, of_double._evaluate(single.astype(float)), atol=1e-6)
    images = (IMAGES[:20] * 16).astype(np.uint8)
    np.testing.assert_array_equal(image_trainer().predict(images), image_trainer().predict(images.astype(float)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [trainer, classifier, regressor])
def test_data_frames_are_taken_without_a_warning(make):
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = make().fit(frame, Y)
        scores = fitted.score(frame, Y), fitted.robust_score(frame, Y, ATTACK)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    plain = make().fit(X, Y)
    assert scores == (plain.score(X, Y), plain.robust_score(X, Y, ATTACK))
    with pytest.raises(ValueError, match="feature names"):
        fitted.perturb(frame[["d", "c", "b", "a"]], Y, ATTACK)


# Where the kernel comes from


@pytest.mark.slow
def test_a_network_without_outputs_gets_one_for_each_class_or_target():
    assert classifier().fit(X, Y).model_.network.n_outputs == 3
    assert regressor().fit(X, TARGETS).model_.network.n_outputs == 2
    assert TangentFeatures(NETWORK).fit(X).model_.network.n_outputs == 1
    assert classifier(MLP(5, (6,))).fit(X, Y).gram(X).shape == (75, 75)
    assert NETWORK.n_outputs is None


def test_trainer_and_machine_start_from_the_same_network():
    untrained = trainer(max_epochs=0).fit(X, Y)
    np.testing.assert_array_equal(untrained.gram(X), classifier().fit(X, Y).gram(X))
    assert untrained.n_iter_ == 0 and untrained.loss_curve_ == []


def test_an_unfitted_trainer_is_cloned_and_fitted_inside():
    source = trainer()
    clf = classifier(source).fit(X, Y)
    assert not hasattr(source, "model_")
    by_hand = classifier(FrozenEstimator(trainer().fit(X, Y))).fit(X, Y)
    np.testing.assert_allclose(clf.decision_function(X), by_hand.decision_function(X), atol=1e-6)


def test_a_trainer_that_is_not_frozen_forgets_what_it_was_fitted_on():
    used = trainer(max_epochs=0).fit(X.reshape(-1, 2, 2, 1), Y == 0)
    model = used.model_
    fresh = classifier(trainer(max_epochs=0)).fit(X, Y)
    np.testing.assert_array_equal(classifier(used).fit(X, Y).decision_function(X), fresh.decision_function(X))
    assert used.model_ is model


def test_sample_weights_reach_a_trainer_inside():
    inside = classifier(trainer()).fit(X, Y, WEIGHT + 1)
    by_hand = trainer().fit(X, Y, WEIGHT + 1)
    np.testing.assert_allclose(inside.estimator_.predict_proba(X), by_hand.predict_proba(X), atol=1e-6)


def test_a_frozen_trainer_or_its_model_is_taken_as_it_is():
    fitted = fitted_trainer()
    for source in (FrozenEstimator(fitted), fitted.model_):
        clf = classifier(source).fit(X, Y)
        assert clf.model_ is fitted.model_
        np.testing.assert_array_equal(clf.gram(X), fitted.gram(X))


@pytest.mark.slow
def test_a_trace_kernel_may_come_from_a_network_with_other_classes():
    two = Y != 2
    clf = classifier(FrozenEstimator(fitted_trainer())).fit(X[two], Y[two])
    assert clf.score(X[two], Y[two]) > 0.95
    plain, renamed = (classifier(FrozenEstimator(fitted_trainer())).fit(X, y) for y in (Y, NAMES["turned"][Y]))
    np.testing.assert_allclose(
        renamed.decision_function(X), plain.decision_function(X)[:, [2, 0, 1]], rtol=1e-5, atol=1e-5
    )


PAIRING = [{"kernel": "class"}, {"kernel": FullNTK()}, {"solver": "sgd"}]


def unranked_full_kernel(model, x1, x2):
    return FullNTK()(model, x1, x2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [*PAIRING, {"kernel": unranked_full_kernel}], ids=[*map(str, PAIRING), "a callable of rank 4"]
)
def test_outputs_are_never_paired_with_other_classes(settings):
    clf = classifier(FrozenEstimator(fitted_trainer()), **settings)
    with pytest.raises(ValueError, match="one network output for each class"):
        clf.fit(X[Y != 2], Y[Y != 2])
    with pytest.raises(ValueError, match="fitted on the classes"):
        clf.fit(X, NAMES["turned"][Y])
    with pytest.raises(ValueError, match="one network output for each class"):
        regressor(FrozenEstimator(fitted_trainer()), **settings).fit(X, TARGETS)
    plain = clone(clf).fit(X, Y)
    by_position = clf.set_params(estimator=fitted_trainer().model_).fit(X, NAMES["str"][Y])
    np.testing.assert_allclose(by_position.decision_function(X), plain.decision_function(X), atol=1e-5)


def test_classes_of_an_earlier_source_do_not_matter():
    clf = classifier(FrozenEstimator(fitted_trainer()), kernel="class").fit(X, Y)
    clf.set_params(estimator=NETWORK).fit(X, NAMES["turned"][Y])
    assert clf.classes_.tolist() == ["a", "b", "c"]


# Tangent features


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "pseudo"])
def test_tangent_features_have_the_kernel_as_inner_products(kernel):
    features = TangentFeatures(fitted_trainer().model_, kernel=kernel).fit(X)
    Z = features.transform(X)
    assert Z.shape == (75, len(features.get_feature_names_out()))
    np.testing.assert_allclose(Z @ Z.T, fitted_trainer().gram(X, kernel=kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_ridge_regression_on_tangent_features_equals_the_kernel_machine():
    reg = regressor(fitted_trainer().model_, alpha=0.1).fit(X, TARGETS)
    ridge = 0.1 * np.diag(reg.gram(X)).mean()
    features = TangentFeatures(fitted_trainer().model_, kernel="trace")
    Z = features.fit_transform(X)
    linear = Ridge(alpha=ridge, fit_intercept=False).fit(Z, TARGETS - TARGETS.mean(0))
    np.testing.assert_allclose(linear.predict(Z) + TARGETS.mean(0), reg.predict(X), atol=1e-3)


def test_a_frozen_trainer_needs_no_labels_for_its_features():
    assert TangentFeatures(FrozenEstimator(fitted_trainer())).fit(X).model_ is fitted_trainer().model_
    with pytest.raises(ValueError, match="fit needs y"):
        TangentFeatures(trainer()).fit(X)
    assert isinstance(TangentFeatures(trainer()).fit(X, Y).model_, Model)


@pytest.mark.slow
def test_tangent_features_come_as_data_frames_when_asked():
    features = TangentFeatures(MLP(widths=(2,)), random_state=0).set_output(transform="pandas")
    frame = features.fit_transform(pd.DataFrame(X, columns=list("abcd")))
    assert frame.columns[:2].tolist() == ["tangentfeatures0", "tangentfeatures1"]
    assert frame.shape == (75, 4 * 2 + 2 + 2 + 1)


TRACED = []


def traced_logits(params, x):
    TRACED.append(x.shape)
    return x @ params


@pytest.mark.slow
def test_features_of_other_weights_are_not_compiled_again():
    def features(weights):
        model = Model(Stateless(traced_logits), Variables(jnp.asarray(weights, jnp.float32)))
        return TangentFeatures(model).fit(X)

    first, second = features(np.ones((4, 2))), features(np.eye(4, 2))
    first.transform(X)
    before = len(TRACED)
    second.transform(X)
    assert len(TRACED) == before > 0


def test_features_larger_than_the_budget_are_refused():
    with pytest.raises(MemoryError, match="transform fewer rows"):
        TangentFeatures(NETWORK, memory="10kB").fit(X).transform(X)


# In scikit-learn's company


@pytest.mark.slow
@pytest.mark.parametrize("last", [trainer(), classifier(), regressor(), LinearRegression()], ids=repr)
def test_pipelines(last):
    steps = [StandardScaler()] + [TangentFeatures(NETWORK, random_state=0)] * isinstance(last, LinearRegression)
    pipeline = make_pipeline(*steps, last)
    scaled = StandardScaler().fit_transform(X)
    if isinstance(last, LinearRegression):
        scaled = steps[1].fit_transform(scaled)
    expected = clone(last).fit(scaled, Y).predict(scaled)
    np.testing.assert_allclose(pipeline.fit(X, Y).predict(X), expected, atol=1e-5)


@pytest.mark.slow
def test_a_grid_goes_over_kernel_objects_and_epochs_of_the_source():
    grid = {"kernel": [TraceNTK(), FullNTK()], "estimator__max_epochs": [0, 5]}
    search = GridSearchCV(classifier(trainer()), grid, cv=2).fit(X, Y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert not search.cv_results_["mean_test_score"].min() < 0.3
    epochs = search.best_params_["estimator__max_epochs"]
    assert search.best_estimator_.estimator_.n_iter_ == epochs


@pytest.mark.slow
def test_cross_validation_takes_images():
    results = cross_validate(classifier(SMALL_CNN), IMAGES, DIGITS, cv=2, return_estimator=True)
    assert results["test_score"].min() > 0.5
    assert results["estimator"][0].input_shape_ == (8, 8, 1)


@pytest.mark.slow
def test_searches_run_in_other_processes():
    grid = {"alpha": [1e-2, 1.0]}
    here = GridSearchCV(classifier(), grid, cv=2).fit(X, Y)
    elsewhere = GridSearchCV(classifier(), grid, cv=2, n_jobs=2).fit(X, Y)
    np.testing.assert_array_equal(here.cv_results_["mean_test_score"], elsewhere.cv_results_["mean_test_score"])


ALL = [
    trainer(attack=ATTACK),
    classifier(FrozenEstimator(trainer()), kernel=FullNTK(), solver=Cholesky()),
    regressor(fresh_model(2)),
    TangentFeatures(trainer()),
]


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_estimators_are_cloned_and_pickled_before_fit(estimator):
    for copy in (clone(estimator), pickle.loads(pickle.dumps(estimator))):
        assert repr(copy) == repr(estimator)
        names = [name for name in estimator.get_params(deep=False) if name != "estimator"]
        assert all(getattr(copy, name) == getattr(estimator, name) for name in names)
    assert type(estimator).__name__ in estimator._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [trainer(attack=ATTACK), classifier(solver="sgd", max_epochs=2), classifier(kernel="full"), regressor()],
    ids=["trainer", "gradient descent", "closed form", "regressor"],
)
def test_what_was_fitted_is_stored_and_loaded(estimator, tmp_path):
    target = TARGETS if isinstance(estimator, EmpiricalNTKRegressor) else Y
    fitted = estimator.fit(X, target)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    loaded = joblib.load(tmp_path / "fitted.joblib")
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    np.testing.assert_array_equal(loaded._evaluate(X), fitted._evaluate(X))
    np.testing.assert_array_equal(loaded.perturb(X, target, FGSM(0.1)), fitted.perturb(X, target, FGSM(0.1)))


def test_parameters_are_read_and_set_through_the_source():
    clf = classifier(trainer(attack=ATTACK), attack=ATTACK)
    assert clf.get_params()["estimator__attack"] is ATTACK
    clf.set_params(attack=FGSM(0.1), estimator__attack=None, estimator__max_epochs=1)
    assert clf.attack == FGSM(0.1) and clf.estimator.attack is None and clf.estimator.max_epochs == 1
    assert "PGD(epsilon=0.05" in repr(clf.set_params(attack=ATTACK)).replace("\n", "")
    with pytest.raises(ValueError, match="Invalid parameter"):
        clf.set_params(attak=ATTACK)


def test_weights_are_routed_through_searches_and_pipelines():
    weight = WEIGHT + 1
    with sklearn.config_context(enable_metadata_routing=True):
        clf = classifier().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(clf, {"alpha": [0.1]}, cv=2).fit(X, Y, sample_weight=weight)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), clf)
        pipeline.fit(X, Y, sample_weight=weight)
        weighted_score = pipeline.score(X, Y, sample_weight=weight)
    by_hand = classifier(alpha=0.1).fit(X, Y, weight)
    np.testing.assert_array_equal(search.best_estimator_.dual_coef_, by_hand.dual_coef_)
    scaled = StandardScaler().fit_transform(X)
    last = classifier().fit(scaled, Y, weight)
    np.testing.assert_array_equal(pipeline[-1].dual_coef_, last.dual_coef_)
    assert weighted_score == last.score(scaled, Y, sample_weight=weight)


@pytest.mark.slow
def test_kernel_scores_can_be_calibrated():
    calibrated = CalibratedClassifierCV(classifier(), cv=2).fit(X, Y)
    assert calibrated.score(X, Y) > 0.8
    frozen = CalibratedClassifierCV(FrozenEstimator(classifier().fit(X, Y))).fit(X, Y)
    np.testing.assert_allclose(frozen.predict_proba(X).sum(1), 1)


# Attacks on the estimators themselves


def attacked():
    return {
        "network": fitted_trainer(),
        "closed form": classifier(FrozenEstimator(fitted_trainer())).fit(X, Y),
        "gradient descent": classifier(FrozenEstimator(fitted_trainer()), solver="sgd").fit(X, Y),
        "regressor": regressor(FrozenEstimator(fitted_trainer())).fit(X, TARGETS),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["network", "closed form", "gradient descent", "regressor"])
def test_attacks_lower_the_score_and_stay_in_ball_and_bounds(name):
    fitted = attacked()[name]
    target = TARGETS if name == "regressor" else Y
    attack = PGD(0.06, n_steps=5, bounds=(0.1, 0.98))
    inside = np.clip(X, 0.1, 0.98)
    X_adv = fitted.perturb(inside, target, attack)
    assert X_adv.shape == X.shape and isinstance(X_adv, np.ndarray)
    assert np.abs(X_adv - inside).max() <= 0.06 + 1e-6
    assert X_adv.min() >= 0.1 - 1e-7 and X_adv.max() <= 0.98 + 1e-7
    robust = fitted.robust_score(inside, target, attack)
    assert robust < fitted.score(inside, target) - 0.01
    assert robust == pytest.approx(fitted.score(X_adv, target), abs=1e-6)
    assert robust == fitted.robust_score(inside, target, attack, random_state=0)


@pytest.mark.slow
def test_robust_scores_are_weighted():
    fitted, X_adv = fitted_trainer(), fitted_trainer().perturb(X, Y, ATTACK)
    expected = np.average(fitted.predict(X_adv) == Y, weights=WEIGHT)
    assert fitted.robust_score(X, Y, ATTACK, sample_weight=WEIGHT) == pytest.approx(expected)


@pytest.mark.slow
def test_the_attack_of_training_is_the_default():
    fitted = trainer(attack=ATTACK).fit(X, Y)
    np.testing.assert_array_equal(fitted.perturb(X, Y), fitted.perturb(X, Y, ATTACK))
    assert fitted.robust_score(X, Y) == fitted.robust_score(X, Y, ATTACK)


@pytest.mark.slow
def test_adversarial_training_raises_robust_accuracy():
    attack = PGD(0.06, n_steps=5)
    benign = trainer(max_epochs=60).fit(X, Y)
    adversarial = trainer(attack=attack, max_epochs=60).fit(X, Y)
    assert adversarial.robust_score(X, Y) > benign.robust_score(X, Y, attack)


# Bad input


@pytest.mark.parametrize("make", [trainer, classifier, regressor])
def test_nothing_works_before_fit(make):
    methods = {
        "predict": (X,),
        "score": (X, Y),
        "gram": (X,),
        "perturb": (X, Y, ATTACK),
        "robust_score": (X, Y, ATTACK),
        **({} if make is regressor else {"predict_proba": (X,), "decision_function": (X,)}),
    }
    for name, arguments in methods.items():
        with pytest.raises(NotFittedError):
            getattr(make(), name)(*arguments)
    with pytest.raises(NotFittedError):
        TangentFeatures().transform(X)


BAD_SETTINGS = {
    "alpha": ([-1, np.nan, np.inf], "'alpha' parameter"),
    "kernel": (["trce"], "'trace', 'class', 'full', 'pseudo'"),
    "solver": (["cholesk", 3], "must be a str among .*'sgd'"),
    "dynamics": (["standard"], "'dynamics' parameter"),
    "max_epochs": ([-1, 1.5], "'max_epochs' parameter"),
    "learning_rate": ([0, np.nan], "'learning_rate' parameter"),
    "momentum": ([1.0], "'momentum' parameter"),
    "memory": (["2 gigabytes"], "memory must be"),
    "class_weight": (["balance"], "'class_weight' parameter"),
    "attack": (["pgd"], "'attack' parameter"),
    "estimator": (["mpl"], "'mlp', 'cnn', 'resnet18'"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_named(name):
    values, message = BAD_SETTINGS[name]
    for value in values:
        with pytest.raises(ValueError, match=message):
            classifier().set_params(**{name: value}).fit(X, Y)


def test_classes_in_place_of_instances_are_refused():
    with pytest.raises(TypeError, match=r"write PGD\(...\), not PGD"):
        trainer(attack=PGD).fit(X, Y)
    with pytest.raises(TypeError, match=r"write Cholesky\("):
        classifier(solver=Cholesky).fit(X, Y)
    with pytest.raises(TypeError, match=r"instance of a scikit-learn estimator.*write AdversarialKernelTrainer"):
        classifier(AdversarialKernelTrainer).fit(X, Y)
    with pytest.raises(TypeError, match="a network is 'mlp'"):
        classifier(MLP).fit(X, Y)
    with pytest.raises(ValueError, match="an attack is needed"):
        fitted_trainer().perturb(X, Y, PGD)


def test_an_unknown_norm_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'linf', 'l2', 'l1'"):
        PGD(0.1, norm="l3")


@pytest.mark.parametrize("source", [42, np.tanh, ["mlp"]], ids=str)
def test_what_is_no_network_is_refused(source):
    with pytest.raises(TypeError, match="a network is 'mlp'"):
        classifier(source).fit(X, Y)
    refused("CNN needs images", classifier("cnn").fit, X, Y)


def test_sources_that_leave_no_model_are_refused():
    for source in (LogisticRegression(), FrozenEstimator(LogisticRegression().fit(X, Y))):
        with pytest.raises(ValueError, match="must leave a Model in `model_`"):
            classifier(source).fit(X, Y)
    with pytest.raises(NotFittedError):
        classifier(FrozenEstimator(trainer())).fit(X, Y)


@pytest.mark.parametrize("n_outputs", [2, 5])
def test_a_trainer_needs_one_output_for_each_class(n_outputs):
    for network in (MLP(n_outputs, (6,)), fresh_model(n_outputs)):
        with pytest.raises(ValueError, match=f"network has {n_outputs} outputs, but y has 3 classes"):
            trainer(network, max_epochs=0).fit(X, Y)


def flat_logits(params, x):
    return x @ params


def flat_logits_init(key, input_shape):
    return jax.random.normal(key, input_shape)


@pytest.mark.parametrize("make", [trainer, classifier, regressor])
def test_a_network_must_return_rows_of_logits(make):
    with pytest.raises(ValueError, match=r"logits of shape \(n, C\)"):
        make(Stateless(flat_logits, flat_logits_init)).fit(X, Y)


@pytest.mark.slow
def test_a_model_of_images_asks_for_the_shape_of_rows():
    with pytest.raises(ValueError, match=r"rows that hold images need input_shape=\(h, w, c\)"):
        classifier(image_trainer().model_).fit(ROWS, DIGITS)
    fitted = classifier(image_trainer().model_, input_shape=(8, 8, 1)).fit(ROWS, DIGITS)
    assert fitted.score(ROWS, DIGITS) > 0.9


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 1), "stands for 9 features, but X has 64"),
        ((-8, -8, 1), "must be positive"),
        ((8.5, 8, 1), "sequence of positive integers"),
        (("8", 8, 1), "sequence of positive integers"),
        (64, "'input_shape' parameter"),
    ],
)
def test_an_input_shape_must_fit_the_rows(shape, message):
    with pytest.raises(ValueError, match=message):
        trainer(input_shape=shape).fit(ROWS, DIGITS)


@pytest.mark.slow
def test_images_of_another_shape_are_refused():
    wide = IMAGES.reshape(len(IMAGES), 4, 16, 1)
    with pytest.raises(ValueError, match=r"input_shape=\(8, 8, 1\), but X holds images of shape \(4, 16, 1\)"):
        trainer(input_shape=(8, 8, 1)).fit(wide, DIGITS)
    with pytest.raises(ValueError, match=r"fitted on inputs of shape \(8, 8, 1\), but X holds images"):
        image_trainer().predict(wide)
    with pytest.raises(ValueError, match=r"the estimator takes images of shape \(8, 8, 1\)"):
        classifier(FrozenEstimator(image_trainer())).fit(wide, DIGITS)
    with pytest.raises(ValueError, match="stands for 64 features, but X has 63"):
        classifier(FrozenEstimator(image_trainer())).fit(ROWS[:, :63], DIGITS)
    with pytest.raises(ValueError, match="0 sample"):
        trainer().fit(IMAGES[:0], DIGITS[:0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_must_be_finite(value):
    broken, broken_images = X.copy(), IMAGES.copy()
    broken[3, 1] = broken_images[3, 1, 1] = value
    for make in (trainer, classifier, regressor):
        refused("NaN|infinity", make().fit, broken, Y)
    refused("NaN|infinity", image_trainer().predict, broken_images)
    refused("NaN|infinity", fitted_trainer().perturb, broken, Y, ATTACK)
    refused("NaN|infinity", TangentFeatures().fit, broken)
    refused("NaN|infinity", regressor().fit, X, broken)


@pytest.mark.parametrize("make", [trainer, classifier])
def test_labels_must_be_of_two_classes_and_as_many_as_samples(make):
    refused("at least 2 classes", make().fit, X, np.zeros(75))
    refused("inconsistent numbers of samples", make().fit, X, Y[:-1])
    refused("Unknown label type", make().fit, X, X[:, 0])
    refused("Unknown label type", make().fit, X, np.array([1, "a", None], dtype=object)[Y])


@pytest.mark.parametrize("make", [trainer, classifier])
@pytest.mark.parametrize("weights", [{0: 0, 1: 0, 2: 0}, {0: -1}, {1: np.nan}, {7: 2}], ids=str)
def test_class_weights_must_leave_something_to_learn(make, weights):
    with pytest.raises(ValueError, match=r"non-zero|[Nn]egative|NaN|class_weight names 7"):
        make(class_weight=weights).fit(X, Y)


@pytest.mark.parametrize("weight", [np.zeros(75), -np.ones(75), np.ones(74)], ids=["zero", "negative", "short"])
def test_sample_weights_must_fit_the_samples(weight):
    for make in (trainer, classifier, regressor):
        with pytest.raises(ValueError, match=r"non-zero|Negative|sample_weight.shape"):
            make().fit(X, Y, weight)


def test_bad_labels_for_an_attack_are_named():
    fitted = fitted_trainer()
    refused(r"not seen in fit: \[3\]", fitted.perturb, X, Y + 1, ATTACK)
    refused(r"not seen in fit: \['0'", fitted.perturb, X, Y.astype(str), ATTACK)
    mixed = np.array([0, "1", None], dtype=object)[Y]
    refused("not seen in fit", fitted.perturb, X, mixed, ATTACK)
    refused("one label for each of the 75 samples", fitted.perturb, X, Y[:-1], ATTACK)
    refused("one label for each", fitted.perturb, X, indicators(Y), ATTACK)


def test_bad_targets_for_an_attack_are_named():
    reg = regressor().fit(X, TARGETS)
    refused("each of the 75 samples", reg.perturb, X, TARGETS[:3], ATTACK)
    refused("each of the 75 samples", reg.perturb, X, 1.0, ATTACK)
    refused("finite targets", reg.perturb, X, TARGETS * np.nan, ATTACK)
    refused("shaped like the scores", reg.perturb, X, TARGETS[:, 0], ATTACK)


def test_attacks_need_inputs_inside_of_their_bounds():
    message = "the attack's bounds are .* but X ranges from"
    refused(message, fitted_trainer().perturb, 2 * X, Y, ATTACK)
    refused(message, trainer(attack=ATTACK).fit, 2 * X, Y)
    refused(message, classifier(solver="sgd", attack=ATTACK).fit, 2 * X, Y)
    assert fitted_trainer().perturb(2 * X, Y, PGD(0.1, bounds=None)).shape == X.shape


def test_without_any_attack_there_is_nothing_to_score():
    for attack in (None, "pgd"):
        with pytest.raises(ValueError, match=r"an attack is needed.*fitted with attack=None"):
            fitted_trainer().robust_score(X, Y, attack)


def test_duplicates_without_a_ridge_are_singular():
    with pytest.raises(SingularGramError, match="Raise alpha"):
        classifier(alpha=0).fit(np.r_[X, X], np.r_[Y, Y])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer", "machine"])
def test_training_that_diverges_leaves_the_last_finite_model(name):
    settings = {"learning_rate": 1e38, "max_epochs": 5, "batch_size": 8}
    start = fresh_model(3)
    diverging = trainer(start, **settings)
    if name == "machine":
        diverging = classifier(start, solver="sgd", **settings)
    with pytest.raises(TrainingDivergedError, match="Lower the learning rate"):
        diverging.fit(100 * X, Y)
    model = diverging.model_ if name == "trainer" else diverging.predictor_
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model.variables))
    assert diverging.n_iter_ == len(diverging.loss_curve_) < 5
    assert name == "trainer" or diverging.model_ is start


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_candidate_that_diverges_does_not_end_a_search(n_jobs):
    grid = {"learning_rate": [0.01, 1e38]}
    search = GridSearchCV(trainer(max_epochs=3, batch_size=8), grid, cv=2, n_jobs=n_jobs)
    with pytest.warns(FitFailedWarning, match="training diverged"):
        search.fit(100 * X, Y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_divergence_pickles_with_the_last_finite_state():
    with pytest.raises(TrainingDivergedError) as caught:
        trainer(fresh_model(3), learning_rate=1e38, max_epochs=5, batch_size=8).fit(100 * X, Y)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.epoch, again.step) == (str(caught.value), caught.value.epoch, caught.value.step)
    pairs = zip(*(jax.tree.leaves(error.state.model) for error in (again, caught.value)), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_a_second_fit_leaves_nothing_of_the_first_solver():
    closed = classifier().fit(X, Y)
    stepped = clone(closed).set_params(solver="sgd", max_epochs=1).fit(X, Y)
    kinds = [set(vars(fitted)) for fitted in (closed, stepped)]
    closed.set_params(solver="sgd", max_epochs=1).fit(X, Y)
    stepped.set_params(solver="cholesky").fit(X, Y)
    assert [set(vars(fitted)) for fitted in (stepped, closed)] == kinds


@pytest.mark.slow
def test_no_epochs_leave_the_network_as_it_started():
    model = fresh_model(3)
    assert trainer(model, max_epochs=0).fit(X, Y).model_ is model
    untrained = classifier(model, solver="sgd", max_epochs=0).fit(X, Y)
    np.testing.assert_array_equal(untrained.decision_function(X), 0)
