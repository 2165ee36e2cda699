"""Adversarial examples of one estimator, answered by another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._validation import brief
from ..attacks.entry import require_attack
from ..execution.keys import key_of
from ..targets.target import Seed
from .target import classifier_under_attack


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """The accuracies that :func:`transfer_matrix` has found.

    Attributes
    ----------
    names : tuple of str
    clean : array (m,)
        Accuracies on the examples as they are.
    matrix : array (m, m)
        Accuracy of each model (column) on the adversarial examples of each (row).
    attacks : tuple of str
        What made the examples of each: Square instead of an attack with gradients where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkrobust_sk import TransferMatrix
    >>> found = TransferMatrix(("a", "b"), np.array([0.9, 0.8]), np.array([[0.1, 0.6], [0.7, 0.2]]))
    >>> float(found.matrix[found.names.index("a"), found.names.index("b")])  # a's examples, answered by b
    0.6
    """

    names: tuple[str, ...]
    clean: np.ndarray
    matrix: np.ndarray
    attacks: tuple[str, ...] = ()


def transfer_matrix(
    estimators: dict[str, Any], X: Any, y: ArrayLike, attack: Any, *, random_state: Seed = 0
) -> TransferMatrix:
    """Return the accuracy of every model on the adversarial examples against every model.

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
    named = [(name, classes.tolist()) for name, classes in known.items()]
    for name, classes in named[1:]:
        if classes != named[0][1]:
            raise ValueError(f"{named[0][0]} and {name} know different classes, {named[0][1]} and {classes}")
    first = next(iter(known.values()), None)
    targets = [
        classifier_under_attack("transfer_matrix", e, X, y, classes=None if hasattr(e, "fit") else first)
        for e in estimators.values()
    ]
    key = key_of(random_state)
    used = [target.attack_for(attack) for target in targets]
    attacked = [s.in_original_form(s.perturb(attack, key)) for s, attack in zip(targets, used, strict=True)]
    return TransferMatrix(
        names=tuple(estimators),
        clean=np.array([np.mean(target.answers(target.X) == target.y) for target in targets]),
        matrix=np.array([[np.mean(s.answers(s.read(X_adv)) == s.y) for s in targets] for X_adv in attacked]),
        attacks=tuple(type(attack).__name__ for attack in used),
    )
