"""Saved and loaded, by whatever means, an estimator gives the same answers to the bit."""

import copy
import dataclasses
import io
import pickle
import tempfile

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

import ntkrobust_sk
from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Box,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    MixedPrecision,
    Model,
    Normalized,
    RobustFeatureSelector,
    SavedFileError,
    TangentFeatures,
    Variables,
    robust_accuracy,
)
from ntkrobust_sk._portable import SavedArray
from ntkrobust_sk.cli.saved_models import TRUSTED, load_estimator

rng = np.random.default_rng(0)
X = rng.uniform(size=(20, 4)).astype(np.float32)
Y = np.where(X[:, 0] > X[:, 1], "b", "a")
ATTACK = PGD(0.1, n_steps=1)


def small(dtype=jnp.float32):
    network = MLP(n_outputs=2, widths=(3,), activation="tanh")
    variables = network.init(jax.random.key(0), (4,))
    return Model(network, jax.tree.map(lambda leaf: leaf.astype(dtype), variables))


def trainer(**options):
    return AdversarialKernelTrainer(MLP(widths=(3,)), max_epochs=1, random_state=0, **options).fit(X, Y)


FITTED = {
    "trainer": trainer,
    "linearised trainer": lambda: trainer(dynamics="centered", attack=ATTACK),
    "primal machine": lambda: EmpiricalNTKClassifier(small(), alpha=0.1).fit(X, Y),
    "dual machine": lambda: EmpiricalNTKClassifier(small(), kernel="class").fit(X[[0, -1]], ["a", "b"]),
    "machine of a frozen trainer": lambda: EmpiricalNTKClassifier(FrozenEstimator(trainer())).fit(X, Y),
    "machine by descent": lambda: EmpiricalNTKClassifier(
        small(), solver="sgd", max_epochs=1, attack=PGD(0.1, 1, bounds=Box(0, 1, mask=[True, True, False, True]))
    ).fit(X, Y),
    "regressor": lambda: EmpiricalNTKRegressor(small(), kernel="pseudo").fit(X, X[:, :2] * 3),
    "cross-validated machine": lambda: EmpiricalNTKClassifierCV(small(), kernel="pseudo").fit(X, Y),
    "cross-validated regressor": lambda: EmpiricalNTKRegressorCV(small()).fit(X, X[:, :2]),
    "normalised network": lambda: EmpiricalNTKClassifier(
        Model(Normalized(small().network, (0.5,), (0.3,)), small().variables)
    ).fit(X, Y),
    "network in mixed precision": lambda: trainer_of(
        Model(MixedPrecision(small().network, "bf16"), small().variables)
    ),
    "trainer in mixed precision": lambda: trainer(precision="bf16"),
    "machine in mixed precision": lambda: EmpiricalNTKClassifier(small(), alpha=0.1, precision="tf32").fit(X, Y),
    "features": lambda: TangentFeatures(small()).fit(X),
    "projected features": lambda: TangentFeatures(small(), n_components=5, random_state=0).fit(X),
    "selector": lambda: RobustFeatureSelector(
        small(), n_features=2, n_candidates=3, attack=ATTACK, random_state=0
    ).fit(X, Y),
    "pipeline": lambda: make_pipeline(MinMaxScaler(), TangentFeatures(small()), LogisticRegression()).fit(X, Y),
    "bfloat16 network": lambda: trainer_of(small(jnp.bfloat16)),
    "float16 network": lambda: trainer_of(small(jnp.float16)),
    "network with NumPy's arrays": lambda: trainer_of(
        Model(small().network, Variables(jax.tree.map(np.asarray, small().variables.params)))
    ),
}


def trainer_of(model):
    return AdversarialKernelTrainer(model, max_epochs=0, random_state=0).fit(X, Y)


def through_skops(estimator):
    data = skops.io.dumps(estimator)
    return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


def through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


def through_cloudpickle(estimator):
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    return pickle.loads(cloudpickle.dumps(estimator))


def through_save(thing):
    if isinstance(thing, Pipeline):
        pytest.skip("pipelines of scikit-learn have no save")
    with tempfile.TemporaryDirectory() as folder:
        thing.save(f"{folder}/thing.ntk")
        return type(thing).load(f"{folder}/thing.ntk")


WAYS = {
    "skops": through_skops,
    "pickle": lambda estimator: pickle.loads(pickle.dumps(estimator)),
    "joblib": through_joblib,
    "cloudpickle": through_cloudpickle,
    "deepcopy": copy.deepcopy,
    "save": through_save,
}


def answers(estimator):
    """Everything that it says of X, as arrays."""
    names = ("decision_function", "predict_proba", "predict", "transform", "perturb")
    found = {name: getattr(estimator, name)(X) for name in names[:4] if hasattr(estimator, name)}
    if hasattr(estimator, "perturb"):
        y = estimator.classes_[np.arange(20) % 2] if hasattr(estimator, "classes_") else X[:, :2]
        found["perturb"] = estimator.perturb(X, y, ATTACK)
    return found


@pytest.fixture(scope="module")
def fitted():
    made = {}
    return lambda name: made.setdefault(name, FITTED[name]())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FITTED)
def test_a_loaded_estimator_answers_as_before_to_the_bit(name, way, fitted):
    estimator = fitted(name)
    again = WAYS[way](estimator)
    expected, found = answers(estimator), answers(again)
    assert expected and set(found) == set(expected)
    for what in expected:
        np.testing.assert_array_equal(found[what], expected[what], strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", [through_skops, through_save])
@pytest.mark.parametrize("name", ["trainer", "machine of a frozen trainer", "machine by descent", "pipeline"])
def test_a_loaded_estimator_can_be_cloned_and_fitted_again(name, way, fitted):
    again = clone(way(fitted(name))).fit(X, Y)
    np.testing.assert_array_equal(again.predict(X), fitted(name).predict(X))


@pytest.mark.slow
def test_a_loaded_model_keeps_its_dtypes_and_the_kinds_of_its_arrays():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": np.ones(2, np.float16), "k": jax.random.key(3), "n": 4}
    params |= {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "u": jnp.ones((), jnp.bfloat16)}
    model = Model(small().network, Variables(params, (jnp.arange(3),)))
    for way in WAYS.values():
        found = way(model).variables
        assert jax.tree.structure(found) == jax.tree.structure(model.variables)
        for name, leaf in params.items():
            assert isinstance(found.params[name], jax.Array) == isinstance(leaf, jax.Array)
            assert getattr(found.params[name], "dtype", None) == getattr(leaf, "dtype", None)
        np.testing.assert_array_equal(jax.random.key_data(found.params["k"]), jax.random.key_data(params["k"]))
        np.testing.assert_array_equal(found.params["f"], params["f"])


@pytest.mark.slow
def test_nothing_of_jax_is_in_what_is_saved(fitted):
    for name in FITTED:
        assert not any("jax" in kind for kind in skops.io.get_untrusted_types(data=skops.io.dumps(fitted(name))))


def test_numbers_of_64_bits_loaded_where_jax_keeps_32_are_told_of():
    saved = SavedArray(np.ones(2), "float64", "jax")
    with pytest.warns(UserWarning, match="write jax.config.update"):
        Model.__new__(Model).__setstate__({"network": MLP(2), "variables": Variables({"w": saved})})


# Files


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in FITTED if name not in ("features", "projected features", "selector")]
)
def test_own_types_in_a_file_of_skops_are_taken_as_trusted(name, fitted, tmp_path):
    skops.io.dump(fitted(name), tmp_path / "model.SKOPS")
    again = load_estimator(tmp_path / "model.SKOPS")
    np.testing.assert_array_equal(again.predict(X), fitted(name).predict(X))


def test_trusted_types_are_this_library_s_alone():
    assert {kind.__module__.split(".")[0] for kind in TRUSTED} == {"ntkrobust_sk"}


def test_public_settings_that_an_estimator_may_hold_are_trusted():
    packages = "attacks", "kernels", "networks", "solvers", "estimators"
    public = [getattr(ntkrobust_sk, name) for name in ntkrobust_sk.__all__]
    settings = [
        kind for kind in public if dataclasses.is_dataclass(kind) and kind.__module__.split(".")[1] in packages
    ]
    assert len(settings) > 20
    assert set(settings) - set(TRUSTED) == set()


class Foreign(LogisticRegression):
    def __setstate__(self, state):
        raise AssertionError("it was built")


@pytest.mark.slow
def test_a_foreign_type_among_own_ones_is_refused_and_not_built(tmp_path):
    kept = trainer()
    kept.foreign_ = Foreign().fit(X, Y)
    skops.io.dump(kept, tmp_path / "model.skops")
    with pytest.raises(ValueError, match=r"model\.skops cannot be read by skops.*Foreign"):
        load_estimator(tmp_path / "model.skops")


def test_what_a_file_holds_decides_and_not_how_it_is_named(tmp_path, fitted):
    said = []
    skops.io.dump(fitted("trainer"), tmp_path / "really-skops.joblib")
    load_estimator(tmp_path / "really-skops.joblib", said.append)
    assert said == []
    joblib.dump(fitted("trainer"), tmp_path / "model.pkl", compress=3)
    load_estimator(tmp_path / "model.pkl", said.append)
    assert len(said) == 1 and "model.pkl with joblib runs whatever code is in it" in said[0]


@pytest.mark.parametrize("suffix", [".skops", ".SKOPS", ".Skops"])
def test_a_pickle_that_is_named_as_a_skops_file_is_not_loaded(suffix, tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise AssertionError('it was run')",))

    (tmp_path / f"model{suffix}").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="named as a skops file, but is none"):
        load_estimator(tmp_path / f"model{suffix}")
    for name in ("model.ntk", "model.NTK"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(SavedFileError, match=rf"{name} cannot be loaded: it is no zip archive"):
            load_estimator(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer", "dual machine", "regressor"])
@pytest.mark.parametrize("file", ["model.ntk", "model.joblib", "model.skops", "model"])
def test_a_file_of_save_is_known_by_what_it_holds(name, file, fitted, tmp_path):
    said = []
    fitted(name).save(tmp_path / file)
    again = load_estimator(tmp_path / file, said.append)
    np.testing.assert_array_equal(again.predict(X), fitted(name).predict(X), strict=True)
    assert said == []


def test_a_saved_model_is_no_estimator(tmp_path):
    small().save(tmp_path / "model.ntk")
    with pytest.raises(ValueError, match=r"model\.ntk holds Model, which is no estimator that predicts"):
        load_estimator(tmp_path / "model.ntk")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x05", b"<html>", b"\x93NUMPY" + bytes(40)])
def test_what_is_no_model_is_refused_by_name(content, tmp_path):
    for name in ("model.skops", "model.joblib", "model.ntk"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_estimator(tmp_path / name)


@pytest.mark.slow
def test_no_changed_byte_of_a_file_of_skops_goes_unseen(tmp_path, fitted):
    file = tmp_path / "model.skops"
    skops.io.dump(fitted("primal machine"), file)
    good, expected = file.read_bytes(), fitted("primal machine").decision_function(X)
    refused = 0
    for at in np.random.default_rng(0).integers(len(good), size=60):
        changed = bytearray(good)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        try:
            np.testing.assert_array_equal(load_estimator(file).decision_function(X), expected, strict=True)
        except ValueError as error:
            refused += 1
            assert "model.skops" in str(error)
    assert refused > 30


@pytest.mark.slow
def test_a_loaded_estimator_is_as_robust_as_before(fitted):
    estimators = fitted("primal machine"), through_skops(fitted("primal machine"))
    before, after = (robust_accuracy(estimator, X, Y, ATTACK) for estimator in estimators)
    assert before == after
