"""Training and test images of a named data set, or of a file of the user's own; subsets, balanced over classes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from .._files import read_npz
from .._validation import brief, check_path, checked_seed, flag, integer, unknown
from .image_folders import read_folder
from .items import Rows, gives_items, labels_of
from .loaders import load_cifar10, load_digits_images, load_fashion_mnist, load_mnist

# A seed as scikit-learn takes it.
RandomState = int | np.random.RandomState | None
LOADERS = {"cifar10": load_cifar10, "fashion-mnist": load_fashion_mnist, "mnist": load_mnist}
# What load_splits knows by name; all else are paths.
NAMES = ("digits", *LOADERS)


class Splits(NamedTuple):
    """The examples that a network is trained on, and those that it is scored on.

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


class _Part(NamedTuple):
    """Examples that may still be on disk: where from, the labels of those chosen, and their places."""

    source: Any
    y: np.ndarray
    at: np.ndarray | None = None

    def some(self, chosen: np.ndarray) -> _Part:
        """Return the examples at some positions."""
        return _Part(self.source, self.y[chosen], chosen if self.at is None else self.at[chosen])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Read what was chosen."""
        if self.at is None and isinstance(self.source, np.ndarray):
            return self.source, self.y
        return self.source[np.arange(len(self.y)) if self.at is None else self.at], self.y


def load_splits(
    data: Any,
    data_dir: str | os.PathLike | None = None,
    *,
    n_train: int | None,
    n_test: int | None,
    random_state: RandomState = 0,
    at_most: bool = False,
    image_size: int | tuple[int, int] | None = None,
    test_data: Any = None,
) -> Splits:
    """Load images and labels for training and for scoring.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"}, path, or data set
        A file ``.npz`` holds X (n, ...), y (n,), and may hold X_test and y_test. X is taken as it is, so attack
        bounds have to fit it. A folder of images has a subfolder for each class, or ``train`` and ``test``, which
        have these; images become numbers (h, w, c) in [0, 1], of one channel if all are grey, else three.
        A data set is any object with ``len`` that gives an item by its number, as PyTorch's and Hugging Face's
        do, or a list of items: ``(x, y)``, or a dict with "image", "pixel_values", "input" or "x", and "label",
        "target" or "y". Bytes
        and pictures become numbers in [0, 1], other arrays are taken as they are: this library's networks
        take images (h, w, c). Only examples that are chosen are kept. Where there are no test examples, they are
        taken out of the others.
    data_dir : path, default=None
        Folder with the canonical files; see :mod:`ntkrobust_sk.datasets`.
    n_train, n_test : int or None
        How many, balanced over the classes (in their own proportions where a class has too few; where the test
        examples are taken out of X, these are). None is all, where the test examples are not taken out of X.
    random_state : int, default=0
        Seed of the choice.
    at_most : bool, default=False
        Fewer will do, where there are no more. Test examples may then be all that there are.
    image_size : int or (h, w), default=None
        Size to which the images of a folder are brought, by bilinear interpolation. None asks for images of one
        size.
    test_data : data set, default=None
        Test examples for a data set.

    Returns
    -------
    Splits

    Raises
    ------
    ValueError
        For an unknown name, more examples than there are, fewer than classes, or a file, folder or data set that
        does not hold what it should.
    FileNotFoundError
        If there is no such file.
    ImportError
        For a folder of images without Pillow.

    Examples
    --------
    >>> splits = load_splits("digits", n_train=200, n_test=100)
    >>> splits.X.shape, splits.X_test.shape
    ((200, 8, 8, 1), (100, 8, 8, 1))
    >>> load_splits("digits", n_train=5000, n_test=50)
    Traceback (most recent call last):
    ValueError: n_train=5,000, but there are 1,747 training examples of 'digits'; ask for at most that, ...
    """
    n_train, n_test = _count("n_train", n_train), _count("n_test", n_test)
    random_state, at_most = checked_seed("random_state", random_state), flag("at_most", at_most)
    name, parts = _found(
        data, data_dir, image_size, test_data, lambda y: require_enough(y, n_train=n_train, n_test=n_test)
    )
    train, test = parts if len(parts) == 2 else _taken_out(parts[0], n_test, random_state, at_most)
    asked_for = (("n_train", n_train, len(train.y), "training"), ("n_test", n_test, len(test.y), "test"))
    for what, asked, there, kind in asked_for:
        if asked is not None and asked > there and not at_most:
            raise ValueError(
                f"{what}={asked:,}, but there are {there:,} {kind} examples of {name!r}; ask for at most that, or "
                f"for all of them with {what}=None"
            )
    return Splits(*_some(train, n_train, random_state).read(), *_some(test, n_test, random_state).read())


def _found(data, data_dir, image_size, test_data, check) -> tuple[str, list[_Part]]:
    """Return the name of the data, and their training and test examples, or all in one part."""
    if gives_items(data):
        if data_dir is not None or image_size is not None:
            raise ValueError("data_dir and image_size are for data by name or path; leave them out for a data set")
        given = {"data": data} | ({} if test_data is None else {"test_data": test_data})
        parts = _numbered([_of_items(name, held) for name, held in given.items()])
        check(parts[0].y)
        return brief(data), parts
    if not isinstance(data, str | os.PathLike):
        raise TypeError(
            "data must be a name, the path of an .npz file or of a folder of images, a data set with len and "
            f"items by their number, or a list of pairs, got {brief(data)}; arrays: Splits(X, y, X_test, y_test)"
        )
    if test_data is not None:
        raise ValueError("test_data is for data sets given in Python; a file or folder holds its own")
    name = os.fspath(data) and os.fspath(check_path("data", data))
    if name not in LOADERS and data_dir is not None and (name in NAMES or os.path.exists(name)):
        raise ValueError(f"data_dir is the folder of {', '.join(LOADERS)}; {name!r} needs none, so leave it out")
    if name not in NAMES and os.path.isdir(name):
        parts = [_Part(*part) for part in read_folder(Path(name), image_size)]
        check(parts[0].y)
        return name, parts
    if image_size is not None:
        raise ValueError(f"image_size is for folders of images, and {name!r} is none; leave it out")
    return name, _by_name(name, data_dir, check)


def _by_name(name, data_dir, check) -> list[_Part]:
    if name == "digits" or name.endswith(".npz"):
        X, y, *test = load_digits_images() if name == "digits" else _from_file(name)
        check(y)
        return [_Part(X, y), *([_Part(*test)] if test else [])]
    if name not in LOADERS:
        way = "; write np.savez('data.npz', X=X, y=y)" if os.path.exists(name) else ""
        otherwise = f"the path of an .npz file with X and y, or of a folder of images by class{way}"
        raise ValueError(unknown("data", name, NAMES, otherwise))
    parts = [_Part(*LOADERS[name](data_dir, split=split)) for split in ("train", "test")]
    check(parts[0].y)
    return parts


def _of_items(name, data) -> _Part:
    return _Part(Rows.of(name, data, scaled=True), labels_of(name, data))


def _numbered(parts: list[_Part]) -> list[_Part]:
    """Put numbers from 0 in the place of the classes of data sets, as they are sorted."""
    classes = np.unique(parts[0].y)
    for part in parts[1:]:
        if part.source.each != parts[0].source.each:
            raise ValueError(
                f"data and test_data hold inputs of shapes {parts[0].source.each} and {part.source.each}; "
                "expected one shape"
            )
        if unseen := sorted(set(part.y.tolist()) - set(classes.tolist())):
            raise ValueError(f"test_data has labels that data has not: {unseen[:5]}")
    return [part._replace(y=np.searchsorted(classes, part.y).astype(np.int64)) for part in parts]


def _count(name: str, value: int | None) -> int | None:
    return None if value is None else integer(name, value)


def _taken_out(whole: _Part, n_test: int | None, random_state: RandomState, at_most: bool) -> tuple[_Part, _Part]:
    """Take test examples out of all, in their classes' proportions; all where fewer would be left than classes."""
    from sklearn.model_selection import train_test_split

    y = whole.y
    if n_test is None:
        raise ValueError("n_test=None is all test examples, but these data have none of their own; give a number")
    if n_test > len(y) - len(np.unique(y)):
        if at_most:
            return whole.some(np.arange(0)), whole
        raise ValueError(f"n_test={n_test:,} leaves too few of the {len(y):,} examples to train on; ask for fewer")
    parts = train_test_split(np.arange(len(y)), test_size=n_test, random_state=random_state, stratify=y)
    train, test = map(np.asarray, parts)
    return whole.some(train), whole.some(test)


def _some(part: _Part, n: int | None, random_state: RandomState) -> _Part:
    """Choose n of the examples; None is all."""
    return part if n is None or n >= len(part.y) else part.some(chosen_indices(part.y, n, random_state))


def _from_file(file: str) -> tuple[np.ndarray, ...]:
    """Read X, y and, if they are there, X_test, y_test of an ``.npz`` file, checked."""
    names = ("X", "y", "X_test", "y_test")
    try:
        there = read_npz(file, names)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}; expected .npz with X (n, ...) and y (n,)") from None
    found = {name: there[name] for name in names if name in there}
    if tuple(found) not in (names[:2], names):
        raise ValueError(
            f"{file} holds {', '.join(found) or 'none of the names'}; expected X and y, or these "
            "and both of X_test and y_test"
        )
    for X_name, y_name in (names[:2], names[2:])[: len(found) // 2]:
        found[X_name], found[y_name] = _checked(file, X_name, found[X_name], found[y_name])
    if "X_test" in found and found["X_test"].shape[1:] != found["X"].shape[1:]:
        raise ValueError(
            f"X and X_test in {file} hold examples of shapes {found['X'].shape[1:]} and "
            f"{found['X_test'].shape[1:]}; expected one shape"
        )
    classes = np.unique(found["y"])
    for name in ("y", "y_test"):
        if name in found:
            if unseen := sorted(set(found[name].tolist()) - set(classes.tolist())):
                raise ValueError(f"{name} in {file} has labels that y has not: {unseen[:5]}")
            found[name] = np.searchsorted(classes, found[name]).astype(np.int64)
    return tuple(found.values())


def _checked(file: str, name: str, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs and labels of a file, or raise an error that names what is wrong."""
    if not np.issubdtype(X.dtype, np.floating):
        raise ValueError(f"{name} in {file} is of {X.dtype}; expected floating numbers, such as pixels in [0, 1]")
    if X.ndim < 2 or y.shape != X.shape[:1] or X.size == 0:
        raise ValueError(
            f"{name} in {file} is of shape {X.shape} and its labels {y.shape}; expected (n, ...), (n,)"
        )
    with np.errstate(over="ignore"):
        X = X.astype(np.float32)
    if not np.isfinite(X).all():
        raise ValueError(f"{name} in {file} holds NaN, infinity or numbers beyond float32")
    if y.dtype.kind not in "biufSU":
        raise ValueError(f"the labels of {name} in {file} are of {y.dtype}; expected numbers or text")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError(f"the labels of {name} in {file} hold NaN or infinity")
    return X, y


def class_balanced_indices(y: ArrayLike, n_samples: int, *, random_state: RandomState = 0) -> np.ndarray:
    """Choose a random subset with the same number of samples from every class, and return its indices.

    With C classes each class gives floor(n_samples / C) samples, drawn without replacement; what remains is
    spread one each over the first classes of a seeded shuffle of the classes. For one integer ``random_state``
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
    indices : array (n_samples,), int64
        Ascending positions in ``y``.

    Raises
    ------
    ValueError
        ``y`` is empty or not one-dimensional, ``n_samples`` is no integer or below the number of classes, or a
        class has too few samples.

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
            "Turn one-hot rows into labels with y.argmax(axis=1)"
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
            f"n_samples={n_samples}. Ask for more samples or pass only the classes wanted"
        )
    rng = check_random_state(checked_seed("random_state", random_state))
    quota, rest = np.divmod(n_samples, len(classes))
    wanted = np.full(len(classes), quota)
    wanted[rng.permutation(len(classes))[:rest]] += 1
    short = np.flatnonzero(available < wanted)
    if short.size:
        c = short[0]
        raise ValueError(
            f"n_samples={n_samples} in {len(classes)} classes takes {wanted[c]} of class {classes[c]!s}, "
            f"which has {available[c]}. Ask for at most {len(classes) * available.min()}"
        )
    # Each class is shuffled whole, whatever its quota: that is what makes the subsets nested.
    drawn = [rng.permutation(np.flatnonzero(inverse == c))[:k] for c, k in enumerate(wanted)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def require_enough(y: np.ndarray, **counts: int | None) -> None:
    """Raise ValueError unless there is at least one example of every class in each of some counts; None is all."""
    n_classes = len(np.unique(y))
    least, name = min((len(y) if count is None else count, name) for name, count in counts.items())
    if least < n_classes:
        raise ValueError(
            f"{name}={least}: {least} examples cannot hold one of each of the {n_classes} classes; ask for more, "
            f"{n_classes} at least"
        )


def no_more(name: str, asked: int, there: int, what: str) -> int:
    """Return how many of those asked for there can be, with a warning where these are fewer."""
    if asked > there:
        warnings.warn(
            f"{name}={asked:,}, but there are {there:,} {what}: {name} is {there:,} here",
            RuntimeWarning,
            stacklevel=3,
        )
    return min(asked, there)


def chosen_indices(y: np.ndarray, n: int, random_state: RandomState) -> np.ndarray:
    """Choose n examples, balanced over the classes, or in their proportions where a class has too few."""
    if np.bincount(y).min() >= -(-n // len(np.unique(y))):
        return class_balanced_indices(y, n, random_state=random_state)
    if n >= len(y):
        return np.arange(len(y))
    if len(y) - n < len(np.unique(y)):
        return _all_but(y, len(y) - n, random_state)
    from sklearn.model_selection import train_test_split

    return np.asarray(train_test_split(np.arange(len(y)), train_size=n, random_state=random_state, stratify=y)[0])


def _all_but(y: np.ndarray, n_left_out: int, random_state: RandomState) -> np.ndarray:
    """Leave a few examples out, fewer than there are classes, each of what is then the largest class."""
    order = np.random.default_rng(random_state).permutation(len(y))
    for _ in range(n_left_out):
        of_largest = y[order] == np.bincount(y[order]).argmax()
        order = np.delete(order, np.flatnonzero(of_largest)[-1])
    return np.sort(order)
