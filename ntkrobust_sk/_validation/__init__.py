"""One dialect of argument errors: what was expected, what came, and what to write instead.

Every function here takes a name and a value, and returns the value in the one form in which the library uses it,
or raises: ValueError for a wrong number or choice, TypeError for a wrong kind of thing.
"""

from .arrays import array as array
from .arrays import check_lengths as check_lengths
from .arrays import fitting as fitting
from .arrays import floating as floating
from .arrays import is_finite as is_finite
from .arrays import require_numbers as require_numbers
from .arrays import require_regular as require_regular
from .arrays import require_resolution as require_resolution
from .arrays import require_unmasked as require_unmasked
from .arrays import warn_of_lost_columns as warn_of_lost_columns
from .values import LARGEST_COUNT as LARGEST_COUNT
from .values import LARGEST_SEED as LARGEST_SEED
from .values import brief as brief
from .values import brief_with_dtype as brief_with_dtype
from .values import check_choice as check_choice
from .values import check_path as check_path
from .values import checked_seed as checked_seed
from .values import flag as flag
from .values import function as function
from .values import integer as integer
from .values import job_count as job_count
from .values import number as number
from .values import positive_tuple as positive_tuple
from .values import unknown as unknown
