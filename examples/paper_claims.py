"""The paper's claims, each with its verdict, its numbers and a figure (Loo et al. 2022, arXiv:2210.12030).

    python examples/paper_claims.py
    python examples/paper_claims.py --claim flip transfer

runs the experiment on the digits with three seeds, or reads what an earlier call has found: some 50 minutes on one
core of an AMD EPYC. What comes out is told in ``docs/reproduction.md``.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from ntkrobust_sk import EvolutionDisplay, ImageGridDisplay, KernelDistanceDisplay, TransferDisplay
from ntkrobust_sk.evolution import claims, preset


def curve(name, **options):
    """A measurement over the epochs of stage 1."""
    return lambda result, ax: EvolutionDisplay.from_evolution(result, name, ax=ax, **options)


# What is tested, and the two figures beside it.
CLAIMS = {
    "kernels_differ": (
        (claims.kernels_differ, claims.kernels_part_early),
        (KernelDistanceDisplay.from_evolution, curve("distance_to_start")),
    ),
    "kernel_gives_robustness": (
        (claims.kernel_gives_robustness,),
        (curve("robust"), ImageGridDisplay.from_evolution),
    ),
    "frozen_kernel": (
        (claims.frozen_kernel_is_enough,),
        (curve("robust", regimes=("adversarial",)), TransferDisplay.from_evolution),
    ),
    "kernels_slow_down": ((claims.kernels_slow_down,), (curve("velocity"), curve("distance_to_start"))),
    "rank_and_specialization": (
        (claims.ranks_differ, claims.kernels_specialize, claims.images_look_like_classes),
        (curve("clean_effective_rank"), curve("specialization")),
    ),
    "transfer": ((claims.examples_transfer,), (TransferDisplay.from_evolution, curve("robust"))),
    "flip": ((claims.flip_catches_up,), (curve("robust"), KernelDistanceDisplay.from_evolution)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claim", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--data", default="digits", help="as for ntkrobust evolve")
    parser.add_argument("--data-dir", help="folder with the data set's canonical files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of the run and of what is made of it"
    )
    options = parser.parse_args()
    experiment = preset(options.data, data_dir=options.data_dir, seeds=options.seeds)
    result = experiment.run(options.out / Path(options.data).stem)
    for name in options.claim:
        tests, draw = CLAIMS[name]
        found = [test(result) for test in tests]
        for claim in found:
            print(f"{claim.number}: {claim.verdict.upper()}. {claim.measured} ({claim.statistic})")
        out = options.out / f"paper_{name}"
        out.with_suffix(".json").write_text(json.dumps([asdict(claim) for claim in found], indent=2) + "\n")
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        for one, ax in zip(draw, figure.subplots(1, 2), strict=True):
            one(result, ax=ax)
        figure.savefig(out.with_suffix(".png"), dpi=120)
        print(f"{out}.json, {out}.png")


if __name__ == "__main__":
    main()
