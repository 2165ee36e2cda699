"""An attack on an estimator: its adversarial examples, what they show, and a file that holds them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import __version__
from .._files import read_npz, write_atomically
from .._validation import brief, check_path, require_numbers
from ..attacks.capabilities import Reports
from ..datasets import load_splits
from ..execution.keys import key_of, keys_of
from ..kernels.fingerprint import hash_arrays
from ..robustness.intervals import clopper_pearson
from ..robustness.target import classifier_under_attack
from ..sklearn_models.guard import frame_of

CONFIDENCE = 0.95
# The arrays of a file of adversarial examples.
EXAMPLES = ("X", "X_adv", "y", "clean_predictions", "predictions", "fooled")


@dataclass(frozen=True, eq=False)
class AttackedExamples:
    """Adversarial examples against a classifier, with its answers.

    Attributes
    ----------
    X, X_adv : array (n, ...)
        Inputs in the precision in which they were attacked, and adversarial examples in the same.
    y, clean_predictions, predictions : array (n,)
        Labels; answers to X and to X_adv.
    members : dict from str to float
        AutoAttack's accuracies: on the inputs as they are ("clean"), and after each of its members.
    flags : tuple of str
        What AutoAttack holds against its own result.
    attack : str
        What has run: Square instead of an attack with gradients where there are none.
    """

    X: np.ndarray
    X_adv: np.ndarray
    y: np.ndarray
    clean_predictions: np.ndarray
    predictions: np.ndarray
    members: dict[str, float]
    flags: tuple[str, ...]
    attack: str = ""

    @property
    def fooled(self) -> np.ndarray:
        """Tell where the answer to the adversarial example is wrong (n,)."""
        return self.predictions != self.y

    def summary(self) -> dict[str, Any]:
        """Return the accuracies with their intervals, and what AutoAttack says, as data."""
        n, found = len(self.y), {}
        for name, predictions in (("clean", self.clean_predictions), ("robust", self.predictions)):
            right = np.sum(predictions == self.y)
            found[f"{name}_accuracy"] = right / n
            found[f"{name}_interval"] = clopper_pearson(right, n, CONFIDENCE)
        return found | {"n": n, "members": self.members, "flags": self.flags, "ran": self.attack}

    def __str__(self):
        rows = (("clean", self.clean_predictions), ("robust", self.predictions))
        lines = []
        for name, predictions in rows:
            right, n = np.sum(predictions == self.y), len(self.y)
            low, high = clopper_pearson(right, n, CONFIDENCE)
            interval = f"[{low:.3f}, {high:.3f}]"
            lines.append(
                f"{name + ' accuracy':<16} {right / n:.3f}  {interval} at {CONFIDENCE:.0%}, {right} of {n}"
            )
        accuracies = list(self.members.values())
        for name, before, after in zip(list(self.members)[1:], accuracies[:-1], accuracies[1:], strict=True):
            lines.append(f"  after {name:<10} {after:.3f}  {round((before - after) * len(self.y))} more fell")
        return "\n".join(lines + [f"flag: {flag}" for flag in self.flags])


def attack_examples(
    estimator: Any, X: ArrayLike, y: ArrayLike, attack: Any, *, random_state: Any = 0
) -> AttackedExamples:
    """Attack a classifier, and return adversarial examples with its answers.

    Parameters
    ----------
    estimator : fitted classifier
        Whatever :func:`~ntkrobust_sk.robust_accuracy` takes, but no regressor.
    X : array (n, ...)
        Images are given to the estimator as flat rows. One that was fitted on a data frame is given a frame, whose
        columns are the array's, in the order of ``feature_names_in_``.
    y : array (n,)
    attack : attack
    random_state : int, RandomState or None, default=0

    Returns
    -------
    AttackedExamples
    """
    require_numbers("X", X)
    X = np.asarray(X)
    if X.ndim < 2 or not len(X):
        raise ValueError(f"X must be an array (n, ...) with one row or more, got shape {X.shape}")
    target = classifier_under_attack("attack", estimator, as_fitted(estimator, X.reshape(len(X), -1)), y)
    attack, keys = target.attack_for(attack), keys_of(key_of(random_state), len(X))
    members, flags = {}, ()
    if isinstance(attack, Reports):
        found = target.reported(attack, keys)
        X_adv, flags = found.x_adv, found.flags
        members = dict(zip(found.names, found.accuracies, strict=True))
    else:
        X_adv = target.perturb(attack, keys)
    # arrays of strings, not of objects, which only pickle could write
    classes = np.array(target.classes.tolist())
    return AttackedExamples(
        np.asarray(target.in_original_form(target.X)).reshape(X.shape),
        np.asarray(target.in_original_form(X_adv)).reshape(X.shape),
        classes[target.y],
        classes[target.answers(target.X)],
        classes[target.answers(X_adv)],
        members,
        flags,
        repr(attack),
    )


def as_fitted(estimator: Any, X: np.ndarray) -> Any:
    """Return rows (n, d) as a data frame, if the estimator was fitted on one."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return X
    if len(names) != X.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} columns, but {type(estimator).__name__} was fitted on a data frame with "
            f"{len(names)}, {brief(list(names))}: give all of them, in this order, as numbers; a frame with other "
            "columns is attacked in Python, by robust_accuracy(estimator, frame, y, attack)"
        )
    return frame_of(names, X)


def load_test_examples(
    data: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    n_test: int,
    random_state: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the test examples (X, y) of a data set, with the labels that a file itself has.

    The same examples as those of :func:`~ntkrobust_sk.datasets.load_splits` under this seed; where no others would
    be left, all are test examples.
    """
    # the training examples decide which test examples are taken out of one set
    splits = load_splits(data, data_dir, n_train=None, n_test=n_test, random_state=random_state, at_most=True)
    if not str(data).endswith(".npz"):
        return splits.X_test, splits.y_test
    return splits.X_test, np.unique(read_npz(data, ["y"])["y"])[splits.y_test]


def write_examples(path: str | os.PathLike, found: AttackedExamples, settings: dict[str, Any]) -> None:
    """Write what was found to an ``.npz`` file, whole or not at all.

    It holds X, X_adv, y, clean_predictions, predictions, fooled, and the settings as JSON, with a checksum of all
    of it, which :func:`read_examples` looks at.
    """
    arrays = {name: getattr(found, name) for name in EXAMPLES}
    settings = json.loads(json.dumps(settings | {"ran": found.attack, "ntkrobust_sk": __version__}))
    file = io.BytesIO()
    stated = np.array(json.dumps(settings | {"ran": found.attack, "sha256": _digest(arrays, settings)}))
    np.savez_compressed(file, settings=stated, **arrays)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def read_examples(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays by name and settings from a file that ``ntkrobust attack`` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        Naming the file, if it is of something else, or not what was written.
    """
    path = check_path("path", path)
    arrays = read_npz(path)
    if missing := {*EXAMPLES, "settings"} ^ set(arrays):
        raise ValueError(f"{path} holds no adversarial examples of ntkrobust attack: {', '.join(sorted(missing))}")
    try:
        settings = json.loads(str(arrays.pop("settings")))
        stated = settings.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} states no settings with a checksum: attack the model again") from error
    if stated != _digest(arrays, settings):
        raise ValueError(f"{path} is damaged: it is not what was written; attack the model again")
    return arrays, settings


def _digest(arrays, settings) -> str:
    of_arrays = hash_arrays([arrays[name] for name in EXAMPLES])
    return hashlib.sha256(f"{json.dumps(settings, sort_keys=True)}{of_arrays}".encode()).hexdigest()
