"""The paper's claims against what runs of ``ntkrobust evolve`` have found, as Markdown.

    python examples/paper_table.py runs/digits runs/cifar10 --write

puts the tables into ``docs/reproduction.md``, in place of those of the same data and network.
"""

import argparse
import re
from pathlib import Path

from documents import DOCS, read_part, write_part

from ntkrobust_sk import load_evolution
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.reports.evidence import learning_of, stated_claims


def attack_in_training(experiment) -> str:
    """Name the attack, with its steps where these are a setting."""
    if not isinstance(experiment.attack, str):
        return repr(experiment.attack)
    return f"PGD-{experiment.train_steps}" if experiment.attack == "pgd" else experiment.attack


def section(path: Path) -> str:
    """Claims and accuracies of one run."""
    result, run = load_evolution(path), RunDirectory(path)
    e, learning = result.experiment, learning_of(result)
    data = "own data" if run.going_on.get("own_data") else e.data
    second = f"{e.stage2_epochs} of stage 2" if e.starts else "no stage 2"
    head = (
        f"### {data}, {e.network}, {e.n_train:,} images\n\n{e.n_train:,} training images, {e.n_test:,} test "
        f"images, kernels of {e.n_kernel}; norm {e.norm}, epsilon {e.epsilon:.4g}, {attack_in_training(e)} in "
        f"training, PGD-{e.test_steps} in scoring; epochs: {e.epochs} of stage 1, {second}; seeds: {e.seeds}. Run "
        f"by version {run.settings['version']} of this library.\n"
    )
    if learning.why_not:
        head += f"\nNo verdicts: {learning.why_not}.\n"
    claims = ["| claim | measured | | statistic |", "|---|---|---|---|"]
    for claim, verdict, *_ in stated_claims(result, learning):
        verdict = verdict if verdict == "holds" else f"**{verdict}**"
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
