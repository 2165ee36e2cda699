"""Measures of kernels and targets of any size: blind to it, or as large as it."""

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from ntkrobust_sk import (
    effective_rank,
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    target_alignment,
)
from ntkrobust_sk.analysis import (
    Probes,
    kernel_norm,
    kernel_trace,
    kernel_velocity,
    polar_dynamics,
    top_eigenpairs,
    top_mass,
)
from ntkrobust_sk.analysis.eigenfeatures import leading_eigenpairs
from ntkrobust_sk.solvers.matrices import require_symmetric

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(12, 20))
FIRST, SECOND = FEATURES @ FEATURES.T / 20, FEATURES[:, :8] @ FEATURES[:, :8].T
THIRD = FIRST + 0.1 * SECOND
TARGETS = RANDOM.normal(size=(12, 2)) * [1.0, 1.9]
PROBES = Probes(n_range=4, n_random=8)
BLIND = {
    "entropy rank": lambda K, L, M, y: effective_rank(K, probes=PROBES),
    "participation": lambda K, L, M, y: effective_rank(K, "participation", probes=PROBES),
    "top mass": lambda K, L, M, y: top_mass(K, 3, probes=PROBES),
    "distance": lambda K, L, M, y: kernel_distance(K, L, probes=PROBES),
    "velocity": lambda K, L, M, y: kernel_velocity(K, L, 1.0, probes=PROBES),
    "polar": lambda K, L, M, y: polar_dynamics(K, L, M, probes=PROBES),
    "alignment": lambda K, L, M, y: kernel_alignment(K, L, probes=PROBES),
    "centred": lambda K, L, M, y: kernel_alignment(K, L, True, probes=PROBES),
    "targets": lambda K, L, M, y: target_alignment(K, y, probes=PROBES),
    "centred targets": lambda K, L, M, y: target_alignment(K, y, True, probes=PROBES),
}
LARGE = {
    "trace": lambda K: kernel_trace(K, probes=PROBES),
    "norm": lambda K: kernel_norm(K, probes=PROBES),
    "top": lambda K: top_eigenpairs(K, 3).eigenvalues,
}
SIZES = [1e-300, 1e-200, 1e-160, 1e160, 1e200, 1e300]


@pytest.mark.parametrize("form", [np.asarray, aslinearoperator], ids=["matrix", "operator"])
@pytest.mark.parametrize("measure", BLIND.values(), ids=BLIND)
def test_measures_are_blind_to_any_size_of_kernels_and_targets(measure, form):
    expected = measure(*map(form, (FIRST, SECOND, THIRD)), TARGETS)
    for size in SIZES:
        found = measure(*(form(K * size) for K in (FIRST, SECOND, THIRD)), TARGETS / size)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("form", [np.asarray, aslinearoperator], ids=["matrix", "operator"])
@pytest.mark.parametrize("measure", LARGE.values(), ids=LARGE)
def test_traces_norms_and_eigenvalues_are_as_large_as_the_kernel(measure, form):
    for size in SIZES:
        np.testing.assert_allclose(measure(form(FIRST * size)) / size, measure(form(FIRST)), rtol=1e-7)
        np.testing.assert_allclose(leading_eigenpairs(FIRST * size, 2)[0] / size, leading_eigenpairs(FIRST, 2)[0])


@pytest.mark.parametrize("form", [np.asarray, aslinearoperator], ids=["matrix", "operator"])
def test_kernels_of_different_sizes_are_compared_in_one_unit(form):
    assert kernel_distance(form(1e-250 * FIRST), form(1e250 * FIRST), probes=PROBES) == pytest.approx(0, abs=1e-12)
    for size in (1e-250, 1e250):
        radius, _ = polar_dynamics(form(FIRST), form(size * FIRST), form(3 * size * FIRST), probes=PROBES)
        away = abs(1 / size - 1) / 2 if size < 1 else 0.5
        assert radius == pytest.approx(away, rel=1e-7)


@pytest.mark.parametrize("normalization", ["kernels", "targets", None])
def test_specialisation_takes_each_class_in_its_own_unit(normalization):
    both = np.stack([FIRST, SECOND], axis=-1)
    expected = kernel_specialization(both, TARGETS, normalization)
    for size in SIZES:
        found = kernel_specialization(both * [size, 1.0], TARGETS * [1.0, size], normalization)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("form", [np.asarray, aslinearoperator], ids=["matrix", "operator"])
@pytest.mark.parametrize("sizes", [[1.0, 1.9], [1.0, 100.0], [1e-3, 0.6]])
def test_the_columns_of_targets_weigh_as_much_as_they_are_large(sizes, form):
    Y = RANDOM.normal(size=(12, 2)) * sizes
    expected = np.vdot(FIRST, Y @ Y.T) / (np.linalg.norm(FIRST) * np.linalg.norm(Y @ Y.T))
    exact = Probes(n_range=12)
    assert target_alignment(form(FIRST), Y, probes=exact) == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES)
def test_symmetry_is_asked_of_matrices_of_any_size(size):
    norm, _ = require_symmetric(FIRST * size, "K")
    assert norm / size == pytest.approx(np.linalg.norm(FIRST))
    with pytest.raises(ValueError, match="K must be symmetric"):
        require_symmetric(FEATURES[:, :12] * size, "K")


def test_an_operator_that_is_zero_has_no_top_mass():
    with pytest.raises(ValueError, match="K is zero"):
        top_mass(aslinearoperator(np.zeros((12, 12))), 2)
