"""The paper's claims against what runs of ``ntkrobust evolve`` have found, as Markdown.

    python examples/paper_table.py runs/digits runs/cifar10 --write

puts the tables into ``docs/reproduction.md``, in place of those of the same data and network.
"""

import argparse
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from ntkrobust_sk import load_evolution
from ntkrobust_sk.evolution.claims import check_claims

DOCS = Path(__file__).parents[1] / "docs" / "reproduction.md"


def section(path: Path) -> str:
    """Claims and accuracies of one run."""
    result = load_evolution(path)
    e = result.experiment
    head = (
        f"### {e.data}, {e.network}\n\n{e.n_train:,} training images, {e.n_test} test images, kernels of "
        f"{e.n_kernel}; epsilon {e.epsilon:.4g}, PGD-{e.train_steps} in training, PGD-{e.test_steps} in scoring; "
        f"{e.epochs} epochs of stage 1, {e.stage2_epochs} of stage 2; seeds: {e.seeds}. Computed on "
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind} ({platform.machine()}); Python "
        f"{platform.python_version()}, JAX {version('jax')}.\n"
    )
    claims = ["| claim | measured | | statistic |", "|---|---|---|---|"]
    for claim in check_claims(result):
        verdict = claim.verdict if claim.verdict == "holds" else f"**{claim.verdict}**"
        claims.append(f"| {claim.number}. {claim.text} | {claim.measured} | {verdict} | {claim.statistic} |")
    rows = [
        "| where it starts | dynamics | training | clean | robust | with restarts |",
        "|---|---|---|---|---|---|",
    ]
    rows += [f"| {' | '.join(row)} |" for row in accuracies(result)]
    return "\n".join([head, *claims, "", *rows, ""])


def accuracies(result) -> list[list[str]]:
    """Rows of the table of accuracies: means over seeds, with standard deviations."""
    found = {}
    for regime in result.experiment.regimes:
        for seed in range(result.experiment.seeds):
            last = result.at(seed, regime, result.epochs(seed, regime)[-1])
            found.setdefault((f"{regime} network", "stage 1", ""), []).append(last)
    for record in result.of_kind("closed form"):
        found.setdefault((f"{record['regime']} kernel", "closed form", "benign"), []).append(record)
    for record in result.of_kind("stage 2"):
        how = (f"{record['regime']} kernel", record["dynamics"], record["training"])
        found.setdefault(how, []).append(record)
    return [
        [*how, *(mean([r[name] for r in records if name in r]) for name in ("clean", "robust", "robust_restarts"))]
        for how, records in found.items()
    ]


def mean(values) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reproduction.md")
    options = parser.parse_args()
    sections = {text.splitlines()[0]: text for text in map(section, options.runs)}
    text = "\n".join(sections.values())
    print(text)
    if options.write:
        begin, end = "<!-- paper_table.py -->\n", "<!-- end of paper_table.py -->"
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
        old, _, after = rest.partition(end)
        kept = {
            text.splitlines()[0]: text for text in re.split(r"^(?=### )", old, flags=re.MULTILINE) if text.strip()
        }
        text = "\n".join(text.strip() + "\n" for text in (kept | sections).values())
        DOCS.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
