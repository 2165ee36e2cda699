"""Machines on a Gram matrix that the user gives, or that lies in a store."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

from ntkrobust_sk import (
    MLP,
    PGD,
    ConjugateGradient,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    Model,
    as_model,
    gram,
    load,
    robust_accuracy,
)
from ntkrobust_sk.estimators.kernel_forms import KernelForm
from ntkrobust_sk.kernels import DamagedTileError, StoreMismatchError

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS = (DIGITS / 16).astype(np.float32)
X, y, X_TEST, Y_TEST = DIGITS[:90], LABELS[:90], DIGITS[90:130], LABELS[90:130]
NETWORK = MLP(n_outputs=10, widths=(16,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (64,)))
K, K_TEST = (np.asarray(gram("trace", MODEL, of, X)) for of in (X, X_TEST))
K = (K + K.T) / 2
TARGETS = load_diabetes(return_X_y=True)[1][:90]
MACHINES = {
    "classifier": (EmpiricalNTKClassifier, y),
    "classifier CV": (EmpiricalNTKClassifierCV, y),
    "regressor": (EmpiricalNTKRegressor, TARGETS),
    "regressor CV": (EmpiricalNTKRegressorCV, TARGETS),
}
each_machine = pytest.mark.parametrize("name", MACHINES)


def scores(machine, X):
    return machine.decision_function(X) if hasattr(machine, "classes_") else machine.predict(X)


@each_machine
def test_a_precomputed_kernel_gives_the_answers_of_the_kernel_itself(name):
    made, targets = MACHINES[name]
    expected = made(MODEL).fit(X, targets)
    found = made(kernel="precomputed").fit(K, targets)
    scale = np.abs(scores(expected, X_TEST)).max()
    np.testing.assert_allclose(scores(found, K_TEST), scores(expected, X_TEST), rtol=0, atol=1e-3 * scale)
    assert found.n_features_in_ == 90


@pytest.mark.parametrize("solver", ["cholesky", "eigh", "cg", "nystrom", "auto"])
def test_every_solver_of_a_matrix_takes_a_precomputed_one(solver):
    found = EmpiricalNTKClassifier(kernel="precomputed", solver=solver, alpha=1e-1).fit(K, y)
    expected = EmpiricalNTKClassifier(MODEL, alpha=1e-1).fit(X, y)
    assert (found.predict(K_TEST) == expected.predict(X_TEST)).mean() > 0.9


def test_the_tag_is_there_only_where_the_kernel_is_precomputed():
    assert EmpiricalNTKClassifier(kernel="precomputed").__sklearn_tags__().input_tags.pairwise
    assert not EmpiricalNTKClassifier().__sklearn_tags__().input_tags.pairwise


def test_cross_validation_splits_rows_and_columns():
    by_kernel = cross_val_score(EmpiricalNTKClassifier(kernel="precomputed"), K, y, cv=3)
    by_inputs = cross_val_score(EmpiricalNTKClassifier(MODEL), X, y, cv=3)
    np.testing.assert_allclose(by_kernel, by_inputs, atol=0.04)


def test_a_search_over_alpha_takes_the_matrix():
    search = GridSearchCV(EmpiricalNTKRegressor(kernel="precomputed"), {"alpha": [1e-2, 1.0]}, cv=3).fit(
        K, TARGETS
    )
    assert search.best_estimator_.dual_coef_.shape == (90, 1)


def test_weights_count_rows_of_a_precomputed_matrix():
    twice = np.r_[0:90, 0:20]
    weights = np.where(np.arange(90) < 20, 2.0, 1.0)
    found = EmpiricalNTKClassifier(kernel="precomputed").fit(K, y, sample_weight=weights)
    copies = EmpiricalNTKClassifier(kernel="precomputed").fit(K[np.ix_(twice, twice)], y[twice])
    np.testing.assert_allclose(
        found.decision_function(K_TEST), copies.decision_function(K_TEST[:, twice]), atol=1e-5
    )


@pytest.mark.parametrize("name", ["classifier", "regressor"])
def test_contributions_of_training_rows_add_up_to_the_answers(name):
    made, targets = MACHINES[name]
    machine = made(kernel="precomputed").fit(K, targets)
    terms = machine.attribute(K_TEST[:4])
    np.testing.assert_allclose(terms.sum(1) + machine.intercept_.squeeze(), scores(machine, K_TEST[:4]), rtol=1e-4)
    top = machine.top_attributions(K_TEST[:4], k=3)
    assert top.helpful.shape == (4, 3)
    if name == "regressor":
        assert (top.helpful[:, 0] == terms.argmax(1)).all()


def test_a_precomputed_machine_is_saved_and_loaded(tmp_path):
    machine = EmpiricalNTKClassifier(kernel="precomputed", calibrate=True).fit(K, y)
    machine.save(tmp_path / "machine.ntk")
    again = load(tmp_path / "machine.ntk")
    np.testing.assert_array_equal(again.predict_proba(K_TEST), machine.predict_proba(K_TEST))


def test_a_machine_that_was_fitted_on_inputs_forgets_them():
    machine = EmpiricalNTKClassifier(MODEL).fit(X, y)
    machine.set_params(kernel="precomputed", estimator=None).fit(K, y)
    assert not {"X_fit_", "model_", "predictor_"} & set(vars(machine))


NEEDS_INPUTS = {
    "an attack": lambda m: m.robust_score(K_TEST, Y_TEST, PGD(0.1)),
    "perturb": lambda m: m.perturb(K_TEST, Y_TEST, PGD(0.1)),
    "robust_accuracy": lambda m: robust_accuracy(m, K_TEST, Y_TEST, PGD(0.1)),
    "as_model": lambda m: as_model(m),
    "gram": lambda m: m.gram(X),
    "ood_score": lambda m: m.ood_score(K_TEST),
    "ood_model": lambda m: m.ood_model(),
}


@pytest.mark.parametrize("what", NEEDS_INPUTS)
def test_what_needs_inputs_says_so(what):
    machine = EmpiricalNTKClassifier(kernel="precomputed").fit(K, y)
    with pytest.raises(ValueError, match="'precomputed' knows numbers K"):
        NEEDS_INPUTS[what](machine)


def test_standard_deviations_need_the_diagonal():
    machine = EmpiricalNTKRegressor(kernel="precomputed").fit(K, TARGETS)
    for ask in (lambda: machine.predict(K_TEST, return_std=True), machine.std_model):
        with pytest.raises(ValueError, match="diagonal"):
            ask()


def broken(at, value):
    found = K.copy()
    found[at] = value
    return found


BAD_MATRICES = {
    "not square": (K[:, :50], "square"),
    "inputs": (X, "square matrix"),
    "not symmetric": (broken((0, 1), 1e3), "symmetric"),
    "NaN": (broken((0, 0), np.nan), "NaN"),
    "infinite": (broken((0, 0), np.inf), "infinity"),
    "distances": (np.abs(K - K.max()) * (1 - np.eye(90)) - np.eye(90), "not negative"),
    "a class kernel": (np.repeat(K[:, :, None], 3, 2), "kernel='class'"),
}


@each_machine
@pytest.mark.parametrize("case", BAD_MATRICES)
def test_what_is_no_gram_matrix_is_refused(name, case):
    made, targets = MACHINES[name]
    bad, said = BAD_MATRICES[case]
    with pytest.raises(ValueError, match=said):
        made(kernel="precomputed").fit(bad, targets)


@pytest.mark.parametrize("columns", [89, 64])
def test_columns_that_are_no_training_rows_are_refused(columns):
    machine = EmpiricalNTKClassifier(kernel="precomputed").fit(K, y)
    with pytest.raises(ValueError, match=f"X has {columns} features.*a column for each training row"):
        machine.predict(K_TEST[:, :columns])


NO_SAY = {
    "a network": {"estimator": MODEL},
    "parameters": {"params": "dense_0"},
    "a shape": {"input_shape": (8, 8, 1)},
    "a precision": {"precision": "bf16"},
    "a store": {"gram_store": "K.zarr"},
}


@pytest.mark.parametrize("case", NO_SAY)
def test_what_has_no_say_is_refused(case):
    with pytest.raises(ValueError, match=f"{next(iter(NO_SAY[case]))}=.*has no say"):
        EmpiricalNTKClassifier(kernel="precomputed", **NO_SAY[case]).fit(K, y)


@pytest.mark.parametrize("solver", ["sgd", "eigenpro"])
def test_solvers_that_take_no_matrix_are_refused(solver):
    with pytest.raises(ValueError, match=f"solver='{solver}'"):
        EmpiricalNTKClassifier(kernel="precomputed", solver=solver).fit(K, y)


def test_robust_selection_needs_inputs():
    with pytest.raises(ValueError, match="attacks the inputs"):
        EmpiricalNTKClassifierCV(kernel="precomputed", scoring="robust", attack=PGD(0.1)).fit(K, y)


def test_the_matrix_of_a_store_is_taken_in_place_of_a_computation(tmp_path, monkeypatch):
    gram("trace", MODEL, X, store=tmp_path / "K", dtype="float64")
    expected = EmpiricalNTKClassifier(MODEL).fit(X, y)
    monkeypatch.setattr("ntkrobust_sk.estimators.closed_form.gram_of", None)
    for machine in (
        EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K"),
        EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K", solver="cg", memory="60MiB"),
    ):
        found = machine.fit(X, y)
        np.testing.assert_allclose(found.decision_function(X_TEST), expected.decision_function(X_TEST), atol=1e-3)
    assert found.robust_score(X_TEST[:5], Y_TEST[:5], PGD(0.1, n_steps=2)) >= 0


def test_a_store_larger_than_memory_goes_by_its_tiles(tmp_path, monkeypatch):
    gram("trace", MODEL, X, store=tmp_path / "K", dtype="float64")
    # as if the matrix and its copy did not fit
    as_operator = lambda *given, **named: KernelForm(ConjugateGradient(), "operator")  # noqa: E731
    monkeypatch.setattr("ntkrobust_sk.estimators.tangent_machine.kernel_form", as_operator)
    monkeypatch.setattr("ntkrobust_sk.kernels.store.GramStore.read", None)
    found = EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K", solver="cg").fit(X, y)
    expected = EmpiricalNTKClassifier(MODEL).fit(X, y)
    np.testing.assert_allclose(found.decision_function(X_TEST), expected.decision_function(X_TEST), atol=1e-3)


def test_the_cv_machine_takes_a_store_too(tmp_path):
    gram("trace", MODEL, X, store=tmp_path / "K")
    found = EmpiricalNTKClassifierCV(MODEL, gram_store=str(tmp_path / "K")).fit(X, y)
    assert found.alpha_ == EmpiricalNTKClassifierCV(MODEL).fit(X, y).alpha_


OTHER = Model(NETWORK, NETWORK.init(jax.random.key(1), (64,)))
MISMATCHES = {
    "another kernel": ({"kernel": "pseudo"}, X, y, "kernel: .*TraceNTK.* there, .*PseudoNTK"),
    "other weights": ({"estimator": OTHER}, X, y, "sha256_variables"),
    "other parameters": (
        {"params": "dense_0"},
        X,
        y,
        r"params: all of them there, \('dense_0.bias', 'dense_0.kernel'\) here",
    ),
    "fewer rows": ({}, X[:80], y[:80], "90 rows there, only 80 here"),
    "more rows": ({}, DIGITS[:100], LABELS[:100], "90 rows there, 100 here"),
    "another order": ({}, X[::-1], y[::-1], "other numbers"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_store_of_something_else_is_refused_and_the_difference_named(case, tmp_path):
    gram("trace", MODEL, X, store=tmp_path / "K")
    changed, inputs, labels, said = MISMATCHES[case]
    given = {"estimator": MODEL, "gram_store": tmp_path / "K"} | changed
    with pytest.raises(StoreMismatchError, match=said):
        EmpiricalNTKClassifier(**given).fit(np.ascontiguousarray(inputs), labels)


def test_a_store_that_is_not_there_or_not_finished_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Gram store"):
        EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K").fit(X, y)
    gram("trace", MODEL, X, store=tmp_path / "K")
    (tmp_path / "K" / "c" / "0" / "0").unlink()
    with pytest.raises(DamagedTileError):
        EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K").fit(X, y)


@pytest.mark.parametrize("bad", [3, "", ["K"]])
def test_what_is_no_path_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="gram_store"):
        EmpiricalNTKClassifier(MODEL, gram_store=bad).fit(X, y)


@pytest.mark.parametrize("solver", ["sgd", "eigenpro"])
def test_a_store_is_refused_where_the_solver_takes_no_matrix(solver, tmp_path):
    gram("trace", MODEL, X, store=tmp_path / "K")
    with pytest.raises(ValueError, match="gram_store holds a Gram matrix"):
        EmpiricalNTKClassifier(MODEL, gram_store=tmp_path / "K", solver=solver).fit(X, y)


def test_a_support_vector_machine_agrees_on_the_same_matrix():
    ours = EmpiricalNTKClassifier(kernel="precomputed").fit(K, y).score(K_TEST, Y_TEST)
    assert abs(ours - SVC(kernel="precomputed", C=100).fit(K, y).score(K_TEST, Y_TEST)) < 0.1


def test_memory_is_asked_for_before_the_kernel_is_computed(monkeypatch):
    monkeypatch.setattr("ntkrobust_sk.kernels.room.host_bytes_free", lambda: 2**20)
    monkeypatch.setattr("ntkrobust_sk.kernels.room.NOT_ASKED", 0)
    monkeypatch.setattr("ntkrobust_sk.kernels.tiles.compute_tiles", None)
    rows = np.concatenate([DIGITS] * 2)[:600]
    with pytest.raises(MemoryError, match=r"600 rows, the matrix 1\.373 MiB .*gram_operator"):
        gram("trace", MODEL, rows)
    with pytest.raises(MemoryError, match=r"600 rows and 500 columns"):
        gram("trace", MODEL, rows, rows[:500])
    with pytest.raises(MemoryError, match=r"solving .* solver='cg'"):
        EmpiricalNTKClassifier(MODEL).fit(rows[:400], LABELS[:400])
    with pytest.raises(MemoryError, match=r"solving .* solver='cg'"):
        EmpiricalNTKClassifierCV(kernel="precomputed").fit(np.eye(400), LABELS[:400])


def test_a_frozen_source_with_a_store_is_verified_too(tmp_path):
    trained = EmpiricalNTKClassifier(MODEL).fit(X, y)
    gram("trace", MODEL, X, store=tmp_path / "K")
    found = EmpiricalNTKClassifier(FrozenEstimator(trained), gram_store=tmp_path / "K").fit(X, y)
    assert found.score(X, y) > 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_precomputed_kernel_that_is_not_finite_is_named_by_its_entry(bad):
    K = np.eye(6)
    y = np.arange(6) % 2
    fitted = EmpiricalNTKClassifier(kernel="precomputed").fit(K, y)
    K[2, 4] = bad
    machine = EmpiricalNTKClassifier(kernel="precomputed")
    for call in (lambda: machine.fit(K, y), lambda: machine.fit(K.tolist(), y), lambda: fitted.predict(K)):
        with pytest.raises(ValueError, match=rf"K\[2, 4\] is {bad} \(1 of 36 entries"):
            call()


def test_an_attack_has_no_say_in_a_machine_on_a_precomputed_kernel():
    with pytest.raises(ValueError, match=r"kernel='precomputed'.*attack=PGD.* has no say"):
        EmpiricalNTKClassifier(kernel="precomputed", attack=PGD(0.1)).fit(np.eye(6), np.arange(6) % 2)
