"""Small Gram matrices, by one program: the same numbers as in tiles, and nothing done again from call to call."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Model, ProjectedNTK, TraceNTK, gram
from ntkrobust_sk.execution import devices
from ntkrobust_sk.kernels import gram_matrix, whole
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.plan import fixed_plan
from ntkrobust_sk.networks.model import Variables
from ntkrobust_sk.networks.wrappers import Stateless

RNG = np.random.default_rng(0)
NETWORKS = {
    "dense": (MLP(n_outputs=3, widths=(8,)), (5,)),
    # formed gradients, and factors of several positions
    "convolutional": (CNN(n_outputs=3, widths=(3, 4), strides=(1, 2)), (4, 4, 2)),
}
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have tiles of 512 rows")


def draw(name, n=9, m=6):
    network, shape = NETWORKS[name]
    model = Model(network, network.init(jax.random.key(0), shape))
    return model, *(RNG.normal(size=(size, *shape)).astype(np.float32) for size in (n, m))


def in_tiles(kernel, model, X, Y=None, **options):
    """The matrix in four tiles at least, since a plan that is given is carried out."""
    return gram(
        kernel, model, X, Y, plan=fixed_plan(KERNELS.get(kernel, kernel), model, X.shape[1:], 4), **options
    )


@pytest.fixture
def computed(monkeypatch):
    """How many matrices were computed as a whole."""
    found = []

    def count(job):
        found.append(job.shape)
        return whole.small_matrix(job)

    monkeypatch.setattr(gram_matrix, "small_matrix", count)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "rectangular"])
@pytest.mark.parametrize(
    "name, kernel, dtype",
    [
        *(("dense", kernel, None) for kernel in ("trace", "class", "pseudo", ProjectedNTK(8))),
        ("dense", "trace", "float32"),
        ("dense", "trace", "bf16"),
        ("convolutional", "trace", None),
        ("convolutional", "class", None),
    ],
)
def test_a_small_matrix_is_that_of_tiles(name, kernel, symmetric, dtype, computed):
    model, X, Y = draw(name)
    Y = None if symmetric else Y
    found, expected = gram(kernel, model, X, Y, dtype=dtype), in_tiles(kernel, model, X, Y, dtype=dtype)
    assert len(computed) == 1
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    if symmetric:
        np.testing.assert_array_equal(
            found, found.swapaxes(0, 1).swapaxes(2, 3) if found.ndim == 4 else found.swapaxes(0, 1)
        )
    found[:] = 0  # whose numbers they are may write to them


def test_a_kernel_that_combines_features_in_its_own_way_is_asked(computed):
    class Doubled(TraceNTK):
        def blocks(self, model, f1, f2, dtype=None):
            return [2 * block for block in super().blocks(model, f1, f2, dtype)]

    model, X, Y = draw("dense")
    found = gram(Doubled(), model, X, Y)
    assert len(computed) == 1
    np.testing.assert_allclose(found, 2 * gram("trace", model, X, Y), rtol=1e-5)


def test_a_kernel_of_half_precision_is_summed_in_single(computed):
    params = {"w": jnp.asarray(RNG.normal(size=(64, 2)), jnp.bfloat16)}
    model = Model(Stateless(lambda params, x: x @ params["w"]), Variables(params))
    X = RNG.normal(size=(8, 64))
    found, expected = gram("trace", model, X), in_tiles("trace", model, X)
    assert len(computed) == 1
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"by_layer": True}, {"dtype": "float64"}, {"memory": 9_000}, {"kernel": "full"}],
    ids=["layers", "double precision", "little memory", "all pairs of outputs"],
)
def test_what_one_program_does_not_give_is_computed_in_tiles(options, computed):
    model, X, Y = draw("dense")
    gram(**{"kernel": "trace", "model": model, "X": X, "Y": Y} | options)
    assert computed == []


@pytest.mark.parametrize("kernel", ["trace", "class"])
def test_many_rows_are_computed_in_tiles(kernel, computed):
    model, X, Y = draw("dense", n=whole.ROWS[KERNELS[kernel].rank] + 1)
    gram(kernel, model, X, Y)
    gram(kernel, model, X[:2], X)
    assert computed == []
    gram(kernel, model, X[:-1], X[1:])
    assert len(computed) == 1


def test_other_numbers_of_rows_and_other_weights_compile_nothing(caplog):
    model, X, Y = draw("dense", n=16, m=16)
    other = jax.tree.map(lambda leaf: leaf + 1, model)
    gram("trace", model, X)
    gram("trace", model, X, Y)
    with jax.log_compiles():
        for of in (model, other):
            for n in (9, 12, 16):
                gram("trace", of, X[:n])
                gram("trace", of, X[:n], Y[:3])
                gram("trace", of, Y[:3], X[:n])
    assert [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()] == []


def test_parameters_that_have_changed_in_place_are_looked_at_again():
    model, X, _ = draw("dense")
    params = jax.tree.map(np.array, model.variables.params)
    model = Model(model.network, Variables(params))
    first = gram("trace", model, X)
    jax.tree.leaves(params)[1][:] *= 2
    assert np.abs(gram("trace", model, X) - first).max() > 0.1 * np.abs(first).max()
    jax.tree.leaves(params)[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        gram("trace", model, X)


def test_a_matrix_that_overflows_is_refused():
    model, X, _ = draw("dense")
    with pytest.raises(FloatingPointError, match="entries that are not finite"):
        gram("trace", model, 1e25 * X)


def test_a_model_of_arrays_elsewhere_is_brought_to_the_device(monkeypatch):
    model, X, Y = draw("dense")
    expected = gram("trace", model, X, Y)
    brought = jax.tree.map(np.asarray, model)
    np.testing.assert_array_equal(gram("trace", brought, X, Y), expected)
    monkeypatch.setattr(devices, "HOST_PLATFORMS", ())
    assert not whole.is_small(
        gram_matrix.TileJob(KERNELS["trace"], model, X, Y, fixed_plan("trace", model, (5,), 16))
    )


def test_a_call_like_an_earlier_one_takes_its_program(computed):
    model, X, Y = draw("dense")
    first = gram("trace", model, X, Y)
    np.testing.assert_array_equal(gram("trace", model, X, Y), first)
    np.testing.assert_array_equal(gram("trace", model, X.astype(np.float64), Y), first)
    moved = gram("trace", model, X + 1, Y)
    assert computed == [(9, 6), (9, 6)]  # the second in double precision
    np.testing.assert_allclose(moved, in_tiles("trace", model, X + 1, Y), rtol=0, atol=3e-6 * np.abs(moved).max())
    moved[:] = 0  # whose numbers they are may write to them


@pytest.mark.parametrize("value, says", [(np.nan, "NaN or infinity"), (1e39, "float32 cannot")])
def test_a_call_like_an_earlier_one_has_its_numbers_checked(value, says):
    model, X, Y = draw("dense")
    X = X.astype(np.float64)
    gram("trace", model, X, Y.astype(np.float64))
    with pytest.raises(FloatingPointError, match=r"TraceNTK\(\) has entries that are not finite"):
        gram("trace", model, 1e25 * X, 1e25 * Y.astype(np.float64))
    X[3, 2] = value
    with pytest.raises(ValueError, match=says):
        gram("trace", model, X, Y.astype(np.float64))


def test_a_model_whose_parameters_were_exchanged_is_another_one():
    model, X, Y = draw("dense")
    first = gram("trace", model, X, Y)
    name = next(iter(model.variables.params))
    model.variables.params[name] = jax.tree.map(lambda leaf: 2 * leaf, model.variables.params[name])
    assert np.abs(gram("trace", model, X, Y) - first).max() > 0.1 * np.abs(first).max()


def test_a_model_that_is_gone_leaves_no_program():
    model, X, Y = draw("dense")
    gram("trace", model, X, Y)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_integers_that_fit_no_more_are_refused_in_a_call_like_an_earlier_one():
    model, X, Y = draw("dense")
    X, Y = (np.rint(10 * each).astype(np.int64) for each in (X, Y))
    gram("trace", model, X, Y)
    X[0, 0] = 2**40
    with pytest.raises(ValueError, match="do not fit"):
        gram("trace", model, X, Y)
