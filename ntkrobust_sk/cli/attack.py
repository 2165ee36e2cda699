"""``ntkrobust attack``."""

from __future__ import annotations

import sys
from typing import Any

from .options import Parser, fraction, help_of
from .signatures import parameters
from .sources import output_file, say_where_from

HELP = "attack a saved estimator and write the adversarial examples"
DESCRIPTION = (
    "Attack a fitted classifier on the test examples of a data set, print its clean and robust accuracy, and "
    "write the adversarial examples to an .npz file. Loading a file of joblib runs whatever code is in it: attack "
    "only models that you trust. One of an estimator's save, or of skops, runs none. In brackets: defaults."
)


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust attack``."""
    described = parameters("cli/named_attacks.py", "make_attack")
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--model",
        required=True,
        help="fitted estimator: a file of its own save method (.ntk; best), of skops.io.dump (.skops), or of "
        "joblib.dump (loading runs code in it, so it must be trusted)",
    )
    group.add_argument(
        "--data", required=True, help="digits, cifar10, fashion-mnist, mnist, or an .npz file with X and y"
    )
    group.add_argument("--data-dir", metavar="FOLDER", help="folder with the data set's canonical files")
    group.add_argument(
        "--n-test", type=int, metavar="N", default=500, help="test examples at most, all of them attacked [500]"
    )
    group = parser.add_argument_group("attack")
    group.add_argument("--attack", choices=described["name"].choices, default="autoattack", help="[autoattack]")
    group.add_argument(
        "--epsilon",
        type=fraction,
        required=True,
        metavar="NUMBER",
        help="radius in units of the data, such as 4/255",
    )
    group.add_argument(
        "--norm", choices=described["norm"].choices, help="[linf, or the only one that the attack knows]"
    )
    group.add_argument("--steps", type=int, metavar="N", help=help_of(described["n_steps"]))
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--bounds",
        nargs=2,
        type=fraction,
        metavar=("LOW", "HIGH"),
        default=(0.0, 1.0),
        help="range of valid inputs [0 1]",
    )
    given.add_argument("--no-bounds", dest="bounds", action="store_const", const=None, help="any number is valid")
    group.add_argument(
        "--random-state", type=int, metavar="N", default=0, help="seed of the attack and of the test examples [0]"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", default="adversarial.npz", help="file for the adversarial examples [adversarial.npz]"
    )


def run(options: dict[str, Any]) -> int:
    """Run ``ntkrobust attack``."""
    from .attacked_examples import attack_examples, load_test_examples, write_examples
    from .command import EXPECTED
    from .named_attacks import make_attack
    from .saved_models import load_estimator

    bounds = options["bounds"] and tuple(options["bounds"])
    chosen = make_attack(
        options["attack"], options["epsilon"], norm=options["norm"], n_steps=options["steps"], bounds=bounds
    )
    out = output_file(options["out"], options["model"], options["data"])
    say_where_from("attack", options["data"], options["data_dir"])
    estimator = load_estimator(options["model"], lambda line: print(f"ntkrobust attack: {line}", file=sys.stderr))
    seed = options["random_state"]
    X, y = load_test_examples(options["data"], options["data_dir"], n_test=options["n_test"], random_state=seed)
    if bounds is not None and (X.min() < bounds[0] or X.max() > bounds[1]):
        raise ValueError(
            f"the data range from {X.min():.6g} to {X.max():.6g}, out of the bounds {bounds[0]:g} to "
            f"{bounds[1]:g}; give --bounds LOW HIGH or --no-bounds"
        )
    try:
        found = attack_examples(estimator, X, y, chosen, random_state=seed)
    except EXPECTED:
        raise
    except Exception as error:  # what cannot be attacked, and whatever a stranger's estimator raises
        kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        raise ValueError(f"{options['model']} cannot be attacked: {kind}{said}") from error
    write_examples(out, found, options | {"attack": repr(chosen), "norm": chosen.norm})
    print(f"{options['model']}, {chosen!r}")
    print(found)
    print(f"Examples: {out.resolve()}")
    return 0
