"""One dialect of argument errors: what was expected, what came, and what to write instead.

Every function here takes a name and a value, and returns the value in the one form in which the library uses it,
or raises: ValueError for a wrong number or choice, TypeError for a wrong kind of thing.
"""

from .arrays import (
    array,
    check_lengths,
    fitting,
    floating,
    is_finite,
    require_numbers,
    require_regular,
    require_resolution,
    require_unmasked,
)
from .objects import function, path
from .scalars import (
    LARGEST_COUNT,
    LARGEST_SEED,
    brief,
    brief_with_dtype,
    check_choice,
    flag,
    integer,
    number,
    positive_tuple,
    seed,
    unknown,
)

__all__ = [
    "LARGEST_COUNT",
    "LARGEST_SEED",
    "array",
    "brief",
    "brief_with_dtype",
    "check_choice",
    "check_lengths",
    "fitting",
    "flag",
    "floating",
    "function",
    "integer",
    "is_finite",
    "number",
    "path",
    "positive_tuple",
    "require_numbers",
    "require_regular",
    "require_resolution",
    "require_unmasked",
    "seed",
    "unknown",
]
