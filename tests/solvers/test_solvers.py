"""Direct solvers and kernel ridge regression: residuals, oracles, identities, errors."""

import pickle
import subprocess
import sys
import tracemalloc

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from ntkrobust_sk import _arrays as _backend
from ntkrobust_sk.solvers import direct as solvers
from ntkrobust_sk.solvers import matrices
from ntkrobust_sk.solvers.choice import resolve_solver
from ntkrobust_sk.solvers.direct import Cholesky, Eigh, InaccurateSolveError, SingularGramError
from ntkrobust_sk.solvers.ridge import solve

EXACT = ["cholesky", "eigh"]
ALL_SOLVERS = [Cholesky(), Eigh(), Eigh(rcond=1e-12)]


def random_gram(n, seed=0, n_features=None):
    features = np.random.default_rng(seed).normal(size=(n, n_features or 2 * n))
    return features @ features.T / features.shape[1]


def random_class_gram(n, n_outputs, seed=0):
    return np.stack([random_gram(n, seed + c) for c in range(n_outputs)], axis=-1)


def random_full_gram(n, n_outputs, seed=0):
    flat = random_gram(n * n_outputs, seed)
    return flat.reshape(n, n_outputs, n, n_outputs).transpose(0, 2, 1, 3)


def random_targets(*shape):
    return np.random.default_rng(99).normal(size=shape)


def with_condition_number(n, condition):
    Q, _ = np.linalg.qr(random_targets(n, n))
    A = (Q * np.geomspace(1 / condition, 1, n)) @ Q.T
    return (A + A.T) / 2


# The contract of every solver


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("columns", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize(("dtype", "condition"), [(np.float64, 1e1), (np.float64, 1e9), (np.float32, 1e1)])
def test_every_solver_solves_to_rounding_and_leaves_its_inputs_alone(solver, n, columns, dtype, condition):
    A = with_condition_number(n, condition).astype(dtype)
    B = random_targets(n, *columns).astype(dtype)
    A_before, B_before = A.copy(), B.copy()
    X = solver(A, B)
    assert X.shape == B.shape
    assert X.dtype == dtype
    scale = np.linalg.norm(A) * np.linalg.norm(X) + np.linalg.norm(B)
    assert np.linalg.norm(A @ X - B) <= 10 * np.sqrt(n) * np.finfo(dtype).eps * scale
    np.testing.assert_array_equal(A, A_before)
    np.testing.assert_array_equal(B, B_before)


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_every_solver_agrees_with_scipy(solver):
    A, B = random_gram(30), random_targets(30, 4)
    np.testing.assert_allclose(solver(A, B), scipy.linalg.solve(A, B, assume_a="pos"), rtol=1e-9)


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_a_zero_right_hand_side_has_the_zero_solution(solver):
    np.testing.assert_array_equal(solver(random_gram(5), np.zeros(5)), np.zeros(5))


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_array_api_arrays_are_solved_in_their_own_namespace(solver):
    A, B = random_gram(12), random_targets(12, 2)
    X = solver(array_api_strict.asarray(A), array_api_strict.asarray(B))
    assert X.__array_namespace__() is array_api_strict
    np.testing.assert_allclose(np.asarray(X), np.linalg.solve(A, B), rtol=1e-9)


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_integers_and_lists_are_solved_in_float64(solver):
    X = solver([[2, 0], [0, 4]], [2, 2])
    assert X.dtype == np.float64
    np.testing.assert_allclose(X, [1.0, 0.5])


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_a_matrix_symmetric_up_to_float32_rounding_is_accepted(solver):
    A = random_gram(40) + np.eye(40)
    A += 1e-8 * random_targets(40, 40)
    np.testing.assert_allclose(solver(A, np.ones(40)), np.linalg.solve(A, np.ones(40)), rtol=1e-5)


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (np.ones((2, 3)), np.ones(2), "A must be square"),
        (np.ones((0, 0)), np.ones(0), "A must be square"),
        (np.ones(3), np.ones(3), "A must be square"),
        (np.eye(3), np.ones(2), "B must have shape"),
        (np.eye(3), np.ones((3, 1, 1)), "B must have shape"),
        (np.eye(3), np.array([1.0, np.nan, 0.0]), "right-hand side, must be finite"),
        (np.array([[1.0, np.inf], [np.inf, 1.0]]), np.ones(2), "matrix must be finite"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), np.ones(2), "matrix must be finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), np.ones(2), "must be symmetric.*different sets of samples"),
        (np.eye(2) * 1j, np.ones(2), "A must be real"),
        (np.eye(2), np.ones(2) * 1j, "B must be real"),
    ],
)
def test_every_solver_refuses_what_is_not_a_symmetric_system(solver, A, B, message):
    with pytest.raises(ValueError, match=message):
        solver(A, B)


@pytest.mark.parametrize("namespace", [np, array_api_strict], ids=lambda xp: xp.__name__)
@pytest.mark.parametrize("side", [2, 4], ids=["by threads", "by one"])
def test_what_is_no_kernel_matrix_is_found_in_whichever_block_it_hides(monkeypatch, namespace, side):
    monkeypatch.setattr(matrices, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(matrices, "_TILE", side)
    for i, j in [(0, 9), (5, 6), (9, 8)]:
        for wrong, message in [
            (0.5, "must be symmetric"),
            (np.nan, "must be finite"),
            (1e200, "must be symmetric"),
        ]:
            A = np.eye(10)
            A[i, j] = wrong
            with pytest.raises(ValueError, match=message):
                Cholesky()(namespace.asarray(A), np.ones(10))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_checks_by_threads_sum_the_norm_and_the_asymmetry(monkeypatch, dtype, order):
    monkeypatch.setattr(matrices, "_TILE", 16)
    A = np.array(random_gram(100) + 1e-6 * random_targets(100, 100), dtype, order=order)
    norm, asymmetry = matrices.require_symmetric(A, "A")
    wide = A.astype(float)
    assert norm == pytest.approx(np.linalg.norm(wide), rel=1e-12)
    assert asymmetry == pytest.approx(np.linalg.norm(wide - wide.T) / np.linalg.norm(wide), rel=1e-9)
    assert matrices.require_symmetric(A, "A") == (norm, asymmetry)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["C", "F", "slice"])
def test_products_on_the_host_are_in_double_precision_whatever_the_matrix(monkeypatch, dtype, form):
    monkeypatch.setattr(_backend, "PRODUCT_ROWS", 7)
    A = random_targets(20, 20).astype(dtype)
    A = np.stack([A, A], axis=-1)[:, :, 1] if form == "slice" else np.array(A, order=form)
    for V in (random_targets(20, 3), random_targets(20, 3)[:, ::2]):
        found = _backend.host_product(A, V)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, A.astype(float) @ V, rtol=1e-13, atol=1e-13)


# Singular matrices


def duplicated_sample_gram(dtype=np.float64):
    features = random_targets(20, 50)
    features[13] = features[4]
    return (features @ features.T).astype(dtype)


@pytest.mark.parametrize("solver", [Cholesky(), Eigh()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("namespace", [np, array_api_strict], ids=lambda xp: xp.__name__)
def test_duplicate_samples_without_a_ridge_are_an_error_with_advice(solver, dtype, namespace):
    K = namespace.asarray(duplicated_sample_gram(dtype))
    with pytest.raises(SingularGramError, match=r"20 x 20.*Raise alpha.*float32.*duplicate.*Eigh\(rcond"):
        solver(K, namespace.asarray(np.ones(20, dtype)))


@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([np.float64, np.float32]))
@settings(max_examples=40, deadline=None)
def test_a_rank_deficient_gram_never_passes_as_positive_definite(n, seed, dtype):
    K = random_gram(n, seed, n_features=n - 1).astype(dtype)
    for solver in (Cholesky(), Eigh()):
        with pytest.raises(SingularGramError):
            solver(K, np.ones(n, dtype))


def test_the_singular_gram_error_is_a_linalg_error_that_names_the_failing_minor():
    A = np.diag([1.0, 1.0, -1.0, 1.0])
    with pytest.raises(np.linalg.LinAlgError, match=r"3-th leading minor|info = \[3\]"):
        Cholesky()(A, np.ones(4))


def test_the_singular_gram_error_names_the_row_that_rounding_left_dependent():
    A = np.eye(5)
    A[3, 1] = A[1, 3] = 1.0
    A[3, 3] += 2.3e-16
    with pytest.raises(SingularGramError, match=r"condition number is at least .*e\+16 \(see row 3\)"):
        Cholesky()(A, np.ones(5))


def test_a_singular_matrix_whose_pivots_all_look_healthy_is_found():
    L = np.eye(30) - np.tri(30, k=-1)
    L[-1, -1] = 0.5
    assert np.linalg.cond(L @ L.T) > 1e16
    np.testing.assert_array_equal(np.linalg.cholesky(L @ L.T), L)
    for solver in (Cholesky(), Eigh()):
        with pytest.raises(SingularGramError):
            solver(L @ L.T, np.ones(30))


def test_cholesky_and_eigh_draw_the_same_line_between_ill_conditioned_and_singular():
    limit = 10 * np.sqrt(30) * np.finfo(float).eps
    for smallest, singular in [(1e-2 * limit, True), (30 * limit, False)]:
        A = with_condition_number(30, 1 / smallest)
        for solver in (Cholesky(), Eigh()):
            if singular:
                with pytest.raises(SingularGramError):
                    solver(A, np.ones(30))
            else:
                solver(A, np.ones(30))


def test_eigh_with_rcond_is_the_pseudo_inverse():
    K, y = duplicated_sample_gram(), random_targets(20, 3)
    np.testing.assert_allclose(Eigh(rcond=1e-10)(K, y), np.linalg.pinv(K, hermitian=True) @ y, atol=1e-9)


def test_eigh_with_rcond_drops_the_directions_below_it():
    A = np.diag([1.0, 0.1, 0.001])
    np.testing.assert_allclose(Eigh(rcond=0.05)(A, np.ones(3)), [1.0, 10.0, 0.0])


def test_eigh_with_rcond_gives_the_zero_matrix_the_zero_solution():
    np.testing.assert_array_equal(Eigh(rcond=0.0)(np.zeros((3, 3)), np.ones(3)), np.zeros(3))


def test_eigh_with_rcond_still_refuses_an_indefinite_matrix():
    with pytest.raises(SingularGramError, match=r"smallest eigenvalue is -0\.5.*rcond=0\.1"):
        Eigh(rcond=0.1)(np.diag([1.0, -0.5]), np.ones(2))


def test_eigh_refuses_sizes_at_which_lapack_overflows_and_points_to_cholesky():
    huge = np.broadcast_to(0.0, (32_767, 32_767))
    with pytest.raises(ValueError, match=r"at most n = 32766.*Cholesky"):
        Eigh()(huge, np.ones(32_767))


@pytest.mark.parametrize("solver", [Cholesky(max_residual=1e-30), Eigh(max_residual=1e-30)], ids=repr)
def test_a_residual_above_the_accepted_one_is_an_error(solver):
    with pytest.raises(InaccurateSolveError, match=r"backward error of .* above 1.0e-30"):
        solver(random_gram(10), np.ones(10))


def test_a_backend_that_returns_nonsense_is_found_out(monkeypatch):
    for nonsense in (np.nan, 1.0):
        monkeypatch.setattr(solvers, "solve_triangular", lambda L, B, value=nonsense, **_: np.full(B.shape, value))
        with pytest.raises(InaccurateSolveError):
            Cholesky()(random_gram(10), np.ones(10))


# Solvers as configuration


def test_solvers_are_values():
    assert Cholesky() == Cholesky(max_residual=None)
    assert hash(Eigh(rcond=1e-6)) == hash(Eigh(rcond=1e-6))
    assert pickle.loads(pickle.dumps(Eigh(rcond=1e-6))) == Eigh(rcond=1e-6)


@pytest.mark.parametrize("rcond", [-0.1, 1.0, np.nan])
def test_rcond_is_a_fraction(rcond):
    with pytest.raises(ValueError, match="rcond must be"):
        Eigh(rcond=rcond)


@pytest.mark.parametrize("solver", [Cholesky, Eigh])
@pytest.mark.parametrize("max_residual", [0.0, -1.0, np.nan, np.inf])
def test_max_residual_is_positive(solver, max_residual):
    with pytest.raises(ValueError, match="max_residual must be"):
        solver(max_residual=max_residual)


def test_a_solver_is_resolved_from_its_name_or_is_itself():
    assert [resolve_solver(name) for name in ("cholesky", "eigh")] == [Cholesky(), Eigh()]
    assert resolve_solver(Eigh(rcond=0.1)) == Eigh(rcond=0.1)
    assert resolve_solver(np.linalg.solve) is np.linalg.solve


def test_an_unknown_solver_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown solver 'lu'; known are 'cholesky', 'eigh'"):
        resolve_solver("lu")
    with pytest.raises(TypeError, match=r"write Cholesky\("):
        resolve_solver(Cholesky)
    with pytest.raises(TypeError, match="called as solver"):
        resolve_solver(3)


# Kernel ridge regression


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("columns", [(), (3,)], ids=str)
def test_solve_is_kernel_ridge_with_alpha_times_the_mean_diagonal(solver, weighted, columns):
    K, y = random_gram(25), random_targets(25, *columns)
    w = np.random.default_rng(1).uniform(0.1, 3, size=25) if weighted else None
    oracle = KernelRidge(kernel="precomputed", alpha=0.03 * np.average(np.diag(K), weights=w))
    oracle.fit(K, y, sample_weight=w)
    dual = solve(K, y, alpha=0.03, solver=solver, sample_weight=w)
    np.testing.assert_allclose(dual, oracle.dual_coef_, rtol=1e-9)


def test_a_class_kernel_solves_each_class_with_its_own_kernel_and_one_common_ridge():
    K, y = random_class_gram(10, 3), random_targets(10, 3)
    K[:, :, 1] *= 50
    ridge = 0.1 * np.mean([np.trace(K[:, :, c]) / 10 for c in range(3)])
    expected = [np.linalg.solve(K[:, :, c] + ridge * np.eye(10), y[:, c]) for c in range(3)]
    np.testing.assert_allclose(solve(K, y, alpha=0.1), np.stack(expected, axis=1), rtol=1e-9)


def test_a_full_kernel_solves_one_system_over_samples_and_outputs():
    n, n_outputs = 7, 3
    K, y = random_full_gram(n, n_outputs), random_targets(n, n_outputs)
    dense = np.empty((n * n_outputs, n * n_outputs))
    for i, j, c, d in np.ndindex(K.shape):
        dense[i * n_outputs + c, j * n_outputs + d] = K[i, j, c, d]
    ridge = 0.1 * np.trace(dense) / (n * n_outputs)
    expected = np.linalg.solve(dense + ridge * np.eye(n * n_outputs), y.ravel())
    np.testing.assert_allclose(solve(K, y, alpha=0.1), expected.reshape(n, n_outputs), rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_a_full_kernel_without_cross_terms_is_the_class_kernel(weighted):
    K, y = random_class_gram(8, 3), random_targets(8, 3)
    w = np.arange(1.0, 9.0) if weighted else None
    full = np.zeros((8, 8, 3, 3))
    full[..., range(3), range(3)] = K
    options = {"alpha": 0.1, "sample_weight": w}
    np.testing.assert_allclose(solve(full, y, **options), solve(K, y, **options), rtol=1e-9)


def test_a_class_kernel_with_equal_classes_is_the_trace_kernel():
    K, y = random_gram(8), random_targets(8, 3)
    stacked = np.repeat(K[..., None], 3, axis=-1)
    np.testing.assert_allclose(solve(stacked, y, alpha=0.1), solve(K, y, alpha=0.1), rtol=1e-9)


GRAMS = {2: random_gram(9), 3: random_class_gram(9, 2), 4: random_full_gram(9, 2)}
TARGETS = random_targets(9, 2)


@pytest.mark.parametrize("rank", GRAMS)
def test_an_integer_weight_is_the_same_as_repeating_the_sample(rank):
    repeats = np.array([1, 2, 1, 3, 1, 1, 2, 1, 4])
    index = np.repeat(np.arange(9), repeats)
    repeated = solve(GRAMS[rank][np.ix_(index, index)], TARGETS[index], alpha=0.2)
    expected = np.stack([repeated[index == i].sum(axis=0) for i in range(9)])
    np.testing.assert_allclose(solve(GRAMS[rank], TARGETS, alpha=0.2, sample_weight=repeats), expected, rtol=1e-9)


@pytest.mark.parametrize("rank", GRAMS)
def test_a_sample_of_weight_zero_is_as_if_it_were_not_there(rank):
    kept = np.array([0, 1, 3, 4, 5, 7, 8])
    weight = np.zeros(9)
    weight[kept] = 1.0
    dual = solve(GRAMS[rank], TARGETS, alpha=0.2, sample_weight=weight)
    np.testing.assert_allclose(
        dual[kept], solve(GRAMS[rank][np.ix_(kept, kept)], TARGETS[kept], alpha=0.2), rtol=1e-9
    )
    np.testing.assert_array_equal(dual[[2, 6]], 0.0)


@pytest.mark.parametrize("rank", GRAMS)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_solve_takes_array_api_arrays_of_every_rank(rank, weighted):
    weight = np.arange(1.0, 10.0) if weighted else None
    dual = solve(array_api_strict.asarray(GRAMS[rank]), TARGETS, alpha=0.1, sample_weight=weight)
    assert dual.__array_namespace__() is array_api_strict
    expected = solve(GRAMS[rank], TARGETS, alpha=0.1, sample_weight=weight)
    np.testing.assert_allclose(np.asarray(dual), expected, rtol=1e-9)


@pytest.mark.parametrize("rank", GRAMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_the_solve_is_in_float64_whatever_the_dtype_of_the_gram(rank, dtype):
    gram = jnp.asarray(np.round(8 * GRAMS[rank]), dtype=dtype)
    dual = solve(gram, TARGETS, alpha=3.0)
    assert dual.dtype == np.float64
    np.testing.assert_array_equal(dual, solve(np.asarray(gram).astype(np.float64), TARGETS, alpha=3.0))


@pytest.mark.parametrize("rank", GRAMS)
def test_solve_leaves_the_arrays_of_its_caller_alone(rank):
    gram, targets, weight = GRAMS[rank].copy(), TARGETS.copy(), np.arange(1.0, 10.0)
    for array in (gram, targets, weight):
        array.flags.writeable = False
    solve(gram, targets, alpha=0.1, sample_weight=weight)
    np.testing.assert_array_equal(gram, GRAMS[rank])


@pytest.mark.slow
def test_solve_needs_two_arrays_of_the_size_of_the_gram_besides_it():
    n = 2500
    gram = random_gram(n, n_features=10)
    tracemalloc.start()
    solve(gram, np.ones(n), alpha=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.2 * gram.nbytes


def test_any_callable_can_be_the_solver():
    calls = []

    def recording(A, B):
        calls.append((A.shape, B.shape))
        return np.linalg.solve(A, B)

    K, y = random_gram(6), random_targets(6)
    np.testing.assert_allclose(solve(K, y, alpha=0.1, solver=recording), solve(K, y, alpha=0.1), rtol=1e-9)
    assert calls == [((6, 6), (6, 1))]


def test_a_singular_gram_without_ridge_is_an_error_and_with_ridge_is_solved():
    K = duplicated_sample_gram()
    with pytest.raises(SingularGramError, match="Raise alpha"):
        solve(K, np.ones(20), alpha=0)
    dual = solve(K, np.ones(20), alpha=1e-6)
    np.testing.assert_allclose(dual[4], dual[13])


def test_a_gram_that_vanishes_on_the_diagonal_is_an_error_that_no_alpha_mends():
    with pytest.raises(SingularGramError, match="mean diagonal of gram must be positive, got 0"):
        solve(np.zeros((3, 3)), np.ones(3), alpha=1.0)


@pytest.mark.parametrize("alpha", [-1e-9, np.nan, np.inf, "1", None, [0.1]])
def test_alpha_is_a_finite_number_not_below_zero(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        solve(np.eye(3), np.ones(3), alpha=alpha)


@pytest.mark.parametrize(
    ("gram_shape", "target_shape", "message"),
    [
        ((3,), (3,), "gram must have shape"),
        ((3, 4), (3,), "gram must have shape"),
        ((3, 4, 2), (3, 2), "gram must have shape"),
        ((3, 3, 2, 1), (3, 2), "gram must have shape"),
        ((3, 3, 2, 2, 2), (3, 2), "gram must have shape"),
        ((0, 0), (0,), "gram must have shape"),
        ((3, 3), (4,), r"targets must have shape \(3,\) or \(3, C\)"),
        ((3, 3), (3, 0), "targets must have shape"),
        ((3, 3), (3, 1, 1), "targets must have shape"),
        ((3, 3, 2), (3,), r"targets must have shape \(3, 2\)"),
        ((3, 3, 2), (3, 3), r"targets must have shape \(3, 2\)"),
        ((3, 3, 2, 2), (6,), r"targets must have shape \(3, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(gram_shape, target_shape, message):
    with pytest.raises(ValueError, match=message):
        solve(np.ones(gram_shape), np.ones(target_shape), alpha=0.1)


@pytest.mark.parametrize(
    "weight",
    [np.ones(4), np.ones((3, 1)), 1.0, [1, -1, 1], [1, np.nan, 1], [np.inf, 1, 1], np.zeros(3)],
    ids=str,
)
def test_weights_are_one_finite_number_not_below_zero_for_each_sample(weight):
    with pytest.raises(ValueError, match="sample_weight must"):
        solve(np.eye(3), np.ones(3), alpha=0.1, sample_weight=weight)


@pytest.mark.parametrize("where", [(0, 0), (0, 1)])
def test_a_gram_with_nan_is_refused_as_such(where):
    gram = np.eye(3)
    gram[where] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        solve(gram, np.ones(3), alpha=0.1)


seeds, sizes, alphas = st.integers(0, 10**6), st.integers(1, 25), st.floats(1e-6, 1e3)


@given(sizes, seeds, alphas, st.sampled_from(EXACT))
@settings(max_examples=40, deadline=None)
def test_the_dual_coefficients_satisfy_the_ridge_equations(n, seed, alpha, solver):
    K, y = random_gram(n, seed, n_features=max(1, n // 2)), random_targets(n, 2)
    dual = solve(K, y, alpha=alpha, solver=solver)
    ridge = alpha * np.trace(K) / n
    residual = np.linalg.norm(K @ dual + ridge * dual - y)
    assert residual <= 1e-10 * (np.linalg.norm(K) * np.linalg.norm(dual) + np.linalg.norm(y))


@given(sizes, seeds, alphas, st.integers(-200, 200))
@settings(max_examples=40, deadline=None)
def test_predictions_are_blind_to_the_scale_of_the_kernel(n, seed, alpha, exponent):
    K, y, scale = random_gram(n, seed), random_targets(n), 2.0**exponent
    np.testing.assert_allclose(scale * K @ solve(scale * K, y, alpha=alpha), K @ solve(K, y, alpha=alpha))


@given(sizes, seeds, alphas)
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_samples_does_not_matter(n, seed, alpha):
    K, y = random_gram(n, seed), random_targets(n)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = solve(K[np.ix_(order, order)], y[order], alpha=alpha)
    np.testing.assert_allclose(shuffled, solve(K, y, alpha=alpha)[order], rtol=1e-6, atol=1e-9)


# Where arrays live


@pytest.mark.slow
def test_importing_the_package_does_not_look_for_cupy():
    program = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cupy", "cupyx"):
            sys.exit(f"{name} was imported")
sys.meta_path.insert(0, Watch())
import ntkrobust_sk, ntkrobust_sk.solvers, ntkrobust_sk.analysis
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_jax_array_on_the_cpu_is_seen_by_numpy_without_a_copy():
    a = jnp.ones((3, 3), dtype=jnp.float32)
    if a.devices().pop().platform != "cpu":
        pytest.skip("JAX's default device is not the CPU")
    assert np.shares_memory(_backend.to_solver_array(a), np.asarray(a))


def test_arrays_that_can_be_solved_where_they_are_pass_through():
    for a in (np.ones(2), array_api_strict.ones(2)):
        assert _backend.to_solver_array(a) is a


def test_a_jax_array_on_a_gpu_without_cupy_is_copied_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(_backend, "_on_gpu", lambda a: True)
    monkeypatch.setattr(_backend, "cupy_or_none", lambda: None)
    _backend._warn_of_host_copy.cache_clear()
    for _ in range(2):
        dual = solve(jnp.eye(3), jnp.ones(3), alpha=1.0)
    np.testing.assert_allclose(dual, 0.5)
    messages = [str(w.message) for w in recwarn if w.category is RuntimeWarning]
    assert len(messages) == 1
    assert "8 n^2 bytes" in messages[0] and "pip install 'ntkrobust_sk[gpu]'" in messages[0]


def test_cupy_is_used_only_where_it_is_installed_and_sees_a_gpu(monkeypatch):
    class Installed:
        class cuda:
            is_available = staticmethod(lambda: Installed.gpu)

    for gpu, module, expected in [(True, Installed, Installed), (False, Installed, None), (True, None, None)]:
        Installed.gpu = gpu
        monkeypatch.setitem(sys.modules, "cupy", module)
        assert _backend.cupy_or_none.__wrapped__() is expected


@pytest.fixture
def cupy():
    module = _backend.cupy_or_none()
    if module is None:
        pytest.skip("CuPy is not installed or sees no GPU")
    return module


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_cupy_arrays_are_solved_on_the_gpu(cupy, solver):
    A, B = random_gram(40), random_targets(40, 3)
    X = solver(cupy.asarray(A), cupy.asarray(B))
    assert isinstance(X, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(X), np.linalg.solve(A, B), rtol=1e-8)


@pytest.mark.parametrize("rank", GRAMS)
def test_solve_on_the_gpu_agrees_with_the_host_for_every_rank(cupy, rank):
    options = {"alpha": 0.1, "sample_weight": np.arange(1.0, 10.0)}
    dual = solve(cupy.asarray(GRAMS[rank]), TARGETS, **options)
    assert isinstance(dual, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(dual), solve(GRAMS[rank], TARGETS, **options), rtol=1e-8)


@pytest.mark.parametrize("solver", [Cholesky(), Eigh()], ids=repr)
def test_a_singular_gram_on_the_gpu_is_an_error(cupy, solver):
    for K in (duplicated_sample_gram(), np.diag([1.0, -1.0, 1.0])):
        with pytest.raises(SingularGramError):
            solver(cupy.asarray(K), cupy.ones(len(K)))


def test_a_jax_array_on_a_gpu_is_handed_to_cupy_without_a_copy(cupy):
    a = jnp.arange(6, dtype=jnp.float32)
    if a.devices().pop().platform != "gpu":
        pytest.skip("JAX sees no GPU")
    handed = _backend.to_solver_array(a)
    assert isinstance(handed, cupy.ndarray)
    assert handed.data.ptr == a.unsafe_buffer_pointer()


@pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.dia_array])
def test_sparse_matrices_are_refused_with_what_to_write_instead(make):
    K, y = make(2 * np.eye(3)), np.ones(3)
    with pytest.raises(TypeError, match=r"gram must be a dense array of numbers.*gram.toarray\(\)"):
        solve(K, y, alpha=0.1)
    with pytest.raises(TypeError, match=r"A.toarray\(\)"):
        Cholesky()(K, y)
