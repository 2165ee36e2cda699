"""What a command looks at: a saved model, and examples; and the attack that it meets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .answer import EXPECTED
from .options import Parser, fraction, help_of
from .signatures import parameters
from .sources import say_where_from

MODEL = (
    "fitted estimator: a file of its own save method (.ntk; best), of skops.io.dump (.skops), or of joblib.dump "
    "(loading runs code in it, so it must be trusted)"
)
DATA = "digits, cifar10, fashion-mnist, mnist, an .npz file with X and y, or a folder of images by class"


def add_model_and_data(parser: Parser, *, n_test: int, what: str) -> Any:
    """Add the options of a saved model and its test examples, and return their group."""
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", required=True, metavar="FILE", help=MODEL)
    group.add_argument("--data", required=True, metavar="DATA", help=DATA)
    group.add_argument("--data-dir", metavar="FOLDER", help="folder with the data set's canonical files")
    group.add_argument(
        "--n-test",
        type=int,
        metavar="N",
        default=n_test,
        help=f"test examples at most, all of them {what} [{n_test}]",
    )
    group.add_argument(
        "--random-state", type=int, metavar="N", default=0, help="seed of all that is random, the examples too [0]"
    )
    return group


def add_attack(parser: Parser, **of_attack: Any) -> None:
    """Add the options of an attack at several radii; ``of_attack`` are those of ``--attack`` itself."""
    described = parameters("cli/named_attacks.py", "make_attack")
    group = parser.add_argument_group("attack")
    group.add_argument("--attack", choices=described["name"].choices, **of_attack)
    group.add_argument(
        "--epsilon",
        type=fraction,
        nargs="+",
        required=True,
        metavar="NUMBER",
        help="radii in units of the data, ascending, such as 2/255 4/255",
    )
    group.add_argument(
        "--norm", choices=described["norm"].choices, help="[linf, or the only one that the attack knows]"
    )
    group.add_argument("--steps", dest="n_steps", type=int, metavar="N", help=help_of(described["n_steps"]))
    bounds = group.add_mutually_exclusive_group()
    bounds.add_argument(
        "--bounds",
        nargs=2,
        type=fraction,
        metavar=("LOW", "HIGH"),
        default=(0.0, 1.0),
        help="range of valid inputs [0 1]",
    )
    bounds.add_argument("--no-bounds", dest="bounds", action="store_const", const=None, help="any number is valid")


def read_subject(command: str, options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Load the saved model, and its test examples X (n, ...) and y (n,)."""
    from .attacked_examples import load_test_examples
    from .saved_models import load_estimator

    say_where_from(command, options["data"], options["data_dir"])
    estimator = load_estimator(
        options["model"], lambda line: print(f"ntkrobust {command}: {line}", file=sys.stderr)
    )
    X, y = load_test_examples(
        options["data"], options["data_dir"], n_test=options["n_test"], random_state=options["random_state"]
    )
    return estimator, X, y


def require_bounds(X: Any, bounds: tuple[float, float] | None) -> None:
    """Raise ValueError unless the data lie in the bounds of the attack."""
    if bounds is not None and (X.min() < bounds[0] or X.max() > bounds[1]):
        raise ValueError(
            f"the data range from {X.min():.6g} to {X.max():.6g}, out of the bounds {bounds[0]:g} to "
            f"{bounds[1]:g}; give --bounds LOW HIGH or --no-bounds"
        )


@contextmanager
def told_of(model: str, what: str) -> Iterator[None]:
    """Let whatever a stranger's estimator raises be one line: the model cannot be attacked, or the like."""
    try:
        yield
    except EXPECTED:
        raise
    except Exception as error:
        kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        raise ValueError(f"{model} cannot be {what}: {kind}{said}") from error
