"""Networks of other libraries: their own logits and statistics, and all that is asked of ours."""

import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk.networks.adapters import from_equinox, from_haiku, from_stax
from ntkrobust_sk.networks.flax_adapters import from_flax, from_nnx
from ntkrobust_sk.networks.foreign import MODE_ARGUMENTS
from ntkrobust_sk.networks.inputs import n_params
from ntkrobust_sk.networks.model import Model, Network, Variables, check_model

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 6, 5, 2)).astype(jnp.result_type(float))
FLAT = X.reshape(4, -1)[:, :7]


def library(name):
    return pytest.importorskip(name, reason=f"{name} is missing: pip install 'ntkrobust_sk[nets]'")


@dataclasses.dataclass
class Case:
    """A model, and what its own library computes for it."""

    model: Model
    x: Any
    evaluation: Any
    training: Any
    trained_state: Any = ()


def linen_case():
    linen = library("flax.linen")

    class Net(linen.Module):
        widths: Any

        @linen.compact
        def __call__(self, x, train):
            h = linen.Conv(self.widths[0], (3, 3), use_bias=False)(x)
            h = jnp.tanh(linen.BatchNorm(not train)(h))
            return linen.Dense(3)(h.mean((1, 2)))

    module = Net([4])
    network = from_flax(module)
    params, state = network.init(KEY, X.shape[1:])
    variables = {"params": params, **state}
    training, trained = module.apply(variables, X, train=True, mutable=["batch_stats"])
    evaluation = module.apply(variables, X, train=False)
    return Case(Model(network, Variables(params, state)), X, evaluation, training, trained)


def nnx_case():
    nnx = library("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(jnp.tanh(self.norm(self.conv(x))).mean((1, 2)))

    module = Net(nnx.Rngs(0))
    model = from_nnx(module)
    module.eval()
    evaluation = module(X)
    module.train()
    training = module(X)
    return Case(model, X, evaluation, training, nnx.state(module, nnx.BatchStat))


def equinox_case():
    eqx = library("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        layers: list

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.conv = eqx.nn.Conv2d(2, 4, 3, use_bias=False, key=keys[0])
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
            self.layers = [eqx.nn.Linear(4, 5, key=keys[1]), eqx.nn.Linear(5, 3, key=keys[2])]

        def __call__(self, x, state):
            h, state = self.norm(self.conv(x), state)
            h = self.layers[0](jnp.tanh(h).mean((1, 2)))
            return self.layers[1](h), state

    module, state = eqx.nn.make_with_state(Net)(KEY)
    model = from_equinox(module, state)
    axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    x = X.transpose(0, 3, 1, 2)
    evaluation, _ = jax.vmap(eqx.nn.inference_mode(module), **axes)(x, state)
    training, trained = jax.vmap(module, **axes)(x, jax.tree.map(jnp.asarray, state))
    return Case(model, x, evaluation, training, trained)


def haiku_case():
    hk = library("haiku")

    def function(x, is_training):
        h = hk.Conv2D(4, 3, with_bias=False)(x)
        h = jnp.tanh(hk.BatchNorm(True, True, 0.9)(h, is_training))
        return hk.Linear(3)(h.mean((1, 2)))

    transformed = hk.transform_with_state(function)
    network = from_haiku(transformed)
    params, state = network.init(KEY, X.shape[1:])
    evaluation, _ = transformed.apply(params, state, None, X, is_training=False)
    training, trained = transformed.apply(params, state, None, X, is_training=True)
    return Case(Model(network, Variables(params, state)), X, evaluation, training, trained)


def stax_case():
    from jax.example_libraries import stax

    layers = stax.Conv(4, (3, 3), padding="SAME"), stax.Tanh, stax.Flatten, stax.Dense(3)
    init_fn, apply_fn = stax.serial(*layers)
    network = from_stax(init_fn, apply_fn)
    model = Model(network, network.init(KEY, X.shape[1:]))
    logits = apply_fn(model.variables.params, X)
    return Case(model, X, logits, logits)


@pytest.fixture(scope="module", params=[linen_case, nnx_case, equinox_case, haiku_case, stax_case])
def case(request):
    return request.param()


@jax.jit
def logits(model, x):
    return model(x)


@jax.jit
def train_step(model, x):
    return model.network.apply(*model.variables, x, train=True)


@pytest.mark.slow
def test_in_evaluation_a_model_computes_what_its_library_does(case):
    assert isinstance(case.model.network, Network)
    assert check_model(case.model, case.x.shape[1:]) == 3
    assert np.ptp(case.evaluation, axis=0).min() > 1e-3
    np.testing.assert_allclose(logits(case.model, case.x), case.evaluation, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_in_training_logits_and_statistics_are_those_of_the_library(case):
    found, state = train_step(case.model, case.x)
    np.testing.assert_allclose(found, case.training, rtol=1e-4, atol=1e-4)
    leaves, expected = jax.tree.leaves(state), jax.tree.leaves(case.trained_state)
    assert len(leaves) == len(expected)
    for leaf, other in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_statistics_move_in_training_alone(case):
    network, (params, state) = case.model.network, case.model.variables
    _, kept = jax.jit(network.apply)(params, state, case.x)
    _, moved = train_step(case.model, case.x)
    assert jax.tree.structure(kept) == jax.tree.structure(moved) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    before, after = jax.tree.leaves(state), jax.tree.leaves(moved)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True) if np.ndim(a))


def test_gradients_reach_every_parameter(case):
    network, (params, state) = case.model.network, case.model.variables

    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: (network.apply(params, state, case.x)[0] ** 2).sum())(params)

    leaves = jax.tree.leaves(gradient(params))
    assert len(leaves) >= 4
    assert sum(leaf.size for leaf in leaves) == n_params(params)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves)


def test_new_weights_reuse_the_compiled_code(case):
    traces = []

    @jax.jit
    def counted(model, x):
        traces.append(1)
        return model(x)

    network, (params, state) = case.model.network, case.model.variables
    first = counted(case.model, case.x)
    second = counted(Model(network, Variables(jax.tree.map(lambda p: 2 * p, params), state)), case.x)
    third = counted(Model(dataclasses.replace(network), Variables(params, state)), case.x)
    assert len(traces) == 1
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, third)


def test_models_travel_to_workers_by_cloudpickle(case):
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is missing; joblib brings it")
    model = cloudpickle.loads(cloudpickle.dumps(case.model))
    np.testing.assert_allclose(model(case.x), case.evaluation, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_models_pickle_where_their_library_does():
    linen, nnx, eqx = library("flax.linen"), library("flax.nnx"), library("equinox")
    network = from_flax(linen.BatchNorm(use_running_average=True))
    models = [
        Model(network, network.init(KEY, (7,))),
        from_nnx(nnx.BatchNorm(7, rngs=nnx.Rngs(0))),
        from_equinox(eqx.nn.Linear(7, 3, key=KEY)),
    ]
    for model in models:
        twin = pickle.loads(pickle.dumps(model))
        assert twin.network == model.network and hash(twin.network) == hash(model.network)
        np.testing.assert_array_equal(twin(FLAT), model(FLAT))


@pytest.mark.slow
def test_importing_the_package_imports_no_other_network_library():
    code = (
        "import sys, ntkrobust_sk, ntkrobust_sk.networks.adapters\n"
        "print(sorted(sys.modules.keys() & {'flax', 'equinox', 'haiku'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "adapter, name",
    [
        (from_flax, "flax.linen"),
        (from_nnx, "flax.nnx"),
        (from_equinox, "equinox"),
        (from_haiku, "haiku"),
    ],
)
def test_a_missing_library_is_named_with_its_cure(monkeypatch, adapter, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'ntkrobust_sk\[nets\]'"):
        adapter(None)


@pytest.mark.parametrize(
    "adapter, name",
    [
        (from_flax, "flax.linen"),
        (from_nnx, "flax.nnx"),
        (from_equinox, "equinox"),
        (from_haiku, "haiku"),
    ],
)
def test_what_is_not_of_the_library_is_refused(adapter, name):
    library(name)
    with pytest.raises(TypeError, match=rf"{adapter.__name__} needs .*, got <function library"):
        adapter(library)


@pytest.mark.parametrize("argument", MODE_ARGUMENTS)
def test_linen_modules_are_told_their_mode_by_any_usual_name(argument):
    linen = library("flax.linen")
    source = f"def __call__(self, x, {argument}): return x + 1 if {argument} else x"
    namespace = {}
    exec(source, namespace)
    network = from_flax(type("Mode", (linen.Module,), namespace)())
    says = {train: bool(network.apply({}, {}, jnp.zeros(()), train=train)[0]) for train in (False, True)}
    assert says == {True: MODE_ARGUMENTS[argument], False: not MODE_ARGUMENTS[argument]}


def test_equal_linen_modules_are_equal_networks_even_with_lists():
    linen = library("flax.linen")

    def build():
        return linen.Sequential([linen.Dense(5), linen.relu, linen.Sequential([linen.Dense(3)])])

    assert from_flax(build()) == from_flax(build())
    assert hash(from_flax(build())) == hash(from_flax(build()))
    variables = build().init(KEY, FLAT)
    model = Model(from_flax(build()), Variables(variables["params"]))
    np.testing.assert_allclose(model(FLAT), build().apply(variables, FLAT), rtol=1e-6)


def test_a_linen_module_that_occurs_twice_keeps_one_set_of_weights():
    linen = library("flax.linen")
    layer = linen.Dense(7)
    params, _ = from_flax(linen.Sequential([layer, jnp.tanh, layer])).init(KEY, (7,))
    assert n_params(params) == 7 * 7 + 7


def test_configuration_that_cannot_be_hashed_is_refused():
    linen, eqx = library("flax.linen"), library("equinox")

    class Scaled(linen.Module):
        scale: Any

        def __call__(self, x):
            return x * self.scale

    class Tagged(eqx.Module):
        tag: Any

        def __call__(self, x):
            return x

    with pytest.raises(TypeError, match="must be hashable"):
        from_flax(Scaled(np.ones(3)))
    with pytest.raises(TypeError, match=r"must be hashable.*unhashable type: 'set'"):
        from_equinox(Tagged({"a"}))


def test_linen_dropout_is_off_in_evaluation_and_needs_a_key_in_training():
    linen = library("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, deterministic):
            return linen.Dense(3)(linen.Dropout(0.5)(x, deterministic))

    network = from_flax(Net())
    params, state = network.init(KEY, (7,))
    expected = FLAT @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(network.apply(params, state, FLAT)[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"asks for a random key.*except in training"):
        network.apply(params, state, FLAT, train=True)


def test_equinox_dropout_is_off_in_evaluation_and_refused_in_training():
    eqx = library("equinox")
    linear = eqx.nn.Linear(7, 3, key=KEY)
    model = from_equinox(eqx.nn.Sequential([eqx.nn.Dropout(0.5), linear]))
    np.testing.assert_allclose(model(FLAT), jax.vmap(linear)(FLAT), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="requires a key"):
        model.network.apply(*model.variables, FLAT, train=True)


def test_haiku_dropout_is_refused_in_training():
    hk = library("haiku")

    def function(x, is_training):
        h = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(3)(h)

    network = from_haiku(hk.transform(function))
    params, state = network.init(KEY, (7,))
    assert network.apply(params, state, FLAT)[0].shape == (4, 3)
    with pytest.raises(ValueError, match="non-None PRNGKey"):
        network.apply(params, state, FLAT, train=True)


def test_nnx_dropout_draws_from_keys_in_the_state():
    nnx = library("flax.nnx")
    model = from_nnx(nnx.Sequential(nnx.Linear(7, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))))
    network, (params, state) = model.network, model.variables
    once, moved = network.apply(params, state, FLAT, train=True)
    again, _ = network.apply(params, state, FLAT, train=True)
    later, _ = network.apply(params, moved, FLAT, train=True)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, later)
    assert (np.asarray(model(FLAT)) != 0).all()


def test_an_nnx_module_is_left_as_it_was_and_takes_weights_back():
    nnx = library("flax.nnx")
    module = nnx.BatchNorm(7, rngs=nnx.Rngs(0))
    model = from_nnx(module)
    network, (params, state) = model.network, model.variables
    network.apply(params, state, FLAT, train=True)
    assert module.use_running_average is False
    np.testing.assert_array_equal(module.mean[...], np.zeros(7))
    nnx.update(module, jax.tree.map(lambda leaf: leaf + 1, params))
    np.testing.assert_array_equal(module.bias[...], np.ones(7))
    np.testing.assert_array_equal(model.variables.params["bias"], np.zeros(7))


def test_equinox_modules_are_compared_by_value():
    eqx = library("equinox")

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        tags: list = eqx.field(static=True)
        scale: float = 1.0

        def __call__(self, x):
            return self.scale * self.linear(x)

    def network(seed, *fields):
        return from_equinox(Net(eqx.nn.Linear(7, 3, key=jax.random.key(seed)), *fields)).network

    assert network(0, ["a"]) == network(1, ["a"])
    assert hash(network(0, ["a"])) == hash(network(1, ["a"]))
    assert network(0, ["a"]) != network(0, ["b"])
    assert network(0, ["a"]) != network(0, ["a"], 2.0)


def test_an_equinox_state_outlives_the_training_step():
    eqx = library("equinox")

    class Counting(eqx.Module):
        count: eqx.nn.StateIndex

        def __init__(self):
            self.count = eqx.nn.StateIndex(jnp.zeros(()))

        def __call__(self, x, state):
            count = state.get(self.count) + 1
            return count * x, state.set(self.count, count)

    module, state = eqx.nn.make_with_state(Counting)()
    model = from_equinox(module, state, batched=True)
    network, variables = model.network, model.variables
    for _ in range(2):
        once, moved = network.apply(*variables, FLAT, train=True)
        np.testing.assert_array_equal(once, FLAT)
    np.testing.assert_array_equal(network.apply(variables.params, moved, FLAT)[0], 2 * FLAT)
    assert network.apply(*variables, FLAT)[1] is variables.state


def test_an_equinox_module_may_take_the_whole_batch():
    eqx = library("equinox")

    class Batched(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            return jax.vmap(self.linear)(x)

    linear = eqx.nn.Linear(7, 3, key=KEY)
    model = from_equinox(Batched(linear), batched=True)
    np.testing.assert_array_equal(model(FLAT), from_equinox(linear)(FLAT))


def test_the_floating_arrays_of_an_equinox_module_are_its_parameters_and_no_others():
    eqx = library("equinox")

    class Net(eqx.Module):
        weight: jax.Array
        places: np.ndarray
        picked: jax.Array
        power: float

        def __call__(self, x):
            return self.weight * x[self.picked] ** self.power + self.places

    module = Net(jnp.ones(3), np.arange(3), jnp.array([4, 5, 6]), 2.0)
    model = from_equinox(module)
    params, (fixed, _) = model.variables
    assert n_params(params) == 3
    np.testing.assert_allclose(model(FLAT), FLAT[:, 4:] ** 2 + np.arange(3), rtol=1e-5)
    again = eqx.combine(params, fixed, model.network.static)
    np.testing.assert_array_equal(again(FLAT[0]), module(FLAT[0]))


@pytest.mark.parametrize("adapter", ["from_nnx", "from_equinox"])
def test_a_built_module_draws_no_weights(adapter):
    if adapter == "from_nnx":
        nnx = library("flax.nnx")
        model = from_nnx(nnx.Linear(7, 3, rngs=nnx.Rngs(0)))
    else:
        model = from_equinox(library("equinox").nn.Linear(7, 3, key=KEY))
    with pytest.raises(ValueError, match=f"use the Model that {adapter} returned"):
        model.network.init(KEY, (7,))


@pytest.mark.parametrize("without_rng", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_every_kind_of_haiku_transform_is_understood(stateful, without_rng):
    hk = library("haiku")
    transformed = (hk.transform_with_state if stateful else hk.transform)(lambda x: hk.Linear(3)(x))
    if without_rng:
        transformed = hk.without_apply_rng(transformed)
    network = from_haiku(transformed)
    params, state = network.init(KEY, (7,))
    found, _ = network.apply(params, state, FLAT)
    np.testing.assert_allclose(found, FLAT @ params["linear"]["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fresh_haiku_statistics_are_those_of_standard_normal_inputs():
    hk = library("haiku")
    network = from_haiku(
        hk.transform_with_state(lambda x, is_training: hk.BatchNorm(True, True, 0.9)(x, is_training))
    )
    params, state = network.init(KEY, (2000,))
    found, _ = network.apply(params, state, np.ones((1, 2000), X.dtype))
    assert np.median(found) == pytest.approx(1.0, abs=0.1)


def test_a_haiku_function_that_always_moves_its_state_does_so_in_training_alone():
    hk = library("haiku")

    def counting(x):
        count = hk.get_state("count", (), init=jnp.zeros) + 1
        hk.set_state("count", count)
        return count * x

    network = from_haiku(hk.transform_with_state(counting))
    params, state = network.init(KEY, (7,))
    assert network.apply(params, state, FLAT)[1] is state
    _, moved = network.apply(params, state, FLAT, train=True)
    np.testing.assert_array_equal(network.apply(params, moved, FLAT)[0], 2 * FLAT)


def test_a_neural_tangents_triple_is_a_pair_with_a_kernel_to_spare():
    from jax.example_libraries import stax

    init_fn, apply_fn = stax.Dense(3)
    assert from_stax(init_fn, apply_fn, lambda x1, x2: None) == from_stax(init_fn, apply_fn)


def test_maps_without_pooling_are_no_logits():
    linen = library("flax.linen")
    network = from_flax(linen.Conv(3, (3, 3)))
    with pytest.raises(ValueError, match=r"logits of shape \(n, C\), got \(5, 6, 5, 3\)"):
        check_model(Model(network, network.init(KEY, X.shape[1:])), X.shape[1:])
