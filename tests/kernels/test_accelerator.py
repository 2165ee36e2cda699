"""The branches that an accelerator takes, run on a CPU device that is not taken for the host's."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import answers

from ntkrobust_sk import (
    APGD,
    CNN,
    FMN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    AutoAttack,
    Clean,
    EmpiricalNTKClassifier,
    MixedPrecision,
    Model,
    ProjectedNTK,
    gram,
    linearize,
    solve,
    train,
)
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution import devices, loops
from ntkrobust_sk.execution import tiles as tiles_of_rows
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels import abstract_features, plan, tiles, verification
from ntkrobust_sk.kernels.gram_matrix import gram_of
from ntkrobust_sk.kernels.ntk import KERNELS, resolve_kernel
from ntkrobust_sk.kernels.plan import fixed_plan, make_plan
from ntkrobust_sk.kernels.predictors import DualPredictor, PrimalPredictor, make_predictor, training_job
from ntkrobust_sk.kernels.tiles import tile_program

SHAPE, C, TILE = (6, 6, 2), 3, 4
NETWORK = CNN(n_outputs=C, widths=(4, 4), strides=(1, 2))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), SHAPE))
RNG = np.random.default_rng(0)
X, Y = (RNG.uniform(size=(n, *SHAPE)).astype(np.float32) for n in (11, 6))
LABELS = (np.arange(len(X)) % C).astype(np.int32)
# Of the largest entry, against float64: what single precision, and factors of so many digits, may be off by.
ERRORS = {
    None: 2e-6,
    "float64": 2e-6,
    np.float64: 2e-6,
    jnp.float64: 2e-6,
    "float32": 2e-6,
    "tf32": 1e-3,
    "bf16": 1e-2,
}
# by another name
AGAIN = (np.float64, jnp.float64, "float32")


def forget():
    """What was traced for other devices."""
    for cached in (
        abstract_features.compiled_features,
        abstract_features._shapes,
        plan._plan,
        loops._loops_well,
        tiles_of_rows._known_bytes_per_row,
    ):
        cached.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def accelerator():
    """No platform is the host's, and this device has no units for TF32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "HOST_PLATFORMS", ())
        patch.setattr(tiles, "UNITS", {"tf32": "highest", "bf16": "highest"})
        forget()
        yield
    forget()


@pytest.fixture
def on_a_cpu():
    """Call something as a CPU does it."""

    def call(function):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "HOST_PLATFORMS", ("cpu",))
            forget()
            found = function()
        forget()
        return found

    return call


@cache
def jacobian(at):
    """Jacobians at X or at Y in double precision, by parameter array."""
    with enable_x64(True):
        inputs = jnp.asarray(X if at == "X" else Y, jnp.float64)
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), MODEL)

        def scores(params):
            return model.network.apply(params, model.variables.state, inputs)[0]

        leaves = jax.tree.leaves(jax.jit(jax.jacrev(scores))(model.variables.params))
        return [np.asarray(leaf).reshape(len(inputs), C, -1) for leaf in leaves]


def dense(kernel, left, right):
    """A kernel by its definition, by parameter array."""
    layers = [np.einsum("icp,jdp->ijcd", a, b) for a, b in zip(jacobian(left), jacobian(right), strict=True)]
    return [
        {
            "full": full,
            "class": np.einsum("ijcc->ijc", full),
            "trace": np.einsum("ijcc->ij", full) / C,
            "pseudo": full.sum((2, 3)) / C,
        }[kernel]
        for full in layers
    ]


@pytest.fixture(scope="module")
def exact():
    """Kernels by their definition, of X with X and with Y."""
    return {(kernel, at): dense(kernel, "X", at) for kernel in KERNELS for at in ("X", "Y")}


def assert_near(found, expected, tolerance):
    error = np.abs(np.asarray(found, float) - expected).max() / np.abs(expected).max()
    assert np.shape(found) == expected.shape and error <= tolerance, error


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, dtype",
    [(kernel, dtype) for kernel in KERNELS for dtype in ERRORS if kernel == "trace" or dtype not in AGAIN],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_every_kernel_in_every_precision_stays_on_the_device(kernel, dtype, exact):
    for directions in (C, 1):
        sizes = fixed_plan(resolve_kernel(kernel), MODEL, SHAPE, TILE, 2, directions)
        for at, other in (("X", None), ("Y", Y)):
            K = gram(kernel, MODEL, X, other, dtype=dtype, plan=sizes)
            assert isinstance(K, jax.Array)
            assert K.dtype == (np.float64 if "float64" in str(dtype) else np.float32)
            assert_near(K, sum(exact[kernel, at]), ERRORS[dtype])
            if other is None:
                transposed = np.swapaxes(np.asarray(K), 0, 1)
                symmetric = transposed.swapaxes(2, 3) if K.ndim == 4 else transposed
                np.testing.assert_array_equal(np.asarray(K), symmetric)
        layers = gram(kernel, MODEL, X, dtype=dtype, plan=sizes, by_layer=True)
        for layer, expected in zip(layers.values(), exact[kernel, "X"], strict=True):
            assert_near(layer, expected, 2 * ERRORS[dtype])


@pytest.mark.slow
def test_fewer_digits_are_what_was_asked_for(exact):
    errors = {}
    for name in ("tf32", "bf16"):
        K = np.asarray(gram("trace", MODEL, X, dtype=name, memory="1MiB"), float)
        errors[name] = np.abs(K - sum(exact["trace", "X"])).max() / K.max()
    assert 1e-5 < errors["tf32"] < errors["bf16"] / 3


@pytest.mark.slow
def test_bf16_features_take_half_the_memory():
    kernel = KERNELS["trace"]
    wide, narrow = (make_plan(kernel, MODEL, SHAPE, 2**24, n_rows=8, dtype=name) for name in ("tf32", "bf16"))
    assert narrow.row_bytes == wide.row_bytes // 2
    sizes = fixed_plan(kernel, MODEL, SHAPE, TILE)
    for name, dtype in (("tf32", "float32"), ("bf16", "bfloat16")):
        leaves = jax.tree.leaves(tile_program(kernel, MODEL, sizes, X, name)(X[:TILE]))
        assert {leaf.dtype.name for leaf in leaves} == {dtype}


@pytest.mark.slow
def test_the_working_space_of_an_accelerator_does_not_count_the_threads_of_the_host(on_a_cpu, monkeypatch):
    kernel = KERNELS["trace"]

    def plan_with(n_threads):
        monkeypatch.setattr(abstract_features, "planned_threads", lambda: n_threads)
        forget()
        return make_plan(kernel, MODEL, SHAPE, 2**26, n_rows=64)

    assert plan_with(16) == plan_with(1)
    assert on_a_cpu(lambda: plan_with(16).working_bytes > plan_with(1).working_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float64", np.float64, np.dtype(">f8")])
def test_kernels_without_features_take_every_name_of_a_dtype(dtype):
    def of_logits(model, x1, x2):
        return model(x1) @ model(x2).T

    K = gram(of_logits, MODEL, X, dtype=dtype)
    scores = np.asarray(MODEL(X), float)
    assert K.dtype == (np.float32 if dtype is None else np.float64)
    assert_near(K, scores @ scores.T, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float64", "bf16"])
def test_stores_are_written_and_go_on(dtype, tmp_path, exact):
    pytest.importorskip("zarr")
    for n in (7, len(X)):
        K = gram("trace", MODEL, X[:n], dtype=dtype, store=tmp_path / "K.zarr", memory="1MiB")
        assert_near(K, sum(exact["trace", "X"])[:n, :n], ERRORS[dtype])


@pytest.mark.slow
def test_an_overflow_is_found_in_both_precisions():
    for dtype, scale in ((None, 1e12), ("float64", 1e25)):
        model = jax.tree.map(lambda leaf, scale=scale: leaf * scale, MODEL)
        with pytest.raises(FloatingPointError, match="not finite"):
            gram("trace", model, X, dtype=dtype)


@pytest.mark.slow
def test_projected_kernels_run_too(exact):
    assert_near(gram(ProjectedNTK(4096, seed=0), MODEL, X), sum(exact["trace", "X"]), 0.2)


# Predictors


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_predictors_answer_as_the_kernel_does(kernel, exact):
    K, targets = sum(exact[kernel, "X"]), np.eye(C)[LABELS] - 1 / C
    dual = solve(gram(kernel, MODEL, X, dtype="float64"), targets, alpha=1e-2)
    equation = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}[K.ndim]
    expected = 0.1 + np.einsum(equation, sum(dense(kernel, "Y", "X")), np.asarray(dual))
    primal = make_predictor(KERNELS[kernel], MODEL, X, dual, np.full(C, 0.1))
    dual = DualPredictor(KERNELS[kernel], MODEL, jnp.asarray(X), jnp.asarray(dual, jnp.float32), 0.1)
    assert isinstance(primal, PrimalPredictor)
    for predictor in (primal, dual):
        assert_near(answers(predictor, Y), expected, 1e-3)


@pytest.mark.slow
def test_a_predictor_in_mixed_precision_folds_features_that_are_kept_in_16_bits(exact):
    model = Model(MixedPrecision(NETWORK, "bf16"), MODEL.variables)
    K, dual = gram("pseudo", model, X), RNG.normal(size=(len(X), 2))
    assert_near(K, sum(exact["pseudo", "X"]), ERRORS["bf16"])
    job = training_job("pseudo", model, X, 2)
    gram_of(job)
    assert {leaf.dtype for leaf in jax.tree.leaves(job.kept)} == {jnp.dtype(jnp.bfloat16)}
    primal = make_predictor("pseudo", model, X, dual, np.zeros(2), plan=job.plan, features=job.kept)
    assert isinstance(primal, PrimalPredictor)
    assert_near(answers(primal, X), np.asarray(K) @ dual, ERRORS["bf16"])


# Loops


def trained(model):
    """Parameters after two epochs of ragged batches, half of them adversarial."""
    states = train(
        model,
        X,
        LABELS,
        epochs=2,
        batch_size=4,
        attacks=(Clean(), PGD(0.05, 2)),
        key=jax.random.key(1),
        optimizer=optax.sgd(0.1),
    )
    *_, last = states
    return jax.tree.map(np.asarray, last.model.variables.params), np.asarray(last.loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: MODEL, lambda: linearize(MODEL, centered=True)], ids=["CNN", "linearised"]
)
def test_training_in_one_compiled_loop_gives_the_same_parameters(make, on_a_cpu):
    found, expected = trained(make()), on_a_cpu(lambda: trained(make()))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def machine():
    dual = RNG.normal(size=(len(X), C))
    return make_predictor(KERNELS["trace"], MODEL, X, dual, np.zeros(C))


@pytest.mark.slow
@pytest.mark.parametrize(
    "of, attack",
    [
        ("network", PGD(0.5, 4)),
        ("network", APGD(0.5, 6, loss="dlr")),
        ("network", FMN(0.5, 20)),
        ("network", AutoAttack(0.5, n_steps=20, n_queries=20)),
        ("machine", PGD(0.5, 4)),
        ("machine", APGD(0.5, 6, loss="dlr")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_attacks_stay_inside_of_ball_and_bounds(of, attack):
    model = MODEL if of == "network" else machine()
    labels = np.asarray(answers(model, X)).argmax(1).astype(np.int32)
    found = attack_in_tiles(attack, model, X, labels, key=jax.random.key(0), rows=8)
    assert found.shape == X.shape and np.isfinite(found).all() and (found != X).any()
    assert np.abs(found - X).max() <= 0.5 + 1e-6 and found.min() >= 0 and found.max() <= 1


@pytest.mark.slow
def test_an_attack_finds_what_it_finds_on_a_cpu(on_a_cpu):
    def examples():
        return attack_in_tiles(PGD(0.1, 5, norm="l2"), MODEL, X, LABELS, key=jax.random.key(0), rows=8)

    np.testing.assert_allclose(examples(), on_a_cpu(examples), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_autoattack_takes_larger_tiles_than_on_a_cpu(on_a_cpu):
    shapes = []
    network = MLP(n_outputs=2, widths=(4,))
    model = Model(network, network.init(jax.random.key(0), (3,)))
    inputs = np.full((2, 3), 0.5, np.float32)

    def rows_of():
        shapes.clear()
        counted = lambda x: (shapes.append(len(x)), model(x))[1]  # noqa: E731
        AutoAttack(0.1, n_steps=1, n_queries=1).run(counted, inputs, np.zeros(2, int), key=jax.random.key(0))
        return max(shapes)

    assert rows_of() == 512
    assert on_a_cpu(rows_of) == 128


def test_a_machine_is_lowered_once_for_the_rows_of_its_tiles(monkeypatch):
    lowered, counted = [], tiles_of_rows._gradient_bytes

    def recorded(model, shape, dtype):
        lowered.append(shape)
        return counted(model, shape, dtype)

    monkeypatch.setattr(tiles_of_rows, "_gradient_bytes", recorded)
    tiles_of_rows._known_bytes_per_row.cache_clear()
    network = MLP(n_outputs=C, widths=(8,))
    for seed in (0, 1):
        model = Model(network, network.init(jax.random.key(seed), (5,)))
        classifier = EmpiricalNTKClassifier(model).fit(X.reshape(len(X), -1)[:, :5], LABELS)
        for n in (2, 3):
            classifier.predict(X.reshape(len(X), -1)[:n, :5])
    assert lowered == [(1, 5), (2, 5)]
    # the budget is asked each time; other inputs are another form
    predictor = classifier.predictor_
    assert [tiles_of_rows.machine_rows(predictor, (5,), np.float32, memory) for memory in (1, 2**31)] == [50, 512]
    assert len(lowered) == 2
    tiles_of_rows.machine_rows(lambda x: x.sum(1, keepdims=True), (7,), np.float32, 2**31)
    assert lowered[2:] == [(1, 7), (2, 7)]


def test_a_machine_whose_bytes_are_not_known_takes_as_many_rows_as_on_a_cpu(monkeypatch):
    monkeypatch.setattr(tiles_of_rows, "_gradient_bytes", lambda *given: np.inf)
    tiles_of_rows._known_bytes_per_row.cache_clear()
    assert tiles_of_rows.machine_rows(MODEL, SHAPE, np.float32, 2**31) == 50
    tiles_of_rows._known_bytes_per_row.cache_clear()


@pytest.mark.slow
def test_estimators_fit_predict_and_are_scored():
    attack = PGD(0.05, 2)
    trainer = AdversarialKernelTrainer(NETWORK, max_epochs=1, attack=attack, random_state=0).fit(X, LABELS)
    machine = EmpiricalNTKClassifier(trainer.model_, alpha=1e-2).fit(X, LABELS)
    assert machine.score(X, LABELS) >= machine.robust_score(X, LABELS, attack=attack)
    assert machine.predict(Y).shape == (len(Y),) and machine.gram(Y).shape == (6, 6)


@pytest.mark.slow
def test_readings_are_proved_at_the_host(monkeypatch):
    where, compared = [], verification.start_comparison

    def recorded(kernel, n_directions, model, x):
        where.extend([devices.default_devices(), *(type(leaf) for leaf in jax.tree.leaves(model))])
        return compared(kernel, n_directions, model, x)

    monkeypatch.setattr(verification, "start_comparison", recorded)
    monkeypatch.setattr(verification, "_VERIFIED", set())
    gram("trace", MODEL, X)
    assert where[0] == (jax.local_devices(backend="cpu")[0],) and set(where[1:]) == {np.ndarray}
