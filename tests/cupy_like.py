"""An array that lives in NumPy's memory and behaves as CuPy's does: it never becomes a NumPy array by itself."""

import numpy as np


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
