"""A robustness report as text, as HTML and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _html
from .._drawing import Axes, axes_of, color_of, finish, styled
from .intervals import clopper_pearson

if TYPE_CHECKING:
    from .report import RobustnessReport

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
ALL = "all of them"


def text_of(report: RobustnessReport) -> str:
    """Write a report as a table and some lines."""
    head, rows = _table(report)
    width = max(24, *(len(name) + 2 for name in head[1:]))
    lines = ["".join([f"{first:<10}", *(f"{cell:<{width}}" for cell in cells)]) for first, *cells in (head, *rows)]
    return "\n".join(line.rstrip() for line in [*_summary(report), "", *lines, *_notes(report, "")])


def html_of(report: RobustnessReport) -> str:
    """Write a report as HTML."""
    return _html.table("; ".join(_summary(report)), *_table(report), [note for note in _notes(report) if note])


def draw(report: RobustnessReport, ax: Axes | None, line_kw: Any, fill_between_kw: Any) -> Axes:
    """Draw accuracy over epsilon: a line for each attack with its intervals, and one for all of them."""
    epsilons = [0.0, *report.epsilons]
    clean = _clean_interval(report)
    curves = zip(report.names, report.accuracies, report.intervals, strict=True)
    drawn = []
    for place, (name, values, ends) in enumerate(curves):
        line = styled("line_kw", line_kw, marker="o", ms=4, color=color_of(name, place), label=name)
        area = styled("fill_between_kw", fill_between_kw, color=line["color"], alpha=0.15, lw=0)
        drawn.append(([report.clean_accuracy, *values], np.vstack([clean, ends]).T, line, area))
    ax = axes_of(ax)
    for values, ends, line, area in drawn:
        ax.plot(epsilons, values, **line)
        ax.fill_between(epsilons, *ends, **area)
    if len(drawn) > 1:
        worst: dict[str, Any] = styled("line_kw", line_kw) | {"color": "0.4", "linestyle": ":", "label": ALL}
        ax.plot(epsilons, [report.clean_accuracy, *report.worst_accuracies], **worst)
    finish(ax, xlabel=f"epsilon ({report.norm})", ylabel="accuracy", ylim=(0, 1.02))
    return ax


def _clean_interval(report):
    right = np.sum(report.fell_at[0] > 0)
    return [float(end) for end in clopper_pearson(right, len(report.y), report.confidence)]


def _summary(report) -> list[str]:
    low, high = _clean_interval(report)
    return [
        f"{len(report.y):,} examples, norm {report.norm}, intervals of {report.confidence:.0%} (Clopper–Pearson)",
        f"clean accuracy {report.clean_accuracy:.3f} [{low:.3f}, {high:.3f}]",
    ]


def _table(report) -> tuple[list[str], list[list[str]]]:
    """Return the table's head, and a row for each epsilon."""
    found = zip(
        report.epsilons,
        report.accuracies.T,
        report.intervals.transpose(1, 0, 2),
        report.worst_accuracies,
        strict=True,
    )
    rows = [
        [
            f"{epsilon:.4g}",
            *(f"{a:.3f} [{low:.3f}, {high:.3f}]" for a, (low, high) in zip(values, ends, strict=True)),
            f"{worst:.3f}",
        ]
        for epsilon, values, ends, worst in found
    ]
    return ["epsilon", *report.names, ALL], rows


def _notes(report, *before: str) -> list[str]:
    """Write what stands below the table."""
    lines = []
    by_class = report.class_accuracies[:, :, -1].min(1)
    if not np.isnan(by_class).all():
        worst = np.nanargmin(by_class)
        where = f"at epsilon {report.epsilons[-1]:.4g}"
        lines += [*before, f"worst class {where}: {report.classes[worst]} with {by_class[worst]:.3f}"]
    found = ", ".join(f"{q:.0%} {at:.4g}" for q, at in zip(QUANTILES, report.quantiles(), strict=True))
    return [*lines, f"minimal perturbation at most: {found}", *(f"flag: {flag}" for flag in report.flags)]
