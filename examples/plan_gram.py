"""Gram matrices on paper: memory, operations and seconds, for one card and for several; nothing is computed.

    python examples/plan_gram.py                            # 50,000 images, ResNet-18, one card and eight
    python examples/plan_gram.py --n 200000 --cards 8 --memory 45GiB
    python examples/plan_gram.py --markdown                 # the tables of docs/gpu.md

Tiles, panels and passes are those that the library would choose on such a card, by its own code; the working space
of a row, which compilers tell elsewhere, is stated. Operations are counted from shapes. The rates are assumptions.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import jax
import numpy as np
from gpu_sections import forward_operations, pair_operations

from ntkrobust_sk import Model, ProjectedNTK, ResNet18
from ntkrobust_sk.execution.memory import parse_memory, readable
from ntkrobust_sk.kernels.abstract_features import AbstractFeatures, abstract_features
from ntkrobust_sk.kernels.ntk import resolve_kernel
from ntkrobust_sk.kernels.plan import Plan, _plan
from ntkrobust_sk.kernels.workers import by_panel, pieces_for
from ntkrobust_sk.networks.inputs import n_params

# Operations a second, assumed: products of features by their digits, features (single precision convolutions),
# double precision for solutions.
PRODUCTS = {"fp32": 50e12, "tf32": 400e12, "bf16": 800e12}
FEATURES, DOUBLE = 35e12, 40e12
# What computing features takes beside them, bytes a row and direction: XLA's figure for the pseudo kernel of a
# ResNet-18 on a CPU.
WORKING = 19.3e6


@dataclass(frozen=True)
class Card:
    """A device that is not here."""

    platform: str = "gpu"


@dataclass(frozen=True)
class Assumed(AbstractFeatures):
    """Features of a kernel's tile on a card that is not here, with a stated working space."""

    def working_bytes(self, rows: int, n_directions: int) -> int:
        """Count what computing a tile's features takes besides them."""
        return int(rows * n_directions * WORKING)


@dataclass(frozen=True)
class Size:
    """What a Gram matrix takes.

    Attributes
    ----------
    plan : Plan
    matrix, solution : int
        Bytes of the result in single precision, and of its systems, one at a time, with their factors in double.
    features, products, solving : float
        Operations.
    """

    plan: Plan
    matrix: int
    solution: int
    features: float
    products: float
    solving: float

    def seconds(self, digits: str, n_cards: int) -> float:
        """Return the seconds of the matrix at the assumed rates, if the cards share it evenly."""
        return (self.features / FEATURES + self.products / PRODUCTS[digits]) / n_cards


def shapes_of(network, shape) -> Model:
    """Return the model of a network without its numbers."""
    return Model(network, jax.eval_shape(lambda: network.init(jax.random.key(0), shape)))


def plan_on_paper(kernel: str, model: Model, shape, memory: int, digits: str) -> Plan:
    """Return the plan that the library would make for many rows on a card."""
    rounding = None if digits == "fp32" else digits
    known = abstract_features(resolve_kernel(kernel), model, shape, digits=rounding)
    return _plan(
        Assumed(**{field.name: getattr(known, field.name) for field in fields(known)} | {"device": Card()}),
        memory,
        1024,
        None,
        0,
    )


def size_of(
    kernel: str, model: Model, shape, forward: float, n: int, memory: int, digits: str, n_cards: int
) -> Size:
    """Count what the Gram matrix of n inputs takes; ``forward`` are the operations of one's forward pass."""
    plan = plan_on_paper(kernel, model, shape, memory, digits)
    n_outputs, height = model.network.n_outputs, -(-n // plan.rows)
    tiles = [(i, j) for i in range(height) for j in range(i, height)]
    pieces = by_panel(tiles, plan.panel) if n_cards == 1 else pieces_for(tiles, plan.panel, n_cards)
    # features of a tile of rows and of one of columns, the same where both are the same
    computed = sum(len({i for i, _ in piece} | {j for _, j in piece}) for piece in pieces)
    # a pass goes forward once, and backward at twice the cost for each direction
    a_row = plan.passes * (1 + 2 * plan.directions) * forward
    a_pair = plan.passes * pair_operations(kernel, model, shape, plan.directions)
    entries = n_outputs if kernel == "class" else 1
    return Size(
        plan,
        matrix=4 * n**2 * entries,
        solution=16 * n**2,
        features=computed * plan.rows * a_row,
        products=len(tiles) * plan.rows**2 * a_pair,
        solving=entries * 2 * n**3 / 6,
    )


def table_of_matrices(network, shape, n: int, memory: str, cards) -> list[list[str]]:
    """Return the rows of the table of kernels."""
    model = shapes_of(network, shape)
    forward = forward_operations(model, shape)
    rows = [["kernel", "digits", "cards", "tiles, panel, passes", "features a row", "matrix", "solution in fp64"]]
    rows[0] += ["features", "products", "seconds", "of solving"]
    for kernel in ("pseudo", "class", "trace"):
        for digits in ("fp32", "tf32", "bf16"):
            for n_cards in cards:
                size = size_of(kernel, model, shape, forward, n, parse_memory(memory), digits, n_cards)
                plan = size.plan
                rows.append(
                    [
                        kernel,
                        digits,
                        str(n_cards),
                        f"{plan.rows}, {plan.rows * plan.panel:,}, {plan.passes}",
                        readable(plan.row_bytes * plan.passes),
                        readable(size.matrix),
                        readable(size.solution),
                        f"{size.features / 1e15:.3g} PFLOP",
                        f"{size.products / 1e15:.3g} PFLOP",
                        f"{size.seconds(digits, n_cards):.3g}",
                        f"{size.solving / DOUBLE:.2g}",
                    ]
                )
    return rows


def table_of_projections(network, shape, n: int, k: int, cards) -> list[list[str]]:
    """Return the rows of the table of random projections: features alone, no matrix of n × n."""
    model = shapes_of(network, shape)
    forward = forward_operations(model, shape)
    rows = [["kernel", "cards", "features", "normal equations", "operations", "seconds", "of a linear model"]]
    for kernel in ("pseudo", "trace"):
        directions = len(ProjectedNTK(k, of=kernel).output_directions(model, np.zeros((1, *shape), np.float32)))
        # every parameter's gradient meets a sign and an addition
        a_row = (1 + 2 * directions) * forward + 2 * directions * n_params(model.variables.params)
        for n_cards in cards:
            rows.append(
                [
                    kernel,
                    str(n_cards),
                    readable(4 * n * k),
                    readable(8 * k**2),
                    f"{n * a_row / 1e15:.3g} PFLOP",
                    f"{n * a_row / FEATURES / n_cards:.3g}",
                    f"{(2 * n * k**2 + k**3 / 3) / DOUBLE:.2g}",
                ]
            )
    return rows


def printed(rows, markdown: bool) -> str:
    """Return a table as text."""
    if markdown:
        head, *body = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments=None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000, help="images of a matrix")
    parser.add_argument("--projected", type=int, default=1_000_000, help="images whose features are projected")
    parser.add_argument("--components", type=int, default=4096, help="projections of each")
    parser.add_argument("--memory", default="45GiB", help="of each card, for features")
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    sizes = (options.n, options.projected, options.components, *options.cards)
    if min(sizes) < 1:
        parser.error("--n, --projected, --components and --cards must be positive")
    network, shape = ResNet18(n_outputs=10), (32, 32, 3)
    rates = ", ".join(f"{digits} {rate / 1e12:g}" for digits, rate in PRODUCTS.items())
    print(
        f"ResNet-18, {' x '.join(map(str, shape))}, ten outputs. Assumed TFLOP/s: products {rates}; features "
        f"{FEATURES / 1e12:g}; double precision {DOUBLE / 1e12:g}. {readable(WORKING)} of working space a row and "
        "direction.\n"
    )
    print(f"Matrices of {options.n:,} images, {options.memory} of each card for features:\n")
    print(printed(table_of_matrices(network, shape, options.n, options.memory, options.cards), options.markdown))
    print(f"\nProjections of {options.projected:,} images on {options.components:,} directions:\n")
    rows = table_of_projections(network, shape, options.projected, options.components, options.cards)
    print(printed(rows, options.markdown))


if __name__ == "__main__":
    main()
