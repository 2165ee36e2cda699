"""``ntkrobust report``."""

from __future__ import annotations

from typing import Any

from .answer import Answer
from .options import Parser, add_output
from .sources import output_file

HELP = "write the HTML report of a run of evolve again, finished or not"
DESCRIPTION = (
    "Write the report of a run's folder as one HTML file, and print its claims. Nothing is computed that the run "
    "has not measured; what is not there yet is left out."
)


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust report``."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of the run, as evolve --out has it")
    group = add_output(parser, overwrites=True)
    group.add_argument("--out", metavar="FILE", help="file for the report [report.html in the run's folder]")


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust report``."""
    from .._validation import check_path
    from ..evolution.experiment import load_evolution
    from ..reports.evidence import learning_of, stated_claims
    from ..reports.run_report import write_report

    folder, out = check_path("RUN", options["run_folder"]), options["out"]
    path = None if out is None else output_file(out, overwrite=options["overwrite"])
    if not folder.is_dir():
        raise ValueError(f"RUN {folder} is no folder; give the folder of a run, as evolve --out has it")
    result = load_evolution(folder)
    report, learning = write_report(result, path), learning_of(result)
    claims = stated_claims(result, learning)
    said = [f"claim {one.claim.number} {one.verdict}: {one.claim.text}" for one in claims]
    said += [] if learning.is_enough else [f"No verdicts: {learning.why_not}"]
    said.append(f"{len(result.results)} results. Report: {report.resolve()}")
    stated = [
        {"number": one.claim.number, "text": one.claim.text, "verdict": one.verdict}
        | {"measured": one.claim.measured, "counts": one.counts, "reason": one.reason}
        for one in claims
    ]
    where = {"run": str(folder), "results": len(result.results), "report": str(report.resolve())}
    return Answer("\n".join(said), lambda: where | {"claims": stated})
