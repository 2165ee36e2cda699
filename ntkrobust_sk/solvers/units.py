"""Powers of two in which numbers are near one, so that their squares neither overflow nor vanish."""

import math

from array_api_compat import array_namespace

from .._arrays import AnyArray


def in_own_units(B: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return right-hand sides (n, k) whose largest entries are in [1, 2), and the powers of two (k,) they lack.

    Columns of zeros have a unit of one. No digit is lost.

    >>> import numpy as np
    >>> in_own_units(np.array([[4e-200], [-1e-200]]))[0].round(3)
    array([[ 1.531],
           [-0.383]])
    """
    xp = array_namespace(B)
    largest = xp.max(xp.abs(B), axis=0)
    units = 2.0 ** xp.floor(xp.log2(xp.where(largest > 0, largest, xp.ones_like(largest))))
    return B / units, units


def unit_of(values: AnyArray) -> float:
    """Return the power of four below the largest magnitude; one where that is zero, or not finite.

    >>> import numpy as np
    >>> unit_of(np.array([3.0, -20.0]))
    16.0
    """
    xp = array_namespace(values)
    largest = float(xp.max(xp.abs(values)))
    if not 0 < largest < math.inf:
        return 1.0
    # its exponent is even, so that roots of it are powers of two
    return 2.0 ** (2 * ((math.frexp(largest)[1] - 1) // 2))


def near_one(unit: float) -> bool:
    """Tell whether squares of numbers in this unit are far from both ends of single and double precision's range.

    >>> near_one(2.0**20), near_one(1e-200)
    (True, False)
    """
    return 2.0**-60 < unit < 2.0**60
