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
from documents import DOCS, read_part, write_part

from ntkrobust_sk import load_evolution
from ntkrobust_sk.evolution.claims import check_claims


def section(path: Path) -> str:
    """Claims and accuracies of one run."""
    result = load_evolution(path)
    e = result.experiment
    where = f"{os.cpu_count()} cores, {jax.devices()[0].device_kind} ({platform.machine()})"
    head = (
        f"### {e.data}, {e.network}, {e.n_train:,} images\n\n{e.n_train:,} training images, {e.n_test:,} test "
        f"images, kernels of {e.n_kernel}; epsilon {e.epsilon:.4g}, PGD-{e.train_steps} in training, "
        f"PGD-{e.test_steps} in scoring; {e.epochs} epochs of stage 1, {e.stage2_epochs} of stage 2; seeds: "
        f"{e.seeds}. Computed on {where}; Python {platform.python_version()}, JAX {version('jax')}.\n"
    )
    claims = ["| claim | measured | | statistic |", "|---|---|---|---|"]
    for claim in check_claims(result):
        verdict = claim.verdict if claim.verdict == "holds" else f"**{claim.verdict}**"
        claims.append(f"| {claim.number}. {claim.text} | {claim.measured} | {verdict} | {claim.statistic} |")
    rows = [
        "| where it starts | dynamics | training | clean | robust | with restarts |",
        "|---|---|---|---|---|---|",
    ]
    rows += [f"| {' | '.join(row.cells())} |" for row in result.accuracies()]
    return "\n".join([head, *claims, "", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reproduction.md")
    options = parser.parse_args()
    sections = {text.splitlines()[0]: text for text in map(section, options.runs)}
    text = "\n".join(sections.values())
    print(text)
    if options.write:
        old = re.split(r"^(?=### )", read_part(DOCS / "reproduction.md", "paper_table.py"), flags=re.MULTILINE)
        kept = {text.splitlines()[0]: text for text in old if text.strip()}
        text = "\n".join(text.strip() + "\n" for text in (kept | sections).values())
        write_part(DOCS / "reproduction.md", "paper_table.py", text)


if __name__ == "__main__":
    main()
