"""The data sets as they were published: where their files are, how they are read, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .._validation import check_choice, check_path

# Images (n, row, column, channel) and labels (n,).
Images = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set as published; whatever disagrees with it is refused.

    ``shape`` is (channel, row, column), the order on disk. ``counts`` (images of each class, in class order) and
    ``files`` go by split. ``label_sizes`` is the number of classes of each label byte of a record. ``sha256`` is
    that of each published file, unpacked, where it is known.
    """

    name: str
    shape: tuple[int, int, int]
    counts: Mapping[str, tuple[int, ...]]
    files: Mapping[str, tuple[str, ...]]
    label_sizes: tuple[int, ...]
    advice: str
    openml_id: int | None = None
    folder: str = ""
    pickled: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)


CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10 = Source(
    name="CIFAR-10",
    shape=(3, 32, 32),
    counts={"train": (5_000,) * 10, "test": (1_000,) * 10},
    files={"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    label_sizes=(10,),
    advice=f"Unpack cifar-10-binary.tar.gz ({CIFAR_PAGE}) there, or leave data_dir out to use OpenML.",
    openml_id=40927,
    folder="cifar-10-batches-bin",
    pickled="cifar-10-batches-py",
    sha256={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
)
CIFAR100 = Source(
    name="CIFAR-100",
    shape=(3, 32, 32),
    counts={"train": (500,) * 100, "test": (100,) * 100},
    files={"train": ("train.bin",), "test": ("test.bin",)},
    label_sizes=(20, 100),
    advice=f"Unpack cifar-100-binary.tar.gz ({CIFAR_PAGE}) there.",
    folder="cifar-100-binary",
    pickled="cifar-100-python",
)
MNIST = Source(
    name="MNIST",
    shape=(1, 28, 28),
    counts={
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    files=_IDX_FILES,
    label_sizes=(10,),
    advice="Put the four IDX files of MNIST there, or leave data_dir out to use OpenML.",
    openml_id=554,
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = Source(
    name="Fashion-MNIST",
    shape=(1, 28, 28),
    counts={"train": (6_000,) * 10, "test": (1_000,) * 10},
    files=_IDX_FILES,
    label_sizes=(10,),
    advice="Put the four IDX files of https://github.com/zalandoresearch/fashion-mnist there, "
    "or leave data_dir out to use OpenML.",
    openml_id=40996,
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)


def _find(source: Source, data_dir: str | os.PathLike, names: tuple[str, ...]) -> Path:
    """Return the first of ``names`` that is a file in ``data_dir``."""
    data_dir = check_path("data_dir", data_dir)
    for name in names:
        if (data_dir / name).is_file():
            return data_dir / name
    looked_for = f"{source.name}: expected {' or '.join(names)} in {data_dir}, found "
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{looked_for}no such folder. {source.advice}")
    stem = Path(names[0]).stem
    if source.pickled and any((data_dir / part / stem).is_file() for part in ("", source.pickled)):
        raise FileNotFoundError(
            f"{looked_for}the pickled version ({source.pickled}). Only the binary version is read, as "
            f"unpickling a file can run any code in it. {source.advice}"
        )
    raise FileNotFoundError(f"{looked_for}none of these. {source.advice}")


def _read(path: Path, n_bytes: int) -> bytes:
    """Read up to ``n_bytes`` + 1 bytes: one too many shows a long file, and makes gzip verify its checksum."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            return stream.read(n_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole gzip file, found a truncated or foreign one ({error}). Get it again"
        ) from error


def _check_size(path: Path, content: bytes, n_bytes: int, layout: str) -> None:
    """Raise ValueError unless a file has the published size."""
    if len(content) != n_bytes:
        found = len(content) if len(content) < n_bytes else f"more than {n_bytes}"
        raise ValueError(
            f"{path}: expected {n_bytes} bytes ({layout}), found {found}. "
            "The file is truncated or foreign: get it again"
        )


def _compare(path: Path, content: bytes, source: Source) -> None:
    """Warn of a file that has all the form of a published one, but is another."""
    published = source.sha256.get(path.name.removesuffix(".gz"))
    if published is not None and (found := hashlib.sha256(content).hexdigest()) != published:
        warnings.warn(
            f"{path} is not the published file of {source.name}, though it has its name and form: its SHA-256 is "
            f"{found[:16]}…, that of the published one {published[:16]}…. If it is not a file of your own, it is "
            "damaged: get it again.",
            UserWarning,
            stacklevel=5,
        )


def _check_labels(where: Path, labels: np.ndarray, n_classes: int) -> None:
    """Raise ValueError unless all labels are those of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: expected labels 0 to {n_classes - 1}, found {labels[wrong[0]]} in record {wrong[0]}. "
            "The file is damaged or foreign: get it again"
        )


def _check_counts(where: Path | str, source: Source, split: str, y: np.ndarray) -> None:
    """Tell data sets and splits of one format apart, and find a file that is there twice."""
    counts = np.bincount(y, minlength=len(source.counts[split]))
    wrong = np.flatnonzero(counts != source.counts[split])
    if wrong.size:
        c = wrong[0]
        raise ValueError(
            f"{where}: expected the {split} split of {source.name} with {source.counts[split][c]} images of "
            f"class {c}, found {counts[c]}. This is another data set or order: use the published files"
        )


def _scale(pixels: np.ndarray, shape: tuple[int, int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Turn (n, channel * row * column) bytes into (n, row, column, channel) in [0, 1], without a copy between."""
    images = pixels.reshape(-1, *shape).transpose(0, 2, 3, 1)
    return np.divide(images, np.float32(255), out=out, order="C")


def load(source: Source, data_dir: str | os.PathLike | None, split: str, label: int = 0) -> Images:
    """Read X and y of a split, from files or from OpenML; ``label`` is the place of the label in a record."""
    check_choice("split", split, source.files)
    if data_dir is None:
        return fetch(source, split)
    if source.folder:
        X, labels = _read_cifar(source, data_dir, split)
        return X, labels[:, label].astype(np.int64)
    paths = [_find(source, data_dir, (f"{name}.gz", name)) for name in source.files[split]]
    n_samples = sum(source.counts[split])
    y = _read_idx(source, paths[1], (n_samples,))
    _check_labels(paths[1], y, *source.label_sizes)
    _check_counts(paths[1], source, split, y)
    pixels = _read_idx(source, paths[0], (n_samples, *source.shape[1:]))
    return _scale(pixels, source.shape), y.astype(np.int64)


def _read_cifar(source: Source, data_dir: str | os.PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read X and the label bytes, (n, n_label_bytes) uint8, of a split in the CIFAR binary format."""
    paths = [_find(source, data_dir, (name, f"{source.folder}/{name}")) for name in source.files[split]]
    channels, height, width = source.shape
    n_samples, n_labels = sum(source.counts[split]), len(source.label_sizes)
    n_records, record = n_samples // len(paths), n_labels + math.prod(source.shape)
    X = np.empty((n_samples, height, width, channels), np.float32)
    labels = np.empty((n_samples, n_labels), np.uint8)
    for k, path in enumerate(paths):
        content = _read(path, n_records * record)
        _check_size(path, content, n_records * record, f"{n_records} records of {record}")
        _compare(path, content, source)
        records = np.frombuffer(content, np.uint8).reshape(n_records, record)
        for column, n_classes in enumerate(source.label_sizes):
            _check_labels(path, records[:, column], n_classes)
        rows = slice(k * n_records, (k + 1) * n_records)
        labels[rows] = records[:, :n_labels]
        _scale(records[:, n_labels:], source.shape, out=X[rows])
    _check_counts(paths[0].parent, source, split, labels[:, -1])
    return X, labels


def _read_idx(source: Source, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read the bytes of an IDX file of unsigned bytes: magic number, sizes (big-endian int32), content."""
    header = (0x0800 + len(shape), *shape)
    n_bytes = 4 * len(header) + math.prod(shape)
    content = _read(path, n_bytes)
    if len(content) >= 4 * len(header):
        found = tuple(np.frombuffer(content, ">u4", count=len(header)).tolist())
        if found != header:
            raise ValueError(
                f"{path}: expected an IDX header of magic number {header[0]} and shape {header[1:]}, found "
                f"{found[0]} and {found[1:]}. The file is foreign: get it again"
            )
    _check_size(path, content, n_bytes, f"a header of {4 * len(header)} and {shape}")
    _compare(path, content, source)
    return np.frombuffer(content, np.uint8, offset=4 * len(header)).reshape(shape)


def fetch(source: Source, split: str) -> Images:
    """Fetch X and y of a split from OpenML; the first rows are the training split."""
    from sklearn.datasets import fetch_openml

    where = f"OpenML data set {source.openml_id}"
    try:
        table: Any = fetch_openml(data_id=source.openml_id, as_frame=False)
    except ImportError as error:
        raise ImportError(f"{where} needs pandas to be read. Install pandas, or pass data_dir") from error
    except OSError as error:
        raise OSError(f"{where} could not be downloaded ({error}). Try again, or pass data_dir") from error
    n_train = sum(source.counts["train"])
    expected = (n_train + sum(source.counts["test"]), math.prod(source.shape))
    if table.data.shape != expected:
        raise ValueError(
            f"{where}: expected {source.name} of shape {expected}, found {table.data.shape}. Pass data_dir"
        )
    rows = slice(n_train) if split == "train" else slice(n_train, None)
    y = _integers(where, table.target[rows], "labels", max(source.label_sizes) - 1, np.int64)
    _check_counts(where, source, split, y)
    return _scale(_integers(where, table.data[rows], "pixels", 255, np.uint8), source.shape), y


def _integers(where: str, values: np.ndarray, name: str, largest: int, dtype: DTypeLike) -> np.ndarray:
    """Return exactly the integers in OpenML's values, pixels as floats and classes as strings, or raise."""
    try:
        numeric = values if values.dtype.kind in "biuf" else values.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: expected integer {name}, found {error}. Pass data_dir") from error
    if numeric.min() >= 0 and numeric.max() <= largest:
        integers = numeric.astype(dtype)
        if np.array_equal(integers, numeric):
            return integers
    raise ValueError(
        f"{where}: expected integer {name} from 0 to {largest}, found values from {numeric.min()} to "
        f"{numeric.max()}. Pass data_dir"
    )
