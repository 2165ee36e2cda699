"""Claim 6 of the paper: adversarial examples transfer between standard, linearised and centred models.

All seven ``paper_*.py`` share one run: whichever comes first trains and measures, the others read.

Digits, three seeds: another model on the same kernel loses 0.823 (0.811 to 0.840) of what the model's own examples
cost it: holds.

Two of the seeds took 34 minutes on one core of an AMD EPYC. All figures: docs/reproduction.md.
"""

import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from ntkrobust_sk import EvolutionDisplay, TransferDisplay
from ntkrobust_sk.evolution.claims import examples_transfer
from ntkrobust_sk.evolution.experiment import preset

DATA, DATA_DIR = "digits", None
SEEDS = 3
RUN = Path("runs") / DATA
OUT = Path("runs") / "paper_transfer"


def main():
    result = preset(DATA, data_dir=DATA_DIR, seeds=SEEDS).run(RUN)
    claims = [claim(result) for claim in (examples_transfer,)]
    for claim in claims:
        print(f"{claim.number}: {claim.verdict.upper()}. {claim.measured} ({claim.statistic})")
    OUT.with_suffix(".json").write_text(json.dumps([asdict(claim) for claim in claims], indent=2) + "\n")
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    TransferDisplay.from_evolution(result, ax=left)
    EvolutionDisplay.from_evolution(result, "robust", ax=right)
    figure.savefig(OUT.with_suffix(".png"), dpi=120)
    print(f"{OUT}.json, {OUT}.png")


if __name__ == "__main__":
    main()
