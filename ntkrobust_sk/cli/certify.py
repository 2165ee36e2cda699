"""``ntkrobust certify``."""

from __future__ import annotations

from typing import Any

from .answer import Answer
from .options import Parser, add_output, add_parameters, fraction, increasing
from .signatures import parameters
from .subject import add_model_and_data, read_subject, told_of

HELP = "certified accuracy of a saved estimator, by randomised smoothing"
DESCRIPTION = (
    "Let a fitted classifier vote under Gaussian noise (Cohen et al. 2019), and print how many test examples "
    "the vote answers rightly and certainly: within an L2 radius no attack on the vote exists. In brackets: "
    "defaults."
)


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust certify``."""
    add_model_and_data(parser, n_test=100, what="certified")
    group = parser.add_argument_group("certificates")
    group.add_argument(
        "--sigma",
        type=fraction,
        required=True,
        metavar="NUMBER",
        help="standard deviation of the noise, in units of the data",
    )
    group.add_argument(
        "--radius",
        type=fraction,
        nargs="+",
        metavar="NUMBER",
        help="L2 radii in units of the data, ascending [0, and half, once and twice sigma]",
    )
    described = parameters("robustness/smoothing.py", "certify")
    add_parameters(group, [described[name] for name in ("n_selection", "n_samples", "alpha")], {})
    add_output(parser)


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust certify``."""
    import numpy as np

    from .._validation import number
    from ..robustness.intervals import clopper_pearson
    from ..robustness.smoothing import certified_accuracy
    from .attacked_examples import CONFIDENCE, as_fitted

    sigma = number("sigma", options["sigma"], above=0)
    radii = increasing("--radius", options["radius"] or [0.0, sigma / 2, sigma, 2 * sigma])
    chosen = {name: options[name] for name in ("n_selection", "n_samples", "alpha") if options[name] is not None}
    estimator, X, y = read_subject("certify", options)
    with told_of(options["model"], "certified"):
        rows = as_fitted(estimator, X.reshape(len(X), -1))
        seed = options["random_state"]
        found = np.ravel(certified_accuracy(estimator, rows, y, radii, sigma=sigma, random_state=seed, **chosen))
    counts = [round(share * len(y)) for share in found]
    intervals = [tuple(map(float, clopper_pearson(count, len(y), CONFIDENCE))) for count in counts]
    said = [f"{options['model']}, {options['data']}, sigma {sigma:g}", f"{'L2 radius':<12}certified accuracy"]
    for radius, share, count, (low, high) in zip(radii, found, counts, intervals, strict=True):
        said.append(
            f"{radius:<12.4g}{share:.3f}  [{low:.3f}, {high:.3f}] at {CONFIDENCE:.0%}, {count} of {len(y)}"
        )
    data = {"model": options["model"], "data": options["data"], "n": len(y), "sigma": sigma, "radii": radii}
    return Answer("\n".join(said), lambda: data | {"certified_accuracies": found, "intervals": intervals})
