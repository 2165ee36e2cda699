"""``ntkrobust attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .answer import Answer
from .options import Parser, add_output, increasing
from .sources import output_file
from .subject import add_attack, add_model_and_data, read_subject, require_bounds, told_of

HELP = "attack a saved estimator and write the adversarial examples"
DESCRIPTION = (
    "Attack a fitted classifier on the test examples of a data set, print its clean and robust accuracy, and "
    "write the adversarial examples to an .npz file, or one for each radius. Loading a file of joblib runs "
    "whatever code is in it: attack only models that you trust. One of an estimator's save, or of skops, runs "
    "none. In brackets: defaults."
)


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust attack``."""
    add_model_and_data(parser, n_test=500, what="attacked")
    add_attack(parser, default="autoattack", help="[autoattack]")
    group = add_output(parser, overwrites=True)
    group.add_argument(
        "--out",
        default="adversarial.npz",
        metavar="FILE",
        help="file for the adversarial examples; with several radii, their names have the radius at the end "
        "[adversarial.npz]",
    )


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust attack``."""
    from .attacked_examples import attack_examples, write_examples
    from .named_attacks import make_attack

    bounds = options["bounds"] and tuple(options["bounds"])
    given = {"norm": options["norm"], "n_steps": options["n_steps"], "bounds": bounds}
    radii = increasing("--epsilon", options["epsilon"])
    attacks = [make_attack(options["attack"], epsilon, **given) for epsilon in radii]
    overwrite = options.pop("overwrite")
    files = [
        output_file(out, options["model"], options["data"], overwrite=overwrite)
        for out in _names(options["out"], radii)
    ]
    estimator, X, y = read_subject("attack", options)
    require_bounds(X, bounds)
    said, results = [f"{options['model']}, {attacks[0]!r}"], []
    for epsilon, chosen, out in zip(radii, attacks, files, strict=True):
        with told_of(options["model"], "attacked"):
            found = attack_examples(estimator, X, y, chosen, random_state=options["random_state"])
        stated = {"epsilon": epsilon, "attack": repr(chosen), "norm": chosen.norm}
        write_examples(out, found, options | stated)
        heading = [f"epsilon {epsilon:g}"] if len(radii) > 1 else []
        said += [*heading, str(found), f"Examples: {out.resolve()}"]
        results.append(stated | found.summary() | {"out": str(out.resolve())})
    return Answer(
        "\n".join(said), lambda: {"model": options["model"], "data": options["data"], "results": results}
    )


def _names(out: str, radii: list[float]) -> list[str]:
    """Return the file for each radius: with several, the radius is at the end of its name."""
    if len(radii) == 1 or not out:
        return [out] * len(radii)
    path = Path(out)
    return [str(path.with_name(f"{path.stem}-{epsilon:.6g}{path.suffix}")) for epsilon in radii]
