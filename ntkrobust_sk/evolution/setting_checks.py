"""How the settings of an experiment are checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from typing import Any

from .._validation import LARGEST_SEED, brief, flag, integer, number

# How settings of an experiment, and of the demo, are checked.
CHECKS = {
    integer: "n_train n_test batch_size seeds test_steps train_steps patience",
    partial(integer, low=0): "epochs max_epochs stage2_epochs n_validation n_features",
    partial(integer, low=0, high=LARGEST_SEED): "random_state",
    partial(number, low=0): "alpha epsilon flip_epoch",
    partial(number, above=0): "learning_rate stage2_learning_rate",
    partial(number, low=0, below=1): "momentum average_decay",
    flag: "clean_step normalize freeze_state",
}


def check_numbers(settings: Any) -> None:
    """Bring what is counted and measured in a dataclass of settings into plain numbers, or raise."""
    for check, names in CHECKS.items():
        for field in fields(settings):
            value = getattr(settings, field.name)
            if field.name in names.split() and not (value is None and field.default is None):
                found = check(field.name, value)
                # what is plain stays as it was written
                object.__setattr__(settings, field.name, value if isinstance(value, int | float) else found)


def count_or_all(name: str, value: Any) -> int | str:
    """Return a count, or "all", or raise.

    >>> count_or_all("n_kernel", "some")
    Traceback (most recent call last):
    ValueError: n_kernel must be a positive integer or 'all', got 'some'
    """
    if isinstance(value, str):
        if value != "all":
            raise ValueError(f"{name} must be a positive integer or 'all', got {brief(value)}")
        return value
    return integer(name, value)


def n_matrix(n_kernel: int | str) -> int:
    """Return how many examples kernels have that are matrices, which "all" are too many for.

    >>> n_matrix("all"), n_matrix(50)
    (200, 50)
    """
    return 200 if isinstance(n_kernel, str) else n_kernel


def several(name: str, values: Any) -> tuple:
    """Return values as a tuple, or raise: text and sets are no sequences of settings."""
    is_sequence = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set)
    if not is_sequence or getattr(values, "shape", None) == ():
        raise ValueError(f"{name} must be a sequence, such as a tuple, got {brief(values)}")
    return tuple(values)


def start_of_stage_two(start: Any) -> tuple[str, float]:
    """Return a regime and an epoch where stage 2 starts, or raise."""
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise ValueError(f"each of stage2_from must be (regime, epoch), got {brief(start)}")
    return start[0], number("epoch in stage2_from", start[1], low=0)
