"""The experiments that suit the published data sets."""

from __future__ import annotations

from typing import Any

from .experiment import KernelEvolution

LARGER = {"n_train": 5000, "n_test": 500, "test_steps": 20, "epochs": 10}
# Settings that suit a data set; a file of the user's own takes the defaults.
PRESETS = {
    "digits": {},
    "mnist": LARGER | {"epsilon": 0.1},
    "fashion-mnist": LARGER | {"epsilon": 0.05},
    "cifar10": LARGER | {"epsilon": 4 / 255, "train_steps": 7},
}


def preset(data: str = "digits", **given: Any) -> KernelEvolution:
    """Return the experiment that suits a data set, with whatever is given (not None) in its place.

    >>> preset("cifar10", epochs=None, seeds=3).epochs
    10
    """
    given = {name: value for name, value in given.items() if value is not None}
    return KernelEvolution(data=str(data), **PRESETS.get(data, {}) | given)
