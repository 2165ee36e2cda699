"""Laws of kernels that are called as scikit-learn calls them, k(X, Y)."""

import jax
import numpy as np
import pytest
from sklearn.gaussian_process import kernels as gp
from sklearn.metrics.pairwise import rbf_kernel

from ntkrobust_sk import MLP, Model, NTKKernel
from ntkrobust_sk.testing import check_kernel

INPUTS = np.random.default_rng(0).normal(size=(6, 3))


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
