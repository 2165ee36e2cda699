"""Networks in mixed precision: how far their answers, gradients, attacks and kernels are from float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import OneBlock, answers
from sklearn.datasets import load_digits

from ntkrobust_sk import (
    CNN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Linearized,
    MixedPrecision,
    Model,
    Normalized,
    Variables,
    gram,
    linearize,
)
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.execution.rewriting import equations_of
from ntkrobust_sk.kernels import PrimalPredictor, resolve_kernel
from ntkrobust_sk.kernels.gram_matrix import gram_of
from ntkrobust_sk.kernels.predictors import make_predictor, training_job
from ntkrobust_sk.networks.named import initial_model
from ntkrobust_sk.networks.precision import PRODUCTS, in_precision, precision_of, with_precision

# Half of the distance between two neighbours, relative: 8 and 11 significant bits.
ROUNDING = {"bf16": 2.0**-9, "tf32": 2.0**-11}
# smooth: rounding may turn a ReLU on or off, and its gradient with it
SMALL_MLP = MLP(3, widths=(32,), activation="tanh")
SMALL_CNN = CNN(4, widths=(8, 8), strides=(1, 2), activation="softplus")


def pair(network, precision, shape, key=0):
    """The model in float32 and its twin."""
    variables = network.init(jax.random.key(key), shape)
    return Model(network, variables), Model(MixedPrecision(network, precision), variables)


def drawn(n, shape=(8, 8, 1), key=1):
    return jax.random.uniform(jax.random.key(key), (n, *shape))


def relative(found, exact):
    found, exact = np.asarray(found, float), np.asarray(exact, float)
    return np.abs(found - exact).max() / np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("network, shape", [(SMALL_MLP, (5,)), (SMALL_CNN, (8, 8, 1))])
def test_logits_and_gradients_round_and_no_more(network, shape, precision):
    exact, rounded = pair(network, precision, shape)
    x = drawn(16, shape)
    for of in map(jax.jit, (lambda m: m(x), lambda m: jax.grad(lambda z: (m(z) ** 2).sum())(x))):
        assert 0.01 * ROUNDING[precision] < relative(of(rounded), of(exact)) < 16 * ROUNDING[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision, bits", [("bf16", 7), ("tf32", 10)])
def test_a_product_is_that_of_rounded_operands(precision, bits):
    network = MLP(3, widths=())
    _, model = pair(network, precision, (6,))
    layer, x = model.variables.params["dense_0"], drawn(7, (6,))

    def rounds(a):
        return np.asarray(jax.lax.reduce_precision(a, 8, bits), np.float64)

    products = rounds(x) @ rounds(layer["kernel"])
    expected = rounds(jnp.asarray(products, jnp.float32)) if precision == "bf16" else products
    # the sum inside of a product may fall on the other side of a middle between two bfloat16
    slack = 2.0**-8 if precision == "bf16" else 1e-6
    np.testing.assert_allclose(model(x), expected + np.asarray(layer["bias"]), rtol=slack, atol=1e-6)


@pytest.mark.slow
def test_all_else_stays_in_float32():
    exact, rounded = pair(OneBlock(3, width=4, zero_last_layer=False), "bf16", (8, 8, 3))
    x = drawn(2, (8, 8, 3))
    equations = equations_of(jax.make_jaxpr(rounded.__call__)(x).jaxpr)
    dtypes = {eqn.primitive.name: eqn.outvars[0].aval.dtype.name for eqn in equations}
    assert dtypes["conv_general_dilated"] == dtypes["dot_general"] == "bfloat16"
    assert all(dtypes[name] == "float32" for name in ("add", "sub", "mul") if name in dtypes)
    logits, state = jax.eval_shape(partial(rounded.network.apply, train=True), *rounded.variables, x)
    assert logits.dtype == jnp.float32
    assert "bfloat16" not in {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert relative(answers(rounded, x), answers(exact, x)) < 0.05


@pytest.mark.slow
def test_it_wraps_and_is_wrapped():
    x = drawn(4, (5,))
    inner = MLP(3, widths=(16,))
    variables = inner.init(jax.random.key(0), (5,))
    one = Model(MixedPrecision(Normalized(inner, (0.5,), (0.25,)), "tf32"), variables)
    other = Model(Normalized(MixedPrecision(inner, "tf32"), (0.5,), (0.25,)), variables)
    np.testing.assert_array_equal(answers(one, x), answers(other, x))


@pytest.mark.slow
def test_a_linearisation_rounds_too():
    exact, rounded = pair(SMALL_CNN, "bf16", (8, 8, 1))
    x = drawn(8)

    def moved(line):
        params = jax.tree.map(lambda p: 1.01 * p, line.variables.params)
        return answers(Model(line.network, line.variables._replace(params=params)), x)

    found = [moved(linearize(model)) for model in (exact, rounded)]
    assert 0 < relative(found[1], found[0]) < 16 * ROUNDING["bf16"]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["trace", "class", "pseudo", "full"])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_gram_entries_round_and_features_stay_outer_products(kernel, precision):
    exact, rounded = pair(SMALL_CNN, precision, (8, 8, 1))
    x = drawn(6)
    K, K_rounded = (np.asarray(gram(kernel, model, x), float) for model in (exact, rounded))
    assert K_rounded.dtype == K.dtype
    assert 0 < np.abs(K_rounded - K).max() / np.abs(K).max() < 16 * ROUNDING[precision]
    forms = [
        [type(leaf) for leaf in jax.eval_shape(resolve_kernel(kernel).features, model, x)]
        for model in (exact, rounded)
    ]
    assert forms[0] == forms[1]


def wrapped_by_mean(network):
    return Normalized(network, (0.5,), (0.25,))


def products_of_logits(model, x1, x2):
    return model(x1) @ model(x2).T


@pytest.mark.slow
@pytest.mark.parametrize("precision, wrap", [("bf16", lambda network: network), ("tf32", wrapped_by_mean)])
def test_gram_takes_the_products_of_a_network_in_their_precision_unless_another_is_named(precision, wrap):
    network = wrap(MixedPrecision(SMALL_CNN, precision))
    model, x = Model(network, network.init(jax.random.key(0), (8, 8, 1))), drawn(6)
    K, named, single = (gram("trace", model, x, dtype=dtype) for dtype in (None, precision, "float32"))
    np.testing.assert_array_equal(K, named)
    assert 0 < np.abs(K - single).max() / single.max() < 4 * ROUNDING[precision]
    # a bare function has no features that could be rounded
    linear, single = (gram(products_of_logits, model, x, dtype=dtype) for dtype in (None, "float32"))
    np.testing.assert_array_equal(linear, single)


@pytest.mark.slow
def test_a_predictor_folds_the_features_that_its_gram_matrix_has():
    """Kept from the Gram matrix, or computed again: to the bit, in the primal form and in few digits."""
    _, model = pair(SMALL_CNN, "bf16", (8, 8, 1))
    x, dual, offset = np.asarray(drawn(24)), np.asarray(drawn(24, (2,), key=2)) - 0.5, np.zeros(2)
    job = training_job("pseudo", model, x, 2)
    K = gram_of(job)
    # a small matrix is one program, which sums in another order than tiles do
    np.testing.assert_allclose(K, gram("pseudo", model, x), rtol=1e-6)
    assert job.kept
    kept = make_predictor("pseudo", model, x, dual, offset, plan=job.plan, features=job.kept)
    again = make_predictor("pseudo", model, x, dual, offset, plan=job.plan)
    np.testing.assert_array_equal(answers(kept, x), answers(again, x))
    assert isinstance(kept, PrimalPredictor)
    assert 0 < relative(answers(kept, x), K @ dual) < 4 * ROUNDING["bf16"]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_gradients_of_kernels_are_products_in_the_named_precision_too(precision):
    """On a GPU: what surrounds them asks for float32 of everything that has no name."""
    _, model = pair(SMALL_CNN, precision, (8, 8, 1))
    x = drawn(2)
    with jax.default_matmul_precision("highest"):
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: Model(model.network, Variables(p))(x).sum()))
        equations = list(equations_of(jaxpr(model.variables.params).jaxpr))
    products = [eqn for eqn in equations if eqn.primitive.name in PRODUCTS]
    assert len(products) > 5
    for eqn in products:
        narrow = {var.aval.dtype.name for var in eqn.invars} == {"bfloat16"}
        assert narrow if precision == "bf16" else set(eqn.params["precision"]) == {jax.lax.Precision.DEFAULT}


@pytest.mark.slow
def test_attacks_stay_in_ball_and_bounds():
    exact, rounded = pair(SMALL_CNN, "bf16", (8, 8, 1))
    x, y = drawn(32), jnp.arange(32) % 4
    attack = PGD(epsilon=0.1, n_steps=5)
    found = attack(rounded, x, y, key=jax.random.key(0))
    assert float(jnp.abs(found - x).max()) <= 0.1 + 1e-6 and 0 <= float(found.min()) <= float(found.max()) <= 1
    # found in bfloat16, it is as bad for the network in float32
    wrong = [(answers(m, z).argmax(1) != y).mean() for m, z in ((exact, found), (rounded, found))]
    assert abs(wrong[0] - wrong[1]) <= 2 / 32


def test_new_weights_do_not_compile_again():
    _, model = pair(SMALL_CNN, "bf16", (8, 8, 1))
    traced = []

    @jax.jit
    def logits(model, x):
        traced.append(None)
        return model(x)

    for key in range(3):
        logits(pair(SMALL_CNN, "bf16", (8, 8, 1), key)[1], drawn(2))
    assert len(traced) == 1 and hash(model.network) == hash(MixedPrecision(SMALL_CNN, "bf16"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        MixedPrecision,
        Linearized,
        wrapped_by_mean,
        lambda network: MixedPrecision(wrapped_by_mean(network), "tf32"),
        lambda network: wrapped_by_mean(MixedPrecision(network)),
    ],
)
@pytest.mark.parametrize("inner", [MLP(widths=(4,)), MLP(2, widths=(4,))])
def test_a_wrapped_network_gets_outputs_as_the_bare_one_does(wrap, inner):
    found = initial_model(wrap(inner), (5,), 3, jax.random.key(0))
    bare = initial_model(inner, (5,), 3, jax.random.key(0))
    assert found.network == wrap(bare.network) and found(drawn(2, (5,))).shape == (2, inner.n_outputs or 3)
    assert wrap(inner) == wrap(type(inner)(inner.n_outputs, widths=(4,)))


def test_a_network_is_put_into_a_precision_once_wherever_it_has_one():
    bare = MLP(3, widths=(4,))
    assert precision_of(bare) is None and in_precision(bare, None) is bare
    assert in_precision(bare, "tf32") == MixedPrecision(bare, "tf32")
    for network in (MixedPrecision(bare), wrapped_by_mean(MixedPrecision(bare)), Linearized(MixedPrecision(bare))):
        assert precision_of(network) == "bf16" and in_precision(network, "bf16") is in_precision(network, None)
        other = in_precision(network, "tf32")
        assert precision_of(other) == "tf32" and in_precision(other, "bf16") == network


@pytest.mark.parametrize("wrap", [lambda network: network, wrapped_by_mean, Linearized])
@pytest.mark.parametrize(("own", "other"), [("bf16", "tf32"), ("tf32", "bf16"), ("bf16", "bf16")])
def test_a_network_that_has_a_precision_is_refused_another_one(wrap, own, other):
    network = wrap(MixedPrecision(MLP(3, widths=(4,)), own))
    with pytest.raises(ValueError, match=rf"network must have no precision of its own, got one in '{own}'"):
        MixedPrecision(network, other)
    # the precision that is asked for by name takes the place of its own
    assert in_precision(network, other) == wrap(MixedPrecision(MLP(3, widths=(4,)), other))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_parameters_whose_products_would_not_round_are_refused(dtype):
    with enable_x64(dtype == "float64"):
        variables = jax.tree.map(lambda p: p.astype(dtype), SMALL_MLP.init(jax.random.key(0), (5,)))
        with pytest.raises(
            ValueError, match=f"precision='bf16' rounds products of float32.*are in {dtype}; leave"
        ):
            with_precision(Model(SMALL_MLP, variables), "bf16")


@pytest.mark.parametrize("precision", ["fp8", "float16", "BF16", None, 16, ["bf16"]])
def test_an_unknown_precision_is_named_with_what_is_known(precision):
    with pytest.raises(ValueError, match=r"unknown precision .* known are 'bf16', 'tf32'"):
        MixedPrecision(MLP(3), precision)


@pytest.mark.parametrize("network", ["mlp", None, MLP, lambda x: x])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(TypeError, match="network"):
        MixedPrecision(network)


@pytest.mark.slow
def test_training_reaches_the_accuracy_of_float32_within_a_standard_error():
    X, y = load_digits(return_X_y=True)
    X = X / 16.0

    def scores(network):
        trainers = [
            AdversarialKernelTrainer(network, attack=PGD(0.1, n_steps=3), max_epochs=10, random_state=seed)
            for seed in range(3)
        ]
        return np.array([trainer.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]) for trainer in trainers])

    exact, rounded = scores(MLP(10)), scores(MixedPrecision(MLP(10)))
    # of the difference of two means over three seeds, or of one example in each
    error = max(np.sqrt((exact.var(ddof=1) + rounded.var(ddof=1)) / 3), 1 / len(X[1200:]))
    assert rounded.mean() > exact.mean() - error and exact.mean() > 0.8
