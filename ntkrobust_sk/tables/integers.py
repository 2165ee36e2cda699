"""Columns of integers, which attacks keep integers: told of where they can therefore not move at all."""

from __future__ import annotations

import warnings
from typing import Any

from ..attacks.boxes import Box
from .frames import Table


def warn_of_integers(table: Table, attack: Any, radius: float) -> None:
    """Say which columns of integers a radius below 1 leaves as they are, unless the attack states its integers."""
    bounds = getattr(attack, "bounds", None)
    stated = isinstance(bounds, Box) and bounds.integers is not None
    if stated or not 0 < radius < 1 or getattr(attack, "norm", "l0") == "l0":
        return
    kept = table.within(attack).bounds
    free = kept.free(len(table.reasons)) if isinstance(kept, Box) else ()
    if names := [table.names[at] for at in table.integers if len(free) and free[at] and at in kept.integers]:
        warnings.warn(
            f"attacks keep integers, which a radius of {radius:g} is too short to move: these columns of X "
            f"stay as they are: {', '.join(map(repr, names))}. To let fractions in, cast them to float, or give "
            "Box(integers=[])",
            UserWarning,
            stacklevel=4,
        )
