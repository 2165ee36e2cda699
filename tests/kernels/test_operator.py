"""Gram matrices as operators: the same products as with the matrix, never formed."""

import jax
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Model, gram, gram_operator
from ntkrobust_sk.kernels.ntk import KERNELS

C, N, M = 3, 7, 5
NETWORKS = {
    "dense": (MLP(n_outputs=C, widths=(4,), activation="tanh"), (5,)),
    "convolutional": (CNN(n_outputs=C, widths=(2,), strides=(2,)), (5, 4, 1)),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model_of(name):
    network, shape = NETWORKS[name]
    return Model(network, network.init(jax.random.key(0), shape)), shape


def as_matrix(K):
    """A kernel's block as one matrix, in the order of examples."""
    if K.ndim == 2:
        return K
    if K.ndim == 3:
        K = np.einsum("nmc,cd->nmcd", K, np.eye(K.shape[2]))
    n, m, c, d = K.shape
    return K.transpose(0, 2, 1, 3).reshape(n * c, m * d)


def assert_close(found, expected, rtol=1e-6):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
@each_kernel
def test_products_columns_and_the_diagonal_are_those_of_the_matrix(kernel, name):
    model, shape = model_of(name)
    X, Y = draw(N, *shape), draw(M, *shape, seed=2)
    square, matrix = (as_matrix(np.asarray(gram(kernel, model, X, other), np.float64)) for other in (None, Y))
    K = gram_operator(kernel, model, X)
    assert K.dtype == np.float32 and K.shape == square.shape
    V = draw(len(square), 3, seed=3)
    assert_close(K @ V, square @ V)
    assert_close(K @ V[:, :1], square @ V[:, :1])
    assert_close(K @ V[:, 0], square @ V[:, 0])
    assert_close(K.diagonal(), np.diagonal(square))
    K = gram_operator(kernel, model, X, Y)
    V, U = draw(matrix.shape[1], 2, seed=4), draw(len(matrix), 2, seed=5)
    assert_close(K @ V, matrix @ V)
    assert_close(K.T @ U, matrix.T @ U)
    assert_close(K.columns([4, 0, 4]), matrix[:, [4, 0, 4]])
