"""Data sets that give one item at a time, as PyTorch's and Hugging Face's do, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .._validation import array, brief, fitting, is_finite

# Names under which items that are dicts hold inputs and labels.
INPUTS = ("image", "img", "pixel_values", "x", "X", "input", "inputs")
LABELS = ("label", "labels", "y", "target", "fine_label")
# What arrays and frames have.
ARRAYS = ("__array__", "__array_interface__", "tocsr", "iloc")
# Rows that are looked at together where all are.
PIECE = 256


class DataSet(Protocol):
    """Anything with a length that gives items by their numbers."""

    def __len__(self) -> int:
        """Count the items."""
        ...

    def __getitem__(self, i: Any, /) -> Any:
        """Return an item."""
        ...


def is_data_set(data: Any) -> bool:
    """Tell whether this gives items by their number, and is no array, frame or sequence of numbers.

    >>> class Squares:
    ...     def __len__(self):
    ...         return 3
    ...     def __getitem__(self, i):
    ...         return np.full(2, i * i), i
    >>> is_data_set(Squares()), is_data_set([[1.0, 2.0]]), is_data_set(np.ones((2, 2)))
    (True, False, False)
    """
    is_known = isinstance(data, str | bytes | list | tuple | Mapping | set | type)
    if is_known or any(hasattr(data, name) for name in ARRAYS):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def gives_items(data: Any) -> bool:
    """Tell whether this is a data set, or a list of its items: pairs (input, label), or dicts.

    >>> gives_items([(np.ones(2), 0)]), gives_items([[1.0, 2.0]])
    (True, False)
    """
    is_list = isinstance(data, list) and bool(data) and all(isinstance(item, tuple | Mapping) for item in data)
    return is_list or is_data_set(data)


def item_of(name: str, data: DataSet, i: int) -> Any:
    """Return an item, or say which one could not be read."""
    try:
        return data[i]
    except Exception as error:  # whatever a stranger's data set raises
        raise ValueError(f"item {i} of {name} cannot be read: {type(error).__name__}: {error}") from error


def input_of(item: Any) -> Any:
    """Return the input of an item: the first of a tuple, or what stands under one of ``INPUTS`` in a dict."""
    if isinstance(item, Mapping):
        return item[_key(item, INPUTS, "input")]
    return item[0] if isinstance(item, tuple) else item


def label_of(item: Any) -> Any:
    """Return the label of an item: the second of a tuple, or what stands under one of ``LABELS`` in a dict."""
    if isinstance(item, Mapping):
        return item[_key(item, LABELS, "label")]
    if not isinstance(item, tuple) or len(item) != 2:
        raise ValueError(f"items must be (input, label) or dicts with both, got {brief(item)}")
    return item[1]


def labels_of(name: str, data: DataSet) -> np.ndarray:
    """Return the labels (n,) of all items, or raise ValueError that names the item."""
    labels = []
    for i in range(len(data)):
        item = item_of(name, data, i)
        try:
            labels.append(label_of(item))
        except ValueError as error:
            raise ValueError(f"item {i} of {name}: {error}") from None
    try:
        y = np.asarray([label.item() if hasattr(label, "item") else label for label in labels])
    except ValueError as error:
        raise ValueError(
            f"the labels of {name} must be one number or text each, got {brief(labels[:3])}"
        ) from error
    if y.ndim != 1 or y.dtype.kind not in "biuSU":
        raise ValueError(f"the labels of {name} must be one integer or text each, got {brief(labels[:3])}")
    return y


def _key(item, known, what) -> str:
    found = [name for name in known if name in item]
    if len(found) != 1:
        raise ValueError(
            f"an item has keys {', '.join(map(repr, item))}; {len(found) or 'none'} of them can be its {what}: "
            f"expected exactly one of {', '.join(known)}, or items (input, label)"
        )
    return found[0]


@dataclass(frozen=True, eq=False)
class Rows:
    """The inputs of a data set as an array (n, ...) that is read where it is indexed.

    Attributes
    ----------
    data : data set
    name : str
        For errors.
    at : sequence of int
        The items, one for each row.
    own : dtype
        Of an input as it comes.
    each : tuple of int
        Shape of an input.
    dtype : dtype
        Of the rows.
    scaled : bool
        Whether bytes are divided by 255.
    """

    data: Any
    name: str
    at: Any
    own: np.dtype
    each: tuple[int, ...]
    dtype: np.dtype
    scaled: bool = False

    @classmethod
    def of(cls, name: str, data: Any, scaled: bool = False) -> Rows:
        """Return the rows of a data set, as the first of its items says what they are.

        Raises
        ------
        ValueError
            If there is no item.
        TypeError
            If the first one holds no numbers.
        """
        if len(data) == 0:
            raise ValueError(f"{name} must hold at least one input, but the data set {brief(data)} is empty")
        first = _numbers(f"item 0 of {name}", input_of(item_of(name, data, 0)))
        is_image = scaled and first.dtype == np.uint8
        return cls(data, name, range(len(data)), first.dtype, first.shape, first.dtype, is_image)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self), *self.each)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return int(np.prod(self.shape))

    def __getitem__(self, index: Any) -> Any:
        """Return some of the rows: not read yet for a slice, an array for an array of positions."""
        if isinstance(index, slice):
            return replace(self, at=self.at[index])
        return np.asarray(replace(self, at=np.asarray(self.at)[index]))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Read all rows."""
        rows = np.empty(self.shape, self.own)
        for k, i in enumerate(self.at):
            rows[k] = self._row(int(i))
        if not is_finite(rows):
            wrong = self.at[int((~np.isfinite(rows)).reshape(len(rows), -1).any(1).argmax())]
            raise ValueError(f"item {wrong} of {self.name} contains NaN or infinity")
        if self.scaled:
            return rows.astype(np.float32) / np.float32(255)
        return np.asarray(fitting(self.name, rows, self.dtype), dtype)

    def _row(self, i) -> np.ndarray:
        row = _numbers(f"item {i} of {self.name}", input_of(item_of(self.name, self.data, i)))
        if row.shape != self.each or row.dtype != self.own:
            raise ValueError(
                f"item {i} of {self.name} is of shape {row.shape} and dtype {row.dtype}, and item 0 of "
                f"{self.each} and {self.own}; expected inputs of one shape and dtype"
            )
        return row

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the rows, some at a time."""
        for start in range(0, len(self), PIECE):
            yield np.asarray(self[start : start + PIECE])


def _numbers(name, value) -> np.ndarray:
    """Return an input as an array; a picture of PIL as numbers (h, w, 1) or (h, w, 3)."""
    if hasattr(value, "getbands") and hasattr(value, "convert"):
        is_grey = value.mode in ("1", "L", "LA")
        picture = np.asarray(value.convert("L" if is_grey else "RGB"))
        return picture[..., None] if is_grey else picture
    if hasattr(value, "detach"):
        value = value.detach()
    return array(name, value)
