"""Measures on Gram matrices: definitions, identities, ranges, errors."""

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkrobust_sk._arrays import cupy_or_none
from ntkrobust_sk.analysis.metrics import (
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    kernel_velocity,
    polar_dynamics,
    target_alignment,
)
from ntkrobust_sk.analysis.spectra import effective_rank, top_mass
from ntkrobust_sk.evolution.tasks import class_metrics


def random_gram(n, seed=0, n_features=None):
    features = np.random.default_rng(seed).normal(size=(n, n_features or n))
    return features @ features.T


def one_hot(n, n_classes):
    return np.eye(n_classes)[np.arange(n) % n_classes]


def center(K):
    H = np.eye(len(K)) - 1 / len(K)
    return H @ K @ H


seeds, sizes = st.integers(0, 10**6), st.integers(1, 15)
properties = settings(max_examples=50, deadline=None)


# Distance, velocity, polar dynamics


def test_the_kernel_distance_is_one_minus_the_cosine_of_frobenius():
    K1, K2 = random_gram(8, 1), random_gram(8, 2)
    cosine = np.trace(K1.T @ K2) / (np.linalg.norm(K1) * np.linalg.norm(K2))
    assert kernel_distance(K1, K2) == pytest.approx(1 - cosine, rel=1e-12)


@given(sizes, seeds, st.floats(1e-6, 1e6))
@properties
def test_the_kernel_distance_is_blind_to_scale(n, seed, scale):
    K1, K2 = random_gram(n, seed), random_gram(n, seed + 1)
    assert kernel_distance(K1, scale * K1) == pytest.approx(0, abs=1e-30)
    assert kernel_distance(K1, scale * K2) == pytest.approx(kernel_distance(K1, K2), rel=1e-9, abs=1e-30)


@given(sizes, seeds)
@properties
def test_the_kernel_distance_is_symmetric_and_between_zero_and_one_for_gram_matrices(n, seed):
    K1, K2 = random_gram(n, seed), random_gram(n, seed + 1, n_features=1)
    assert kernel_distance(K1, K2) == kernel_distance(K2, K1)
    assert 0 <= kernel_distance(K1, K2) <= 1


def test_opposite_matrices_have_the_largest_distance():
    K = random_gram(6)
    assert kernel_distance(K, -K) == pytest.approx(2)
    assert kernel_distance(K, -3 * K) <= 2


def test_kernels_on_different_directions_have_distance_one():
    assert kernel_distance(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 1.0


def test_the_distance_of_close_kernels_keeps_its_digits():
    tiny = 1e-9
    distance = kernel_distance(np.eye(2), np.diag([1.0, 1.0 + tiny]))
    assert distance == pytest.approx(tiny**2 / 8, rel=1e-6)


def test_the_kernel_velocity_is_distance_over_time():
    K1, K2 = random_gram(5, 1), random_gram(5, 2)
    assert kernel_velocity(K1, K2, 0.125) == pytest.approx(8 * kernel_distance(K1, K2))


@pytest.mark.parametrize("dt", [0, -1.0, np.nan, np.inf, None])
def test_a_velocity_needs_a_positive_time(dt):
    with pytest.raises(ValueError, match="dt must be a finite number > 0"):
        kernel_velocity(np.eye(2), np.eye(2), dt)


def test_polar_dynamics_go_from_radius_zero_to_radius_one():
    start, end = random_gram(6, 1), random_gram(6, 2)
    assert polar_dynamics(start, start, end) == (0.0, 0.0)
    radius, angle = polar_dynamics(end, start, end)
    assert radius == pytest.approx(1)
    assert np.cos(angle) == pytest.approx(kernel_alignment(start, end))
    assert polar_dynamics((start + end) / 2, start, end)[0] == pytest.approx(0.5)


def test_polar_dynamics_need_a_kernel_that_moved():
    with pytest.raises(ValueError, match="K_end equals K_start"):
        polar_dynamics(np.eye(3), np.eye(3), np.eye(3))


# Spectrum


@pytest.mark.parametrize("n", [1, 2, 17])
def test_the_identity_uses_every_direction(n):
    assert effective_rank(np.eye(n), "entropy") == pytest.approx(n)
    assert effective_rank(np.eye(n), "participation") == pytest.approx(n)
    assert top_mass(np.eye(n), 1) == pytest.approx(1 / n)


@pytest.mark.parametrize("kind", ["entropy", "participation"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_projection_has_its_rank_as_effective_rank(kind, rank):
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, rank)))
    assert effective_rank(Q @ Q.T, kind) == pytest.approx(rank)


def test_the_two_effective_ranks_are_what_their_formulas_say():
    p = np.array([0.7, 0.2, 0.1])
    assert effective_rank(5 * np.diag(p)) == pytest.approx(np.prod(p**-p))
    assert effective_rank(5 * np.diag(p), kind="participation") == pytest.approx(1 / np.sum(p**2))


@given(sizes, seeds)
@properties
def test_participation_is_at_most_entropy_and_both_are_between_one_and_n(n, seed):
    K = random_gram(n, seed)
    participation, entropy = effective_rank(K, "participation"), effective_rank(K, "entropy")
    assert 1 - 1e-9 <= participation <= entropy + 1e-9 <= n + 1e-8


def test_top_mass_is_the_share_of_squared_eigenvalues_and_reaches_one():
    K = np.diag([1.0, 3.0, 2.0])
    assert [top_mass(K, k) for k in (1, 2, 3)] == pytest.approx([9 / 14, 13 / 14, 1])


@pytest.mark.parametrize("k", [0, 4, 1.0, -1])
def test_top_mass_counts_from_one_to_n(k):
    with pytest.raises(ValueError, match="k must be a positive integer, at most 3, got"):
        top_mass(np.eye(3), k)


def test_negative_eigenvalues_from_rounding_are_zero_to_the_spectrum():
    K = random_gram(60, n_features=5).astype(np.float32)
    assert np.linalg.eigvalsh(K.astype(float))[0] < 0
    exact = random_gram(60, n_features=5)
    assert effective_rank(K) == pytest.approx(effective_rank(exact), rel=1e-3)
    assert top_mass(K, 5) == pytest.approx(1)
    assert top_mass(np.diag([1.0, -9e-5]), 1) == effective_rank(np.diag([1.0, -9e-5])) == 1.0


@pytest.mark.parametrize("measure", [effective_rank, lambda K: top_mass(K, 1)])
@pytest.mark.parametrize("K", [np.diag([1.0, -0.1]), -np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])])
def test_an_indefinite_matrix_has_no_spectrum_to_measure(measure, K):
    with pytest.raises(ValueError, match="positive semidefinite"):
        measure(K)


def test_participation_refuses_a_negative_diagonal():
    with pytest.raises(ValueError, match="positive semidefinite"):
        effective_rank(np.diag([1.0, -0.1]), kind="participation")


def test_an_unknown_kind_of_effective_rank_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'stable'; known are 'entropy', 'participation'"):
        effective_rank(np.eye(2), kind="stable")


# Alignment


def test_centered_kernel_alignment_is_linear_cka():
    rng = np.random.default_rng(0)
    F, G = rng.normal(size=(20, 4)) + 3, rng.normal(size=(20, 7)) - 1
    Fc, Gc = F - F.mean(axis=0), G - G.mean(axis=0)
    cka = np.linalg.norm(Fc.T @ Gc) ** 2 / (np.linalg.norm(Fc.T @ Fc) * np.linalg.norm(Gc.T @ Gc))
    assert kernel_alignment(F @ F.T, G @ G.T, centered=True) == pytest.approx(cka)
    assert kernel_alignment(F @ F.T, G @ G.T) > cka + 0.1


def test_centered_alignment_ignores_a_constant_added_to_a_kernel():
    K1, K2 = random_gram(9, 1), random_gram(9, 2)
    expected = kernel_alignment(K1, K2, centered=True)
    assert kernel_alignment(K1 + 100, K2, centered=True) == pytest.approx(expected)
    assert kernel_alignment(center(K1), center(K2)) == pytest.approx(expected)


@given(sizes, seeds)
@properties
def test_alignment_and_distance_add_up_to_one(n, seed):
    K1, K2 = random_gram(n, seed), random_gram(n, seed + 1)
    assert kernel_alignment(K1, K2) + kernel_distance(K1, K2) == pytest.approx(1)
    assert kernel_alignment(K1, K1) == pytest.approx(1)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("columns", [(), (1,), (4,)], ids=str)
def test_target_alignment_is_alignment_with_the_targets_own_kernel(centered, columns):
    K, Y = random_gram(10), np.random.default_rng(5).normal(size=(10, *columns))
    own = Y.reshape(10, -1) @ Y.reshape(10, -1).T
    expected = kernel_alignment(K, own, centered=centered)
    assert target_alignment(K, Y, centered=centered) == pytest.approx(expected)


def test_target_alignment_of_a_vector_is_the_quadratic_form():
    K, y = random_gram(10), np.random.default_rng(5).normal(size=10)
    assert target_alignment(K, y) == pytest.approx(y @ K @ y / (np.linalg.norm(K) * (y @ y)))


@given(st.integers(2, 15), seeds, st.floats(0.01, 100))
@properties
def test_the_kernel_of_the_targets_is_perfectly_aligned_with_them(n, seed, scale):
    y = np.random.default_rng(seed).normal(size=n)
    assert target_alignment(scale * np.outer(y, y), -y) == pytest.approx(1)
    assert target_alignment(np.eye(n), y) == pytest.approx(1 / np.sqrt(n))


# Specialisation


def specialised_kernels(n=12, n_classes=3, strength=4.0):
    Y = one_hot(n, n_classes)
    base = np.eye(n) + 0.2
    kernels = [base + strength * np.outer(Y[:, c], Y[:, c]) for c in range(n_classes)]
    return np.stack(kernels, axis=-1), Y


@pytest.mark.parametrize("centered", [False, True])
def test_raw_specialization_is_the_alignment_of_every_kernel_with_every_target(centered):
    K, Y = np.stack([random_gram(9, c) for c in range(3)], axis=-1), one_hot(9, 3)
    M = kernel_specialization(K, Y, normalization=None, centered=centered)
    expected = [[target_alignment(K[:, :, c], Y[:, d], centered=centered) for d in range(3)] for c in range(3)]
    np.testing.assert_allclose(M, expected, rtol=1e-10)


@pytest.mark.parametrize(("normalization", "axis"), [("kernels", 0), ("targets", 1)])
def test_normalized_specialization_is_relative_to_the_mean_over_kernels_or_targets(normalization, axis):
    K, Y = specialised_kernels()
    K[:, :, 0] += 0.5
    raw, M = kernel_specialization(K, Y, None), kernel_specialization(K, Y, normalization)
    np.testing.assert_allclose(M, raw / raw.mean(axis=axis, keepdims=True))
    np.testing.assert_allclose(M.mean(axis=axis), 1)


@pytest.mark.parametrize("normalization", ["kernels", "targets", None])
@pytest.mark.parametrize("centered", [False, True])
def test_a_kernel_that_prefers_its_own_class_shows_on_the_diagonal(normalization, centered):
    M = kernel_specialization(*specialised_kernels(), normalization, centered)
    np.testing.assert_array_equal(M.argmax(axis=0), range(3))
    np.testing.assert_array_equal(M.argmax(axis=1), range(3))


def test_equal_kernels_are_not_specialised_however_unequal_the_classes():
    K, Y = np.repeat(random_gram(10)[..., None], 3, axis=-1), one_hot(10, 3)
    np.testing.assert_allclose(kernel_specialization(K, Y), np.ones((3, 3)))


def test_specialization_is_blind_to_the_scale_of_each_kernel():
    K, Y = specialised_kernels()
    np.testing.assert_allclose(
        kernel_specialization(K * np.array([1.0, 10.0, 0.1]), Y), kernel_specialization(K, Y)
    )


@pytest.mark.parametrize(
    ("K", "Y", "options", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 1)), {}, "K_classes must have shape"),
        (np.ones((4, 4, 2)), one_hot(4, 3), {}, "K_classes must have shape"),
        (np.ones((4, 4, 2)), np.ones(4), {}, "K_classes must have shape"),
        (
            np.ones((4, 4, 2)),
            one_hot(4, 2),
            {"normalization": "rows"},
            "unknown normalization 'rows'; known are 'kernels', 'targets', None",
        ),
        (np.ones((4, 4, 2)), one_hot(4, 1) @ [[1.0, 0.0]], {}, "column 1 of Y is zero"),
        (
            np.ones((4, 4, 2)),
            one_hot(4, 2) * [1, 0] + [0, 0.1],
            {"centered": True},
            "column 1 of Y is constant",
        ),
        (np.ones((4, 4, 2)), one_hot(4, 2), {"centered": True}, r"K_classes\[:, :, 0\] is constant"),
        (np.zeros((4, 4, 2)), one_hot(4, 2), {}, r"K_classes\[:, :, 0\] is zero"),
        (np.diag([1.0, 0.0, 1.0, 0.0])[..., None] * [1, 1], one_hot(4, 2), {}, "normalization=None"),
    ],
)
def test_specialization_refuses_what_it_cannot_normalise(K, Y, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_specialization(K, Y, **options)


# What every measure takes and refuses


MEASURES = {
    "kernel_distance": lambda K: kernel_distance(K, K),
    "kernel_velocity": lambda K: kernel_velocity(K, K, 1.0),
    "polar_dynamics": lambda K: polar_dynamics(K, np.eye(3), np.diag([1.0, 2.0, 3.0])),
    "effective_rank": effective_rank,
    "participation": lambda K: effective_rank(K, kind="participation"),
    "top_mass": lambda K: top_mass(K, 1),
    "kernel_alignment": lambda K: kernel_alignment(K, K),
    "target_alignment": lambda K: target_alignment(K, np.ones(len(K))),
    "kernel_specialization": lambda K: kernel_specialization(np.stack([K, K], axis=-1), np.ones((len(K), 2))),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize(
    ("K", "message"),
    [
        (np.ones((3, 4)), r"must be square|must have shape \(n, n, C\)"),
        (np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "must be symmetric"),
        (np.diag([1.0, np.nan, 1.0]), "must be finite"),
        (np.diag([1.0, np.inf, 1.0]), "must be finite"),
        (np.zeros((3, 3)), "is zero"),
        (1j * np.eye(3), "must be real"),
    ],
    ids=["rectangular", "unsymmetric", "nan", "infinite", "zero", "complex"],
)
def test_every_measure_refuses_what_is_no_gram_matrix(measure, K, message):
    with pytest.raises(ValueError, match=message):
        measure(K)


@pytest.mark.parametrize("measure", [kernel_distance, kernel_alignment])
def test_two_kernels_must_be_of_the_same_samples(measure):
    with pytest.raises(ValueError, match=r"same samples, got shapes \(2, 2\) and \(3, 3\)"):
        measure(np.eye(2), np.eye(3))


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (np.ones(4), {}, r"y must have shape \(3,\) or \(3, C\)"),
        (np.ones((3, 1, 1)), {}, "y must have shape"),
        (np.array([1.0, np.nan, 0.0]), {}, "y must be finite"),
        (np.ones(3) * 1j, {}, "y must be real"),
        (np.zeros(3), {}, "y is zero"),
        (np.full(3, 0.1), {"centered": True}, "y is constant"),
    ],
)
def test_target_alignment_refuses_targets_that_cannot_be_aligned_with(y, options, message):
    with pytest.raises(ValueError, match=message):
        target_alignment(np.eye(3), y, **options)


def test_a_constant_kernel_has_nothing_left_after_centering():
    with pytest.raises(ValueError, match="K2 is constant"):
        kernel_alignment(np.eye(7), np.full((7, 7), 0.1), centered=True)


@pytest.mark.parametrize("convert", [jnp.asarray, array_api_strict.asarray, np.ndarray.tolist])
def test_every_kind_of_array_gives_the_same_python_floats(convert):
    K1, K2 = random_gram(6, 1).astype(np.float32), random_gram(6, 2).astype(np.float32)
    y = np.arange(6, dtype=np.float32)
    for measure, arguments in [
        (kernel_distance, (K1, K2)),
        (kernel_alignment, (K1, K2)),
        (effective_rank, (K1,)),
        (target_alignment, (K1, y)),
    ]:
        value = measure(*(convert(a) for a in arguments))
        assert type(value) is float
        assert value == pytest.approx(measure(*arguments), rel=1e-6)


def test_measures_take_arrays_from_the_gpu():
    cupy = cupy_or_none()
    if cupy is None:
        pytest.skip("CuPy is not installed or sees no GPU")
    K, y = random_gram(6), np.arange(6.0)
    assert target_alignment(cupy.asarray(K), cupy.asarray(y)) == pytest.approx(target_alignment(K, y))
    assert effective_rank(cupy.asarray(K)) == pytest.approx(effective_rank(K))


def test_measures_leave_the_arrays_of_their_caller_alone():
    K1, K2 = random_gram(6, 1), random_gram(6, 2)
    before = K1.copy()
    kernel_distance(K1, K2)
    kernel_alignment(K1, K2, centered=True)
    effective_rank(K1)
    np.testing.assert_array_equal(K1, before)


def test_a_layer_without_a_gradient_has_a_share_of_zero_and_neither_rank_nor_alignment():
    K = np.stack([random_gram(6, seed) for seed in (1, 2)], axis=2)
    found = class_metrics({"trained": K, "behind a zero scale": 0 * K}, np.arange(6) % 2)["layers"]
    assert found["behind a zero scale"] == {"share": 0.0, "effective_rank": None, "target_alignment": None}
    assert found["trained"] == {
        "share": 1.0,
        "effective_rank": effective_rank(K.mean(2)),
        "target_alignment": target_alignment(K.mean(2), one_hot(6, 2)),
    }
