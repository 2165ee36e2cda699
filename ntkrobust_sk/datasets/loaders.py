"""Images in [0, 1] from scikit-learn, from the canonical files or from OpenML; class-balanced subsets.

Every loader returns ``(X, y)``: ``X`` is (n_samples, height, width, channels), float32, pixel / maximum,
neither normalised nor augmented; ``y`` is (n_samples,), int64, 0 to n_classes - 1. The files are checked, never
trusted: one that is truncated, or that belongs to another data set, is an error; one that has the form of a
published file but another SHA-256 (a file of your own, or pixels that changed on the way) is a warning. No SHA-256
is known here for CIFAR-100. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .._validation import check_choice
from .published import CIFAR10, CIFAR100, CIFAR_PAGE, FASHION_MNIST, MNIST, Images, load


def load_digits_images() -> Images:
    """Return scikit-learn's handwritten digits as images.

    Returns
    -------
    X : array (1797, 8, 8, 1), float32
        Grey values in [0, 1]: scikit-learn's 0 to 16, divided by 16.
    y : array (1797,), int64
        The digit, 0 to 9.

    Notes
    -----
    The test part of Alpaydin & Kaynak (1998), *Optical recognition of handwritten digits*, UCI repository.
    It is a single set: split it, for instance with ``sklearn.model_selection.train_test_split``.

    Examples
    --------
    >>> X, y = load_digits_images()
    >>> X.shape, X.dtype, float(X.min()), float(X.max())
    ((1797, 8, 8, 1), dtype('float32'), 0.0, 1.0)
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32)[..., None], digits.target.astype(np.int64)


def load_cifar10(data_dir: str | os.PathLike | None = None, *, split: str = "train") -> Images:
    """Load CIFAR-10: 32 x 32 colour images in 10 classes.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the *binary* version (``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin``),
        or the folder that holds it as ``cifar-10-batches-bin``. None fetches OpenML data set 40927 with
        ``sklearn.datasets.fetch_openml``, which needs pandas and caches the download: the first 50,000 rows are
        taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        50,000 or 10,000 images, in the published order.

    Returns
    -------
    X : array (n_samples, 32, 32, 3), float32
        Red, green and blue in [0, 1]: the bytes, divided by 255. The training split takes 614 MB.
    y : array (n_samples,), int64
        Classes 0 to 9: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    Raises
    ------
    FileNotFoundError
        A file is missing. The pickled version ``cifar-10-batches-py`` is never read.
    ValueError
        A file has not the published size, labels or number of images per class; or ``split`` is unknown.
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
    return load(CIFAR10, data_dir, split)


def load_cifar100(
    data_dir: str | os.PathLike | None = None, *, split: str = "train", labels: str = "fine"
) -> Images:
    """Load CIFAR-100: 32 x 32 colour images in 100 classes, which make 20 superclasses.

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
    X : array (n_samples, 32, 32, 3), float32
        Red, green and blue in [0, 1]: the bytes, divided by 255. The training split takes 614 MB.
    y : array (n_samples,), int64
        0 to 99, or 0 to 19 for coarse labels, in the alphabetical order of the class names.

    Raises
    ------
    FileNotFoundError
        The file is missing. The pickled version ``cifar-100-python`` is never read.
    ValueError
        ``data_dir`` is None; the file has not the published size, labels or number of images per class; or
        ``split`` or ``labels`` is unknown.

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
    check_choice("split", split, CIFAR100.files)
    check_choice("labels", labels, ("coarse", "fine"))
    if data_dir is None:
        raise ValueError(
            "CIFAR-100: expected data_dir, the folder of the binary version, found None. OpenML is not used "
            f"for CIFAR-100: unpack cifar-100-binary.tar.gz ({CIFAR_PAGE}) and pass its folder"
        )
    return load(CIFAR100, data_dir, split, ("coarse", "fine").index(labels))


def load_mnist(data_dir: str | os.PathLike | None = None, *, split: str = "train") -> Images:
    """Load MNIST: 28 x 28 grey images of handwritten digits.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the IDX files ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz``,
        ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``, or the same without ``.gz`` (of both,
        the ``.gz`` is read, as it carries a checksum). None fetches OpenML data set 554 with
        ``sklearn.datasets.fetch_openml``, which needs pandas and caches the download: the first 60,000 rows are
        taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        60,000 or 10,000 images, in the published order.

    Returns
    -------
    X : array (n_samples, 28, 28, 1), float32
        Grey values in [0, 1]: the bytes, divided by 255.
    y : array (n_samples,), int64
        The digit, 0 to 9.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or foreign: its gzip stream, IDX header, size, labels or number of images per
        class (which tells MNIST from Fashion-MNIST) is not as published; or ``split`` is unknown.
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
    return load(MNIST, data_dir, split)


def load_fashion_mnist(data_dir: str | os.PathLike | None = None, *, split: str = "train") -> Images:
    """Load Fashion-MNIST: 28 x 28 grey images of clothes, in the format of MNIST.

    Parameters
    ----------
    data_dir : str or Path, default=None
        Folder with the four IDX files, named as those of MNIST (see :func:`load_mnist`). None fetches OpenML data
        set 40996 with ``sklearn.datasets.fetch_openml``, which needs pandas and caches the download: the first
        60,000 rows are taken as the training split and the others as the test split.
    split : {"train", "test"}, default="train"
        60,000 or 10,000 images, in the published order.

    Returns
    -------
    X : array (n_samples, 28, 28, 1), float32
        Grey values in [0, 1]: the bytes, divided by 255.
    y : array (n_samples,), int64
        Classes 0 to 9: T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or foreign, as for :func:`load_mnist`; or ``split`` is unknown.
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
    return load(FASHION_MNIST, data_dir, split)
