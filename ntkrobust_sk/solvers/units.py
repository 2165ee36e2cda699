"""Powers of two in which numbers are near one, so that their squares neither overflow nor vanish."""

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
