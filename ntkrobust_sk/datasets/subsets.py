"""Class-balanced subsets, and indices of examples."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from .._validation import brief, integer, seed

# A seed as scikit-learn takes it.
RandomState = int | np.random.RandomState | None


def class_balanced_indices(y: ArrayLike, n_samples: int, *, random_state: RandomState = 0) -> np.ndarray:
    """Choose a random subset with the same number of samples from every class, and return its indices.

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


def require_enough(y: np.ndarray, *counts: int) -> None:
    """Raise ValueError unless there is at least one example of every class in each of some counts."""
    n_classes = len(np.unique(y))
    if min(counts) < n_classes:
        raise ValueError(
            f"{min(counts)} examples cannot hold one of each of the {n_classes} classes; ask for more"
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
