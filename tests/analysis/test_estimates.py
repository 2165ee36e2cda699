"""Measures of matrices that are known by their products: against exact ones, with honest standard errors."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.exceptions import ConvergenceWarning

from ntkrobust_sk import (
    effective_rank,
    kernel_alignment,
    kernel_distance,
    kernel_norm,
    kernel_specialization,
    kernel_trace,
    kernel_velocity,
    polar_dynamics,
    target_alignment,
    top_eigenpairs,
    top_mass,
)
from ntkrobust_sk.analysis import Probes
from ntkrobust_sk.analysis.sketches import Estimate, block_lanczos, jackknifed
from ntkrobust_sk.execution.devices import one_thread_each

N = 500


class WithDiagonal(LinearOperator):
    """A matrix that gives its products and its diagonal alone."""

    def __init__(self, K):
        self.K = K
        super().__init__(K.dtype, K.shape)

    def _matmat(self, X):
        return self.K @ X

    def diagonal(self):
        return self.K.diagonal()


def spectrum_like_a_kernel(n, seed=0, power=1.5):
    """A positive semidefinite matrix; as of tangent kernels, one eigenvalue is far above the others."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.arange(1, n + 1.0) ** -power
    values[0] = 3.0
    return (vectors * values) @ vectors.T


K = spectrum_like_a_kernel(N)
OTHER = 0.7 * K + 0.1 * spectrum_like_a_kernel(N, seed=1)
END = 0.2 * K + 0.5 * spectrum_like_a_kernel(N, seed=2)
Y = np.eye(10)[np.random.default_rng(3).integers(0, 10, N)]
MEASURES = {
    "trace": kernel_trace,
    "norm": kernel_norm,
    "participation": partial(effective_rank, kind="participation"),
    "entropy": effective_rank,
    "top mass": partial(top_mass, k=5),
    "alignment": partial(kernel_alignment, K2=OTHER),
    "CKA": partial(kernel_alignment, K2=OTHER, centered=True),
    "distance": partial(kernel_distance, K2=OTHER),
    "velocity": partial(kernel_velocity, K2=OTHER, dt=0.5),
    "targets": partial(target_alignment, y=Y),
    "centred targets": partial(target_alignment, y=Y, centered=True),
    "radius": lambda K, **given: polar_dynamics(OTHER, K, END, **given)[0],
    "angle": lambda K, **given: polar_dynamics(OTHER, K, END, **given)[1],
}


def within(measure, exact, operator, draws, **given):
    """How many draws are within 3 standard errors of the exact number, and their mean distance in those."""
    found = [measure(operator, probes=Probes(random_state=seed, **given)) for seed in range(draws)]
    assert all(isinstance(each, Estimate) for each in found)
    apart = [abs(each - exact) for each in found]
    errors = [3 * each.standard_error + 1e-9 * abs(exact) for each in found]
    return sum(a <= e for a, e in zip(apart, errors, strict=True))


IN_100_DRAWS = ("norm", "participation", "entropy", "alignment", "distance")


@pytest.mark.parametrize("name", IN_100_DRAWS)
def test_95_of_100_draws_are_within_three_standard_errors_of_the_exact_number(name):
    measure = MEASURES[name]
    with one_thread_each():
        assert within(measure, measure(K), aslinearoperator(K), 100) >= 95


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - set(IN_100_DRAWS)))
def test_most_draws_are_within_three_standard_errors(name):
    measure = MEASURES[name]
    with one_thread_each():
        assert within(measure, measure(K), aslinearoperator(K), 10) >= 9


def test_standard_errors_fall_with_the_root_of_the_number_of_columns():
    def mean_square(n):
        draws = (Probes(4, n, random_state=seed) for seed in range(20))
        return np.mean([kernel_norm(aslinearoperator(K), probes=probes).standard_error ** 2 for probes in draws])

    assert mean_square(32) / mean_square(128) == pytest.approx(4, rel=0.25)


def test_directions_of_the_range_lower_the_error():
    without, with_range = (kernel_norm(aslinearoperator(K), probes=Probes(n, 32)).standard_error for n in (0, 16))
    assert with_range < without / 10


def test_a_trace_is_exact_where_there_is_a_diagonal():
    found = kernel_trace(WithDiagonal(K))
    assert found.standard_error == 0 and found == pytest.approx(np.trace(K), rel=1e-12)
    rank = effective_rank(WithDiagonal(K), "participation")
    assert rank.standard_error < effective_rank(aslinearoperator(K), "participation").standard_error


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "top mass"])
def test_a_matrix_smaller_than_the_range_is_measured_exactly(name, monkeypatch):
    few = spectrum_like_a_kernel(9)
    for other, value in (("OTHER", few + np.eye(9)), ("END", np.eye(9)), ("Y", np.eye(9)[:, :2])):
        monkeypatch.setitem(globals(), other, value)
    measure = MEASURES[name]
    if isinstance(measure, partial):
        of_nine = {"K2": few + np.eye(9), "y": np.eye(9)[:, :2]}
        given = {key: of_nine.get(key, value) for key, value in measure.keywords.items()}
        measure = partial(measure.func, **given)
    found = measure(aslinearoperator(few), probes=Probes(n_range=27))
    assert found == pytest.approx(measure(few), rel=1e-7) and found.standard_error < 1e-7


@pytest.mark.parametrize("centered", [False, True])
def test_a_class_kernel_that_is_an_operator_is_specialised_as_its_matrix(centered):
    n, n_classes = 40, 3
    kernels = np.stack([spectrum_like_a_kernel(n, seed) for seed in range(n_classes)], -1)
    whole = np.einsum("nmc,cd->ncmd", kernels, np.eye(n_classes)).reshape(n * n_classes, -1)
    Y = np.eye(n_classes)[np.arange(n) % n_classes]
    for normalization in ("kernels", None):
        found = kernel_specialization(
            aslinearoperator(whole), Y, normalization, centered, probes=Probes(n_range=40)
        )
        np.testing.assert_allclose(found, kernel_specialization(kernels, Y, normalization, centered), rtol=1e-9)
    with pytest.raises(ValueError, match="K_classes must have shape"):
        kernel_specialization(aslinearoperator(np.eye(40)), Y)


def test_the_same_seed_gives_the_same_number_and_another_one_another():
    first, again, other = (
        effective_rank(aslinearoperator(K), "participation", probes=Probes(random_state=seed))
        for seed in (0, 0, 1)
    )
    assert first == again and first.standard_error == again.standard_error and first != other


def test_an_estimate_is_copied_and_pickled_with_its_error():
    for copied in (copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))):
        found = copied(Estimate(2.0, 0.5))
        assert found == 2 and found.standard_error == 0.5


def test_a_jackknife_of_the_mean_is_its_standard_error():
    sample = np.random.default_rng(0).normal(size=50)
    found = jackknifed(float, sample)
    assert found.standard_error == pytest.approx(sample.std(ddof=1) / np.sqrt(50))


@pytest.mark.parametrize("n, k", [(N, 12), (30, 29), (6, 6), (1, 1)])
def test_top_eigenpairs_are_those_of_the_matrix(n, k):
    A = spectrum_like_a_kernel(n)
    found, exact = top_eigenpairs(aslinearoperator(A), k), top_eigenpairs(A, k)
    np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, atol=1e-5 * exact.eigenvalues[0])
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(k), atol=1e-10)
    assert (np.linalg.norm(A @ found.eigenvectors - found.eigenvectors * found.eigenvalues, axis=0) < 4e-5).all()
    assert found.residuals.max() < 1.1e-5 * found.eigenvalues[0]


def test_eigenpairs_of_a_matrix_of_low_rank_take_random_directions_for_the_rest():
    factor = np.random.default_rng(0).normal(size=(60, 3))
    found = top_eigenpairs(aslinearoperator(factor @ factor.T), 5)
    expected = np.linalg.eigvalsh(factor.T @ factor)[::-1]
    np.testing.assert_allclose(found.eigenvalues, [*expected, 0, 0], atol=1e-9 * expected[0])
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(5), atol=1e-9)


def test_eigenpairs_that_are_not_found_in_time_come_with_a_warning():
    with pytest.warns(ConvergenceWarning, match="residuals up to"):
        block_lanczos(aslinearoperator(np.diag(np.linspace(1, 1.001, 800))), 2, tol=1e-14)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: kernel_norm(aslinearoperator(np.ones((3, 2)))), "K must be square"),
        (lambda: kernel_norm(aslinearoperator(np.triu(np.ones((40, 40))))), "K must be symmetric"),
        (lambda: kernel_norm(aslinearoperator(np.full((3, 3), np.nan))), "K must be finite"),
        (lambda: kernel_norm(aslinearoperator(np.zeros((3, 3)))), "K is zero"),
        (lambda: kernel_norm(aslinearoperator(np.eye(3) * 1j)), "K must be real"),
        (lambda: effective_rank(aslinearoperator(np.diag([1.0, -1, 1]))), "positive semidefinite"),
        (lambda: kernel_alignment(aslinearoperator(np.eye(3)), np.eye(2)), "kernels of the same samples"),
        (lambda: kernel_alignment(np.triu(np.ones((3, 3))), aslinearoperator(np.eye(3))), "K1 must be symmetric"),
        (lambda: target_alignment(aslinearoperator(np.eye(3)), [1, 2]), r"y must have shape \(3,\)"),
        (lambda: polar_dynamics(OTHER, aslinearoperator(K), K), "K_end equals K_start"),
        (lambda: top_eigenpairs(aslinearoperator(np.eye(3)), 4), "k must be a positive integer, at most 3"),
        (lambda: top_mass(aslinearoperator(np.eye(3)), 0), "k must be a positive integer, at most 3"),
        (lambda: kernel_trace(WithDiagonal(np.diag([1.0, np.nan]))), "K must be finite, but its diagonal"),
        (lambda: kernel_alignment(np.eye(3), aslinearoperator(np.ones((3, 3))), centered=True), "K2"),
        (lambda: Probes(n_random=1), "n_random must be an integer >= 2"),
    ],
)
def test_what_is_no_kernel_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_probes_are_probes():
    with pytest.raises(TypeError, match="probes must be Probes"):
        kernel_norm(K, probes=3)
