"""Whether a run's networks have learned enough for verdicts, and what the paper says beside each claim."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from ..evolution.claims import UNTESTED, Claim, check_claims
from ..evolution.results import EvolutionResult

# Of what guessing gets wrong, the share that the benign network must get right before verdicts count. Robust
# accuracy lies between zero and clean accuracy: below that, all that the claims compare is squeezed into a narrow
# range, and the kernels are those of networks that have hardly begun. It is a convention, one for all data sets.
LEARNED = 0.5
NO_VERDICT = "no verdict"
# Published beside a claim's statement, by the claim's number.
PUBLISHED = {"3": "76.1 % robust accuracy (PGD, ε = 4/255) of a ResNet-18 on CIFAR-10, trained on a fixed kernel"}
# Settings of the paper, or of its code.
PAPER_SETTINGS = {
    "data": "CIFAR-10, CIFAR-100",
    "network": "ResNet-18",
    "training examples": 50_000,
    "test examples, all attacked": 10_000,
    "training examples that kernels are measured on": 500,
    "norm": "linf",
    "epsilon": 4 / 255,
    "attack in training": "PGD",
    "its steps": 20,
    "PGD steps in scoring": 100,
    "epochs of stage 1": 100,
    "learning rate of stage 1": 0.1,
    "epochs of stage 2": 100,
    "learning rate of stage 2": 0.01,
    "batch size": 128,
    "optimizer": "sgd",
    "momentum": 0.9,
}


class Learning(NamedTuple):
    """What a regime's networks have learned by their last epochs.

    Attributes
    ----------
    regime : str
        "benign", or another one where that was not trained.
    accuracy : float
        The lowest over seeds, on clean test examples.
    chance, threshold : float
        Of guessing among the classes, and the lowest accuracy at which verdicts count.
    """

    regime: str
    accuracy: float
    chance: float
    threshold: float

    @property
    def is_enough(self) -> bool:
        """Return whether verdicts count; what is not a number is not enough."""
        return bool(self.accuracy >= self.threshold)

    @property
    def why_not(self) -> str | None:
        """Say in one line why verdicts do not count; None where they do."""
        if self.is_enough:
            return None
        return (
            f"the {self.regime} network has learned too little: its clean accuracy is {self.accuracy:.3f}, and "
            f"verdicts count from {self.threshold:.3f}, half-way from guessing ({self.chance:.3f}) to always right"
        )

    @classmethod
    def of(cls, regime: str, accuracy: float, n_classes: int) -> Learning:
        """Compare an accuracy with that of guessing among so many classes.

        >>> Learning.of("benign", 0.05, 10).why_not
        'the benign network has learned too little: its clean accuracy is 0.050, and verdicts count from 0.550...'
        """
        chance = 1 / n_classes
        return cls(regime, accuracy, chance, chance + LEARNED * (1 - chance))


class Stated(NamedTuple):
    """A claim as the page shows it.

    Attributes
    ----------
    claim : Claim
    verdict : str
        That of the claim, or "no verdict".
    published : str or None
        The paper's number.
    reason : str or None
        Why there is no verdict, or no test.
    """

    claim: Claim
    verdict: str
    published: str | None
    reason: str | None = None

    @property
    def counts(self) -> bool:
        """Return whether this is a verdict."""
        return self.verdict not in (NO_VERDICT, UNTESTED)

    @property
    def state(self) -> str:
        """Return the verdict as the name of a style."""
        return {"holds": "holds", "does not hold": "fails", NO_VERDICT: "doubted"}.get(self.verdict, "untested")


def learning_of(result: EvolutionResult) -> Learning:
    """Return what the benign networks of a run have learned, or those of its first regime."""
    found = {record["regime"] for record in result.of_kind("checkpoint")}
    regime = "benign" if "benign" in found else min(found)
    ends = [
        (seed, epochs[-1]) for seed in range(result.experiment.seeds) if (epochs := result.epochs(seed, regime))
    ]
    last = [result.at(seed, regime, epoch) for seed, epoch in ends]
    # NaN stays NaN
    accuracy = float(np.min([record["clean"] for record in last]))
    return Learning.of(regime, accuracy, len(last[0]["specialization_matrix"]))


def stated_claims(result: EvolutionResult, learning: Learning) -> list[Stated]:
    """Return the claims of a run, without verdicts where the networks have learned too little."""
    stated = []
    for claim in check_claims(result):
        verdict, reason = (claim.verdict, None) if learning.is_enough else (NO_VERDICT, learning.why_not)
        if claim.verdict == UNTESTED:
            verdict, reason = UNTESTED, claim.measured
        stated.append(Stated(claim, verdict, PUBLISHED.get(claim.number), reason))
    return stated


def counted(stated: list[Stated]) -> list[str]:
    """Count the verdicts that occur, in words."""
    counts = Counter(one.verdict for one in stated)
    words = {
        "holds": "hold",
        "does not hold": "do not hold",
        NO_VERDICT: "without a verdict",
        UNTESTED: "not tested",
    }
    return [f"{counts[verdict]} {said}" for verdict, said in words.items() if counts[verdict]]
