"""Gram matrices on disk: whatever stops a run, what is there is right, and the rest comes out to the same bits."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from ntkrobust_sk import CNN, MLP, ClassNTK, FullNTK, Model, PseudoNTK, Stateless, TraceNTK, Variables, gram
from ntkrobust_sk.plan import fixed_plan
from ntkrobust_sk.store import DamagedTileError, GramStore, StoreMismatchError

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

NETWORK, SHAPE, TILE = MLP(n_outputs=3, widths=(4,)), (5,), 4
KERNELS = {"trace": TraceNTK(), "class": ClassNTK(), "full": FullNTK(), "pseudo": PseudoNTK()}


def draw_model(seed=0, network=NETWORK):
    return Model(network, network.init(jax.random.key(seed), SHAPE))


MODEL = draw_model()
X = np.random.default_rng(0).normal(size=(11, *SHAPE)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, *SHAPE)).astype(np.float32)


def in_tiles(kernel, X, Y=None, *, model=MODEL, panel=2, seeds=None, **options):
    kernel = KERNELS[kernel]
    return gram(kernel, model, X, Y, plan=fixed_plan(kernel, model, SHAPE, TILE, panel, seeds), **options)


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


@pytest.mark.parametrize("seeds", [None, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_stored_matrix_is_the_matrix_to_the_bit_and_any_reader_of_zarr_can_read_it(kernel, seeds, path):
    expected = in_tiles(kernel, X, seeds=seeds)
    np.testing.assert_array_equal(in_tiles(kernel, X, seeds=seeds, store=path), expected)
    np.testing.assert_array_equal(zarr.open_array(str(path), mode="r")[:], expected)


def test_rows_and_columns_of_other_inputs_are_stored(path):
    np.testing.assert_array_equal(in_tiles("trace", X, Y, store=path), in_tiles("trace", X, Y))


def test_a_store_says_what_it_was_computed_from(path):
    in_tiles("trace", X, store=path)
    made_from = zarr.open_array(str(path), mode="r").attrs["ntkrobust_sk"]
    assert made_from["kernel"] == "TraceNTK()" and made_from["network"] == repr(NETWORK)
    assert made_from["n_X"] == 11 and made_from["tile_rows"] == TILE and made_from["dtype"] == "float32"


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


@pytest.mark.parametrize("seeds", [None, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("n_tiles", [0, 1, 4])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits(n_tiles, seeds, path, stop_after, monkeypatch):
    expected = in_tiles("trace", X, seeds=seeds)
    with monkeypatch.context() as patch:
        stop_after(n_tiles)
        with pytest.raises(StopError):
            in_tiles("trace", X, seeds=seeds, store=path)
        patch.undo()
    monkeypatch.undo()
    written = stop_after(10**6)
    np.testing.assert_array_equal(in_tiles("trace", X, seeds=seeds, store=path), expected)
    assert len(written) == 6 - n_tiles
    np.testing.assert_array_equal(in_tiles("trace", X, seeds=seeds, store=path), expected)
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
    expected = in_tiles("trace", X, seeds=2)
    stop_after(2)
    with pytest.raises(StopError):
        in_tiles("trace", X, seeds=2, store=path)
    monkeypatch.undo()
    np.testing.assert_array_equal(gram("trace", MODEL, X, store=path, memory="100MiB"), expected)


KILLED = """
import sys, time
import jax, numpy as np
from ntkrobust_sk import CNN, Model, TraceNTK, gram, plan
from ntkrobust_sk.store import GramStore
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


def test_a_process_that_is_killed_and_started_again_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def start(store):
        command = [sys.executable, "-c", KILLED, str(tmp_path / store), str(tmp_path / f"{store}.npy")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start("killed")
    for _ in range(7):
        assert killed.stdout.readline() == "written\n"
    time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    assert not (tmp_path / "killed.npy").exists()
    counts = {}
    for store in ("killed", "whole"):
        again = start(store)
        counts[store] = again.communicate()[0].count("written")
        assert again.returncode == 0
    assert counts["whole"] == 55 and 0 < counts["killed"] <= 48
    assert (tmp_path / "killed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


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


@pytest.mark.parametrize("name", OTHERS)
def test_a_store_of_something_else_is_refused_by_name_and_left_alone(name, path):
    call, message = OTHERS[name]
    expected = in_tiles("trace", X, store=path)
    with pytest.raises(StoreMismatchError, match=message):
        call(path)
    np.testing.assert_array_equal(in_tiles("trace", X, store=path), expected)


def test_a_store_of_another_version_is_refused(path):
    in_tiles("trace", X, store=path)
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["ntkrobust_sk"]["version"] = "0.0.1"
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreMismatchError, match=r"version: '0\.0\.1' there"):
        in_tiles("trace", X, store=path)


def test_what_is_no_store_is_refused(path):
    path.mkdir()
    with pytest.raises(StoreMismatchError, match="is no zarr array"):
        in_tiles("trace", X, store=path)
    other = path.with_name("other.zarr")
    zarr.create_array(store=str(other), shape=(11, 11), chunks=(4, 4), dtype="float32")
    with pytest.raises(StoreMismatchError, match="none that gram has written"):
        in_tiles("trace", X, store=other)


def test_networks_without_a_name_of_their_own_are_the_same_in_another_process(path):
    model = Model(Stateless(nothing_else), Variables(np.eye(5, 2, dtype=np.float32)))
    gram("trace", model, X, store=path)
    assert "0x" not in zarr.open_array(str(path), mode="r").attrs["ntkrobust_sk"]["network"]


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


def test_progress_counts_what_is_there_already(path, stop_after, monkeypatch, capsys):
    stop_after(4)
    with pytest.raises(StopError):
        in_tiles("trace", X, store=path)
    monkeypatch.undo()
    in_tiles("trace", X, store=path, progress=True)
    assert "4/6" in capsys.readouterr().err


def test_convolutions_are_stored_too(path):
    network, shape = CNN(n_outputs=2, widths=(3,), strides=(2,)), (5, 4, 1)
    model = Model(network, network.init(jax.random.key(0), shape))
    images = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    plan = fixed_plan(FullNTK(), model, shape, 2)
    expected = gram("full", model, images, plan=plan)
    np.testing.assert_array_equal(gram("full", model, images, plan=plan, store=path), expected)
