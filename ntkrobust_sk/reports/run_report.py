"""A run as one self-contained HTML file: its claims with their figures, tables, and the kernel over the epochs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import platform
import re
from collections.abc import Callable
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

import jax
import numpy as np

from .. import __version__
from .._files import require_file, write_atomically
from .._validation import path as check_path
from ..displays.base import legend
from ..displays.evolution import EvolutionDisplay
from ..displays.images import ImageGridDisplay
from ..displays.kernels import KernelDistanceDisplay, SpecializationDisplay, spectrum
from ..displays.robustness import TransferDisplay
from ..evolution.claims import FAILS, HOLDS, check_claims
from ..evolution.results import require_result
from ..evolution.run_directory import RunDirectory
from ..evolution.tasks import RESTARTS

# Drawn in this colour, which becomes that of the text around the figure, in the dark and in the light.
INK = "#010203"
# Side of a kernel's image in the page; larger kernels are averaged over squares.
PIXELS = 100
NOT_FINITE = "not finite"
# Eigenvalues of a spectrum in the page.
EIGENVALUES = 200
CURVES = (
    "robust",
    "clean",
    "velocity",
    "distance_to_start",
    "clean_effective_rank",
    "adversarial_effective_rank",
    "clean_centered_target_alignment",
    "clean_top_mass",
    "specialization",
)


def write_report(result, path: str | os.PathLike | None = None) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    result : EvolutionResult
        Finished or not; what is not there is left out, and claims that need it are not tested.
    path : path, default=None
        None is ``report.html`` in the run's folder.

    Returns
    -------
    Path
        Of the file, which needs no other.

    Raises
    ------
    TypeError
        For what is no result.
    ValueError
        If nothing was measured yet.
    """
    path = None if path is None else check_path("path", path)
    require_result(result)
    path = path or result.path / "report.html"
    require_file(path)
    if not result.of_kind("checkpoint"):
        raise ValueError(f"{result.path} holds no results yet, so there is nothing to report")
    experiment, used = result.experiment, result.of_kind("checkpoint")[0]
    seeds = f"{experiment.seeds} seeds" if experiment.seeds > 1 else "one seed"
    lead = (
        f"Stage 1: {experiment.epochs} epochs on {used['n_train']:,} examples. Attacks: L∞, epsilon "
        f"{experiment.epsilon:.4g}; PGD with {experiment.test_steps} steps in scoring, on "
        f"{used['n_test']:,} test examples. Kernels of {used['n_kernel']:,} training examples; {seeds}."
    )
    title = f"Kernel evolution: {experiment.data}, {experiment.network}"
    data = slider_data(result)
    sections = [claims_section(result), accuracy_section(result), slider_section(data), curves_section(result)]
    sections += [kernels_section(result), features_section(result), settings_section(result)]
    template = Template(files(__package__).joinpath("report_template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        lead=escape(lead),
        sections="\n".join(section for section in sections if section),
        data=json.dumps(_plain_json(data), allow_nan=False).replace("</", "<\\/"),
    )
    write_atomically(path, page.encode())
    return path


def claims_section(result) -> str:
    """Each claim with its verdict, what was measured, and how."""
    shown = []
    for claim in check_claims(result):
        look = {HOLDS: "holds", FAILS: "fails"}.get(claim.verdict, "untested")
        shown.append(
            f'<article class="claim {look}"><h3>{claim.number}. {escape(claim.text)} '
            f'<span class="verdict">{escape(claim.verdict.capitalize())}.</span></h3>'
            f"<p>{escape(claim.measured)}</p>"
            f'<p class="soft">{escape(claim.statistic[0].upper() + claim.statistic[1:])}.</p></article>'
        )
    note = (
        '<p class="soft">The claims of Loo et al. 2022 (arXiv:2210.12030). Each is tested in every seed; figures '
        "are means over seeds, with the range where there are several.</p>"
    )
    return f'<section><h2>Claims</h2>{note}<div class="claims">{"".join(shown)}</div></section>'


def accuracy_section(result) -> str:
    """Clean and robust accuracy of the networks and of what stage 2 made of their kernels."""
    rows = []
    for regime in result.experiment.regimes:
        last = [
            result.at(seed, regime, result.epochs(seed, regime)[-1])
            for seed in range(result.experiment.seeds)
            if result.of_kind("checkpoint", seed=seed, regime=regime)
        ]
        rows.append((f"{regime} network, epoch {last[0]['epoch']:g}" if last else "", "stage 1", "", last))
    found = {}
    for kind, names in (("closed form", ()), ("stage 2", ("dynamics", "training"))):
        for record in result.of_kind(kind):
            key = (f"{record['regime']} kernel, epoch {record['epoch']:g}", *(record[name] for name in names))
            found.setdefault(key, []).append(record)
    for (start, *how), records in sorted(found.items()):
        dynamics, training = how or ("closed form", "benign")
        rows.append((start, dynamics, training, records))
    body = "".join(
        f"<tr><td>{escape(start)}</td><td>{escape(dynamics)}</td><td>{escape(training)}</td>"
        + "".join(
            f'<td class="number">{_mean(records, name)}</td>' for name in ("clean", "robust", "robust_restarts")
        )
        + "</tr>"
        for start, dynamics, training, records in rows
        if records
    )
    head = (
        "<tr><th>where it starts</th><th>dynamics</th><th>training</th>"
        '<th class="number">clean</th><th class="number">robust</th><th class="number">with restarts</th></tr>'
    )
    note = (
        f"PGD with {result.experiment.test_steps} steps and one random start; with restarts, the worst of "
        f"{1 + RESTARTS} starts."
    )
    return (
        f'<section><h2>Accuracy</h2><p class="soft">{note}</p><div class="scroll"><table><thead>{head}</thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def slider_section(data: dict) -> str:
    """Kernels and spectra at an epoch that the reader chooses, of what :func:`slider_data` found."""
    last = len(data["epochs"]) - 1
    kernels = "".join(
        f'<figure><img id="kernel-{r["name"]}" src="{r["kernels"][0]}" alt="Kernel of the {r["name"]} network" '
        f'width="{PIXELS}" height="{PIXELS}"><figcaption><strong style="color:var(--{r["name"]})">{r["name"]}'
        f'</strong><br><span id="rank-{r["name"]}"></span></figcaption></figure>'
        for r in data["regimes"]
    )
    legend = ", ".join(f'<strong style="color:var(--{r["name"]})">{r["name"]}</strong>' for r in data["regimes"])
    return (
        '<section><h2>The kernel, epoch by epoch</h2><div class="slider"><label for="epoch">Epoch</label>'
        f'<input type="range" id="epoch" min="0" max="{last}" value="{last}" step="1">'
        '<output id="epoch-shown" for="epoch"></output></div>'
        f'<div class="kernels">{kernels}</div>'
        '<p class="soft">Cosines K(x, x′)/√(K(x, x) K(x′, x′)), examples sorted by class; dark is 0, bright 1.</p>'
        '<figure><svg id="spectrum" role="img" aria-label="Kernel spectra"></svg>'
        f"<figcaption>Eigenvalues as shares of the trace: {legend}.</figcaption></figure></section>"
    )


def slider_data(result, seed: int = 0) -> dict:
    """What the page's slider shows: epochs, and for each regime kernels as PNG, spectra, ranks, accuracies."""
    regimes = []
    for regime in result.experiment.regimes:
        epochs = result.epochs(seed, regime)
        if not epochs:
            continue
        kernels = [result.kernel(seed, regime, epoch) for epoch in epochs]
        with np.errstate(invalid="ignore"):  # a network may have no gradient, and its kernel no trace
            shares = [spectrum(K)[:EIGENVALUES] / np.trace(K) for K in kernels]
        regimes.append(
            {
                "name": regime,
                "epochs": epochs,
                "kernels": [_png(K) for K in kernels],
                "spectra": [[float(f"{value:.3g}") for value in share] for share in shares],
                "ranks": [result.at(seed, regime, epoch)["clean_effective_rank"] for epoch in epochs],
                "robust": [result.at(seed, regime, epoch)["robust"] for epoch in epochs],
            }
        )
    return {"epochs": max((regime["epochs"] for regime in regimes), key=len), "regimes": regimes}


def _png(K) -> str:
    """A kernel's cosines as an image in a data URL."""
    from matplotlib.image import imsave

    K = np.asarray(K, np.float64)
    scale = np.sqrt(np.maximum(np.diag(K), np.finfo(float).tiny))
    cosines = K / scale / scale[:, None]
    step = max(1, len(K) // PIXELS)
    size = len(K) // step
    cosines = cosines[: size * step, : size * step].reshape(size, step, size, step).mean((1, 3))
    file = io.BytesIO()
    imsave(file, cosines, vmin=0, vmax=1, cmap="magma", format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def curves_section(result) -> str:
    """What was measured at every state of stage 1, over the epochs."""
    figures = []
    for name in CURVES:
        drawn = _figure(lambda ax, name=name: EvolutionDisplay.from_evolution(result, name, ax=ax), (4.6, 3.2))
        figures.append(_captioned(drawn, f"{name.replace('_', ' ')} over the epochs of stage 1, by regime"))
    shaded = " Shaded: the range over seeds." if result.experiment.seeds > 1 else ""
    note = f'<p class="soft">Kernels on clean training images, except where attacked ones are named.{shaded}</p>'
    return f'<section><h2>Evolution</h2>{note}<div class="grid">{"".join(figures)}</div></section>'


def kernels_section(result) -> str:
    """Distances, specialisation and transfer, of the first seed."""
    figures = []
    for images in ("clean", "adversarial"):
        drawn = _figure(
            lambda ax, i=images: KernelDistanceDisplay.from_evolution(result, images=i, ax=ax), (5.6, 4.8)
        )
        caption = f"Kernel distances between all states of all regimes, on {images} images."
        figures.append(_captioned(drawn, caption, shown=True))
    for regime in result.experiment.regimes:
        if result.of_kind("checkpoint", seed=0, regime=regime):
            drawn = _figure(
                lambda ax, r=regime: SpecializationDisplay.from_evolution(result, r, ax=ax), (4.6, 3.8)
            )
            figures.append(_captioned(drawn, f"Specialisation of the class kernels, {regime}."))
    if result.of_kind("transfer", seed=0):
        drawn = _figure(lambda ax: TransferDisplay.from_evolution(result, ax=ax), (11, 8.5))
        caption = "Accuracy of the models (columns) on adversarial examples made on each of them (rows)."
        figures.append(_captioned(drawn, caption, wide=True, shown=True))
    return f'<section><h2>Kernels and transfer</h2><div class="grid">{"".join(figures)}</div></section>'


def features_section(result) -> str:
    """Eigenfeatures one by one, and images of the kernels' directions."""
    figures = []
    regimes = [r for r in result.experiment.regimes if result.of_kind("images", seed=0, regime=r)]
    names = {"regression": "regression direction K_c⁻¹y_c", "eigenvector": "leading eigenvector of K_c"}
    drawable = regimes and all(found.ndim == 4 for found in result.images(0, regimes[0]).values())
    # rows of a table are no images
    for kind, what in names.items() if drawable else ():
        n_classes = len(result.images(0, regimes[0])[kind])
        drawn = _figure(
            lambda ax, k=kind: ImageGridDisplay.from_evolution(result, k, regimes=regimes, ax=ax),
            (min(14, 1.1 * n_classes + 1), 1.1 * len(regimes) + 0.6),
        )
        caption = f"For each class the image whose gradient points most along the {what}, started from grey."
        figures.append(_captioned(drawn, caption, wide=True, shown=True))
    found = [record for record in result.of_kind("features", seed=0) if record["usefulness"]]
    if found:
        figures.append(
            _captioned(
                _figure(lambda ax: _draw_features(ax, found), (9, 3.4)),
                "Accuracy of each leading eigenfeature's own predictor, clean (line) and attacked "
                "through it (dots).",
                wide=True,
                shown=True,
            )
        )
    if not figures:
        return ""
    return f'<section><h2>Features</h2><div class="grid">{"".join(figures)}</div></section>'


def _draw_features(ax, found):
    from ..displays.base import COLORS

    for record in found:
        index = np.arange(1, len(record["usefulness"]) + 1)
        color = COLORS[record["regime"]]
        ax.plot(index, record["usefulness"], color=color, label=record["regime"])
        ax.plot(index, record["robustness"], "o", ms=4, color=color)
    ax.set(xlabel="eigenfeature", ylabel="accuracy", ylim=(0, None))
    ax.set_xticks(index)
    legend(ax)
    ax.spines[["top", "right"]].set_visible(False)


def settings_section(result) -> str:
    """What was run, and on what."""
    settings = RunDirectory(result.path).settings
    shown = {name: value for name, value in settings.items() if value is not None}
    items = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}:</dt> <dd>{escape(_plain(value))}</dd></div>"
        for name, value in shown.items()
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "scikit-learn"))
    versions += f", ntkrobust_sk {__version__}"
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}"
    return (
        f'<section><h2>Settings</h2><dl class="settings">{items}</dl><p class="soft">Report written on {device}; '
        f"Python {platform.python_version()}, {versions}.</p></section>"
    )


def _plain_json(value):
    """The same with null, which the page shows as not finite, for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value) -> str:
    if isinstance(value, list):
        return ", ".join(" at ".join(map(_plain, v)) if isinstance(v, list) else _plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mean(records, name) -> str:
    values = [record[name] for record in records if name in record]
    if not values:
        return ""
    if not np.isfinite(values).all():
        return NOT_FINITE
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _figure(draw: Callable, size: tuple[float, float]) -> str:
    """SVG of what ``draw(ax)`` draws, in the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    colors = dict.fromkeys(names, INK)
    style = {"svg.fonttype": "none", "svg.hashsalt": "ntkrobust_sk", "axes.facecolor": "none", "font.size": 10}
    with matplotlib.rc_context(colors | style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # other figures of the page have the same names
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'( id="|url\(#|href="#)', rf"\1f{prefix}-", svg)


def _captioned(svg, caption, *, wide=False, shown=False) -> str:
    """A figure with its text for those who do not see it, or for all."""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    text = f"<figcaption>{escape(caption)}</figcaption>" if shown else ""
    return f"<figure{' class=wide' if wide else ''}>{svg}{text}</figure>"
