"""Numbers of any size: answers scale with targets, kernels and weights, or an error says what is out of range."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from ntkrobust_sk.solvers import ConjugateGradient, EigenPro, FeatureGram, Nystrom, SingularGramError, solve

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(50, 5))
GAUSS = np.exp(-0.1 * ((POINTS[:, None] - POINTS) ** 2).sum(-1))
ITERATIVE = [ConjugateGradient(), ConjugateGradient(rank=20), Nystrom(n_landmarks=30), EigenPro(max_epochs=60)]


def kernel_of(solver):
    return FeatureGram(POINTS) if isinstance(solver, EigenPro) else GAUSS


@pytest.mark.parametrize("solver", ITERATIVE, ids=lambda solver: str(solver)[:32])
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e160, 1e200, 1e300])
def test_answers_scale_with_the_targets_of_any_size(solver, size):
    targets = np.stack([POINTS[:, 0], POINTS[:, 1]], axis=1)
    plain, before = solve(kernel_of(solver), targets, alpha=1e-2, solver=solver, return_report=True)
    scaled, after = solve(kernel_of(solver), targets * [size, 1.0], alpha=1e-2, solver=solver, return_report=True)
    assert before.converged and after.converged and 0 < after.residual <= solver.tol
    np.testing.assert_allclose(scaled / [size, 1.0], plain, rtol=1e-2 if isinstance(solver, EigenPro) else 1e-4)


def test_direct_calls_of_iterative_solvers_scale_too():
    A = GAUSS + np.eye(50)
    plain = ConjugateGradient()(A, POINTS[:, 0])
    np.testing.assert_allclose(ConjugateGradient()(A, 1e-200 * POINTS[:, 0]) * 1e200, plain, rtol=1e-4, atol=1e-6)


def test_a_residual_that_is_no_number_has_not_converged():
    class Lost(ConjugateGradient):
        def run(self, system, B):
            X, report = super().run(system, B)
            return X, type(report)(self, residual=float("nan"), converged=True)

    with pytest.warns(UserWarning, match="has not converged"):
        assert not solve(GAUSS, POINTS[:, 0], alpha=1e-2, solver=Lost(), return_report=True)[1].converged


@pytest.mark.parametrize("solver", ["cholesky", "eigh", *ITERATIVE], ids=lambda solver: str(solver)[:32])
def test_a_ridge_of_any_size_gives_targets_over_it(solver, capfd):
    K = kernel_of(solver)
    large = [solve(K, POINTS[:, 0], alpha=alpha, solver=solver) * alpha for alpha in (1e20, 1e40, 1e300)]
    np.testing.assert_allclose(large[1], large[0], rtol=1e-6)
    np.testing.assert_allclose(large[2], large[0], rtol=1e-6)
    scale = K.diagonal().mean()
    if isinstance(solver, Nystrom):
        # landmarks answer as all rows do, at themselves
        landmarks = large[2] != 0
        assert landmarks.sum() == 30
        np.testing.assert_allclose((K @ large[2] * scale)[landmarks], (K @ POINTS[:, 0])[landmarks], rtol=1e-6)
    else:
        np.testing.assert_allclose(large[2] * scale, POINTS[:, 0], rtol=1e-3)
    captured = capfd.readouterr()
    assert "illegal value" not in captured.out + captured.err


@pytest.mark.parametrize("solver", ["cholesky", "eigh", *ITERATIVE], ids=lambda solver: str(solver)[:32])
@pytest.mark.parametrize("weight", [1e-300, 1e-100, 1e100, 1e300])
def test_weights_of_any_size_are_those_near_one_with_the_ridge_over_them(solver, weight, capfd):
    K, shape = kernel_of(solver), np.linspace(1, 3, 50)
    alpha = weight if weight < 1 else 1e-3 * weight  # as alpha=1 or 1e-3 with weights near one
    plain = solve(K, POINTS[:, 0], alpha=alpha / weight, solver=solver, sample_weight=shape)
    found, report = solve(
        K, POINTS[:, 0], alpha=alpha, solver=solver, sample_weight=weight * shape, return_report=True
    )
    np.testing.assert_allclose(found, plain, rtol=1e-2, atol=1e-3 * abs(plain).max())
    assert report.ridge > 0 and report.converged
    # with a small ridge on light samples, all that is left is a multiple of the weighted targets
    light = solve(K, POINTS[:, 0], alpha=1.0, solver=solver, sample_weight=np.full(50, 1e-250))
    assert np.isfinite(light).all() and 0 < abs(light).max() < 1e-240
    captured = capfd.readouterr()
    assert "illegal value" not in captured.out + captured.err


@pytest.mark.parametrize("solver", ["cholesky", "eigh", *ITERATIVE], ids=lambda solver: str(solver)[:32])
def test_a_ridge_out_of_range_beside_the_weights_names_them(solver):
    K, y = kernel_of(solver), POINTS[:, 0]
    for weight, alpha in ((1e-300, 1e300), (1e300, 1e-300)):
        with pytest.raises(ValueError, match="sample_weight goes up to"):
            solve(K, y, alpha=alpha, solver=solver, sample_weight=np.full(50, weight))
    if not isinstance(solver, EigenPro):
        with pytest.raises(ValueError, match="alpha times the mean diagonal"):
            solve(1e10 * GAUSS, y, alpha=1e300, solver=solver)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("negative", [-0.1, -0.01])
def test_landmarks_refuse_an_indefinite_matrix_as_the_other_solvers_do(seed, negative):
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(120, 120)))[0]
    values = np.logspace(0, -10, 120)
    values[-3:] = negative
    K = (Q * values) @ Q.T
    for solver in ("cholesky", "cg", Nystrom(n_landmarks=120)):
        with pytest.raises(SingularGramError, match="not positive definite"):
            solve(K, np.ones(120), alpha=1e-3, solver=solver)
    # a ridge that covers the negative eigenvalues
    cover = 2 * -negative / K.diagonal().mean()
    solve(K, np.ones(120), alpha=cover, solver=Nystrom(n_landmarks=120))


@pytest.mark.parametrize("solver", ["cholesky", "eigh", *ITERATIVE], ids=lambda solver: str(solver)[:32])
@pytest.mark.parametrize("size", [1e-200, 1e-100, 1e100, 1e200])
def test_answers_scale_with_kernels_of_any_size(solver, size):
    y = POINTS[:, 0]
    small = FeatureGram(POINTS * size**0.5) if isinstance(solver, EigenPro) else GAUSS * size
    plain = solve(kernel_of(solver), y, alpha=1e-3, solver=solver)
    found, report = solve(small, y, alpha=1e-3, solver=solver, return_report=True)
    rough = 1e-2 if isinstance(solver, EigenPro) else 1e-4
    np.testing.assert_allclose(found * size, plain, rtol=rough, atol=rough * abs(plain).max())
    assert report.converged and 0 < report.ridge / size < 1e-2


@pytest.mark.parametrize("solver", ["cholesky", "eigh", "cg", "nystrom"])
def test_tiny_kernels_must_be_symmetric_too(solver):
    skewed = GAUSS + np.triu(RNG.normal(size=GAUSS.shape), 1)
    with pytest.raises(ValueError, match="must be symmetric"):
        solve(1e-200 * skewed, POINTS[:, 0], alpha=1.0, solver=solver)


def test_conjugate_gradients_keep_the_best_that_they_have_seen():
    i = np.arange(1, 121)
    hilbert = 1 / (i[:, None] + i - 1.0)
    for solver in (ConjugateGradient(rank=0), ConjugateGradient(rank=20), ConjugateGradient()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found, report = solve(hilbert, np.sin(i), alpha=1e-14, solver=solver, return_report=True)
        ridge = 1e-14 * hilbert.diagonal().mean() * found
        left = np.linalg.norm(hilbert @ found + ridge - np.sin(i)) / np.linalg.norm(np.sin(i))
        assert report.residual <= 1 and left <= 1.001


def test_advice_for_an_operator_forms_all_of_its_rows():
    K = FeatureGram(POINTS)
    with pytest.raises(ValueError, match=r"gram @ np.eye\(gram.shape\[0\]\)"):
        solve(K, POINTS[:, 0], alpha=1.0)
    formed = K @ np.eye(K.shape[0])
    np.testing.assert_allclose(formed, POINTS @ POINTS.T)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_mean_diagonal_whose_sum_is_beyond_float64_is_a_number(solver):
    dual = solve(4e306 * GAUSS, POINTS[:, 0], alpha=1.0, solver=solver)
    np.testing.assert_allclose(dual * 4e306, solve(GAUSS, POINTS[:, 0], alpha=1.0), rtol=1e-3, atol=1e-6)
