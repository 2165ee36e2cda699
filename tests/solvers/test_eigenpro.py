"""EigenPro: the weights of its dual coefficients in any precision, with and without a ridge, and its inputs."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import EmpiricalNTKClassifier, ProjectedNTK
from ntkrobust_sk.solvers import EigenPro, FeatureGram, InaccurateSolveError, solve

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=(20_000, 20))
TARGETS = np.stack([GAUSSIAN @ np.ones(20) + RNG.normal(size=20_000), RNG.normal(size=20_000)], axis=1)


def residual_of_dual(features, targets, dual, ridge, weight=None):
    """The largest relative residual of any target at w = Φᵀ a, in double precision."""
    features, weight = features.astype(float), np.ones(len(features)) if weight is None else weight
    w, weighted = features.T @ dual, weight[:, None] * targets
    left = features.T @ (weight[:, None] * (features @ w) - weighted) + ridge * w
    return (np.linalg.norm(left, axis=0) / np.linalg.norm(features.T @ weighted, axis=0)).max()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("alpha", [1.0, 1e-2, 1e-5, 1e-12, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_eigenpro_says_holds_for_the_weights_of_its_dual_coefficients(dtype, alpha, weighted):
    features, weight = GAUSSIAN.astype(dtype), np.arange(20_000) % 3 / 7.0 if weighted else None
    given = {"alpha": alpha, "solver": "eigenpro", "sample_weight": weight, "return_report": True}
    dual, report = solve(FeatureGram(features), TARGETS, **given)
    found = residual_of_dual(features, TARGETS, dual, report.ridge, weight)
    assert report.converged and found <= 1e-3
    assert found == pytest.approx(report.residual, rel=1e-2)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_folded_dual_coefficients_are_weights_in_double_precision(dtype):
    features = GAUSSIAN.astype(dtype)
    dual, V = RNG.normal(size=(20_000, 2)) * 1e3, RNG.normal(size=20_000)
    K = FeatureGram(features)
    np.testing.assert_allclose(K.fold(dual), features.T.astype(float) @ dual, rtol=1e-9)
    np.testing.assert_allclose(K.fold(V), features.T.astype(float) @ V, rtol=1e-9)
    np.testing.assert_allclose(
        K.matmat(dual), features.astype(float) @ (features.T.astype(float) @ dual), rtol=1e-9
    )


@pytest.mark.parametrize("n_features", [1, 2, 20])
@pytest.mark.parametrize("n", [400, 2000, 20_000])
@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
def test_without_a_ridge_eigenpro_comes_to_least_squares(n, n_features, size):
    features, targets = GAUSSIAN[:n, :n_features], TARGETS[:n, :1]
    w = size * features.T @ solve(FeatureGram(size * features), targets, alpha=0, solver="eigenpro")
    exact = np.linalg.lstsq(features, targets, rcond=None)[0] / size
    np.testing.assert_allclose(w, exact, atol=2e-3 * np.abs(exact).max())


@pytest.mark.parametrize("alpha", [0, 1e-12])
def test_columns_that_depend_on_others_need_no_ridge(alpha):
    features = GAUSSIAN[:400].copy()
    features[:, 1] = features[:, 0]
    dual, report = solve(FeatureGram(features), TARGETS[:400], alpha=alpha, solver="eigenpro", return_report=True)
    assert report.converged and residual_of_dual(features, TARGETS[:400], dual, report.ridge) <= 1e-3


@pytest.mark.parametrize("alpha", [0, 1e-3, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (3, 20), (4, 3), (30, 200), (60, 60)])
def test_few_rows_converge_by_default(shape, alpha):
    rng = np.random.default_rng(3)
    features, targets = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    dual, report = solve(FeatureGram(features), targets, alpha=alpha, solver="eigenpro", return_report=True)
    assert report.converged and residual_of_dual(features, targets, dual, report.ridge) <= 1e-3


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-7, 0])
def test_columns_that_few_rows_have_converge_by_default(alpha):
    X, y = load_digits(return_X_y=True)
    # corner pixels of a handful of scans
    assert (np.count_nonzero(X, axis=0) == 1).any()
    targets = np.eye(10)[y] - np.eye(10)[y].mean(0)
    dual, report = solve(FeatureGram(X), targets, alpha=alpha, solver="eigenpro", return_report=True)
    assert report.converged and residual_of_dual(X, targets, dual, report.ridge) <= 1e-3


def test_steps_that_a_long_row_forbids_end_in_an_error_that_tells_its_length():
    features = np.where(np.arange(5000)[:, None] == 7, 1e4, 1.0) * GAUSSIAN[:5000]
    with pytest.raises(
        InaccurateSolveError, match=r"a row of features, with its weight, is 5e\+03 times the mean"
    ):
        solve(FeatureGram(features), TARGETS[:5000], alpha=1e-9, solver="eigenpro")


def test_machines_on_projected_features_answer_as_those_of_cholesky():
    X, y = load_digits(return_X_y=True)
    kept = y < 3
    X, y = X[kept] / 16, y[kept]
    given = {"kernel": ProjectedNTK(16), "alpha": 1e-3, "random_state": 0}
    exact = EmpiricalNTKClassifier("mlp", **given).fit(X[:300], y[:300]).decision_function(X[300:])
    solver = EigenPro(max_epochs=100)
    machine = EmpiricalNTKClassifier("mlp", solver=solver, **given).fit(X[:300], y[:300])
    assert np.abs(machine.decision_function(X[300:]) - exact).max() < 0.05 * np.abs(exact).max()


# What features are made of

ROWS = GAUSSIAN[:20, :30]
FEW = np.where(np.abs(GAUSSIAN[:20]) > 1, GAUSSIAN[:20], 0.0)
OF_ONE_KIND = {
    "pandas": pd.DataFrame,
    "pandas of other names": lambda rows: pd.DataFrame(
        rows, index=np.arange(len(rows))[::-1], columns=[str(i) for i in range(rows.shape[1])]
    ),
    "polars": pl.DataFrame,
    "csr": sp.csr_array,
    "csc matrix": sp.csc_matrix,
    "coo": sp.coo_array,
    "lil": sp.lil_array,
}


@pytest.mark.parametrize("kind", OF_ONE_KIND)
@pytest.mark.parametrize("shape", [(20, 5), (5, 20), (1, 1)])
def test_rows_come_from_data_frames_and_sparse_matrices(kind, shape):
    rows = FEW[: shape[0], : shape[1]] + np.eye(*shape)
    K, dense = FeatureGram(OF_ONE_KIND[kind](rows)), FeatureGram(rows)
    V = GAUSSIAN[: shape[0], :2]
    np.testing.assert_allclose(K.diagonal(), dense.diagonal())
    np.testing.assert_allclose(K.fold(V), dense.fold(V))
    np.testing.assert_allclose(K.columns([0]), dense.columns([0]))
    for solver in ("eigenpro", "nystrom", "cg"):
        given = {"alpha": 0.1, "solver": solver}
        np.testing.assert_allclose(solve(K, V, **given), solve(dense, V, **given), rtol=1e-6, atol=1e-9)


def test_a_transformer_gets_the_frame_that_it_was_fitted_to():
    frame = pd.DataFrame(GAUSSIAN[:50, :3], columns=["age", "height", "weight"])
    scaler = ColumnTransformer([("scaled", StandardScaler(), ["age", "weight"])]).fit(frame)
    scaled = scaler.transform(frame)
    assert isinstance(scaled, np.ndarray)
    np.testing.assert_allclose(FeatureGram(frame, scaler.transform).matmat(np.eye(50)), scaled @ scaled.T)


def test_a_transformer_may_give_sparse_rows():
    K = FeatureGram(FEW, sp.csr_array)
    np.testing.assert_allclose(K.matmat(np.eye(20)), FEW @ FEW.T)


class Columns:
    """What takes names of columns, as some libraries' tables do."""

    shape = (20, 4)

    def __getitem__(self, name):
        return {"age": np.ones(20)}[name]


class Slices(Columns):
    def __getitem__(self, at):
        return np.ones((20, 4)).T[at]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (Columns(), TypeError, "^inputs must give rows.*Columns.*raised"),
        (Slices(), TypeError, "^inputs must give rows.*Slices.*gave"),
        (sp.linalg.aslinearoperator(ROWS), TypeError, "^inputs must give rows"),
        (np.ma.masked_greater(ROWS, 1), TypeError, "^features must be a dense array of values, got a masked"),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), ValueError, "^features must be numbers"),
        (pd.DataFrame({"a": [np.nan, 1.0]}), ValueError, "^features must be finite"),
        (pd.Series([1.0, 2.0]), ValueError, "^inputs must be an array of rows"),
        ([[1.0, 2.0]], ValueError, "^inputs must be an array of rows"),
    ],
)
def test_inputs_that_give_no_rows_are_named(inputs, error, message):
    with pytest.raises(error, match=message):
        FeatureGram(inputs).diagonal()
