"""Networks: against an independent implementation, finite differences, closed forms and bad input."""

import copy
import dataclasses
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.networks.feedforward import CNN, MLP
from ntkrobust_sk.networks.inputs import n_params, params_dtype
from ntkrobust_sk.networks.layers import ACTIVATIONS
from ntkrobust_sk.networks.model import Model, Network, Variables, check_model
from ntkrobust_sk.networks.resnet import DECAY, EPSILON, ResNet18
from ntkrobust_sk.networks.wrappers import Stateless

KEY = jax.random.key(0)
IMAGES = (8, 8, 3)
logits = jax.jit(Model.__call__)


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def draw_affine(key, input_shape):
    return {"kernel": jax.random.normal(key, (*input_shape, 3)), "bias": jnp.zeros(3)}


NETWORKS = [
    (MLP(n_outputs=3, widths=(6,)), (5,)),
    (CNN(n_outputs=3, widths=(4, 5), strides=(1, 2)), IMAGES),
    (ResNet18(n_outputs=3, width=2), IMAGES),
    (Stateless(affine, draw_affine), (5,)),
]
each_network = pytest.mark.parametrize(
    "network, input_shape", NETWORKS, ids=[type(network).__name__ for network, _ in NETWORKS]
)


# Drawing weights is cheap and compiling it is not.
@partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def initial(network, input_shape):
    return network.init(KEY, input_shape)


def inputs(input_shape, n=4, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *input_shape)).astype(jnp.result_type(float))


def scattered(network, input_shape, seed=2):
    """Variables as far from their start as after training, drawn without compiling ``init``."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(KEY, input_shape))

    def draw(leaf, low, high):
        return rng.uniform(low, high, leaf.shape).astype(leaf.dtype)

    return Variables(
        jax.tree.map(lambda leaf: draw(leaf, -1.0, 1.0), shapes.params),
        jax.tree.map(lambda leaf: draw(leaf, 0.5, 2.0), shapes.state),
    )


@pytest.mark.slow
@each_network
def test_logits_have_a_row_for_each_input_and_a_column_for_each_output(network, input_shape):
    model = Model(network, initial(network, input_shape))
    assert isinstance(network, Network)
    assert check_model(model, input_shape) == 3
    assert logits(model, inputs(input_shape)).shape == (4, 3)


@each_network
def test_a_row_of_logits_depends_on_its_own_input_alone(network, input_shape):
    model = Model(network, scattered(network, input_shape))
    x = inputs(input_shape)
    others = np.array([1, 1, 0, 1]).reshape(4, *(1 for _ in input_shape))
    before, after = logits(model, x), logits(model, x + others.astype(x.dtype))
    np.testing.assert_allclose(after[2], before[2], rtol=1e-4)
    assert not np.allclose(after[:2], before[:2], rtol=1e-3)


@each_network
def test_new_weights_reuse_the_compiled_code(network, input_shape):
    traces = []

    @jax.jit
    def counted(model, x):
        traces.append(1)
        return model(x)

    x = inputs(input_shape)
    first = counted(Model(network, scattered(network, input_shape, seed=3)), x)
    rebuilt = dataclasses.replace(network)
    second = counted(Model(rebuilt, scattered(network, input_shape)), x)
    assert rebuilt is not network
    assert len(traces) == 1
    assert not np.allclose(first, second)


@each_network
def test_a_model_computes_in_the_dtype_of_its_parameters(network, input_shape):
    params, state = scattered(network, input_shape)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim else leaf, state)
    x = np.ones((2, *input_shape), np.float64)
    assert jax.eval_shape(Model.__call__, Model(network, Variables(half, state)), x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "network",
    [MLP(n_outputs=3), CNN(widths=(4,), strides=(2,)), ResNet18(width=4), Stateless(affine)],
    ids=lambda network: type(network).__name__,
)
def test_networks_are_compared_and_pickled_by_value(network):
    twin = pickle.loads(pickle.dumps(network))
    assert twin == network and hash(twin) == hash(network)
    if not isinstance(network, Stateless):
        assert eval(repr(network)) == network
        assert type(network)(n_outputs=7) != network


def test_lists_and_numpy_integers_make_the_same_network_as_tuples():
    assert CNN(widths=[4, 8], strides=np.array([1, 2])) == CNN(widths=(4, 8), strides=(1, 2))
    assert hash(MLP(widths=[np.int64(4)])) == hash(MLP(widths=(4,)))


def test_a_model_survives_pickling_and_is_its_own_copy():
    network = MLP(n_outputs=3)
    model = Model(network, initial(network, (5,)))
    x = inputs((5,))
    assert copy.deepcopy(model) is model
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert repr(model).endswith("n_params=579)")


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_is_alternating_affine_maps_and_activations(activation):
    network = MLP(n_outputs=2, widths=(6, 5), activation=activation)
    params, _ = variables = scattered(network, (2, 3))
    x = inputs((2, 3))
    h = np.asarray(x).reshape(4, 6)
    for layer in ("dense_0", "dense_1"):
        h = ACTIVATIONS[activation](h @ params[layer]["kernel"] + params[layer]["bias"])
    expected = h @ params["dense_2"]["kernel"] + params["dense_2"]["bias"]
    np.testing.assert_allclose(Model(network, variables)(x), expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_agrees_with_its_sum_over_patches():
    network = CNN(n_outputs=2, widths=(3,), strides=(1,), activation="tanh")
    params, _ = variables = scattered(network, (5, 4, 2))
    x = inputs((5, 4, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    h = np.tanh(np.einsum("nhwcij,ijco->nhwo", patches, params["conv_0"]["kernel"]) + params["conv_0"]["bias"])
    expected = h.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]
    np.testing.assert_allclose(Model(network, variables)(x), expected, rtol=1e-5, atol=1e-5)


def test_resnet18_has_the_parameters_of_the_paper():
    params, _ = jax.eval_shape(lambda key: ResNet18(n_outputs=10).init(key, (32, 32, 3)), KEY)
    assert n_params(params) == 11_173_962


@pytest.mark.parametrize(
    "network",
    [MLP(3, widths=(6,), zero_last_layer=True), CNN(3, (4,), (2,), zero_last_layer=True), ResNet18(3, 2)],
    ids=lambda network: type(network).__name__,
)
def test_a_zero_last_layer_gives_zero_logits(network):
    model = Model(network, initial(network, IMAGES))
    np.testing.assert_array_equal(logits(model, inputs(IMAGES)), np.zeros((4, 3)))


@pytest.mark.parametrize("network", [MLP(3, widths=()), CNN(3, (40,), (1,)), ResNet18(3, 5, False)])
def test_other_last_layers_have_the_variance_of_one_over_fan_in(network):
    name = "dense_0" if isinstance(network, MLP) else "dense"
    kernel = jax.jit(lambda: network.init(KEY, (2, 5, 4)).params[name]["kernel"])()
    assert kernel.shape == (40, 3)
    assert 0.7 < np.std(kernel) * 40**0.5 < 1.3


def linen_resnet18(linen, n_outputs, width):
    """ResNet-18 written a second time, with another library's layers."""

    class BasicBlock(linen.Module):
        channels: int
        stride: int

        @linen.compact
        def __call__(self, x, train):
            def normed(size, stride, h, name):
                h = linen.Conv(self.channels, (size, size), stride, use_bias=False, name=name)(h)
                norm = linen.BatchNorm(
                    not train, momentum=DECAY, epsilon=EPSILON, use_fast_variance=False, name=f"{name}_bn"
                )
                return norm(h)

            h = linen.relu(normed(3, self.stride, x, "conv_0"))
            h = normed(3, 1, h, "conv_1")
            if self.stride > 1:
                x = normed(1, self.stride, x, "shortcut")
            return linen.relu(h + x)

    class ResNet(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            h = linen.Conv(width, (3, 3), use_bias=False, name="stem")(x)
            h = linen.BatchNorm(
                not train, momentum=DECAY, epsilon=EPSILON, use_fast_variance=False, name="stem_bn"
            )(h)
            h = linen.relu(h)
            for group in range(4):
                for block in range(2):
                    stride = 2 if group > 0 and block == 0 else 1
                    h = BasicBlock(width * 2**group, stride, name=f"block_{group}_{block}")(h, train)
            return linen.Dense(n_outputs, name="dense")(jnp.mean(h, axis=(1, 2)))

    return ResNet()


def linen_variables(params, state):
    """Our variables in the layout of the Linen ResNet."""
    translated = {"params": {"dense": params["dense"]}, "batch_stats": {}}
    for name in state["statistics"]:
        *block, layer = name.split("/")
        weights, statistics = translated["params"], translated["batch_stats"]
        for part in block:
            weights, statistics = weights.setdefault(part, {}), statistics.setdefault(part, {})
        weights[layer] = {"kernel": params[name]["kernel"]}
        weights[f"{layer}_bn"] = {"scale": params[name]["scale"], "bias": params[name]["bias"]}
        statistics[f"{layer}_bn"] = state["statistics"][name]
    return translated


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_resnet18_agrees_with_the_same_network_in_flax(train):
    linen = pytest.importorskip("flax.linen", reason="the reference is written in Flax, which is missing")
    network, reference = ResNet18(n_outputs=10, width=4), linen_resnet18(linen, 10, width=4)
    params, state = scattered(network, IMAGES)
    x = inputs(IMAGES)
    ours, _ = jax.jit(lambda *args: network.apply(*args, train=train))(params, state, x)
    theirs, _ = jax.jit(lambda v, x: reference.apply(v, x, train=train, mutable=["batch_stats"]))(
        linen_variables(params, state), x
    )
    assert np.ptp(theirs, axis=0).min() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_resnet18_has_the_derivative_of_finite_differences(train):
    with enable_x64(True):
        network = ResNet18(n_outputs=3, width=4)
        params, state = scattered(network, IMAGES)
        x = inputs(IMAGES, n=3)
        tangent, _ = scattered(network, IMAGES, seed=3)
        apply = jax.jit(lambda params: network.apply(params, state, x, train=train)[0])
        _, derivative = jax.jit(lambda p, t: jax.jvp(apply, (p,), (t,)))(params, tangent)
        step = 1e-7
        ahead, behind = (apply(jax.tree.map(lambda p, v, t=t: p + t * v, params, tangent)) for t in (step, -step))
        difference = (ahead - behind) / (2 * step)
        assert derivative.dtype == jnp.float64
        np.testing.assert_allclose(derivative, difference, rtol=1e-5, atol=1e-5 * np.abs(derivative).max())


@pytest.fixture(scope="module")
def moved_resnet():
    """Four training-mode passes: batch statistics of the stem, and the state after each."""
    network = ResNet18(n_outputs=3, width=2)
    params, state = initial(network, IMAGES)
    step = jax.jit(lambda state, x: network.apply(params, state, x, train=True)[1])
    seen, states = [], [state]
    for k in range(4):
        x = inputs(IMAGES, seed=k) * (1 + k) + k
        h = jax.lax.conv_general_dilated(
            x, params["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = np.asarray(h, np.float64).reshape(-1, 2)
        seen.append({"mean": h.mean(0), "var": h.var(0)})
        states.append(step(states[-1], x))
    return seen, states


@pytest.mark.parametrize("moment", ["mean", "var"])
def test_after_one_step_the_statistics_are_those_of_the_batch(moved_resnet, moment):
    seen, states = moved_resnet
    np.testing.assert_allclose(states[1]["statistics"]["stem"][moment], seen[0][moment], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("moment", ["mean", "var"])
def test_the_statistics_are_an_exponential_average_without_the_bias_of_its_start(moved_resnet, moment):
    seen, states = moved_resnet
    for k in range(1, 5):
        weights = DECAY ** np.arange(k)[::-1] * (1 - DECAY) / (1 - DECAY**k)
        expected = sum(w * batch[moment] for w, batch in zip(weights, seen, strict=False))
        assert weights.sum() == pytest.approx(1)
        assert states[k]["n_steps"] == k
        found = states[k]["statistics"]["stem"][moment]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_statistics_alone():
    network = ResNet18(n_outputs=3, width=2)
    variables = scattered(network, IMAGES)
    _, state = jax.jit(network.apply)(*variables, inputs(IMAGES))
    jax.tree.map(np.testing.assert_array_equal, state, variables.state)


def test_the_average_is_no_path_for_gradients():
    network = ResNet18(n_outputs=3, width=2)
    params, state = scattered(network, IMAGES)

    def total(params):
        statistics = network.apply(params, state, inputs(IMAGES), train=True)[1]["statistics"]
        return sum(leaf.sum() for leaf in jax.tree.leaves(statistics))

    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params)))


def test_params_dtype_without_floating_parameters_is_the_default():
    assert params_dtype({}) == jnp.result_type(float)
    assert params_dtype({"steps": jnp.zeros(2, int), "kernel": jnp.zeros(2, jnp.bfloat16)}) == jnp.bfloat16


@pytest.mark.parametrize("network", [CNN(n_outputs=3), ResNet18(n_outputs=3)])
def test_flat_inputs_to_an_image_network_are_named_as_the_mistake(network):
    with pytest.raises(ValueError, match=r"needs images.*got \(64,\).*input_shape=\(h, w, c\)"):
        network.init(KEY, (64,))


@pytest.mark.parametrize("network", [MLP(), CNN(), ResNet18(width=2)])
def test_a_missing_number_of_outputs_is_asked_for(network):
    with pytest.raises(ValueError, match=rf"write {type(network).__name__}\(n_outputs=\.\.\.\)"):
        jax.eval_shape(lambda: network.init(KEY, IMAGES))


@pytest.mark.parametrize("network", [MLP, CNN])
def test_an_unknown_activation_is_answered_with_the_known_ones(network):
    with pytest.raises(ValueError, match="unknown activation 'relux'; known are 'relu', 'gelu', 'silu'"):
        network(activation="relux")


def test_widths_and_strides_have_to_match():
    with pytest.raises(ValueError, match="2 widths and 3 strides"):
        CNN(widths=(4, 4), strides=(1, 1, 1))


@pytest.mark.parametrize("widths", [(0,), (-4,), 4, ("a",), None])
def test_widths_have_to_be_positive_integers(widths):
    with pytest.raises(ValueError, match="widths must be"):
        MLP(widths=widths)


def test_a_bare_function_without_init_asks_for_its_parameters():
    with pytest.raises(ValueError, match="give them instead"):
        Stateless(affine).init(KEY, (4,))


@pytest.mark.parametrize(
    "apply_fn, got",
    [
        (lambda params, x: (x @ params)[:, 0], r"\(5,\)"),
        (lambda params, x: (x @ params).T, r"\(3, 5\)"),
        (lambda params, x: (x @ params)[..., None], r"\(5, 3, 1\)"),
        (lambda params, x: (x @ params, x), r"\(\(5, 3\), \(5, 4\)\)"),
    ],
    ids=["a vector", "transposed", "rank 3", "a pair"],
)
def test_what_is_not_a_matrix_of_logits_is_refused(apply_fn, got):
    with pytest.raises(ValueError, match=rf"must return logits of shape \(n, C\), got {got} from"):
        check_model(Model(Stateless(apply_fn), Variables(jnp.ones((4, 3)))), (4,))
