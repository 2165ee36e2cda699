"""Gram matrices as operators: the same products as with the matrix, never formed."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import OneBlock
from scipy.sparse.linalg import eigsh

from ntkrobust_sk import CNN, MLP, Model, ProjectedNTK, Variables, from_flax, gram, gram_operator
from ntkrobust_sk.execution import devices
from ntkrobust_sk.kernels import open_gram, tangent_products
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.store import DamagedTileError
from ntkrobust_sk.kernels.tangent_products import padded_columns
from ntkrobust_sk.networks.precision import MixedPrecision

C, N, M = 3, 7, 5
SLOW = ("class", "pseudo")
each_kernel = pytest.mark.parametrize(
    "kernel", [pytest.param(KERNELS[k], id=k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KERNELS]
)
MLP_SHAPE = (5,)
MODEL = Model(MLP(n_outputs=C, widths=(4,), activation="tanh"), Variables(()))
MODEL = Model(MODEL.network, MODEL.network.init(jax.random.key(0), MLP_SHAPE))


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, Y = draw(N, *MLP_SHAPE), draw(M, *MLP_SHAPE, seed=2)


def as_matrix(K):
    """A kernel's block as one matrix in double precision, in the order of examples."""
    K = np.asarray(K, np.float64)
    if K.ndim == 2:
        return K
    if K.ndim == 3:
        K = np.einsum("nmc,cd->nmcd", K, np.eye(K.shape[2]))
    n, m, c, d = K.shape
    return K.transpose(0, 2, 1, 3).reshape(n * c, m * d)


def assert_close(found, expected, rtol=1e-6):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def assert_is(K, matrix, rtol=1e-6):
    """All that an operator gives is that of the matrix."""
    n, m = matrix.shape
    # of one width, which is compiled once
    V, U = draw(m, 4, seed=3), draw(n, 4, seed=4)
    assert K.shape == matrix.shape
    assert_close(K @ V, matrix @ V, rtol)
    assert_close(K.T @ U, matrix.T @ U, rtol)
    some = [m - 1, 0, m - 1]
    assert_close(K.columns(some), matrix[:, some], rtol)
    if K.symmetric:
        assert_close(K.diagonal(), np.diagonal(matrix), rtol)


@each_kernel
def test_an_operator_gives_what_the_matrix_does(kernel):
    assert_is(gram_operator(kernel, MODEL, X), as_matrix(gram(kernel, MODEL, X)))
    K = gram_operator(kernel, MODEL, X, Y)
    assert K.dtype == np.float32
    assert_is(K, as_matrix(gram(kernel, MODEL, X, Y)))
    assert_is(K.T, as_matrix(gram(kernel, MODEL, X, Y)).T)


def test_one_column_is_one_of_many():
    K, V = gram_operator("trace", MODEL, X), draw(N, 4)
    together = K @ V
    assert_close(K @ V[:, 0], together[:, 0])
    assert_close(K @ V[:, :1], together[:, :1])
    assert_close(K.matvec(V[:, 0]), together[:, 0])


def flax_model():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (2, 2))(x)))
            return nn.Dense(C)(x.reshape(len(x), -1))

    x = jnp.ones((1, 4, 4, 1))
    return from_flax(Net(), Net().init(jax.random.key(0), x)), (4, 4, 1)


def images_model(network, shape):
    return Model(network, network.init(jax.random.key(0), shape)), shape


NETWORKS = {
    "convolutions": lambda: images_model(CNN(n_outputs=C, widths=(2,), strides=(2,)), (5, 4, 1)),
    "batch norm": lambda: images_model(OneBlock(n_outputs=C, width=1), (4, 4, 1)),
    "flax": flax_model,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kernel", ["trace", "class", "full", "pseudo"])
def test_other_networks(kernel, name):
    model, shape = NETWORKS[name]()
    inputs, others = draw(N, *shape), draw(M, *shape, seed=2)
    assert_is(gram_operator(kernel, model, inputs), as_matrix(gram(kernel, model, inputs)), 3e-6)
    assert_is(gram_operator(kernel, model, inputs, others), as_matrix(gram(kernel, model, inputs, others)), 3e-6)


def test_double_precision_is_that_of_the_network_and_of_columns():
    single = gram_operator("trace", MODEL, X)
    double = gram_operator("trace", MODEL, X, dtype="float64")
    V = draw(N, 2).astype(np.float64)
    assert (single @ V).dtype == (double @ V).dtype == np.float64 and (single @ draw(N)).dtype == np.float32
    columns = double.columns(range(N))
    assert double.dtype == columns.dtype == np.float64
    assert_close(double @ V, columns @ V, 1e-14)
    assert_close(double.diagonal(), np.diagonal(columns), 1e-14)


def test_columns_of_any_size_lose_no_digits_to_it():
    K = gram_operator("trace", MODEL, X)
    v = draw(N).astype(np.float64)
    for size in (2.0**-600, 2.0**600):
        np.testing.assert_array_equal(K @ (size * v), size * (K @ v))
    assert (K @ np.zeros((N, 2)) == 0).all() and (K @ np.zeros((N, 0))).shape == (N, 0)


def test_all_tiles_and_numbers_of_columns_take_a_few_programs(monkeypatch):
    monkeypatch.setattr(tangent_products, "ROWS", 4)
    tangent_products._plan.cache_clear()
    tangent_products._fitting_rows.cache_clear()
    try:
        K = gram_operator("trace", MODEL, draw(11, *MLP_SHAPE))
        expected = as_matrix(gram("trace", MODEL, draw(11, *MLP_SHAPE)))
        K @ draw(11, 5)
        before = tangent_products.compiled_step.cache_info().currsize
        for n in (5, 6):
            assert_close(K @ draw(11, n), expected @ draw(11, n))
        assert_is(gram_operator("trace", MODEL, draw(9, *MLP_SHAPE)), expected[:9, :9])
        # columns one by one and two together are other widths, and diagonals a program of their own
        assert tangent_products.compiled_step.cache_info().currsize <= before + 5
    finally:
        tangent_products._plan.cache_clear()
        tangent_products._fitting_rows.cache_clear()


@pytest.mark.parametrize("n", range(1, 65))
def test_padding_adds_less_than_half_as_many_columns(n):
    assert n <= padded_columns(n) < 1.5 * n or n == 1


@pytest.mark.parametrize("kernel", ["trace", "class", "full"])
def test_little_memory_takes_columns_and_outputs_a_few_at_a_time(kernel):
    V = draw(N * (1 if kernel == "trace" else C), 6)
    expected = as_matrix(gram(kernel, MODEL, X)) @ V
    few = gram_operator(kernel, MODEL, X, memory=3_000)
    plan = tangent_products.plan_products(
        tangent_products.abstract_features(few.kernel, few.model, MLP_SHAPE), 3_000, N, 6
    )
    assert plan.peak_bytes <= 3_000 and plan.columns < 6
    assert_close(few @ V, expected)


def test_too_little_memory_is_told_with_what_is_needed():
    with pytest.raises(MemoryError, match=r"one column's tangents and .* of one row take .*; give memory=\d"):
        gram_operator("trace", MODEL, X, memory=100) @ np.ones(N)
    with pytest.raises(MemoryError, match="features of one row"):
        gram_operator("trace", MODEL, X, memory=10).diagonal()


@pytest.mark.parametrize(
    "V, error, said",
    [
        (np.ones(N + 1), ValueError, rf"v of shape \({N},\) or \({N}, t\), .* got \({N + 1},\)"),
        (np.ones((N - 1, 2)), ValueError, "V of shape"),
        (np.full(N, np.nan), ValueError, "v must be finite"),
        (np.ones(N) * 1j, ValueError, "v must be real, got complex128"),
        (np.array(["a"] * N), TypeError, "v must be an array"),
    ],
)
def test_columns_that_do_not_fit_are_told(V, error, said):
    K = gram_operator("trace", MODEL, X)
    with pytest.raises(error, match=said):
        K @ V
    with pytest.raises(error, match=said):
        K.T @ V


def test_other_bad_input_is_told():
    K = gram_operator("class", MODEL, X, Y)
    for indices in ([0.5], [-1], [M * C], [[0]]):
        with pytest.raises(ValueError, match="indices"):
            K.columns(indices)
    assert K.columns(np.array([], int)).shape == (N * C, 0)
    with pytest.raises(ValueError, match="has no diagonal"):
        K.diagonal()
    with pytest.raises(ValueError, match="unknown dtype"):
        gram_operator("trace", MODEL, X, dtype="bf16")
    with pytest.raises(ValueError, match="X and Y must hold inputs of one shape"):
        gram_operator("trace", MODEL, X, Y[:, :2])


def test_what_overflows_is_no_answer():
    network = MLP(n_outputs=1, widths=())
    K = gram_operator("pseudo", Model(network, network.init(jax.random.key(0), MLP_SHAPE)), 1e25 * X)
    with pytest.raises(FloatingPointError, match="not finite"):
        K @ np.ones(N)
    with pytest.raises(FloatingPointError, match="not finite"):
        K.diagonal()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_a_network_in_mixed_precision(kernel):
    model = Model(MixedPrecision(MODEL.network, "bf16"), MODEL.variables)
    assert_is(gram_operator(kernel, model, X), as_matrix(gram(kernel, model, X, dtype="float32")), 1e-2)


def linear(model, x1, x2):
    return x1 @ x2.T + 1.0


def twice(model, x1, x2):
    block = x1 @ x2.T
    return jnp.stack([block, 2 * block], -1)


def pairs(model, x1, x2):
    block = x1 @ x2.T
    return jnp.stack(
        [
            jnp.stack([block, 0.5 * x1[:, :1] * x2[:, 0]], -1),
            jnp.stack([0.5 * x1[:, :1] * x2[:, 0], 3 * block], -1),
        ],
        -1,
    )


@pytest.mark.parametrize(
    "kernel", [linear, twice, pairs, ProjectedNTK(n_components=64)], ids=lambda k: str(k)[:12]
)
def test_functions_and_projected_features_have_operators_too(kernel):
    assert_is(gram_operator(kernel, MODEL, X), as_matrix(gram(kernel, MODEL, X)))
    assert_is(gram_operator(kernel, MODEL, X, Y), as_matrix(gram(kernel, MODEL, X, Y)))


def test_projected_features_are_kept_where_they_fit():
    kernel, many = ProjectedNTK(n_components=64), draw(40, *MLP_SHAPE)
    K, little = (gram_operator(kernel, MODEL, many, memory=memory) for memory in ("2GiB", 15_000))
    assert_close(K @ np.eye(40), little @ np.eye(40))
    assert len(K._kept) == 1 and not little._kept
    assert_close(pickle.loads(pickle.dumps(K)) @ np.eye(40), K @ np.eye(40))


@each_kernel
def test_a_stored_matrix_is_an_operator_and_a_dask_array(kernel, tmp_path):
    pytest.importorskip("zarr")
    pytest.importorskip("dask")
    for name, other in (("square", None), ("part", Y)):
        K = gram_operator(kernel, MODEL, X, other, store=tmp_path / name)
        dense = np.asarray(gram(kernel, MODEL, X, other))
        assert_is(K, as_matrix(dense))
        assert_is(open_gram(tmp_path / name).T, as_matrix(dense).T)
        lazy = K.to_dask()
        assert lazy.shape == dense.shape
        np.testing.assert_allclose(lazy.compute(), dense, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lazy[1:4, [2]].sum(0).compute(), dense[1:4, [2]].sum(0), rtol=1e-5, atol=1e-6)


def test_a_stored_matrix_lacks_no_tile(tmp_path):
    pytest.importorskip("zarr")
    K = gram_operator("trace", MODEL, X, store=tmp_path)
    K.store.tile_path(0, 0).unlink()
    with pytest.raises(DamagedTileError, match="it is not there"):
        open_gram(tmp_path)
    assert_is(gram_operator("trace", MODEL, X, store=tmp_path), as_matrix(gram("trace", MODEL, X)))


def test_scipy_finds_eigenvalues():
    K = gram_operator("trace", MODEL, X, dtype="float64")
    np.testing.assert_allclose(
        eigsh(K, 2, v0=np.ones(N))[0], np.linalg.eigvalsh(K.columns(range(N)))[-2:], rtol=1e-9
    )


def test_an_operator_is_pickled_whole():
    K = gram_operator("full", MODEL, X, Y, dtype="float64")
    again = pickle.loads(pickle.dumps(K))
    V = draw(M * C, 2)
    np.testing.assert_array_equal(again @ V, K @ V)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "class", "full"])
def test_two_processes_give_the_products_of_one(kernel):
    inputs = draw(1100, *MLP_SHAPE)
    V = draw(1100 * (1 if kernel == "trace" else C), 3)
    one, two = (gram_operator(kernel, MODEL, inputs, dtype="float64", n_jobs=n) for n in (None, 2))
    assert_close(two @ V, one @ V, 1e-12)
    assert_close(two.diagonal(), one.diagonal(), 1e-12)


def test_accelerators_take_larger_tiles(monkeypatch):
    expected = as_matrix(gram("class", MODEL, X)) @ draw(N * C, 3)
    monkeypatch.setattr(devices, "HOST_PLATFORMS", ())
    tangent_products._plan.cache_clear()
    tangent_products._fitting_rows.cache_clear()
    assert_close(gram_operator("class", MODEL, X) @ draw(N * C, 3), expected)
