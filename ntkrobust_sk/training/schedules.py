"""Schedules of the learning rate: shapes over the progress of training, or rates by the number of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._validation import brief, check_choice, function, number


@dataclass(frozen=True)
class Cosine:
    """Half a cosine, from the learning rate down to a share of it (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Parameters
    ----------
    final : float, default=0.0
        Share of the learning rate at the end, in [0, 1].
    warmup : float, default=0.0
        Share of training in which the rate rises from 0 to its height, in [0, 1).

    Examples
    --------
    >>> Cosine()(np.array([0.0, 0.5, 1.0])).round(3).tolist()
    [1.0, 0.5, 0.0]
    """

    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "final", number("final", self.final, low=0, high=1))
        object.__setattr__(self, "warmup", number("warmup", self.warmup, low=0, below=1))

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Return multiples of the learning rate at shares of training in [0, 1]."""
        after = np.clip((progress - self.warmup) / (1 - self.warmup), 0, 1)
        falling = self.final + (1 - self.final) * (1 + np.cos(np.pi * after)) / 2
        return np.where(progress < self.warmup, progress / max(self.warmup, 1e-9), falling)


@dataclass(frozen=True)
class MultiStep:
    """Falls by a factor at given shares of training.

    As it stands it is the "piecewise" schedule of Rice et al. 2020 (arXiv:2002.11569): a tenth after half of
    training, and again after three quarters of it.

    Parameters
    ----------
    at : tuple of float, default=(0.5, 0.75)
        Rising shares of training in (0, 1).
    factor : float, default=0.1
        In (0, 1].

    Examples
    --------
    >>> MultiStep()(np.array([0.0, 0.5, 0.8])).round(3).tolist()
    [1.0, 0.1, 0.01]
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self):
        if isinstance(self.at, str) or not isinstance(self.at, tuple | list | np.ndarray):
            raise ValueError(f"at must be a tuple of rising shares of training in (0, 1), got {brief(self.at)}")
        at = tuple(number("each of at", share, above=0, below=1) for share in self.at)
        if list(at) != sorted(set(at)):
            raise ValueError(f"at must rise, got {at}")
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "factor", number("factor", self.factor, above=0, high=1))

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Return multiples of the learning rate at shares of training in [0, 1]."""
        return self.factor ** np.searchsorted(np.array(self.at), progress, side="right")


SCHEDULES: dict[str, Callable | None] = {"constant": None, "cosine": Cosine(), "piecewise": MultiStep()}


def is_by_step(schedule: Any) -> bool:
    """Tell whether a schedule gives rates by the number of the batch, as optax's do, and no shape of a name."""
    return not isinstance(schedule, str | Cosine | MultiStep) and schedule is not None


def require_schedule(schedule: Any) -> Any:
    """Return a shape over training, a function of the number of the batch, or None for a constant rate.

    >>> require_schedule("cosinus")
    Traceback (most recent call last):
    ValueError: unknown learning_rate_schedule 'cosinus'; known are 'constant', 'cosine', 'piecewise', or ...
    """
    otherwise = "Cosine(), MultiStep(), or a schedule of optax, a function of the number of the batch"
    if isinstance(schedule, str):
        check_choice("learning_rate_schedule", schedule, SCHEDULES, otherwise)
        return SCHEDULES[schedule]
    if is_by_step(schedule):
        if hasattr(schedule, "update") and hasattr(schedule, "init"):
            raise TypeError(
                "learning_rate_schedule must be a schedule, a function of the number of the batch, got an "
                "optimiser "
                f"of optax, {brief(schedule)}; give that as optimizer="
            )
        function("learning_rate_schedule", schedule, "schedule(step)", 1)
    return schedule


def rates_of(schedule: Any, learning_rate: float, n_steps: int) -> Callable[[int], float] | None:
    """Return the rate of each batch by its number, or None where it is the same for all.

    Parameters
    ----------
    schedule : Cosine, MultiStep, callable or None
        What :func:`require_schedule` returned.
    learning_rate : float
        What shapes over training multiply.
    n_steps : int
        Batches of the whole training.

    Raises
    ------
    ValueError
        For rates that are negative, not finite, or all zero: nothing would be trained.
    """
    if schedule is None or n_steps == 0:
        return None
    if not is_by_step(schedule):
        rates = learning_rate * schedule(np.arange(n_steps) / n_steps)
        return _checked(rates, schedule).__getitem__
    try:
        rates = np.asarray(jax.vmap(schedule)(np.arange(n_steps)), float)
    except Exception:  # a function of Python's numbers alone, or of none: each is tried next
        rates = None
    if rates is None or rates.shape != (n_steps,):
        rates = np.array([_rate(schedule, step) for step in range(n_steps)])
    return _checked(rates, schedule).__getitem__


def _rate(schedule, step) -> float:
    try:
        rate = schedule(step)
    except Exception as error:  # whatever a function raises that is no schedule
        raise TypeError(
            f"learning_rate_schedule must give a rate for the number of each batch, but {brief(schedule)} "
            f"fails at {step}: {type(error).__name__}: {error}"
        ) from error
    try:
        return float(rate)
    except (TypeError, ValueError):
        raise TypeError(
            f"learning_rate_schedule must give one number for each batch, got {brief(rate)} from "
            f"{brief(schedule)} at "
            f"batch {step}"
        ) from None


def _checked(rates, schedule) -> np.ndarray:
    wrong = np.flatnonzero(~np.isfinite(rates) | (rates < 0))
    if len(wrong):
        raise ValueError(
            f"learning_rate_schedule must give finite rates >= 0, but {brief(schedule)} gives {rates[wrong[0]]} "
            f"at "
            f"batch {wrong[0]} of {len(rates)}"
        )
    if not rates.any():
        raise ValueError(
            f"learning_rate_schedule gives the rate 0 at each of {len(rates)} batches, so nothing would be "
            f"trained: "
            f"{brief(schedule)}; a schedule that ends after no steps does so"
        )
    return rates
