"""Attacks by their names on the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .._validation import check_choice
from ..attacks import APGD, DDN, FAB, FGSM, FMN, NORMS, PGD, AutoAttack, SigmaZero, Square

ATTACKS = {
    "apgd": APGD,
    "autoattack": AutoAttack,
    "ddn": DDN,
    "fab": FAB,
    "fgsm": FGSM,
    "fmn": FMN,
    "pgd": PGD,
    "sigma-zero": SigmaZero,
    "square": Square,
}
# Norms that --norm takes: those in which most attacks exist, and the only ones of some.
KNOWN_NORMS = tuple(dict.fromkeys([*NORMS, *(kind.norm for kind in ATTACKS.values())]))


def make_attack(
    name: str,
    epsilon: float,
    *,
    norm: str | None = None,
    n_steps: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Any:
    """Make an attack by its name.

    Parameters
    ----------
    name : {"apgd", "autoattack", "ddn", "fab", "fgsm", "fmn", "pgd", "sigma-zero", "square"}
    epsilon : float
        Radius in units of the data.
    norm : {"linf", "l2", "l1", "l0"}, default=None
        None is "linf", or the only one that the attack knows.
    n_steps : int, default=None
        Steps of the attack, queries of "square". None is the attack's own number.
    bounds : tuple of float, default=(0.0, 1.0)
        Range of valid inputs. None leaves any number valid.

    Raises
    ------
    ValueError
        If the attack is not one in that norm, or takes no steps.
    """
    check_choice("name", name, ATTACKS)
    kind = ATTACKS[name]
    if norm is not None:
        check_choice("norm", norm, KNOWN_NORMS)
    stated = {field.name for field in fields(kind)}
    given = {"epsilon": epsilon, "bounds": bounds}
    if norm is not None and "norm" in stated:
        given["norm"] = norm
    elif norm not in (None, kind.norm):
        raise ValueError(f"{name} is an attack in the norm {kind.norm}, not {norm}")
    if n_steps is not None:
        steps = next((field for field in ("n_steps", "n_queries") if field in stated), None)
        if steps is None:
            raise ValueError(f"{name} has one step; leave --steps out")
        given[steps] = n_steps
    return kind(**given)
