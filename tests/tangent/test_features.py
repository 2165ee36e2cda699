"""Linearisation and tangent features: finite differences, the dense Jacobian, and what a linearisation is."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, Linearized, Model, TraceNTK, Variables, linearize
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.tangent.per_example import contract_features, push, tangent_features

N_OUTPUTS = 3
# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclass(frozen=True)
class Normalised:
    """An MLP behind a running mean, which training steps move: the least network with a state."""

    inner: MLP

    def init(self, key, input_shape):
        return Variables(self.inner.init(key, input_shape).params, jnp.full(input_shape, 0.1))

    def apply(self, params, state, x, *, train=False):
        mean = x.mean(0) if train else state
        return self.inner.apply(params, (), x - mean)[0], mean


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with enable_x64(True):
        yield


DENSE = MLP(n_outputs=N_OUTPUTS, widths=(4,), activation="tanh")
NETWORKS = {
    "dense": (DENSE, (4,)),
    "convolutional": (CNN(n_outputs=N_OUTPUTS, widths=(2,), strides=(2,), activation="softplus"), (5, 4, 1)),
    "with state": (Normalised(DENSE), (4,)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    network, shape = NETWORKS[request.param]
    rng = np.random.default_rng(0)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)
    return Model(network, drawn), rng.normal(size=(3, *shape))


def displacement(model, size=1.0, *, lead=(), seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: size * rng.normal(size=(*lead, *leaf.shape)), model.variables.params)


def displaced(model, by):
    params, state = model.variables
    return Model(model.network, Variables(jax.tree.map(jnp.add, params, by), state))


def jacobian(model, x):
    """A list of (n, C, p), one array for each parameter array."""
    dense = logit_jacobian(model, x).variables.params
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(dense)]


@quickly
def logit_jacobian(model, x):
    def at(params):
        return Model(model.network, Variables(params, model.variables.state))(x)

    return Model(model.network, Variables(jax.jacobian(at)(model.variables.params)))


@quickly
def logits(model, x):
    return model(x)


def assert_close(found, expected, rtol=1e-10):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# Linearisation


def test_a_linearisation_starts_at_the_model_and_a_centred_one_at_zero(case):
    model, x = case
    np.testing.assert_array_equal(logits(linearize(model), x), logits(model, x))
    np.testing.assert_array_equal(logits(linearize(model, centered=True), x), np.zeros((3, N_OUTPUTS)))


def test_the_linearisation_changes_as_central_differences_say(case):
    model, x = case
    h, by = 1e-5, displacement(model)
    ahead, back = (displaced(model, jax.tree.map(partial(np.multiply, step), by)) for step in (h, -h))
    slope = (logits(ahead, x) - logits(back, x)) / (2 * h)
    assert_close(logits(displaced(linearize(model, centered=True), by), x), slope, rtol=1e-7)


def test_a_linearisation_is_the_model_and_the_centred_one_added(case):
    model, x = case
    by = displacement(model)
    whole, change = (displaced(linearize(model, centered=centered), by) for centered in (False, True))
    assert_close(logits(whole, x), logits(model, x) + logits(change, x))


def test_a_linearisation_is_linear_in_its_displacement(case):
    model, x = case
    centred = linearize(model, centered=True)
    a, b = displacement(model, seed=1), displacement(model, seed=2)
    mixed = jax.tree.map(lambda u, v: 3 * u - 2 * v, a, b)
    expected = 3 * logits(displaced(centred, a), x) - 2 * logits(displaced(centred, b), x)
    assert_close(logits(displaced(centred, mixed), x), expected)


@pytest.mark.parametrize("centered", [False, True])
def test_the_gradient_by_the_displacement_is_the_jacobian_at_the_anchor_wherever_it_is(case, centered):
    model, x = case
    moved = displaced(linearize(model, centered=centered), displacement(model))
    for found, expected in zip(jacobian(moved, x), jacobian(model, x), strict=True):
        assert_close(found, expected)


@pytest.mark.slow
def test_a_linearisation_has_the_tangent_kernel_of_its_anchor(case):
    model, x = case
    kernel = quickly(TraceNTK().__call__)
    moved = displaced(linearize(model), displacement(model))
    assert_close(kernel(moved, x, x), kernel(model, x, x))


def test_a_linearisation_is_its_own_linearisation(case):
    model, x = case
    once = displaced(linearize(model), displacement(model, seed=1))
    twice = displaced(linearize(once), displacement(model, seed=2))
    assert_close(logits(twice, x), logits(displaced(once, displacement(model, seed=2)), x))


def test_a_training_step_leaves_the_anchor_and_its_state_alone(case):
    model, x = case
    params, anchor = displaced(linearize(model), displacement(model)).variables
    step = quickly(partial(Linearized(model.network).apply, train=True))
    trained, after = step(params, anchor, x)
    evaluated, _ = quickly(Linearized(model.network).apply)(params, anchor, x)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, after, anchor)


def test_drawing_a_linearisation_draws_its_anchor():
    network = Normalised(DENSE)
    params, anchor = Linearized(network).init(jax.random.key(3), (4,))
    drawn = network.init(jax.random.key(3), (4,))
    jax.tree.map(np.testing.assert_array_equal, anchor, drawn)
    jax.tree.map(lambda leaf, like: np.testing.assert_array_equal(leaf, np.zeros_like(like)), params, drawn.params)


def test_linearised_networks_compare_by_value():
    assert Linearized(MLP(n_outputs=2)) == Linearized(MLP(n_outputs=2), centered=False)
    assert Linearized(MLP(n_outputs=2)) != Linearized(MLP(n_outputs=2), centered=True)
    assert hash(Linearized(MLP(n_outputs=2))) == hash(Linearized(MLP(n_outputs=2)))


# Tangent features


SUM = np.ones((1, N_OUTPUTS))


def in_order(features):
    """Gradients (n, R, p) in the parameters' own order."""
    whole = [leaf.dense() for leaf in features]
    return [leaf.layout.inverse(leaf.values).reshape(leaf.values.shape).swapaxes(0, 1) for leaf in whole]


@pytest.fixture(scope="module")
def products(case):
    """The five functions of the Jacobian, compiled as one, and the Jacobian and tangents for them."""
    model, x = case
    many, one = (displacement(model, lead=lead) for lead in ((N_OUTPUTS, 2), (2,)))

    @quickly
    def compute(model, x, many, one):
        return {
            "tangent": in_order(tangent_features(model, x)),
            "summed": in_order(tangent_features(model, x, SUM)),
            "contracted": contract_features(model, x, many),
            "contracted summed": contract_features(model, x, jax.tree.map(lambda leaf: leaf[None], one), SUM),
            "pushed": push(model, x, one),
        }

    many_flat = [leaf.reshape(N_OUTPUTS, 2, -1) for leaf in jax.tree.leaves(many)]
    one_flat = [leaf.reshape(2, -1) for leaf in jax.tree.leaves(one)]
    return compute(model, x, many, one), jacobian(model, x), many_flat, one_flat


@pytest.mark.slow
def test_tangent_features_are_the_rows_of_the_jacobian(products):
    found, dense, _, _ = products
    for leaf, expected in zip(found["tangent"], dense, strict=True):
        assert_close(leaf, expected)


@pytest.mark.slow
def test_summed_features_are_tangent_features_summed_over_the_logits(products):
    found, dense, _, _ = products
    for leaf, expected in zip(found["summed"], dense, strict=True):
        assert_close(leaf[:, 0], expected.sum(1))


def test_contracted_features_are_inner_products_of_features_and_tangents(products):
    found, dense, tangents, _ = products
    expected = sum(np.einsum("ncp,ctp->nt", j, t) for j, t in zip(dense, tangents, strict=True))
    assert_close(found["contracted"], expected)


def test_contracted_summed_features_are_inner_products_of_summed_features_and_tangents(products):
    found, dense, _, tangents = products
    expected = sum(np.einsum("ncp,tp->nt", j, t) for j, t in zip(dense, tangents, strict=True))
    assert_close(found["contracted summed"], expected)


def test_pushed_tangents_are_products_with_the_jacobian(products):
    found, dense, _, tangents = products
    expected = sum(np.einsum("ncp,tp->tnc", j, t) for j, t in zip(dense, tangents, strict=True))
    assert_close(found["pushed"], expected)
