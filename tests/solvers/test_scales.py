"""Numbers of any size: answers scale with targets, kernels and weights, or an error says what is out of range."""

import numpy as np
import pytest

from ntkrobust_sk.solvers import ConjugateGradient, EigenPro, FeatureGram, Nystrom, solve

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
