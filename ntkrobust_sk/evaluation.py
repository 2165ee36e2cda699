"""Robust accuracy as evidence: several attacks and radii at once, with intervals; distances; transfer."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.base import is_regressor

from ._validation import array, brief, check_choice, number, require_numbers
from .attacks.autoattack import AutoAttack
from .attacks.entry import require_attack
from .attacks.fab import FAB
from .attacks.norms import NORMS
from .attacks.pgd import PGD
from .attacks.threat_model import plain_bounds
from .attacks.tiled import warn_of_gradients
from .attacks.valid_points import settle
from .execution.keys import key_of, keys_of
from .subjects import Subject, attackable, is_function, under_attack

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# How far out, in units of the distance found, a wrong answer is looked for where rounding has taken it away: that
# of scores, and that of values to those that features may have.
A_LITTLE_FURTHER = (1 + 1e-5, 1 + 1e-4, 1 + 1e-3, 1.01)
FURTHER = (1.0, *A_LITTLE_FURTHER, 1.1, 1.25, 1.5, 2.0, 3.0)


def robustness_report(
    estimator,
    X,
    y,
    epsilons,
    *,
    norm="linf",
    bounds=(0.0, 1.0),
    attacks=None,
    nearest=None,
    confidence=0.95,
    random_state=0,
) -> RobustnessReport:
    """Accuracy under several attacks at several radii, by class, with confidence intervals.

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
        _require_nearest(nearest, "nearest")
    subject = classifier_under_attack("robustness_report", estimator, X, y)
    largest = {"epsilon": epsilons[-1], "norm": norm, "bounds": bounds}
    attacks = _attacks_in(attacks, subject, largest)
    keys = keys_of(key_of(random_state), len(subject.X))
    right = subject.answers(subject.X) == subject.y
    distances = np.where(right, np.inf, 0.0)
    fell_at, flags = [], {}
    for name, attack in attacks.items():
        fell, lengths, said = _falls(subject, attack, epsilons, keys, right)
        fell_at.append(fell)
        distances = np.minimum(distances, lengths)
        flags |= {f"{name}, {flag}": at for flag, at in said.items()}
    if subject.opaque is None:
        nearest = subject.within(FAB(**largest) if nearest is None else _in_ball(nearest, **largest))
        distances = np.minimum(distances, _nearest(subject, nearest, keys))
        with subject.precision():
            looked = PGD(**largest)
            X = subject.inputs(subject.within(looked))
            warn_of_gradients(subject.within(looked), subject.model, X, subject.y, keys, subject.rows)
    return RobustnessReport(
        epsilons=epsilons,
        norm=norm,
        names=tuple(attacks),
        classes=subject.classes,
        y=subject.y,
        fell_at=np.stack(fell_at),
        distances=distances,
        flags=tuple(f"{flag} (epsilon {', '.join(at)})" for flag, at in flags.items()),
        confidence=confidence,
    )


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """What :func:`robustness_report` has found. Printed, it is a table.

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
        """Accuracy on the examples as they are."""
        return float(np.mean(self.fell_at[0] > 0))

    @property
    def accuracies(self) -> np.ndarray:
        """Robust accuracies (n_attacks, n_epsilons)."""
        return self._standing().mean(2)

    @property
    def worst_accuracies(self) -> np.ndarray:
        """Share (n_epsilons,) of examples that stand under all of the attacks."""
        return self._standing().all(0).mean(1)

    @property
    def intervals(self) -> np.ndarray:
        """Clopper–Pearson intervals (n_attacks, n_epsilons, 2) of ``accuracies``."""
        standing = self._standing()
        return np.stack(clopper_pearson(standing.sum(2), standing.shape[2], self.confidence), axis=-1)

    @property
    def class_accuracies(self) -> np.ndarray:
        """Robust accuracies (C, n_attacks, n_epsilons); NaN for a class without examples."""
        members = self.y == np.arange(len(self.classes))[:, None]
        counts = members.sum(1)[:, None, None]
        found = np.einsum("cn,aen->cae", members.astype(float), self._standing())
        return np.where(counts, found / np.maximum(counts, 1), np.nan)

    def quantiles(self, q=QUANTILES) -> np.ndarray:
        """Quantiles of the distances: of a share q of the examples the minimal perturbation is at most so long."""
        is_one = isinstance(q, numbers.Number) or getattr(q, "shape", None) == ()
        q = array("q", [q] if is_one else q, finite=True).astype(float)
        if not q.size or (q < 0).any() or (q > 1).any():
            raise ValueError(f"q must be one or more shares from 0 to 1, got {brief(q)}")
        return np.quantile(self.distances, q[0] if is_one else q, method="inverted_cdf")

    def to_frame(self):
        """A data frame with a row for each attack, epsilon and class, and for all classes together.

        Returns
        -------
        pandas.DataFrame
            Columns attack, epsilon, class, n, accuracy, low, high. Accuracy on the examples as they are is that of
            the attack "clean" at epsilon 0.
        """
        import pandas as pd

        rows = []
        clean = (("clean", 0.0, self.fell_at[0] > 0),)
        attacked = (
            (name, epsilon, standing)
            for name, by_epsilon in zip(self.names, self._standing(), strict=True)
            for epsilon, standing in zip(self.epsilons, by_epsilon, strict=True)
        )
        for attack, epsilon, standing in (*clean, *attacked):
            for label, position in (
                ("all", None),
                *zip(self.classes.tolist(), range(len(self.classes)), strict=True),
            ):
                members = standing if position is None else standing[self.y == position]
                low, high = clopper_pearson(members.sum(), len(members), self.confidence)
                accuracy = members.mean() if len(members) else np.nan
                rows.append((attack, epsilon, label, len(members), accuracy, float(low), float(high)))
        return pd.DataFrame(rows, columns=["attack", "epsilon", "class", "n", "accuracy", "low", "high"])

    def __str__(self):
        low, high = clopper_pearson(np.sum(self.fell_at[0] > 0), len(self.y), self.confidence)
        width = max(24, *(len(name) + 2 for name in self.names))
        lines = [
            f"{len(self.y):,} examples, norm {self.norm}, intervals of {self.confidence:.0%} (Clopper–Pearson)",
            f"clean accuracy {self.clean_accuracy:.3f} [{low:.3f}, {high:.3f}]",
            "",
            f"{'epsilon':<10}" + "".join(f"{name:<{width}}" for name in (*self.names, "all of them")),
        ]
        rows = zip(self.epsilons, self.accuracies.T, self.intervals.transpose(1, 0, 2), strict=True)
        for (epsilon, accuracies, intervals), worst in zip(rows, self.worst_accuracies, strict=True):
            cells = [f"{a:.3f} [{lo:.3f}, {hi:.3f}]" for a, (lo, hi) in zip(accuracies, intervals, strict=True)]
            lines.append(f"{epsilon:<10.4g}" + "".join(f"{cell:<{width}}" for cell in cells) + f"{worst:.3f}")
        by_class = self.class_accuracies[:, :, -1].min(1)
        if not np.isnan(by_class).all():
            worst = np.nanargmin(by_class)
            where = f"at epsilon {self.epsilons[-1]:.4g}"
            lines += ["", f"worst class {where}: {self.classes[worst]} with {by_class[worst]:.3f}"]
        found = ", ".join(f"{q:.0%} {at:.4g}" for q, at in zip(QUANTILES, self.quantiles(), strict=True))
        lines.append(f"minimal perturbation at most: {found}")
        lines += [f"flag: {flag}" for flag in self.flags]
        return "\n".join(line.rstrip() for line in lines)

    def _standing(self):
        return self.fell_at[:, None, :] > np.array(self.epsilons)[:, None]


def minimal_perturbations(
    estimator, X, y, attack=None, *, norm="linf", bounds=(0.0, 1.0), random_state=0
) -> np.ndarray:
    """Distances to the nearest wrongly answered points that a minimum-norm attack finds.

    Each is an upper bound of the true distance.

    Parameters
    ----------
    estimator, X, y, random_state
        As for :func:`robustness_report`.
    attack : attack with ``nearest``, default=None
        :class:`~ntkrobust_sk.FMN`, :class:`~ntkrobust_sk.DDN`, or (None) :class:`~ntkrobust_sk.FAB` in this norm
        and these bounds.
    norm : {"linf", "l2", "l1"}, default="linf"
    bounds : (low, high) or None, default=(0.0, 1.0)
        Of the default attack.

    Returns
    -------
    array (n,)
        In units of X; 0 for what is answered wrongly as it is, infinity where nothing was found.

    Raises
    ------
    TypeError
        If the attack finds no nearest points, or the estimator has no differentiable form.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import LinearSVC
    >>> from ntkrobust_sk import minimal_perturbations
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[:100], y[:100]
    >>> svc = LinearSVC().fit(X, y)
    >>> exact = abs(svc.decision_function(X)) / abs(svc.coef_).sum()
    >>> bool(abs(minimal_perturbations(svc, X, y, bounds=None) / exact - 1).max() < 0.01)
    True
    """
    default = FAB(1.0, norm=norm, bounds=bounds)
    attack = default if attack is None else _require_nearest(attack, "attack")
    subject = classifier_under_attack("minimal_perturbations", estimator, X, y)
    if subject.opaque is not None:
        raise TypeError(f"{subject.opaque}, but minimal perturbations need gradients")
    keys = keys_of(key_of(random_state), len(subject.X))
    found = _nearest(subject, subject.within(attack), keys)
    with subject.precision():
        warn_of_gradients(attack, subject.model, subject.X, subject.y, keys, subject.rows)
    return found


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """What :func:`transfer_matrix` has found.

    Attributes
    ----------
    names : tuple of str
    clean : array (m,)
        Accuracies on the examples as they are.
    matrix : array (m, m)
        Accuracy of each model (column) on the adversarial examples of each (row).
    attacks : tuple of str
        What made the examples of each: Square instead of an attack with gradients where there are none.
    """

    names: tuple[str, ...]
    clean: np.ndarray
    matrix: np.ndarray
    attacks: tuple[str, ...] = ()


def transfer_matrix(estimators: dict, X, y, attack, *, random_state=0) -> TransferMatrix:
    """Accuracy of every model on the adversarial examples against every model.

    Parameters
    ----------
    estimators : dict from str to fitted classifier or callable
        What :func:`robustness_report` takes: networks, their linearisations, kernel machines. Those with an
        infinitely wide network's kernel come as ``as_model(machine, kernel=k)``.
    X, y, random_state
        As for :func:`robustness_report`. A function's scores stand for the classes of the estimators.
    attack : attack
        The same on all of them.

    Returns
    -------
    TransferMatrix
        Drawn by :meth:`~ntkrobust_sk.TransferDisplay.from_estimators`.

    Raises
    ------
    ValueError
        If the classifiers know different classes.

    References
    ----------
    Papernot et al. 2016, arXiv:1605.07277.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.svm import SVC
    >>> from ntkrobust_sk import PGD, transfer_matrix
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = {"linear": LogisticRegression(max_iter=1000).fit(X, y), "rbf": SVC().fit(X, y)}
    >>> found = transfer_matrix(fitted, X, y, PGD(0.5, bounds=None))
    >>> found.names, bool((np.diag(found.matrix) <= found.clean).all())
    (('linear', 'rbf'), True)
    """
    if not isinstance(estimators, dict) or not estimators:
        raise TypeError(
            f"estimators must be a dict from names to classifiers, for transfer_matrix, got {brief(estimators)}"
        )
    require_attack(attack)
    known = {name: getattr(e, "classes_", None) for name, e in estimators.items()}
    known = {name: np.asarray(classes) for name, classes in known.items() if classes is not None}
    first = next(iter(known.values()), None)
    for name, classes in known.items():
        if classes.tolist() != first.tolist():
            raise ValueError(
                f"{next(iter(known))} and {name} know different classes, {first.tolist()} and {classes.tolist()}"
            )
    subjects = [
        classifier_under_attack("transfer_matrix", e, X, y, classes=None if hasattr(e, "fit") else first)
        for e in estimators.values()
    ]
    key = key_of(random_state)
    used = [subject.usable(attack) for subject in subjects]
    attacked = [s.like(s.perturb(attack, key)) for s, attack in zip(subjects, used, strict=True)]
    return TransferMatrix(
        names=tuple(estimators),
        clean=np.array([np.mean(subject.answers(subject.X) == subject.y) for subject in subjects]),
        matrix=np.array([[np.mean(s.answers(s.read(X_adv)) == s.y) for s in subjects] for X_adv in attacked]),
        attacks=tuple(type(attack).__name__ for attack in used),
    )


def clopper_pearson(successes, n, confidence=0.95):
    """Lower and upper ends of the exact interval of a proportion.

    They are quantiles of beta distributions, B(tail; k, n − k + 1) and B(1 − tail; k + 1, n − k) with tail =
    (1 − confidence) / 2; each end alone holds with probability 1 − tail (Clopper & Pearson 1934).

    Parameters
    ----------
    successes, n : int or array of int
    confidence : float in (0, 1), default=0.95

    Returns
    -------
    low, high : arrays shaped like ``successes``

    Examples
    --------
    >>> [round(float(end), 4) for end in clopper_pearson(8, 10)]
    [0.4439, 0.9748]
    """
    k, tail = np.asarray(successes), (1 - number("confidence", confidence, above=0, below=1)) / 2
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError(f"successes must be 0 to n, got {brief(successes)} of {brief(n)}")
    low = np.where(k == 0, 0.0, scipy.stats.beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1.0, scipy.stats.beta.isf(tail, k + 1, np.maximum(n - k, 1)))
    return low, high


def classifier_under_attack(function: str, estimator, X, y, **options) -> Subject:
    """:func:`~ntkrobust_sk.subjects.attackable` of what has classes, on behalf of a function."""
    estimator = under_attack(estimator)
    if not hasattr(X, "columns"):
        require_numbers("X", X)
    if not is_function(estimator) and is_regressor(estimator):
        raise TypeError(
            f"{function} counts right answers, but {type(estimator).__name__} is a regressor; "
            "robust_accuracy gives its R² on attacked inputs"
        )
    return attackable(estimator, X, y, **options)


def radii(name: str, values) -> tuple[float, ...]:
    """Radii in ascending order, without repetition, of a number or a sequence of numbers."""
    shape = getattr(values, "shape", None)
    is_sequence = isinstance(values, list | tuple | range) or (isinstance(shape, tuple) and len(shape) == 1)
    given = list(values) if is_sequence else [values]
    if not given or isinstance(values, str | bytes | set | dict):
        raise ValueError(
            f"{name} must be numbers in units of the data, such as [4/255, 8/255], got {brief(values)}"
        )
    return tuple(sorted({number(f"each of {name}", value, low=0, unit="in units of the data") for value in given}))


def _attacks_in(attacks, subject, largest) -> dict[str, Callable]:
    """Attacks by name, in the largest ball, that the subject can be attacked with."""
    if attacks is None:
        steps = PGD(**largest, n_steps=40, n_restarts=5)
        attacks = [steps, AutoAttack(**largest)] if subject.opaque is None else [subject.usable(steps)]
    found, replaced = {}, {}
    for name, asked in _named(attacks).items():
        asked = _in_ball(asked, **largest)
        attack = subject.usable(asked)
        # of all examples, before any is attacked
        subject.inputs(attack)
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


def _in_ball(attack, epsilon, norm, bounds):
    """The attack with another ball, as far as it states one."""
    stated = {field.name for field in dataclasses.fields(attack)} if dataclasses.is_dataclass(attack) else ()
    if "epsilon" not in stated:
        raise TypeError(
            f"attacks: an attack at several radii must be a dataclass with epsilon, such as PGD, got {attack!r}"
        )
    given = {"epsilon": epsilon, "norm": norm, "bounds": bounds}
    attack = dataclasses.replace(attack, **{name: value for name, value in given.items() if name in stated})
    if getattr(attack, "norm", norm) != norm:
        raise ValueError(
            f"the report is in the norm {norm}, but {type(attack).__name__} is an attack in {attack.norm}"
        )
    return attack


def _falls(subject, attack, epsilons, keys, right):
    """Where examples fall first (n,), how far their wrongly answered points are (n,), and flags with epsilons."""
    fell, flags = np.where(right, np.inf, 0.0), {}
    lengths = fell.copy()
    for epsilon in epsilons:
        at = np.flatnonzero(fell == np.inf)
        if epsilon == 0 or not len(at):
            continue
        found, said = _attacked(subject, dataclasses.replace(attack, epsilon=epsilon), keys, at)
        broken = subject.answers(found) != subject.y[at]
        fell[at[broken]] = epsilon
        lengths[at[broken]] = _lengths(attack.norm, found[broken], subject.X[at[broken]])
        for flag in said:
            flags.setdefault(flag, []).append(f"{epsilon:g}")
    return fell, lengths, flags


def _attacked(subject, attack, keys, at):
    """Adversarial examples of rows ``at``, and flags."""
    if not hasattr(attack, "run"):
        return subject.perturb(attack, keys, at, look=False), ()
    with subject.precision():
        found = attack.run(
            subject.model, subject.inputs(attack, at), subject.y[at], key=keys[at], rows=subject.rows
        )
    return found.x_adv, found.flags


def _require_nearest(attack, name):
    require_attack(attack, name)
    if not hasattr(attack, "nearest"):
        raise TypeError(
            f"{name}: minimal perturbations need an attack with nearest, such as FAB, got {brief(attack)}"
        )
    return attack


def _nearest(subject, attack, keys) -> np.ndarray:
    """Distances (n,) to the nearest points found that the estimator answers wrongly."""
    _require_nearest(attack, "attack")
    X, n = subject.inputs(attack), len(subject.X)
    points = X.copy()
    with subject.precision():
        for start in range(0, n, subject.rows):
            index = np.minimum(np.arange(start, start + subject.rows), n - 1)
            x, y = jnp.asarray(X[index]), jnp.asarray(subject.y[index])
            nearest, _ = attack.nearest(subject.model, x, y, key=keys[index].on_device())
            points[start : start + subject.rows] = np.asarray(nearest)[: n - start]
    return _valid_distances(subject, attack, points)


def _valid_distances(subject, attack, points):
    """Distances to points with values that their features may have, as far as these are answered wrongly.

    Rounding, of scores or of values, may bring a point back over the boundary: then one further out in the same
    direction is taken.
    """
    reach = SimpleNamespace(epsilon=1e30, norm=attack.norm, bounds=attack.bounds)
    distances, X = np.full(len(points), np.inf), subject.X
    for factor in FURTHER if getattr(attack.bounds, "discrete", ()) else (1.0, *A_LITTLE_FURTHER):
        if factor > 1 and not ((distances == np.inf) & (points != X).any(tuple(range(1, X.ndim)))).any():
            break
        moved = settle(X + X.dtype.type(factor) * (points - X) if factor > 1 else points, X, reach)
        wrong = (subject.answers(moved) != subject.y) & (distances == np.inf)
        distances[wrong] = _lengths(attack.norm, moved[wrong], X[wrong])
    return distances


def _lengths(norm, points, X) -> np.ndarray:
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm((points.astype(float) - X).reshape(len(X), math.prod(X.shape[1:])), order, axis=1)
