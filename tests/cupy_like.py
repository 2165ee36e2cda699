"""An array that lives in NumPy's memory and behaves as CuPy's does: it never becomes a NumPy array by itself."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from ntkrobust_sk import _arrays as arrays


class CupyLike:
    """Values that only ``get()`` gives back."""

    def __init__(self, values):
        self._values = np.asarray(values)
        self.dtype, self.shape, self.ndim = self._values.dtype, self._values.shape, self._values.ndim
        self.__cuda_array_interface__ = {"shape": self.shape, "typestr": self.dtype.str, "version": 3}

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def get(self):
        """The values in NumPy."""
        return self._values.copy()

    def __len__(self):
        return len(self._values)

    def __getitem__(self, key):
        return CupyLike(self._values[key])


def pretend_cupy(monkeypatch, free: int) -> list:
    """Let CuPy be there with so many free bytes; return the list of what it is then asked for eigenvalues of."""
    asked = []

    def of_values(function):
        def call(A):
            asked.append(A)
            found = function(A.get())
            return CupyLike(found) if isinstance(found, np.ndarray) else tuple(map(CupyLike, found))

        return call

    linalg = SimpleNamespace(eigvalsh=of_values(np.linalg.eigvalsh), eigh=of_values(np.linalg.eigh))
    runtime = SimpleNamespace(memGetInfo=lambda: (free, 2 * free))
    pool = SimpleNamespace(free_bytes=lambda: 0)
    cupy = SimpleNamespace(
        asarray=CupyLike,
        linalg=linalg,
        cuda=SimpleNamespace(runtime=runtime),
        get_default_memory_pool=lambda: pool,
    )
    namespace_of = arrays.array_namespace
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(errstate=lambda linalg: nullcontext()))
    monkeypatch.setattr(arrays, "is_cupy_array", lambda a: isinstance(a, CupyLike))
    monkeypatch.setattr(arrays, "cupy_or_none", lambda: cupy)
    monkeypatch.setattr(arrays, "array_namespace", lambda a: cupy if isinstance(a, CupyLike) else namespace_of(a))
    return asked
