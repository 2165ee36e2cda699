"""Kernels that are functions of users, known by what they compute now and not by which objects they are.

Programs are kept by kernel. A function whose helper was edited, or an object with another value in a field, is the
same object as before, and computes something else.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np

from ..execution.loops import form_of, without_numbers
from ..execution.precision import x64_enabled
from ..networks.model import Model
from .fingerprint import code_digest, fingerprint
from .ntk import Kernel


def told_apart(kernel: Kernel, model: Model, input_shape: tuple[int, ...], inputs: np.dtype) -> Kernel:
    """Return a kernel that differs from the one before, if its function now computes something else.

    The function's code is read, with all that it refers to, which takes about a millisecond. It is traced
    where the code is another one, or reads what cannot be seen in it.

    Parameters
    ----------
    kernel : TangentKernel or CallableKernel
        A tangent kernel is what its fields say, and is returned.
    model : Model
    input_shape : tuple of int
    inputs : dtype
        The inputs' shape and dtype, for which the function is traced.
    """
    if kernel.function is None:
        return kernel
    # two rows: what is a special case for a single one is not all that a function does
    form = form_of(model, jax.ShapeDtypeStruct((2, *input_shape), inputs))
    if form is None:
        return kernel
    code = code_digest(kernel.function)
    known = kernel.function, form, x64_enabled()
    return kernel.that_computes(_traced(*known) if code is None else _traced_before(code, *known))


def known_by_code(kernel: Kernel) -> Kernel:
    """Return a kernel that is known by its function's code alone, where no inputs' shape is at hand.

    Where the code cannot be seen whole, it is the kernel as it was: one that was edited may be taken for the one
    before.

    >>> from ntkrobust_sk.kernels.ntk import CallableKernel
    >>> known_by_code(CallableKernel(lambda model, x, z: x @ z.T)).computes != ""
    True
    """
    if kernel.function is None:
        return kernel
    code = code_digest(kernel.function)
    return kernel if code is None else kernel.that_computes(code.hex())


def _traced(function, form, x64) -> str:
    model, x = without_numbers(form)
    return fingerprint(function, model, x, x)[0]


@lru_cache(maxsize=256)
def _traced_before(code, *known) -> str:
    return _traced(*known)
