"""Bounds of attacks: ranges of features, and which of them may change, by position or by the names of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from .._frames import read_frame
from .._validation import brief, integer
from .box_arguments import (
    are_named,
    checked_categories,
    checked_features,
    checked_mask,
    named_bounds,
    numbers_of_array,
    numbers_of_frame,
    ordered_bounds,
    require_integers,
    require_numbers_by_name,
    require_width,
)


@dataclass(frozen=True)
class Box:
    """Bounds of an attack that also say which features may change, and to which values.

    Wherever an attack takes ``bounds=(low, high)``, it takes a Box. Fixed features are bounded by the input
    itself, so every attack keeps to them and spends nothing on them. Integer and one-hot features are attacked as
    if they were real; what comes back from the estimators, ``perturb``, ``robust_accuracy``, ``AutoAttack`` and
    :func:`~ntkrobust_sk.attacks.attack_in_tiles` has valid values: the nearest ones that ball and bounds hold.
    They come first, groups before integers; in the L1 and L2 norms the other features then have what is left of
    epsilon. Another category of a one-hot group is 1 away in L∞, 2 in L1 and √2 in L2.

    A feature is given by its position or, where a data frame is attacked, by the name of its column. Names are
    looked up when an attack meets the frame.

    Parameters
    ----------
    low, high : float, array (n_features,), or dict from names to float, default=None
        Range of what may change; infinite where there is none, and for columns that a dict leaves out. None is 0
        and 1; in a Box that names columns it is no bound.
    mask : array of bool (n_features,), or sequence of names, default=None
        Which features may change; None is all, an empty sequence none.
    integers : sequence of int or names, default=None
        Features (of the flattened input) that hold integers. None is, of a data frame, the columns of an integer
        dtype, which then stay in that dtype; of an array none. ``integers=[]`` lets fractions into all columns.
    one_hot : sequence of sequences of int or names, default=()
        Groups of features of which exactly one is 1 and the others are 0.
    categories : sequence of int or names, or dict from these to sequences of values, default=()
        Columns that hold categories, of a table or frame as a scikit-learn estimator takes it, and that an attack
        may move to other categories: those of a dict, otherwise all that the fitted encoder (or the column's
        dtype) knows. Such a move costs nothing of epsilon; ``n_changes`` counts it.
    n_changes : int, default=None
        How many of the columns in ``categories`` may differ from the input's at once; None is all.

    Raises
    ------
    ValueError
        For bounds out of order, a mask that is not boolean, groups that overlap or have one member; when an attack
        is called, for a mask, positions or names that do not fit the inputs, and inputs that are not valid
        themselves.

    See Also
    --------
    Box.from_data : Ranges and integers found in data.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import PGD, Box
    >>> from ntkrobust_sk.attacks import attack_in_tiles
    >>> box = Box(0, 10, mask=[True, True, False], integers=[1])
    >>> model = jax.tree_util.Partial(lambda x: jax.numpy.stack([x.sum(1), -x.sum(1)], 1))
    >>> X, y = np.array([[2.0, 5.0, 7.0]], np.float32), np.array([0])
    >>> attack_in_tiles(PGD(1.5, bounds=box), model, X, y, key=jax.random.key(0), rows=1).round(3)
    array([[0.5, 4. , 7. ]], dtype=float32)

    By the names of a frame's columns:

    >>> import pandas as pd
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ntkrobust_sk import perturb
    >>> frame = pd.DataFrame({"age": [20.0, 31.0, 44.0, 60.0], "children": [2, 0, 1, 3]})
    >>> classifier = LogisticRegression().fit(frame, [1, 0, 0, 1])
    >>> box = Box({"children": 0}, mask=["children"])
    >>> perturb(classifier, frame, [1, 0, 0, 1], PGD(1.5, bounds=box))["children"].tolist()
    [1, 1, 2, 2]
    """

    low: Any = None
    high: Any = None
    mask: Any = None
    integers: Any = None
    one_hot: Any = ()
    categories: Any = ()
    n_changes: int | None = None

    def __post_init__(self):
        def put(**fields):
            for name, value in fields.items():
                object.__setattr__(self, name, value)

        integers = None if self.integers is None else checked_features("integers", self.integers)
        put(mask=checked_mask(self.mask), integers=integers)
        if np.ndim(self.one_hot) == 0 and not isinstance(self.one_hot, tuple | list):
            raise ValueError(
                f"one_hot must be groups of features, such as ((4, 5, 6),) or [['rent', 'own']], got "
                f"{brief(self.one_hot)}"
            )
        groups = tuple(checked_features("each group of one_hot", group) for group in self.one_hot)
        put(one_hot=groups, categories=checked_categories(self.categories))
        if self.n_changes is not None:
            put(n_changes=integer("n_changes", self.n_changes, low=0))
            if not self.categories:
                raise ValueError("n_changes counts changes of categories: name their columns in categories=")
        named = any(map(are_named, (self.low, self.high)))
        default = (-np.inf, np.inf) if named or self.names else (0.0, 1.0)
        low, high = (d if given is None else given for given, d in zip(self, default, strict=True))
        low, high = named_bounds(low, high) if named else plain_bounds((low, high)) or (low, high)
        put(low=low, high=high)
        if any(len(group) < 2 for group in groups):
            raise ValueError(f"each group of one_hot must have two positions or more, got {groups}")
        stated = (*self.discrete, *(column for column, _ in self.categories))
        if len(set(stated)) < len(stated):
            raise ValueError(
                f"a feature has one kind of values, but integers={self.integers}, one_hot={groups} and "
                f"categories={tuple(column for column, _ in self.categories)} overlap"
            )

    def __iter__(self) -> Iterator:
        """Go through its bounds, low and high."""
        return iter((self.low, self.high))

    @classmethod
    def from_data(
        cls,
        X: Any,
        *,
        mask: Any = None,
        integers: Any = None,
        one_hot: Any = (),
        categories: Any = (),
        n_changes: int | None = None,
    ) -> Box:
        """Make a Box of the ranges of data: each feature between its least and its largest value.

        Missing values (NaN) are left out. A constant feature cannot change. In a frame, columns of text,
        categories, dates and booleans, and those without any number, have no range and stay as they are, unless
        ``categories`` names them.

        Parameters
        ----------
        X : array (n, ...), or data frame
        mask : array of bool (n_features,), or sequence of names, default=None
            Which features may change; None is all with a range.
        integers : sequence of int or names, default=None
            Features that hold integers. None is those of an integer dtype: not columns of floating numbers that
            happen to be whole, as those of integers with missing values are in pandas.
        one_hot, categories, n_changes
            As for :class:`Box`.

        Returns
        -------
        Box
            Of a frame by the names of its columns; of an array by position.

        Raises
        ------
        ValueError
            For data without rows or numbers (unless ``categories`` names columns), and for infinite values; for
            integers that are none in the data; for names of an array's features, and of columns without numbers.

        Examples
        --------
        >>> import pandas as pd
        >>> from ntkrobust_sk import Box
        >>> frame = pd.DataFrame({"age": [20.5, None, 44.0], "children": [2, 0, 1], "city": list("abc")})
        >>> box = Box.from_data(frame)
        >>> box.low, box.high
        ((('age', 20.5), ('children', 0.0)), (('age', 44.0), ('children', 2.0)))
        >>> box.mask, box.integers
        (('age', 'children'), ('children',))
        >>> Box.from_data([[0, 5], [2, 7]])
        Box(low=(0.0, 5.0), high=(2.0, 7.0), mask=None, integers=(0, 1), one_hot=(), categories=(), n_changes=None)
        """
        asked = cls(mask=mask, integers=integers, one_hot=one_hot, categories=categories, n_changes=n_changes)
        columns = read_frame(X)
        if columns is None:
            asked.require_positions("X is an array")
        by_array = columns is None
        numbers, whole = numbers_of_array(X) if by_array else numbers_of_frame(columns, bool(asked.categories))
        low, high = ({at: float(end(v)) for at, v in numbers.items()} for end in (np.nanmin, np.nanmax))
        if by_array:
            low, high = tuple(low.values()), tuple(high.values())
        elif mask is None:
            mask = list(numbers)
        other = {*asked.discrete, *(column for column, _ in asked.categories)}
        found = [at for at in whole if at not in other] if integers is None else integers
        box = replace(asked, low=low or None, high=high or None, mask=mask, integers=found)
        if not by_array:
            box.for_columns([column.name for column in columns])
            require_numbers_by_name(box.names, columns, numbers)
        used = (*box.discrete, *(column for column, _ in box.categories))
        require_width(box.mask, used, len(numbers) if by_array else len(columns))
        require_integers(box.integers, numbers)
        return box

    @property
    def discrete(self) -> tuple:
        """Return all integer and one-hot features that it states."""
        return (*(self.integers or ()), *(feature for group in self.one_hot for feature in group))

    @property
    def names(self) -> dict[str, str]:
        """Return the names of columns that it uses, each with the parameter that does."""
        uses = {
            "low": [name for name, _ in self.low] if are_named(self.low) else (),
            "high": [name for name, _ in self.high] if are_named(self.high) else (),
            "mask": self.mask or (),
            "integers": self.integers or (),
            "one_hot": [feature for group in self.one_hot for feature in group],
            "categories": [column for column, _ in self.categories],
        }
        return {each: use for use, features in uses.items() for each in features if isinstance(each, str)}

    def require_positions(self, what: str) -> None:
        """Raise ValueError if names are used where there are none; ``what`` says what there is instead."""
        if names := self.names:
            name, use = next(iter(names.items()))
            raise ValueError(
                f"the attack's Box names the column {name!r} in {use}, but {what}, without names of columns: "
                "give positions, or attack a data frame by perturb or robust_accuracy"
            )

    def for_columns(self, columns: Sequence) -> Box:
        """Return the Box by the positions of these columns.

        Raises
        ------
        ValueError
            For a name that is not among them.

        Examples
        --------
        >>> Box({"age": 0}, mask=["age"]).for_columns(["city", "age"]).mask
        (False, True)
        """
        at = {name: position for position, name in enumerate(columns)}
        for name, use in self.names.items():
            if name not in at:
                close = get_close_matches(name, [str(each) for each in columns], 1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ValueError(
                    f"the attack's Box names the column {name!r} in {use}, but X has no such column{hint}; its "
                    f"columns are {', '.join(map(repr, columns))}"
                )

        def positions(features):
            return tuple(at[each] if isinstance(each, str) else each for each in features)

        def numbers(limits, otherwise):
            if not are_named(limits):
                return limits
            known = dict(limits)
            return tuple(known.get(name, otherwise) for name in columns)

        mask = self.mask
        if mask is not None and not (mask and isinstance(mask[0], bool)):
            mask = tuple(name in mask for name in columns)
        return replace(
            self,
            low=numbers(self.low, -np.inf),
            high=numbers(self.high, np.inf),
            mask=mask,
            integers=None if self.integers is None else positions(self.integers),
            one_hot=tuple(map(positions, self.one_hot)),
            categories=tuple((positions([column])[0], values) for column, values in self.categories),
        )

    def free(self, n_features: int) -> np.ndarray:
        """Return which features may change as numbers, bool (n_features,) where the mask has that length."""
        found = np.array(self.mask) if self.mask else np.full(n_features, self.mask is None)
        found[[at for at, _ in self.categories if at < len(found)]] = False
        return found


def plain_bounds(bounds: Any) -> tuple | Box | None:
    """Return bounds as plain values: None, a Box, or (low, high) of float or tuples of float.

    >>> tuple(plain_bounds({"age": (0, 80)}))
    ((('age', 0.0),), (('age', 80.0),))
    """
    if bounds is None or isinstance(bounds, Box):
        return bounds
    if isinstance(bounds, Mapping) and bounds:
        return _box_of_ranges(bounds)
    return ordered_bounds(bounds)


def _box_of_ranges(ranges) -> Box:
    pairs = {}
    for name, given in ranges.items():
        found = plain_bounds(given) if isinstance(given, tuple | list) and len(given) == 2 else None
        if not isinstance(found, tuple) or not all(isinstance(end, float) for end in found):
            raise ValueError(f"bounds of the column {name!r} must be two numbers (low, high), got {brief(given)}")
        pairs[name] = found
    low, high = ({name: pair[end] for name, pair in pairs.items()} for end in (0, 1))
    return Box(low, high)
