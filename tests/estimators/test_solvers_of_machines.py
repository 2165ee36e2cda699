"""solver= of the kernel machines: with a matrix, an operator and rows of features, saved, copied and attacked."""

import pickle
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from ntkrobust_sk import (
    FGSM,
    MLP,
    Cholesky,
    ConjugateGradient,
    EigenPro,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Nystrom,
    ProjectedNTK,
    load,
)

X, Y = load_digits(return_X_y=True)
# 5 classes of 1 number each would be others
X, Y = X[Y < 3][:90] / 16, Y[Y < 3][:90]
NETWORK = MLP(n_outputs=3, widths=(8,))
# less than a matrix of 90 rows and its copy take
SMALL = 64 * 1024
GIVEN = {"alpha": 1e-1, "random_state": 0}


@cache
def exact(kernel="trace"):
    return EmpiricalNTKClassifier(NETWORK, kernel=kernel, **GIVEN).fit(X, Y)


def relative(machine, other):
    found, expected = machine.decision_function(X), other.decision_function(X)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kernel", ["trace", "class", "full"])
@pytest.mark.parametrize("memory", ["2GiB", SMALL], ids=["matrix", "operator"])
def test_conjugate_gradients_give_the_machine_of_cholesky(kernel, memory):
    machine = EmpiricalNTKClassifier(NETWORK, kernel=kernel, solver="cg", memory=memory, **GIVEN).fit(X, Y)
    assert relative(machine, exact(kernel)) < 1e-4
    assert machine.solver_ == ConjugateGradient() and machine.residual_ <= 1e-6 and machine.n_iter_ > 1


@pytest.mark.parametrize("memory", ["2GiB", SMALL], ids=["matrix", "operator"])
def test_landmarks_fold_into_a_predictor_that_is_attacked_saved_and_pickled(memory, tmp_path):
    solver = Nystrom(n_landmarks=30)
    machine = EmpiricalNTKClassifier(NETWORK, solver=solver, memory=memory, **GIVEN).fit(X, Y)
    assert np.count_nonzero(machine.dual_coef_.any(axis=1)) <= 30 and machine.dual_coef_.shape == (90, 3)
    assert machine.score(X, Y) > 0.9 and machine.solver_ == solver
    machine.save(tmp_path / "machine.ntk")
    scores = machine.decision_function(X)
    for copy in (load(tmp_path / "machine.ntk"), pickle.loads(pickle.dumps(machine))):
        np.testing.assert_array_equal(copy.decision_function(X), scores)
        assert copy.solver_ == solver and copy.residual_ == machine.residual_
    assert machine.robust_score(X, Y, FGSM(0.3)) < machine.score(X, Y)
    assert clone(machine).solver == solver


@pytest.mark.parametrize("kernel", ["pseudo", ProjectedNTK(64)], ids=["pseudo", "projected"])
@pytest.mark.parametrize("memory", ["2GiB", 2**17], ids=["kept", "computed again"])
def test_eigenpro_on_tangent_features_gives_the_machine_of_cholesky(kernel, memory):
    solver = EigenPro(tol=1e-4, max_epochs=200)
    machine = EmpiricalNTKClassifier(NETWORK, kernel=kernel, solver=solver, memory=memory, **GIVEN).fit(X, Y)
    assert relative(machine, exact(kernel)) < 1e-2
    assert machine.residual_ <= 1e-4


def test_auto_takes_what_fits_and_says_so(capsys):
    machine = EmpiricalNTKClassifier(NETWORK, solver="auto", verbose=1, **GIVEN).fit(X, Y)
    assert machine.solver_ == Cholesky() and not hasattr(machine, "residual_")
    assert "Cholesky(max_residual=None) of a kernel as matrix" in capsys.readouterr().out
    machine.set_params(memory=SMALL).fit(X, Y)
    assert machine.solver_ == ConjugateGradient() and machine.residual_ <= 1e-6
    assert "of a kernel as operator. preconditioner of rank" in capsys.readouterr().out
    machine.set_params(solver="sgd", verbose=0, max_epochs=1).fit(X, Y)
    assert machine.solver_ == "sgd" and not hasattr(machine, "residual_")


def test_a_weight_of_two_is_the_row_twice():
    weights = np.where(np.arange(90) % 3 == 0, 2.0, 1.0)
    rows = np.repeat(np.arange(90), weights.astype(int))
    given = {"solver": ConjugateGradient(tol=1e-9), "memory": SMALL, "alpha": 0.1, "random_state": 0}
    y = np.sin(4 * X[:, 20:22])
    weighted = EmpiricalNTKRegressor(NETWORK, **given).fit(X, y, sample_weight=weights)
    twice = EmpiricalNTKRegressor(NETWORK, **given).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.predict(X), twice.predict(X), atol=1e-5)


def test_what_has_not_converged_warns_and_is_kept():
    machine = EmpiricalNTKClassifier(NETWORK, solver=ConjugateGradient(max_iter=2, rank=0), **GIVEN)
    with pytest.warns(ConvergenceWarning, match="after 2 iterations"):
        machine.fit(X, Y)
    assert machine.n_iter_ == 2 and machine.residual_ > 1e-6 and np.isfinite(machine.decision_function(X)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "lu"}, "'solver' parameter of EmpiricalNTKClassifier must be"),
        ({"solver": "eigenpro", "kernel": "class"}, "eigenpro.*takes tangent features.*kernel='pseudo'"),
        ({"solver": "nystrom", "alpha": 0}, "^alpha must be > 0 with solver='nystrom'.*got alpha=0"),
        ({"solver": "nystrom", "alpha": 0, "memory": SMALL}, "^alpha must be > 0 with solver='nystrom'"),
        ({"solver": "cg", "memory": SMALL, "calibrate": True}, "calibrate=True.*give more memory"),
    ],
)
def test_a_solver_that_does_not_fit_the_kernel_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EmpiricalNTKClassifier(NETWORK, **{**GIVEN, **given}).fit(X, Y)
