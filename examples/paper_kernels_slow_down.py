"""Claim 4 of the paper: kernel learning happens early; afterwards the kernel moves slowly.

All seven ``paper_*.py`` share one run: whichever comes first trains and measures, the others read.

Digits, three seeds: the velocity of the first quarter is 14.7 times that of the last for benign training (10.5 to
22.6), and 4.2 times for adversarial training (2.9 to 6.5): the adversarial kernel slows down too, but less than
the five times that were asked for in every seed, so that the claim does not hold.

Two of the seeds took 34 minutes on one core of an AMD EPYC. All figures: docs/reproduction.md.
"""

import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from ntkrobust_sk import EvolutionDisplay
from ntkrobust_sk.evolution.claims import kernels_slow_down
from ntkrobust_sk.evolution.experiment import preset

DATA, DATA_DIR = "digits", None
SEEDS = 3
RUN = Path("runs") / DATA
OUT = Path("runs") / "paper_kernels_slow_down"


def main():
    result = preset(DATA, data_dir=DATA_DIR, seeds=SEEDS).run(RUN)
    claims = [claim(result) for claim in (kernels_slow_down,)]
    for claim in claims:
        print(f"{claim.number}: {claim.verdict.upper()}. {claim.measured} ({claim.statistic})")
    OUT.with_suffix(".json").write_text(json.dumps([asdict(claim) for claim in claims], indent=2) + "\n")
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    EvolutionDisplay.from_evolution(result, "velocity", ax=left)
    EvolutionDisplay.from_evolution(result, "distance_to_start", ax=right)
    figure.savefig(OUT.with_suffix(".png"), dpi=120)
    print(f"{OUT}.json, {OUT}.png")


if __name__ == "__main__":
    main()
