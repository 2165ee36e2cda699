"""Training and test images of a named data set, or of a file of the user's own."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from ._validation import LARGEST_SEED, brief, integer
from .datasets import class_balanced_indices, load_cifar10, load_digits_images, load_fashion_mnist, load_mnist

LOADERS = {"cifar10": load_cifar10, "fashion-mnist": load_fashion_mnist, "mnist": load_mnist}


class Splits(NamedTuple):
    """What a network is trained on, and what it is scored on.

    Attributes
    ----------
    X, X_test : float32 array (n, ...)
    y, y_test : int array (n,)
        Labels 0..C-1.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def load_splits(data: str, data_dir=None, *, n_train: int, n_test: int, random_state: int = 0) -> Splits:
    """Images and labels for training and for scoring.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"} or path of an ``.npz`` file
        A file holds X (n, ...), y (n,), and may hold X_test and y_test; where it does not, the test examples are
        taken out of X. X is taken as it is, so attack bounds have to fit it.
    data_dir : path, default=None
        Folder with the canonical files; see :mod:`ntkrobust_sk.datasets`.
    n_train, n_test : int
        At most so many, balanced over the classes (in their own proportions where a class has too few; where
        the test examples are taken out of X, these are).
    random_state : int, default=0
        Seed of the choice.

    Returns
    -------
    Splits

    Raises
    ------
    ValueError
        For an unknown name, fewer examples than classes, or a file that does not hold what it should.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> splits = load_splits("digits", n_train=200, n_test=100)
    >>> splits.X.shape, splits.X_test.shape
    ((200, 8, 8, 1), (100, 8, 8, 1))
    """
    n_train, n_test = integer("n_train", n_train, high=2**63 - 1), integer("n_test", n_test)
    random_state = integer("random_state", random_state, low=0, high=LARGEST_SEED)
    if not isinstance(data, str | os.PathLike):
        raise TypeError(f"data must be a name or the path of an .npz file, got {brief(data)}")
    if data == "digits" or str(data).endswith(".npz"):
        X, y, X_test, y_test = (*load_digits_images(), None, None) if data == "digits" else _from_file(data)
        require_enough(y, n_train, n_test)
        if X_test is None:
            if n_test > len(y) - len(np.unique(y)):
                raise ValueError(
                    f"n_test={n_test:,} leaves too few of the {len(y):,} examples to train on; ask for fewer"
                )
            X, X_test, y, y_test = train_test_split(X, y, test_size=n_test, random_state=random_state, stratify=y)
        return Splits(*_some(X, y, n_train, random_state), *_some(X_test, y_test, n_test, random_state))
    if data not in LOADERS:
        known = ", ".join(map(repr, ("digits", *LOADERS)))
        raise ValueError(
            f"unknown data {str(data)!r}; known are {known}, or the path of an .npz file with X and y"
        )
    X, y = LOADERS[data](data_dir, split="train")
    X_test, y_test = LOADERS[data](data_dir, split="test")
    require_enough(y, n_train, n_test)
    chosen = class_balanced_indices(y_test, min(n_test, len(y_test)), random_state=random_state)
    X_test, y_test = X_test[chosen], y_test[chosen]
    return Splits(*_some(X, y, n_train, random_state), X_test, y_test)


def require_enough(y, *counts: int) -> None:
    """Raise ValueError unless there is at least one example of every class in each of some counts."""
    n_classes = len(np.unique(y))
    if min(counts) < n_classes:
        raise ValueError(
            f"{min(counts)} examples cannot hold one of each of the {n_classes} classes; ask for more"
        )


def _some(X, y, n, random_state):
    if n >= len(y):
        return X, y
    chosen = chosen_indices(y, n, random_state)
    return X[chosen], y[chosen]


def chosen_indices(y, n: int, random_state: int) -> np.ndarray:
    """n of the examples, balanced over the classes, or in their proportions where a class has too few."""
    if np.bincount(y).min() >= -(-n // len(np.unique(y))):
        return class_balanced_indices(y, n, random_state=random_state)
    if n >= len(y):
        return np.arange(len(y))
    return train_test_split(np.arange(len(y)), train_size=n, random_state=random_state, stratify=y)[0]


def _from_file(path: str | os.PathLike):
    """X, y and, if they are there, X_test, y_test of an ``.npz`` file, checked."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}; expected .npz with X (n, ...) and y (n,)")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("X", "y", "X_test", "y_test") if name in file}
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        TypeError,
        ValueError,
        EOFError,
        OSError,
    ) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    for X_name, y_name in (("X", "y"), ("X_test", "y_test")):
        if (X_name in found) != (y_name in found) or "X" not in found:
            raise ValueError(
                f"{path} holds {', '.join(found) or 'none of the names'}; expected X and y, or these "
                "and both of X_test and y_test"
            )
    for X_name, y_name in (("X", "y"), ("X_test", "y_test")):
        if X_name in found:
            found[X_name], found[y_name] = _checked(path, X_name, found[X_name], found[y_name])
    if "X_test" in found and found["X_test"].shape[1:] != found["X"].shape[1:]:
        raise ValueError(
            f"X and X_test in {path} hold examples of shapes {found['X'].shape[1:]} and "
            f"{found['X_test'].shape[1:]}; expected one shape"
        )
    classes = np.unique(found["y"])
    for name in ("y", "y_test"):
        if name in found:
            if unseen := sorted(set(found[name].tolist()) - set(classes.tolist())):
                raise ValueError(f"{name} in {path} has labels that y has not: {unseen[:5]}")
            found[name] = np.searchsorted(classes, found[name]).astype(np.int64)
    return tuple(found.get(name) for name in ("X", "y", "X_test", "y_test"))


def _checked(path, name, X, y):
    if not np.issubdtype(X.dtype, np.floating):
        raise ValueError(f"{name} in {path} is of {X.dtype}; expected floating numbers, such as pixels in [0, 1]")
    if X.ndim < 2 or y.shape != X.shape[:1] or X.size == 0:
        raise ValueError(
            f"{name} in {path} is of shape {X.shape} and its labels {y.shape}; expected (n, ...), (n,)"
        )
    with np.errstate(over="ignore"):
        X = X.astype(np.float32)
    if not np.isfinite(X).all():
        raise ValueError(f"{name} in {path} holds NaN, infinity or numbers beyond float32")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError(f"the labels of {name} in {path} hold NaN or infinity")
    return X, y
