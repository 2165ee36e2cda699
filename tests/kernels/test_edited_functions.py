"""Kernels of one's own that were edited: each computation is of what the function says now, compiled once."""

from importlib.util import find_spec
from types import ModuleType

import jax
import numpy as np
import pytest
from sklearn.svm import SVR

from ntkrobust_sk import (
    MLP,
    EmpiricalNTKRegressor,
    InfiniteNTK,
    Model,
    NTKKernel,
    as_model,
    gram,
    gram_operator,
    kernel_diag,
)
from ntkrobust_sk.kernels.edited_functions import _traced_before

X = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
NETWORK = MLP(n_outputs=1, widths=(3,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (5,)))


def expected(degree):
    return (1 + X.astype(float) @ X.T) ** degree


def in_cell(degree):
    """A function and its helper, as cells of a notebook define them."""
    cell = ModuleType("cell")
    exec("def power(v):\n return v ** 2\ndef kernel(model, a, b):\n return power(1 + a @ b.T)", vars(cell))

    def edit():
        exec(f"def power(v):\n return v ** {degree}", vars(cell))

    return cell.kernel, edit


class Polynomial:
    """An object whose field is set, which notes how often it was traced."""

    needs_model, rank = False, 2

    def __init__(self):
        self.degree, self.n_traced = 2, 0

    def __call__(self, model, a, b):
        self.n_traced += 1
        return (1 + a @ b.T) ** self.degree


def as_field(degree):
    kernel = Polynomial()
    return kernel, lambda: setattr(kernel, "degree", degree)


def as_module(degree):
    """A helper in a module that is loaded again, which no code names."""
    module = ModuleType("of_the_lab")
    module.power = lambda v: v**2
    return lambda model, a, b: module.power(1 + a @ b.T), lambda: setattr(module, "power", lambda v: v**degree)


def as_closure(degree):
    held = [2]
    return lambda model, a, b: (1 + a @ b.T) ** held[0], lambda: held.__setitem__(0, degree)


def as_default(degree):
    def kernel(model, a, b, power=2):
        return (1 + a @ b.T) ** power

    return kernel, lambda: setattr(kernel, "__defaults__", (degree,))


WAYS = [in_cell, as_field, as_module, as_closure, as_default]


def of_regressor(kernel):
    return EmpiricalNTKRegressor(MODEL, kernel=kernel, alpha=0.1).fit(X, X[:, 0])


def through_attacked_machine(kernel):
    return np.asarray(of_regressor(kernel).as_model()(X))[:, 0]


def std_of(kernel):
    return of_regressor(kernel).predict(X, return_std=True)[1]


COMPUTED = {
    "gram": lambda kernel: gram(kernel, MODEL, X),
    "gram of two": lambda kernel: gram(kernel, MODEL, X, X[:3]),
    "float64": lambda kernel: gram(kernel, MODEL, X, dtype="float64"),
    "diagonal": lambda kernel: kernel_diag(kernel, MODEL, X),
    "operator": lambda kernel: gram_operator(kernel, MODEL, X) @ np.eye(20),
    "NTKKernel": lambda kernel: NTKKernel(MODEL, kernel)(X),
    "NTKKernel of two": lambda kernel: NTKKernel(MODEL, kernel)(X, X[:3]),
    "NTKKernel's diagonal": lambda kernel: NTKKernel(MODEL, kernel).diag(X),
    "predictions": lambda kernel: of_regressor(kernel).predict(X),
    "attacked": through_attacked_machine,
    "deviations": std_of,
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", COMPUTED)
def test_an_edited_kernel_is_another_kernel(name, way):
    compute, (kernel, edit) = COMPUTED[name], way(4)
    before = compute(kernel)
    np.testing.assert_allclose(before, compute(lambda model, a, b: (1 + a @ b.T) ** 2), rtol=1e-4, atol=1e-4)
    edit()
    np.testing.assert_allclose(
        compute(kernel), compute(lambda model, a, b: (1 + a @ b.T) ** 4), rtol=1e-4, atol=1e-4
    )
    assert not np.allclose(compute(kernel), before, rtol=1e-3)


def test_matrices_are_those_of_the_edited_function():
    kernel, edit = in_cell(3)
    np.testing.assert_allclose(gram(kernel, MODEL, X), expected(2), rtol=1e-4, atol=1e-4)
    edit()
    np.testing.assert_allclose(gram(kernel, MODEL, X), expected(3), rtol=1e-4, atol=1e-3)


def test_a_machine_of_scikit_learn_on_an_edited_kernel_is_attacked_as_it_is():
    kernel, edit = in_cell(3)
    for _ in range(2):
        machine = SVR(kernel=NTKKernel(MODEL, kernel)).fit(X, X[:, 0])
        np.testing.assert_allclose(as_model(machine)(X)[:, 0], machine.predict(X), rtol=1e-3, atol=1e-3)
        edit()


def test_a_kernel_that_notes_its_calls_is_compiled_once():
    kernel = Polynomial()
    gram(kernel, MODEL, X)
    once = kernel.n_traced
    for n in range(3):
        gram(kernel, MODEL, X + n)
    # its state differs in each call, and is looked at by one trace; what was compiled is found again
    assert kernel.n_traced == once + 3


def test_code_that_is_seen_whole_is_traced_once():
    kernel, edit = in_cell(4)
    _traced_before.cache_clear()
    for n in range(3):
        gram(kernel, MODEL, X + n)
    edit()
    gram(kernel, MODEL, X), gram(kernel, MODEL, X)
    found = _traced_before.cache_info()
    assert (found.misses, found.hits) == (2, 3)


@pytest.mark.skipif(find_spec("neural_tangents") is None, reason="neural-tangents is not installed")
def test_an_infinitely_wide_network_of_an_edited_function_is_another_kernel():
    depth = [1]

    def network(stax):
        return stax.serial(*[stax.Dense(8), stax.Relu()] * depth[0], stax.Dense(1))

    def deep(stax):
        return stax.serial(*[stax.Dense(8), stax.Relu()] * 3, stax.Dense(1))

    kernel = InfiniteNTK(network)
    before = gram(kernel, None, X)
    depth[0] = 3
    np.testing.assert_array_equal(gram(kernel, None, X), gram(InfiniteNTK(deep), None, X))
    assert not np.allclose(gram(kernel, None, X), before)
