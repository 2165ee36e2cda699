"""Files: what is there is whole, nothing is written through links, and whatever fails names its file."""

import errno
import io
import os
import socket
import stat
import struct
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from ntkrobust_sk import MLP, Model, _files, gram, load
from ntkrobust_sk._files import is_part, read_json, read_npz, write_atomically, written_atomically
from ntkrobust_sk._locks import held
from ntkrobust_sk.cli.attacked_examples import read_examples
from ntkrobust_sk.cli.saved_models import load_estimator
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.kernels.store import read_gram
from ntkrobust_sk.training.checkpoints import load_checkpoint


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


# Written


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask, mask, expected):
    umask(mask)
    write_atomically(tmp_path / "new", b"1")
    assert mode(tmp_path / "new") == expected


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"1")
    path.chmod(0o640)
    write_atomically(path, b"2")
    assert path.read_bytes() == b"2" and mode(path) == 0o640


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert target.read_bytes() == b"precious" and link.read_bytes() == b"new" and not link.is_symlink()


def test_nobody_can_prepare_a_link_where_the_unfinished_file_will_be(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    monkeypatch.setattr(_files.secrets, "token_hex", lambda n: "0" * 2 * n)
    trap = tmp_path / f".ntkrobust-{'0' * 16}.part"
    trap.symlink_to(target)
    with pytest.raises(FileExistsError, match="new"):
        write_atomically(tmp_path / "new", b"1")
    assert target.read_bytes() == b"precious" and not (tmp_path / "new").exists()


def test_two_unfinished_files_have_two_names_and_are_told_apart_from_others(tmp_path):
    with written_atomically(tmp_path / "a") as a, written_atomically(tmp_path / "a") as b:
        a.write(b"a")
        b.write(b"b")
        parts = list(tmp_path.iterdir())
        assert len(parts) == 2 and all(is_part(part) for part in parts)
    assert not is_part("a.part") and not is_part(".ntkrobust-.part")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and (tmp_path / "a").read_bytes() == b"a"


class StopError(BaseException):
    pass


def test_whatever_stops_the_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(StopError), written_atomically(path) as out:
        out.write(b"half")
        raise StopError
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"before"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_is_named_by_the_file_that_was_wanted(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_files.os, "fsync", fail)
    with pytest.raises(OSError, match="could not be written") as caught:
        write_atomically(tmp_path / "wanted", b"1")
    assert caught.value.errno == number and caught.value.filename == str(tmp_path / "wanted")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named_by_the_file_that_was_wanted(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "none" / "wanted", b"1")
    assert caught.value.filename == str(tmp_path / "none" / "wanted")


def test_a_folder_in_the_place_of_the_file_is_named_and_left_alone(tmp_path):
    (tmp_path / "wanted").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "wanted", b"1")
    assert caught.value.filename == str(tmp_path / "wanted")
    assert [p.name for p in tmp_path.iterdir()] == ["wanted"]


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_folder_without_a_name_is_named_too(path):
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(path, b"1")
    assert caught.value.filename == path


def as_a_device(path, monkeypatch, mode):
    """Lets the system say of a file that it is a device."""
    real = os.stat

    def stat_(asked, *arguments, **options):
        found = real(asked, *arguments, **options)
        return os.stat_result((mode, *found[1:])) if os.fspath(asked) == str(path) else found

    path.touch()
    monkeypatch.setattr(_files.os, "stat", stat_)


def make_irregular(path, kind, monkeypatch):
    """Put at a path what is no file; whoever opened it would wait or harm."""
    if kind == "a socket":
        monkeypatch.chdir(path.parent)  # sockets have short names
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "a device":
        as_a_device(path, monkeypatch, stat.S_IFCHR | 0o666)
    else:
        os.mkfifo(path)


IRREGULAR = ("a named pipe", "a socket", "a device")


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_is_never_replaced(tmp_path, monkeypatch, kind, through_a_link):
    make_irregular(tmp_path / "wanted", kind, monkeypatch)
    path = tmp_path / "wanted"
    if through_a_link and kind != "a device":
        path = tmp_path / "link"
        path.symlink_to("wanted")
    before = path.lstat()
    with pytest.raises(OSError, match=f"this is {kind}") as caught:
        write_atomically(path, b"1")
    assert caught.value.filename == str(path) and os.path.samestat(path.lstat(), before)
    assert not any(is_part(file) for file in tmp_path.iterdir())


def test_a_pipe_that_comes_while_the_file_is_written_is_not_replaced(tmp_path):
    with pytest.raises(OSError, match="this is a named pipe"), written_atomically(tmp_path / "a") as out:
        out.write(b"1")
        os.mkfifo(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and stat.S_ISFIFO((tmp_path / "a").lstat().st_mode)


def test_a_link_to_nothing_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    write_atomically(tmp_path / "link", b"1")
    assert (tmp_path / "link").read_bytes() == b"1" and not (tmp_path / "nothing").exists()


# Read


def run_folder(path):
    path.mkdir()
    run = RunDirectory.open(path, {"a": 1})
    run.append({"task": "first"})
    return run


def saved_gram(path):
    model = Model(MLP(2, (3,)), MLP(2, (3,)).init(jax.random.key(0), (4,)))
    X = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    gram("trace", model, X, store=path)
    return lambda: gram("trace", model, X, store=path)


READERS = {
    "a.json": lambda path: (path / "a.json", lambda: read_json(path / "a.json")),
    "a.npz": lambda path: (path / "a.npz", lambda: read_npz(path / "a.npz")),
    "data": lambda path: (path / "b.npz", lambda: load_splits(path / "b.npz", n_train=None, n_test=2)),
    "examples": lambda path: (path / "c.npz", lambda: read_examples(path / "c.npz")),
    "estimator": lambda path: (path / "m.joblib", lambda: load_estimator(path / "m.joblib")),
    "saved": lambda path: (path / "m.ntk", lambda: load(path / "m.ntk")),
    "checkpoint": lambda path: (path / "s", lambda: load_checkpoint(path / "s", {"a": np.zeros(2)})),
    "lock": lambda path: (path / ".lock", lambda: held(path).__enter__()),
}


def _of_run(name, call):
    def made(path):
        run = run_folder(path / "run")
        return run.path / name, lambda: call(RunDirectory(run.path))

    return made


def _of_store(name, reads):
    def made(path):
        again = saved_gram(path / "K.zarr")
        return path / "K.zarr" / name, (lambda: read_gram(path / "K.zarr")) if reads else again

    return made


READERS |= {
    "settings": _of_run("settings.json", lambda run: run.settings),
    "results": _of_run("results.jsonl", lambda run: run.results()),
    "a further result": _of_run("results.jsonl", lambda run: run.append({"task": "second"})),
} | {
    f"{'read' if reads else 'written'} {name}": _of_store(name, reads)
    for name in ("zarr.json", "c/0/0", "checksums/0")
    for reads in (True, False)
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_in_the_place_of_any_file_is_named_and_not_waited_for(tmp_path, reader, nothing_waits):
    file, read = READERS[reader](tmp_path)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises((OSError, ValueError)) as caught:
        read()
    assert file.name in str(caught.value) or str(file.relative_to(tmp_path)) in str(caught.value)
    assert stat.S_ISFIFO(file.lstat().st_mode)


ARRAYS = {
    "X": np.arange(12.0).reshape(3, 4),
    "y": np.array([2, 0, 1]),
    "F": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "text": np.array(["cat", "elk"]),
    "one": np.array(7),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_comes_back_to_the_bit(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_npz(tmp_path / "a.npz")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].dtype == array.dtype and found[name].flags.writeable
    assert set(read_npz(tmp_path / "a.npz", ["y", "z"])) == {"y"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_bit_of_an_npz_file_that_is_flipped_is_found_or_changes_nothing(tmp_path, save):
    path, arrays = tmp_path / "a.npz", {"X": np.arange(3.0), "y": np.arange(3)}
    save(path, **arrays)
    whole, refused = path.read_bytes(), 0
    for at in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = read_npz(path)
        except ValueError as error:
            assert "a.npz" in str(error)
            refused += 1
        else:
            assert {name: array.tolist() for name, array in found.items()} == {
                name: array.tolist() for name, array in arrays.items()
            }, f"bit {at}"
    assert refused > len(whole) // 2


def test_the_bit_that_numpy_does_not_see_is_seen(tmp_path):
    # a header that asks for less: NumPy stops reading before it comes to the checksum
    path, X = tmp_path / "a.npz", np.arange(24_000.0).reshape(6000, 4)
    np.savez(path, X=X)
    path.write_bytes(path.read_bytes().replace(b"(6000, 4)", b"(4000, 4)"))
    assert np.load(path)["X"].shape == (4000, 4)
    with pytest.raises(ValueError, match=r"a\.npz \(array 'X'\) cannot be read .*CRC"):
        read_npz(path)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape, descr="<f8", data=b"", order=False):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": order, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (npy((10**12,)), r"asks for 8,000,000,000,000 bytes .* but 0 are there"),
        (npy((10**30, 10**30)), "but 0 are there"),
        (npy((-1,)), "but 0 are there"),
        (npy((2, -1), data=bytes(16)), "but 16 are there"),
        (npy((2,), data=bytes(15)), "but 15 are there"),
        (npy((2,), data=bytes(17)), "but 17 are there"),
        (npy((2,), "|O", bytes(16)), "nothing is unpickled"),
        (npy((2,), [("a", "<f8")], bytes(16)), "no plain numbers"),
        (npy((10**12,), "<U0"), "no plain numbers"),
        (b"", "cannot be read"),
        (b"\x80\x04]\x94.", "cannot be read"),
        (b"\x93NUMPY\x03\x00" + npy((1,), data=bytes(8))[8:], "version"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"{" * 100, "cannot be read"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_whose_header_is_wrong_is_refused_before_anything_is_allocated(tmp_path, content, complaint):
    zipped(tmp_path / "a.npz", X=content)
    with pytest.raises(ValueError, match=rf"a\.npz \(array 'X'\) .*{complaint}"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", npy((1,), data=bytes(8)))
        archive.writestr("X.npy", npy((2,), data=bytes(16)))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read .* one name"):
        read_npz(tmp_path / "a.npz")


def test_a_list_of_arrays_that_is_cut_short_hides_none(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, X=np.zeros(3), X_test=np.ones(3))
    whole = path.read_bytes()
    end = whole.rindex(b"PK\5\6")
    second = whole.rindex(b"PK\1\2")
    size, start = struct.unpack("<II", whole[end + 12 : end + 20])
    # one that begins at the second entry, as a flipped bit in its size can have it
    moved = struct.pack("<II", end - second, start + second - (end - size))
    path.write_bytes(whole[: end + 12] + moved + whole[end + 20 :])
    assert np.load(path).files == ["X_test"]
    with pytest.raises(ValueError, match=r"a\.npz cannot be read .*states 2 arrays, but lists 1"):
        read_npz(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_npz(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"a": 1', "\xff", "[" * 100_000, "1" * 5000], ids=range(5))
def test_json_that_cannot_be_read_names_its_file(tmp_path, content):
    path = Path(tmp_path / "a.json")
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(OSError, match=r"a\.json cannot be read as JSON"):
        read_json(path)
