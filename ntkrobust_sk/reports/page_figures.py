"""Figures of the page: what was measured over the epochs, kernels, transfer, features."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .._drawing import COLORS, finish
from ..displays.drawing import LABELS, write_numbers
from ..displays.evolution import EvolutionDisplay
from ..displays.kernels import KernelDistanceDisplay, SpecializationDisplay
from ..displays.robustness import TransferDisplay
from ..evolution.results import EvolutionResult
from .page_drawing import INK, Figure, Gallery, cells, drawn, number, picture, scratch

# What is left out of the page says nearly the same as others.
LEFT_OUT = ("clean_participation_ratio", "adversarial_centered_target_alignment")
# What begins at zero, so that heights can be compared.
FROM_ZERO = ("robust", "clean", "distance_to_start")
# Claims that a figure bears on, by what it shows.
CLAIMS_OF = {
    "robust": ("7",),
    "velocity": ("4",),
    "distance_to_start": ("1a", "1b"),
    "clean_effective_rank": ("5a",),
    "specialization": ("5b",),
}


def stage_two(result: EvolutionResult) -> Iterator[Figure]:
    """Draw the robust accuracy of what stage 2 made of each regime's last kernel, beside that of the networks."""
    found = _stage_two(result)
    if not found:
        return
    regimes = tuple(dict.fromkeys(regime for of in found.values() for regime in of))
    networks = {regime: np.mean(values) for regime in regimes if (values := _ends(result, regime))}
    svg, box, _ = drawn((5.6, 0.5 * len(found) + 1.1), partial(_draw_stage_two, found, regimes, networks))
    said = [
        ["\n".join([how, *(f"{regime} kernel {number(np.mean(values))}" for regime, values in of.items())])]
        for how, of in found.items()
    ]
    spread = " Thin lines: range over seeds." if result.experiment.seeds > 1 else ""
    caption = (
        "A bar for each kernel, in the colour of the training that made it. Rows: dynamics and training of stage "
        f"2; those of the network move its kernel on. Dotted: the networks of stage 1.{spread}"
    )
    hover = {"box": box, "cells": {"rows": [""] * len(found), "columns": [""], "values": said}}
    yield Figure("Robust accuracy after stage 2", caption, svg, hover, ("2", "3"), regimes, wide=True)


def _stage_two(result) -> dict[str, dict[str, list[float]]]:
    """Return robust accuracies over seeds, by dynamics and training, then by regime, of the last starts."""
    records = [*result.of_kind("closed form"), *result.of_kind("stage 2")]
    last = {regime: max(r["epoch"] for r in records if r["regime"] == regime) for regime in _regimes_in(records)}
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["epoch"] == last[record["regime"]]:
            how = f"{record['dynamics']}, {record['training']}" if "dynamics" in record else "closed form"
            found.setdefault(how, {}).setdefault(record["regime"], []).append(record["robust"])
    # a "standard" stage 2 moves its kernel
    return {how.replace("standard", "network"): found[how] for how in sorted(found)}


def _regimes_in(records) -> set[str]:
    return {record["regime"] for record in records}


def _ends(result, regime) -> list[float]:
    """Return the robust accuracies of a regime's networks at their last epochs, over seeds."""
    seeds = [(s, epochs[-1]) for s in range(result.experiment.seeds) if (epochs := result.epochs(s, regime))]
    return [result.at(seed, regime, epoch)["robust"] for seed, epoch in seeds]


def _draw_stage_two(found, regimes, networks, ax):
    height = 0.8 / len(regimes)
    for place, regime in enumerate(regimes):
        at = [row for row, of in enumerate(found.values()) if regime in of]
        values = [of[regime] for of in found.values() if regime in of]
        y = np.array(at) + (place - (len(regimes) - 1) / 2) * height
        ax.barh(y, [np.mean(one) for one in values], 0.9 * height, color=COLORS[regime])
        ax.hlines(y, [min(one) for one in values], [max(one) for one in values], color=INK, lw=1)
        if regime in networks:
            ax.axvline(networks[regime], color=COLORS[regime], lw=1.5, ls=":")
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.15)
    ax.set_axisbelow(True)
    finish(ax, xlabel="robust accuracy", xlim=(0, None))


def curves(result: EvolutionResult) -> Iterator[Figure]:
    """Draw what was measured at every state of stage 1, over the epochs."""
    several = result.experiment.seeds > 1
    caption = "Mean over seeds; shaded: their range." if several else "One seed."
    for name in (name for name in LABELS if name not in LEFT_OUT):
        display = EvolutionDisplay.from_evolution(result, name, ax=scratch())
        if not display.curves:
            continue
        svg, box, reading = drawn((4.0, 3.1), partial(_draw_curve, display, name in FROM_ZERO))
        hover = {"box": box, "points": _points(display, reading)}
        title = display.label[0].upper() + display.label[1:]
        yield Figure(title, caption, svg, hover, CLAIMS_OF.get(name, ()), tuple(display.curves))


def _draw_curve(display, from_zero, ax):
    display.plot(ax)
    ax.grid(axis="y", alpha=0.15)
    if from_zero:
        ax.set_ylim(0, None)
    if legend := ax.get_legend():  # the page has one, which hides nothing
        legend.remove()
    ax.set_ylabel("")


def _points(display, place_of) -> list[list]:
    """Return what a curve says at each epoch."""
    said: dict[float, list[str]] = {}
    for regime, (epochs, values) in display.curves.items():
        for epoch, at in zip(epochs, values.T, strict=True):
            span = f" ({number(at.min())} to {number(at.max())})" if len(at) > 1 else ""
            said.setdefault(float(epoch), []).append(f"{regime} {number(at.mean())}{span}")
    return [[place_of(epoch), "\n".join([f"epoch {epoch:.4g}", *said[epoch]])] for epoch in sorted(said)]


def distances(result: EvolutionResult) -> Iterator[Figure]:
    """Draw distances between all states of the first seed, on clean and on attacked images."""
    for images in ("clean", "adversarial"):
        display = KernelDistanceDisplay.from_evolution(result, images=images, ax=scratch())
        regimes = [regime for regime, size in display.groups or () for _ in range(size)]
        names = [f"{regime}, epoch {epoch}" for regime, epoch in zip(regimes, display.labels, strict=True)]
        svg, box, _ = drawn((4.0, 3.5), partial(_draw_distances, display))
        yield Figure(
            f"Kernel distances, {'clean' if images == 'clean' else 'attacked'} images",
            "Between all states, epochs from left to right in each block. Seed 0. Each figure has own colours.",
            svg,
            {"box": box, "cells": cells(display.distances, names, names)},
            ("1a", "1b", "7") if images == "clean" else (),
        )


def _draw_distances(display, ax):
    display.plot(ax)
    _without_bar_label(ax)
    # epochs, which are read at each cell, would not fit
    names = [name for name, _ in display.groups]
    ax.set_xticks(ax.get_xticks(), names)
    ax.set_yticks(ax.get_yticks(), names, rotation=90, va="center")
    ax.tick_params(labelsize="small")


def _without_bar_label(ax) -> None:
    """Take the label from the bar of colours: the figure's title says what they are."""
    for bar in ax.figure.axes[1:]:
        bar.set_ylabel("")


def specializations(result: EvolutionResult) -> Iterator[Figure]:
    """Draw how class kernels of the first seed are specialised, for all regimes in the same colours."""
    regimes = [r for r in result.experiment.regimes if result.of_kind("checkpoint", seed=0, regime=r)]
    displays = {r: SpecializationDisplay.from_evolution(result, r, ax=scratch()) for r in regimes}
    reach = max((abs(display.matrix - 1).max() for display in displays.values()), default=0) or 1e-12
    for regime, display in displays.items():
        svg, box, _ = drawn((4.0, 3.5), partial(_draw_specialization, display, reach))
        classes = [f"{c}" for c in range(len(display.matrix))]
        yield Figure(
            f"Class kernels: {display.title}",
            "Above 1: the kernel of an output (row) fits a class (column) better than the mean kernel does. "
            "Seed 0; the same colours for all regimes.",
            svg,
            {
                "box": box,
                "cells": cells(display.matrix, [f"kernel {c}" for c in classes], [f"class {c}" for c in classes]),
            },
            ("5b",) if regime == regimes[0] else (),
        )


def _draw_specialization(display, reach, ax):
    display.plot(ax, im_kw={"vmin": 1 - reach, "vmax": 1 + reach})
    _without_bar_label(ax)
    ax.set_title("")


def transfers(result: EvolutionResult) -> Iterator[Figure]:
    """Draw transfer between the models of the first seed; numbers stand for their names, which would not fit."""
    found = result.of_kind("transfer", seed=0)
    if not found:
        return
    names = [_model_name(name) for name in found[0]["names"]]
    display = TransferDisplay(found[0]["matrix"], [str(at) for at in range(1, len(names) + 1)])
    svg, box, _ = drawn((4.6, 4.6), partial(_draw_transfer, display))
    hover = {
        "box": box,
        "cells": cells(display.matrix, [f"made on {n}" for n in names], [f"answered by {n}" for n in names]),
    }
    caption = "Accuracy in % of each model (column) on the adversarial examples made on each (row), seed 0."
    yield Figure("Transfer", caption, svg, hover, ("6",), wide=True, names=tuple(names))


def _draw_transfer(display, ax):
    display.plot(ax, include_values=False, colorbar=False)
    ax.set_xticks(ax.get_xticks(), display.names, rotation=0, ha="center")
    ax.tick_params(labelsize=min(14, 160 / len(display.names)))
    write_numbers(ax, display.matrix, lambda value: f"{100 * value:.0f}")


def _model_name(name: str) -> str:
    """Write the name of a model of stage 2 in words."""
    regime, epoch, *how = name.split("/")
    if how == ["network"]:
        return f"{regime} network, epoch {epoch}"
    return f"{regime} kernel, epoch {epoch}: {', '.join(how)}"


def eigenfeatures(result: EvolutionResult) -> Iterator[Figure]:
    """Draw the leading eigenfeatures of the first seed, each with two bars: clean, and attacked through it."""
    found = [record for record in result.of_kind("features", seed=0) if record["usefulness"]]
    chance = 1 / len(result.of_kind("checkpoint")[0]["specialization_matrix"])
    top = max((max(record["usefulness"] + record["robustness"]) for record in found), default=0)
    for record in found:
        pairs = list(zip(record["usefulness"], record["robustness"], strict=True))
        svg, box, place_of = drawn((4.0, 3.1), partial(_draw_bars, record, chance, 1.08 * max(top, chance)))
        said = [
            [place_of(at), f"eigenfeature {at}\nclean {number(clean)}\nattacked {number(robust)}"]
            for at, (clean, robust) in enumerate(pairs, 1)
        ]
        yield Figure(
            f"Eigenfeatures of the {record['regime']} kernel, epoch {record['epoch']:g}",
            "Accuracy of each leading eigenfeature's own predictor: clean (pale) and attacked through it (full). "
            f"Dotted: guessing, {chance:.2g}. Seed 0.",
            svg,
            {"box": box, "points": said},
        )


def _draw_bars(record, chance, top, ax):
    index, color = np.arange(1, 1 + len(record["usefulness"])), COLORS[record["regime"]]
    ax.bar(index - 0.2, record["usefulness"], 0.38, color=color, alpha=0.4)
    ax.bar(index + 0.2, record["robustness"], 0.38, color=color)
    ax.axhline(chance, color=INK, lw=1.5, ls=":")
    step = max(1, -(-len(index) // 10))
    ax.set_xticks(index[::step])
    ax.grid(axis="y", alpha=0.15)
    ax.set_axisbelow(True)
    finish(ax, xlabel="eigenfeature", ylabel="accuracy", ylim=(0, top))


def galleries(result: EvolutionResult) -> Iterator[Gallery]:
    """Collect the images of the kernels' directions, where inputs are images."""
    regimes = [r for r in result.experiment.regimes if result.of_kind("images", seed=0, regime=r)]
    kinds = {
        "regression": ("regression direction K⁻¹y of its kernel", ("5c",)),
        "eigenvector": ("leading eigenvector of its kernel", ()),
    }
    for kind, (what, claims) in kinds.items():
        images = {regime: result.images(0, regime)[kind] for regime in regimes}
        if not images or any(found.ndim != 4 for found in images.values()):
            return  # rows of a table are no images
        pictures = {regime: [picture(image) for image in found] for regime, found in images.items()}
        caption = (
            f"For each class the image, started from grey, whose gradient points most along the {what}. Seed 0."
        )
        yield Gallery(f"Images along the {what.removesuffix(' of its kernel')}", caption, pictures, claims)
