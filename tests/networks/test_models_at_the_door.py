"""What is given where a model is needed: what came is named, and what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import (
    CNN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    AutoAttack,
    Linearized,
    Model,
    Normalized,
    ProjectedNTK,
    ResNet18,
    Stateless,
    TraceNTK,
    Variables,
    as_model,
    from_equinox,
    from_flax,
    from_haiku,
    from_nnx,
    from_stax,
    gram,
    linearize,
    make_robust_scorer,
    robust_accuracy,
)
from ntkrobust_sk.kernels.predictors import make_predictor
from ntkrobust_sk.networks.model import check_model, require_model

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
NETWORK = MLP(n_outputs=3, widths=(5,))
MODEL = Model(NETWORK, NETWORK.init(KEY, (4,)))

USES = {
    "gram": lambda model: gram("trace", model, X),
    "linearize": linearize,
    "make_predictor": lambda model: make_predictor("trace", model, X, np.ones((6, 3)), np.zeros(3)),
    "a kernel": lambda model: TraceNTK()(model, X, X),
}


def foreign(name):
    if name == "linen":
        return __import__("flax.linen").linen.Dense(3)
    if name == "nnx":
        nnx = __import__("flax.nnx").nnx
        return nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    if name == "equinox":
        return __import__("equinox").nn.Linear(4, 3, key=KEY)
    haiku = __import__("haiku")
    return haiku.transform(lambda x: haiku.Linear(3)(x))


NO_MODELS = {
    "a function": (lambda: lambda x: x, r"write Model\(Stateless\(function\), Variables\(params\)\)"),
    "a network": (lambda: NETWORK, r"write Model\(network, network.init\("),
    "a class": (lambda: MLP, r"it is a class: write MLP\(\.\.\.\)"),
    "variables": (lambda: MODEL.variables, r"write Model\(network, variables\)"),
    "a pair": (lambda: (NETWORK, MODEL.variables), r"write Model\(network, variables\)"),
    "an estimator": (LogisticRegression, "it is an estimator"),
    "our own estimator": (AdversarialKernelTrainer, "pass the model_ of a fitted"),
    "a Flax module": (lambda: foreign("linen"), r"write from_flax\(module, variables\)"),
    "an NNX module": (lambda: foreign("nnx"), r"write from_nnx\(module\)"),
    "an Equinox module": (lambda: foreign("equinox"), r"write from_equinox\(module\)"),
    "a Haiku function": (lambda: foreign("haiku"), r"write from_haiku\(transformed, params\)"),
    "nothing": (lambda: None, "None"),
    "a name": (lambda: "mlp", "mlp"),
    "an array": (lambda: X, r"array of shape \(6, 4\)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_named_with_what_to_write_instead(name, use):
    make, way = NO_MODELS[name]
    with pytest.raises(TypeError, match=f"model must be a ntkrobust_sk.Model, got .*?{way}"):
        USES[use](make())


def of(function, params):
    return Model(Stateless(function), Variables(params))


def affine(params, x):
    return x @ params["w"]


W = np.ones((4, 3), np.float32)
WRONG_PARTS = {
    "a Flax module as the network": (
        lambda: Model(foreign("linen"), MODEL.variables),
        TypeError,
        r"model.network must be a network .*from_flax",
    ),
    "parameters for variables": (lambda: Model(NETWORK, {"w": W}), TypeError, "model.variables must be Variables"),
    "an integer parameter": (lambda: of(affine, {"w": W, "n": np.arange(3)}), TypeError, r"params\['n'\].*int64"),
    "a boolean parameter": (
        lambda: of(affine, {"w": W, "n": np.ones(3, bool)}),
        TypeError,
        r"params\['n'\].*bool",
    ),
    "a complex parameter": (
        lambda: of(affine, {"w": W + 1j}),
        TypeError,
        r"params\['w'\].*complex.*jax.lax.complex",
    ),
    "text as a parameter": (lambda: of(affine, {"w": "x"}), TypeError, r"params\['w'\].*str"),
    "no parameters": (lambda: of(lambda p, x: x[:, :2], {}), ValueError, "has no parameters"),
    "NaN in a parameter": (lambda: of(affine, {"w": W * np.nan}), ValueError, r"params\['w'\] contains NaN"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", WRONG_PARTS)
def test_what_is_wrong_with_a_model_is_named(name, use):
    make, error, message = WRONG_PARTS[name]
    with pytest.raises(error, match=message):
        USES[use](make())


OUTPUTS = {
    "a vector": (lambda p, x: (x @ p["w"])[:, 0], r"got \(5,\) from"),
    "an axis more": (lambda p, x: jnp.stack([x @ p["w"]] * 2, 1), r"got \(5, 2, 3\) from"),
    "a pair": (lambda p, x: (x @ p["w"], x), r"got \(\(5, 3\), \(5, 4\)\) from"),
    "nothing": (lambda p, x: None, "got None from"),
    "transposed, with as many outputs as rows": (
        lambda p, x: jnp.zeros((5, 3)) @ (x @ p["w"]).T,
        r"got \(5, 6\) from inputs \(6, 4\)",
    ),
    "integers": (lambda p, x: (x @ p["w"]).astype(int), "dtype int"),
    "complex numbers": (lambda p, x: x @ p["w"] * 1j, "dtype complex64"),
    "no column": (lambda p, x: (x @ p["w"])[:, :0], r"shape \(5, 0\)"),
}


@pytest.mark.parametrize("use", ["gram", "make_predictor", "a kernel"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_logits_are_named(name, use):
    function, got = OUTPUTS[name]
    with pytest.raises(ValueError, match=f"network must return .*{got}"):
        USES[use](of(function, {"w": W}))


OTHER_WIDTHS = {
    "gram": lambda x: gram("trace", MODEL, x),
    "the columns of gram": lambda x: gram("trace", MODEL, X, x),
    "the model": MODEL,
    "its linearisation": linearize(MODEL),
    "a kernel": lambda x: TraceNTK()(MODEL, X, x),
    "a predictor's inputs": lambda x: make_predictor("trace", MODEL, x, np.ones((6, 3)), np.zeros(3)),
    "a predictor": lambda x: make_predictor("trace", MODEL, X, np.ones((6, 3)), np.zeros(3))(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_WIDTHS)
def test_inputs_of_another_width_are_named(name):
    with pytest.raises(ValueError, match=r"cannot take inputs of shape \(n, 3\)|hold inputs of one shape"):
        OTHER_WIDTHS[name](X[:, :3])


@pytest.mark.slow
def test_flat_rows_for_a_network_of_images_are_named():
    network = CNN(n_outputs=2)
    with pytest.raises(ValueError, match=r"cannot take inputs of shape \(n, 4\).*CNN\("):
        gram("trace", Model(network, network.init(KEY, (8, 8, 1))), X)


def test_variables_of_another_network_are_named():
    with pytest.raises(ValueError, match=r"'dense_0' \(KeyError\)"):
        gram("trace", Model(NETWORK, Variables({"w": W})), X)


@pytest.mark.parametrize("x", ["x", None, np.array([["a"]]), np.ma.array(X), object()])
def test_a_model_takes_arrays_of_numbers_alone(x):
    with pytest.raises(TypeError, match=r"x must be (a dense|an) array of"):
        MODEL(x)


def test_rows_of_other_byte_order_and_lists_are_arrays_of_numbers():
    expected = np.asarray(MODEL(X))
    np.testing.assert_array_equal(MODEL(X.astype(">f8")), expected)
    np.testing.assert_allclose(MODEL(X.tolist()), expected, rtol=1e-6)


NOT_OF_JAX = {
    "NumPy": (lambda p, x: np.asarray(x) @ p["w"], "write jnp"),
    "a number": (lambda p, x: float(x.sum()) * (x @ p["w"]), "leave it an array"),
    "if": (lambda p, x: x @ p["w"] if x.sum() > 0 else x, "jnp.where"),
    "a mask": (lambda p, x: x[x.sum(1) > 0] @ p["w"], "jnp.where"),
}


@pytest.mark.parametrize("name", NOT_OF_JAX)
def test_a_network_that_is_no_function_of_traced_arrays_hears_what_to_write(name):
    apply, instead = NOT_OF_JAX[name]
    with pytest.raises(TypeError, match=f"JAX function of traced arrays.*{instead}") as caught:
        gram("trace", of(apply, {"w": W}), X)
    assert not isinstance(caught.value, jax.errors.JAXTypeError)
    assert isinstance(caught.value.__cause__, jax.errors.JAXTypeError | jax.errors.JAXIndexError)


def test_a_good_model_passes_with_traced_and_with_concrete_weights():
    assert require_model(MODEL) is MODEL
    assert jax.jit(lambda model: require_model(model)(X))(MODEL).shape == (6, 3)
    assert check_model(MODEL, (4,)) == 3


WRONG_NUMBERS = {
    "MLP(-1)": lambda: MLP(-1),
    "MLP(1.5)": lambda: MLP(1.5),
    "MLP(True)": lambda: MLP(True),
    "MLP(widths=(1.5,))": lambda: MLP(3, widths=(1.5,)),
    "MLP(zero_last_layer=...)": lambda: MLP(3, zero_last_layer="no"),
    "MLP(activation=array)": lambda: MLP(3, activation=np.array([1, 2])),
    "MLP.init(shape)": lambda: MLP(3).init(KEY, float("inf")),
    "MLP.init(empty axis)": lambda: MLP(3).init(KEY, (0,)),
    "CNN(kernel_size=0)": lambda: CNN(3, kernel_size=0),
    "CNN(kernel_size=1j)": lambda: CNN(3, kernel_size=1j),
    "CNN(activation=array)": lambda: CNN(3, activation=np.array([1, 2])),
    "CNN(0)": lambda: CNN(0),
    "ResNet18(width=0)": lambda: ResNet18(3, width=0),
    "ResNet18('x')": lambda: ResNet18("x"),
    "Normalized(std)": lambda: Normalized(MLP(), (0.5,), (0,)),
    "Normalized(mean)": lambda: Normalized(MLP(), (0.5, 0.5), (1,)),
    "ProjectedNTK(huge)": lambda: ProjectedNTK(10**30),
    "ProjectedNTK(seed)": lambda: ProjectedNTK(8, seed="x"),
    "ProjectedNTK(of)": lambda: ProjectedNTK(8, of=np.array(["trace"])),
    "Linearized(centered)": lambda: Linearized(MLP(), centered="yes"),
}


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_networks_check_their_own_numbers(name):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        WRONG_NUMBERS[name]()


WRONG_KINDS = {
    "MLP.init(key)": lambda: MLP(3).init("k", (4,)),
    "CNN.init(key)": lambda: CNN(3).init(0, (8, 8, 1)),
    "ResNet18.init(key)": lambda: ResNet18(3).init(np.zeros(2), (8, 8, 1)),
    "Normalized(estimator)": lambda: Normalized(LogisticRegression(), (0,), (1,)),
    "Normalized(model)": lambda: Normalized(MODEL, (0,), (1,)),
    "Normalized(mean)": lambda: Normalized(MLP(), ("a",), (1,)),
    "Linearized(function)": lambda: Linearized(lambda x: x),
    "Stateless(3)": lambda: Stateless(3),
    "from_stax": lambda: from_stax(1, 2),
    "from_flax": lambda: from_flax(foreign("linen"), {"kernel": W}),
    "from_haiku": lambda: from_haiku(foreign("haiku"), {"linear": {"w": W}}, {}),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_networks_check_the_kinds_of_their_parts(name):
    with pytest.raises(TypeError, match=r"must be|needs"):
        WRONG_KINDS[name]()


def test_keys_of_both_kinds_draw_the_same_parameters():
    drawn = [MLP(3).init(key, 4).params["dense_0"]["kernel"] for key in (KEY, jax.random.PRNGKey(0))]
    np.testing.assert_array_equal(*drawn)


# Other libraries' modules become models when their variables are given


def stateful():
    linen = __import__("flax.linen").linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool = False):
            return linen.Dense(3)(linen.BatchNorm(use_running_average=not train)(x))

    return Net()


@pytest.mark.slow
def test_a_flax_module_and_its_variables_are_a_model():
    for module in (foreign("linen"), stateful()):
        variables = module.init(KEY, X)
        np.testing.assert_allclose(from_flax(module, variables)(X), module.apply(variables, X), rtol=1e-6)


@pytest.mark.slow
def test_a_haiku_function_and_its_parameters_are_a_model():
    haiku = __import__("haiku")
    transformed = foreign("haiku")
    params = transformed.init(KEY, X)
    np.testing.assert_allclose(from_haiku(transformed, params)(X), transformed.apply(params, None, X), rtol=1e-6)

    def normalised(x, is_training):
        return haiku.Linear(3)(haiku.BatchNorm(True, True, 0.9)(x, is_training))

    transformed = haiku.transform_with_state(normalised)
    params, state = transformed.init(KEY, X, is_training=True)
    expected, _ = transformed.apply(params, state, None, X, is_training=False)
    np.testing.assert_allclose(from_haiku(transformed, params, state)(X), expected, rtol=1e-6)


@pytest.mark.slow
def test_stax_functions_and_their_parameters_are_a_model():
    stax = __import__("jax.example_libraries.stax").example_libraries.stax
    init_fn, apply_fn = stax.serial(stax.Dense(5), stax.Relu, stax.Dense(3))
    _, params = init_fn(KEY, (-1, 4))
    np.testing.assert_allclose(from_stax(init_fn, apply_fn, params=params)(X), apply_fn(params, X), rtol=1e-6)


@pytest.mark.slow
def test_modules_that_hold_their_weights_are_models():
    for adapt, name in ((from_nnx, "nnx"), (from_equinox, "equinox")):
        assert require_model(adapt(foreign(name)))(X).shape == (6, 3)


UNBOUND = {
    "robust_accuracy": lambda module: robust_accuracy(module, X, np.arange(6) % 3, PGD(0.1, bounds=None)),
    "a scorer": lambda module: make_robust_scorer(attack=PGD(0.1, bounds=None))(module, X, np.arange(6) % 3),
    "an attack": lambda module: PGD(0.1, bounds=None)(module, X, np.arange(6) % 3, key=KEY),
    "AutoAttack": lambda module: AutoAttack(0.1, bounds=None)(module, X, np.arange(6) % 3, key=KEY),
    "as_model": as_model,
}


@pytest.mark.parametrize("use", UNBOUND)
def test_attacks_and_scores_say_what_to_write_for_a_module_without_its_variables(use):
    with pytest.raises((TypeError, ValueError), match=r"a Flax module: write from_flax\(module, variables\)"):
        UNBOUND[use](foreign("linen"))


def test_a_function_that_fails_is_not_told_to_become_a_model():
    with pytest.raises(
        ValueError, match=r"fails on inputs of shape \(n, 4\), float32: ZeroDivisionError: \D*zero$"
    ):
        robust_accuracy(lambda x: x / (1 // 0), X, np.arange(6) % 3, PGD(0.1, bounds=None))


@pytest.mark.slow
def test_complex_inputs_are_named_unless_the_network_makes_real_logits_of_them():
    for name, pair in {"X": (X + 1j, None), "Y": (X, X + 1j)}.items():
        with pytest.raises(
            ValueError, match=rf"{name} holds complex numbers.*; write {name}.real or abs\({name}\)"
        ):
            gram("trace", MODEL, *pair)
    moduli = of(lambda p, x: jnp.abs(x @ p["w"]), {"w": W})

    def gradients(x):
        # of |z|, with respect to real weights: Re(conj(z) x) / |z|
        z = x @ W
        return np.real(np.conj(z)[:, :, None] * x[:, None, :]) / np.abs(z)[:, :, None]

    other = X * (1 + 2j) + 1j
    exact = np.einsum("ncp,mcp->nm", gradients(X), gradients(other)) / 3
    np.testing.assert_allclose(gram("trace", moduli, X, other), exact, rtol=1e-5, atol=1e-5)
