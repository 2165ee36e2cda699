"""Saved files: read by others' tools, written whole or not at all, refused by name whatever was done to them."""

import hashlib
import io
import json
import pickle
import re
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Box,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Model,
    Normalized,
    RobustFeatureSelector,
    TangentFeatures,
    Variables,
    _files,
)
from ntkrobust_sk.saving import SavedFileError, load, saved_as
from ntkrobust_sk.saving.archive import ARRAYS, DOCUMENT, MEMBERS, SUMS
from ntkrobust_sk.saving.registry import REGISTERED
from ntkrobust_sk.saving.tensors import DTYPES, parsed, written

DATA = Path(__file__).parents[1] / "data"
MODEL = Model(MLP(n_outputs=2, widths=(3,)), MLP(n_outputs=2, widths=(3,)).init(jax.random.key(0), (4,)))


X_FIT = np.random.default_rng(0).uniform(size=(20, 4)).astype(np.float32)
Y_FIT = np.arange(20) % 2
TRAINER = AdversarialKernelTrainer(MODEL, max_epochs=0).fit(X_FIT, Y_FIT)


@pytest.fixture
def file(tmp_path):
    """A saved model."""
    MODEL.save(tmp_path / "m.ntk")
    return tmp_path / "m.ntk"


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def sums(content):
    """The checksums that belong to some members."""
    lines = [f"{hashlib.sha256(content[name]).hexdigest()}  {name}\n" for name in (DOCUMENT, ARRAYS)]
    return content | {SUMS: "".join(lines).encode()}


def packed(path, content, **options):
    """Write members as a zip archive."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def forged(path, change, **options):
    """Change the document of a file, and make its checksums anew."""
    content = members(path)
    stated = json.loads(content[DOCUMENT])
    stated = change(stated) or stated
    packed(path, sums(content | {DOCUMENT: json.dumps(stated).encode()}), **options)


# For ever


@pytest.mark.slow
def test_a_file_of_version_1_is_read_as_on_the_first_day():
    """The file was written once, by ntkrobust_sk 0.1.0.dev0, and is never written again."""
    X = (np.arange(24).reshape(8, 3) * 7 % 11 / 11).astype(np.float32)
    y = np.where(X[:, 0] > X[:, 1], "yes", "no")
    content = (DATA / "machine_1.ntk").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("98775d13cff293c0")
    machine = EmpiricalNTKClassifier.load(DATA / "machine_1.ntk")
    trainer = machine.estimator.estimator
    attack = PGD(0.1, n_steps=2, bounds=Box(0, 1, mask=[True, True, False], integers=()))
    assert trainer.attack == attack and isinstance(machine.estimator, FrozenEstimator)
    assert trainer.network == Normalized(MLP(widths=(2,), activation="tanh"), (0.5,), (0.25,))
    assert machine.model_.network == Normalized(MLP(2, (2,), "tanh"), (0.5,), (0.25,))
    assert trainer.loss_curve_ == [0.591748058795929, 0.5240597724914551] and trainer.n_iter_ == 2
    assert machine.get_params(deep=False)["class_weight"] == {"no": 1.0, "yes": 2.0}
    assert machine.classes_.tolist() == ["no", "yes"] and machine.input_shape_ == (3,)
    assert machine.dual_coef_[0].tolist() == [0.6979806050132195, -0.6979806050132195]
    expected = [-0.68369472, 1.0520854, 1.01454794, 0.96304274, 1.02255869, 1.0249300, 1.02697098, 0.81278306]
    np.testing.assert_allclose(machine.decision_function(X), expected, rtol=1e-4)
    assert clone(machine).fit(X, y).score(X, y) == machine.score(X, y)


# Written


def test_others_read_the_members(file):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    content = members(file)
    assert tuple(content) == MEMBERS
    found = safetensors.load(content[ARRAYS])
    kernel = MODEL.variables.params["dense_0"]["kernel"]
    np.testing.assert_array_equal(found["variables.params.dense_0.kernel"], kernel)
    stated = json.loads(content[DOCUMENT])
    assert stated["version"] == 1 and stated["object"]["fields"]["network"]["type"] == "MLP"
    assert stated["written_by"]["jax"] == jax.__version__


def test_arrays_are_written_as_safetensors_writes_them():
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    arrays = {code: np.arange(5).astype(dtype) for code, dtype in DTYPES.items()}
    arrays |= {"none": np.zeros((0, 3)), "scalar": np.array(2.5), "ä": np.ones((2, 3, 1), np.int16)}
    own = b"".join(map(bytes, written(arrays)))
    # what safetensors gives to NumPy
    known = {name: array for name, array in arrays.items() if name[:2] not in ("BF", "F8")}
    theirs = safetensors.load(b"".join(map(bytes, written(known))))
    for name, array in known.items():
        np.testing.assert_array_equal(theirs[name], array, strict=True)
    for name, array in parsed(bytearray(safetensors.save(known))).items():
        np.testing.assert_array_equal(array, known[name], strict=True)
    for name, array in parsed(bytearray(own)).items():
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
        assert array.tobytes() == arrays[name].tobytes() and array.flags.aligned
    assert parsed(bytearray(b"".join(map(bytes, written({}))))) == {}


def test_the_same_object_gives_the_same_file(file, tmp_path):
    MODEL.save(tmp_path / "again.ntk")
    load(file).save(tmp_path / "loaded.ntk")
    assert file.read_bytes() == (tmp_path / "again.ntk").read_bytes() == (tmp_path / "loaded.ntk").read_bytes()


def test_saving_takes_no_copy_of_large_arrays(tmp_path):
    large = np.ones(2**22)
    tracemalloc.start()
    try:
        Model(MLP(2), Variables({"w": large})).save(tmp_path / "large.ntk")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < large.nbytes / 4


def test_a_file_that_is_there_is_replaced_when_all_is_written(file, monkeypatch):
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_files.os, "fsync", full)
        with pytest.raises(OSError, match="could not be written") as caught:
            Model(MLP(3), Variables({"w": np.ones(9)})).save(file)
    assert caught.value.filename == str(file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
    Model(MLP(3), Variables({"w": np.ones(9)})).save(file)
    assert Model.load(file).network == MLP(3) and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "path, error",
    [
        ("none/m.ntk", FileNotFoundError),
        (".", OSError),
        ("", ValueError),
        (3, TypeError),
        ("s3://b/m", ValueError),
    ],
)
def test_where_nothing_can_be_written_the_path_is_named(path, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(str(path)) or "got ''"):
        MODEL.save(path)
    with pytest.raises(error):
        Model.load(path)


@pytest.mark.parametrize(
    "kind",
    [
        AdversarialKernelTrainer,
        EmpiricalNTKClassifier,
        EmpiricalNTKRegressor,
        TangentFeatures,
        RobustFeatureSelector,
    ],
)
def test_an_estimator_that_is_not_fitted_is_not_saved(kind, tmp_path):
    with pytest.raises(NotFittedError, match=f"{kind.__name__} instance is not fitted yet"):
        kind().save(tmp_path / "m.ntk")
    assert list(tmp_path.iterdir()) == []


def test_more_json_than_is_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkrobust_sk.saving.archive.LARGEST_DOCUMENT", 5000)
    with pytest.raises(ValueError, match="bytes of JSON, and at most 5,000 are read again; hold large lists as"):
        Model(MLP(2), Variables({"w": list(range(10_000))})).save(tmp_path / "m.ntk")
    assert list(tmp_path.iterdir()) == []


# Read


def test_files_are_those_of_their_class(file, tmp_path):
    assert isinstance(load(file), Model) and isinstance(load(str(file)), Model)
    with pytest.raises(
        SavedFileError, match=r"m\.ntk holds Model, and EmpiricalNTKClassifier is wanted; Model\.load"
    ):
        EmpiricalNTKClassifier.load(file)
    features = TangentFeatures(MODEL).fit(np.ones((2, 4)))
    features.save(tmp_path / "f.ntk")
    for kind in (Model, AdversarialKernelTrainer, EmpiricalNTKRegressor):
        with pytest.raises(SavedFileError, match=r"f\.ntk holds TangentFeatures"):
            kind.load(tmp_path / "f.ntk")
    assert type(load(tmp_path / "f.ntk")) is TangentFeatures


def test_numbers_of_64_bits_are_told_of_where_jax_keeps_32(tmp_path):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        model = Model(MLP(2), Variables({"w": jnp.ones(2, float)}))
        model.save(tmp_path / "m.ntk")
        assert Model.load(tmp_path / "m.ntk").variables.params["w"].dtype == np.float64
    with pytest.warns(UserWarning, match="jax_enable_x64"):
        Model.load(tmp_path / "m.ntk")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def pickled(path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise AssertionError('it was run')",))

    path.write_bytes(pickle.dumps(Trap()))


def other_sums(path):
    content = members(path)
    packed(path, content | {DOCUMENT: content[DOCUMENT].replace(b"relu", b"tanh")})


def other_arrays(path):
    content = members(path)
    packed(path, content | {ARRAYS: content[ARRAYS][:-1] + b"\7"})


def one_more(path):
    packed(path, members(path) | {"setup.py": b"raise AssertionError"})


def one_less(path):
    packed(path, {name: data for name, data in members(path).items() if name != ARRAYS})


def one_twice(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(DOCUMENT, b"{}")


def other_zip(path):
    packed(path, {"schema.json": b"{}"})


def compressed(path):
    packed(path, members(path), compression=zipfile.ZIP_DEFLATED)


def bomb(path):
    content = members(path) | {ARRAYS: bytes(2**25)}
    packed(path, content, compression=zipfile.ZIP_DEFLATED, compresslevel=9)


def claims(path):
    """Both headers of a member claim four billion bytes."""
    data = bytearray(path.read_bytes())
    for start in (data.index(b"PK\1\2") + 20, data.index(b"PK\1\2") + 24):
        data[start : start + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)


def stated(**changes):
    return lambda path: forged(path, lambda document: document | changes)


def tree(**changes):
    return lambda path: forged(path, lambda document: document | {"object": document["object"] | changes})


def network(node):
    fields = {"network": node, "variables": None}
    return tree(fields=fields)


def tensors(header, data=b""):
    """Arrays with another header, and checksums that are right."""

    def change(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        packed(path, sums(members(path) | {ARRAYS: len(text).to_bytes(8, "little") + text + data}))

    return change


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), data=bytes(4)):
    return tensors({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}, data)


BAD = {
    "cut": (cut, "no zip archive"),
    "empty": (lambda path: path.write_bytes(b""), "no zip archive"),
    "text": (lambda path: path.write_text("a model"), "no zip archive"),
    "pickle": (pickled, "no zip archive"),
    "other document": (other_sums, "does not match its checksum"),
    "other arrays": (other_arrays, "does not match its checksum"),
    "a member more": (one_more, r"holds .*, and should hold"),
    "a member less": (one_less, r"holds .*, and should hold"),
    "a member twice": (one_twice, "."),
    "another zip": (other_zip, r"it holds schema\.json, and no ntkrobust_sk\.json"),
    "compressed": (compressed, "members are stored as they are"),
    "a zip bomb": (bomb, "members are stored as they are"),
    "a header that claims more": (claims, r"claims 4,294,967,294 bytes"),
    "newer": (stated(version=2), r"is of version 2 .* reads versions up to 1: install a newer one"),
    "version of another type": (stated(version="1"), "states no version"),
    "version true": (stated(version=True), "states no version"),
    "version 0": (stated(version=0), "states no version"),
    "other format": (stated(format="x"), "states no version"),
    "no object": (lambda path: forged(path, lambda d: {k: d[k] for k in d if k != "object"}), "object"),
    "no document": (lambda path: forged(path, lambda d: [1]), "cannot be loaded"),
    "NaN": (stated(object=float("nan")), "NaN is no JSON"),
    "an unknown class": (tree(type="Perceptron"), "there is no 'Perceptron' in this version"),
    "a class of Python": (tree(type="os.system"), r"is not registered here: import the module whose class"),
    "an own class that is not registered": (
        network({"type": "lab.Net", "fields": {}}),
        r"@saved_as\('lab\.Net'\)",
    ),
    "no type": (tree(type=None), "None"),
    "other fields": (tree(fields={"network": 1}), "missing 1 required"),
    "fields of another class": (network({"type": "MLP", "fields": {"code": "1"}}), "unexpected keyword"),
    "wrong settings": (network({"type": "MLP", "fields": {"widths": -1}}), "widths"),
    "a function that is none": (network({"type": "function", "name": "MLP"}), "'MLP' is no function"),
    "an array that is not there": (network({"type": "array", "key": "w"}), "'w'"),
    "a float that is none": (network({"type": "float", "value": "1"}), "'1' is no such number"),
    "a dtype with code": (network({"type": "dtype", "name": "O"}), "there is no dtype 'O'"),
    "a method": (lambda path: forged_trainer(path, "predict"), "'predict' is no attribute that fit sets"),
    "a class": (lambda path: forged_trainer(path, "__class__"), "'__class__' is no attribute that fit sets"),
    "deep": (network(json.loads("[" * 900 + "]" * 900)), "cannot be loaded"),
    "no header": (tensors(b""), "header should have 0 bytes"),
    "a header of Python": (tensors(b"__import__('os')"), "cannot be loaded"),
    "a shape too large": (tensor(shape=(10**12,)), "is not what is at 0, 4"),
    "a negative shape": (tensor(shape=(-1, -1)), "has shape"),
    "a shape of numbers with points": (tensor(shape=(1.0,)), "has shape"),
    "an array past the end": (tensor(shape=(2,), offsets=(0, 8)), "is not what is at"),
    "a gap": (tensor(offsets=(4, 8), data=bytes(8)), "is not what is at"),
    "bytes of no array": (tensor(data=bytes(9)), "5 bytes belong to no array"),
    "an unknown dtype": (tensor(dtype="O"), "'O'"),
}


def forged_trainer(path, name):
    """A file of an estimator with an attribute more."""
    AdversarialKernelTrainer(MODEL, max_epochs=0).fit(np.eye(4), [0, 1, 0, 1]).save(path)
    forged(path, lambda document: document["object"]["fitted"].__setitem__(name, 1))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_by_name_without_running_or_taking_anything(case, file):
    change, expected = BAD[case]
    change(file)
    tracemalloc.start()
    try:
        with pytest.raises(SavedFileError, match=rf"^{file} .*{expected}"):
            load(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20


@pytest.fixture
def drawing(tmp_path):
    """A saved trainer whose seeds come from NumPy's Mersenne Twister."""
    trainer = AdversarialKernelTrainer(MODEL, max_epochs=0, random_state=np.random.RandomState(3))
    trainer.fit(np.eye(4), [0, 1, 0, 1]).save(tmp_path / "t.ntk")
    return tmp_path / "t.ntk"


def twister(**changes):
    """Change what a file says of a RandomState."""

    def change(document):
        state = dict(document["object"]["params"]["random_state"]["state"]["items"])
        inner = dict(state["state"]["items"])
        state |= {name: value for name, value in changes.items() if name in state}
        inner |= {name: value for name, value in changes.items() if name in inner}
        state["state"] = {"type": "dict", "items": [list(item) for item in inner.items()]}
        node = {"type": "dict", "items": [list(item) for item in state.items()]}
        document["object"]["params"]["random_state"]["state"] = node

    return change


@pytest.mark.parametrize(
    "changes",
    [
        *({"pos": at} for at in (2**30, 625, -1, -(2**31), 2.0, True, None, "1")),
        *({"has_gauss": held} for held in (2, -1, True, None, 0.5)),
        *({"gauss": held} for held in (None, 1, "0", {"type": "float", "value": "nan"})),
        *(
            {"key": key}
            for key in ([1] * 624, 3, {"type": "array", "key": "model_.variables.params.dense_0.bias"})
        ),
        {"bit_generator": "PCG64"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_generator_s_state_is_looked_at_before_it_is_set(changes, drawing):
    """NumPy takes a position as it is, and reads its memory from there."""
    forged(drawing, twister(**changes))
    with pytest.raises(SavedFileError, match=rf"^{drawing} cannot be loaded: "):
        load(drawing)


@pytest.mark.parametrize("dtype, n", [("uint32", 624), ("uint32", 10), ("uint64", 624), ("int32", 624)])
def test_a_generator_s_key_is_looked_at_before_it_is_set(dtype, n, drawing):
    """Of a key of zeros come zeros for ever, and a normal number never."""
    content = members(drawing)
    arrays = {name: np.array(held) for name, held in parsed(bytearray(content[ARRAYS])).items()}
    (name,) = (name for name in arrays if name.endswith("key"))
    arrays[name] = (np.arange(n) * (n != 624 or dtype != "uint32")).astype(dtype)
    packed(drawing, sums(content | {ARRAYS: b"".join(written(arrays))}))
    with pytest.raises(SavedFileError, match=r"a RandomState has a key|the key of a RandomState is zero"):
        load(drawing)


def test_a_generator_at_its_ends_and_with_a_number_held_back_is_read(drawing):
    for changes in ({"pos": 0}, {"pos": 624}, {"has_gauss": 1, "gauss": 0.5}):
        forged(drawing, twister(**changes))
        assert np.isfinite(load(drawing).random_state.standard_normal())


def test_bytes_that_are_no_truth_values_are_refused(tmp_path):
    """NumPy counts what is true by adding up bytes, and writes as many numbers as it finds."""
    Model(MLP(2), Variables({"mask": np.array([True, False])})).save(tmp_path / "m.ntk")
    content = members(tmp_path / "m.ntk")
    packed(tmp_path / "m.ntk", sums(content | {ARRAYS: content[ARRAYS][:-2] + b"\x07\x00"}))
    with pytest.raises(SavedFileError, match=r"array 'variables\.params\.mask' of truth values holds the byte 7"):
        load(tmp_path / "m.ntk")


@pytest.mark.parametrize("name", ["cache", "gram_store"])
@pytest.mark.parametrize("within", ["params", "fitted"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_file_chooses_no_folder_where_it_is_loaded(name, within, inner, tmp_path):
    machine = EmpiricalNTKClassifier(FrozenEstimator(TRAINER), random_state=0).fit(X_FIT, Y_FIT)
    holder = RobustFeatureSelector(machine, attack=PGD(0.1, n_steps=1), n_features=2).fit(X_FIT, Y_FIT)
    (holder if inner else machine).save(tmp_path / "m.ntk")

    def change(document):
        at = document["object"]["params"]["estimator"] if inner else document["object"]
        at[within][name] = str(tmp_path / "folder")

    forged(tmp_path / "m.ntk", change)
    if within == "fitted":
        with pytest.raises(SavedFileError, match=f"'{name}' is no attribute that fit sets"):
            load(tmp_path / "m.ntk")
        return
    loaded = load(tmp_path / "m.ntk")
    assert getattr(loaded.estimator if inner else loaded, name) is None
    (loaded.estimator_.predict if inner else loaded.predict)(X_FIT)
    assert [path.name for path in tmp_path.iterdir()] == ["m.ntk"]


def test_an_estimator_made_of_ours_keeps_no_folder_in_its_file(tmp_path):
    kind = saved_as("lab.Machine")(type("Machine", (EmpiricalNTKRegressor,), {"__module__": __name__}))
    try:
        kind(FrozenEstimator(TRAINER), cache=tmp_path / "folder").fit(X_FIT, X_FIT[:, 0]).save(tmp_path / "m.ntk")
        assert load(tmp_path / "m.ntk").cache is None
    finally:
        REGISTERED.pop("lab.Machine")


def test_a_parameter_is_not_set_as_if_fit_had_set_it(tmp_path):
    machine = EmpiricalNTKRegressor(FrozenEstimator(TRAINER)).fit(X_FIT, X_FIT[:, 0])
    machine.save(tmp_path / "m.ntk")
    forged(tmp_path / "m.ntk", lambda document: document["object"]["fitted"].__setitem__("memory", "1TiB"))
    with pytest.raises(SavedFileError, match="'memory' is no attribute that fit sets"):
        load(tmp_path / "m.ntk")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Model.load(tmp_path / "m.ntk")
    assert caught.value.filename == tmp_path / "m.ntk" or str(tmp_path) in str(caught.value)
    with pytest.raises(IsADirectoryError):
        Model.load(tmp_path)


def test_a_forged_file_does_no_more_than_name_what_is_known(file):
    """Nothing that a document can name is imported: the modules are those that were there."""
    load(file)
    before = set(sys.modules)
    for name in ("os.system", "antigravity", "antigravity.x", "lib2to3.main", "ntkrobust_sk.cli.process", "this"):
        network({"type": name, "fields": {}, "params": {}, "fitted": {}})(file)
        with pytest.raises(SavedFileError):
            load(file)
    assert set(sys.modules) == before


def test_a_number_of_digits_without_end_is_refused(file):
    content = members(file)
    document = content[DOCUMENT].replace(b'"n_outputs": 2', b'"n_outputs": ' + b"1" * 10_000)
    packed(file, sums(content | {DOCUMENT: document}))
    with pytest.raises(SavedFileError, match="cannot be loaded"):
        load(file)


@pytest.mark.slow
def test_no_changed_byte_goes_unseen(file):
    good = file.read_bytes()
    expected = np.asarray(MODEL(jnp.ones((2, 4))))
    refused = 0
    for at in range(0, len(good), 7):
        file.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        try:
            found = Model.load(file)
            assert repr(found.network) == repr(MODEL.network)
            np.testing.assert_array_equal(found(jnp.ones((2, 4))), expected, strict=True)
        except SavedFileError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > len(good) // 7 * 0.7


def test_bfloat16_is_bfloat16_in_the_file(tmp_path):
    Model(MLP(2), Variables({"w": jnp.ones(3, jnp.bfloat16)})).save(tmp_path / "m.ntk")
    found = parsed(bytearray(members(tmp_path / "m.ntk")[ARRAYS]))
    assert found["variables.params.w"].dtype == ml_dtypes.bfloat16
    assert b'"BF16"' in members(tmp_path / "m.ntk")[ARRAYS]


def test_a_file_may_be_moved_and_read_where_nothing_can_be_written(file, tmp_path):
    other = tmp_path / "elsewhere.bin"
    file.rename(other)
    other.chmod(0o400)
    assert Model.load(other).network == MODEL.network
    assert io.BytesIO(other.read_bytes()).read(4) == b"PK\x03\x04"
