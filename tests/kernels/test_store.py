"""Gram matrices on disk: whatever stops a run, what is there is right, and the rest comes out to the same bits."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, replace
from functools import partial, update_wrapper

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, ClassNTK, FullNTK, Model, PseudoNTK, Stateless, TraceNTK, Variables, gram
from ntkrobust_sk.kernels.fingerprint import _of, _Reading, fingerprint
from ntkrobust_sk.kernels.gram_matrix import _scale, has_same_numbers
from ntkrobust_sk.kernels.ntk import resolve_kernel
from ntkrobust_sk.kernels.plan import fixed_plan, make_plan
from ntkrobust_sk.kernels.store import DamagedTileError, GramStore, _opened, read_gram
from ntkrobust_sk.kernels.store_header import StoreMismatchError
from ntkrobust_sk.kernels.store_header import read_header as _header
from ntkrobust_sk.kernels.tiles import TileJob

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

NETWORK, SHAPE, TILE = MLP(n_outputs=3, widths=(4,)), (5,), 4
KERNELS = {"trace": TraceNTK(), "class": ClassNTK(), "full": FullNTK(), "pseudo": PseudoNTK()}


def draw_model(seed=0, network=NETWORK):
    return Model(network, network.init(jax.random.key(seed), SHAPE))


MODEL = draw_model()
X = np.random.default_rng(0).normal(size=(11, *SHAPE)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, *SHAPE)).astype(np.float32)


def in_tiles(kernel, X, Y=None, *, model=MODEL, panel=2, directions=None, **options):
    kernel = KERNELS[kernel]
    return gram(kernel, model, X, Y, plan=fixed_plan(kernel, model, SHAPE, TILE, panel, directions), **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "K.zarr"


class StopError(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Stops every run after so many tiles have been written."""

    def arm(n_tiles):
        write, written = GramStore.write, []

        def count(self, *args):
            if len(written) == n_tiles:
                raise StopError
            written.append(args[:2])
            write(self, *args)

        monkeypatch.setattr(GramStore, "write", count)
        return written

    return arm


# What is in it


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_stored_matrix_is_the_matrix_to_the_bit_and_any_reader_of_zarr_can_read_it(kernel, directions, path):
    expected = in_tiles(kernel, X, directions=directions)
    np.testing.assert_array_equal(in_tiles(kernel, X, directions=directions, store=path), expected)
    np.testing.assert_array_equal(zarr.open_array(str(path), mode="r")[:], expected)


@pytest.mark.slow
def test_rows_and_columns_of_other_inputs_are_stored(path):
    np.testing.assert_array_equal(in_tiles("trace", X, Y, store=path), in_tiles("trace", X, Y))


def test_a_store_says_what_it_was_computed_from(path):
    in_tiles("trace", X, store=path)
    made_from = zarr.open_array(str(path), mode="r").attrs["ntkrobust_sk"]
    assert made_from["kernel"] == "TraceNTK()" and made_from["network"] == repr(NETWORK)
    assert made_from["n_X"] == 11 and made_from["tile_rows"] == TILE and made_from["dtype"] == "float32"


@pytest.mark.slow
def test_double_precision_and_kernels_of_the_users_own_are_stored(path):
    def of_logits(model, x1, x2):
        return model(x1) @ model(x2).T

    assert in_tiles("trace", X, store=path, dtype="float64").dtype == np.float64
    other = path.with_name("own.zarr")
    # a store's tiles are of full size from the start
    np.testing.assert_allclose(
        gram(of_logits, MODEL, X, store=other), gram(of_logits, MODEL, X), rtol=1e-4, atol=1e-5
    )


# Going on


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("n_tiles", [0, 1, 4])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits(
    n_tiles, directions, path, stop_after, monkeypatch
):
    expected = in_tiles("trace", X, directions=directions)
    with monkeypatch.context() as patch:
        stop_after(n_tiles)
        with pytest.raises(StopError):
            in_tiles("trace", X, directions=directions, store=path)
        patch.undo()
    monkeypatch.undo()
    written = stop_after(10**6)
    np.testing.assert_array_equal(in_tiles("trace", X, directions=directions, store=path), expected)
    assert len(written) == 6 - n_tiles
    np.testing.assert_array_equal(in_tiles("trace", X, directions=directions, store=path), expected)
    assert len(written) == 6 - n_tiles


def test_a_stop_between_a_tile_and_its_mirror_image_leaves_neither_counted(path, monkeypatch):
    put, calls = GramStore._put, []

    def stopping(self, *args):
        if calls == ["mirror"]:
            raise StopError
        put(self, *args)
        calls.extend(["mirror"] if args[0] > args[1] else [])

    monkeypatch.setattr(GramStore, "_put", stopping)
    with pytest.raises(StopError):
        in_tiles("trace", X, store=path)
    monkeypatch.undo()
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), in_tiles("trace", X))


@pytest.mark.parametrize("before", [1, 4, 5, 8])
def test_new_rows_are_appended_and_old_tiles_kept(before, path, stop_after):
    in_tiles("trace", X[:before], store=path)
    written = stop_after(10**6)
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), in_tiles("trace", X))
    whole = before // TILE
    assert not [tile for tile in written if max(tile) < whole]


def test_new_columns_are_appended(path):
    in_tiles("trace", X[:7], Y[:3], store=path)
    np.testing.assert_array_equal(in_tiles("trace", X, Y, store=path), in_tiles("trace", X, Y))


def test_a_store_keeps_its_own_tiles_whatever_memory_the_next_run_has(path, stop_after, monkeypatch):
    expected = in_tiles("trace", X, directions=2)
    stop_after(2)
    with pytest.raises(StopError):
        in_tiles("trace", X, directions=2, store=path)
    monkeypatch.undo()
    np.testing.assert_array_equal(gram("trace", MODEL, X, store=path, memory="100MiB"), expected)


KILLED = """
import sys, time
import jax, numpy as np
from ntkrobust_sk import CNN, Model, TraceNTK, gram
from ntkrobust_sk.kernels import plan
from ntkrobust_sk.kernels.store import GramStore
network = CNN(n_outputs=2, widths=(3,), strides=(1,))
model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
X = np.random.default_rng(0).normal(size=(40, 4, 4, 1)).astype(np.float32)
write = GramStore.write
def slow(self, *args):
    write(self, *args)
    print("written", flush=True)
    time.sleep(0.05)
GramStore.write = slow
K = gram("trace", model, X, store=sys.argv[1], plan=plan.fixed_plan(TraceNTK(), model, (4, 4, 1), 4, 3))
np.save(sys.argv[2], K)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_and_started_again_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def start():
        command = [sys.executable, "-c", KILLED, str(tmp_path / "K.zarr"), str(tmp_path / "K.npy")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start()
    for _ in range(7):
        assert killed.stdout.readline() == "written\n"
    time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    assert not (tmp_path / "K.npy").exists()
    again = start()
    # of 55 tiles
    assert 0 < again.communicate()[0].count("written") <= 48
    assert again.returncode == 0
    network, shape = CNN(n_outputs=2, widths=(3,), strides=(1,)), (4, 4, 1)
    model = Model(network, network.init(jax.random.key(0), shape))
    images = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    whole = gram("trace", model, images, plan=fixed_plan(TraceNTK(), model, shape, 4, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "K.npy"), whole)


# What it refuses


def nothing_else(params, x):
    return x @ params


OTHER_NETWORK = replace(MODEL, network=replace(NETWORK, activation="tanh"))
OTHERS = {
    "parameters": (lambda path: in_tiles("trace", X, model=draw_model(seed=1), store=path), "sha256_variables"),
    "network": (lambda path: in_tiles("trace", X, model=OTHER_NETWORK, store=path), "activation='tanh'"),
    "kernel": (lambda path: in_tiles("pseudo", X, store=path), r"'TraceNTK\(\)' there, 'PseudoNTK\(\)' here"),
    "rows": (lambda path: in_tiles("trace", X + 1, store=path), "the first 11 rows hold other numbers"),
    "fewer rows": (lambda path: in_tiles("trace", X[:9], store=path), "11 rows there, only 9 here"),
    "columns": (lambda path: in_tiles("trace", X, Y, store=path), "Y: None rows there, 6 here"),
    "dtype": (lambda path: in_tiles("trace", X, store=path, dtype="float64"), "'float32' there, 'float64' here"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_store_of_something_else_is_refused_by_name_and_left_alone(name, path):
    call, message = OTHERS[name]
    expected = in_tiles("trace", X, store=path)
    with pytest.raises(StoreMismatchError, match=message):
        call(path)
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)


def test_a_store_of_another_version_is_refused(path):
    in_tiles("trace", X, store=path)
    changed(path, lambda zarr, own: own.update(version="0.0.1"))
    with pytest.raises(StoreMismatchError, match=r"version: '0\.0\.1' there"):
        in_tiles("trace", X, store=path)


def test_what_is_no_store_is_refused_and_left_alone(path):
    path.mkdir()
    (path / "mine.txt").write_text("precious")
    with pytest.raises(StoreMismatchError, match=r"K\.zarr is there, but is no zarr array"):
        in_tiles("trace", X, store=path)
    assert [file.name for file in path.iterdir()] == ["mine.txt"]
    other = path.with_name("other.zarr")
    zarr.create_array(store=str(other), shape=(11, 11), chunks=(4, 4), dtype="float32")
    with pytest.raises(StoreMismatchError, match="none that gram has written"):
        in_tiles("trace", X, store=other)
    file = path.with_name("file.zarr")
    file.write_text("precious")
    with pytest.raises(StoreMismatchError, match=r"file\.zarr is there, but is no zarr array"):
        in_tiles("trace", X, store=file)
    assert file.read_text() == "precious"


@pytest.mark.slow
def test_networks_without_a_name_of_their_own_are_the_same_in_another_process(path):
    model = Model(Stateless(nothing_else), Variables(np.eye(5, 2, dtype=np.float32)))
    gram("trace", model, X, store=path)
    assert "0x" not in zarr.open_array(str(path), mode="r").attrs["ntkrobust_sk"]["network"]


# Whose matrix it is


WEIGHTS = np.ones((5, 3), np.float32)


def of(apply):
    return Model(Stateless(apply), Variables(WEIGHTS))


def scaled(scale):
    return of(lambda p, x: scale * (x @ p))


def in_array(scale):
    scales = np.full(3, scale, np.float32)
    return of(lambda p, x: (x @ p) * scales)


def by_partial(scale):
    return of(partial(lambda scale, p, x: scale * (x @ p), scale))


class Scaling:
    """Prints alike whatever is in it."""

    def __init__(self, scale):
        self.scale = scale

    def __repr__(self):
        return "Scaling()"

    def __call__(self, p, x):
        return self.scale * (x @ p)


def jitted(scale):
    return of(jax.jit(lambda p, x: scale * (x @ p)))


def edited(scale):
    space = {}
    exec(f"def apply(p, x):\n    return {scale} * (x @ p)", space)
    return of(space["apply"])


def called_back(scale):
    def outside(logits):
        return np.asarray(logits) * np.float32(scale)

    def apply(p, x):
        logits = x @ p
        return logits + jax.pure_callback(outside, logits, jax.lax.stop_gradient(logits), vmap_method="sequential")

    return of(apply)


LOOK_ALIKE = {
    "closures": scaled,
    "arrays in closures": in_array,
    "partials": by_partial,
    "callables with state": lambda scale: of(Scaling(scale)),
    "compiled functions": jitted,
    "edited functions": edited,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOK_ALIKE)
def test_a_store_of_another_function_that_looks_alike_is_refused(name, path):
    make = LOOK_ALIKE[name]
    expected = gram("trace", make(1.0), X, store=path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(StoreMismatchError, match="function: network or kernel compute something else"):
        gram("trace", make(3.0), X, store=path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    # the same function, made anew
    np.testing.assert_array_equal(gram("trace", make(1.0), X, store=path), expected)
    J = np.kron(X, np.eye(3)).reshape(11, 3, -1)
    np.testing.assert_allclose(expected, np.einsum("ncp,mcp->nm", J, J) / 3, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class OwnKernel:
    """One whose repr leaves out what matters."""

    gamma: float

    def __repr__(self):
        return "OwnKernel()"

    def __call__(self, model, x1, x2):
        return jnp.exp(-self.gamma * ((x1[:, None] - x2[None]) ** 2).sum(-1))


KERNELS_LOOK_ALIKE = {
    "callables with state": OwnKernel,
    "closures": lambda gamma: lambda model, x1, x2: gamma * (model(x1) @ model(x2).T),
    "partials": lambda gamma: partial(lambda gamma, model, x1, x2: gamma * (x1 @ x2.T), gamma),
    "callbacks": lambda gamma: (
        lambda model, x1, x2: jax.pure_callback(
            lambda K: gamma * K, jax.ShapeDtypeStruct((len(x1), len(x2)), np.float32), x1 @ x2.T
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS_LOOK_ALIKE)
def test_a_store_of_another_kernel_that_looks_alike_is_refused(name, path):
    make = KERNELS_LOOK_ALIKE[name]
    expected = gram(make(np.float32(0.5)), MODEL, X, Y, store=path)
    with pytest.raises(StoreMismatchError, match="function: network or kernel compute something else"):
        gram(make(np.float32(0.25)), MODEL, X, Y, store=path)
    np.testing.assert_array_equal(gram(make(np.float32(0.5)), MODEL, X, Y, store=path), expected)


def test_a_store_of_code_that_reads_files_is_never_taken_up(path, tmp_path):
    file = tmp_path / "scale"

    def outside(K):
        return np.float32(file.read_text()) * np.asarray(K)

    def kernel(model, x1, x2):
        return jax.pure_callback(outside, jax.ShapeDtypeStruct((len(x1), len(x2)), np.float32), x1 @ x2.T)

    file.write_text("1")
    gram(kernel, MODEL, X[:7], store=path)
    file.write_text("3")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(StoreMismatchError, match="nobody can know whether the Gram store"):
        gram(kernel, MODEL, X, store=path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


class Slots:
    __slots__ = ("limit",)

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, x):
        return np.where(x > self.limit, 5, x).astype(x.dtype)


class Stateful(Slots):
    def __init__(self, limit):
        super().__init__(limit)
        update_wrapper(self, abs)


class OfClass:
    limit = 9.0

    def __call__(self, x):
        return np.where(x > self.limit, 5, x).astype(x.dtype)


SETTINGS = types.ModuleType("settings")
LIMIT = 9.0


def of_settings(x):
    return np.where(x > SETTINGS.limit, 5, x).astype(x.dtype)


def of_global(x):
    return np.asarray([5 if (lambda v: v > LIMIT)(v) else v for v in np.ravel(x)], x.dtype).reshape(x.shape)


def with_module(limit):
    SETTINGS.limit = limit
    return of_settings


def with_global(limit):
    globals()["LIMIT"] = limit
    return of_global


OUTSIDE = {
    "slots": Slots,
    "a wrapper with state": Stateful,
    "an attribute of a class": lambda limit: (setattr(OfClass, "limit", limit), OfClass())[1],
    "an array in a partial": lambda limit: partial(
        lambda limit, x: x * (x < limit), np.full((), limit, np.float32)
    ),
    "a global in an inner function": with_global,
    "a module": with_module,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_host_callbacks_read_tells_stores_apart(name):
    def read(limit):
        outside = OUTSIDE[name](limit)
        x = np.ones((1, 2), np.float32)
        return fingerprint(lambda x: jax.pure_callback(outside, jax.ShapeDtypeStruct(x.shape, x.dtype), x), x)[0]

    first, again, other = read(9.0), read(9.0), read(8.0)
    # what may change unseen says so, and is never taken up
    assert first == again and (first.startswith("unsure: ") if name == "a module" else first != other)
    assert first.startswith("unsure: ") == (name == "a module")


@pytest.mark.parametrize("by, same", [(1 + 1e-5, True), (1.005, False)])
def test_one_entry_that_is_half_a_percent_off_is_seen(by, same):
    K = np.asarray(gram("trace", MODEL, X))
    scale = _scale(K, True)
    np.testing.assert_allclose(scale, np.sqrt(np.outer(np.diag(K), np.diag(K))), rtol=1e-6)
    changed = K.copy()
    changed[0, 1] += (by - 1) * scale[0, 1]
    plan = make_plan(resolve_kernel("trace"), MODEL, X.shape[1:], 2**28, n_rows=len(X))
    store = types.SimpleNamespace(array=changed, holds=lambda i, j: True, read_tile=lambda i, j: changed)
    assert has_same_numbers(TileJob(resolve_kernel("trace"), MODEL, X, None, plan), store) == same


@pytest.mark.slow
def test_another_version_of_jax_may_write_a_function_down_otherwise_and_the_numbers_decide(path):
    expected = gram("trace", scaled(1.0), X, store=path)
    changed(path, lambda zarr, own: own.update(jax="0.0.1", sha256_function="another"))
    np.testing.assert_array_equal(gram("trace", scaled(1.0), X, store=path), expected)
    with pytest.raises(StoreMismatchError, match="computed again are other numbers"):
        gram("trace", scaled(3.0), X, store=path)


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_finds_its_own_numbers_again_and_no_others(kernel, directions, path):
    in_tiles(kernel, X, Y, directions=directions, store=path)
    in_tiles(kernel, X, Y, directions=directions, store=path)
    other = path.with_name("other.zarr")
    in_tiles(kernel, X, Y + 1, directions=directions, store=other)
    tail = ["0"] * (zarr.open_array(str(path)).ndim - 2)
    shutil.copy(other.joinpath("c", "0", "0", *tail), path.joinpath("c", "0", "0", *tail))
    with pytest.raises(DamagedTileError, match=r"tile \(0, 0\).*belongs to another place or store"):
        read_gram(path)


FINGERPRINTS = """
import jax, numpy as np
from ntkrobust_sk import CNN, Model, TraceNTK
from ntkrobust_sk.kernels.fingerprint import fingerprint
network = CNN(n_outputs=2, widths=(3,), strides=(1,), activation="gelu")
model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
x = jax.ShapeDtypeStruct((1, 4, 4, 1), np.float32)
rates = {"b", "a", "c"}
shape = jax.ShapeDtypeStruct((1, 1), np.float32)
own = lambda model, x1, x2: jax.pure_callback(lambda K: K * len(rates | {"d"}), shape, model(x1) @ model(x2).T)
print(fingerprint(TraceNTK(), model, x, x)[0], fingerprint(own, model, x, x)[0])
"""


@pytest.mark.slow
def test_fingerprints_are_those_of_other_processes():
    found = set()
    for seed in ("0", "1"):
        command = [sys.executable, "-c", FINGERPRINTS]
        done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().split()) == 2


# Tiles in their places


@pytest.mark.parametrize("two", [(1, 1), (0, 1), (2, 0)])
def test_a_tile_in_the_place_of_another_is_found_by_whoever_reads(two, path):
    expected = in_tiles("trace", X[:8], store=path)
    source, target = path / "c/0/0", path / "c" / str(two[0]) / str(two[1])
    if two == (2, 0):
        in_tiles("trace", X, Y, store=(wide := path.with_name("wide.zarr")))
        path, source, target = wide, wide / "c/0/0", wide / "c/1/0"
    kept, other = target.read_bytes(), source.read_bytes()
    target.write_bytes(other)
    if source != target:
        source.write_bytes(kept)
    with pytest.raises(DamagedTileError, match="or belongs to another place or store") as caught:
        read_gram(path)
    assert str(path) in str(caught.value)
    target.write_bytes(kept)
    source.write_bytes(other)
    if two != (2, 0):
        np.testing.assert_array_equal(read_gram(path), expected)


def test_a_tile_of_a_store_that_began_alike_and_grew_otherwise_is_found(path):
    other = path.with_name("other.zarr")
    for store, rows in ((path, X[:8]), (other, np.concatenate([X[:4], Y[:4]]))):
        in_tiles("trace", X[:4], store=store)
        in_tiles("trace", rows, store=store)
    shutil.copy(other / "c/1/1", path / "c/1/1")
    with pytest.raises(DamagedTileError, match=r"tile \(1, 1\)"):
        read_gram(path)


def test_checksums_that_are_gone_are_computed_again_with_their_tiles(path, stop_after):
    expected = in_tiles("trace", X, store=path)
    for i in range(3):
        (path / "checksums" / str(i)).unlink()
    with pytest.raises(DamagedTileError, match=r"its checksum is not in .*checksums/0"):
        read_gram(path)
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)
    np.testing.assert_array_equal(read_gram(path), expected)


def changed(path, change):
    """As if it had been written so: with the checksum that belongs to it."""
    metadata = json.loads((path / "zarr.json").read_text())
    own = metadata["attributes"]["ntkrobust_sk"]
    change(metadata, own)
    own.pop("sha256")
    own["sha256"] = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    (path / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["identity", "kernel", "network", "n_X", "n_Y", "sha256_X", "sha256_Y", "sha256_variables", "version"]
)
def test_nothing_that_a_store_says_of_itself_can_be_edited(name, path):
    in_tiles("trace", X, Y, store=path)
    file = path / "zarr.json"
    metadata = json.loads(file.read_text())
    own = metadata["attributes"]["ntkrobust_sk"]
    own[name] = own[name] - 1 if isinstance(own[name], int) else own[name] + " "
    file.write_text(json.dumps(metadata))
    for read in (lambda: read_gram(path), lambda: in_tiles("trace", X, Y, store=path)):
        with pytest.raises(StoreMismatchError, match=r"zarr\.json is damaged.*does not match its checksum"):
            read()


CHANGES = {
    "tile_rows of -1": lambda zarr, own: own.update(tile_rows=-1),
    "tile_rows as text": lambda zarr, own: own.update(tile_rows="4"),
    "tile_rows of true": lambda zarr, own: own.update(tile_rows=True),
    "no tile_rows": lambda zarr, own: own.pop("tile_rows"),
    "another tile_rows": lambda zarr, own: own.update(tile_rows=8),
    "a huge shape": lambda zarr, own: zarr.update(shape=[10**12, 10**12]),
    "a smaller shape": lambda zarr, own: zarr.update(shape=[4, 4]),
    "a shape of text": lambda zarr, own: zarr.update(shape="x"),
    "another dtype": lambda zarr, own: zarr.update(data_type="int32"),
    "an unknown dtype": lambda zarr, own: own.update(dtype="float31"),
    "a dtype of both": lambda zarr, own: (zarr.update(data_type="int32"), own.update(dtype="int32")),
    "another chunk grid": lambda zarr, own: zarr["chunk_grid"]["configuration"].update(chunk_shape=[2, 8]),
    "no chunk grid": lambda zarr, own: zarr.pop("chunk_grid"),
    "other codecs": lambda zarr, own: zarr.update(codecs=zarr["codecs"][:1]),
    "big-endian": lambda zarr, own: zarr["codecs"][0].update(configuration={"endian": "big"}),
    "codecs of numbers": lambda zarr, own: zarr.update(codecs=[0.5]),
    "another separator": lambda zarr, own: zarr["chunk_key_encoding"].update(configuration={"separator": "."}),
    "more rows": lambda zarr, own: own.update(n_X=12),
    "a column count": lambda zarr, own: own.update(n_Y=3),
    "an axis more": lambda zarr, own: own.update(tail=[3]),
    "a tail of text": lambda zarr, own: own.update(tail="ab"),
    "no identity": lambda zarr, own: own.pop("identity"),
    "no attributes": lambda zarr, own: zarr.pop("attributes"),
    "attributes of a list": lambda zarr, own: zarr.update(attributes=[1]),
    "zarr's own fields": lambda zarr, own: zarr.update(storage_transformers=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_store_that_does_not_fit_itself_is_refused_by_whoever_opens_it(name, path):
    in_tiles("trace", X, store=path)
    changed(path, CHANGES[name])
    for read in (lambda: read_gram(path), lambda: gram("trace", MODEL, X, store=path)):
        with pytest.raises(StoreMismatchError, match=r"K\.zarr"):
            read()


def test_a_tile_that_is_not_finite_is_refused_though_all_checksums_are_right(path):
    in_tiles("trace", X, store=path)
    there = read_gram(path)
    store = _opened(path, _header(path), "r+")
    store.write(0, 0, np.where(np.eye(TILE) > 0, np.nan, there[:TILE, :TILE]))
    for read in (lambda: read_gram(path), lambda: in_tiles("trace", X, store=path)):
        with pytest.raises(DamagedTileError, match=r"tile \(0, 0\) of the Gram store .*not finite"):
            read()


def test_a_huge_store_that_fits_itself_ends_at_the_first_tile_that_is_not_there(path):
    in_tiles("trace", X, store=path)

    def huge(zarr, own):
        zarr.update(shape=[2**31 - 1] * 2)
        own.update(n_X=2**31 - 1)

    changed(path, huge)
    with pytest.raises(DamagedTileError, match=r"tile \(0, 3\) .*it is not there"):
        read_gram(path)


def test_numbers_that_were_never_written_are_never_returned(path):
    in_tiles("trace", X, store=path)
    changed(path, lambda zarr, own: zarr.update(fill_value=0.0))
    (path / "c/1/1").unlink()
    with pytest.raises(DamagedTileError, match="it is not there"):
        read_gram(path)


def test_a_store_of_an_earlier_format_is_refused_with_a_way_out(path):
    in_tiles("trace", X, store=path)
    changed(path, lambda zarr, own: [own.pop(name) for name in ("format", "identity", "sha256_function", "tail")])
    for read in (lambda: read_gram(path), lambda: in_tiles("trace", X, store=path)):
        with pytest.raises(StoreMismatchError, match=r"in format 1; here it is 3.*zarr\.open_array"):
            read()


def test_tiles_of_another_size_are_not_taken_for_those_there(path):
    in_tiles("trace", X, store=path)
    with pytest.raises(StoreMismatchError, match="tile_rows: 4 there, 8 here"):
        gram("trace", MODEL, X, store=path, plan=fixed_plan(TraceNTK(), MODEL, SHAPE, 8, 1))


# Where it may be


def test_an_empty_folder_a_slash_at_the_end_and_a_link_to_a_folder_are_good_places(path, tmp_path):
    expected = in_tiles("trace", X)
    path.mkdir()
    np.testing.assert_array_equal(in_tiles("trace", X, store=f"{path}/"), expected)
    (tmp_path / "behind").mkdir()
    (tmp_path / "link").symlink_to("behind")
    np.testing.assert_array_equal(in_tiles("trace", X, store=tmp_path / "link"), expected)
    np.testing.assert_array_equal(read_gram(str(tmp_path / "behind")), expected)


def test_a_link_to_nowhere_is_refused_and_nothing_is_made_behind_it(path, tmp_path):
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreMismatchError, match=r"K\.zarr is there"):
        in_tiles("trace", X, store=path)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("wrong", [5, b"x", 1.5, [], float("nan")])
def test_what_is_no_path_is_refused_as_such(wrong):
    with pytest.raises(TypeError, match="store must be a path"):
        gram("trace", MODEL, X, store=wrong)
    with pytest.raises(TypeError, match="path must be a path"):
        read_gram(wrong)


def test_a_store_that_is_not_there_and_a_folder_that_is_none_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no Gram store at the path"):
        read_gram(tmp_path / "none")
    with pytest.raises(StoreMismatchError, match="is no zarr array"):
        read_gram(tmp_path)


@pytest.mark.slow
def test_an_unfinished_store_is_not_read(path, stop_after):
    stop_after(2)
    with pytest.raises(StopError):
        in_tiles("trace", X, store=path)
    with pytest.raises(DamagedTileError, match="it is not there"):
        read_gram(path)


@pytest.mark.slow
def test_files_of_a_store_have_the_mode_that_the_umask_leaves(path):
    before = os.umask(0o027)
    try:
        in_tiles("trace", X, store=path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.rglob("*") if file.is_file()} == {0o640}


HELD = """
import sys, time
sys.argv = ["", sys.argv[1]]
from ntkrobust_sk._locks import locked
with locked(sys.argv[1], "Gram store"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_do_not_write_into_one_store(path):
    expected = in_tiles("trace", X, store=path)
    command = [sys.executable, "-c", HELD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another process or thread is at work") as caught:
            in_tiles("trace", X, store=path)
        assert caught.value.filename == str(path)
        np.testing.assert_array_equal(read_gram(path), expected)
        other.kill()
        other.wait()
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty", "missing"])
@pytest.mark.parametrize("tile", [(0, 1), (2, 0), (2, 2)])
def test_a_damaged_tile_is_named_and_computed_again_once_it_is_deleted(tile, damage, path, stop_after):
    expected = in_tiles("trace", X, store=path)
    file = path / "c" / str(tile[0]) / str(tile[1])
    whole = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        whole[9] ^= 4
    file.write_bytes(whole if damage == "a flipped bit" else whole[:20] if damage == "cut short" else b"")
    if damage == "missing":
        file.unlink()
    if damage != "missing" or tile[0] > tile[1]:
        with pytest.raises(DamagedTileError, match=rf"tile \({tile[0]}, {tile[1]}\)") as caught:
            in_tiles("trace", X, store=path)
        assert str(file) in str(caught.value)
    for name in {file, path / "c" / str(tile[1]) / str(tile[0])}:
        name.unlink(missing_ok=True)
    written = stop_after(10**6)
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)
    assert written == [tuple(sorted(tile))]


def test_a_full_disk_is_named_and_keeps_the_tiles_that_are_there(path, monkeypatch):
    expected = in_tiles("trace", X)
    set_item, calls = zarr.Array.__setitem__, []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        set_item(self, *args)

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OSError, match=r"No space left on device.*are kept") as caught:
        in_tiles("trace", X, store=path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    monkeypatch.undo()
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)


def test_entries_that_are_not_finite_are_never_stored(path):
    model = Model(NETWORK, jax.tree.map(lambda leaf: 1e30 * leaf, MODEL.variables))
    with pytest.raises(FloatingPointError, match="not finite"):
        in_tiles("trace", X, model=model, store=path)
    assert not list(path.glob("c/*/*"))


def test_one_matrix_is_stored_not_one_for_each_layer(path):
    with pytest.raises(ValueError, match="a store holds one matrix"):
        in_tiles("trace", X, store=path, by_layer=True)


@pytest.mark.slow
def test_progress_counts_what_is_there_already(path, stop_after, monkeypatch, capsys):
    stop_after(4)
    with pytest.raises(StopError):
        in_tiles("trace", X, store=path)
    monkeypatch.undo()
    in_tiles("trace", X, store=path, progress=True)
    assert "4/6" in capsys.readouterr().err


@pytest.mark.slow
def test_convolutions_are_stored_too(path):
    network, shape = CNN(n_outputs=2, widths=(3,), strides=(2,)), (5, 4, 1)
    model = Model(network, network.init(jax.random.key(0), shape))
    images = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    plan = fixed_plan(FullNTK(), model, shape, 2)
    expected = gram("full", model, images, plan=plan)
    np.testing.assert_array_equal(gram("full", model, images, plan=plan, store=path), expected)


def test_what_jax_has_looked_up_about_a_shape_is_no_part_of_a_fingerprint():
    (var,) = jax.make_jaxpr(lambda x: x)(jnp.ones(3)).jaxpr.invars
    before = _of(var.aval, _Reading())
    # JAX from 0.12 on keeps these answers with the shape
    assert not var.aval.strip_weak_type().weak_type and var.aval.str_short() and hash(var.aval)
    assert _of(var.aval, _Reading()) == before
    (other,) = jax.make_jaxpr(lambda x: x)(jnp.ones(4)).jaxpr.invars
    assert _of(other.aval, _Reading()) != before
