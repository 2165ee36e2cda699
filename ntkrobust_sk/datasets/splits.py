"""Training and test images of a named data set, or of a file of the user's own; subsets, balanced over classes."""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from .._files import read_npz
from .._validation import brief, check_path, checked_seed, flag, integer, unknown
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


def load_splits(
    data: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    n_train: int | None,
    n_test: int | None,
    random_state: RandomState = 0,
    at_most: bool = False,
) -> Splits:
    """Load images and labels for training and for scoring.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"} or path of an ``.npz`` file
        A file holds X (n, ...), y (n,), and may hold X_test and y_test; where it does not, the test examples are
        taken out of X. X is taken as it is, so attack bounds have to fit it.
    data_dir : path, default=None
        Folder with the canonical files; see :mod:`ntkrobust_sk.datasets`.
    n_train, n_test : int or None
        How many, balanced over the classes (in their own proportions where a class has too few; where the test
        examples are taken out of X, these are). None is all, where the test examples are not taken out of X.
    random_state : int, default=0
        Seed of the choice.
    at_most : bool, default=False
        Fewer will do, where there are no more. Test examples may then be all that there are.

    Returns
    -------
    Splits

    Raises
    ------
    ValueError
        For an unknown name, more examples than there are, fewer than classes, or a file that does not hold what
        it should.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> splits = load_splits("digits", n_train=200, n_test=100)
    >>> splits.X.shape, splits.X_test.shape
    ((200, 8, 8, 1), (100, 8, 8, 1))
    >>> load_splits("digits", n_train=5000, n_test=50)
    Traceback (most recent call last):
    ValueError: n_train=5,000, but there are 1,747 training examples of 'digits'; ask for at most that, ...
    """
    if not isinstance(data, str | os.PathLike):
        raise TypeError(f"data must be a name or the path of an .npz file, got {brief(data)}")
    name = os.fspath(data) and os.fspath(check_path("data", data))
    n_train, n_test = _count("n_train", n_train), _count("n_test", n_test)
    random_state, at_most = checked_seed("random_state", random_state), flag("at_most", at_most)
    if name == "digits" or name.endswith(".npz"):
        X, y, *test = load_digits_images() if name == "digits" else _from_file(name)
        if data_dir is not None:
            raise ValueError(
                f"data_dir is the folder of {', '.join(LOADERS)}; {name!r} needs none, so leave it out"
            )
        require_enough(y, n_train, n_test)
        X, y, X_test, y_test = (X, y, *test) if test else _taken_out(X, y, n_test, random_state, at_most)
    else:
        if name not in LOADERS:
            way = "; write np.savez('data.npz', X=X, y=y)" if os.path.exists(name) else ""
            otherwise = f"the path of an .npz file with X and y{way}"
            raise ValueError(unknown("data", name, NAMES, otherwise))
        X, y = LOADERS[name](data_dir, split="train")
        X_test, y_test = LOADERS[name](data_dir, split="test")
        require_enough(y, n_train, n_test)
    asked_for = (("n_train", n_train, len(y), "training"), ("n_test", n_test, len(y_test), "test"))
    for what, asked, there, kind in asked_for:
        if asked is not None and asked > there and not at_most:
            raise ValueError(
                f"{what}={asked:,}, but there are {there:,} {kind} examples of {name!r}; ask for at most that, or "
                f"for all of them with {what}=None"
            )
    return Splits(*_some(X, y, n_train, random_state), *_some(X_test, y_test, n_test, random_state))


def _count(name: str, value: int | None) -> int | None:
    return None if value is None else integer(name, value)


def _taken_out(
    X: np.ndarray, y: np.ndarray, n_test: int | None, random_state: RandomState, at_most: bool
) -> Splits:
    """Take test examples out of all, in their classes' proportions; all where fewer would be left than classes."""
    from sklearn.model_selection import train_test_split

    if n_test is None:
        raise ValueError("n_test=None is all test examples, but these data have none of their own; give a number")
    if n_test > len(y) - len(np.unique(y)):
        if at_most:
            return Splits(X[:0], y[:0], X, y)
        raise ValueError(f"n_test={n_test:,} leaves too few of the {len(y):,} examples to train on; ask for fewer")
    parts = train_test_split(X, y, test_size=n_test, random_state=random_state, stratify=y)
    X, X_test, y, y_test = map(np.asarray, parts)
    return Splits(X, y, X_test, y_test)


def _some(X: np.ndarray, y: np.ndarray, n: int | None, random_state: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Choose n of the examples; None is all."""
    if n is None or n >= len(y):
        return X, y
    chosen = chosen_indices(y, n, random_state)
    return X[chosen], y[chosen]


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


def require_enough(y: np.ndarray, *counts: int | None) -> None:
    """Raise ValueError unless there is at least one example of every class in each of some counts; None is all."""
    n_classes, least = len(np.unique(y)), min(len(y) if count is None else count for count in counts)
    if least < n_classes:
        raise ValueError(f"{least} examples cannot hold one of each of the {n_classes} classes; ask for more")


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
