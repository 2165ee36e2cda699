"""Plans: within memory, as the compiler states it; what a tile's features are; networks that are read wrongly."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Model, ResNet18, Stateless, TraceNTK, Variables, gram
from ntkrobust_sk.execution.memory import parse_memory
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.execution.tiles import pad_rows
from ntkrobust_sk.kernels import abstract_features, verification
from ntkrobust_sk.kernels import plan as planning
from ntkrobust_sk.kernels.abstract_features import AbstractFeatures
from ntkrobust_sk.kernels.ntk import KERNELS, resolve_kernel
from ntkrobust_sk.kernels.plan import Plan, fixed_plan, make_plan
from ntkrobust_sk.kernels.tiles import tile_program

N_OUTPUTS = 3


class Residual(ResNet18):
    """Two of its blocks: all eight take long to compile."""

    def _blocks(self):
        return [("plain", self.width, self.width, 1), ("strided", self.width, 8 * self.width, 2)]


each_kernel = pytest.mark.parametrize("kernel", KERNELS)
NETWORKS = {
    "dense": (MLP(n_outputs=N_OUTPUTS, widths=(8, 8)), (5,)),
    "convolutional": (CNN(n_outputs=N_OUTPUTS, widths=(4, 8), strides=(1, 2)), (8, 8, 1)),
    "residual": (Residual(n_outputs=N_OUTPUTS, width=4), (8, 8, 3)),
}
GENEROUS, MIDDLING, SCARCE = 2**30, 2**22, 2**16


@pytest.fixture
def features_only(monkeypatch):
    """Plans in which contracting features takes nothing."""
    monkeypatch.setattr(AbstractFeatures, "contraction_bytes", lambda *args: 0)
    monkeypatch.setattr(AbstractFeatures, "block_bytes", lambda *args: 0)
    planning._plan.cache_clear()
    yield
    planning._plan.cache_clear()


@pytest.fixture(autouse=True)
def one_device():
    with jax.default_device(jax.local_devices()[0]):
        yield


def draw_model(name="dense", seed=0, dtype=np.float32):
    network, shape = NETWORKS[name]
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    return Model(network, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), variables))


def draw_inputs(n, shape, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def plan_of(kernel, name, memory, **options):
    return make_plan(KERNELS[kernel], draw_model(name), NETWORKS[name][1], memory, **options)


def amount_named(error) -> int:
    return int(str(error.value).split("memory=")[1].split(" ")[0].replace(",", ""))


# Within memory


BUDGETS = [(k, name, m) for k in KERNELS for name in ("dense", "convolutional") for m in (GENEROUS, SCARCE)]
BUDGETS += [("trace", "convolutional", MIDDLING), ("trace", "residual", MIDDLING), ("full", "residual", 2**24)]


@pytest.mark.slow
@pytest.mark.parametrize("kernel, name, memory", BUDGETS)
def test_a_plan_keeps_to_its_memory_and_leaves_no_room_for_another_tile(kernel, name, memory):
    plan = plan_of(kernel, name, memory)
    tile = plan.rows * plan.row_bytes
    assert plan.memory == memory
    assert plan.peak_bytes == (plan.panel + 1) * tile + plan.working_bytes <= memory
    # one number a pair, one for each class, or one for each pair of classes
    block = plan.rows**2 * plan.directions ** {"trace": 0, "pseudo": 0, "class": 1, "full": 2}[kernel] * 4
    assert plan.peak_bytes + tile + block > memory
    assert plan.panel >= 1
    assert plan.rows in [2**i for i in range(10)]
    assert plan.n_directions == (1 if kernel == "pseudo" else N_OUTPUTS)
    assert 1 <= plan.directions <= plan.n_directions
    assert plan.passes * plan.directions >= plan.n_directions > (plan.passes - 1) * plan.directions


@pytest.mark.slow
@pytest.mark.parametrize("name, memory", [("dense", GENEROUS), ("convolutional", MIDDLING)])
@each_kernel
def test_a_plan_states_the_bytes_that_features_take(kernel, name, memory):
    plan, shape = plan_of(kernel, name, memory), NETWORKS[name][1]
    X = draw_inputs(2, shape)
    features = tile_program(KERNELS[kernel], draw_model(name), plan, X)(X)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(features)) == plan.rows * plan.row_bytes


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_a_plan_states_the_working_space_that_the_compiler_states(kernel, features_only):
    model, shape = draw_model("convolutional"), NETWORKS["convolutional"][1]
    plan = plan_of(kernel, "convolutional", MIDDLING)
    x = jax.ShapeDtypeStruct((plan.rows, *shape), np.float32)
    directions = jax.ShapeDtypeStruct((plan.directions, N_OUTPUTS), np.float32)
    compiled = jax.jit(KERNELS[kernel].features).lower(model, x, directions).compile()
    assert plan.working_bytes == compiled.memory_analysis().temp_size_in_bytes > 0


class Program:
    """A compiled program that says what working space each row takes."""

    def __init__(self, temp_size_in_bytes):
        self.stats = None if temp_size_in_bytes is None else self
        self.temp_size_in_bytes = temp_size_in_bytes

    def memory_analysis(self):
        return self.stats


@pytest.fixture
def working_space(monkeypatch):
    """Sets what working space the compiler states, in bytes a row."""

    def state(row_bytes):
        def program(abstract, rows, n_directions):
            return Program(None if row_bytes is None else rows * row_bytes)

        planning._plan.cache_clear()
        monkeypatch.setattr(abstract_features, "compiled_features", program)

    yield state
    planning._plan.cache_clear()


def test_tiles_are_cut_until_their_working_space_fits_too(working_space, features_only):
    memory = 2**20
    working_space(0)
    free = plan_of("trace", "dense", memory)
    assert free.rows == 128
    for rows in (32, 8, 1):
        # the rest is for features
        of_each = int(0.95 * memory / rows)
        working_space(of_each)
        plan = plan_of("trace", "dense", memory)
        assert plan.rows == rows
        assert plan.working_bytes == rows * of_each
        assert plan.peak_bytes <= memory
        assert plan.panel * plan.rows < free.panel * free.rows
    working_space(memory)
    with pytest.raises(MemoryError, match="two tiles of 1 row"):
        plan_of("trace", "dense", memory)


@pytest.mark.parametrize("row_kilobytes, chunk", [(128, 128), (129, 64), (1024, 16), (20_000, 1)])
def test_where_working_space_leaves_the_cache_a_few_rows_are_computed_at_a_time(
    working_space, monkeypatch, row_kilobytes, chunk
):
    monkeypatch.setattr(AbstractFeatures, "contraction_bytes", lambda *args: 0)
    monkeypatch.setattr(AbstractFeatures, "block_bytes", lambda *args: 0)
    working_space(row_kilobytes * 2**10)
    plan = plan_of("trace", "dense", GENEROUS)
    assert (plan.rows, plan.chunk) == (128, chunk)
    at_once = chunk * row_kilobytes * 2**10
    assert chunk == 1 or at_once <= planning.CACHE_BYTES
    # the chunk's features are copied into the tile's while the next one's are computed
    assert plan.working_bytes == at_once + (0 if chunk == plan.rows else 2 * chunk * plan.row_bytes)


def test_where_the_compiler_states_no_working_space_features_alone_are_counted(working_space, features_only):
    working_space(None)
    plan = plan_of("trace", "dense", 2**20)
    assert plan.working_bytes == 0
    assert plan.peak_bytes == (plan.panel + 1) * plan.rows * plan.row_bytes


@pytest.mark.slow
@pytest.mark.parametrize("kernel, name", [*((kernel, "dense") for kernel in KERNELS), ("trace", "convolutional")])
def test_less_memory_gives_fewer_rows_or_more_passes(kernel, name, features_only):
    plans = [plan_of(kernel, name, 2**i) for i in (30, 21, 19, 17, 15)]
    for more, less in zip(plans, plans[1:], strict=False):
        assert less.passes >= more.passes
        assert less.rows <= more.rows
        assert less.rows * less.panel < more.rows * more.panel
    assert plans[-1].rows < plans[0].rows
    assert (plans[-1].passes > 1) == (kernel in ("trace", "class"))
    assert {plan.directions for plan in plans if kernel in ("full", "pseudo")} <= {plans[0].n_directions}


def test_much_memory_makes_panels_longer_and_tiles_no_larger():
    plan, more = (plan_of("trace", "dense", memory) for memory in (2**30, 2**31))
    assert (more.rows, more.directions, more.row_bytes) == (plan.rows, plan.directions, plan.row_bytes)
    assert more.panel > 2 * plan.panel


def test_tiles_have_twice_the_rows_where_many_of_them_fit(monkeypatch, features_only):
    monkeypatch.setattr(planning, "FEW_BYTES", 0)
    row_bytes = plan_of("pseudo", "dense", GENEROUS).row_bytes
    enough = planning.ROOMY_TILES * 128 * row_bytes
    assert [plan_of("pseudo", "dense", memory).rows for memory in (enough, enough - 1)] == [128, 64]


@pytest.mark.slow
def test_passes_of_ten_outputs_leave_none_to_spare():
    model = Model(network := MLP(n_outputs=10, widths=(8,)), network.init(jax.random.key(0), (5,)))
    plans = [make_plan(KERNELS["trace"], model, (5,), memory) for memory in np.geomspace(2**17, 2**23, 13)]
    assert {plan.directions for plan in plans} == {1, 2, 5, 10}
    assert all(plan.passes * plan.directions == 10 for plan in plans)


@pytest.mark.slow
def test_features_in_double_precision_take_twice_the_memory():
    single = plan_of("trace", "dense", GENEROUS)
    with enable_x64(True):
        double = make_plan(KERNELS["trace"], draw_model(dtype=np.float64), (5,), GENEROUS)
    assert double.row_bytes == 2 * single.row_bytes
    assert double.panel < single.panel


def test_the_number_of_rows_does_not_count_where_tiles_and_panels_are_filled():
    for memory in (GENEROUS, SCARCE):
        plans = [plan_of("trace", "dense", memory, n_rows=n) for n in (None, 1000, 1024, 1025, 10**6)]
        assert plans == [plans[0]] * len(plans)


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, rows", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64), (64, 64), (65, 128), (999, 128)]
)
def test_few_rows_count_to_the_next_power_of_two(n, rows):
    plan = plan_of("trace", "dense", GENEROUS, n_rows=n)
    assert plan.rows == rows
    assert plan == plan_of("trace", "dense", GENEROUS, n_rows=2 ** int(np.ceil(np.log2(n))))


@pytest.mark.slow
def test_few_rows_need_fewer_passes_than_many():
    passes = [plan_of("trace", "dense", 2**19, n_rows=n).passes for n in (64, 256, 1024)]
    assert passes == sorted(passes)
    assert passes[0] < passes[-1]


@pytest.mark.slow
def test_a_matrix_is_computed_with_the_plan_for_its_rows_or_columns_whichever_are_more(capsys):
    model = draw_model()
    for n, m in [(3, None), (70, None), (3, 1), (1, 70)]:
        X, Y = draw_inputs(n, (5,)), None if m is None else draw_inputs(m, (5,))
        gram("trace", model, X, Y, memory="1MiB", plan=True)
        assert capsys.readouterr().out == f"{plan_of('trace', 'dense', 2**20, n_rows=max(n, m or 0))}\n"


def test_a_plan_does_not_depend_on_the_weights():
    shapes = Model(NETWORKS["dense"][0], jax.eval_shape(lambda: draw_model().variables))
    plans = [make_plan(KERNELS["trace"], model, (5,), SCARCE) for model in (draw_model(seed=7), shapes)]
    assert plans == [plan_of("trace", "dense", SCARCE)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, network, shape, n_rows",
    [
        *((kernel, *NETWORKS[name], None) for name in ("dense", "convolutional") for kernel in KERNELS),
        pytest.param("class", *NETWORKS["convolutional"], 1),
        pytest.param("trace", CNN(n_outputs=10, widths=(1, 1), strides=(1, 1)), (128, 128, 1), None),
    ],
    ids=[
        *(f"{name}-{kernel}" for name in ("dense", "convolutional") for kernel in KERNELS),
        "one row",
        "large images",
    ],
)
def test_too_little_memory_is_refused_with_the_amount_that_is_enough(kernel, network, shape, n_rows):
    model = Model(network, jax.eval_shape(lambda: network.init(jax.random.key(0), shape)))
    with pytest.raises(MemoryError, match=r"two tiles of 1 row of .* take a kernel with fewer") as caught:
        make_plan(KERNELS[kernel], model, shape, 100, n_rows=n_rows)
    enough = amount_named(caught)
    plan = make_plan(KERNELS[kernel], model, shape, enough, n_rows=n_rows)
    assert (plan.rows, plan.panel, plan.peak_bytes) == (1, 1, enough)
    with pytest.raises(MemoryError) as caught:
        make_plan(KERNELS[kernel], model, shape, enough - 1, n_rows=n_rows)
    assert amount_named(caught) == enough


# Plans as values


SOME_PLAN = Plan(
    rows=64,
    chunk=16,
    panel=3,
    directions=4,
    n_directions=10,
    row_bytes=2048,
    working_bytes=3 * 2**20,
    memory=2**30,
    devices=("one",),
)


NOT_COUNTED = "the result and the compiler's own (some 100 MiB in first calls) not counted"


def test_a_plan_says_its_tiles_panels_passes_and_bytes():
    assert str(SOME_PLAN) == (
        "tiles of 64 rows (16 at once), panels of 192; 3 passes over 10 outputs; "
        "2 KiB of features a row, 3 MiB to compute them; at most 3.5 MiB of 1.0 GiB, " + NOT_COUNTED
    )
    on_two = replace(SOME_PLAN, devices=("one", "other"), directions=10, panel=3000, row_bytes=900, memory=2**31)
    assert str(on_two) == (
        "tiles of 64 rows, on 2 devices (16 at once), panels of 192,000; 1 pass over 10 outputs; "
        "900 bytes of features a row, 3 MiB to compute them; at most 167.8 MiB of 2.0 GiB on each, " + NOT_COUNTED
    )


def test_plans_are_plain_values():
    assert replace(SOME_PLAN) == SOME_PLAN
    assert hash(replace(SOME_PLAN)) == hash(SOME_PLAN)
    assert replace(SOME_PLAN, rows=32) != SOME_PLAN
    assert "rows=64" in repr(SOME_PLAN)


def of_logits(model, x1, x2):
    return model(x1) @ model(x2).T


@pytest.mark.parametrize(
    "kernel, directions, expected",
    [
        ("trace", None, (N_OUTPUTS, 1)),
        ("trace", 2, (2, 2)),
        ("class", 1, (1, 3)),
        ("class", 7, (N_OUTPUTS, 1)),
        ("full", 1, (N_OUTPUTS, 1)),
        ("pseudo", 1, (1, 1)),
        (of_logits, 1, (1, 1)),
    ],
)
def test_a_fixed_plan_has_the_stated_sizes_and_compiles_nothing(kernel, directions, expected):
    compiled = abstract_features.compiled_features.cache_info().misses
    plan = fixed_plan(KERNELS.get(kernel, kernel), draw_model(), (5,), rows=6, panel=2, directions=directions)
    assert (plan.rows, plan.panel) == (6, 2)
    # the full kernel needs all pairs of directions at once
    assert (plan.directions, plan.passes) == expected
    assert abstract_features.compiled_features.cache_info().misses == compiled


# A tile's features


@pytest.mark.slow
@each_kernel
def test_features_of_a_tile_are_those_of_its_rows_and_the_first_row_fills_it_up(kernel):
    model, X = draw_model(), draw_inputs(6, (5,))
    plan = fixed_plan(KERNELS[kernel], model, (5,), rows=4)
    filled = X[[4, 5, 4, 4]]
    expected = jax.jit(KERNELS[kernel].features)(model, filled)
    found = tile_program(KERNELS[kernel], model, plan, X)(X[4:])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, same in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(leaf) is np.ndarray
        np.testing.assert_allclose(leaf, same, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@each_kernel
def test_features_computed_a_few_rows_at_a_time_are_the_same(kernel):
    model, X = draw_model("convolutional"), draw_inputs(7, NETWORKS["convolutional"][1])
    plan = fixed_plan(KERNELS[kernel], model, X.shape[1:], rows=8)
    whole = tile_program(KERNELS[kernel], model, plan, X)(X)
    for chunk in (1, 4):
        parts = tile_program(KERNELS[kernel], model, replace(plan, chunk=chunk), X)(X)
        assert jax.tree.structure(parts) == jax.tree.structure(whole)
        for leaf, same in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
            assert type(leaf) is np.ndarray
            np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-6 * np.abs(same).max())


def test_in_the_last_pass_directions_to_spare_are_zero():
    model, X = draw_model(), draw_inputs(4, (5,))
    plan = fixed_plan(KERNELS["class"], model, (5,), rows=4, directions=2)
    whole = fixed_plan(KERNELS["class"], model, (5,), rows=4)
    for last, leaf in zip(
        tile_program(KERNELS["class"], model, plan, X)(X, 2),
        tile_program(KERNELS["class"], model, whole, X)(X),
        strict=True,
    ):
        values = last.dense().values
        np.testing.assert_allclose(values[0], leaf.dense().values[2], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(values[1], np.zeros_like(values[1]))


def test_a_kernel_without_features_is_given_the_rows():
    X = draw_inputs(6, (5,))
    plan = fixed_plan(of_logits, draw_model(), (5,), rows=4)
    program = tile_program(resolve_kernel(of_logits), draw_model(), plan, X)
    np.testing.assert_array_equal(program(X[4:]), X[[4, 5, 4, 4]])


def test_padding_repeats_the_first_row():
    X = draw_inputs(5, (2,))
    np.testing.assert_array_equal(pad_rows(X[2:5], 5), X[[2, 3, 4, 2, 2]])
    assert pad_rows(X[:4], 4).base is X


# Networks that are read wrongly


@jax.custom_vjp
def clipped_on_the_way_back(h):
    return h


clipped_on_the_way_back.defvjp(lambda h: (h, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def scaled_by_the_batch_on_the_way_back(h):
    return h


scaled_by_the_batch_on_the_way_back.defvjp(lambda h: (h, None), lambda _, g: (g / jnp.linalg.norm(g),))


WRONG = {
    "the batch's mean is subtracted": lambda params, x: jnp.tanh(x - x.mean(0)) @ params,
    "the batch is normalised": lambda params, x: (x @ params) / jnp.linalg.norm(x @ params, axis=0),
    "rows see their neighbours": lambda params, x: (x + jnp.roll(x, 1, axis=0)) @ params,
    "a backward pass that is not linear": lambda params, x: clipped_on_the_way_back(jnp.tanh(x @ params)),
    "a backward pass across the batch": lambda params, x: scaled_by_the_batch_on_the_way_back(x @ params),
}


def of_one_array(apply, seed=0):
    """A network that no other test has met, with parameters (5, C)."""
    params = np.random.default_rng(seed).normal(size=(5, N_OUTPUTS)).astype(np.float32)
    return Model(Stateless(lambda params, x: apply(params, x)), Variables(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_network_whose_gradients_are_not_those_of_a_backward_pass_is_refused_every_time(name):
    model, X = of_one_array(WRONG[name]), draw_inputs(7, (5,))
    for _ in range(2):
        with pytest.raises(ArithmeticError) as caught:
            gram("trace", model, X)
        message = str(caught.value)
        assert f"of {model.network!r} differ from a plain backward pass by" in message
        assert "its outputs depend on the other rows of a batch (batch norm in training mode?)" in message
        assert "more than 1e-09" in message


@pytest.mark.slow
def test_a_network_whose_rows_see_each_other_is_refused_in_tiles_of_one_row_too():
    model, X = of_one_array(WRONG["the batch's mean is subtracted"]), draw_inputs(7, (5,))
    for rows in (1, 4):
        with pytest.raises(ArithmeticError, match="depend on the other rows"):
            gram("trace", model, X[:rows], plan=fixed_plan(KERNELS["trace"], model, (5,), rows=rows))


@pytest.fixture
def checks(monkeypatch):
    """A list that grows with every comparison with a plain backward pass."""
    compare, made = verification.start_comparison, []

    def counted(*args):
        made.append(args)
        return compare(*args)

    monkeypatch.setattr(verification, "start_comparison", counted)
    return made


@pytest.mark.slow
def test_a_network_is_checked_once_for_each_kind_of_gradients_and_shape_of_inputs_not_once_a_call(checks):
    def apply(params, x):
        return jnp.tanh(x.reshape(len(x), 5) @ params)

    model, X = of_one_array(apply), draw_inputs(70, (5,))
    gram("trace", model, X)
    assert len(checks) == 1
    gram("trace", model, X[:3], X)
    gram("trace", Model(model.network, of_one_array(apply, seed=1).variables), X)
    gram("trace", model, X, plan=fixed_plan(KERNELS["trace"], model, (5,), rows=2, directions=1))
    assert len(checks) == 1
    # gradients of one logit after the other, as the trace kernel's
    gram("class", model, X)
    assert len(checks) == 1
    gram("pseudo", model, X)
    gram("pseudo", model, X)
    assert len(checks) == 2
    gram("full", model, X)
    assert len(checks) == 3
    gram("trace", model, X.reshape(-1, 5, 1))
    assert len(checks) == 4
    gram("trace", of_one_array(apply), X)
    assert len(checks) == 5


@pytest.mark.slow
def test_a_kernel_with_features_of_its_own_is_checked_for_itself(checks):
    class Doubled(TraceNTK):
        def features(self, model, x, directions=None):
            return jax.tree.map(lambda leaf: 2 * leaf, super().features(model, x, directions))

    model, X = of_one_array(lambda params, x: x @ params), draw_inputs(4, (5,))
    gram("trace", model, X)
    with pytest.raises(ArithmeticError, match="differ from a plain backward pass"):
        gram(Doubled(), model, X)
    assert len(checks) == 2


@pytest.mark.slow
def test_a_check_whose_outcome_is_not_finite_counts_for_nothing(checks):
    model, X = of_one_array(lambda params, x: jnp.exp(x @ params)), draw_inputs(4, (5,))
    huge = Model(model.network, Variables(np.full_like(model.variables.params, 1e30)))
    with pytest.raises(FloatingPointError):
        gram("trace", huge, np.abs(X))
    # moved, and as it is; while the plan is made, and before anything is computed
    assert len(checks) == 4
    gram("trace", model, X)
    gram("trace", model, X)
    assert len(checks) == 5


# Amounts of memory


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
    with pytest.raises(ValueError, match="must be a finite number >= 1 of bytes"):
        parse_memory(memory)


@pytest.mark.parametrize("name", NETWORKS)
@each_kernel
def test_features_in_fewer_directions_are_known_without_tracing_the_network_again(kernel, name):
    model, shape = draw_model(name), NETWORKS[name][1]
    abstract = abstract_features.abstract_features(resolve_kernel(kernel), model, shape)
    for n_directions in range(2, abstract.n_directions + 1):
        known = abstract.features(n_directions)
        arguments = abstract.model, abstract.tile(1), abstract.directions(n_directions)
        traced = jax.eval_shape(abstract.function(), *arguments)
        assert jax.tree.structure(known) == jax.tree.structure(traced)
        for one, other in zip(jax.tree.leaves(known), jax.tree.leaves(traced), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
