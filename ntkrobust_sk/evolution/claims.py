"""The paper's claims, each as a statistic of a run and a verdict (Loo et al. 2022, arXiv:2210.12030).

Every statistic is taken for each seed. A claim holds if it does in every seed; its margin over seeds is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from .results import require_result

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"


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
    values: dict


def check_claims(result) -> list[Claim]:
    """Test all claims on what a run has found.

    Parameters
    ----------
    result : EvolutionResult

    Returns
    -------
    list of Claim

    Raises
    ------
    TypeError
        For anything else than a run's results.
    """
    require_result(result)
    tests = (
        kernels_differ,
        kernels_part_early,
        kernel_gives_robustness,
        frozen_kernel_is_enough,
        kernels_slow_down,
        ranks_differ,
        kernels_specialize,
        images_look_like_classes,
        examples_transfer,
        flip_catches_up,
    )
    with np.errstate(all="ignore"):
        return [_if_finite(test(result)) for test in tests]


def _if_finite(claim: Claim) -> Claim:
    """The claim, untested where a number behind it is NaN."""
    if any(np.isnan(np.array(values, float)).any() for values in claim.values.values()):
        why = f"a measured number is not finite: {claim.measured}"
        return _untested(claim.number, claim.text, claim.statistic, why)
    return claim


def kernels_differ(result) -> Claim:
    """1a: benign and adversarial kernels differ by more than two seeds of one regime do."""
    text = "Under adversarial training the kernel converges to another one than under standard training."
    statistic = (
        "kernel distance between the benign and the adversarial network at the last epoch, against that between "
        "two seeds of one regime; holds if the smallest of the former exceeds the largest of the latter"
    )
    seeds = _seeds(result, "benign", "adversarial")
    if len(seeds) < 2:
        return _untested("1a", text, statistic, "needs both regimes and two seeds or more")
    regimes = ("benign", "adversarial")
    states = [(seed, regime, result.epochs(seed, regime)[-1]) for regime in regimes for seed in seeds]
    distances = result.distances(states)
    n = len(seeds)
    across = distances[:n, n:].ravel().tolist()
    within = [float(distances[k + i, k + j]) for k in (0, n) for i, j in combinations(range(n), 2)]
    measured = f"between regimes {_range(across)}, between seeds {_range(within)}"
    return Claim(
        "1a", text, statistic, measured, _verdict(min(across) > max(within)), {"across": across, "within": within}
    )


def kernels_part_early(result) -> Claim:
    """1b: most of the distance is there after a quarter of training."""
    text = "The adversarial kernel parts from the benign one early."
    statistic = (
        "distance between the regimes of one seed after a quarter of the epochs, as a share of that at the end; "
        "holds if at least half in every seed"
    )
    seeds = _seeds(result, "benign", "adversarial")
    if not seeds or result.experiment.epochs < 4:
        return _untested("1b", text, statistic, "needs both regimes, and four epochs or more")
    shares = []
    for seed in seeds:
        epochs = [e for e in result.epochs(seed, "benign") if e in set(result.epochs(seed, "adversarial"))]
        early = min(epochs, key=lambda epoch: abs(epoch - epochs[-1] / 4))
        pairs = [(seed, regime, epoch) for epoch in (early, epochs[-1]) for regime in ("benign", "adversarial")]
        distances = result.distances(pairs)
        shares.append(float(distances[0, 1] / distances[2, 3]))
    return Claim(
        "1b", text, statistic, f"a share of {_spread(shares)}", _verdict(min(shares) >= 0.5), {"share": shares}
    )


def kernel_gives_robustness(result) -> Claim:
    """2: stage 2 without attacks is more robust on the adversarial kernel."""
    text = "The adversarial kernel gives robustness even when stage 2 is benign."
    statistic = (
        "robust accuracy of benign stage 2 (linearised, centred) and of closed-form regression on the adversarial "
        "kernel less that on the benign one; holds if above 0 by two standard errors for each in every seed"
    )
    gains = {}
    for seed in _seeds(result, "benign", "adversarial"):
        for kind in ("linearized", "centered", "closed form"):
            pair = [_second(result, seed, regime, kind, "benign") for regime in ("adversarial", "benign")]
            if all(pair):
                gains.setdefault(kind, []).append(pair[0]["robust"] - pair[1]["robust"])
    if not gains:
        return _untested("2", text, statistic, "needs benign stage 2 from both regimes")
    # two standard errors of a difference of two shares are at most sqrt(2 / n)
    margin = np.sqrt(2 / result.of_kind("checkpoint")[0]["n_test"])
    measured = "; ".join(f"{kind} {_spread(values, '+.3f')}" for kind, values in gains.items())
    holds = all(min(values) > margin for values in gains.values())
    return Claim("2", text, statistic, f"{measured} (two standard errors: {margin:.3f})", _verdict(holds), gains)


def frozen_kernel_is_enough(result) -> Claim:
    """3: adversarial training on a fixed kernel is at least as robust as adversarial training."""
    text = "Adversarial training on a fixed adversarial kernel is at least as robust as on the network itself."
    statistic = (
        "robust accuracy of adversarial stage 2 (the better of linearised and centred), less that of the "
        "adversarially trained network; holds if not negative in every seed"
    )
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
    if not gains:
        return _untested("3", text, statistic, "needs adversarial stage 2 from the adversarial kernel")
    measured = f"a gain of {_spread(gains, '+.3f')}; robust accuracy of stage 2 with restarts {_spread(strong)}"
    return Claim("3", text, statistic, measured, _verdict(min(gains) >= 0), {"gain": gains, "strong": strong})


def kernels_slow_down(result) -> Claim:
    """4: kernel velocity falls."""
    text = "Kernel learning happens early; afterwards the kernel moves slowly."
    statistic = (
        "mean kernel velocity in the first over that in the last quarter of stage 1; holds if above 5 for both "
        "regimes in every seed"
    )
    ratios = {}
    for regime in ("benign", "adversarial"):
        for seed in _seeds(result, regime):
            if result.experiment.epochs < 4:
                continue
            epochs = np.array(result.epochs(seed, regime))
            at, velocity = result.velocity(seed, regime)
            dt, quarter = np.diff(epochs), epochs[-1] / 4
            parts = at <= quarter, at >= 3 * quarter
            early, late = (np.average(velocity[part], weights=dt[part]) for part in parts)
            ratios.setdefault(regime, []).append(float(early / late) if late > 0 else np.inf)
    if len(ratios) < 2:
        return _untested("4", text, statistic, "needs both regimes, and four epochs or more")
    measured = "; ".join(f"{regime} {_spread(values, '.1f')}" for regime, values in ratios.items())
    holds = all(min(values) > 5 for values in ratios.values())
    return Claim("4", text, statistic, measured, _verdict(holds), ratios)


def ranks_differ(result) -> Claim:
    """5a: adversarial kernels have larger effective rank."""
    return _compared(
        result,
        "5a",
        "Adversarial kernels have a larger effective rank.",
        "clean_effective_rank",
        "effective rank (entropy)",
        ".1f",
    )


def kernels_specialize(result) -> Claim:
    """5b: adversarial kernels are more class-specialised."""
    return _compared(
        result,
        "5b",
        "Adversarial kernels are more class-specialised.",
        "specialization",
        "mean diagonal of the specialisation matrix",
        ".3f",
    )


def _compared(result, number, text, name, what, digits) -> Claim:
    statistic = (
        f"{what} of the adversarial over that of the benign kernel at the last epoch; holds if above 1 in "
        "every seed"
    )
    pairs = [
        [result.at(seed, regime, result.epochs(seed, regime)[-1])[name] for regime in ("adversarial", "benign")]
        for seed in _seeds(result, "benign", "adversarial")
    ]
    if not pairs:
        return _untested(number, text, statistic, "needs both regimes")
    adversarial, benign = map(list, zip(*pairs, strict=True))
    measured = f"adversarial {_spread(adversarial, digits)}, benign {_spread(benign, digits)}"
    holds = all(a > b for a, b in pairs)
    return Claim(
        number, text, statistic, measured, _verdict(holds), {"adversarial": adversarial, "benign": benign}
    )


def images_look_like_classes(result) -> Claim:
    """5c: features of adversarial kernels look more like their class."""
    text = "Visualised features of adversarial kernels look more like their class."
    statistic = (
        "correlation of a class's image (of the regression direction) with the mean of its examples, mean over "
        "classes; holds if larger for the adversarial than for the benign kernel in every seed"
    )
    pairs = []
    for seed in range(result.experiment.seeds):
        found = {r["regime"]: r["regression_correlation"] for r in result.of_kind("images", seed=seed)}
        if {"adversarial", "benign"} <= set(found):
            pairs.append((found["adversarial"], found["benign"]))
    if not pairs:
        return _untested("5c", text, statistic, "needs images of both regimes")
    adversarial, benign = map(list, zip(*pairs, strict=True))
    values = {"adversarial": adversarial, "benign": benign}
    measured = f"adversarial {_spread(adversarial)}, benign {_spread(benign)}"
    holds = all(a > b for a, b in pairs)
    return Claim("5c", text, statistic, measured, _verdict(holds), values)


def examples_transfer(result) -> Claim:
    """6: adversarial examples transfer between dynamics on one kernel."""
    text = "Adversarial examples transfer between standard, linearised and centred models."
    statistic = (
        "accuracy lost to the adversarial examples of another model on the same kernel, as a share of that lost "
        "to the model's own; holds if at least half on average in every seed"
    )
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
    if not shares:
        return _untested("6", text, statistic, "needs stage 2")
    return Claim(
        "6", text, statistic, f"a share of {_spread(shares)}", _verdict(min(shares) >= 0.5), {"share": shares}
    )


def flip_catches_up(result) -> Claim:
    """7: adversarial training from half-way leads to the adversarial kernel."""
    text = "A benign network that is trained adversarially from half-way on ends near the adversarial kernel."
    statistic = (
        "kernel distance of the flipped to the adversarial network at the last epoch, over the benign one's; "
        "holds if below 1 in every seed"
    )
    ratios, gains = [], []
    for seed in _seeds(result, "benign", "adversarial", "flip"):
        states = [(seed, r, result.epochs(seed, r)[-1]) for r in ("flip", "benign", "adversarial")]
        distances = result.distances(states)
        ratios.append(float(distances[0, 2] / distances[1, 2]))
        gains.append(result.at(*states[0])["robust"] - result.at(*states[2])["robust"])
    if not ratios:
        return _untested("7", text, statistic, "needs all three regimes")
    measured = (
        f"a ratio of {_spread(ratios)}; robust accuracy less that of adversarial training {_spread(gains, '+.3f')}"
    )
    return Claim("7", text, statistic, measured, _verdict(max(ratios) < 1), {"ratio": ratios, "gain": gains})


def _second(result, seed, regime, kind, training) -> dict | None:
    """The last result of stage 2 of this kind, from the latest epoch that it started from."""
    if kind == "closed form":
        found = result.of_kind("closed form", seed=seed, regime=regime)
    else:
        found = result.of_kind("stage 2", seed=seed, regime=regime, dynamics=kind, training=training)
    return max(found, key=lambda second: second["epoch"], default=None)


def _seeds(result, *regimes) -> list[int]:
    """Seeds for which these regimes were measured to the end."""
    found = []
    for seed in range(result.experiment.seeds):
        if all(_ended(result, seed, regime) for regime in regimes):
            found.append(seed)
    return found


def _ended(result, seed, regime) -> bool:
    epochs = result.epochs(seed, regime)
    stopped = result.of_kind("stopped", seed=seed, regime=regime)
    return bool(epochs) and (epochs[-1] == result.experiment.epochs or bool(stopped))


def _untested(number, text, statistic, why) -> Claim:
    return Claim(number, text, statistic, why, UNTESTED, {})


def _verdict(holds) -> str:
    return HOLDS if holds else FAILS


def _range(values) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def _spread(values, digits=".3f") -> str:
    """Mean and, over several seeds, the range."""
    mean = f"{np.mean(values):{digits}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{digits}} to {max(values):{digits}})"
