"""Conjugate gradients, landmarks and EigenPro: against dense solutions, with weights, and what they say."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.exceptions import ConvergenceWarning

from ntkrobust_sk.solvers import (
    ConjugateGradient,
    EigenPro,
    FeatureGram,
    Nystrom,
    RidgeSystem,
    SingularGramError,
    chosen_solver,
    pivoted_cholesky,
    solve,
)
from ntkrobust_sk.solvers.direct import Cholesky

RNG = np.random.default_rng(0)
N, K_FEATURES = 300, 40
FEATURES = RNG.normal(size=(N, K_FEATURES)) / np.arange(1, K_FEATURES + 1)
TARGETS = RNG.normal(size=(N, 3))
POINTS = np.linspace(0, 3, N)[:, None]
# with eigenvalues of all sizes, down to rounding
SMOOTH = np.exp(-np.abs(POINTS - POINTS.T))
WEIGHTS = RNG.integers(0, 4, N)
REPEATED = np.repeat(np.arange(N), WEIGHTS)


class MatrixOperator(LinearOperator):
    """A matrix that tells its diagonal and its columns."""

    def __init__(self, matrix):
        self.matrix = matrix
        super().__init__(matrix.dtype, matrix.shape)

    def _matmat(self, X):
        return self.matrix @ X

    def diagonal(self):
        return np.diagonal(self.matrix)

    def columns(self, indices):
        return self.matrix[:, indices]


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def folded(dual):
    """The dual coefficients of copies, added up."""
    found = np.zeros((N, dual.shape[1]))
    np.add.at(found, REPEATED, dual)
    return found


# Conjugate gradients


@pytest.mark.parametrize("form", [np.asarray, MatrixOperator], ids=["matrix", "operator"])
@pytest.mark.parametrize("rank", [None, 0, 5])
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
def test_conjugate_gradients_agree_with_cholesky(form, rank, weight):
    given = {"alpha": 1e-3, "sample_weight": weight}
    cg = ConjugateGradient(tol=1e-11, rank=rank)
    dual, report = solve(form(SMOOTH), TARGETS, solver=cg, return_report=True, **given)
    assert relative(dual, solve(SMOOTH, TARGETS, **given)) < 1e-8
    assert report.converged and report.residual <= 1e-11 and 1 < report.n_iter < 300
    assert report.solver == cg


def test_the_reported_residual_is_that_of_the_equations():
    dual, report = solve(SMOOTH, TARGETS, alpha=1e-2, solver="cg", return_report=True)
    residual = SMOOTH @ dual + 1e-2 * dual - TARGETS
    worst = (np.linalg.norm(residual, axis=0) / np.linalg.norm(TARGETS, axis=0)).max()
    assert report.residual == pytest.approx(worst, rel=1e-3) and worst <= 1e-6


def test_a_preconditioner_of_more_columns_spares_iterations():
    iterations = [
        solve(SMOOTH, TARGETS, alpha=1e-3, solver=ConjugateGradient(rank=rank), return_report=True)[1].n_iter
        for rank in (0, 10, 100)
    ]
    assert iterations[0] > iterations[1] > 2 * iterations[2]


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_factor_in_single_precision_leaves_few_iterations_in_all_units(weight, dtype, scale):
    K = (SMOOTH * scale).astype(dtype)
    given = {"alpha": 1e-4, "sample_weight": weight}
    dual, report = solve(K, TARGETS, solver=ConjugateGradient(tol=1e-10), return_report=True, **given)
    assert "single precision" in report.detail and report.n_iter <= 6 and report.converged
    expected = solve(K.astype(float), TARGETS, **given)
    assert relative(dual, expected) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_refinement_by_a_close_factor_takes_one_product_a_step(monkeypatch, dtype):
    products, product = [], RidgeSystem.product
    monkeypatch.setattr(RidgeSystem, "product", lambda of, V: products.append(V) or product(of, V))
    K = SMOOTH.astype(dtype)
    dual, report = solve(K, TARGETS, alpha=1e-2, solver=ConjugateGradient(tol=1e-12), return_report=True)
    assert report.converged and len(products) == report.n_iter <= 4
    left = K.astype(float) @ dual + report.ridge * dual - TARGETS
    worst = (np.linalg.norm(left, axis=0) / np.linalg.norm(TARGETS, axis=0)).max()
    assert worst <= 1e-12 and report.residual == pytest.approx(worst, rel=0.1)


@pytest.mark.parametrize("max_iter", [1, 2])
def test_refinement_ends_with_the_iterations_and_says_what_is_left(max_iter):
    cg = ConjugateGradient(tol=1e-13, max_iter=max_iter)
    with pytest.warns(ConvergenceWarning, match=f"after {max_iter} iteration"):
        dual, report = solve(SMOOTH, TARGETS, alpha=1e-3, solver=cg, return_report=True)
    left = np.linalg.norm(SMOOTH @ dual + report.ridge * dual - TARGETS, axis=0)
    assert report.residual == pytest.approx((left / np.linalg.norm(TARGETS, axis=0)).max(), rel=1e-3)


@pytest.mark.parametrize("alpha", [1e-5, 1e-6, 1e-7])
def test_a_ridge_below_the_rounding_of_single_precision_still_converges(alpha):
    K = np.tile(FEATURES @ FEATURES.T, (3, 3))
    targets = K @ RNG.normal(size=(len(K), 2))
    dual, report = solve(K, targets, alpha=alpha, solver="cg", return_report=True)
    assert report.converged and report.n_iter < 100
    assert relative(K @ dual, K @ solve(K, targets, alpha=alpha)) < 1e-4


def test_an_indefinite_kernel_is_solved_where_the_ridge_makes_it_definite_and_refused_where_it_does_not():
    # one eigenvalue is -0.8
    K = np.eye(N) - 0.9 * np.ones((N, N)) / N * 2
    cg = ConjugateGradient(tol=1e-9)
    dual, report = solve(K, TARGETS, alpha=0.9, solver=cg, return_report=True)
    assert report.converged
    np.testing.assert_allclose(dual, solve(K, TARGETS, alpha=0.9), rtol=1e-4, atol=1e-6)
    with pytest.raises(SingularGramError):
        solve(K, TARGETS, alpha=0.5, solver="cg")


def test_right_hand_sides_that_depend_on_each_other_are_no_breakdown():
    y = np.eye(3)[RNG.integers(0, 3, N)]
    y = y - y.mean(0)
    y = np.column_stack([y, y[:, 0], np.zeros(N)])
    dual = solve(SMOOTH, y, alpha=1e-3, solver=ConjugateGradient(tol=1e-10))
    np.testing.assert_allclose(dual, solve(SMOOTH, y, alpha=1e-3), rtol=1e-6, atol=1e-8)
    assert (dual[:, 4] == 0).all()


def test_an_operator_without_columns_is_solved_without_a_preconditioner_and_says_so():
    A = SMOOTH + 0.1 * np.eye(N)
    np.testing.assert_allclose(
        ConjugateGradient(tol=1e-10)(aslinearoperator(A), TARGETS), np.linalg.solve(A, TARGETS)
    )

    class Diagonal(LinearOperator):
        def _matmat(self, X):
            return SMOOTH @ X

        def diagonal(self):
            return np.ones(N)

    _, report = solve(Diagonal(float, (N, N)), TARGETS, alpha=0.1, solver="cg", return_report=True)
    assert "no preconditioner: the operator has no diagonal() and columns(indices)" in report.detail
    with pytest.raises(ValueError, match=r"units of the mean diagonal.*add one.*ConjugateGradient\(\)\(operator"):
        solve(aslinearoperator(SMOOTH), TARGETS, alpha=0.1, solver="cg")


@pytest.mark.parametrize("solver", [ConjugateGradient(tol=1e-12), Nystrom(n_landmarks=24)], ids=repr)
@pytest.mark.parametrize("rank", [3, 4])
def test_class_and_full_kernels_are_solved_as_matrices_and_as_operators(solver, rank):
    n, C = 12, 2
    features = RNG.normal(size=(n, C, 30))
    full = np.einsum("icp,jdp->ijcd", features, features)
    y, w = TARGETS[:n, :C], WEIGHTS[:n]
    K = full if rank == 4 else np.ascontiguousarray(np.moveaxis(np.diagonal(full, axis1=2, axis2=3), -1, -1))
    dense = full if rank == 4 else full * np.eye(C)
    operator = MatrixOperator(dense.transpose(0, 2, 1, 3).reshape(n * C, n * C))
    expected = solve(K, y, alpha=0.1, sample_weight=w)
    for gram in (K, operator):
        dual = solve(gram, y, alpha=0.1, sample_weight=w, solver=solver)
        np.testing.assert_allclose(dual, expected, rtol=1e-6, atol=1e-9)


def test_iterative_solvers_stay_in_the_arrays_library():
    strict = array_api_strict.asarray(SMOOTH)
    for solver in (ConjugateGradient(tol=1e-10), Nystrom(n_landmarks=N)):
        dual = solve(strict, TARGETS, alpha=1e-2, solver=solver)
        assert dual.__array_namespace__() is array_api_strict
        np.testing.assert_allclose(np.asarray(dual), solve(SMOOTH, TARGETS, alpha=1e-2), rtol=1e-4, atol=1e-6)


def test_what_has_not_converged_is_kept_with_a_warning_that_has_the_residual_and_advice():
    cg = ConjugateGradient(max_iter=3, rank=0)
    with pytest.warns(
        ConvergenceWarning, match=r"after 3 iterations.*residual is .*above tol=1.0e-06.*Raise alpha"
    ):
        dual, report = solve(SMOOTH, TARGETS, alpha=1e-6, solver=cg, return_report=True)
    assert not report.converged and report.n_iter == 3 and np.isfinite(dual).all()
    assert report.residual == pytest.approx(
        (np.linalg.norm(SMOOTH @ dual + 1e-6 * dual - TARGETS, axis=0) / np.linalg.norm(TARGETS, axis=0)).max(),
        rel=1e-3,
    )
    with pytest.warns(ConvergenceWarning):
        cg(SMOOTH + 1e-6 * np.eye(N), TARGETS)


@pytest.mark.parametrize(
    "matrix", [FEATURES @ FEATURES.T, np.diag([1.0, -1.0, *[1.0] * (N - 2)])], ids=["rank", "sign"]
)
@pytest.mark.parametrize("rank", [None, 0])
def test_a_matrix_that_is_not_positive_definite_is_refused(matrix, rank):
    with pytest.raises(SingularGramError, match=r"Raise alpha|not positive semidefinite"):
        ConjugateGradient(rank=rank, tol=1e-12)(matrix, TARGETS)


# Pivots


def test_the_accelerated_pivots_are_drawn_as_if_one_by_one():
    K, rank, draws = SMOOTH[:300:60, :300:60], 3, 250
    ends = [np.zeros(len(K)), np.zeros(len(K))]
    for counts, size in zip(ends, (1, 3), strict=True):
        for seed in range(draws):
            pivots = pivoted_cholesky(K, rank, block_size=size, seed=seed)[1]
            counts[pivots] += 1
    error = np.sqrt((ends[0] + ends[1]).max())
    assert np.abs(ends[0] - ends[1]).max() < 4 * error


def test_a_pivoted_cholesky_factor_interpolates_its_columns_and_is_a_triangle_at_its_pivots():
    factor, pivots = pivoted_cholesky(SMOOTH, 30)
    assert factor.shape == (N, 30) and len(set(pivots)) == 30
    np.testing.assert_allclose((factor @ factor.T)[:, pivots], SMOOTH[:, pivots], atol=1e-10)
    np.testing.assert_allclose(factor[pivots], np.tril(factor[pivots]), atol=1e-10)
    assert np.trace(SMOOTH - factor @ factor.T) < 0.2 * N
    again = pivoted_cholesky(MatrixOperator(SMOOTH), 30, block_size=6)
    np.testing.assert_array_equal(again[1], pivots)


# Landmarks


def test_landmarks_at_all_examples_are_the_exact_solution():
    for weight in (None, WEIGHTS):
        dual = solve(SMOOTH, TARGETS, alpha=1e-3, solver=Nystrom(n_landmarks=N), sample_weight=weight)
        assert relative(dual, solve(SMOOTH, TARGETS, alpha=1e-3, sample_weight=weight)) < 1e-6


def test_landmarks_minimise_the_ridge_objective_over_their_span():
    ridge = 1e-2
    dual, report = solve(SMOOTH, TARGETS, alpha=ridge, solver=Nystrom(n_landmarks=20), return_report=True)
    at = np.flatnonzero(dual[:, 0])
    assert len(at) == 20 and "20 landmarks" in report.detail
    K_nm, K_mm = SMOOTH[:, at], SMOOTH[np.ix_(at, at)]
    np.testing.assert_allclose(
        dual[at], np.linalg.solve(K_nm.T @ K_nm + ridge * K_mm, K_nm.T @ TARGETS), rtol=1e-6
    )


def test_landmarks_of_blocks_are_those_of_columns(monkeypatch):
    K = FeatureGram(FEATURES)
    expected = solve(FEATURES @ FEATURES.T, TARGETS, alpha=1e-2, sample_weight=WEIGHTS)
    monkeypatch.setattr("ntkrobust_sk.solvers.nystrom.WHOLE_BYTES", 16 * 60 * 150)
    dual = solve(K, TARGETS, alpha=1e-2, solver=Nystrom(n_landmarks=60), sample_weight=WEIGHTS)
    assert relative(FEATURES.T @ dual, FEATURES.T @ expected) < 1e-6
    assert np.count_nonzero(dual.any(axis=1)) == K_FEATURES


# Rows of features


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("alpha", [1e-1, 1e-3])
def test_eigenpro_comes_to_the_exact_solution(weight, alpha):
    solver = EigenPro(tol=1e-5, max_epochs=100)
    dual = solve(FeatureGram(FEATURES), TARGETS, alpha=alpha, solver=solver, sample_weight=weight)
    exact = FEATURES.T @ solve(FEATURES @ FEATURES.T, TARGETS, alpha=alpha, sample_weight=weight)
    assert relative(FEATURES.T @ dual, exact) < 1e-3


def test_eigenpro_reads_rows_as_a_transformer_makes_them():
    seen = []

    def transform(rows):
        seen.append(len(rows))
        return FEATURES[rows[:, 0]]

    K = FeatureGram(np.arange(N)[:, None], transform)
    given = {"alpha": 1e-2, "solver": EigenPro(batch_size=32)}
    np.testing.assert_array_equal(solve(K, TARGETS, **given), solve(FeatureGram(FEATURES), TARGETS, **given))
    assert max(seen) <= N and seen.count(32) > 5


def test_blocks_of_a_gram_matrix_of_features_take_slices_and_indices():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    K, dense = FeatureGram(rows), rows @ rows.T
    for at in (slice(None), slice(1, 3), np.array([4, 1]), [4, 1]):
        np.testing.assert_allclose(K.block(at, [0, 2]), dense[at][:, [0, 2]])


def test_a_gram_matrix_of_features_is_their_products():
    K, dense = FeatureGram(FEATURES), FEATURES @ FEATURES.T
    np.testing.assert_allclose(K @ TARGETS, dense @ TARGETS)
    np.testing.assert_allclose(K @ TARGETS[:, 0], dense @ TARGETS[:, 0])
    np.testing.assert_allclose(K.diagonal(), np.diag(dense))
    np.testing.assert_allclose(K.columns([3, 1]), dense[:, [3, 1]])
    np.testing.assert_allclose(K.block(slice(2, 9), [3, 1]), dense[2:9, [3, 1]])


# One door


def test_a_weight_of_two_is_the_row_twice_in_iterative_solvers():
    copies, y = SMOOTH[np.ix_(REPEATED, REPEATED)], TARGETS[REPEATED]
    cg = ConjugateGradient(tol=1e-12)
    weighted = solve(SMOOTH, TARGETS, alpha=1e-2, solver=cg, sample_weight=WEIGHTS)
    assert relative(weighted, folded(solve(copies, y, alpha=1e-2, solver=cg))) < 1e-9
    # the same numbers choose the same points, where copies stand together
    some = Nystrom(n_landmarks=25)
    weighted = solve(SMOOTH, TARGETS, alpha=1e-2, solver=some, sample_weight=WEIGHTS)
    assert relative(weighted, folded(solve(copies, y, alpha=1e-2, solver=some))) < 1e-6
    for n_landmarks in (np.count_nonzero(WEIGHTS), N):
        every = Nystrom(n_landmarks=int(n_landmarks))
        weighted = SMOOTH @ solve(SMOOTH, TARGETS, alpha=1e-2, solver=every, sample_weight=WEIGHTS)
        twice = solve(copies, y, alpha=1e-2, solver=Nystrom(n_landmarks=int(n_landmarks), seed=1))
        assert relative(weighted, SMOOTH @ folded(twice)) < 1e-9
        assert relative(weighted, SMOOTH @ solve(SMOOTH, TARGETS, alpha=1e-2, sample_weight=WEIGHTS)) < 1e-9
    sgd = EigenPro(tol=1e-6, max_epochs=200)
    weighted = solve(FeatureGram(FEATURES), TARGETS, alpha=1e-1, solver=sgd, sample_weight=WEIGHTS)
    repeated = solve(FeatureGram(FEATURES[REPEATED]), y, alpha=1e-1, solver=sgd)
    assert relative(FEATURES.T @ weighted, FEATURES[REPEATED].T @ repeated) < 1e-3


@given(st.integers(2, 30), st.integers(0, 10**6), st.floats(1e-4, 1e2))
@settings(max_examples=25, deadline=None)
def test_conjugate_gradients_solve_any_gram_matrix_with_a_ridge(n, seed, alpha):
    features = np.random.default_rng(seed).normal(size=(n, max(1, n // 2)))
    dual = solve(features @ features.T, TARGETS[:n], alpha=alpha, solver=ConjugateGradient(tol=1e-9))
    np.testing.assert_allclose(dual, solve(features @ features.T, TARGETS[:n], alpha=alpha), rtol=1e-4, atol=1e-7)


def test_auto_chooses_by_size_ridge_and_kind():
    assert isinstance(chosen_solver(np.eye(3), 1e-2), Cholesky)
    large = np.broadcast_to(1.0, (12000, 12000))
    assert isinstance(chosen_solver(large, 1e-2), ConjugateGradient)
    assert isinstance(chosen_solver(large, 0.0), Cholesky)
    assert isinstance(chosen_solver(np.broadcast_to(1.0, (1200, 1200, 10, 10)), 1e-2), ConjugateGradient)
    assert isinstance(chosen_solver(MatrixOperator(SMOOTH), 0.0), ConjugateGradient)
    _, report = solve(FeatureGram(FEATURES), TARGETS, alpha=1e-1, solver="auto", return_report=True)
    assert isinstance(report.solver, EigenPro)
    _, report = solve(SMOOTH, TARGETS, alpha=1e-1, solver="auto", return_report=True)
    assert report.solver == Cholesky() and report.residual is None and report.converged


@pytest.mark.parametrize(
    ("solver", "gram", "alpha", "message"),
    [
        ("cholesky", MatrixOperator(SMOOTH), 0.1, "needs the entries of a matrix.*solver='cg'"),
        (np.linalg.solve, MatrixOperator(SMOOTH), 0.1, "needs the entries of a matrix"),
        ("eigenpro", SMOOTH, 0.1, r"EigenPro needs rows of features.*solve\(FeatureGram"),
        ("nystrom", SMOOTH, 0.0, "alpha > 0"),
        ("cg", MatrixOperator(SMOOTH[:7, :7]), 0.1, r"gram must be an operator \(n, n\) and targets"),
        ("cg", MatrixOperator(SMOOTH), -1, "alpha must be"),
        ("gmres", SMOOTH, 0.1, "unknown solver 'gmres'; known are 'cholesky', .*'auto'"),
    ],
)
def test_what_a_solver_cannot_take_is_refused_with_what_to_take(solver, gram, alpha, message):
    with pytest.raises(ValueError, match=message):
        solve(gram, TARGETS, alpha=alpha, solver=solver)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConjugateGradient(tol=0), "tol must be"),
        (lambda: ConjugateGradient(max_iter=0), "max_iter must be"),
        (lambda: ConjugateGradient(rank=-1), "rank must be"),
        (lambda: Nystrom(n_landmarks=0), "n_landmarks must be"),
        (lambda: EigenPro(batch_size=0), "batch_size must be"),
        (lambda: FeatureGram(np.ones(3)), "inputs must be an array of rows"),
        (lambda: FeatureGram(np.array([[np.nan]])), "features must be finite"),
        (lambda: FeatureGram(np.ones((3, 2)), lambda rows: rows[:, 0]), "features must be numbers, one row each"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
def test_a_matrix_in_single_precision_is_solved_to_double_precision(weight):
    single = SMOOTH.astype(np.float32)
    given = {"alpha": 1e-4, "sample_weight": weight, "solver": ConjugateGradient(tol=1e-10, rank=20)}
    dual, report = solve(single, TARGETS, return_report=True, **given)
    _, exactly = solve(single.astype(float), TARGETS, return_report=True, **given)
    assert report.converged and report.residual <= 1e-10
    assert report.n_iter <= 2 * exactly.n_iter
    assert relative(dual, solve(single, TARGETS, alpha=1e-4, sample_weight=weight)) < 1e-6
