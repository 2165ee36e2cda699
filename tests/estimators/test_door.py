"""What is no number, array, choice or function of the right form is refused by name, before anything else."""

from fractions import Fraction
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import (
    CNN,
    FAB,
    MLP,
    PGD,
    Box,
    Cholesky,
    Eigh,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    EvolutionResult,
    ImageGridDisplay,
    InaccurateSolveError,
    KernelEvolution,
    Model,
    Stateless,
    TangentFeatures,
    Variables,
    effective_rank,
    eigenfeature_images,
    gram,
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    kernel_velocity,
    load_cifar10,
    ntk_features,
    perturb,
    robust_accuracy,
    robustness_report,
    solve,
    target_alignment,
    top_mass,
    train,
)
from ntkrobust_sk.kernels.ntk import TraceNTK
from ntkrobust_sk.kernels.predictors import make_predictor
from ntkrobust_sk.kernels.store import read_gram
from ntkrobust_sk.testing.laws import check_tiling_invariance

K = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])
Y = np.eye(3)
ODD_NUMBERS = [None, "x", b"x", True, 1j, 10**400, float("nan"), float("inf"), [], {}, np.array([1, 2]), object()]
ODD_ARRAYS = ["x", None, 5, object(), [[1, 2], [3]], np.array([["a"]]), K.astype(object), np.ma.array(K), {}, np]


def dots(model, x1, x2):
    """A kernel that is no tangent kernel."""
    return x1 @ x2.T


@pytest.mark.parametrize("odd", ODD_NUMBERS, ids=lambda odd: type(odd).__name__)
def test_numbers_of_measures_and_solvers_are_refused_by_name(odd):
    for name, call in {
        "dt": lambda: kernel_velocity(K, Y, odd),
        "k": lambda: top_mass(K, odd),
        "alpha": lambda: solve(K, Y, alpha=odd),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            call()
    for name in ("max_residual", "rcond"):
        if odd is not None:
            with pytest.raises(ValueError, match=f"{name} must be"):
                Eigh(**{name: odd})


@pytest.mark.parametrize("odd", ODD_ARRAYS, ids=lambda odd: type(odd).__name__)
def test_matrices_and_targets_that_are_none_are_refused_by_name(odd):
    for name, call in {
        "K1": lambda: kernel_distance(odd, K),
        "K2": lambda: kernel_alignment(K, odd),
        "K": lambda: effective_rank(odd),
        "y": lambda: target_alignment(K, odd),
        "K_classes": lambda: kernel_specialization(odd, Y),
        "gram": lambda: solve(odd, Y, alpha=1.0),
        "targets": lambda: solve(K, odd, alpha=1.0),
        "A": lambda: Cholesky()(odd, Y),
        "B": lambda: Cholesky()(K, odd),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            call()
    if odd is not None:
        with pytest.raises((TypeError, ValueError), match="sample_weight must"):
            solve(K, Y, alpha=1.0, sample_weight=odd)


@pytest.mark.parametrize("odd", [np.array([1, 2]), [], {}, object(), "rows"], ids=lambda odd: type(odd).__name__)
def test_choices_and_flags_of_measures_are_refused_by_name(odd):
    classes = np.stack([K, Y], axis=-1)
    with pytest.raises(ValueError, match="unknown normalization"):
        kernel_specialization(classes, Y[:, :2], normalization=odd)
    with pytest.raises(ValueError, match="unknown kind"):
        effective_rank(K, odd)
    for call in (lambda: kernel_alignment(K, Y, odd), lambda: target_alignment(K, Y, odd)):
        with pytest.raises(ValueError, match="centered must be True or False"):
            call()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_targets_of_any_scale_are_aligned_with_as_those_of_scale_one(scale):
    assert target_alignment(K, scale * Y[:, 0]) == pytest.approx(target_alignment(K, Y[:, 0]), rel=1e-15)
    classes = np.stack([K, Y], axis=-1)
    got = kernel_specialization(classes, scale * Y[:, :2])
    assert got == pytest.approx(kernel_specialization(classes, Y[:, :2]), rel=1e-14)


def test_a_step_too_short_for_a_finite_velocity_is_refused():
    with pytest.raises(ValueError, match="dt must be long enough"):
        kernel_velocity(K, Y, 1e-310)


@pytest.mark.parametrize(
    "answer",
    [None, 1.0, "x", [], np.zeros(3), np.zeros((1, 3)), [[1, 2], [3]]],
    ids=lambda answer: type(answer).__name__ + str(np.shape(answer) if not isinstance(answer, list) else ""),
)
def test_a_solver_that_returns_something_else_than_an_answer_is_named(answer):
    def no_solver(A, B):
        return answer

    with pytest.raises((TypeError, ValueError), match=r"solver must return a finite array .*no_solver"):
        solve(K, Y, alpha=1.0, solver=no_solver)


def test_a_solver_whose_answer_is_not_finite_or_that_takes_other_arguments_is_refused():
    with pytest.raises(InaccurateSolveError, match="solver must return a finite array"):
        solve(K, Y, alpha=1.0, solver=lambda A, B: B * np.nan)
    with pytest.raises(TypeError, match=r"solver must be callable as solver\(A, B\), but .* takes"):
        solve(K, Y, alpha=1.0, solver=lambda A: A)
    with pytest.raises(ValueError, match="what the solver returned must be real"):
        solve(K, Y, alpha=1.0, solver=lambda A, B: B + 0j)
    got = solve(K, Y, alpha=1.0, solver=lambda A, B: jnp.asarray(np.linalg.solve(A, B)))
    assert type(got) is np.ndarray
    assert got == pytest.approx(solve(K, Y, alpha=1.0), rel=1e-5)


NETWORK = MLP(2, widths=(3,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (4,)))
X_ROWS, LABELS = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32), np.arange(6) % 2
TRAINING = {"start": MODEL, "X": X_ROWS, "y": LABELS, "key": jax.random.key(0), "optimizer": optax.sgd(0.1)}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"start": NETWORK}, "start, a Model or a TrainState, must be"),
        ({"start": lambda x: x}, "start, a Model or a TrainState, must be"),
        ({"X": "rows"}, "X must be an array"),
        ({"X": X_ROWS.astype(object)}, "X must be an array"),
        ({"X": X_ROWS.astype(float) * 1e300}, "X holds .*, which float32 cannot"),
        ({"X": X_ROWS[:, :3]}, "cannot take inputs of shape"),
        ({"y": LABELS.astype(str)}, "y must be an array"),
        ({"y": LABELS[:, None]}, "integer labels must be of shape"),
        ({"y": LABELS[:3]}, "X and y must have the same"),
        ({"y": LABELS * np.nan}, "y must be finite"),
        ({"key": 0}, "key must be a JAX PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key must be one JAX PRNG key"),
        ({"optimizer": 0.1}, "optimizer must be an optax"),
        ({"optimizer": NETWORK}, "optimizer must be an optax"),
        ({"attacks": PGD(0.1)}, "attacks must be a tuple"),
        ({"attacks": (PGD,)}, "an attack is needed"),
        ({"attacks": (lambda model, x: x,)}, "each of attacks must be callable as"),
        ({"epochs": "x"}, "epochs must be"),
        ({"epochs": -1}, "epochs must be"),
        ({"epochs": True}, "epochs must be"),
        ({"batch_size": {}}, "batch_size must be"),
        ({"sample_weight": "x"}, "sample_weight must be"),
        ({"freeze_state": "no"}, "freeze_state must be True or False"),
    ],
)
def test_training_refuses_by_name_when_it_is_called(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train(**(TRAINING | change))


def test_epochs_that_fall_and_an_optimizer_of_another_state_are_refused():
    with pytest.raises(ValueError, match="epochs must rise, but 1 comes after 2"):
        list(train(**TRAINING, epochs=[2, 1]))
    state = next(train(**TRAINING))
    with pytest.raises(ValueError, match="optimizer must be the one that start was trained with"):
        train(state, X_ROWS, LABELS, optimizer=optax.adam(0.1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [str, "S", object, list], ids=str)
def test_targets_that_are_numbers_written_as_text_are_numbers(kind):
    text = LABELS.astype(str)
    given = text.tolist() if kind is list else text.astype(kind)
    machine, same = (EmpiricalNTKRegressor(MODEL).fit(X_ROWS, y) for y in (given, LABELS.astype(float)))
    np.testing.assert_array_equal(machine.predict(X_ROWS), same.predict(X_ROWS))


@pytest.mark.parametrize("answer", [None, 1.0, np.zeros((1, 4), np.float32)], ids=["None", "a number", "one row"])
def test_training_refuses_examples_of_another_shape_than_its_inputs(answer):
    def no_attack(model, x, y, *, key):
        return answer

    with pytest.raises(ValueError, match=r"an attack must return examples shaped like its inputs, .*no_attack"):
        next(train(**TRAINING, attacks=(no_attack,)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": NETWORK}, "model must be a"),
        ({"X": X_ROWS[:3]}, "X and coefficients must have the same"),
        ({"coefficients": np.ones((6, 3))}, "coefficients must have a column for each of 2 outputs"),
        ({"coefficients": np.zeros((6, 2))}, "coefficients of output 0 point nowhere"),
        ({"n_steps": None}, "n_steps must be"),
        ({"step_size": None}, "step_size must be"),
        ({"bounds": None}, "bounds must be"),
        ({"bounds": (1, 0)}, "high of bounds must be"),
    ],
)
def test_images_of_eigenfeatures_refuse_by_name(change, message):
    given = {"model": MODEL, "X": X_ROWS, "coefficients": np.ones((6, 2)), "n_steps": 1} | change
    with pytest.raises((TypeError, ValueError), match=message):
        eigenfeature_images(**given)


def test_images_are_finite_where_the_gradient_vanishes():
    model = Model(Stateless(lambda p, x: (x * (x > 2)) @ p), Variables(np.ones((4, 2), np.float32)))
    found = eigenfeature_images(model, 3 + X_ROWS, np.ones((6, 2)), n_steps=2)
    assert (found.cosines == 0).all() and np.isfinite(found.images).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": NETWORK}, "model must be a"),
        ({"y": LABELS[:3]}, "X and y must have the same"),
        ({"y_test": LABELS[:3]}, "X_test and y_test must have the same"),
        ({"y": LABELS - 1}, "y must hold integer labels"),
        ({"attack": PGD}, "an attack is needed"),
        ({"n_features": "2"}, "n_features must be"),
        ({"K": np.ones((3, 3))}, "K must be the Gram matrix of X"),
        ({"K": -np.eye(6)}, "K must have a positive eigenvalue"),
        ({"K": np.eye(6) * np.nan}, "K must be finite"),
    ],
)
def test_eigenfeatures_refuse_by_name(change, message):
    given = {"X": X_ROWS, "y": LABELS, "X_test": X_ROWS, "y_test": LABELS, "attack": PGD(0.1), "n_features": 2}
    with pytest.raises((TypeError, ValueError), match=message):
        ntk_features(**({"kernel": "trace", "model": MODEL, "key": jax.random.key(0)} | given | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"random_state": 2**32}, "'random_state' parameter of EmpiricalNTKClassifier must be"),
        ({"alpha": True}, "alpha must be a finite number"),
        ({"alpha": float("inf")}, "'alpha' parameter of EmpiricalNTKClassifier must be"),
        ({"memory": "much"}, "memory"),
        ({"attack": lambda model, x: x}, "attack must be callable as"),
        ({"estimator": LogisticRegression}, r"write LogisticRegression\(...\)"),
        ({"estimator": nn.Dense(2)}, "from_flax"),
        ({"estimator": lambda x: x}, "a network is"),
    ],
)
def test_estimators_refuse_by_name(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EmpiricalNTKClassifier(**({"estimator": MODEL} | change)).fit(X_ROWS, LABELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd", ["x", 10**400, object(), NETWORK, [["Rome"]], jax.random.key(0)], ids=lambda o: type(o).__name__
)
def test_inputs_of_estimators_that_are_no_numbers_are_refused_by_name(odd):
    fitted = EmpiricalNTKClassifier(MODEL, alpha=0.1).fit(X_ROWS, LABELS)
    with pytest.raises((TypeError, ValueError), match="X must be an array of numbers"):
        fitted.predict(odd)


IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 4, 1)).astype(np.float32)
CONVOLUTIONS = CNN(3, widths=(2,), strides=(1,))
IMAGE_MODEL = Model(CONVOLUTIONS, CONVOLUTIONS.init(jax.random.key(0), (4, 4, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    {
        "gram of a row": lambda: gram("trace", MODEL, X_ROWS[0]),
        "gram of an image": lambda: gram("trace", IMAGE_MODEL, IMAGES[0]),
        "columns": lambda: gram("trace", IMAGE_MODEL, IMAGES, IMAGES[0]),
        "model": lambda: IMAGE_MODEL(IMAGES[0]),
        "attack": lambda: PGD(0.1)(IMAGE_MODEL, IMAGES[0], np.array([1]), key=jax.random.key(0)),
        "accuracy": lambda: robust_accuracy(IMAGE_MODEL, IMAGES[0], np.arange(4) % 3, PGD(0.1)),
        "estimator": lambda: EmpiricalNTKClassifier(IMAGE_MODEL).fit(IMAGES, [0, 1, 2]).predict(IMAGES[0]),
    }.values(),
)
def test_a_single_input_is_told_how_to_become_an_array_of_one(call):
    with pytest.raises(ValueError, match=r"write [XY]\[None\]"):
        call()


def test_inputs_of_another_shape_are_not_taken_for_a_single_one():
    with pytest.raises(ValueError) as error:
        IMAGE_MODEL(IMAGES[..., 0])
    assert "[None]" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/K.zarr", "https://a.org/K.zarr", "file:///tmp/K.zarr", Path("gs://b")]
)
def test_urls_are_refused_and_make_no_folder(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: gram("trace", MODEL, X_ROWS, store=url),
        lambda: read_gram(url),
        lambda: KernelEvolution("digits").run(url),
        lambda: load_cifar10(url),
    ):
        with pytest.raises(ValueError, match="of this machine, got the URL"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fractions_are_numbers_to_estimators_as_they_are_to_attacks():
    halves = [EmpiricalNTKClassifier(MODEL, alpha=half).fit(X_ROWS, LABELS) for half in (0.5, Fraction(1, 2))]
    np.testing.assert_array_equal(*(clf.decision_function(X_ROWS) for clf in halves))
    with pytest.raises(ValueError, match="'momentum' parameter of EmpiricalNTKClassifier must be"):
        EmpiricalNTKClassifier(MODEL, momentum=Fraction(4, 3)).fit(X_ROWS, LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("y", [[np.nan, 1.0], [np.inf, 1.0], [None, 1.0], [1j, 1.0]], ids=str)
def test_targets_that_are_not_finite_real_numbers_are_refused_by_name(y):
    y, reg = np.array(y * 3), EmpiricalNTKRegressor(MLP(1)).fit(X_ROWS[:6], np.arange(6.0))
    for call in (reg.fit, reg.score, lambda X, y: reg.robust_score(X, y, PGD(0.1, 1, bounds=None))):
        with pytest.raises(ValueError, match=r"y must hold finite targets|y contains|: y must be real"):
            call(X_ROWS[:6], y)


@pytest.mark.slow
def test_dates_are_no_inputs_and_a_series_is_no_table():
    clf, days = EmpiricalNTKClassifier(MODEL).fit(X_ROWS, LABELS), np.arange(8).reshape(2, 4)
    for dates in (days.astype("M8[D]"), days.astype("m8[D]")):
        with pytest.raises(TypeError, match=r"X must be an array of numbers, got .*write X.astype\(float\)"):
            clf.predict(dates)
    with pytest.raises(ValueError, match="2-dimensional"):
        clf.predict(pd.Series(np.arange(4)))


@pytest.mark.parametrize(
    "stranger, advice",
    [
        (nn.Dense(3), "from_flax"),
        (MLP(3), "Model"),
        ("lr", "got 'lr'"),
        (LogisticRegression, r"write Log.*\(\.\.\.\)"),
    ],
    ids=["flax", "network", "name", "class"],
)
def test_what_is_attacked_is_an_estimator_or_a_function(stranger, advice):
    for takes in (robust_accuracy, perturb):
        with pytest.raises((TypeError, ValueError), match=f"estimator.*{advice}"):
            takes(stranger, X_ROWS, LABELS, PGD(0.1))


@pytest.mark.slow
def test_methods_that_an_estimator_has_not_are_no_attributes_of_it():
    reg, features = EmpiricalNTKRegressor(MLP(1)).fit(X_ROWS, LABELS * 1.0), TangentFeatures(MODEL).fit(X_ROWS)
    for estimator, name in ((reg, "predict_proba"), (reg, "decision_function"), (features, "predict")):
        assert not hasattr(estimator, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "q",
    [jax.random.key(0), [[1, 2], [3]], "x", 1j, [None], object(), np.nan, 2, -0.5, []],
    ids=lambda q: type(q).__name__,
)
def test_quantiles_that_are_no_shares_are_refused_by_name(q):
    model = LogisticRegression().fit(X_ROWS, LABELS)
    report = robustness_report(model, X_ROWS, LABELS, [0.1], attacks=PGD(0.1, 1), nearest=FAB(0.1, n_steps=2))
    with pytest.raises((TypeError, ValueError), match="q must be"):
        report.quantiles(q)
    half = report.quantiles(0.5)
    assert np.shape(half) == () and report.quantiles([0.5]) == report.quantiles(np.float32(0.5)) == half


def test_parameters_and_results_that_are_strangers_are_named_whatever_they_raise():
    model = Model(Stateless(lambda p, x: x @ p), Variables(pd.Series(np.arange(12))))
    with pytest.raises(TypeError, match=r"model\.variables\.params"):
        model(X_ROWS)
    for stranger in (nn.Dense(3), EvolutionResult, None):
        with pytest.raises(TypeError, match="result must be an EvolutionResult"):
            ImageGridDisplay.from_evolution(stranger)


@pytest.mark.parametrize("name", ["dual_coef", "offset"])
def test_coefficients_of_a_predictor_that_are_not_finite_are_refused_by_name(name):
    given = {"dual_coef": np.ones((6, 2)), "offset": np.zeros(2)}
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        make_predictor(TraceNTK(), MODEL, X_ROWS, **(given | {name: given[name] + np.inf}))


@pytest.mark.slow
def test_labels_of_objects_are_those_of_their_type():
    clf, attack = LogisticRegression().fit(X_ROWS, LABELS), PGD(0.1, 2)
    scores = {robust_accuracy(clf, X_ROWS, y, attack) for y in (LABELS, LABELS.astype(object), LABELS.tolist())}
    assert len(scores) == 1


def test_tiles_of_no_size_are_refused():
    with pytest.raises(ValueError, match="tile_rows must hold one number of rows or more"):
        check_tiling_invariance(TraceNTK(), MODEL, X_ROWS, tile_rows=())


@pytest.mark.parametrize(
    "kernel, size, named",
    [
        (TraceNTK(), 1e39, "dual_coef holds"),
        (TraceNTK(), 1e38, "sum over X of dual_coef holds"),
        (dots, 1e39, "dual_coef"),
    ],
)
def test_coefficients_of_a_predictor_that_overflow_are_refused_by_name(kernel, size, named):
    with pytest.raises(ValueError, match=named):
        make_predictor(kernel, MODEL, X_ROWS, np.full((6, 2), size), np.zeros(2))


def test_no_more_workers_are_asked_for_than_there_are_tiles():
    expected = gram("trace", MODEL, X_ROWS)
    np.testing.assert_array_equal(gram("trace", MODEL, X_ROWS, n_jobs=2**31 - 1), expected)
    with pytest.raises(ValueError, match="n_jobs must be"):
        gram("trace", MODEL, X_ROWS, n_jobs=2**32)
    np.testing.assert_array_equal(gram("trace", MODEL, X_ROWS, memory=1e300), expected)


def test_variables_of_a_model_are_variables():
    for variables in (("a", "b"), tuple(MODEL.variables), None):
        model = Model(MODEL.network, variables)
        assert "Model(" in repr(model)
        for use in (model, lambda X, model=model: gram("trace", model, X)):
            with pytest.raises(TypeError, match="must be Variables"):
                use(X_ROWS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_of_a_predictor_that_are_not_finite_are_refused_by_name(value):
    with pytest.raises(ValueError, match="X must be finite"):
        make_predictor(TraceNTK(), MODEL, X_ROWS + np.float32(value), np.ones((6, 2)), np.zeros(2))


def test_a_mask_is_boolean_whatever_came():
    with pytest.raises(ValueError, match="mask must hold a boolean"):
        Box(mask=jax.random.split(jax.random.key(0), 3))


def test_positions_of_a_box_are_integers_whatever_came():
    with pytest.raises(ValueError, match="integers must be positions"):
        Box(integers=jax.random.split(jax.random.key(0), 3))


@pytest.mark.slow
def test_sparse_targets_are_told_to_be_dense():
    reg = EmpiricalNTKRegressor(MLP(1)).fit(X_ROWS, LABELS * 1.0)
    with pytest.raises(TypeError, match=r"y must be .*toarray"):
        reg.robust_score(X_ROWS, scipy.sparse.csr_matrix(LABELS[:, None]), attack=PGD(0.1, bounds=None))


ROWS, LABELS_OF_ROWS = np.random.default_rng(0).uniform(size=(12, 4)), np.arange(12) % 3
WEIGHTS = [
    np.zeros(12),
    -np.ones(12),
    np.r_[-5.0, np.ones(11)],
    np.r_[np.nan, np.ones(11)],
    np.r_[np.inf, np.ones(11)],
]


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS, ids=["zero", "negative", "one negative", "nan", "inf"])
@pytest.mark.parametrize("make", [EmpiricalNTKClassifier, EmpiricalNTKRegressor, LogisticRegression])
def test_weights_of_scores_are_named_and_not_the_labels(make, weights):
    fitted, attack = make().fit(ROWS, LABELS_OF_ROWS), PGD(0.1, 2)
    calls = [lambda: robust_accuracy(fitted, ROWS, LABELS_OF_ROWS, attack, sample_weight=weights)]
    if make is not LogisticRegression:
        calls.append(lambda: fitted.score(ROWS, LABELS_OF_ROWS, sample_weight=weights))
    for call in calls:
        with pytest.raises(ValueError, match=r"^sample_weight must hold finite weights >= 0, at least one"):
            call()


@pytest.mark.parametrize("dtype, excess", [(np.float32, "1.00003"), (np.float64, "1.00000003")])
def test_an_excess_over_the_bounds_is_shown_however_small(dtype, excess):
    X = ROWS.astype(dtype)
    X[5, 2] = float(excess)
    with pytest.raises(ValueError, match=rf"feature 2 of row 5 is {excess}\d* where it must be 1\.0 at most\)"):
        robust_accuracy(LogisticRegression().fit(ROWS, LABELS_OF_ROWS), X, LABELS_OF_ROWS, PGD(0.1, 2))
    images = X.reshape(12, 2, 2, 1) - 1
    images[5] = 0
    images[7, 1, 0, 0] = -2
    with pytest.raises(ValueError, match=r"feature \(1, 0, 0\) of row 7 is -2.0 where it must be -1.0 at least\)"):
        PGD(0.1, 2, bounds=(-1, 0))(lambda x: x.reshape(len(x), 4), images, LABELS_OF_ROWS, key=jax.random.key(0))


@pytest.mark.parametrize(
    "labels, odd",
    [([None, "a", "b"], "None"), ([0, 1, None], "None"), ([1, "a", "b"], "'a'"), (["a", "b", 3], "3")],
)
def test_labels_of_several_kinds_are_named(labels, odd):
    y = np.array(labels, dtype=object)[LABELS_OF_ROWS]
    with pytest.raises(
        ValueError, match=rf"^Unknown label type: y must hold labels of one kind, text or numbers, got {odd} among"
    ):
        EmpiricalNTKClassifier().fit(ROWS, y)
    numbers = np.array([2, 1.5, True], dtype=object)[LABELS_OF_ROWS]
    with pytest.raises(ValueError, match="Unknown label type"):  # of scikit-learn, and not of ours
        EmpiricalNTKClassifier().fit(ROWS, numbers)


@pytest.mark.slow
def test_masked_arrays_are_refused_everywhere_and_what_they_hide_is_not_used():
    fitted = EmpiricalNTKClassifier(random_state=0).fit(ROWS, LABELS_OF_ROWS)
    masked, labels = np.ma.array(ROWS, mask=ROWS > 0.9), np.ma.array(LABELS_OF_ROWS, mask=LABELS_OF_ROWS > 1)
    for make in (EmpiricalNTKClassifier, EmpiricalNTKRegressor, TangentFeatures):
        with pytest.raises(
            TypeError, match=r"X must be a dense array of values, got a masked array; write X\.filled"
        ):
            make().fit(masked, LABELS_OF_ROWS)
    for call in (fitted.predict, fitted.predict_proba, lambda X: fitted.score(X, LABELS_OF_ROWS)):
        with pytest.raises(TypeError, match="X must be a dense array of values, got a masked array"):
            call(masked)
    for call in (EmpiricalNTKClassifier().fit, EmpiricalNTKRegressor().fit, fitted.score):
        with pytest.raises(TypeError, match="y must be a dense array of values, got a masked array"):
            call(ROWS, labels)
