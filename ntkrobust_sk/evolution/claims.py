"""The paper's claims, each as a statistic of a run and a verdict (Loo et al. 2022, arXiv:2210.12030).

Every statistic is taken for each seed. A claim holds if it does in every seed; its margin over seeds is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import combinations, product
from typing import Any

import numpy as np

from .records import Scores
from .results import EvolutionResult, require_result

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"
# Claims 2 and 3, which a run and the demo test in different ways.
GIVES_ROBUSTNESS = "The adversarial kernel gives robustness even when stage 2 is benign."
FROZEN_IS_ENOUGH = (
    "Adversarial training on a fixed adversarial kernel is at least as robust as on the network itself."
)


@dataclass(frozen=True)
class Claim:
    """A claim with what was measured.

    Attributes
    ----------
    number : str
        As in the paper's list here, with a letter where one claim has several statistics.
    text : str
    statistic : str
        What is compared, and when it is said to hold.
    measured : str
    verdict : {"holds", "does not hold", "not tested"}
    values : dict
        The numbers behind ``measured``, a list over seeds each.
    """

    number: str
    text: str
    statistic: str
    measured: str
    verdict: str
    values: dict[str, list[float]]


class _NotTestedError(LookupError):
    """The results lack what a claim needs."""


# The result of testing a claim: what was measured, in words; whether it holds; the numbers behind it.
Finding = tuple[str, bool, dict[str, list[float]]]


# The claims that are tested on a run, in the paper's order.
CLAIMS: list[Callable[[EvolutionResult], Claim]] = []


def _claim(
    number: str, text: str, statistic: str, of_runs: bool = True
) -> Callable[[Callable[..., Finding]], Callable[..., Claim]]:
    """Make a function that tests a claim, on runs or else on the demo, of one that returns a :data:`Finding`."""

    def decorate(test):
        @wraps(test)
        def tested(results) -> Claim:
            try:
                with np.errstate(all="ignore"):
                    measured, holds, values = test(results)
            except _NotTestedError as error:
                return Claim(number, text, statistic, str(error), UNTESTED, {})
            if any(np.isnan(np.array(one, float)).any() for one in values.values()):
                why = f"a measured number is not finite: {measured}"
                return Claim(number, text, statistic, why, UNTESTED, {})
            return Claim(number, text, statistic, measured, HOLDS if holds else FAILS, values)

        if of_runs:
            CLAIMS.append(tested)
        return tested

    return decorate


def check_claims(result: EvolutionResult) -> list[Claim]:
    """Test all claims on the results of a run.

    Raises
    ------
    TypeError
        For anything else than a run's results.
    """
    require_result(result)
    return [claim(result) for claim in CLAIMS]


@_claim(
    "1a",
    "Under adversarial training the kernel converges to another one than under standard training.",
    "kernel distance between the benign and the adversarial network at the last epoch, against that between "
    "two seeds of one regime; holds if the smallest of the former exceeds the largest of the latter",
)
def kernels_differ(result: EvolutionResult) -> Finding:
    """Test 1a: benign and adversarial kernels differ by more than two seeds of one regime do."""
    regimes, seeds = ("benign", "adversarial"), _seeds(result, "benign", "adversarial")
    _require(len(seeds) >= 2, "both regimes and two seeds or more")
    distances = result.distances([_last_state(result, seed, regime) for regime in regimes for seed in seeds])
    n = len(seeds)
    across = distances[:n, n:].ravel().tolist()
    within = [float(distances[k + i, k + j]) for k in (0, n) for i, j in combinations(range(n), 2)]
    measured = f"between regimes {_range(across)}, between seeds {_range(within)}"
    return measured, min(across) > max(within), {"across": across, "within": within}


@_claim(
    "1b",
    "The adversarial kernel parts from the benign one early.",
    "distance between the regimes of one seed after a quarter of the epochs, as a share of that at the end; "
    "holds if at least half in every seed",
)
def kernels_part_early(result: EvolutionResult) -> Finding:
    """Test 1b: most of the distance is there after a quarter of training."""
    seeds = _seeds(result, "benign", "adversarial")
    _require(seeds and result.experiment.epochs >= 4, "both regimes, and four epochs or more")
    shares = []
    for seed in seeds:
        epochs = [e for e in result.epochs(seed, "benign") if e in set(result.epochs(seed, "adversarial"))]
        early = min(epochs, key=lambda epoch: abs(epoch - epochs[-1] / 4))
        pairs = [(seed, regime, epoch) for epoch in (early, epochs[-1]) for regime in ("benign", "adversarial")]
        distances = result.distances(pairs)
        shares.append(float(distances[0, 1] / distances[2, 3]))
    return f"a share of {_spread(shares)}", min(shares) >= 0.5, {"share": shares}


@_claim(
    "2",
    GIVES_ROBUSTNESS,
    "robust accuracy of benign stage 2 (linearised, centred) and of closed-form regression on the adversarial "
    "kernel less that on the benign one; holds if above 0 by two standard errors for each in every seed",
)
def kernel_gives_robustness(result: EvolutionResult) -> Finding:
    """Test 2: stage 2 without attacks is more robust on the adversarial kernel."""
    gains: dict[str, list[float]] = {}
    for seed in _seeds(result, "benign", "adversarial"):
        for kind in ("linearized", "centered", "closed form"):
            adversarial = _second(result, seed, "adversarial", kind, "benign")
            benign = _second(result, seed, "benign", kind, "benign")
            if adversarial and benign:
                gains.setdefault(kind, []).append(adversarial["robust"] - benign["robust"])
    _require(gains, "benign stage 2 from both regimes")
    # two standard errors of a difference of two shares are at most sqrt(2 / n)
    margin = np.sqrt(2 / result.of_kind("checkpoint")[0]["n_test"])
    measured = "; ".join(f"{kind} {_spread(values, '+.3f')}" for kind, values in gains.items())
    holds = all(min(values) > margin for values in gains.values())
    return f"{measured} (two standard errors: {margin:.3f})", holds, gains


@_claim(
    "3",
    FROZEN_IS_ENOUGH,
    "robust accuracy of adversarial stage 2 (the better of linearised and centred), less that of the "
    "adversarially trained network; holds if not negative in every seed",
)
def frozen_kernel_is_enough(result: EvolutionResult) -> Finding:
    """Test 3: adversarial training on a fixed kernel is at least as robust as adversarial training."""
    gains, strong = [], []
    for seed in _seeds(result, "adversarial"):
        stopped = result.of_kind("stopped", seed=seed, regime="adversarial")
        last = stopped[0]["best"] if stopped else result.epochs(seed, "adversarial")[-1]
        found = [_second(result, seed, "adversarial", kind, "adversarial") for kind in ("linearized", "centered")]
        found = [second for second in found if second]
        if found:
            best = max(found, key=lambda second: second["robust"])
            gains.append(best["robust"] - result.at(seed, "adversarial", last)["robust"])
            strong.append(best["robust_restarts"])
    _require(gains, "adversarial stage 2 from the adversarial kernel")
    measured = f"a gain of {_spread(gains, '+.3f')}; robust accuracy of stage 2 with restarts {_spread(strong)}"
    return measured, min(gains) >= 0, {"gain": gains, "strong": strong}


@_claim(
    "4",
    "Kernel learning happens early; afterwards the kernel moves slowly.",
    "mean kernel velocity in the first over that in the last quarter of stage 1; holds if above 5 for both "
    "regimes in every seed",
)
def kernels_slow_down(result: EvolutionResult) -> Finding:
    """Test 4: kernel velocity falls."""
    ratios: dict[str, list[float]] = {}
    for regime in ("benign", "adversarial") if result.experiment.epochs >= 4 else ():
        for seed in _seeds(result, regime):
            epochs = np.array(result.epochs(seed, regime))
            at, velocity = result.velocity(seed, regime)
            dt, quarter = np.diff(epochs), epochs[-1] / 4
            parts = at <= quarter, at >= 3 * quarter
            early, late = (np.average(velocity[part], weights=dt[part]) for part in parts)
            ratios.setdefault(regime, []).append(float(early / late) if late > 0 else np.inf)
    _require(len(ratios) == 2, "both regimes, and four epochs or more")
    measured = "; ".join(f"{regime} {_spread(values, '.1f')}" for regime, values in ratios.items())
    return measured, all(min(values) > 5 for values in ratios.values()), ratios


LAST_EPOCH = "of the adversarial over that of the benign kernel at the last epoch; holds if above 1 in every seed"


@_claim("5a", "Adversarial kernels have a larger effective rank.", f"effective rank (entropy) {LAST_EPOCH}")
def ranks_differ(result: EvolutionResult) -> Finding:
    """Test 5a: adversarial kernels have larger effective rank."""
    return _larger_at_the_end(result, "clean_effective_rank", ".1f")


@_claim(
    "5b",
    "Adversarial kernels are more class-specialised.",
    f"mean diagonal of the specialisation matrix {LAST_EPOCH}",
)
def kernels_specialize(result: EvolutionResult) -> Finding:
    """Test 5b: adversarial kernels are more class-specialised."""
    return _larger_at_the_end(result, "specialization", ".3f")


@_claim(
    "5c",
    "Visualised features of adversarial kernels look more like their class.",
    "correlation of a class's image (of the regression direction) with the mean of its examples, mean over "
    "classes; holds if larger for the adversarial than for the benign kernel in every seed",
)
def images_look_like_classes(result: EvolutionResult) -> Finding:
    """Test 5c: features of adversarial kernels look more like their class."""
    found = {"adversarial": [], "benign": []}
    for seed in range(result.experiment.seeds):
        own = {r["regime"]: r["regression_correlation"] for r in result.of_kind("images", seed=seed)}
        if found.keys() <= own.keys():
            for regime, values in found.items():
                values.append(own[regime])
    _require(found["benign"], "images of both regimes")
    return _larger(found, ".3f")


@_claim(
    "6",
    "Adversarial examples transfer between standard, linearised and centred models.",
    "accuracy lost to the adversarial examples of another model on the same kernel, as a share of that lost "
    "to the model's own; holds if at least half on average in every seed",
)
def examples_transfer(result: EvolutionResult) -> Finding:
    """Test 6: adversarial examples transfer between dynamics on one kernel."""
    shares = []
    for transfer in result.of_kind("transfer"):
        names, clean, matrix = transfer["names"], transfer["clean"], np.array(transfer["matrix"])
        lost = np.maximum(np.array(clean) - matrix, 0)
        pairs = [
            (i, j)
            for i, j in product(range(len(names)), repeat=2)
            if i != j and names[i].split("/")[:2] == names[j].split("/")[:2] and lost[j, j] > 0
        ]
        if pairs:
            shares.append(float(np.mean([lost[i, j] / lost[j, j] for i, j in pairs])))
    _require(shares, "stage 2")
    return f"a share of {_spread(shares)}", min(shares) >= 0.5, {"share": shares}


@_claim(
    "7",
    "A benign network that is trained adversarially from half-way on ends near the adversarial kernel.",
    "kernel distance of the flipped to the adversarial network at the last epoch, over the benign one's; "
    "holds if below 1 in every seed",
)
def flip_catches_up(result: EvolutionResult) -> Finding:
    """Test 7: adversarial training from half-way leads to the adversarial kernel."""
    ratios, gains = [], []
    for seed in _seeds(result, "benign", "adversarial", "flip"):
        states = [_last_state(result, seed, regime) for regime in ("flip", "benign", "adversarial")]
        distances = result.distances(states)
        ratios.append(float(distances[0, 2] / distances[1, 2]))
        gains.append(result.at(*states[0])["robust"] - result.at(*states[2])["robust"])
    _require(ratios, "all three regimes")
    measured = (
        f"a ratio of {_spread(ratios)}; robust accuracy less that of adversarial training {_spread(gains, '+.3f')}"
    )
    return measured, max(ratios) < 1, {"ratio": ratios, "gain": gains}


@_claim(
    "2",
    GIVES_ROBUSTNESS,
    "closed-form regression is at least 0.25 more robust on the adversarial than on the benign kernel, at clean "
    "accuracies within 0.05",
    of_runs=False,
)
def closed_form_gains(accuracy: Mapping[str, Scores]) -> Finding:
    """Test 2 on the accuracies of the demo, by the name of the predictor."""
    adversarial, benign = (accuracy[f"{kind} kernel, closed form"] for kind in ("adversarial", "benign"))
    gain, clean = adversarial["robust"] - benign["robust"], adversarial["clean"] - benign["clean"]
    holds = gain >= 0.25 and abs(clean) <= 0.05
    return f"{gain:+.3f} robust, {clean:+.3f} clean", holds, {"robust": [gain], "clean": [clean]}


@_claim(
    "3",
    FROZEN_IS_ENOUGH,
    "adversarial training on the frozen adversarial kernel is at least as robust as the adversarially trained "
    "network",
    of_runs=False,
)
def frozen_kernel_gains(accuracy: Mapping[str, Scores]) -> Finding:
    """Test 3 on the accuracies of the demo, by the name of the predictor."""
    frozen = accuracy["adversarial kernel, frozen, adversarial training"]["robust"]
    network = accuracy["adversarial network"]["robust"]
    measured = f"{frozen:.3f} against {network:.3f} robust"
    return measured, frozen >= network, {"frozen": [frozen], "network": [network]}


def _require(there, what) -> None:
    if not there:
        raise _NotTestedError(f"needs {what}")


def _second(result, seed, regime, kind, training) -> Any:
    """Find the last result of stage 2 of this kind, from the latest epoch that it started from, or None."""
    if kind == "closed form":
        found = result.of_kind("closed form", seed=seed, regime=regime)
    else:
        found = result.of_kind("stage 2", seed=seed, regime=regime, dynamics=kind, training=training)
    return max(found, key=lambda second: second["epoch"], default=None)


def _seeds(result, *regimes) -> list[int]:
    """List the seeds for which these regimes were measured to the end."""
    seeds = range(result.experiment.seeds)
    return [seed for seed in seeds if all(_ended(result, seed, regime) for regime in regimes)]


def _ended(result, seed, regime) -> bool:
    epochs = result.epochs(seed, regime)
    stopped = result.of_kind("stopped", seed=seed, regime=regime)
    return bool(epochs) and (epochs[-1] == result.experiment.epochs or bool(stopped))


def _last_state(result, seed, regime) -> tuple[int, str, float]:
    return seed, regime, result.epochs(seed, regime)[-1]


def _larger_at_the_end(result, name, digits) -> Finding:
    """Compare a number of the adversarial and of the benign kernel at the last epoch, over seeds."""
    seeds = _seeds(result, "benign", "adversarial")
    _require(seeds, "both regimes")
    found = {
        regime: [result.at(*_last_state(result, seed, regime))[name] for seed in seeds]
        for regime in ("adversarial", "benign")
    }
    return _larger(found, digits)


def _larger(found, digits) -> Finding:
    measured = ", ".join(f"{regime} {_spread(values, digits)}" for regime, values in found.items())
    return measured, all(a > b for a, b in zip(*found.values(), strict=True)), found


def _range(values) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def _spread(values, digits=".3f") -> str:
    """Write a mean and, over several seeds, the range."""
    mean = f"{np.mean(values):{digits}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{digits}} to {max(values):{digits}})"
