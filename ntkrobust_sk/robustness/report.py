"""Robust accuracy as evidence: several attacks and radii at once, with intervals."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._drawing import Axes
from .._validation import array, brief, check_choice, number
from ..attacks.autoattack import AutoAttack
from ..attacks.boxes import Box, plain_bounds
from ..attacks.capabilities import InBall, Reports
from ..attacks.categories import categories_of
from ..attacks.entry import require_attack
from ..attacks.fab import FAB
from ..attacks.norms import NORMS
from ..attacks.pgd import PGD
from ..attacks.tiled import warn_of_gradients
from ..execution.keys import key_of, keys_of
from ..tables.frames import fields_of
from ..targets.target import Seed
from . import report_views
from .distances import distances_by, require_nearest
from .intervals import clopper_pearson
from .report_views import QUANTILES
from .target import classifier_under_attack


def robustness_report(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    epsilons: float | Sequence[float],
    *,
    norm: str = "linf",
    bounds: Any = (0.0, 1.0),
    attacks: Any = None,
    nearest: Any = None,
    confidence: float = 0.95,
    random_state: Seed = 0,
    targets: Any = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> RobustnessReport:
    """Return accuracy under several attacks at several radii, by class, with confidence intervals.

    An example that has fallen to an attack at one radius has fallen at all larger ones, since it lies in their
    balls too. So it is not attacked again, and accuracy cannot rise with epsilon.

    Parameters
    ----------
    estimator : fitted classifier, or callable
        Whatever :func:`~ntkrobust_sk.robust_accuracy` takes, but no regressor; or a function from
        inputs to scores.
    X : array (n, n_features), data frame, or (n, h, w, c)
        Inputs of the estimator, of a Pipeline those of its first step.
    y : array (n,)
        Labels of ``classes_``; for a function integers 0..C-1.
    epsilons : float or sequence of float
        Radii, in units of X.
    norm : {"linf", "l2", "l1"}, default="linf"
    bounds : (low, high) or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.
    attacks : attack, sequence of them or dict from names to them, default=None
        Their epsilon, norm and bounds give way to those of the report. None is PGD of 40 steps with 5
        restarts, and AutoAttack.
    nearest : attack with ``nearest``, default=None
        For the minimal perturbations; None is :class:`~ntkrobust_sk.FAB`.
    confidence : float in (0, 1), default=0.95
        Of each Clopper–Pearson interval, taken by itself.
    random_state : int, RandomState or None, default=0
    targets : array (n,) of labels, or one label, default=None
        Classes that the answers shall become. What stands then, in all figures of the report, is what is not
        answered by its target.
    n_jobs, progress
        As for :func:`~ntkrobust_sk.robust_accuracy`.

    Returns
    -------
    RobustnessReport

    Raises
    ------
    NotFittedError, TypeError, ValueError
        As for :func:`~ntkrobust_sk.robust_accuracy`; TypeError for a regressor.

    Warns
    -----
    UserWarning
        If there are no gradients, so that all attacks are :class:`~ntkrobust_sk.Square`.

    References
    ----------
    Clopper & Pearson 1934; Croce & Hein 2020, arXiv:2003.01690.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ntkrobust_sk import PGD, robustness_report
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = LogisticRegression(max_iter=1000).fit(X, y)
    >>> report = robustness_report(classifier, X, y, [0.1, 0.5], bounds=None, attacks=PGD(0.1))
    >>> bool((np.diff(report.accuracies) <= 0).all())
    True
    """
    epsilons, confidence = radii("epsilons", epsilons), number("confidence", confidence, above=0, below=1)
    check_choice("norm", norm, NORMS)
    bounds = plain_bounds(bounds)
    if nearest is not None:
        require_nearest(nearest, "nearest")
    categories = bounds.categories if isinstance(bounds, Box) else ()
    target = classifier_under_attack("robustness_report", estimator, X, y, categories=categories)
    target = target.asked(targets, n_jobs=n_jobs, progress=progress)
    largest = {"epsilon": epsilons[-1], "norm": norm, "bounds": bounds}
    attacks = _attacks_in(attacks, target, largest)
    keys = keys_of(key_of(random_state), len(target.X))
    right = target.stands(target.answers(target.X))
    distances = np.where(right, np.inf, 0.0)
    fell_at, flags = [], {}
    for name, attack in attacks.items():
        fell, lengths, said = _falls(target, attack, epsilons, keys, right)
        fell_at.append(fell)
        distances = np.minimum(distances, lengths)
        flags |= {f"{name}, {flag}": at for flag, at in said.items()}
    if target.no_gradient_because is None and not categories:
        nearest = target.within(FAB(**largest) if nearest is None else _in_ball(nearest, **largest))
        distances = np.minimum(distances, distances_by(target, nearest, keys))
        with target.precision():
            looked = PGD(**largest)
            X = target.inputs(target.within(looked))
            warn_of_gradients(target.within(looked), target.model, X, target.y, keys, target.rows)
    return RobustnessReport(
        epsilons=epsilons,
        norm=norm,
        names=tuple(attacks),
        classes=target.classes,
        y=target.y,
        fell_at=np.stack(fell_at),
        distances=distances,
        flags=tuple(f"{flag} (epsilon {', '.join(at)})" for flag, at in flags.items()),
        confidence=confidence,
    )


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """The accuracies and distances that :func:`robustness_report` has found; printed, they are a table.

    Attributes
    ----------
    epsilons : tuple of float
        Ascending.
    norm : str
    names : tuple of str
        Of the attacks.
    classes : array (C,)
    y : int array (n,)
        Positions of the labels in ``classes``.
    fell_at : array (n_attacks, n)
        Smallest epsilon at which the example fell; 0 where it was answered wrongly as it is, infinity where it
        stands.
    distances : array (n,)
        Of the nearest wrongly answered point that any attack has found, an upper bound of the minimal
        perturbation; infinity where there was none.
    flags : tuple of str
        What AutoAttack holds against its own result.
    confidence : float

    Examples
    --------
    Four examples: one is answered wrongly as it is, one falls at epsilon 0.2, two stand.

    >>> import numpy as np
    >>> from ntkrobust_sk import RobustnessReport
    >>> report = RobustnessReport(
    ...     epsilons=(0.1, 0.2),
    ...     norm="linf",
    ...     names=("PGD",),
    ...     classes=np.array([0, 1]),
    ...     y=np.array([0, 0, 1, 1]),
    ...     fell_at=np.array([[0.0, 0.2, np.inf, np.inf]]),
    ...     distances=np.array([0.0, 0.15, np.inf, np.inf]),
    ...     flags=(),
    ...     confidence=0.95,
    ... )
    >>> report.clean_accuracy, report.worst_accuracies.tolist()
    (0.75, [0.75, 0.5])
    >>> report.class_accuracies[:, 0].tolist()
    [[0.5, 0.0], [1.0, 1.0]]
    """

    epsilons: tuple[float, ...]
    norm: str
    names: tuple[str, ...]
    classes: np.ndarray
    y: np.ndarray
    fell_at: np.ndarray
    distances: np.ndarray
    flags: tuple[str, ...]
    confidence: float

    @property
    def clean_accuracy(self) -> float:
        """Return the accuracy on the examples as they are."""
        return float(np.mean(self.fell_at[0] > 0))

    @property
    def accuracies(self) -> np.ndarray:
        """Return robust accuracies (n_attacks, n_epsilons)."""
        return self._standing().mean(2)

    @property
    def worst_accuracies(self) -> np.ndarray:
        """Return the share (n_epsilons,) of examples that stand under all of the attacks."""
        return self._standing().all(0).mean(1)

    @property
    def intervals(self) -> np.ndarray:
        """Return Clopper–Pearson intervals (n_attacks, n_epsilons, 2) of ``accuracies``."""
        standing = self._standing()
        return np.stack(clopper_pearson(standing.sum(2), standing.shape[2], self.confidence), axis=-1)

    @property
    def class_accuracies(self) -> np.ndarray:
        """Return robust accuracies (C, n_attacks, n_epsilons); NaN for a class without examples."""
        members = self.y == np.arange(len(self.classes))[:, None]
        counts = members.sum(1)[:, None, None]
        found = np.einsum("cn,aen->cae", members.astype(float), self._standing())
        return np.where(counts, found / np.maximum(counts, 1), np.nan)

    def quantiles(self, q: float | Sequence[float] = QUANTILES) -> np.ndarray:
        """Return quantiles of the distances: of a share q of the examples none is longer."""
        is_one = isinstance(q, numbers.Number) or getattr(q, "shape", None) == ()
        shares = array("q", [q] if is_one else q, finite=True).astype(float)
        if not shares.size or shares.ndim > 1 or (shares < 0).any() or (shares > 1).any():
            raise ValueError(f"q must be one or more shares from 0 to 1, got {brief(q)}")
        return np.quantile(self.distances, shares[0] if is_one else shares, method="inverted_cdf")

    def to_frame(self) -> Any:
        """Return a data frame with a row for each attack, epsilon and class, and for all classes together.

        Returns
        -------
        pandas.DataFrame
            Columns attack, epsilon, class, n, accuracy, low, high. Accuracy on the examples as they are is that of
            the attack "clean" at epsilon 0.
        """
        import pandas as pd

        cells = [("clean", 0.0), *itertools.product(self.names, self.epsilons)]
        standing = [self.fell_at[0] > 0, *np.concatenate(self._standing())]
        groups = [("all", slice(None)), *((label, self.y == at) for at, label in enumerate(self.classes.tolist()))]
        rows = []
        for (cell, stands), (label, group) in itertools.product(zip(cells, standing, strict=True), groups):
            members = stands[group]
            low, high = clopper_pearson(members.sum(), len(members), self.confidence)
            accuracy = members.mean() if len(members) else np.nan
            rows.append((*cell, label, len(members), accuracy, float(low), float(high)))
        return pd.DataFrame(rows, columns=["attack", "epsilon", "class", "n", "accuracy", "low", "high"])

    def plot(
        self, ax: Axes | None = None, *, line_kw: dict | None = None, fill_between_kw: dict | None = None
    ) -> Axes:
        """Draw accuracy over epsilon, from that on the examples as they are on: a line for each attack.

        Bands are the intervals. Where there are several attacks, a dotted line is the share that stands under all.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        line_kw, fill_between_kw : dict, default=None
            Keywords for ``ax.plot`` and ``ax.fill_between``, as scikit-learn's displays take them.

        Returns
        -------
        matplotlib Axes
        """
        return report_views.draw(self, ax, line_kw, fill_between_kw)

    def __str__(self):
        return report_views.text_of(self)

    def _repr_html_(self):
        return report_views.html_of(self)

    def _standing(self):
        return self.fell_at[:, None, :] > np.array(self.epsilons)[:, None]


def radii(name: str, values: Any) -> tuple[float, ...]:
    """Return radii in ascending order, without repetition, of a number or a sequence of numbers."""
    shape = getattr(values, "shape", None)
    is_sequence = isinstance(values, list | tuple | range) or (isinstance(shape, tuple) and len(shape) == 1)
    given = list(values) if is_sequence else [values]
    if not given or isinstance(values, str | bytes | set | dict):
        raise ValueError(
            f"{name} must be numbers in units of the data, such as [4/255, 8/255], got {brief(values)}"
        )
    return tuple(sorted({number(f"each of {name}", value, low=0, unit="in units of the data") for value in given}))


def _attacks_in(attacks, target, largest) -> dict[str, Callable]:
    """Return attacks by name, in the largest ball, that the target can be attacked with."""
    if attacks is None:
        steps = PGD(**largest, n_steps=40, n_restarts=5)
        has_gradients = target.no_gradient_because is None
        attacks = [steps, AutoAttack(**largest)] if has_gradients else [target.attack_for(steps)]
    found, replaced = {}, {}
    for name, asked in _named(attacks).items():
        asked = _in_ball(asked, **largest)
        attack = target.attack_for(asked)
        # of all examples, before any is attacked
        target.inputs(attack)
        if type(attack) is type(asked):
            found[name] = attack
        else:
            replaced.setdefault(attack, []).append(name)
    # a table names what has run
    names = {
        f"{type(attack).__name__} instead of {', '.join(asked)}": attack for attack, asked in replaced.items()
    }
    return found | names


def _named(attacks) -> dict[str, Callable]:
    if isinstance(attacks, dict):
        if not attacks or not all(isinstance(name, str) for name in attacks):
            raise TypeError(f"attacks must be attacks by name, as in {{'pgd': PGD(0.1)}}, got {brief(attacks)}")
        return attacks
    attacks = list(attacks) if isinstance(attacks, list | tuple) else [attacks]
    for attack in attacks:
        require_attack(attack, "attacks")
    names = [type(attack).__name__ for attack in attacks]
    if len(set(names)) < len(names) or not names:
        raise ValueError(
            f"attacks of one type need names, as in {{'short': PGD(...), 'long': ...}}, got {brief(attacks)}"
        )
    return dict(zip(names, attacks, strict=True))


def _in_ball(attack: Any, epsilon, norm, bounds) -> Any:
    """Return the attack with another ball, as far as it states one."""
    stated = fields_of(attack)
    if "epsilon" not in stated:
        raise TypeError(
            f"attacks: an attack at several radii must be a dataclass with epsilon, such as PGD, got {attack!r}"
        )
    given = {"epsilon": epsilon, "norm": norm, "bounds": bounds}
    attack = dataclasses.replace(attack, **{name: value for name, value in given.items() if name in stated})
    if isinstance(attack, InBall) and attack.norm != norm:
        raise ValueError(
            f"the report is in the norm {norm}, but {type(attack).__name__} is an attack in {attack.norm}"
        )
    return attack


def _falls(target, attack, epsilons, keys, right):
    """Return where examples fall first (n,), the lengths of what made them fall (n,), and flags with epsilons."""
    fell, flags = np.where(right, np.inf, 0.0), {}
    lengths = fell.copy()
    for epsilon in epsilons:
        at = np.flatnonzero(fell == np.inf)
        if epsilon == 0 or not len(at):
            continue
        found, said = _attacked(target, dataclasses.replace(attack, epsilon=epsilon), keys, at)
        broken = ~target.stands(target.answers(found), at)
        fell[at[broken]] = epsilon
        lengths[at[broken]] = target.lengths(attack.norm, found[broken], at[broken])
        for flag in said:
            flags.setdefault(flag, []).append(f"{epsilon:g}")
    return fell, lengths, flags


def _attacked(target, attack, keys, at):
    """Return adversarial examples of the rows ``at``, and flags."""
    if not isinstance(attack, Reports) or categories_of(attack):
        return target.perturb(attack, keys, at, look=False), ()
    found = target.reported(attack, keys, at)
    return found.x_adv, found.flags
