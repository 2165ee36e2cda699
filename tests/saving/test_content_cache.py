"""A cache by content: each result is computed once, and a file that cannot be trusted is computed again."""

import shutil
import threading
import time

import joblib
import numpy as np
import pytest

from ntkrobust_sk.saving.content_cache import ContentCache, resolve_cache

VALUES = np.arange(6.0).reshape(2, 3)


def asked(cache, about, made):
    """What the cache gives; ``made`` notes each computation."""

    def make():
        made.append(about)
        return VALUES * about["times"]

    return cache.get("product", about, make)


def test_what_was_computed_once_is_read_afterwards_to_the_bit(tmp_path):
    cache, made = ContentCache(tmp_path / "new" / "folder"), []
    for times in (1, 3, 1, 3, 3):
        np.testing.assert_array_equal(asked(cache, {"times": times}, made), VALUES * times)
    assert made == [{"times": 1}, {"times": 3}]
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".ntk", ".ntk"]


def spoil_cut(path, other):
    path.write_bytes(path.read_bytes()[:-40])


def spoil_bit(path, other):
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(4.0).tobytes()) + 7] ^= 1
    path.write_bytes(content)


def spoil_empty(path, other):
    path.write_bytes(b"")


def spoil_text(path, other):
    path.write_text("no archive")


def spoil_exchange(path, other):
    shutil.copy(other, path)


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_bit, spoil_empty, spoil_text, spoil_exchange])
def test_a_file_that_cannot_be_trusted_is_computed_again_with_a_warning(tmp_path, spoil):
    cache, made = ContentCache(tmp_path), []
    asked(cache, {"times": 1}, made), asked(cache, {"times": 2}, made)
    spoil(cache.path("product", {"times": 1}), cache.path("product", {"times": 2}))
    with pytest.warns(UserWarning, match="cannot be used, and what it should hold is computed again"):
        np.testing.assert_array_equal(asked(cache, {"times": 1}, made), VALUES)
    # and the file is good again
    np.testing.assert_array_equal(asked(cache, {"times": 1}, made), VALUES)
    assert made == [{"times": 1}, {"times": 2}, {"times": 1}]


def test_two_that_want_the_same_at_once_wait_for_each_other(tmp_path):
    made, found = [], []

    def make():
        made.append(threading.get_ident())
        time.sleep(0.05)
        return VALUES

    threads = [
        threading.Thread(target=lambda: found.append(ContentCache(tmp_path).get("slow", {}, make)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".ntk"]


def test_an_error_of_the_computation_is_raised_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        ContentCache(tmp_path).get("broken", {}, lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_is_returned_with_a_warning(tmp_path):
    cache, made = ContentCache(tmp_path), []
    path = cache.path("product", {"times": 2})
    (tmp_path / f"{path.name}.lock").mkdir()
    with pytest.warns(UserWarning, match="not kept in the cache"):
        np.testing.assert_array_equal(asked(cache, {"times": 2}, made), VALUES * 2)
    with pytest.warns(UserWarning, match="not kept in the cache.*cannot be saved"):
        cache.get("object", {}, object)
    assert [path.name for path in tmp_path.iterdir()] == [f"{path.name}.lock"]


def test_a_cache_is_a_folder_or_a_memory_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert resolve_cache("cache", str(tmp_path)) == ContentCache(tmp_path)
    assert resolve_cache("cache", joblib.Memory(tmp_path)) == ContentCache(tmp_path / "ntkrobust_sk")
    assert resolve_cache("cache", joblib.Memory(None)) is None
    for wrong in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="must be the path of a folder"):
            resolve_cache("cache", wrong)
    for wrong in (5, b"bytes", True, joblib.Memory, ["a"]):
        with pytest.raises(TypeError, match=r"cache must be .*got"):
            resolve_cache("cache", wrong)
    with pytest.raises(ValueError, match="URL"):
        resolve_cache("cache", "s3://bucket/kernels")
