"""Kernel predictors: primal against dual, the linearised network, and what folding may not change."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, FullNTK, Model, TraceNTK, Variables, linearize
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.gram_matrix import gram_of
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.predictors import DualPredictor, PrimalPredictor, make_predictor, training_job
from ntkrobust_sk.kernels.tiles import TileProgram
from ntkrobust_sk.networks.inputs import n_params

N_OUTPUTS, N_FIT = 3, 7
# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CASES = {
    # with two hidden layers, K(x, x') between classes is not symmetric
    "dense": (MLP(n_outputs=N_OUTPUTS, widths=(4, 3), activation="tanh"), (5,)),
    "convolutional": (CNN(n_outputs=N_OUTPUTS, widths=(2,), strides=(2,)), (5, 4, 1)),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def draw_model(name="dense", dtype=np.float32, seed=0):
    network, shape = CASES[name]
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), shape)).params
    return Model(network, Variables(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)))


def draw(*shape, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@quickly
def scores(predictor, x):
    return predictor(x)


@partial(quickly, static_argnums=0)
def block(kernel, model, x1, x2):
    return kernel(model, x1, x2)


def assert_close(found, expected, rtol):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def precision(dtype):
    return enable_x64(True) if dtype == np.float64 else nullcontext()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype, rtol",
    [("dense", np.float32, 1e-5), ("dense", np.float64, 1e-12), ("convolutional", np.float64, 1e-12)],
    ids=["dense, float32", "dense, float64", "convolutional, float64"],
)
@each_kernel
def test_the_primal_form_scores_as_the_dual_form(kernel, name, dtype, rtol):
    shape = CASES[name][1]
    with precision(dtype):
        model, x_fit, x = (
            draw_model(name, dtype),
            draw(N_FIT, *shape, dtype=dtype),
            draw(2, *shape, seed=2, dtype=dtype),
        )
        dual, offset = draw(N_FIT, N_OUTPUTS, seed=3, dtype=dtype), draw(N_OUTPUTS, seed=4, dtype=dtype)
        primal = make_predictor(kernel, model, x_fit, dual, offset)
        assert type(primal) is PrimalPredictor
        found, expected = scores(primal, x), scores(DualPredictor(kernel, model, x_fit, dual, offset), x)
    assert found.dtype == expected.dtype == dtype
    assert_close(found, expected, rtol)


@pytest.mark.slow
@pytest.mark.parametrize("n_targets", [1, 2, 5])
@pytest.mark.parametrize("kernel", ["trace", "pseudo"])
def test_kernels_of_rank_2_predict_any_number_of_targets(kernel, n_targets):
    model, x_fit, x = draw_model(), draw(N_FIT, 5), draw(2, 5, seed=2)
    dual, offset = draw(N_FIT, n_targets, seed=3), draw(n_targets, seed=4)
    found = make_predictor(KERNELS[kernel], model, x_fit, dual, offset)
    assert type(found) is PrimalPredictor
    expected = offset + block(KERNELS[kernel], model, x, x_fit) @ dual
    assert_close(scores(found, x), expected, rtol=1e-5)


@pytest.mark.slow
@each_kernel
def test_dual_scores_are_sums_of_kernel_entries_times_coefficients(kernel):
    model, x_fit, x = draw_model(), draw(N_FIT, 5), draw(2, 5, seed=2)
    dual, offset = draw(N_FIT, N_OUTPUTS, seed=3), draw(N_OUTPUTS, seed=4)
    K = np.asarray(block(kernel, model, x, x_fit))
    expected = np.tile(offset, (2, 1))
    for i in range(2):
        for j in range(N_FIT):
            expected[i] += K[i, j] @ dual[j] if kernel.rank == 4 else K[i, j] * dual[j]
    assert_close(scores(DualPredictor(kernel, model, x_fit, dual, offset), x), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", [make_predictor, DualPredictor])
def test_with_the_full_kernel_a_predictor_is_the_centred_linearised_network_at_the_folded_coefficients(form):
    model, x_fit, x = draw_model("convolutional"), draw(N_FIT, 5, 4, 1), draw(3, 5, 4, 1, seed=2)
    dual, offset = draw(N_FIT, N_OUTPUTS, seed=3), np.zeros(N_OUTPUTS, np.float32)

    @quickly
    def at_displacement(model):
        def logits(params):
            return Model(model.network, Variables(params))(x_fit)

        displacement = jax.vjp(logits, model.variables.params)[1](jnp.asarray(dual))[0]
        centred = linearize(model, centered=True)
        return Model(centred.network, Variables(displacement, centred.variables.state))(x)

    found = scores(form(FullNTK(), model, x_fit, dual, offset), x)
    assert_close(found, at_displacement(model), rtol=1e-5)


@pytest.mark.slow
@each_kernel
def test_a_predictor_of_the_solved_system_interpolates_its_targets(kernel):
    with enable_x64(True):
        model, x_fit = draw_model(dtype=np.float64), draw(N_FIT, 5, dtype=np.float64)
        targets = draw(N_FIT, N_OUTPUTS, seed=3, dtype=np.float64)
        K = np.asarray(block(kernel, model, x_fit, x_fit))
        if kernel.rank == 2:
            dual = np.linalg.solve(K, targets)
        elif kernel.rank == 3:
            dual = np.stack([np.linalg.solve(K[..., c], targets[:, c]) for c in range(N_OUTPUTS)], axis=1)
        else:
            flat = K.transpose(0, 2, 1, 3).reshape(N_FIT * N_OUTPUTS, -1)
            dual = np.linalg.solve(flat, targets.ravel()).reshape(targets.shape)
        predictor = make_predictor(kernel, model, x_fit, dual, np.zeros(N_OUTPUTS))
        assert_close(scores(predictor, x_fit), targets, rtol=1e-8)


# Folding


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_fill_up_a_tile_contribute_nothing(kernel):
    model, x = draw_model(), draw(2, 5, seed=2)
    x_fit, dual = draw(N_FIT, 5), draw(N_FIT, N_OUTPUTS, seed=3)
    # the first row is what tiles are filled up with
    x_fit[0] *= 1000
    expected = scores(DualPredictor(KERNELS[kernel], model, x_fit, dual, np.zeros(N_OUTPUTS, np.float32)), x)
    per_row = 4 * n_params(model.variables.params) * (1 if kernel == "pseudo" else N_OUTPUTS)
    for rows in (4, 64):
        predictor = make_predictor(
            KERNELS[kernel], model, x_fit, dual, np.zeros(N_OUTPUTS), memory=5 * rows * per_row
        )
        assert_close(scores(predictor, x), expected, rtol=1e-5)


@each_kernel
def test_large_coefficients_of_both_signs_cancel_without_loss(kernel):
    model, x = draw_model(), draw(2, 5, seed=2)
    once = draw(4, 5)
    twice = np.concatenate([once, once])
    dual = draw(4, N_OUTPUTS, seed=3).astype(float)
    cancelling = np.concatenate([1e6 + dual, np.full_like(dual, -1e6)])
    offset = np.zeros(N_OUTPUTS)
    found = scores(make_predictor(kernel, model, twice, cancelling, offset), x)
    assert_close(found, scores(make_predictor(kernel, model, once, dual, offset), x), rtol=1e-5)


def test_the_form_with_fewer_products_is_taken():
    model = draw_model()
    for n, form in [(1, DualPredictor), (N_OUTPUTS, DualPredictor), (N_OUTPUTS + 1, PrimalPredictor)]:
        predictor = make_predictor(TraceNTK(), model, draw(n, 5), draw(n, N_OUTPUTS), np.zeros(N_OUTPUTS))
        assert type(predictor) is form


def test_a_kernel_that_cannot_be_folded_stays_dual():
    def of_logits(model, x1, x2):
        return model(x1) @ model(x2).T

    model, x_fit, x = draw_model(), draw(N_FIT, 5), draw(2, 5, seed=2)
    dual, offset = draw(N_FIT, 2, seed=3), draw(2, seed=4)
    predictor = make_predictor(of_logits, model, x_fit, dual, offset)
    assert type(predictor) is DualPredictor
    assert_close(scores(predictor, x), offset + block(of_logits, model, x, x_fit) @ dual, rtol=1e-5)


# Predictors as models


@pytest.mark.slow
@each_kernel
def test_both_forms_have_one_gradient_with_respect_to_the_input(kernel):
    model, x_fit, x = draw_model(), draw(N_FIT, 5), draw(2, 5, seed=2)
    dual, offset = draw(N_FIT, N_OUTPUTS, seed=3), np.zeros(N_OUTPUTS, np.float32)
    slope = quickly(jax.grad(lambda x, predictor: jnp.sin(predictor(x)).sum()))
    found = slope(x, make_predictor(kernel, model, x_fit, dual, offset))
    assert_close(found, slope(x, DualPredictor(kernel, model, x_fit, dual, offset)), rtol=1e-4)


@pytest.mark.parametrize("form", [make_predictor, DualPredictor])
def test_a_predictor_is_a_pytree_whose_compiled_code_serves_other_weights_and_coefficients(form):
    traces = []

    @jax.jit
    def call(predictor, x):
        traces.append(x.shape)
        return predictor(x)

    found = [
        call(
            form(TraceNTK(), draw_model(seed=seed), draw(N_FIT, 5), draw(N_FIT, 2, seed=seed), np.zeros(2)),
            draw(2, 5),
        )
        for seed in (0, 1)
    ]
    assert len(traces) == 1
    assert not np.array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "pseudo", "full"])
def test_machines_of_networks_without_strides_can_be_pushed_forward(kernel):
    network = CNN(n_outputs=N_OUTPUTS, widths=(3,), strides=(1,))
    model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
    X, dual = draw(5, 4, 4, 1), draw(5, N_OUTPUTS, seed=1)
    predictor = make_predictor(KERNELS[kernel], model, X, dual, np.zeros(N_OUTPUTS))
    x, v = X[:2], draw(2, 4, 4, 1, seed=2)

    @quickly
    def both_ways(predictor, x, v):
        cotangents = jnp.eye(2 * N_OUTPUTS).reshape(-1, 2, N_OUTPUTS)
        return jax.jvp(predictor, (x,), (v,))[1], jax.vmap(jax.vjp(predictor, x)[1])(cotangents)[0]

    pushed, backward = map(np.asarray, both_ways(predictor, x, v))
    np.testing.assert_allclose(pushed.ravel(), (backward * v).sum((1, 2, 3, 4)), rtol=1e-4, atol=1e-4)


# Features that the Gram matrix has computed


@pytest.fixture
def computed(monkeypatch):
    """How often features of a tile are computed."""
    made, compute = [], TileProgram.__call__

    def counted(*args):
        made.append(args[2:])
        return compute(*args)

    monkeypatch.setattr(TileProgram, "__call__", counted)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_features_of_the_gram_matrix_are_folded_and_give_the_same_predictor_to_the_bit(kernel, computed):
    model, X = draw_model(), draw(20, 5)
    dual, offset = draw(20, N_OUTPUTS), np.zeros(N_OUTPUTS)
    job = training_job(kernel, model, X, N_OUTPUTS)
    gram_of(job)
    n_tiles = len(computed)
    found = make_predictor(kernel, model, X, dual, offset, plan=job.plan, features=job.kept)
    assert len(computed) == n_tiles == -(-20 // job.plan.rows)
    again = make_predictor(kernel, model, X, dual, offset, plan=job.plan)
    assert len(computed) == 2 * n_tiles
    for leaf, same in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(leaf, same)


@pytest.mark.slow
def test_features_are_kept_only_where_all_of_them_fit_with_the_tangents():
    model, X = draw_model(), draw(400, 5)
    kept = training_job("trace", model, X, N_OUTPUTS)
    plan = kept.plan
    features = -(-len(X) // plan.rows) * plan.rows * plan.row_bytes
    for memory in (features // 2, features, 2**28):
        job = training_job("trace", model, X, N_OUTPUTS, memory=memory)
        assert (job.kept is not None) == (memory == 2**28)
    # fewer points than targets: nothing will be folded
    assert training_job("trace", model, X[:2], N_OUTPUTS).kept is None
    assert training_job(lambda model, x1, x2: model(x1) @ model(x2).T, model, X, N_OUTPUTS).kept is None
