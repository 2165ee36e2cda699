"""Random projections: unbiased, closer by 1/√k, the same for the same seed, and never P × k."""

import pickle
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    CNN,
    MLP,
    Model,
    ProjectedNTK,
    Stateless,
    TangentFeatures,
    TraceNTK,
    Variables,
    gram,
    gram_operator,
    kernel_diag,
)
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.plan import make_plan
from ntkrobust_sk.kernels.predictors import PrimalPredictor, make_predictor
from ntkrobust_sk.networks.chosen_parameters import map_parameters

N_SEEDS = 64


def look_up(params, x):
    return jnp.tanh(params["table"][x.astype(int)].reshape(len(x), -1)) @ params["out"]


def embedding():
    draw = np.random.default_rng(0).normal
    params = {"table": draw(size=(7, 3)), "out": draw(size=(12, 2))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return Model(Stateless(look_up), Variables(params))


def of_network(network, shape):
    return Model(network, network.init(jax.random.key(0), shape))


MODELS = {
    "dense": (of_network(MLP(n_outputs=3, widths=(16,)), (6,)), (6,)),
    "convolutional": (of_network(CNN(n_outputs=2, widths=(4, 3), strides=(1, 2)), (5, 5, 2)), (5, 5, 2)),
    "embedding": (embedding(), (4,)),
}


def inputs(name, n=8):
    rng, shape = np.random.default_rng(1), (n, *MODELS[name][1])
    return rng.integers(0, 7, shape).astype(np.float32) if name == "embedding" else rng.normal(size=shape)


@cache
def estimates(name, k, of):
    """Exact kernel, and estimates (N_SEEDS, n, n), both over √(K(x, x) K(x', x'))."""
    model, _ = MODELS[name]
    X = jnp.asarray(inputs(name), jnp.float32)
    exact = gram(of, model, X)

    @jax.jit
    def project(model, X):
        def one(seed):
            return ProjectedNTK(k, seed, of).features(model, X)[0].values[0]

        return jax.lax.map(one, jnp.arange(N_SEEDS))

    Z = np.asarray(project(model, X))
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    return exact / scale, Z @ Z.swapaxes(1, 2) / scale


@pytest.mark.slow
@pytest.mark.parametrize("of", ["trace", "pseudo"])
@pytest.mark.parametrize("name", MODELS)
def test_estimates_are_unbiased(name, of):
    """The mean over seeds is within five of its own standard errors, entry by entry."""
    exact, found = estimates(name, 32, of)
    standard_error = found.std(0, ddof=1) / np.sqrt(N_SEEDS)
    assert (np.abs(found.mean(0) - exact) < 5 * standard_error + 1e-5).all()
    assert standard_error.max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_the_error_falls_as_one_over_the_root_of_the_number_of_components(name):
    errors = []
    for k in (32, 512):
        exact, found = estimates(name, k, "trace")
        errors.append(np.sqrt(((found - exact) ** 2).mean()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[0] < 3 / np.sqrt(32)


@pytest.mark.slow
def test_a_seed_gives_the_same_projections_for_other_rows_and_another_seed_others():
    model, X = MODELS["dense"][0], inputs("dense", 12)
    K = gram(ProjectedNTK(64), model, X)
    np.testing.assert_allclose(gram(ProjectedNTK(64), model, X[3:], X[:5]), K[3:, :5], rtol=0, atol=1e-6 * K.max())
    assert np.abs(gram(ProjectedNTK(64, seed=1), model, X) - K).max() > 1e-3 * K.max()


@pytest.mark.slow
def test_an_estimate_is_a_kernel():
    model, X = MODELS["convolutional"][0], inputs("convolutional", 20)
    K = gram(ProjectedNTK(8), model, X)
    np.testing.assert_array_equal(K, K.T)
    values = np.linalg.eigvalsh(K.astype(float))
    assert values.min() > -1e-5 * values.max() and (values > 1e-4 * values.max()).sum() <= 8


@pytest.mark.slow
def test_predictions_cost_a_product_with_the_components():
    model, X = MODELS["dense"][0], inputs("dense", 12).astype(np.float32)
    dual = np.random.default_rng(2).normal(size=(12, 2))
    predictor = make_predictor(ProjectedNTK(64), model, X, dual, np.ones(2))
    assert isinstance(predictor, PrimalPredictor)
    expected = 1 + gram(ProjectedNTK(64), model, X) @ dual
    np.testing.assert_allclose(predictor(X), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "pseudo"])
def test_tangent_features_can_be_projected(kernel):
    X = inputs("dense", 9)
    features = TangentFeatures(MLP(n_outputs=3), kernel=kernel, n_components=2**13, random_state=0).fit(X)
    Z = features.transform(X)
    exact = gram(kernel, features.model_, X)
    assert Z.shape == (9, 2**13) and len(features.get_feature_names_out()) == 2**13
    assert np.abs(Z @ Z.T - exact).max() < 0.1 * exact.max()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(features)).transform(X), Z)


@pytest.mark.slow
def test_no_array_of_parameters_times_components_is_formed():
    """A network with 1,048,576 weights, on 2,048 components: P × k would take 8 GiB."""
    network = MLP(n_outputs=1, widths=(1024, 1024))
    model = Model(network, network.init(jax.random.key(0), (8,)))
    plan = make_plan(ProjectedNTK(2048), model, (8,), 2**28)
    assert plan.working_bytes < 2**28 and plan.row_bytes == 4 * 2048


@pytest.mark.parametrize("n_components", [0, -1, 2.5, None, "many"])
def test_a_number_of_components_that_is_none_is_refused(n_components):
    with pytest.raises(ValueError, match="n_components must be a positive integer"):
        ProjectedNTK(n_components)


def test_only_kernels_of_one_number_a_pair_are_projected():
    with pytest.raises(ValueError, match="unknown of, the kernel to project, 'full'"):
        ProjectedNTK(of="full")


@pytest.mark.slow
def test_the_estimated_kernel_s_features_are_proved_first():
    def centred(params, x):
        h = x @ params
        return h - h.mean(0)

    model = Model(Stateless(centred), Variables(np.eye(4, 2, dtype=np.float32)))
    with pytest.raises(ArithmeticError, match="depend on the other rows"):
        gram(ProjectedNTK(16), model, np.eye(4, dtype=np.float32))


@pytest.mark.slow
def test_projections_are_plain_values():
    kernel = ProjectedNTK(64, seed=3)
    assert eval(repr(kernel)) == kernel == pickle.loads(pickle.dumps(kernel)) != ProjectedNTK(64)
    assert kernel.base == TraceNTK() and hash(kernel) == hash(ProjectedNTK(64, 3))
    assert partial(gram, kernel)(MODELS["dense"][0], inputs("dense", 2)).shape == (2, 2)


@pytest.mark.parametrize("of", ["trace", "pseudo"])
@pytest.mark.parametrize("name", MODELS)
def test_projections_are_the_same_in_single_and_in_double_precision(name, of, tmp_path):
    kernel, model, X = ProjectedNTK(64, 3, of), MODELS[name][0], inputs(name)
    single = gram(kernel, model, X)
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4 * abs(single).max())
    doubled = gram_operator(kernel, model, X, dtype="float64")
    near(gram(kernel, model, X, dtype="float64"), single)
    near(doubled @ np.eye(len(X)), single)
    near(doubled.diagonal(), single.diagonal())
    near(kernel_diag(kernel, model, X, dtype="float64"), single.diagonal())
    for dtype in ("float32", "float64"):
        near(gram(kernel, model, X, dtype=dtype, store=tmp_path / dtype), single)
        stored = gram_operator(kernel, model, X, dtype=dtype, store=tmp_path / f"operator {dtype}")
        near(stored @ np.eye(len(X)), single)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_double_precision_has_the_same_projections_and_predictions(name):
    kernel, model, X = ProjectedNTK(64), MODELS[name][0], inputs(name)
    dual = np.random.default_rng(0).normal(size=(len(X), 2))
    expected = gram(kernel, model, X) @ dual
    with enable_x64(True):
        doubled = map_parameters(lambda leaf: np.asarray(leaf, np.float64), model)
        K = np.asarray(gram(kernel, doubled, X))
        predict = make_predictor(kernel, doubled, X, dual, np.zeros(2), memory="1GiB")
        answers = np.asarray(predict(jnp.asarray(X)))
    assert K.dtype == np.float64
    for found in (K @ dual, answers):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
