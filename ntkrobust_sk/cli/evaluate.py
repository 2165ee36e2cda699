"""``ntkrobust evaluate``."""

from __future__ import annotations

from typing import Any

from .answer import Answer
from .options import Parser, add_output, increasing
from .subject import add_attack, add_model_and_data, read_subject, require_bounds, told_of

HELP = "accuracy of a saved estimator under several attacks and radii, and whether to believe it"
DESCRIPTION = (
    "Attack a fitted classifier by one or more attacks at one or more radii, print its accuracies with "
    "confidence intervals, and check whether they are to be believed: whether gradients are hidden, the attack "
    "has converged, and so on. Ends with status 1 if a check fails. In brackets: defaults."
)


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust evaluate``."""
    add_model_and_data(parser, n_test=500, what="attacked")
    add_attack(parser, nargs="+", default=["autoattack"], help="one or more [autoattack]")
    group = parser.add_argument_group("checks")
    group.add_argument(
        "--n-check",
        type=int,
        metavar="N",
        default=100,
        help="examples at most for the checks, which attack them about ten times, at the largest radius and by "
        "the first attack; 0 leaves the checks out [100]",
    )
    add_output(parser)


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust evaluate``."""
    from .._validation import integer
    from ..robustness.report import robustness_report
    from ..robustness.sanity_checks import Checks, check_evaluation
    from .attacked_examples import as_fitted

    radii, n_check = increasing("--epsilon", options["epsilon"]), integer("n_check", options["n_check"], low=0)
    bounds = options["bounds"] and tuple(options["bounds"])
    attacks = _attacks(options, radii[-1], bounds)
    first, seed = next(iter(attacks.values())), options["random_state"]
    estimator, X, y = read_subject("evaluate", options)
    require_bounds(X, bounds)
    with told_of(options["model"], "attacked"):
        rows = as_fitted(estimator, X.reshape(len(X), -1))
        given = {"norm": first.norm, "bounds": bounds, "attacks": attacks, "random_state": seed}
        report = robustness_report(estimator, rows, y, radii, **given)
        few = slice(min(n_check, len(rows)))
        checks = Checks()
        if n_check and radii[-1]:
            checks = check_evaluation(estimator, rows[few], y[few], first, random_state=seed)
    said = [f"{options['model']}, {options['data']}", str(report)]
    said += ["", f"Is it to be believed? {first!r}:", str(checks)] if checks else []
    return Answer("\n".join(said), lambda: _data(options, report, checks), status=0 if checks.passed else 1)


def _attacks(options, epsilon, bounds) -> dict[str, Any]:
    from .named_attacks import make_attack

    given = {"norm": options["norm"], "n_steps": options["n_steps"], "bounds": bounds}
    attacks = {name: make_attack(name, epsilon, **given) for name in options["attack"]}
    norms = {name: attack.norm for name, attack in attacks.items()}
    if len(attacks) < len(options["attack"]):
        raise ValueError(f"--attack names an attack twice: {' '.join(options['attack'])}")
    if len(set(norms.values())) > 1:
        in_norms = ", ".join(f"{name} is in {norm}" for name, norm in norms.items())
        raise ValueError(f"--attack: {in_norms}; give one --norm that all of them know, or one attack")
    return attacks


def _data(options, report, checks) -> dict[str, Any]:
    return {
        "model": options["model"],
        "data": options["data"],
        "n": len(report.y),
        "norm": report.norm,
        "confidence": report.confidence,
        "clean_accuracy": report.clean_accuracy,
        "epsilons": report.epsilons,
        "accuracies": dict(zip(report.names, report.accuracies, strict=True)),
        "intervals": dict(zip(report.names, report.intervals, strict=True)),
        "worst_accuracies": report.worst_accuracies,
        "flags": report.flags,
        "checks": [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in checks],
    }
