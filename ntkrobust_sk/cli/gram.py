"""``ntkrobust gram``."""

from __future__ import annotations

import sys
from typing import Any

from .answer import Answer
from .options import Parser, add_output, add_parameters
from .signatures import parameters
from .sources import say_where_from
from .subject import DATA, told_of

HELP = "the Gram matrix of a saved model's tangent kernel, on disk"
DESCRIPTION = (
    "Compute the Gram matrix of a model's empirical tangent kernel on examples, tile by tile into a zarr "
    "store, and print what it measures. A stopped command goes on where it was when it is given again. In "
    "brackets: defaults."
)
KINDS = ("trace", "class", "full", "pseudo")


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust gram``."""
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--model",
        required=True,
        metavar="FILE",
        help="a Model's or an estimator's own save (.ntk; best), or an estimator of this library by "
        "skops.io.dump or joblib.dump (loading runs code in it, so it must be trusted)",
    )
    group.add_argument("--data", required=True, metavar="DATA", help=DATA)
    group.add_argument("--data-dir", metavar="FOLDER", help="folder with the data set's canonical files")
    group.add_argument("--part", choices=("train", "test"), default="train", help="which examples [train]")
    group.add_argument("--n-train", type=int, metavar="N", default=200, help="training examples at most [200]")
    group.add_argument(
        "--n-test",
        type=int,
        metavar="N",
        default=400,
        help="test examples at most; set apart where the data have none of their own [400]",
    )
    group.add_argument("--random-state", type=int, metavar="N", default=0, help="seed of the choice [0]")
    group = parser.add_argument_group("kernel")
    group.add_argument(
        "--kernel",
        choices=KINDS,
        default="trace",
        help="summed over the outputs, for each output, for each pair of them, or of their random sum [trace]",
    )
    add_parameters(group, [parameters("kernels/gram_matrix.py", "gram")["memory"]], {})
    group.add_argument(
        "--jobs", dest="n_jobs", type=int, metavar="N", help="processes that share the work; -1 is all cores [1]"
    )
    group = add_output(parser)
    group.add_argument("--out", required=True, metavar="STORE", help="folder of the store, such as K.zarr")


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust gram``."""
    import numpy as np

    from .._validation import check_path
    from ..datasets.splits import load_splits
    from ..evolution.measures import kernel_metrics
    from ..kernels.gram_matrix import gram
    from .saved_models import load_model

    out, seed = check_path("--out", options["out"]), options["random_state"]
    say_where_from("gram", options["data"], options["data_dir"])
    sizes = {"n_train": options["n_train"], "n_test": options["n_test"], "random_state": seed}
    model = load_model(options["model"], lambda line: print(f"ntkrobust gram: {line}", file=sys.stderr))
    splits = load_splits(options["data"], options["data_dir"], **sizes, at_most=True)
    X, y = (splits.X, splits.y) if options["part"] == "train" else (splits.X_test, splits.y_test)
    if not len(y):
        raise ValueError(
            f"--n-test {options['n_test']} takes all {len(splits.y_test)} examples of {options['data']}, and "
            "none is left to train on; ask for fewer, or for --part test"
        )
    budget = {} if options["memory"] is None else {"memory": options["memory"]}
    with told_of(options["model"], "measured on these data"):
        K = gram(options["kernel"], model, X, store=out, n_jobs=options["n_jobs"], progress=True, **budget)
    K = np.asarray(K)
    whole = K if K.ndim == 2 else K.mean(2) if K.ndim == 3 else np.einsum("nmcc->nm", K)
    measured = kernel_metrics(whole, y)
    said = [
        f"{options['kernel']} kernel of {options['model']} on {len(y)} {options['part']} examples of "
        f"{options['data']}: {' x '.join(map(str, K.shape))}, {K.dtype}",
        *(f"{name.replace('_', ' '):<28}{value:.4g}" for name, value in measured.items()),
        f"Store: {out.resolve()}, read by ntkrobust_sk.kernels.read_gram",
    ]
    stated = {"model": options["model"], "data": options["data"], "kernel": options["kernel"], "n": len(y)}
    store = {"shape": K.shape, "dtype": str(K.dtype), "store": str(out.resolve())}
    return Answer("\n".join(said), lambda: stated | store | {"measures": measured})
