"""Kernel matrices that are kept while what they are of lives: a few, within a number of bytes."""

from __future__ import annotations

from itertools import count
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

# A search with five folds asks for 20 in turn: of each fold's rows, and of others beside them.
MOST = 64


class KeptMatrices:
    """Matrices by their owners and keys; those that were not asked for longest make room for new ones.

    >>> kept, owner = KeptMatrices(), KeptMatrices()
    >>> kept.put(owner, "a", np.eye(2), budget=64)
    >>> kept.put(owner, "b", np.eye(2), budget=64)
    >>> kept.get(owner, "a") is None, kept.get(owner, "b").shape
    (False, (2, 2))
    >>> kept.put(owner, "c", np.eye(2), budget=64)
    >>> [kept.get(owner, key) is None for key in "abc"]
    [True, False, False]
    """

    def __init__(self):
        self._held: WeakKeyDictionary[Any, dict[Any, tuple[int, np.ndarray]]] = WeakKeyDictionary()
        self._clock, self._lock = count(), Lock()

    def __len__(self) -> int:
        return sum(map(len, list(self._held.values())))

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._held.clear()

    def get(self, owner: Any, key: Any) -> np.ndarray | None:
        """Return an owner's matrix of a key, or None."""
        with self._lock:
            own = self._held.get(owner, {})
            if key not in own:
                return None
            own[key] = next(self._clock), own[key][1]
            return own[key][1]

    def put(self, owner: Any, key: Any, K: np.ndarray, budget: int) -> None:
        """Keep a matrix while its owner lives and all that are kept take at most ``budget`` bytes."""
        if K.nbytes > budget:
            return
        with self._lock:
            self._held.setdefault(owner, {})[key] = next(self._clock), K
            oldest = sorted(
                ((used, own, of, each.nbytes) for own in self._held.values() for of, (used, each) in own.items()),
                key=lambda one: one[0],
            )
            total, n_kept = sum(size for *_, size in oldest), len(oldest)
            for _, own, of, size in oldest:
                if total <= budget and n_kept <= MOST:
                    return
                del own[of]
                total, n_kept = total - size, n_kept - 1
