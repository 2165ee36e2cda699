"""Gram matrices: exact where they claim to be, the same from every tiling, layer by layer, and bad input."""

import re
import tracemalloc
import weakref
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Model, Stateless, TraceNTK, Variables, gram
from ntkrobust_sk.execution import devices
from ntkrobust_sk.execution.memory import parse_memory
from ntkrobust_sk.execution.precision import DIGITS, enable_x64
from ntkrobust_sk.kernels import tiles
from ntkrobust_sk.kernels.ntk import KERNELS, resolve_kernel
from ntkrobust_sk.kernels.plan import fixed_plan, make_plan
from ntkrobust_sk.kernels.tiles import TileProgram, tile_program
from ntkrobust_sk.tangent.gradient_lists import round_features
from ntkrobust_sk.tangent.gradients import DenseGradients, Layout

# Products in tiles of few rows and of many take different ways through a BLAS.
N_OUTPUTS, TILE, LARGE_TILE = 3, 4, 64
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


def in_tiles(kernel, model, X, Y=None, *, rows=TILE, panel=1, directions=None, **options):
    plan = fixed_plan(resolve_kernel(kernel), model, np.shape(X)[1:], rows, panel, directions)
    return gram(kernel, model, X, Y, plan=plan, **options)


def transposed(K):
    return K.transpose((1, 0, 3, 2) if K.ndim == 4 else (1, 0, 2)[: K.ndim])


def assert_rounding(found, expected, rtol=ROUNDING):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def assert_same(found, expected):
    """Identical on a CPU; on an accelerator products may be summed in an order of the library's choice."""
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(found, expected)
    else:
        assert_rounding(found, expected)


# What the entries are


@pytest.mark.slow
@each_kernel
def test_a_gram_matrix_holds_what_the_kernel_says_of_every_pair(kernel):
    K = in_tiles(kernel, MODEL, X[:6])
    with jax.default_matmul_precision("highest"):
        block = jax.jit(KERNELS[kernel].__call__)(MODEL, X[:6], X[:6])
    assert K.dtype == np.float32
    assert_rounding(K, block)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [TILE, LARGE_TILE])
@each_kernel
def test_the_gram_matrix_of_inputs_with_themselves_is_exactly_symmetric(kernel, rows):
    K = np.asarray(in_tiles(kernel, MODEL, draw_inputs(rows + 7), rows=rows))
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


# In a large tile OpenBLAS computes single-precision entries in an order that depends on their places in it, and
# the product of an array with itself in another than that with a copy. So what holds bit for bit there is that
# the other rows of the call change nothing; moved to another place, an entry moves by rounding.

MANY = draw_inputs(LARGE_TILE + 11)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 7, LARGE_TILE - 1, LARGE_TILE, LARGE_TILE + 1])
@each_kernel
def test_in_large_tiles_the_other_rows_of_the_call_change_no_entry(kernel, n):
    whole = np.asarray(in_tiles(kernel, MODEL, MANY, rows=LARGE_TILE))
    assert_same(in_tiles(kernel, MODEL, MANY[:n], rows=LARGE_TILE), whole[:n, :n])
    pairs = np.asarray(in_tiles(kernel, MODEL, MANY, MANY, rows=LARGE_TILE))
    assert_same(in_tiles(kernel, MODEL, MANY[:n], MANY, rows=LARGE_TILE), pairs[:n])
    assert_same(in_tiles(kernel, MODEL, MANY, MANY[:n], rows=LARGE_TILE), pairs[:, :n])
    others = np.concatenate([MANY[:n], draw_inputs(5, seed=2)])
    assert_same(np.asarray(in_tiles(kernel, MODEL, others, rows=LARGE_TILE))[:n, :n], whole[:n, :n])


@each_kernel
def test_in_large_tiles_entries_in_other_places_differ_by_rounding(kernel):
    whole = np.asarray(in_tiles(kernel, MODEL, MANY, rows=LARGE_TILE))
    order = np.random.default_rng(0).permutation(len(MANY))
    assert_rounding(in_tiles(kernel, MODEL, MANY, MANY, rows=LARGE_TILE), whole)
    assert_rounding(in_tiles(kernel, MODEL, MANY[2:9], MANY[5:], rows=LARGE_TILE), whole[2:9, 5:])
    assert_rounding(in_tiles(kernel, MODEL, MANY[order], rows=LARGE_TILE), whole[order][:, order])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [TILE, LARGE_TILE])
@each_kernel
def test_computed_again_a_matrix_is_the_same(kernel, rows):
    first, again = (in_tiles(kernel, MODEL, MANY, rows=rows) for _ in range(2))
    assert_same(again, first)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 8, 16, LARGE_TILE])
def test_the_size_of_tiles_changes_entries_by_rounding_only(rows):
    assert_rounding(in_tiles("trace", MODEL, X, rows=rows), in_tiles("trace", MODEL, X))


@pytest.mark.parametrize("panel", [2, 5])
def test_the_number_of_tiles_kept_changes_nothing(panel):
    assert_same(in_tiles("trace", MODEL, X, panel=panel), in_tiles("trace", MODEL, X))
    assert_same(in_tiles("trace", MODEL, X[:5], X, panel=panel), in_tiles("trace", MODEL, X[:5], X))


@pytest.mark.slow
def test_images_go_in_as_they_are():
    network, shape = CNN(n_outputs=N_OUTPUTS, widths=(2,), strides=(2,)), (5, 3, 1)
    model, images = draw_model(network, shape), draw_inputs(6, shape)
    whole = np.asarray(gram("trace", model, images, images, memory="20kB"))
    plans = [make_plan(TraceNTK(), model, shape, parse_memory(memory), n_rows=6) for memory in ("20kB", "5kB")]
    assert plans[0].rows > plans[1].rows > 1
    assert_same(gram("trace", model, images[:5], images[:2], memory="20kB"), whole[:5, :2])
    assert_rounding(gram("trace", model, images[1:], images[:2], memory="20kB"), whole[1:, :2])
    assert_rounding(gram("trace", model, images, memory="5kB"), whole)


@pytest.mark.slow
def test_the_matrix_has_the_precision_of_the_parameters():
    pixels = np.arange(10, dtype=np.uint8).reshape(2, 5)
    assert in_tiles("trace", MODEL, pixels.astype(np.float64)).dtype == np.float32
    assert_same(in_tiles("trace", MODEL, pixels), in_tiles("trace", MODEL, pixels.astype(np.float32)))
    assert_same(in_tiles("trace", MODEL, pixels.tolist()), in_tiles("trace", MODEL, pixels.astype(np.float32)))
    with enable_x64(True):
        double = gram("trace", draw_model(dtype=np.float64), X.astype(np.float64), memory="10kB")
        single = in_tiles("trace", MODEL, X)
    assert double.dtype == np.float64
    assert_rounding(single, double)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="results stay on the accelerator")
def test_on_a_cpu_the_result_is_a_writable_numpy_array():
    K = in_tiles("trace", MODEL, X[:2])
    assert type(K) is np.ndarray
    K[0, 0] = 0


# Several passes over the directions


@pytest.mark.slow
@pytest.mark.parametrize("panel", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kernel", ["trace", "class"])
def test_several_passes_over_the_directions_give_what_one_gives(kernel, directions, panel):
    plan = fixed_plan(KERNELS[kernel], MODEL, SHAPE, TILE, panel, directions)
    assert plan.passes == -(-N_OUTPUTS // directions)
    found = np.asarray(gram(kernel, MODEL, X, plan=plan))
    assert_rounding(found, in_tiles(kernel, MODEL, X))
    np.testing.assert_array_equal(found, transposed(found))
    assert_rounding(gram(kernel, MODEL, X[:5], X, plan=plan), in_tiles(kernel, MODEL, X[:5], X))


@pytest.mark.parametrize("kernel", ["full", "pseudo"])
def test_kernels_that_need_all_directions_at_once_take_one_pass(kernel):
    plan = fixed_plan(KERNELS[kernel], MODEL, SHAPE, TILE, directions=1)
    assert plan.passes == 1
    assert_same(gram(kernel, MODEL, X, plan=plan), in_tiles(kernel, MODEL, X))


@pytest.mark.slow
def test_scarce_memory_takes_several_passes_and_gives_the_same():
    memory = 2**13
    assert make_plan(KERNELS["class"], MODEL, SHAPE, memory, n_rows=len(X)).passes == N_OUTPUTS
    assert_rounding(gram("class", MODEL, X, memory=memory), gram("class", MODEL, X))


# Layer by layer


def jacobians(model, x):
    """The dense Jacobian (n, C, p) of every parameter array, by its path."""

    def logits(params):
        return Model(model.network, Variables(params, model.variables.state))(x)

    leaves = jax.tree_util.tree_leaves_with_path(jax.jit(jax.jacrev(logits))(model.variables.params))
    return {jax.tree_util.keystr(path): np.asarray(J).reshape(*J.shape[:2], -1) for path, J in leaves}


OF_JACOBIANS = {
    "trace": lambda J1, J2: np.einsum("ncp,mcp->nm", J1, J2) / N_OUTPUTS,
    "class": lambda J1, J2: np.einsum("ncp,mcp->nmc", J1, J2),
    "full": lambda J1, J2: np.einsum("ncp,mdp->nmcd", J1, J2),
    "pseudo": lambda J1, J2: np.einsum("np,mp->nm", J1.sum(1), J2.sum(1)) / N_OUTPUTS,
}


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, 2])
@each_kernel
def test_every_layer_has_the_matrix_of_the_dense_jacobian_of_its_parameters(kernel, directions):
    layers = in_tiles(kernel, MODEL, X, directions=directions, by_layer=True)
    columns = in_tiles(kernel, MODEL, X, X[:3], directions=directions, by_layer=True)
    dense = jacobians(MODEL, X)
    assert list(layers) == list(columns) == list(dense)
    assert list(dense) == [f"['dense_{i}']['{name}']" for i in range(3) for name in ("bias", "kernel")]
    for path, J in dense.items():
        expected = OF_JACOBIANS[kernel](J, J)
        assert_rounding(layers[path], expected)
        assert_rounding(columns[path], expected[:, :3])
        np.testing.assert_array_equal(layers[path], transposed(np.asarray(layers[path])))


@each_kernel
def test_layers_sum_to_the_kernel(kernel):
    K = in_tiles(kernel, MODEL, X)
    assert_rounding(sum(map(np.asarray, in_tiles(kernel, MODEL, X, by_layer=True).values())), K)
    in_passes = in_tiles(kernel, MODEL, X, directions=1, by_layer=True)
    assert_rounding(sum(map(np.asarray, in_passes.values())), K)


@pytest.mark.slow
def test_a_layer_that_is_not_used_has_the_matrix_zero():
    params = {"used": np.ones((5, 2), np.float32), "unused": np.ones(3, np.float32)}
    model = Model(Stateless(lambda params, x: x @ params["used"]), Variables(params))
    layers = in_tiles("trace", model, X, by_layer=True)
    np.testing.assert_array_equal(layers["['unused']"], np.zeros((len(X), len(X)), np.float32))
    assert_rounding(layers["['used']"], X @ X.T)


def test_the_layers_of_a_kernel_without_tangent_features_are_refused():
    with pytest.raises(ValueError, match="by_layer needs a kernel made of tangent features, got <function of_log"):
        gram(of_logits, MODEL, X, by_layer=True)


# Precision of the products


def products(kernel, features):
    """The Gram matrix of features, as exact as their precision in float64 allows."""
    equation = {2: "rnp,rmp->nm", 3: "rnp,rmp->nmr", 4: "rnp,qmp->nmrq"}[KERNELS[kernel].rank]
    whole = [leaf.astype("float64").dense().values for leaf in features]
    return sum(np.einsum(equation, values, values) for values in whole)


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, 2])
@each_kernel
def test_in_double_precision_products_of_single_precision_features_are_exact(kernel, directions):
    assert not jax.config.jax_enable_x64
    plan = fixed_plan(KERNELS[kernel], MODEL, SHAPE, LARGE_TILE)
    exact = products(kernel, tile_program(KERNELS[kernel], MODEL, plan, X)(X))[: len(X), : len(X)]
    scale = np.abs(exact).max()
    for form in ("float64", np.float64, np.dtype("float64")):
        double = np.asarray(in_tiles(kernel, MODEL, X, directions=directions, rows=LARGE_TILE, dtype=form))
        assert double.dtype == np.float64
        # features of other passes may be rounded otherwise
        assert_rounding(double, exact, rtol=1e-14 if directions is None else ROUNDING)
        np.testing.assert_array_equal(double, transposed(double))
    if directions is None:
        single = np.asarray(in_tiles(kernel, MODEL, X, rows=LARGE_TILE))
        assert np.abs(single - exact).max() > 1e-8 * scale > 1e5 * np.abs(double - exact).max()


def test_layers_are_given_in_double_precision_too():
    layers = in_tiles("trace", MODEL, X, dtype="float64", by_layer=True)
    assert {K.dtype for K in layers.values()} == {np.dtype(np.float64)}
    assert_rounding(
        sum(map(np.asarray, layers.values())), in_tiles("trace", MODEL, X, dtype="float64"), rtol=1e-14
    )


@pytest.mark.slow
def test_products_of_double_precision_features_may_be_taken_in_single_precision():
    with enable_x64(True):
        model = draw_model(dtype=np.float64)
        single = in_tiles("trace", model, X, dtype="float32")
        double = in_tiles("trace", model, X)
    assert single.dtype == np.float32
    assert_rounding(single, double)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_matrix_of_a_kernel_without_features_is_given_in_the_precision_asked_for(dtype):
    K = in_tiles(of_logits, MODEL, X, dtype=dtype)
    assert K.dtype == dtype
    assert_rounding(K, in_tiles(of_logits, MODEL, X))


# Half of the last binary digit that is kept, twice: once for each factor
ROUNDED = {"tf32": 2.0**-10, "bf16": 2.0**-7}


@pytest.mark.slow
@each_kernel
@pytest.mark.parametrize("name", ROUNDED)
def test_products_of_rounded_features_are_taken_only_when_asked_for_by_name(name, kernel):
    K, exact = (np.asarray(in_tiles(kernel, MODEL, X, dtype=dtype)) for dtype in (name, "float64"))
    assert K.dtype == np.float32
    diagonal = np.asarray(in_tiles("trace", MODEL, X)).diagonal().max() * 3
    error = np.abs(K - exact).max()
    assert 1e-6 * diagonal < error < ROUNDED[name] * diagonal
    np.testing.assert_array_equal(K, transposed(K))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DIGITS)
def test_rounding_goes_to_the_nearest_number_that_is_kept_and_halfway_to_the_even_one(name, packed):
    values = np.random.default_rng(0).normal(size=(2, 50, 7)).astype(np.float32)
    values[0, 0, :4] = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
    (found,) = round_features([DenseGradients(jnp.asarray(values), Layout((7,)))], name, packed)
    mantissa, exponent = np.frexp(values.astype(float))
    expected = np.ldexp(np.round(np.ldexp(mantissa, DIGITS[name] + 1)), exponent - DIGITS[name] - 1)
    np.testing.assert_array_equal(np.asarray(found.values, float), expected)
    assert (expected != values).mean() > 0.9
    assert found.values.dtype == ("bfloat16" if packed and name == "bf16" else "float32")


def test_a_gpu_is_told_which_units_to_use():
    for name in ROUNDED:
        features = jax.eval_shape(
            lambda x, name=name: round_features(KERNELS["trace"].features(MODEL, x), name, True), X
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "HOST_PLATFORMS", ())
            traced = tiles._contract.trace(KERNELS["trace"], MODEL, features, features, name, False)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        types = re.findall(r"lhs_precision_type = (\w+), .*?accumulation_type = (\w+)", text)
        assert types and set(types) == {(name, "f32")}
        products = re.findall(
            r"dot_general.*: \(tensor<\S+x(\w+)>, tensor<\S+x(\w+)>\) -> tensor<\S+x(\w+)>", text
        )
        kept = "bf16" if name == "bf16" else "f32"
        assert products and set(products) == {(kept, kept, "f32")}


@pytest.mark.parametrize("dtype", [np.float64, jnp.float64, float, np.dtype(float), ">f8", "d", "float64"])
@pytest.mark.parametrize("kernel", ["trace", lambda model, x1, x2: model(x1) @ model(x2).T])
def test_double_precision_has_many_names(kernel, dtype):
    K = gram(kernel, MODEL, X, dtype=dtype)
    assert K.dtype == np.float64
    np.testing.assert_array_equal(K, gram(kernel, MODEL, X, dtype="float64"))


@pytest.mark.parametrize(
    "dtype",
    ["x", "", "TF32", np.float16, "float16", "bfloat16", int, "int32", complex, bool, object, 5, [], {}, X],
)
def test_other_dtypes_are_refused_with_those_that_are_known(dtype):
    for kernel in ("trace", of_logits):
        with pytest.raises(ValueError, match=r"unknown dtype .*; known are 'float32', 'float64', 'tf32', 'bf16'"):
            gram(kernel, MODEL, X, dtype=dtype)


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(ValueError, match="rounds tangent features in single precision"):
        gram(of_logits, MODEL, X, dtype="bf16")
    with enable_x64(True), pytest.raises(ValueError, match="parameters are in float64"):
        gram("trace", draw_model(dtype=np.float64), X, dtype="tf32")


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, options",
    [
        ("trace", {}),
        ("trace", {"by_layer": True}),
        ("trace", {"dtype": "float64"}),
        ("pseudo", {}),
        (lambda model, x1, x2: model(x1) @ model(x2).T, {}),
        (lambda model, x1, x2: model(x1) @ model(x2).T, {"dtype": "float64"}),
    ],
    ids=["trace", "trace, by layer", "trace, float64", "pseudo", "of logits", "of logits, float64"],
)
def test_nothing_is_traced_or_compiled_again_for_other_weights_or_ragged_ends(kernel, options, caplog):
    network = Counted(NETWORK, name=repr((kernel, options)))
    first, other = draw_model(network, seed=0), draw_model(network, seed=1)
    options = options | {"plan": fixed_plan(resolve_kernel(kernel), first, SHAPE, TILE)}
    gram(kernel, first, X[:6], **options)
    gram(kernel, first, X[:6], X[:7], **options)
    before = list(network.traces[network.name])
    assert before
    with jax.log_compiles(jax.default_backend() == "cpu"):
        for model in (first, other):
            for n in (1, 3, TILE, 5, 11):
                gram(kernel, model, X[:n], **options)
                gram(kernel, model, X[:n], X[1:3], **options)
    assert network.traces[network.name] == before
    assert [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()] == []


@pytest.fixture
def calls(monkeypatch):
    """How often the module computed features and contracted them."""
    counts = {}

    def counted(owner, name):
        function = getattr(owner, name)

        def count(*args):
            counts[name] = counts.get(name, 0) + (1 if name == "__call__" else len(args[1]))
            return function(*args)

        monkeypatch.setattr(owner, name, count)

    counted(TileProgram, "__call__")
    counted(tiles, "contract_on_host" if jax.default_backend() == "cpu" else "_contract_compiled")
    return counts


def assert_computed(calls, features, products):
    assert calls.pop("__call__") == features
    assert list(calls.values()) == [products]


@pytest.mark.parametrize("directions", [3, 2, 1])
@pytest.mark.parametrize("by_layer", [False, True], ids=["", "by layer"])
def test_features_are_computed_once_a_pass_where_all_fit_and_half_of_the_tiles_are_mirrored(
    calls, directions, by_layer
):
    passes = -(-N_OUTPUTS // directions)
    in_tiles("trace", MODEL, X, panel=3, directions=directions, by_layer=by_layer)
    assert_computed(calls, features=3 * passes, products=6 * passes)


@pytest.mark.parametrize("directions", [3, 1])
def test_where_one_tile_fits_features_are_computed_again_for_every_panel(calls, directions):
    passes = N_OUTPUTS // directions
    in_tiles("trace", MODEL, X, panel=1, directions=directions)
    assert_computed(calls, features=(3 + 2 + 1) * passes, products=6 * passes)


def test_features_of_rows_are_computed_once_and_those_of_columns_for_every_panel(calls):
    in_tiles("trace", MODEL, X, X[:6], panel=2)
    assert_computed(calls, features=3 + 2 * 2, products=6)


def test_progress_and_plan_are_shown_on_demand_only(capsys):
    in_tiles("trace", MODEL, X)
    gram("trace", MODEL, X)
    assert capsys.readouterr() == ("", "")
    in_tiles("trace", MODEL, X, progress=True)
    out, err = capsys.readouterr()
    assert "Gram tiles" in err
    assert out == ""
    K = gram("trace", MODEL, X, memory="1MiB", plan=True)
    assert capsys.readouterr() == (f"{make_plan(TraceNTK(), MODEL, SHAPE, 2**20, n_rows=len(X))}\n", "")
    assert_same(gram("trace", MODEL, X, memory="1MiB"), K)


# Memory


@pytest.mark.slow
def test_too_little_memory_is_refused_with_the_amount_that_is_enough():
    with pytest.raises(MemoryError, match="kernel='pseudo'") as caught:
        gram("trace", MODEL, X, memory=100)
    enough = int(str(caught.value).split("memory=")[1].split(" ")[0].replace(",", ""))
    assert_rounding(gram("trace", MODEL, X, memory=enough), in_tiles("trace", MODEL, X))


@pytest.mark.parametrize("panel", [1, 2])
def test_no_more_tiles_are_held_than_a_panel_and_one(monkeypatch, panel):
    held, most, compute = [], [], TileProgram.__call__

    def watched(*args):
        features = compute(*args)
        held[:] = [tile for tile in (*held, weakref.ref(jax.tree.leaves(features)[0])) if tile() is not None]
        most.append(len(held))
        return features

    monkeypatch.setattr(TileProgram, "__call__", watched)
    in_tiles("trace", MODEL, draw_inputs(6 * TILE), panel=panel)
    assert max(most) == panel + 1


def attending_to(table, x):
    return jnp.tanh(table[x.astype(int)]).mean(1)


SMALL_CNN = CNN(n_outputs=1, widths=(8, 16), strides=(2, 1))
MEMORY = {
    # kernel, network, shape of an input, number of inputs, precision, budget
    "convolutions": ("pseudo", SMALL_CNN, (8, 8, 1), 70, None, 2**20),
    "convolutions, in double precision": ("pseudo", SMALL_CNN, (8, 8, 1), 70, "float64", 2**20),
    "tokens looked up": ("pseudo", Stateless(attending_to, lambda *_: jnp.zeros((7, 2))), (48,), 70, None, 2**20),
    "many layers and tiles": ("trace", MLP(n_outputs=1, widths=(4,) * 9), SHAPE, 1000, None, 2**22),
    "all pairs of classes": ("full", MLP(n_outputs=10, widths=(4,)), SHAPE, 200, None, 2**22),
    # in one pass: unfinished tiles of several take the place of the result, which is not in the budget
    "classes": ("class", MLP(n_outputs=30, widths=(4,)), SHAPE, 200, None, 2**23),
}


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="NumPy's memory is measured")
@pytest.mark.parametrize("name", MEMORY)
def test_contracting_tiles_keeps_to_the_memory_that_features_leave(name):
    kernel, network, shape, n, dtype, memory = MEMORY[name]
    model, x = draw_model(network, shape), np.abs(draw_inputs(n, shape))
    plan = make_plan(KERNELS[kernel], model, shape, memory, n_rows=n, dtype=dtype)
    K = gram(kernel, model, x, plan=plan, dtype=dtype)
    # features are JAX's own and not seen by tracemalloc
    held = min(plan.panel + 1, -(-n // plan.rows))
    tracemalloc.start()
    gram(kernel, model, x, plan=plan, dtype=dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held * plan.rows * plan.row_bytes + peak - K.nbytes <= memory


# Kernels of the user's own


def of_logits(model, x1, x2):
    return model(x1) @ model(x2).T


def linear_kernel(model, x1, x2):
    return x1 @ x2.T


def by_class(model, x1, x2):
    return model(x1)[:, None] * model(x2)[None]


def between_classes(model, x1, x2):
    return model(x1)[:, None, :, None] * model(x2)[None, :, None, :]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [linear_kernel, by_class, between_classes])
def test_a_kernel_without_features_is_given_the_inputs_tile_by_tile(kernel):
    K = gram(kernel, MODEL, X, memory=300)
    assert 1 < make_plan(kernel, MODEL, SHAPE, 300, n_rows=len(X)).rows < len(X)
    assert_rounding(K, kernel(MODEL, X, X))
    np.testing.assert_array_equal(K, transposed(np.asarray(K)))
    assert_rounding(gram(kernel, MODEL, X[:5], X[3:], memory=300), np.asarray(K)[:5, 3:])


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


# Inputs


@pytest.mark.parametrize("shape", [(0, 5), (5,), (), (3, 0)])
def test_inputs_without_an_input_are_refused(shape):
    wanted = "inputs of shape" if shape == (5,) else "at least one input, of shape"
    with pytest.raises(ValueError, match=rf"X must hold {wanted} \(n, ...\), got shape"):
        gram("trace", MODEL, np.ones(shape))
    with pytest.raises(ValueError, match=f"Y must hold {wanted}"):
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


@pytest.mark.slow
@pytest.mark.parametrize("by_layer", [False, True], ids=["", "by layer"])
@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_a_network_whose_gradients_overflow_is_reported_and_not_returned(kernel, by_layer):
    steep = draw_model(MLP(n_outputs=N_OUTPUTS, widths=(4, 3)))
    steep = Model(steep.network, jax.tree.map(lambda leaf: 1e11 * leaf, steep.variables))
    assert np.isfinite(jax.tree.leaves(KERNELS[kernel].features(steep, X))[0]).all()
    with pytest.raises(FloatingPointError, match="overflow in the network's parameters or inputs"):
        gram(kernel, steep, X, by_layer=by_layer)


def test_a_network_that_overflows_is_reported_and_not_returned():
    huge = Model(NETWORK, jax.tree.map(lambda leaf: np.full_like(leaf, 1e30), MODEL.variables))
    with pytest.raises(FloatingPointError, match="overflow in the network's parameters or inputs"):
        gram(of_logits, huge, X)


@pytest.mark.parametrize(
    "memory",
    [
        None,
        float("inf"),
        float("nan"),
        "x",
        "",
        "2 gigabytes",
        "-1GiB",
        "GiB",
        "9" * 400 + "GiB",
        0,
        0.5,
        -1,
        10**400,
    ]
    + [True, 1j, [2**30], {}, b"2GiB", np.array([1, 2]), object()],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_amount_of_memory_is_refused(memory):
    for call in (parse_memory, lambda memory: gram("trace", MODEL, X, memory=memory)):
        with pytest.raises(ValueError, match=r"^memory must be"):
            call(memory)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [2**30, 1e9, np.int64(2**30), np.float32(1e9), "1GiB", " 0.5 GB ", "500MB"])
def test_amounts_of_memory_are_numbers_or_text(memory):
    assert type(parse_memory(memory)) is int
    assert gram("trace", MODEL, X, memory=memory).shape == (11, 11)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"by_layer": "yes"}, "by_layer must be True or False"),
        ({"by_layer": 1}, "by_layer must be True or False"),
        ({"progress": None}, "progress must be True or False"),
        ({"progress": []}, "progress must be True or False"),
        ({"n_jobs": 0}, "n_jobs must be None or an integer other than 0"),
        ({"n_jobs": "2"}, "n_jobs must be None or an integer other than 0"),
        ({"n_jobs": 1.5}, "n_jobs must be None or an integer other than 0"),
        ({"n_jobs": True}, "n_jobs must be None or an integer other than 0"),
        ({"n_jobs": float("nan")}, "n_jobs must be None or an integer other than 0"),
        ({"plan": None}, "plan must be True, False or a Plan"),
        ({"plan": 1}, "plan must be True, False or a Plan"),
        ({"plan": "2GiB"}, "plan must be True, False or a Plan"),
        ({"plan": np.array([True, False])}, "plan must be True, False or a Plan"),
    ],
)
def test_options_of_another_kind_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        gram("trace", MODEL, X, **options)


def test_a_plan_for_another_kernel_is_refused_instead_of_giving_other_numbers():
    with pytest.raises(ValueError, match="the plan is for 1 directions of output space"):
        gram("trace", MODEL, X, plan=fixed_plan(KERNELS["pseudo"], MODEL, SHAPE, TILE))
    with pytest.raises(ValueError, match="the plan is for 3 directions of output space"):
        gram("pseudo", MODEL, X, plan=fixed_plan(KERNELS["trace"], MODEL, SHAPE, TILE))


@pytest.mark.parametrize(
    "sizes", [{"rows": 0}, {"rows": 6, "chunk": 4}, {"chunk": 0}, {"panel": 1.5}, {"directions": -1}]
)
def test_a_plan_of_impossible_sizes_is_refused_when_it_is_made(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} must be|rows must be a multiple"):
        replace(fixed_plan(KERNELS["trace"], MODEL, SHAPE, TILE), **sizes)


@pytest.mark.slow
def test_a_plan_says_what_it_does_not_count():
    assert "compiler's own (some 100 MiB in first calls) not counted" in str(
        fixed_plan(TraceNTK(), MODEL, SHAPE, TILE)
    )
