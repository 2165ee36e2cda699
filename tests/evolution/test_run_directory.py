"""The folder of a run: whatever stops a run or damages a file, what is read is what was written, or an error."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import _files
from ntkrobust_sk._files import write_atomically
from ntkrobust_sk._locks import FolderInUseError, held
from ntkrobust_sk.evolution.run_directory import DamagedRunError, RunDirectory, RunMismatchError
from ntkrobust_sk.training.checkpoints import DamagedCheckpointError, load_checkpoint, read_arrays, save_checkpoint

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

SETTINGS = {"data": "digits", "epochs": 3, "fractions": (0.5, 1.5), "patience": None, "alpha": 1e-2}


class Inner(NamedTuple):
    mean: dict
    count: np.ndarray


class Outer(NamedTuple):
    inner: Inner
    key: jax.Array


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path / "run", SETTINGS)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "state.safetensors"


@pytest.fixture
def full_disk(monkeypatch):
    """Lets nothing more reach the disk, for the reason given."""

    def arm(number=errno.ENOSPC):
        def fail(descriptor):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(_files.os, "fsync", fail)

    return arm


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def small_tree():
    return {"bias": np.linspace(-1, 1, 3, dtype=np.float32), "step": np.int32(7), "done": np.array(True)}


def bits(tree):
    """Structure, and for each leaf its dtype, shape and bytes."""
    leaves, structure = jax.tree.flatten(tree)
    is_key = [jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key) for leaf in leaves]
    plain = [
        np.asarray(jax.random.key_data(leaf) if key else leaf) for leaf, key in zip(leaves, is_key, strict=True)
    ]
    return structure, is_key, [(array.dtype, array.shape, array.tobytes()) for array in plain]


# Settings


def test_the_same_settings_open_the_folder_again_and_leave_its_files_as_they_are(run):
    run.append({"task": "first"})
    before = contents(run.path)
    again = RunDirectory.open(str(run.path), dict(reversed(SETTINGS.items())))
    assert again == run and again.results() == [{"task": "first"}]
    assert contents(run.path) == before


def test_the_folder_and_its_parents_are_made_and_hold_the_settings(tmp_path):
    run = RunDirectory.open(tmp_path / "a" / "b", SETTINGS)
    there = json.loads((run.path / "settings.json").read_text())
    assert there.pop("sha256") and there == SETTINGS | {"fractions": [0.5, 1.5]} == run.settings
    assert run.results() == []


def test_an_empty_folder_becomes_a_run(tmp_path):
    RunDirectory.open(tmp_path, SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_other_settings_are_refused_with_each_difference_and_nothing_is_changed(run):
    before = contents(run.path)
    other = {name: value for name, value in SETTINGS.items() if name != "alpha"}
    with pytest.raises(RunMismatchError) as caught:
        RunDirectory.open(run.path, other | {"epochs": 4, "fractions": (0.5,), "seeds": 2})
    message = str(caught.value)
    for difference in (
        "epochs: 3 there, 4 here",
        "fractions: [0.5, 1.5] there, [0.5] here",
        "seeds: None there, 2 here",
        "alpha: 0.01 there, None here",
    ):
        assert difference in message
    assert str(run.path) in message and "data:" not in message and "patience:" not in message
    assert contents(run.path) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(RunMismatchError, match=r"holds no run \(no settings.json\); use another folder"):
        RunDirectory.open(tmp_path, SETTINGS)
    assert contents(tmp_path) == {"thesis.tex": b"chapter one"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunMismatchError, match="holds no run"):
        RunDirectory.open(tmp_path / "run", SETTINGS)


def test_settings_that_are_no_json_are_an_error_that_names_the_file(run):
    (run.path / "settings.json").write_text('{"data": ')
    with pytest.raises(OSError, match=r"settings\.json cannot be read as JSON"):
        RunDirectory.open(run.path, SETTINGS)


def test_a_joined_path_has_its_folder(run):
    path = run.joined("images", "seed-0", "benign.safetensors")
    assert path == run.path / "images" / "seed-0" / "benign.safetensors"
    assert path.parent.is_dir() and not path.exists()


# Results

RESULTS = [{"task": "0/benign/0", "robust": 0.1 + 0.2}, {"task": "0/flip/1", "names": ["ü", "b"], "loss": None}]


def with_results(run, results=RESULTS):
    for result in results:
        run.append(result)
    return run.path / "results.jsonl"


def test_results_come_back_in_their_order_and_to_the_bit(run):
    with_results(run)
    assert run.results() == RESULTS
    assert RunDirectory.open(run.path, SETTINGS).results() == RESULTS


@pytest.mark.parametrize(
    "torn",
    [b"{", b'{"task": "0/be', b'{"task": "0/benign/2"}', b'{"task": "x\xc3', b'{"task": \n', b"\n"],
    ids=repr,
)
def test_a_torn_last_line_is_left_out_with_a_word_and_cut_off_by_the_next_result(run, torn):
    file = with_results(run)
    good = file.read_bytes()
    file.write_bytes(good + torn)
    with pytest.warns(RuntimeWarning, match=r"line 3 of .*results\.jsonl, the last, was not finished"):
        assert run.results() == RESULTS
    assert file.read_bytes() == good + torn
    run.append({"task": "next"})
    assert run.results() == [*RESULTS, {"task": "next"}]
    assert file.read_bytes().startswith(good)


def test_a_torn_only_line_leaves_no_result(run):
    (run.path / "results.jsonl").write_bytes(b'{"task"')
    with pytest.warns(RuntimeWarning, match="line 1"):
        assert run.results() == []


def test_no_flipped_bit_of_settings_or_results_goes_unseen(run):
    file = with_results(run, [*RESULTS, {"task": "third", "robust": 0.25}])
    for changed, expected in ((file, run.results()), (run.path / "settings.json", run.settings)):
        good = changed.read_bytes()
        for position in range(len(good)):
            flipped = bytearray(good)
            flipped[position] ^= 1 << position % 7
            changed.write_bytes(flipped)
            again = RunDirectory(run.path)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    found = again.results() if changed == file else again.settings
                except OSError as error:
                    assert str(changed) in str(error) and (changed != file or "line" in str(error))
                else:
                    # white space between settings means nothing
                    assert found == expected or (told and changed == file and found == expected[:-1])
        changed.write_bytes(good)


def test_a_changed_digit_is_an_error_that_names_file_and_line(run):
    file = with_results(run, [{"task": "a", "robust": 0.25}, {"task": "b", "robust": 0.5}])
    file.write_bytes(file.read_bytes().replace(b"0.5", b"0.6"))
    with pytest.raises(DamagedRunError, match=r"line 2 of .*results\.jsonl cannot be read \(its checksum"):
        run.results()
    settings = run.path / "settings.json"
    settings.write_bytes(settings.read_bytes().replace(b'"epochs": 3', b'"epochs": 4'))
    with pytest.raises(DamagedRunError, match=r"settings\.json was changed"):
        RunDirectory.open(run.path, SETTINGS | {"epochs": 4})


def test_a_line_of_another_run_is_refused(run, tmp_path):
    other = RunDirectory.open(tmp_path / "other", SETTINGS | {"alpha": 0.5})
    theirs = with_results(other).read_bytes()
    file = with_results(run)
    file.write_bytes(file.read_bytes() + theirs)
    with pytest.raises(DamagedRunError, match=r"line 3 .* or of another run"):
        run.results()


def test_a_run_without_checksums_is_told_of_as_that(run):
    (run.path / "settings.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(DamagedRunError, match="has no checksum: the run is of an earlier version"):
        RunDirectory.open(run.path, SETTINGS)


def test_a_result_that_is_there_twice_counts_once(run):
    file = with_results(run)
    file.write_bytes(file.read_bytes() * 2)
    assert run.results() == RESULTS
    run.append({"task": "next"})
    assert run.results() == [*RESULTS, {"task": "next"}]


def test_two_results_of_one_task_that_differ_are_an_error_that_names_both_lines(run):
    with_results(run, [*RESULTS, RESULTS[0] | {"robust": 0.5}])
    with pytest.raises(
        DamagedRunError, match=r"lines 1 and 3 of .*results\.jsonl both hold the task '0/benign/0'"
    ):
        run.results()


def test_forgotten_tasks_are_gone_and_the_others_are_as_they_were(run):
    with_results(run, [*RESULTS, {"task": "third"}])
    run.forget({"0/flip/1"})
    assert run.results() == [RESULTS[0], {"task": "third"}]


def test_numbers_that_are_not_finite_come_back_and_the_file_is_json_that_every_reader_takes(run):
    found = {"task": "0", "a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": 0.5}
    file = with_results(run, [found])

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads(file.read_text(), parse_constant=refuse)
    (again,) = run.results()
    assert np.isnan(again.pop("a")) and again == {"task": "0", "b": [np.inf, {"c": -np.inf}], "d": 0.5}


# One process at a time

HOLD = """
import sys, time
from ntkrobust_sk._locks import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_second_process_is_refused_with_folder_and_first_until_that_is_killed(tmp_path, other_process):
    for _ in range(2):
        by = f"{tmp_path} is in use by process {other_process.pid} on "
        with pytest.raises(FolderInUseError, match=by), held(tmp_path):
            pass
    other_process.kill()
    other_process.wait()
    with held(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert not any(tmp_path.iterdir())


def test_two_sessions_of_one_run_exclude_each_other_and_leave_nothing_behind(tmp_path):
    with RunDirectory.session(tmp_path / "run", SETTINGS) as run:
        other = RunDirectory.session(tmp_path / "run", SETTINGS | {"epochs": 9})
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"), other:
            pass
        run.append({"task": "first"})
    with RunDirectory.session(tmp_path / "run", SETTINGS) as again:
        assert again.results() == [{"task": "first"}]
    assert sorted(file.name for file in run.path.iterdir()) == ["results.jsonl", "settings.json"]


def test_a_lock_that_is_a_link_is_refused_and_not_followed(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match=r"\.lock"), held(tmp_path):
        pass
    assert (tmp_path / "kept").read_text() == "kept"


def test_where_the_file_system_cannot_lock_a_word_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("ntkrobust_sk._locks.fcntl.flock", refuse)
    with pytest.warns(RuntimeWarning, match="cannot lock"), held(tmp_path):
        pass


# Files and their places


def test_a_file_at_another_place_or_of_another_run_is_not_taken_for_this_one(run, tmp_path):
    other = RunDirectory.open(tmp_path / "other", SETTINGS | {"alpha": 0.5})
    place, next_to_it = ("seed-0", "a.safetensors"), ("seed-1", "a.safetensors")
    run.save(small_tree(), *place)
    other.save(small_tree(), *place)
    assert set(run.arrays(*place)) == set(small_tree())
    shutil.copy(run.joined(*place), run.joined(*next_to_it))
    with pytest.raises(DamagedCheckpointError, match=r"seed-1/a\.safetensors is of something else: .*seed-0"):
        run.load(small_tree(), *next_to_it)
    shutil.copy(other.joined(*place), run.joined(*place))
    with pytest.raises(DamagedCheckpointError, match=r"seed-0/a\.safetensors is of something else"):
        run.arrays(*place)
    shutil.copytree(other.path, tmp_path / "moved")
    assert set(RunDirectory(tmp_path / "moved").arrays(*place)) == set(small_tree())


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_before_the_last_is_an_error_with_its_number_and_nothing_is_cut(run, number):
    file = with_results(run, [*RESULTS, {"task": "third"}])
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:8] + b"\n"
    file.write_bytes(b"".join(lines))
    with pytest.raises(OSError, match=rf"line {number} of .*results\.jsonl cannot be read .* delete it"):
        run.results()
    assert file.read_bytes() == b"".join(lines)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(run):
    file = with_results(run)
    before = file.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        run.append({"robust": np.zeros(2)})
    assert file.read_bytes() == before


# Checkpoints


def awkward_numbers():
    floats = np.array([0.1, -0.0, np.inf, np.nan, np.finfo(np.float32).tiny / 2, 1 / 3], np.float32)
    return {"floats": floats, "rows": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}


TREES = {
    "floats": awkward_numbers,
    "numbers": lambda: {"step": np.int32(-5), "loss": np.float32(np.inf)},
    "bool": lambda: {"one": np.array(False), "many": np.array([True, False])},
    "empty": lambda: {"nothing": np.zeros((0, 3), np.float32)},
    "key": lambda: {"key": jax.random.key(5)},
    "keys": lambda: {"keys": jax.random.split(jax.random.key(5), 3)},
    "nested": lambda: Outer(
        Inner({"dense": [np.ones(2, np.float32)], "n": np.int32(1)}, np.int8(3)), jax.random.key(1)
    ),
    "state with a tuple": lambda: (np.float32(1.5), {"a": {"b": np.arange(4, dtype=np.int32)}}, None),
}


@pytest.mark.parametrize("kind", TREES)
def test_a_checkpoint_comes_back_to_the_bit(kind, checkpoint):
    tree = TREES[kind]()
    save_checkpoint(checkpoint, tree)
    # what is loaded must not come from the numbers of the pytree that says its structure
    like = jax.tree.map(
        lambda leaf: (
            jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(leaf)))
            if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
            else np.zeros_like(leaf)
        ),
        tree,
    )
    assert bits(load_checkpoint(checkpoint, like)) == bits(tree)


def test_a_key_that_comes_back_draws_the_same_numbers(checkpoint):
    key = jax.random.fold_in(jax.random.key(3), 8)
    save_checkpoint(checkpoint, {"key": key})
    found = load_checkpoint(checkpoint, {"key": jax.random.key(0)})["key"]
    np.testing.assert_array_equal(jax.random.bits(found, (4,)), jax.random.bits(key, (4,)))


def test_arrays_are_found_by_their_names_without_the_structure(checkpoint):
    save_checkpoint(checkpoint, Outer(Inner({"dense": np.ones(2, np.float32)}, np.int32(3)), jax.random.key(1)))
    arrays = read_arrays(checkpoint)
    assert set(arrays) == {"inner/mean/dense", "inner/count", "key"}
    assert arrays["inner/count"].shape == () and arrays["inner/count"] == 3


def test_any_reader_of_safetensors_can_read_a_checkpoint(checkpoint):
    save_checkpoint(checkpoint, small_tree())
    for name, array in safetensors.load_file(checkpoint).items():
        np.testing.assert_array_equal(array, small_tree()[name], strict=True)


def test_a_newer_checkpoint_takes_the_place_of_the_older(checkpoint):
    for step in (1, 2):
        save_checkpoint(checkpoint, {"step": np.int32(step)})
    assert load_checkpoint(checkpoint, {"step": np.int32(0)})["step"] == 2
    assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]


# Damage


def assert_damaged(checkpoint):
    with pytest.raises(DamagedCheckpointError) as caught:
        load_checkpoint(checkpoint, small_tree())
    assert f"the checkpoint {checkpoint}" in str(caught.value)


def test_no_flipped_bit_goes_unseen(checkpoint):
    save_checkpoint(checkpoint, small_tree())
    good = checkpoint.read_bytes()
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        checkpoint.write_bytes(flipped)
        assert_damaged(checkpoint)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_damaged(checkpoint, share):
    save_checkpoint(checkpoint, small_tree())
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[: int(share * len(good))])
    assert_damaged(checkpoint)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint at all", b"\x00" * 64, b"\xff" * 64, b"\x80\x04]\x94."], ids=repr
)
def test_what_is_no_safetensors_file_is_damaged(checkpoint, content):
    checkpoint.write_bytes(content)
    assert_damaged(checkpoint)


def test_a_safetensors_file_without_a_checksum_is_damaged(checkpoint):
    checkpoint.write_bytes(safetensors.save(jax.tree.map(np.array, small_tree())))
    assert_damaged(checkpoint)


@pytest.mark.parametrize(
    "like, expected",
    [
        ({"bias": np.zeros(4, np.float32)}, r"bias should be float32\(4,\), found float32\(3,\)"),
        ({"bias": np.zeros((3, 1), np.float32)}, r"bias should be float32\(3, 1\), found float32\(3,\)"),
        ({"bias": np.zeros(3, np.int32)}, r"bias should be int32\(3,\), found float32\(3,\)"),
        ({"step": np.zeros(1, np.int32)}, r"step should be int32\(1,\), found int32\(\)"),
        ({"done": jax.random.key(0)}, r"done should be uint32\(2,\), found bool\(\)"),
        ({"layer": {"bias": np.zeros(3, np.float32)}}, r"layer/bias should be float32\(3,\), found nothing"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_with_what_was_expected(checkpoint, like, expected):
    save_checkpoint(checkpoint, small_tree())
    with pytest.raises(DamagedCheckpointError, match=rf"state\.safetensors is of something else: {expected}"):
        load_checkpoint(checkpoint, small_tree() | like)


def test_a_missing_checkpoint_is_a_missing_file_and_not_a_damaged_one(checkpoint):
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors"):
        load_checkpoint(checkpoint, small_tree())


# A full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_checkpoint_that_was_there_stays_and_the_error_says_what_to_do(
    checkpoint, full_disk, number
):
    save_checkpoint(checkpoint, small_tree())
    before = contents(checkpoint.parent)
    full_disk(number)
    with pytest.raises(OSError, match="make room, and the same command goes on from there") as caught:
        save_checkpoint(checkpoint, small_tree() | {"step": np.int32(8)})
    assert caught.value.errno == number and caught.value.filename == str(checkpoint)
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert contents(checkpoint.parent) == before


def test_on_a_full_disk_a_first_write_leaves_no_file_at_all(tmp_path, full_disk):
    full_disk()
    with pytest.raises(OSError, match="could not be written"):
        write_atomically(tmp_path / "new.json", b"{}")
    assert contents(tmp_path) == {}


def test_a_run_that_could_not_be_made_on_a_full_disk_can_be_made_later(tmp_path, full_disk, monkeypatch):
    full_disk()
    with pytest.raises(OSError, match="could not be written"):
        RunDirectory.open(tmp_path / "run", SETTINGS)
    monkeypatch.undo()
    assert RunDirectory.open(tmp_path / "run", SETTINGS).results() == []


def test_on_a_full_disk_the_results_so_far_are_kept(run, full_disk):
    with_results(run)
    full_disk()
    with pytest.raises(OSError, match="make room") as caught:
        run.append({"task": "too much"})
    assert caught.value.filename == str(run.path / "results.jsonl")
    assert run.results()[: len(RESULTS)] == RESULTS


def test_other_errors_of_the_disk_are_passed_on_as_they_are(checkpoint, full_disk):
    full_disk(errno.EIO)
    with pytest.raises(OSError) as caught:
        save_checkpoint(checkpoint, small_tree())
    assert caught.value.errno == errno.EIO and "make room" not in str(caught.value)
    assert contents(checkpoint.parent) == {}


def test_a_machine_without_memory_does_not_make_a_checkpoint_damaged(tmp_path, monkeypatch):
    def without_memory(data):
        raise MemoryError("there is none left")

    path = tmp_path / "state.safetensors"
    save_checkpoint(path, {"w": np.ones(2)})
    monkeypatch.setattr("safetensors.numpy.load", without_memory)
    with pytest.raises(MemoryError, match="none left"):
        load_checkpoint(path, {"w": np.ones(2)})
