"""The target of an attack: a function from numbers to scores, with inputs and labels that have been checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .._validation import flag, job_count
from ..attacks.capabilities import Reports
from ..attacks.categories import categories_of
from ..attacks.each import NOTHING, Each
from ..attacks.entry import require_attack
from ..attacks.threat_model import admitted
from ..attacks.tiled import Work, attack_in_tiles
from ..attacks.valid_points import lengths_of
from ..execution.interrupts import heard
from ..execution.keys import Keys, key_of, keys_of
from ..execution.precision import enable_x64, x64_enabled
from ..execution.tiles import answers
from ..tables.frames import Table, as_table
from ..tables.integers import warn_of_integers
from .flat_gradients import warn_of_flat_gradients
from .labels import encode_targets, example_radii, target_values, weights_to_score

# What ``random_state`` may be.
Seed: TypeAlias = int | np.random.RandomState | None
# A gain by an attack that is told of: of the score, and in examples, since random starts move a few answers.
GAIN, GAINED = 0.01, 2.5


@dataclass(frozen=True, eq=False)
class AttackTarget:
    """A model with inputs and labels that have been checked, ready to be attacked.

    The highest of the model's scores is its answer. Estimators that answer in another way have targets of their
    own kind (:class:`~ntkrobust_sk.robustness.target.EstimatorTarget`).

    Attributes
    ----------
    source : estimator or model
    model : callable pytree
        From inputs like ``X`` to scores.
    X : array (n, ...)
        Inputs in the precision in which they are attacked.
    y : int32 array (n,)
        Positions in ``classes``; of a regressor its targets, float (n, T); empty where no labels were asked for.
    classes : array (C,)
        Empty for a regressor.
    rows : int
        Rows of a tile.
    given : array or data frame
        X as it came.
    table : Table or None
        The data frame, or an array of which some columns are fixed.
    data_dtype : dtype or None
        The dtype in which the data were computed, where it is known; inputs may be out of bounds by its rounding.
    x64 : bool
        Whether the model is called in double precision.
    no_gradient_because : str or None
        The reason why there are no gradients, where there are none.
    each : Each
        What each example has of its own: a radius, and the class or value that its answer shall become.
    n_jobs : int or None
        Tiles attacked at a time.
    progress : bool
    """

    source: Any
    model: Callable
    X: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    rows: int
    given: Any
    table: Table | None = None
    data_dtype: np.dtype | None = None
    x64: bool = field(default_factory=x64_enabled)
    no_gradient_because: str | None = None
    each: Each = NOTHING
    n_jobs: int | None = None
    progress: bool = False
    # whether fixed columns of the numbers hold the rows that they came from
    coded: ClassVar[bool] = False

    @property
    def free(self) -> np.ndarray:
        """Return which features attacks may change, bool, shaped like one input."""
        return np.ones(self.X.shape[1:], bool) if self.table is None else ~self.table.fixed

    def asked(
        self, targets: Any = None, epsilon: Any = None, n_jobs: int | None = None, progress: bool = False
    ) -> Self:
        """Return this target as it is to be attacked.

        Parameters
        ----------
        targets : array (n,) of labels or values, or one of them, default=None
            What the answers shall become; None is anything else than y.
        epsilon : array (n,) or float, default=None
            Radii of the examples; None is the attack's.
        n_jobs : int, default=None
        progress : bool, default=False

        Raises
        ------
        TypeError, ValueError
            For targets that are no classes, or the labels themselves; for radii that are none; for a wrong number.
        """
        aims = radii = None
        if targets is not None:
            is_classes = len(self.classes) > 0
            aims = encode_targets(targets, self.y, self.classes) if is_classes else target_values(targets, self.y)
        if epsilon is not None:
            radii = example_radii(epsilon, len(self.X))
        return replace(self, each=Each(radii, aims), n_jobs=job_count(n_jobs), progress=flag("progress", progress))

    def stands(self, answers: np.ndarray, at: Any = slice(None)) -> np.ndarray:
        """Tell where answers (n,) to the rows ``at`` are right; with targets, where they are not the targets."""
        return ~self.each.at(at).fallen(answers, self.y[at])

    def attack_for(self, attack: Any) -> Any:
        """Return the attack that this target can be attacked with, kept to the features that may change.

        Raises
        ------
        TypeError, ValueError
            For what is no attack; for one that needs labels, where there are real targets.
        """
        return self.within(self._taken(attack))

    def _taken(self, attack: Any) -> Any:
        """Return an attack on what answers as this one does: of real targets not all are."""
        attack = require_attack(attack)
        if getattr(attack, "needs_labels", False) and self.y.dtype.kind == "f":
            raise ValueError(
                f"{type(attack).__name__} attacks classifiers, since it needs integer labels, but y holds real "
                f"targets of {type(self.source).__name__}; PGD, FGSM and APGD attack regressors (of labels that "
                "are written as floating numbers give y.astype(int))"
            )
        return attack

    def within(self, attack: Any) -> Any:
        """Return the attack with bounds that keep to the features that may change."""
        if self.table is None and (names := [name for name, _ in categories_of(attack) if isinstance(name, str)]):
            raise ValueError(f"Box(categories=...) names the column {names[0]!r}, but X is no data frame")
        if self.table is None:
            return attack
        radius = (
            getattr(attack, "epsilon", np.inf)
            if self.each.epsilon is None
            else np.max(self.each.epsilon, initial=0)
        )
        warn_of_integers(self.table, attack, float(radius))
        return self.table.within(attack)

    def lengths(self, norm: str, points: np.ndarray, at: Any = slice(None)) -> np.ndarray:
        """Return the lengths (m,) of the changes of numbers from the inputs of the rows ``at``."""
        return lengths_of(norm, *(np.where(self.free, each, 0) for each in (points, self.X[at])))

    def inputs(self, attack: Any, at: Any = slice(None)) -> np.ndarray:
        """Return the inputs of the rows ``at``, checked against the attack's bounds."""
        names = self.table.names if self.table is not None and self.table.has_names else None
        return admitted(attack, self.X[at], self.data_dtype, names)

    def perturb(self, attack: Callable, key: Any, at: Any = slice(None), look: bool = True) -> np.ndarray:
        """Return adversarial examples of the rows ``at``; ``key`` is one, or one for each of *all* rows."""
        keys = keys_of(key, len(self.X))
        X = self.inputs(attack, at)
        with self.precision():
            found = attack_in_tiles(
                attack, self.model, X, self.y[at], key=keys[at], rows=self.rows, look=look, **self._options(at)
            )
        return found if self.table is None else np.where(self.table.held, X, found)

    def reported(self, attack: Reports, keys: Keys, at: Any = slice(None)) -> Any:
        """Return what an attack tells that reports what it has found, of the rows ``at``."""
        X = self.inputs(attack, at)
        with self.precision():
            work = Work(**self._options(at)).options_for(attack, attack.run)
            return attack.run(self.model, X, self.y[at], key=keys[at], rows=self.rows, **work)

    def _options(self, at) -> dict[str, Any]:
        return {"each": self.each.at(at), "n_jobs": self.n_jobs, "progress": self.progress}

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Give the context in which the model is called: its precision, and Ctrl-C that is heard."""
        with heard(), enable_x64(self.x64):
            yield

    def answers(self, X: ArrayLike) -> np.ndarray:
        """Return the positions in ``classes`` (n,) of the answers to inputs like ``X``; a regressor has none."""
        X = np.asarray(X, self.X.dtype).reshape(-1, *self.X.shape[1:])
        with self.precision():
            return answers(self.model, X, self.rows)

    def in_original_form(self, X: np.ndarray) -> Any:
        """Return inputs in the form in which they came: a data frame, flat rows, or images."""
        if self.table is None:
            return X.reshape(-1, *np.shape(self.given)[1:])
        X = np.asarray(X, float)
        if X.shape == self.X.shape:
            # what has not moved is what it was, to the last digit
            X = np.where((X == self.X) & self.free, self.table.numbers, X)
        return self.table.decoded(X) if self.coded else self.table.in_original_form(X)

    def read(self, given: Any) -> np.ndarray:
        """Return inputs in the form in which they came, of the same rows as ``X``, as this target's numbers."""
        table = as_table(given) if self.table is not None and self.table.has_names else None
        numbers = np.asarray(given if table is None else table.numbers, self.X.dtype)
        return np.where(self.free, numbers.reshape(self.X.shape), self.X)

    def score(self, X: np.ndarray, y: ArrayLike, sample_weight: np.ndarray | None = None) -> float:
        """Return the score of the answers to inputs like ``X`` with labels or targets y, as these came."""
        return float(np.average(self.answers(X) == self.y, weights=sample_weight))

    def robust_score(
        self,
        attack: Callable,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        random_state: Seed = 0,
    ) -> float:
        """Return the score on adversarial examples; warn if gradients were no guide to them.

        They were none if the score is better than that on the inputs themselves, and where they are exactly zero
        at examples that the attack has left right.

        With targets that are classes it is the share of examples whose answers are not these.

        Parameters
        ----------
        attack : callable
        y : array (n,) or (n, T)
            Labels or targets, as they came.
        sample_weight : array (n,), default=None
        random_state : int, RandomState or None, default=0
        """
        weights = weights_to_score(y, len(self.X), sample_weight)
        attack = self.attack_for(attack)
        X_adv = self.perturb(attack, key_of(random_state))
        if self.each.aims is not None and len(self.classes):
            stands = [self.stands(self.answers(inputs)) for inputs in (X_adv, self.X)]
            robust, clean = (float(np.average(standing, weights=weights)) for standing in stands)
        else:
            robust, clean = (self.score(inputs, y, weights) for inputs in (X_adv, self.X))
        # the score of a regressor rises where its answers were driven to values that are nearer to y
        aimed_at_values = self.each.aims is not None and not len(self.classes)
        if not aimed_at_values and robust - clean > max(GAIN, GAINED / len(X_adv)):
            warnings.warn(
                f"the attack makes the answers better: the score is {robust:.3f} on adversarial examples and "
                f"{clean:.3f} on the inputs themselves. Its gradients are no guide for this model, so its robust "
                "score is far too high; attack with Square or AutoAttack too, and see check_evaluation",
                UserWarning,
                stacklevel=3,
            )
        elif len(self.classes):
            warn_of_flat_gradients(self, attack, X_adv)
        return robust
