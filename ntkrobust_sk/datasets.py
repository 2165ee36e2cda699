"""Images in [0, 1] from scikit-learn, from the canonical files or from OpenML; class-balanced subsets.

Every loader returns ``(X, y)``: `X` is (n_samples, height, width, channels), float32, pixel / maximum,
neither normalised nor augmented; `y` is (n_samples,), int64, 0 to n_classes - 1. The files are checked, never
trusted: one that is truncated, or that belongs to another data set, is an error; one that has the form of a
published file but another SHA-256 (a file of your own, or pixels that changed on the way) is a warning. No SHA-256
is known here for CIFAR-100. Nothing is ever unpickled.
"""

import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.utils import check_random_state

from ._validation import brief, check_choice, integer, seed
from ._validation import path as check_path


@dataclass(frozen=True)
class _Source:
    """A data set as published; whatever disagrees with it is refused.

    `shape` is (channel, row, column), the order on disk. `counts` (images of each class, in class order) and
    `files` go by split. `label_sizes` is the number of classes of each label byte of a record. `sha256` is that of
    each published file, unpacked, where it is known.
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


_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_CIFAR10 = _Source(
    name="CIFAR-10",
    shape=(3, 32, 32),
    counts={"train": (5_000,) * 10, "test": (1_000,) * 10},
    files={"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    label_sizes=(10,),
    advice=f"Unpack cifar-10-binary.tar.gz ({_CIFAR_PAGE}) there, or leave data_dir out to use OpenML.",
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
_CIFAR100 = _Source(
    name="CIFAR-100",
    shape=(3, 32, 32),
    counts={"train": (500,) * 100, "test": (100,) * 100},
    files={"train": ("train.bin",), "test": ("test.bin",)},
    label_sizes=(20, 100),
    advice=f"Unpack cifar-100-binary.tar.gz ({_CIFAR_PAGE}) there.",
    folder="cifar-100-binary",
    pickled="cifar-100-python",
)
_MNIST = _Source(
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
_FASHION_MNIST = _Source(
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


def load_digits_images():
    """Scikit-learn's handwritten digits as images.

    Returns
    -------
    X : ndarray of shape (1797, 8, 8, 1), float32
        Grey values in [0, 1]: scikit-learn's 0 to 16, divided by 16.
    y : ndarray of shape (1797,), int64
        The digit, 0 to 9.

    Notes
    -----
    The test part of Alpaydin & Kaynak (1998), *Optical recognition of handwritten digits*, UCI repository.
    It is a single set: split it, for instance with `sklearn.model_selection.train_test_split`.

    Examples
    --------
    >>> X, y = load_digits_images()
    >>> X.shape, X.dtype, float(X.min()), float(X.max())
    ((1797, 8, 8, 1), dtype('float32'), 0.0, 1.0)
    """
    digits = load_digits()
    return (digits.images / 16).astype(np.float32)[..., None], digits.target.astype(np.int64)


def load_cifar10(data_dir=None, *, split="train"):
    """CIFAR-10: 32 x 32 colour images in 10 classes.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the *binary* version (``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin``),
        or the folder that holds it as ``cifar-10-batches-bin``. None fetches OpenML data set 40927 with
        `sklearn.datasets.fetch_openml`, which needs pandas and caches the download: the first 50,000 rows are
        taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        50,000 or 10,000 images, in the published order.

    Returns
    -------
    X : ndarray of shape (n_samples, 32, 32, 3), float32
        Red, green and blue in [0, 1]: the bytes, divided by 255. The training split takes 614 MB.
    y : ndarray of shape (n_samples,), int64
        Classes 0 to 9: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    Raises
    ------
    FileNotFoundError
        A file is missing. The pickled version ``cifar-10-batches-py`` is never read.
    ValueError
        A file has not the published size, labels or number of images per class; or `split` is unknown.
    ImportError, OSError
        OpenML was asked for, but pandas is missing or the download failed.

    Notes
    -----
    Krizhevsky (2009), *Learning multiple layers of features from tiny images*. No normalisation and no
    augmentation, as in Loo et al. (2022), arXiv:2210.12030.

    Examples
    --------
    >>> X, y = load_cifar10("data", split="test")  # doctest: +SKIP
    >>> load_cifar10("data", split="validation")
    Traceback (most recent call last):
    ...
    ValueError: unknown split 'validation'; known are 'train', 'test'
    """
    check_choice("split", split, _CIFAR10.files)
    if data_dir is None:
        return _fetch(_CIFAR10, split)
    X, labels = _read_cifar(_CIFAR10, data_dir, split)
    return X, labels[:, 0].astype(np.int64)


def load_cifar100(data_dir=None, *, split="train", labels="fine"):
    """CIFAR-100: 32 x 32 colour images in 100 classes, which make 20 superclasses.

    Parameters
    ----------
    data_dir : str or Path
        Folder with the *binary* version (``train.bin``, ``test.bin``), or the folder that holds it as
        ``cifar-100-binary``. It is required: OpenML is not used, as its row order and labels are not known to
        be those of the published splits.
    split : {"train", "test"}, default="train"
        50,000 or 10,000 images, in the published order.
    labels : {"fine", "coarse"}, default="fine"
        The 100 classes or the 20 superclasses.

    Returns
    -------
    X : ndarray of shape (n_samples, 32, 32, 3), float32
        Red, green and blue in [0, 1]: the bytes, divided by 255. The training split takes 614 MB.
    y : ndarray of shape (n_samples,), int64
        0 to 99, or 0 to 19 for coarse labels, in the alphabetical order of the class names.

    Raises
    ------
    FileNotFoundError
        The file is missing. The pickled version ``cifar-100-python`` is never read.
    ValueError
        `data_dir` is None; the file has not the published size, labels or number of images per class; or
        `split` or `labels` is unknown.

    Notes
    -----
    Krizhevsky (2009), *Learning multiple layers of features from tiny images*. A record is the coarse label,
    the fine label and 3072 bytes.

    Examples
    --------
    >>> X, y = load_cifar100("data", labels="coarse")  # doctest: +SKIP
    >>> load_cifar100("data", labels="class")
    Traceback (most recent call last):
    ...
    ValueError: unknown labels 'class'; known are 'coarse', 'fine'
    """
    check_choice("split", split, _CIFAR100.files)
    check_choice("labels", labels, ("coarse", "fine"))
    if data_dir is None:
        raise ValueError(
            "CIFAR-100: expected data_dir, the folder of the binary version, found None. OpenML is not used "
            f"for CIFAR-100: unpack cifar-100-binary.tar.gz ({_CIFAR_PAGE}) and pass its folder."
        )
    X, both = _read_cifar(_CIFAR100, data_dir, split)
    return X, both[:, ("coarse", "fine").index(labels)].astype(np.int64)


def load_mnist(data_dir=None, *, split="train"):
    """MNIST: 28 x 28 grey images of handwritten digits.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the IDX files ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz``,
        ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``, or the same without ``.gz`` (of both,
        the ``.gz`` is read, as it carries a checksum). None fetches OpenML data set 554 with
        `sklearn.datasets.fetch_openml`, which needs pandas and caches the download: the first 60,000 rows are
        taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        60,000 or 10,000 images, in the published order.

    Returns
    -------
    X : ndarray of shape (n_samples, 28, 28, 1), float32
        Grey values in [0, 1]: the bytes, divided by 255.
    y : ndarray of shape (n_samples,), int64
        The digit, 0 to 9.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or foreign: its gzip stream, IDX header, size, labels or number of images per
        class (which tells MNIST from Fashion-MNIST) is not as published; or `split` is unknown.
    ImportError, OSError
        OpenML was asked for, but pandas is missing or the download failed.

    Notes
    -----
    LeCun, Bottou, Bengio & Haffner (1998), *Gradient-based learning applied to document recognition*.

    Examples
    --------
    >>> X, y = load_mnist("data", split="test")  # doctest: +SKIP
    >>> load_mnist("data", split="t10k")
    Traceback (most recent call last):
    ...
    ValueError: unknown split 't10k'; known are 'train', 'test'
    """
    return _load_idx(_MNIST, data_dir, split)


def load_fashion_mnist(data_dir=None, *, split="train"):
    """Fashion-MNIST: 28 x 28 grey images of clothes, in the format of MNIST.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the four IDX files, named as those of MNIST (see `load_mnist`). None fetches OpenML data
        set 40996 with `sklearn.datasets.fetch_openml`, which needs pandas and caches the download: the first
        60,000 rows are taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        60,000 or 10,000 images, in the published order.

    Returns
    -------
    X : ndarray of shape (n_samples, 28, 28, 1), float32
        Grey values in [0, 1]: the bytes, divided by 255.
    y : ndarray of shape (n_samples,), int64
        Classes 0 to 9: T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or foreign, as for `load_mnist`; or `split` is unknown.
    ImportError, OSError
        OpenML was asked for, but pandas is missing or the download failed.

    Notes
    -----
    Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747.

    Examples
    --------
    >>> X, y = load_fashion_mnist("data", split="test")  # doctest: +SKIP
    >>> load_fashion_mnist("data", split="t10k")
    Traceback (most recent call last):
    ...
    ValueError: unknown split 't10k'; known are 'train', 'test'
    """
    return _load_idx(_FASHION_MNIST, data_dir, split)


def class_balanced_indices(y, n_samples, *, random_state=0):
    """Indices of a random subset with the same number of samples from every class.

    With C classes each class gives floor(n_samples / C) samples, drawn without replacement; what remains is
    spread one each over the first classes of a seeded shuffle of the classes. For one integer `random_state`
    a smaller subset is part of every larger one, so measurements on 100 and on 500 samples share the 100.

    Parameters
    ----------
    y : array-like of shape (n,)
        Class labels of any sortable type.
    n_samples : int
        Size of the subset; at least the number of classes.
    random_state : int, RandomState instance or None, default=0
        Seed of the draw.

    Returns
    -------
    indices : ndarray of shape (n_samples,), int64
        Ascending positions in `y`.

    Raises
    ------
    ValueError
        `y` is empty or not one-dimensional, `n_samples` is no integer or below the number of classes, or a class
        has too few samples.

    Notes
    -----
    Loo et al. (2022), arXiv:2210.12030, measure kernels on 500 training images, 50 of each class.

    Examples
    --------
    >>> y = ["cat", "dog", "cat", "cat", "dog", "dog"]
    >>> indices = class_balanced_indices(y, 4)
    >>> sorted(y[i] for i in indices)
    ['cat', 'cat', 'dog', 'dog']
    """
    n_samples = integer("n_samples", n_samples, low=0)
    given = y
    try:
        y = np.asarray(given)
    except Exception as error:  # whatever a stranger's conversion raises
        raise TypeError(f"y must hold one class label per sample, got {brief(given)}: {error}") from None
    if y.ndim != 1:
        raise ValueError(
            f"y must hold one class label per sample, shape (n,); got shape {y.shape}. "
            "Turn one-hot rows into labels with y.argmax(axis=1)."
        )
    try:
        classes, inverse, available = np.unique(y, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise TypeError(
            f"y must hold labels of one type that can be sorted, got {brief(given)}: {error}"
        ) from None
    if not 0 < len(classes) <= n_samples:
        raise ValueError(
            f"n_samples must be at least the number of classes, {len(classes)}, and y must not be empty; got "
            f"n_samples={n_samples}. Ask for more samples or pass only the classes wanted."
        )
    rng = check_random_state(seed("random_state", random_state))
    quota, rest = np.divmod(n_samples, len(classes))
    wanted = np.full(len(classes), quota)
    wanted[rng.permutation(len(classes))[:rest]] += 1
    short = np.flatnonzero(available < wanted)
    if short.size:
        c = short[0]
        raise ValueError(
            f"n_samples={n_samples} in {len(classes)} classes takes {wanted[c]} of class {classes[c]!s}, "
            f"which has {available[c]}. Ask for at most {len(classes) * available.min()}."
        )
    # Each class is shuffled whole, whatever its quota: that is what makes the subsets nested.
    drawn = [rng.permutation(np.flatnonzero(inverse == c))[:k] for c, k in enumerate(wanted)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _find(source, data_dir, names):
    """The first of `names` that is a file in `data_dir`."""
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


def _read(path, n_bytes):
    """Up to `n_bytes` + 1 bytes: one too many shows a long file, and makes gzip verify its checksum."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            return stream.read(n_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole gzip file, found a truncated or foreign one ({error}). Get it again."
        ) from error


def _check_size(path, content, n_bytes, layout):
    if len(content) != n_bytes:
        found = len(content) if len(content) < n_bytes else f"more than {n_bytes}"
        raise ValueError(
            f"{path}: expected {n_bytes} bytes ({layout}), found {found}. "
            "The file is truncated or foreign: get it again."
        )


def _compare(path, content, source):
    """Warns of a file that has all the form of a published one, but is another."""
    published = source.sha256.get(path.name.removesuffix(".gz"))
    if published is not None and (found := hashlib.sha256(content).hexdigest()) != published:
        warnings.warn(
            f"{path} is not the published file of {source.name}, though it has its name and form: its SHA-256 is "
            f"{found[:16]}…, that of the published one {published[:16]}…. If it is not a file of your own, it is "
            "damaged: get it again.",
            UserWarning,
            stacklevel=5,
        )


def _check_labels(where, labels, n_classes):
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: expected labels 0 to {n_classes - 1}, found {labels[wrong[0]]} in record {wrong[0]}. "
            "The file is damaged or foreign: get it again."
        )


def _check_counts(where, source, split, y):
    """Tells data sets and splits of one format apart, and finds a file that is there twice."""
    counts = np.bincount(y, minlength=len(source.counts[split]))
    wrong = np.flatnonzero(counts != source.counts[split])
    if wrong.size:
        c = wrong[0]
        raise ValueError(
            f"{where}: expected the {split} split of {source.name} with {source.counts[split][c]} images of "
            f"class {c}, found {counts[c]}. This is another data set or order: use the published files."
        )


def _scale(pixels, shape, out=None):
    """(n, channel * row * column) bytes to (n, row, column, channel) in [0, 1], without a copy in between."""
    images = pixels.reshape(-1, *shape).transpose(0, 2, 3, 1)
    return np.divide(images, np.float32(255), out=out, order="C")


def _read_cifar(source, data_dir, split):
    """X and the label bytes, (n, n_label_bytes) uint8, of a split in the CIFAR binary format."""
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


def _read_idx(source, path, shape):
    """The bytes of an IDX file of unsigned bytes: magic number, sizes (big-endian int32), content."""
    header = (0x0800 + len(shape), *shape)
    n_bytes = 4 * len(header) + math.prod(shape)
    content = _read(path, n_bytes)
    if len(content) >= 4 * len(header):
        found = tuple(np.frombuffer(content, ">u4", count=len(header)).tolist())
        if found != header:
            raise ValueError(
                f"{path}: expected an IDX header of magic number {header[0]} and shape {header[1:]}, found "
                f"{found[0]} and {found[1:]}. The file is foreign: get it again."
            )
    _check_size(path, content, n_bytes, f"a header of {4 * len(header)} and {shape}")
    _compare(path, content, source)
    return np.frombuffer(content, np.uint8, offset=4 * len(header)).reshape(shape)


def _load_idx(source, data_dir, split):
    """X and y of a split in the IDX format."""
    check_choice("split", split, source.files)
    if data_dir is None:
        return _fetch(source, split)
    paths = [_find(source, data_dir, (f"{name}.gz", name)) for name in source.files[split]]
    n_samples = sum(source.counts[split])
    y = _read_idx(source, paths[1], (n_samples,))
    _check_labels(paths[1], y, *source.label_sizes)
    _check_counts(paths[1], source, split, y)
    pixels = _read_idx(source, paths[0], (n_samples, *source.shape[1:]))
    return _scale(pixels, source.shape), y.astype(np.int64)


def _fetch(source, split):
    """X and y of a split from OpenML; the first rows are the training split."""
    where = f"OpenML data set {source.openml_id}"
    try:
        table = fetch_openml(data_id=source.openml_id, as_frame=False)
    except ImportError as error:
        raise ImportError(f"{where} needs pandas to be read. Install pandas, or pass data_dir.") from error
    except OSError as error:
        raise OSError(f"{where} could not be downloaded ({error}). Try again, or pass data_dir.") from error
    n_train = sum(source.counts["train"])
    expected = (n_train + sum(source.counts["test"]), math.prod(source.shape))
    if table.data.shape != expected:
        raise ValueError(
            f"{where}: expected {source.name} of shape {expected}, found {table.data.shape}. Pass data_dir."
        )
    rows = slice(n_train) if split == "train" else slice(n_train, None)
    y = _integers(where, table.target[rows], "labels", max(source.label_sizes) - 1, np.int64)
    _check_counts(where, source, split, y)
    return _scale(_integers(where, table.data[rows], "pixels", 255, np.uint8), source.shape), y


def _integers(where, values, name, largest, dtype):
    """OpenML hands pixels out as floats and classes as strings: exactly the integers in them, or an error."""
    try:
        numeric = values if values.dtype.kind in "biuf" else values.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: expected integer {name}, found {error}. Pass data_dir.") from error
    if numeric.min() >= 0 and numeric.max() <= largest:
        integers = numeric.astype(dtype)
        if np.array_equal(integers, numeric):
            return integers
    raise ValueError(
        f"{where}: expected integer {name} from 0 to {largest}, found values from {numeric.min()} to "
        f"{numeric.max()}. Pass data_dir."
    )
