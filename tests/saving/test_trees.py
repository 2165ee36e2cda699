"""What a saved file may hold comes back to the bit, of the same types; all else is refused by its place."""

import dataclasses
import functools
import json
from collections import OrderedDict
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

import ntkrobust_sk
from ntkrobust_sk import (
    CNN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Box,
    EmpiricalNTKClassifier,
    Linearized,
    MixedPrecision,
    Model,
    Normalized,
    ResNet18,
    Stateless,
    TangentFeatures,
    Variables,
    linearize,
)
from ntkrobust_sk.saving import load, saved_as
from ntkrobust_sk.saving.registry import OWN, REGISTERED, found, name_of
from ntkrobust_sk.saving.tree import encoded

rng = np.random.default_rng(0)
X = rng.uniform(size=(12, 3)).astype(np.float32)
Y = np.arange(12) % 2


@pytest.fixture
def through(tmp_path):
    """Saves a value in the place of a model's parameters, and loads it."""

    def through(value):
        Model(MLP(2), Variables(value)).save(tmp_path / "value.ntk")
        return Model.load(tmp_path / "value.ntk").variables.params

    return through


@pytest.fixture(autouse=True)
def registry():
    """What a test registers is forgotten."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def same(one, two):
    """Tell whether two values have the same types and bits."""
    if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        return one.dtype == two.dtype and same(jax.random.key_data(one), jax.random.key_data(two))
    if isinstance(one, jax.Array):
        return isinstance(two, jax.Array) and same(np.asarray(one), np.asarray(two))
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        if one.dtype != two.dtype or one.shape != two.shape or (one.size and one.strides != two.strides):
            return False
        return same(one.tolist(), two.tolist()) if one.dtype == object else one.tobytes() == two.tobytes()
    if isinstance(one, np.generic):
        return one.dtype == two.dtype and one.tobytes() == two.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return same(list(one.items()), list(two.items()))
    return repr(one) == repr(two)


DTYPES = ["bool", "complex64", "complex128", "<U3", "S2", "M8[D]", "m8[ns]", ">f4", ">i8", ">U2", "float16"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float32", "float64"]
DTYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3b11fnuz]
DTYPES += [ml_dtypes.int4]


def filled(dtype, shape=(2, 3)):
    dtype, n = np.dtype(dtype), int(np.prod(shape))
    if dtype.kind in "US":
        return np.array([["", "ab", "ä"][i % 3] if dtype.kind == "U" else b"x" * (i % 3) for i in range(n)], dtype)
    return np.arange(n).astype(np.int64).astype(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_keep_dtype_shape_order_and_bits(dtype, through):
    whole = filled(dtype).reshape(2, 3)
    arrays = {"c": whole, "f": np.asfortranarray(whole), "none": whole[:0], "one": whole[0, 1:2].reshape(())}
    found = through(arrays)
    for name, array in arrays.items():
        assert same(found[name], array), name
        assert found[name].flags.writeable and found[name].flags.aligned
    strided = through(whole[:, ::2])
    assert strided.dtype == whole.dtype and (strided == whole[:, ::2]).all()


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32", "bfloat16", "float16", "uint8", "complex64"])
def test_arrays_of_jax_stay_arrays_of_jax(dtype, through):
    array = jnp.arange(6).reshape(2, 3).astype(dtype)
    assert same(array, through(array))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_stay_keys_of_their_implementation(impl, through):
    keys = {"one": jax.random.key(3, impl=impl), "two": jax.random.split(jax.random.key(4, impl=impl))}
    assert same(keys, through(keys))


VALUES = [
    *(None, True, False, 0, -3, 10**40, "", "ä\n\ud800", "type", 1.5, -0.0, 5e-324, 0.1),
    *(float("nan"), float("inf"), -float("inf"), (), [], {}, (1, (2.5, None)), [[], [()]], Fraction(1, 3)),
    {"type": "os.system", "items": [1], 2: (3,), (1, "a"): None, None: 1, np.int64(4): 1.0, True: 5},
    *(np.float32(0.1), np.float64("nan"), np.int8(-3), np.bool_(True), np.str_("é"), np.complex64(1j)),
    *(ml_dtypes.bfloat16(1.5), np.datetime64("2020-01-01"), np.dtype("float32"), np.dtype(ml_dtypes.bfloat16)),
    *(np.dtype(">i4"), np.dtype("<U7"), np.array(["a", None, 3], object), np.array([[(1, 2), [3]]], object)),
    *(np.array("x", object), np.zeros((0, 2), object), np.zeros(3, "<U0"), np.array([np.nan, -np.nan, -0.0])),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back_as_they_were(value, through):
    assert same(value, through(value))
    assert same([value], through([value]))


def test_one_array_that_is_held_twice_is_saved_and_loaded_as_one(through, tmp_path):
    array = np.zeros(10_000)
    once = through([array])
    size = (tmp_path / "value.ntk").stat().st_size
    one, two = through([array, array])
    assert one is two and one is not once[0]
    assert (tmp_path / "value.ntk").stat().st_size < size + 1000


def test_two_arrays_at_places_that_read_alike_are_two(through):
    value = {"a.b": np.zeros(1), "a": {"b": np.ones(1)}, "a (1)": np.full(1, 2.0)}
    assert same(value, through(value))


def test_a_generator_of_seeds_goes_on_where_it_was(through):
    state = np.random.RandomState(0)
    state.standard_normal(3)
    found = through(state)
    np.testing.assert_array_equal(found.standard_normal(5), state.standard_normal(5))


# The library's own classes


BOX = Box((0.0, 1.0, float("-inf")), 9, mask=[True, False, True], integers=[0], one_hot=[(1, 2)])
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Normalized": {"network": MLP(), "mean": (0.5,), "std": (0.25, 1)},
    "MixedPrecision": {"network": Normalized(CNN(), (0,), (1,)), "precision": "tf32"},
    "Linearized": {"network": ResNet18(), "centered": True},
    "Stateless": {"apply_fn": "apply_fn"},
    "CallableKernel": {"function": "kernel"},
    "InfiniteNTK": {"network": "infinite", "kind": "nngp"},
    "Restricted": {"network": MLP(), "params": ("dense_1.kernel",)},
    "Model": {"network": MLP(), "variables": Variables(())},
    "Variables": {"params": (1.5,)},
    "PrimalPredictor": {"kernel": "k", "model": None, "tangents": (), "offset": 0},
    "DualPredictor": {"kernel": "k", "model": None, "x_fit": (), "dual_coef": 0, "offset": 0},
    "ProjectedNTK": {"n_components": 3, "seed": 1, "of": "trace"},
    "Box": {field.name: getattr(BOX, field.name) for field in dataclasses.fields(Box)},
    "FrozenEstimator": {"estimator": TangentFeatures()},
}
ATTACKS = ["PGD", "FGSM", "NFGSM", "APGD", "AutoAttack", "FAB", "FMN", "DDN", "SigmaZero", "Square"]
ARGUMENTS |= {name: {"epsilon": 0.1, "bounds": BOX} for name in ATTACKS}


def apply_fn(params, x):
    return x @ params


def kernel(model, x1, x2):
    return x1 @ x2.T


def infinite(stax):
    return stax.serial(stax.Dense(1))


def linear(a, b):
    return a @ b.T


@pytest.mark.parametrize("name", OWN)
def test_every_name_in_the_table_is_that_of_a_class_that_is_saved(name, through):
    kind = found(name)
    assert kind.__name__ == name and name_of(kind) == name
    saved_as("tests.apply_fn")(apply_fn)
    saved_as("tests.kernel")(kernel)
    saved_as("tests.of_infinite_width")(infinite)
    functions = {"apply_fn": apply_fn, "kernel": kernel, "infinite": infinite}
    given = ARGUMENTS.get(name, {})
    arguments = {k: functions.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    value = kind(**arguments)
    again = through(value)
    assert type(again) is kind and repr(again) == repr(value)
    assert encoded(again) == encoded(value)
    if kind.__eq__ is not object.__eq__:
        assert again == value and hash(again) == hash(value)


def test_an_estimator_of_a_class_that_is_not_registered_is_named(tmp_path):
    trainer = OwnTrainer(MLP(widths=(2,)), max_epochs=0).fit(X, Y)
    with pytest.raises(TypeError, match=r"^OwnTrainer cannot be saved: .*saved_as\('lab\.OwnTrainer'\)"):
        trainer.save(tmp_path / "m.ntk")


@pytest.mark.parametrize("function", [apply_fn, len, np.exp, jax.nn.relu, jax.jit(apply_fn), lambda x: x])
def test_functions_of_python_numpy_and_jax_may_be_registered(function, through):
    saved_as("lab.function")(function)
    assert through(function) is function


@pytest.mark.slow
def test_functions_of_users_are_saved_by_name(tmp_path):
    saved_as("lab.apply")(apply_fn)
    saved_as("lab.linear")(lambda model, a, b: linear(a, b))
    model = Model(Stateless(apply_fn), Variables(jnp.ones((3, 2))))
    model.save(tmp_path / "m.ntk")
    assert Model.load(tmp_path / "m.ntk").network.apply_fn is apply_fn
    machine = EmpiricalNTKClassifier(model, kernel=REGISTERED["lab.linear"]).fit(X, Y)
    machine.save(tmp_path / "k.ntk")
    again = EmpiricalNTKClassifier.load(tmp_path / "k.ntk")
    np.testing.assert_array_equal(again.decision_function(X), machine.decision_function(X), strict=True)
    np.testing.assert_array_equal(clone(again).fit(X, Y).predict(X), machine.predict(X))


# Classes of users


@dataclasses.dataclass(frozen=True)
class Brighter:
    epsilon: float
    norm: str = "linf"
    bounds: tuple | None = None

    def __call__(self, model, x, y, *, key):
        return x + self.epsilon


@dataclasses.dataclass(frozen=True)
class Layers:
    network: Any
    sizes: tuple = (1, 2)


class Pair(NamedTuple):
    first: Any
    second: Any = ()


class OwnTrainer(AdversarialKernelTrainer):
    """A subclass."""


@pytest.mark.slow
def test_registered_classes_are_saved_by_their_names(tmp_path, through):
    for kind in (Brighter, Layers, Pair, OwnTrainer):
        assert saved_as(f"lab.{kind.__name__}")(kind) is kind
    assert through(Layers(MLP(2), (np.int64(3), 4.5))) == Layers(MLP(2), (np.int64(3), 4.5))
    assert same(through(Pair({"w": jnp.ones(2)})).first, {"w": jnp.ones(2)})
    trainer = OwnTrainer(MLP(widths=(2,)), attack=Brighter(0.1), max_epochs=1, random_state=0).fit(X, Y)
    machine = EmpiricalNTKClassifier(FrozenEstimator(trainer)).fit(X, Y)
    machine.save(tmp_path / "m.ntk")
    again = load(tmp_path / "m.ntk")
    assert type(again.estimator.estimator) is OwnTrainer and again.estimator.estimator.attack == Brighter(0.1)
    assert again.estimator is again.estimator_
    np.testing.assert_array_equal(again.decision_function(X), machine.decision_function(X), strict=True)


def test_a_class_that_is_defined_again_takes_the_place_of_the_earlier():
    twin = dataclasses.make_dataclass("Brighter", [("epsilon", float)], frozen=True)
    twin.__module__ = Brighter.__module__
    saved_as("lab.Brighter")(Brighter)
    saved_as("lab.Brighter")(twin)
    assert found("lab.Brighter") is twin
    with pytest.raises(ValueError, match=r"'lab\.Brighter' is that of .*test_trees\.Brighter already; give"):
        saved_as("lab.Brighter")(Layers)


@pytest.mark.parametrize("name", ["Linear", "", ".a", "a.", "a..b", "a.b\n", None, 3, Brighter])
def test_a_user_s_name_has_a_dot(name):
    with pytest.raises(ValueError, match=r"with a dot in it, such as 'lab\.Linear'"):
        saved_as(name)


@pytest.mark.parametrize("thing", [3, "x", dataclasses.make_dataclass("Open", ["a"]), dict, Brighter(0.1)])
def test_what_has_no_fields_is_not_registered(thing):
    with pytest.raises(TypeError, match="saved_as takes a frozen dataclass"):
        saved_as("lab.thing")(thing)
    assert "lab.thing" not in REGISTERED


class Plain:
    def __init__(self):
        self.attack = PGD(0.1)

    def __call__(self, model, x, y, *, key):
        return x


@pytest.mark.parametrize(
    "value, expected",
    [
        (Brighter(0.1), r"register it by @ntkrobust_sk\.saved_as\('lab\.Brighter'\)"),
        (Layers(MLP()), r"saved_as\('lab\.Layers'\)"),
        (Pair(1), r"saved_as\('lab\.Pair'\)"),
        (lambda x: x, r"is a function, which is code; register it under a name"),
        (functools.partial(apply_fn, 1), r"functools\.partial, and files hold numbers, text"),
        (Plain(), r"make it a frozen dataclass"),
        (OwnTrainer(), r"saved_as\('lab\.OwnTrainer'\)"),
        (jax.nn.relu, r"is a function, which is code; register it under a name"),
        (10**4000, r"an integer of .* bits"),
        (np.random.RandomState(np.random.PCG64(0)), r"no RandomState of PCG64"),
        ({1, 2}, r"builtins\.set"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        (b"bytes", r"builtins\.bytes"),
        (np.ma.masked_array([1.0], [True]), "MaskedArray"),
        (np.zeros(2, "i4,f8"), "dtype .* have no form in files"),
        (np.zeros(1, np.longdouble), "dtype .* have no form in files"),
        (jnp.float32, "cannot be saved"),
        (np.random.default_rng(0), "cannot be saved"),
        (np.array([lambda x: x], object), "is a function"),
        (dataclasses.make_dataclass("Other", ["a"])(1), "make it a frozen dataclass"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_saved_is_named_by_its_place(value, expected, through, tmp_path):
    through(1)
    before = (tmp_path / "value.ntk").read_bytes()
    with pytest.raises(TypeError, match=rf"variables\.params\.a\[1\].*{expected}"):
        through({"a": [0, value]})
    assert (tmp_path / "value.ntk").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_holds_itself_is_refused(through):
    value: list = []
    value.append(value)
    with pytest.raises(TypeError, match="nested too deeply, or holds itself"):
        through(value)


def test_an_object_that_is_more_than_its_fields_is_refused(through):
    @saved_as("lab.Counted")
    @dataclasses.dataclass(frozen=True)
    class Counted:
        n: int

        def __post_init__(self):
            object.__setattr__(self, "n", self.n + 1)

    with pytest.raises(TypeError, match="made again of its fields is another"):
        through(Counted(1))

    @saved_as("lab.Strict")
    @dataclasses.dataclass(frozen=True)
    class Strict:
        n: int

        def __init__(self):
            object.__setattr__(self, "n", 1)

    with pytest.raises(TypeError, match="cannot be made again of its fields n: TypeError"):
        through(Strict())


def test_networks_of_other_libraries_say_what_to_do_instead(tmp_path):
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    model = ntkrobust_sk.from_flax(linen.Dense(2), linen.Dense(2).init(jax.random.key(0), X))
    with pytest.raises(
        TypeError, match=r"^network cannot be saved: .*FlaxNetwork.*save_checkpoint.*frozen dataclass"
    ):
        model.save(tmp_path / "m.ntk")
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_are_traced_are_not_saved(tmp_path):
    model = Model(MLP(2), MLP(2).init(jax.random.key(0), (3,)))
    with pytest.raises(TypeError, match=r"variables\.params\.dense_0\.bias is an array that JAX is tracing"):
        jax.jit(lambda model: model.save(tmp_path / "m.ntk"))(model)


@pytest.mark.slow
def test_requests_for_metadata_and_output_are_kept(tmp_path):
    with sklearn.config_context(enable_metadata_routing=True):
        trainer = AdversarialKernelTrainer(MLP(widths=(2,)), max_epochs=0).set_fit_request(sample_weight=True)
        features = TangentFeatures(trainer).set_output(transform="pandas").fit(X, Y)
        features.save(tmp_path / "f.ntk")
        again = TangentFeatures.load(tmp_path / "f.ntk")
        routing = again.estimator.get_metadata_routing()
        assert routing.fit.requests == {"sample_weight": True} and repr(routing.fit.requests)
        assert again.estimator_.get_metadata_routing().fit.requests == {"sample_weight": True}
    assert list(again.transform(X).columns) == list(features.transform(X).columns)


def test_attributes_of_one_s_own_are_saved_or_named(tmp_path):
    trainer = AdversarialKernelTrainer(MLP(widths=(2,)), max_epochs=0, random_state=0).fit(X, Y)
    trainer.notes_ = {"when": "today", "scores": [0.5]}
    trainer.save(tmp_path / "t.ntk")
    assert AdversarialKernelTrainer.load(tmp_path / "t.ntk").notes_ == trainer.notes_
    trainer.notes_ = Plain()
    with pytest.raises(TypeError, match=r"^notes_ cannot be saved"):
        trainer.save(tmp_path / "t.ntk")


@pytest.mark.slow
def test_linearised_models_and_predictors_save_themselves(tmp_path):
    model = linearize(Model(MLP(2), MLP(2).init(jax.random.key(0), (3,))), centered=True)
    model.save(tmp_path / "m.ntk")
    again = Model.load(tmp_path / "m.ntk")
    assert again.network == Linearized(MLP(2), True) and same(again(X), model(X))
    for kernel, kind in [("pseudo", "PrimalPredictor"), ("class", "DualPredictor")]:
        rows = slice(None) if kernel == "pseudo" else [0, 1]
        predictor = EmpiricalNTKClassifier(MixedPrecision(MLP()), kernel=kernel).fit(X[rows], Y[rows]).predictor_
        assert type(predictor).__name__ == kind
        predictor.save(tmp_path / "p.ntk")
        assert same(type(predictor).load(tmp_path / "p.ntk")(X), predictor(X))


def test_trees_are_json():
    tree, arrays = encoded(Model(MLP(2), Variables({"w": jnp.ones(2), "n": float("nan")})))
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree and list(arrays) == ["variables.params.w"]
