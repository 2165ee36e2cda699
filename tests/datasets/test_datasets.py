"""The loaders give back what was written, and refuse what is not the published data."""

import gzip
import hashlib
import math
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets

from ntkrobust_sk.datasets import loaders as datasets
from ntkrobust_sk.datasets import published
from ntkrobust_sk.datasets.loaders import (
    load_cifar10,
    load_cifar100,
    load_digits_images,
    load_fashion_mnist,
    load_mnist,
)
from ntkrobust_sk.datasets.splits import class_balanced_indices

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

# Every published number of images per class, divided down: the same code on files of kilobytes.
SMALL = {
    "CIFAR10": {"train": (5,) * 10, "test": (2,) * 10},
    "CIFAR100": {"train": (2,) * 100, "test": (1,) * 100},
    "MNIST": {"train": (3, 4, 2, 3, 3, 2, 3, 4, 3, 3), "test": (1, 2) * 5},
    "FASHION_MNIST": {"train": (3,) * 10, "test": (1,) * 10},
}
IDX = {"MNIST": load_mnist, "FASHION_MNIST": load_fashion_mnist}
OPENML = {**IDX, "CIFAR10": load_cifar10}


@pytest.fixture
def small(monkeypatch):
    for name, counts in SMALL.items():
        monkeypatch.setattr(datasets, name, replace(getattr(datasets, name), counts=counts, sha256={}))


def labels_and_pixels(counts, shape, seed=0):
    """Shuffled labels with these counts, and random bytes of shape (n, *shape)."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.uint8)
    return y, rng.integers(0, 256, (len(y), *shape), dtype=np.uint8)


def write_cifar10(folder, split, counts=None):
    y, pixels = labels_and_pixels(counts or SMALL["CIFAR10"][split], (3, 32, 32))
    records = np.column_stack([y, pixels.reshape(len(y), -1)])
    files = datasets.CIFAR10.files[split]
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in zip(files, np.split(records, len(files)), strict=True):
        (folder / file).write_bytes(part.tobytes())
    return pixels, y


def write_cifar100(folder, split):
    fine, pixels = labels_and_pixels(SMALL["CIFAR100"][split], (3, 32, 32))
    coarse = fine // 5
    records = np.column_stack([coarse, fine, pixels.reshape(len(fine), -1)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.bin").write_bytes(records.tobytes())
    return pixels, coarse, fine


def idx_bytes(array):
    return struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, split, counts, compressed=True):
    y, pixels = labels_and_pixels(counts, (28, 28))
    for file, array in zip(published._IDX_FILES[split], (pixels, y), strict=True):
        content = idx_bytes(array)
        path = folder / (f"{file}.gz" if compressed else file)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return pixels, y


def assert_images_and_labels(X, y, pixels, labels):
    """X is channel-last float32 in [0, 1] that gives back the bytes (n, channel, row, column); y is int64."""
    assert X.dtype == np.float32 and X.flags.c_contiguous and y.dtype == np.int64
    assert X.shape == (len(pixels), *pixels.shape[2:], pixels.shape[1])
    np.testing.assert_array_equal(X.transpose(0, 3, 1, 2), pixels / np.float32(255))
    np.testing.assert_array_equal(y, labels)


# ---- digits


def test_digits_are_images_in_the_unit_interval_with_integer_labels():
    X, y = load_digits_images()
    assert X.shape == (1797, 8, 8, 1) and X.dtype == np.float32 and y.dtype == np.int64
    assert X.min() == 0 and X.max() == 1
    assert sorted(set(y.tolist())) == list(range(10))


# ---- files: what was written comes back


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_files_come_back_in_order_from_their_folder_and_from_the_one_above(
    small, tmp_path, split, subfolder
):
    pixels, labels = write_cifar10(tmp_path / subfolder, split)
    assert_images_and_labels(*load_cifar10(tmp_path, split=split), pixels, labels)
    assert_images_and_labels(*load_cifar10(str(tmp_path), split=split), pixels, labels)


@pytest.mark.slow
def test_a_cifar10_file_of_the_published_size_is_accepted(tmp_path):
    pixels, labels = write_cifar10(tmp_path, "test", counts=(1_000,) * 10)
    assert (tmp_path / "test_batch.bin").stat().st_size == 30_730_000
    with pytest.warns(UserWarning, match=r"test_batch\.bin is not the published file of CIFAR-10"):
        assert_images_and_labels(*load_cifar10(tmp_path, split="test"), pixels, labels)


@pytest.mark.parametrize("subfolder", ["", "cifar-100-binary"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar100_records_are_coarse_label_fine_label_pixels(small, tmp_path, split, subfolder):
    pixels, coarse, fine = write_cifar100(tmp_path / subfolder, split)
    assert_images_and_labels(*load_cifar100(tmp_path, split=split), pixels, fine)
    assert_images_and_labels(*load_cifar100(tmp_path, split=split, labels="coarse"), pixels, coarse)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", IDX)
def test_idx_files_come_back_compressed_or_not(small, tmp_path, name, split, compressed):
    pixels, labels = write_idx(tmp_path, split, SMALL[name][split], compressed)
    assert_images_and_labels(*IDX[name](tmp_path, split=split), pixels[:, None], labels)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "MNIST", "FASHION_MNIST"])
def test_the_published_sizes_are_those_of_the_literature(name):
    source = getattr(datasets, name)
    n_train = 50_000 if "CIFAR" in name else 60_000
    assert [sum(source.counts[split]) for split in ("train", "test")] == [n_train, 10_000]
    assert {len(counts) for counts in source.counts.values()} == {source.label_sizes[-1]}


# ---- files: what is not the published data is refused


@pytest.mark.parametrize(
    ("cut", "found"), [(1, "found 30729"), (-5, r"found more than 30730"), (30730, "found 0")]
)
def test_a_cifar_file_of_the_wrong_size_is_refused_by_name(small, tmp_path, cut, found):
    write_cifar10(tmp_path, "train")
    path = tmp_path / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut] if cut > 0 else content + bytes(-cut))
    with pytest.raises(ValueError, match=rf"data_batch_3\.bin: expected 30730 bytes.*{found}.*get it again"):
        load_cifar10(tmp_path)


def test_a_cifar10_label_beyond_nine_is_refused_with_its_record(small, tmp_path):
    write_cifar10(tmp_path, "test")
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[7 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test_batch\.bin: expected labels 0 to 9, found 10 in record 7"):
        load_cifar10(tmp_path, split="test")


@pytest.mark.parametrize(("byte", "label", "largest"), [(0, 20, 19), (1, 100, 99)])
@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_both_cifar100_labels_are_checked_whichever_is_asked_for(small, tmp_path, byte, label, largest, labels):
    write_cifar100(tmp_path, "test")
    path = tmp_path / "test.bin"
    content = bytearray(path.read_bytes())
    content[2 * 3074 + byte] = label
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected labels 0 to {largest}, found {label} in record 2"):
        load_cifar100(tmp_path, split="test", labels=labels)


def test_a_batch_that_is_there_twice_is_found_by_its_class_counts(small, tmp_path):
    write_cifar10(tmp_path, "train")
    (tmp_path / "data_batch_2.bin").write_bytes((tmp_path / "data_batch_1.bin").read_bytes())
    with pytest.raises(ValueError, match="expected the train split of CIFAR-10 with 5 images of class"):
        load_cifar10(tmp_path)


def test_fashion_mnist_in_the_place_of_mnist_is_refused(monkeypatch, tmp_path):
    counts = {"train": (2, 4) * 5, "test": (1,) * 10}
    monkeypatch.setattr(datasets, "MNIST", replace(datasets.MNIST, counts=counts, sha256={}))
    write_idx(tmp_path, "train", (3,) * 10)
    with pytest.raises(ValueError, match="train split of MNIST with 2 images of class 0, found 3"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_a_truncated_gzip_file_is_refused_by_name(small, tmp_path, keep):
    write_idx(tmp_path, "train", SMALL["MNIST"]["train"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[: math.floor(keep * len(content))])
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz: expected a whole gzip file"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(("position", "reason"), [(10, "invalid block type"), (-8, "CRC")])
def test_a_gzip_file_with_a_damaged_byte_is_refused(small, tmp_path, position, reason):
    write_idx(tmp_path, "train", SMALL["MNIST"]["train"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[position] = 0xFF - content[position] if reason == "CRC" else 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected a whole gzip file.*{reason}"):
        load_mnist(tmp_path)


def test_a_file_that_is_named_gz_but_is_none_is_refused(small, tmp_path):
    write_idx(tmp_path, "train", SMALL["MNIST"]["train"])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz: expected a whole gzip file"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (idx_bytes(np.zeros(30, np.uint8)), r"magic number 2051.*found 2049"),
        (idx_bytes(np.zeros((30, 32, 32), np.uint8)), r"shape \(30, 28, 28\), found 2051 and \(30, 32, 32\)"),
        (idx_bytes(np.zeros((10, 28, 28), np.uint8)), r"shape \(30, 28, 28\), found 2051 and \(10, 28, 28\)"),
        (idx_bytes(np.zeros((30, 28, 28), np.uint8))[:-1], "23536 bytes.*found 23535"),
        (idx_bytes(np.zeros((30, 28, 28), np.uint8)) + b"0", "23536 bytes.*found more than 23536"),
        (b"\x00\x00\x08", "23536 bytes.*found 3"),
        (b"", "23536 bytes.*found 0"),
        (b"\x89PNG" * 6000, "magic number 2051.*found 2303741511"),
    ],
    ids=["labels", "other pixels", "other split", "short", "long", "stub", "empty", "picture"],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_an_idx_file_that_is_not_the_published_one_is_refused(small, tmp_path, content, complaint, compressed):
    write_idx(tmp_path, "train", SMALL["FASHION_MNIST"]["train"], compressed)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.*: expected .*{complaint}"):
        load_fashion_mnist(tmp_path)


def test_an_idx_label_beyond_nine_is_refused_with_its_record(small, tmp_path):
    write_idx(tmp_path, "test", SMALL["MNIST"]["test"], compressed=False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[8 + 3] = 200
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected labels 0 to 9, found 200 in record 3"):
        load_mnist(tmp_path, split="test")


# ---- files: the published ones are known


def hashed(tmp_path, monkeypatch, name, split, compressed):
    """Small files of a data set that are published."""
    write_idx(tmp_path, split, SMALL[name][split], compressed)
    paths = [tmp_path / (file + ".gz" * compressed) for file in published._IDX_FILES[split]]
    contents = [gzip.decompress(p.read_bytes()) if compressed else p.read_bytes() for p in paths]
    known = {
        p.name.removesuffix(".gz"): hashlib.sha256(c).hexdigest() for p, c in zip(paths, contents, strict=True)
    }
    monkeypatch.setattr(datasets, name, replace(getattr(datasets, name), counts=SMALL[name], sha256=known))
    return paths


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compressed", [True, False])
def test_published_files_are_read_without_a_word_however_they_are_packed(tmp_path, monkeypatch, compressed):
    paths = hashed(tmp_path, monkeypatch, "MNIST", "train", compressed)
    load_mnist(tmp_path)
    if compressed:
        paths[0].write_bytes(gzip.compress(gzip.decompress(paths[0].read_bytes()), 1))
        load_mnist(tmp_path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("which", [0, 1], ids=["a pixel", "two labels"])
def test_a_file_of_the_published_form_with_other_content_is_read_with_a_warning_that_names_it(
    tmp_path, monkeypatch, which, compressed
):
    path = hashed(tmp_path, monkeypatch, "MNIST", "train", compressed)[which]
    content = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    if which == 0:
        content[100] ^= 1
    else:
        other = next(at for at in range(9, len(content)) if content[at] != content[8])
        content[8], content[other] = content[other], content[8]
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.warns(UserWarning, match=rf"{path.name} is not the published file of MNIST") as caught:
        load_mnist(tmp_path)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "content", [b"junk", b"\x1f\x8b", gzip.compress(b"more")], ids=["junk", "magic", "another"]
)
def test_a_gzip_file_with_something_after_its_end_is_refused(small, tmp_path, content):
    write_idx(tmp_path, "train", SMALL["MNIST"]["train"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes() + content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: expected"):
        load_mnist(tmp_path)


def test_a_gzip_file_that_grows_without_end_is_read_no_further_than_its_size(small, tmp_path):
    write_idx(tmp_path, "train", SMALL["MNIST"]["train"])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10**8)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: expected an IDX header"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    "wrong, kind", [(5, TypeError), (b"x", TypeError), ("~nosuch/x", ValueError), ("", ValueError)]
)
@pytest.mark.parametrize("load", [load_cifar10, load_cifar100, load_mnist, load_fashion_mnist])
def test_what_is_no_folder_is_refused_as_such(load, wrong, kind):
    with pytest.raises(kind, match="data_dir"):
        load(wrong)


@pytest.mark.parametrize("wrong", [np.array([1, 2]), [], None, 3, {}])
def test_odd_splits_and_labels_are_answered_with_the_known_ones(wrong):
    for load in (load_cifar10, load_cifar100, load_mnist, load_fashion_mnist):
        with pytest.raises(ValueError, match=r"unknown split .*; known are 'train', 'test'"):
            load("nowhere", split=wrong)
    with pytest.raises(ValueError, match=r"unknown labels .*; known are 'coarse', 'fine'"):
        load_cifar100("nowhere", labels=wrong)


# ---- files: missing


def test_a_missing_batch_is_named_with_every_place_looked_in_and_the_way_to_get_it(small, tmp_path):
    write_cifar10(tmp_path, "train")
    (tmp_path / "data_batch_4.bin").unlink()
    expected = r"data_batch_4\.bin or cifar-10-batches-bin/data_batch_4\.bin in .*cifar-10-binary\.tar\.gz"
    with pytest.raises(FileNotFoundError, match=expected):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("load", IDX.values())
def test_a_missing_idx_file_is_named_compressed_and_not(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz or t10k-images-idx3-ubyte in"):
        load(tmp_path, split="test")


@pytest.mark.parametrize("load", [load_cifar10, load_cifar100, load_mnist, load_fashion_mnist])
def test_a_missing_folder_is_said_to_be_missing(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="nowhere, found no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("load", "folder", "file"),
    [(load_cifar10, "cifar-10-batches-py", "data_batch_1"), (load_cifar100, "cifar-100-python", "train")],
)
def test_the_pickled_version_is_recognised_and_not_opened(tmp_path, load, folder, file, inside):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_bytes(b"\x80\x04 not to be read")
    with pytest.raises(
        FileNotFoundError, match=rf"pickled version \({folder}\)\. Only the binary version is read"
    ):
        load(tmp_path / folder if inside else tmp_path)


# ---- arguments


@pytest.mark.parametrize("load", [load_cifar10, load_cifar100, load_mnist, load_fashion_mnist])
def test_an_unknown_split_is_refused_before_any_file_is_looked_for(load):
    with pytest.raises(ValueError, match="unknown split 'valid'; known are 'train', 'test'"):
        load("nowhere", split="valid")


def test_cifar100_without_a_folder_asks_for_one(monkeypatch):
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: pytest.fail("must not be fetched"))
    with pytest.raises(ValueError, match=r"CIFAR-100: expected data_dir.*cifar-100-binary"):
        load_cifar100()


# ---- OpenML


def openml_table(name):
    """The table as OpenML gives it: training rows, then test rows; float pixels; labels as strings."""
    source = getattr(datasets, name)
    parts = [labels_and_pixels(SMALL[name][split], source.shape, seed) for seed, split in enumerate(SMALL[name])]
    y, pixels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    data = pixels.reshape(len(y), -1).astype(np.float64)
    return SimpleNamespace(data=data, target=y.astype(str).astype(object)), pixels, y


def serve(monkeypatch, table):
    calls = []
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **options: calls.append(options) or table)
    return calls


@pytest.mark.parametrize(("name", "data_id"), [("CIFAR10", 40927), ("MNIST", 554), ("FASHION_MNIST", 40996)])
def test_openml_rows_are_training_split_then_test_split(small, monkeypatch, name, data_id):
    table, pixels, labels = openml_table(name)
    calls = serve(monkeypatch, table)
    n_train = sum(SMALL[name]["train"])
    assert_images_and_labels(*OPENML[name](split="train"), pixels[:n_train], labels[:n_train])
    assert_images_and_labels(*OPENML[name](split="test"), pixels[n_train:], labels[n_train:])
    assert calls == [{"data_id": data_id, "as_frame": False}] * 2


def test_openml_rows_in_another_order_are_refused(small, monkeypatch):
    table, _, _ = openml_table("CIFAR10")
    serve(monkeypatch, SimpleNamespace(data=table.data, target=np.sort(table.target)))
    with pytest.raises(ValueError, match=r"OpenML data set 40927.*another data set or order"):
        load_cifar10()


@pytest.mark.parametrize("crop", [np.s_[:-1], np.s_[:, :-1]], ids=["a row less", "a column less"])
def test_an_openml_table_of_another_shape_is_refused(small, monkeypatch, crop):
    table, _, _ = openml_table("MNIST")
    serve(monkeypatch, SimpleNamespace(data=table.data[crop], target=table.target))
    with pytest.raises(ValueError, match=r"OpenML data set 554: expected MNIST of shape \(45, 784\), found"):
        load_mnist()


@pytest.mark.parametrize("bad", [256.0, -1.0, 0.5, np.nan])
def test_openml_pixels_that_are_no_bytes_are_refused(small, monkeypatch, bad):
    table, _, _ = openml_table("MNIST")
    table.data[3, 5] = bad
    serve(monkeypatch, table)
    with pytest.raises(ValueError, match="expected integer pixels from 0 to 255"):
        load_mnist()


@pytest.mark.parametrize("bad", ["frog", "10", "1.5"])
def test_openml_labels_that_are_no_classes_are_refused(small, monkeypatch, bad):
    table, _, _ = openml_table("CIFAR10")
    table.target[0] = bad
    serve(monkeypatch, table)
    with pytest.raises(ValueError, match="OpenML data set 40927: expected integer labels"):
        load_cifar10()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("no pandas"), "Install pandas, or pass data_dir"),
        (OSError("offline"), "offline.*pass data_dir"),
    ],
)
def test_a_failed_fetch_points_to_the_files(monkeypatch, error, expected):
    def fail(**_):
        raise error

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fail)
    with pytest.raises(type(error), match=expected):
        load_fashion_mnist()


# ---- subsets

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


def test_a_balanced_subset_has_the_same_number_of_every_class():
    indices = class_balanced_indices(LABELS, 500)
    assert indices.dtype == np.int64 and len(set(indices.tolist())) == 500
    assert np.all(np.diff(indices) > 0)
    assert np.bincount(LABELS[indices]).tolist() == [50] * 10


def test_a_remainder_goes_one_each_to_classes_that_the_seed_chooses():
    larger = [
        np.flatnonzero(np.bincount(LABELS[class_balanced_indices(LABELS, 23, random_state=seed)]) == 3).tolist()
        for seed in range(5)
    ]
    assert all(len(classes) == 3 for classes in larger)
    assert len(set(map(tuple, larger))) > 1


def test_a_smaller_subset_is_part_of_every_larger_one():
    subsets = [set(class_balanced_indices(LABELS, n, random_state=3).tolist()) for n in (10, 14, 27, 100, 600)]
    assert all(a < b for a, b in pairwise(subsets))


def test_the_seed_decides_the_subset():
    first = class_balanced_indices(LABELS, 100, random_state=1)
    np.testing.assert_array_equal(first, class_balanced_indices(LABELS, 100, random_state=1))
    assert not np.array_equal(first, class_balanced_indices(LABELS, 100, random_state=2))


def test_labels_may_be_strings():
    y = np.array(["cat", "dog", "emu"])[np.arange(12) % 3]
    assert np.unique(y[class_balanced_indices(y, 6)], return_counts=True)[1].tolist() == [2, 2, 2]


def test_a_class_with_too_few_samples_is_named_with_the_largest_possible_size():
    with pytest.raises(ValueError, match=r"takes 3 of class b, which has 1\. Ask for at most 2"):
        class_balanced_indices(["a"] * 5 + ["b"], 6)
    assert len(class_balanced_indices(["a"] * 5 + ["b"], 2)) == 2


@pytest.mark.parametrize(
    ("y", "n_samples", "error", "complaint"),
    [
        (LABELS, 9, ValueError, "at least the number of classes, 10"),
        ([], 3, ValueError, "y must not be empty"),
        (np.eye(4), 4, ValueError, r"shape \(4, 4\).*argmax"),
        (LABELS, 20.0, ValueError, "n_samples must be an integer >= 0, got 20"),
    ],
    ids=["fewer than classes", "empty", "one-hot", "float"],
)
def test_arguments_that_allow_no_balanced_subset_are_refused(y, n_samples, error, complaint):
    with pytest.raises(error, match=complaint):
        class_balanced_indices(y, n_samples)


# ---- the real data, where it is


@pytest.fixture(scope="module")
def real_cifar10(tmp_path_factory):
    if not (SHARED / "unpack.py").is_file():
        pytest.skip("the CIFAR-10 archive does not lie beside the repository")
    pytest.importorskip("PIL", reason="unpacking the CIFAR-10 archive needs Pillow")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(SHARED / "unpack.py"), str(folder)], check=True, capture_output=True)
    return folder


def test_the_real_cifar10_has_the_published_labels_and_channel_means(real_cifar10):
    X, y = load_cifar10(real_cifar10)
    assert X.shape == (50_000, 32, 32, 3)
    assert y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    np.testing.assert_allclose(X.mean((0, 1, 2), np.float64), [0.4914, 0.4822, 0.4465], atol=5e-5)
    X, y = load_cifar10(real_cifar10 / "cifar-10-batches-bin", split="test")
    assert X.shape == (10_000, 32, 32, 3) and y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert X.min() == 0 and X.max() == 1


def test_the_real_fashion_mnist_has_the_published_labels_and_moments():
    folder = SHARED / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("the Fashion-MNIST files do not lie beside the repository")
    X, y = load_fashion_mnist(folder)
    assert X.shape == (60_000, 28, 28, 1) and y[:5].tolist() == [9, 0, 0, 3, 0]
    assert (round(float(X.mean(dtype=np.float64)), 4), round(float(X.std(dtype=np.float64)), 4)) == (
        0.286,
        0.353,
    )
    X, y = load_fashion_mnist(folder, split="test")
    assert X.shape == (10_000, 28, 28, 1) and y[:5].tolist() == [9, 2, 1, 1, 6]
    with pytest.raises(ValueError, match="train split of MNIST with 5923 images of class 0, found 6000"):
        load_mnist(folder)
