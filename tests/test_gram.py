"""Gram matrices: exact where they claim to be, the same from every tiling, within memory, and bad input."""

import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Model, TraceNTK, Variables, gram
from ntkrobust_sk.gram import WORKING_COPIES, pad_rows, parse_memory, plan_tiles
from ntkrobust_sk.kernels import KERNELS
from ntkrobust_sk.networks import n_params

try:
    from jax import enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64

N_OUTPUTS, TILE = 3, 4
SHAPE = (5,)
# with two hidden layers, K(x, x') between classes is not symmetric
NETWORK = MLP(n_outputs=N_OUTPUTS, widths=(4, 3), activation="tanh")
# Of the largest entry. Tiles of other sizes moved entries by up to 5.3 eps; see ntkrobust_sk.testing.
ROUNDING = 32 * np.finfo(np.float32).eps
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def draw_model(network=NETWORK, shape=SHAPE, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), shape)).params
    return Model(network, Variables(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)))


def draw_inputs(n, shape=SHAPE, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(dtype)


MODEL, X = draw_model(), draw_inputs(11)


def row_bytes(kernel, model=MODEL, itemsize=4):
    return itemsize * n_params(model.variables.params) * (1 if kernel == "pseudo" else N_OUTPUTS)


def memory_for(kernel, rows, panel=1):
    """The least budget that gives tiles of that many rows and panels of so many tiles."""
    return row_bytes(kernel) * rows * (1 + WORKING_COPIES + panel)


in_tiles = partial(gram, memory=memory_for("trace", TILE))


def transposed(K):
    return K.transpose((1, 0, 3, 2) if K.ndim == 4 else (1, 0, 2)[: K.ndim])


def assert_rounding(found, expected, rtol=ROUNDING):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def assert_same(found, expected):
    """Identical on a CPU; on an accelerator products may be summed in an order of the library's choice."""
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(found, expected)
    else:
        assert_rounding(np.asarray(found), np.asarray(expected))


# What the entries are


@each_kernel
def test_a_gram_matrix_holds_what_the_kernel_says_of_every_pair(kernel):
    K = in_tiles(kernel, MODEL, X[:6])
    with jax.default_matmul_precision("highest"):
        block = jax.jit(KERNELS[kernel].__call__)(MODEL, X[:6], X[:6])
    assert K.dtype == np.float32
    assert_rounding(np.asarray(K), np.asarray(block))


@each_kernel
def test_the_gram_matrix_of_inputs_with_themselves_is_exactly_symmetric(kernel):
    K = np.asarray(in_tiles(kernel, MODEL, X))
    np.testing.assert_array_equal(K, transposed(K))


@each_kernel
def test_rows_and_columns_of_other_inputs_are_exactly_a_part_of_the_whole(kernel):
    K = np.asarray(in_tiles(kernel, MODEL, X))
    assert_same(in_tiles(kernel, MODEL, X[2:9], X[5:]), K[2:9, 5:])
    assert_same(in_tiles(kernel, MODEL, X, X), K)


def test_the_order_of_inputs_changes_no_entry():
    order = np.random.default_rng(0).permutation(len(X))
    assert_same(in_tiles("trace", MODEL, X[order]), in_tiles("trace", MODEL, X)[order][:, order])


@pytest.mark.parametrize("n", range(1, 2 * TILE + 2))
def test_any_number_of_rows_is_cut_from_the_same_matrix(n):
    whole = in_tiles("trace", MODEL, X)
    assert_same(in_tiles("trace", MODEL, X[:n]), whole[:n, :n])
    assert_same(in_tiles("trace", MODEL, X[:n], X[:3]), whole[:n, :3])
    assert_same(in_tiles("trace", MODEL, X[:3], X[:n]), whole[:3, :n])


@pytest.mark.parametrize("rows", [1, 2, 8, 16])
def test_the_size_of_tiles_changes_entries_by_rounding_only(rows):
    found = gram("trace", MODEL, X, memory=memory_for("trace", rows))
    assert_rounding(np.asarray(found), np.asarray(in_tiles("trace", MODEL, X)))


@pytest.mark.parametrize("panel", [2, 5])
def test_the_number_of_tiles_kept_changes_nothing(panel):
    memory = memory_for("trace", TILE, panel)
    assert plan_tiles(TraceNTK(), MODEL, SHAPE, memory) == (TILE, panel)
    np.testing.assert_array_equal(gram("trace", MODEL, X, memory=memory), in_tiles("trace", MODEL, X))
    np.testing.assert_array_equal(
        gram("trace", MODEL, X[:5], X, memory=memory), in_tiles("trace", MODEL, X[:5], X)
    )


def test_images_go_in_as_they_are():
    network, shape = CNN(n_outputs=N_OUTPUTS, widths=(2,), strides=(2,)), (5, 3, 1)
    model, images = draw_model(network, shape), draw_inputs(6, shape)
    whole = np.asarray(gram("trace", model, images, memory="20kB"))
    assert plan_tiles(TraceNTK(), model, shape, 20_000)[0] > 1
    assert_same(gram("trace", model, images[1:], images[:2], memory="20kB"), whole[1:, :2])
    assert_rounding(np.asarray(gram("trace", model, images, memory="10kB")), whole)


def test_the_matrix_has_the_precision_of_the_parameters():
    pixels = np.arange(10, dtype=np.uint8).reshape(2, 5)
    assert in_tiles("trace", MODEL, pixels.astype(np.float64)).dtype == np.float32
    assert_same(in_tiles("trace", MODEL, pixels), in_tiles("trace", MODEL, pixels.astype(np.float32)))
    assert_same(in_tiles("trace", MODEL, pixels.tolist()), in_tiles("trace", MODEL, pixels.astype(np.float32)))
    with enable_x64(True):
        double = gram("trace", draw_model(dtype=np.float64), X.astype(np.float64), memory="10kB")
        single = in_tiles("trace", MODEL, X)
    assert double.dtype == np.float64
    assert_rounding(np.asarray(single), np.asarray(double))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="results stay on the accelerator")
def test_on_a_cpu_the_result_is_a_writable_numpy_array():
    K = in_tiles("trace", MODEL, X[:2])
    assert type(K) is np.ndarray
    K[0, 0] = 0


# What is computed, and how often


@dataclass(frozen=True)
class Counted:
    """A network that records in what shapes it is traced."""

    network: MLP
    name: str
    traces = {}

    def init(self, key, input_shape):
        return self.network.init(key, input_shape)

    def apply(self, params, state, x, *, train=False):
        self.traces.setdefault(self.name, []).append(x.shape)
        return self.network.apply(params, state, x, train=train)


@pytest.mark.parametrize("kernel", ["trace", "pseudo", lambda model, x1, x2: model(x1) @ model(x2).T])
def test_nothing_is_traced_or_compiled_again_for_other_weights_or_ragged_ends(kernel, caplog):
    network = Counted(NETWORK, name=repr(kernel))
    compute = partial(gram, kernel, memory=memory_for("trace", TILE))
    first, other = draw_model(network, seed=0), draw_model(network, seed=1)
    compute(first, X[:6])
    compute(first, X[:6], X[:7])
    before = list(network.traces[network.name])
    assert before
    with jax.log_compiles(jax.default_backend() == "cpu"):
        for model in (first, other):
            for n in (1, 3, TILE, 5, 11):
                compute(model, X[:n])
                compute(model, X[:n], X[1:3])
    assert network.traces[network.name] == before
    assert [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()] == []


@pytest.fixture
def calls(monkeypatch):
    """How often the module computed features and contracted them."""
    module, counts = sys.modules["ntkrobust_sk.gram"], {}

    def counted(name):
        function = getattr(module, name)

        def count(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, count)

    counted("_contract")
    monkeypatch.setattr(module, "plan_tiles", lambda *args: (TILE, args[-1]))
    counted("tile_features")
    return counts


def test_features_are_computed_once_where_all_of_them_fit_and_half_of_the_tiles_are_mirrored(calls):
    gram("trace", MODEL, X, memory=3)
    assert calls == {"tile_features": 3, "_contract": 6}


def test_where_one_tile_fits_features_are_computed_again_for_every_panel(calls):
    gram("trace", MODEL, X, memory=1)
    assert calls == {"tile_features": 3 + 2 + 1, "_contract": 6}


def test_features_of_rows_are_computed_once_and_those_of_columns_for_every_panel(calls):
    gram("trace", MODEL, X, X[:6], memory=2)
    assert calls == {"tile_features": 3 + 2 * 2, "_contract": 6}


def test_progress_is_shown_on_demand_only(capsys):
    in_tiles("trace", MODEL, X)
    assert capsys.readouterr() == ("", "")
    in_tiles("trace", MODEL, X, progress=True)
    assert "Gram tiles" in capsys.readouterr().err


# Kernels of the user's own


def of_logits(model, x1, x2):
    return model(x1) @ model(x2).T


def linear_kernel(model, x1, x2):
    return x1 @ x2.T


def by_class(model, x1, x2):
    return model(x1)[:, None] * model(x2)[None]


def between_classes(model, x1, x2):
    return model(x1)[:, None, :, None] * model(x2)[None, :, None, :]


@pytest.mark.parametrize("kernel", [linear_kernel, by_class, between_classes])
def test_a_kernel_without_features_is_given_the_inputs_tile_by_tile(kernel):
    K = gram(kernel, MODEL, X, memory=1000)
    assert_rounding(np.asarray(K), np.asarray(kernel(MODEL, X, X)))
    np.testing.assert_array_equal(K, transposed(np.asarray(K)))
    assert_rounding(np.asarray(gram(kernel, MODEL, X[:5], X[3:], memory=1000)), np.asarray(K)[:5, 3:])


@pytest.mark.parametrize(
    "kernel",
    [
        lambda model, x1, x2: 1.0,
        lambda model, x1, x2: x1[:, 0],
        lambda model, x1, x2: x1[:, :1],
        lambda model, x1, x2: jnp.ones((len(x1), len(x2), 2, 3)),
        lambda model, x1, x2: jnp.ones((len(x1), len(x2), 2, 2, 2)),
    ],
    ids=["scalar", "vector", "column", "oblong", "rank 5"],
)
def test_a_kernel_that_returns_no_block_is_refused(kernel):
    with pytest.raises(ValueError, match=r"must return a block \(n, m\), \(n, m, C\) or \(n, m, C, C\), got \("):
        gram(kernel, MODEL, X)


def test_a_name_that_is_no_kernel_is_refused():
    with pytest.raises(ValueError, match="unknown kernel 'rbf'"):
        gram("rbf", MODEL, X)


# Memory


@each_kernel
def test_tiles_have_the_rows_that_memory_allows_in_powers_of_two(kernel):
    for rows in (1, 2, 8, 32):
        assert plan_tiles(KERNELS[kernel], MODEL, SHAPE, memory_for(kernel, rows)) == (rows, 1)
        rows_below, _ = plan_tiles(KERNELS[kernel], MODEL, SHAPE, memory_for(kernel, rows) * 2 - 1)
        assert rows_below == rows


def test_much_memory_makes_panels_longer_and_tiles_no_larger():
    rows, panel = plan_tiles(TraceNTK(), MODEL, SHAPE, 2**30)
    more_rows, longer = plan_tiles(TraceNTK(), MODEL, SHAPE, 2**31)
    assert more_rows == rows
    assert longer > 2 * panel


def test_features_in_double_precision_take_twice_the_memory():
    with enable_x64(True):
        double = draw_model(dtype=np.float64)
        assert plan_tiles(TraceNTK(), double, SHAPE, memory_for("trace", 8))[0] == 4


def test_too_little_memory_is_refused_with_the_amount_that_is_enough():
    with pytest.raises(MemoryError, match="kernel='pseudo'") as caught:
        gram("trace", MODEL, X, memory=memory_for("trace", 1) - 1)
    enough = int(str(caught.value).split("memory=")[1].split(" ")[0].replace(",", ""))
    assert enough == memory_for("trace", 1)
    assert_rounding(np.asarray(gram("trace", MODEL, X, memory=enough)), np.asarray(in_tiles("trace", MODEL, X)))


@pytest.mark.parametrize(
    "memory, expected",
    [
        ("2GiB", 2**31),
        ("512MiB", 2**29),
        ("4KiB", 2**12),
        ("4kiB", 2**12),
        ("1TiB", 2**40),
        ("1.5 GB", 1_500_000_000),
        (" 500MB ", 500_000_000),
        (".5kB", 500),
        ("7B", 7),
        (1000, 1000),
        (2.5e9, 2_500_000_000),
    ],
)
def test_memory_is_read_in_binary_and_decimal_units(memory, expected):
    assert parse_memory(memory) == expected
    assert type(parse_memory(memory)) is int


@pytest.mark.parametrize("memory", ["", "2", "GB", "2 gigs", "1.2.3GB", "-1GB", "1EiB", "1GBs", "2GiB 1MiB"])
def test_memory_in_another_form_is_refused_with_the_right_one(memory):
    with pytest.raises(ValueError, match="such as '2GiB' or '500MB', got"):
        parse_memory(memory)


@pytest.mark.parametrize("memory", [0, -1, "0GB", float("nan")])
def test_memory_that_is_not_positive_is_refused(memory):
    with pytest.raises(ValueError, match="must be positive"):
        parse_memory(memory)


# Inputs


@pytest.mark.parametrize("shape", [(0, 5), (5,), (), (3, 0)])
def test_inputs_without_an_input_are_refused(shape):
    with pytest.raises(ValueError, match=r"X must hold at least one input, of shape \(n, ...\), got shape"):
        gram("trace", MODEL, np.ones(shape))
    with pytest.raises(ValueError, match="Y must hold at least one input"):
        gram("trace", MODEL, X, np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(value):
    broken = np.where(np.arange(X.size).reshape(X.shape) == 7, value, X)
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        gram("trace", MODEL, broken)
    with pytest.raises(ValueError, match="Y contains NaN or infinity"):
        gram("trace", MODEL, X, broken)


def test_rows_and_columns_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"inputs of one shape, got \(5,\) and \(4,\)"):
        gram("trace", MODEL, X, X[:, :4])


def test_a_network_that_overflows_is_reported_and_not_returned():
    huge = Model(NETWORK, jax.tree.map(lambda leaf: np.full_like(leaf, 1e30), MODEL.variables))
    with pytest.raises(FloatingPointError, match="overflow in the network's parameters or inputs"):
        gram(of_logits, huge, X)


def test_padding_repeats_the_first_row():
    np.testing.assert_array_equal(pad_rows(X[2:5], 5), X[[2, 3, 4, 2, 2]])
    assert pad_rows(X[:4], 4).base is X
