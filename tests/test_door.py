"""What is no number, array, choice or function of the right form is refused by name, before anything else."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    Cholesky,
    Eigh,
    InaccurateSolveError,
    effective_rank,
    kernel_alignment,
    kernel_distance,
    kernel_specialization,
    kernel_velocity,
    solve,
    target_alignment,
    top_mass,
)

K = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])
Y = np.eye(3)
ODD_NUMBERS = [None, "x", b"x", True, 1j, 10**400, float("nan"), float("inf"), [], {}, np.array([1, 2]), object()]
ODD_ARRAYS = ["x", None, 5, object(), [[1, 2], [3]], np.array([["a"]]), K.astype(object), np.ma.array(K), {}, np]


@pytest.mark.parametrize("odd", ODD_NUMBERS, ids=str)
def test_numbers_of_measures_and_solvers_are_refused_by_name(odd):
    for name, call in {
        "dt": lambda: kernel_velocity(K, Y, odd),
        "k": lambda: top_mass(K, odd),
        "alpha": lambda: solve(K, Y, alpha=odd),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            call()
    for name in ("max_residual", "rcond"):
        if odd is not None:
            with pytest.raises(ValueError, match=f"{name} must be"):
                Eigh(**{name: odd})


@pytest.mark.parametrize("odd", ODD_ARRAYS, ids=lambda odd: type(odd).__name__)
def test_matrices_and_targets_that_are_none_are_refused_by_name(odd):
    for name, call in {
        "K1": lambda: kernel_distance(odd, K),
        "K2": lambda: kernel_alignment(K, odd),
        "K": lambda: effective_rank(odd),
        "y": lambda: target_alignment(K, odd),
        "K_classes": lambda: kernel_specialization(odd, Y),
        "gram": lambda: solve(odd, Y, alpha=1.0),
        "targets": lambda: solve(K, odd, alpha=1.0),
        "A": lambda: Cholesky()(odd, Y),
        "B": lambda: Cholesky()(K, odd),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            call()
    if odd is not None:
        with pytest.raises((TypeError, ValueError), match="sample_weight must"):
            solve(K, Y, alpha=1.0, sample_weight=odd)


@pytest.mark.parametrize("odd", [np.array([1, 2]), [], {}, object(), "rows"], ids=lambda odd: type(odd).__name__)
def test_choices_and_flags_of_measures_are_refused_by_name(odd):
    classes = np.stack([K, Y], axis=-1)
    with pytest.raises(ValueError, match="unknown normalization"):
        kernel_specialization(classes, Y[:, :2], normalization=odd)
    with pytest.raises(ValueError, match="unknown kind"):
        effective_rank(K, odd)
    for call in (lambda: kernel_alignment(K, Y, odd), lambda: target_alignment(K, Y, odd)):
        with pytest.raises(ValueError, match="centered must be True or False"):
            call()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_targets_of_any_scale_are_aligned_with_as_those_of_scale_one(scale):
    assert target_alignment(K, scale * Y[:, 0]) == pytest.approx(target_alignment(K, Y[:, 0]), rel=1e-15)
    classes = np.stack([K, Y], axis=-1)
    got = kernel_specialization(classes, scale * Y[:, :2])
    assert got == pytest.approx(kernel_specialization(classes, Y[:, :2]), rel=1e-14)


def test_a_step_too_short_for_a_finite_velocity_is_refused():
    with pytest.raises(ValueError, match="dt must be long enough"):
        kernel_velocity(K, Y, 1e-310)


@pytest.mark.parametrize(
    "answer",
    [None, 1.0, "x", [], np.zeros(3), np.zeros((1, 3)), [[1, 2], [3]]],
    ids=lambda answer: type(answer).__name__ + str(np.shape(answer) if not isinstance(answer, list) else ""),
)
def test_a_solver_that_returns_something_else_than_an_answer_is_named(answer):
    def no_solver(A, B):
        return answer

    with pytest.raises((TypeError, ValueError), match=r"solver must return a finite array .*no_solver"):
        solve(K, Y, alpha=1.0, solver=no_solver)


def test_a_solver_whose_answer_is_not_finite_or_that_takes_other_arguments_is_refused():
    with pytest.raises(InaccurateSolveError, match="solver must return a finite array"):
        solve(K, Y, alpha=1.0, solver=lambda A, B: B * np.nan)
    with pytest.raises(TypeError, match=r"solver must be callable as solver\(A, B\), but .* takes"):
        solve(K, Y, alpha=1.0, solver=lambda A: A)
    with pytest.raises(ValueError, match="what the solver returned must be real"):
        solve(K, Y, alpha=1.0, solver=lambda A, B: B + 0j)
    got = solve(K, Y, alpha=1.0, solver=lambda A, B: jnp.asarray(np.linalg.solve(A, B)))
    assert type(got) is np.ndarray
    assert got == pytest.approx(solve(K, Y, alpha=1.0), rel=1e-5)
