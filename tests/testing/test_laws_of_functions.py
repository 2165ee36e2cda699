"""Laws of kernels that are called as scikit-learn calls them, k(X, Y)."""

import warnings

import jax
import numpy as np
import pytest
from sklearn.gaussian_process import kernels as gp
from sklearn.metrics.pairwise import rbf_kernel

from ntkrobust_sk import MLP, Model, NTKKernel
from ntkrobust_sk.testing import check_kernel

INPUTS = np.random.default_rng(0).normal(size=(6, 3))


def small_model():
    return Model(MLP(2, widths=(3,)), MLP(2, widths=(3,)).init(jax.random.key(0), (3,)))


def test_a_kernel_of_scikit_learn_is_checked_as_it_is_called():
    model = Model(MLP(2, widths=(3,)), MLP(2, widths=(3,)).init(jax.random.key(0), (3,)))
    for kernel in (rbf_kernel, gp.RBF(0.5), NTKKernel(model), lambda X, Z: X @ Z.T):
        check_kernel(kernel, None, INPUTS)
        check_kernel(kernel, model, INPUTS)


BROKEN_FUNCTIONS = {
    "is not symmetric": lambda X, Y: X[:, :1] @ np.ones((1, len(Y))),
    "is not positive semidefinite": lambda X, Y: -X @ Y.T,
    "depends on the order": lambda X, Y: (X @ Y.T) * (1 + (np.arange(len(X))[:, None] == np.arange(len(Y)))),
    "another diagonal": lambda X, Y: (X - X.mean(0)) @ (Y - Y.mean(0)).T if len(X) > 1 else X @ Y.T,
    "one number for each pair": lambda X, Y: np.ones(3),
}


@pytest.mark.parametrize("said", BROKEN_FUNCTIONS)
def test_a_broken_function_of_two_inputs_is_found(said):
    with pytest.raises(AssertionError, match=said):
        check_kernel(BROKEN_FUNCTIONS[said], None, INPUTS)


def test_who_checks_another_kernel_for_scaling_is_told_of_the_flag():
    model = Model(MLP(2, widths=(3,)), MLP(2, widths=(3,)).init(jax.random.key(0), (3,)))

    def linear(model, x1, x2):
        return x1 @ x2.T

    with pytest.raises(AssertionError, match="tangent=False"):
        check_kernel(linear, model, INPUTS)
    check_kernel(linear, model, INPUTS, tangent=False)


def test_a_kernel_of_a_model_needs_one():
    with pytest.raises(TypeError, match=r"must be a ntkrobust_sk\.Model"):
        check_kernel(lambda model, x1, x2: x1 @ x2.T, None, INPUTS)


def test_a_function_of_two_inputs_needs_no_word_of_a_model():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_kernel(rbf_kernel, INPUTS)
        check_kernel(rbf_kernel, X=INPUTS)
        check_kernel(lambda X, Y: X @ Y.T, INPUTS)
    with pytest.raises(AssertionError, match="not symmetric"):
        check_kernel(BROKEN_FUNCTIONS["is not symmetric"], INPUTS)


MISPLACED = {
    "inputs twice": lambda model: check_kernel(rbf_kernel, INPUTS, INPUTS),
    "a name for the model": lambda model: check_kernel("trace", "mlp", INPUTS),
    "no inputs": lambda model: check_kernel(rbf_kernel),
    "a model alone": lambda model: check_kernel("trace", model),
    "inputs and None": lambda model: check_kernel("trace", INPUTS),
}


@pytest.mark.parametrize("call", MISPLACED)
def test_what_stands_in_a_wrong_place_is_never_passed_over(call):
    with pytest.raises(TypeError, match=r"ntkrobust_sk\.Model|check_kernel needs X"):
        MISPLACED[call](small_model())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_is_called_so(bad):
    said = r"is not finite: entry \(0, 0\) is"
    with pytest.raises(AssertionError, match=said):
        check_kernel(lambda X, Y: X @ Y.T * bad, INPUTS)
    with pytest.raises(AssertionError, match=said):
        check_kernel(lambda model, x1, x2: model(x1) @ model(x2).T * bad, small_model(), INPUTS)


def test_a_kernel_of_a_model_in_numpy_is_never_traced():
    def in_numpy(model, x1, x2):
        return rbf_kernel(x1, x2)

    with pytest.raises(TypeError, match=r"tangent=False"):
        check_kernel(in_numpy, small_model(), INPUTS)
    check_kernel(in_numpy, small_model(), INPUTS, tangent=False)
    with pytest.raises(AssertionError, match="not positive semidefinite"):
        check_kernel(lambda model, x1, x2: -rbf_kernel(x1, x2), small_model(), INPUTS, tangent=False)
