"""A run as one self-contained HTML file: its claims with their figures, tables, and the kernel over the epochs."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import platform
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import __version__
from .._drawing import COLORS, finish
from .._files import require_file, write_atomically
from .._validation import check_path
from ..displays.drawing import LABELS
from ..displays.evolution import EvolutionDisplay
from ..displays.images import ImageGridDisplay
from ..displays.kernels import KernelDistanceDisplay, SpecializationDisplay, spectrum
from ..displays.robustness import TransferDisplay
from ..evolution.claims import check_claims
from ..evolution.result_lines import mapped
from ..evolution.results import EvolutionResult, require_result
from ..evolution.run_directory import RunDirectory
from ..evolution.tasks import RESTARTS

# Colour of lines and text in a figure, which becomes that of the text around it, in the dark and in the light.
INK = "#010203"
# Side of a kernel's image in the page; larger kernels are averaged over squares.
PIXELS = 100
# Eigenvalues of a spectrum in the page.
EIGENVALUES = 200
# What is left out of the page says nearly the same as others.
LEFT_OUT = ("clean_participation_ratio", "adversarial_centered_target_alignment")
CURVES = [name for name in LABELS if name not in LEFT_OUT]


class Drawing(NamedTuple):
    """A figure of the page.

    Attributes
    ----------
    svg : str
        What follows on ``<svg``.
    caption : str
        Read by those who do not see the figure, or by all if it is ``shown``.
    wide, shown : bool
    """

    svg: str
    caption: str
    wide: bool
    shown: bool


def write_report(result: EvolutionResult, path: str | os.PathLike | None = None) -> Path:
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
        The file, which needs no other.

    Raises
    ------
    TypeError
        For what is no result.
    ValueError
        If nothing was measured yet.

    Examples
    --------
    An experiment of no trainings measures nothing.

    >>> import tempfile
    >>> from ntkrobust_sk import KernelEvolution, write_report
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(KernelEvolution(regimes=()).run(folder, progress=False))
    Traceback (most recent call last):
    ValueError: ... holds no results yet, so there is nothing to report
    """
    path = None if path is None else check_path("path", path)
    require_result(result)
    path = path or result.path / "report.html"
    require_file(path)
    if not result.of_kind("checkpoint"):
        raise ValueError(f"{result.path} holds no results yet, so there is nothing to report")
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report needs Jinja2: pip install 'ntkrobust_sk[evolution]'") from error
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(files("ntkrobust_sk.reports").joinpath("report_template.html").read_text(encoding="utf-8"))
    settings = RunDirectory(result.path).settings
    shown = page.render(
        experiment=result.experiment,
        used=result.of_kind("checkpoint")[0],
        starts=1 + RESTARTS,
        claims=check_claims(result),
        accuracies=[row.cells() for row in result.accuracies()],
        data=mapped(_finite_or_none, slider_data(result)),
        pixels=PIXELS,
        curves=list(_curves(result)),
        kernels=list(_kernels(result)),
        features=list(_features(result)),
        settings={name: _plain(value) for name, value in settings.items() if value is not None},
        written_on=_written_on(),
    )
    write_atomically(path, shown.encode())
    return path


def slider_data(result: EvolutionResult, seed: int = 0) -> dict[str, Any]:
    """Collect what the slider shows: epochs, and for each regime kernels as PNG, spectra, ranks, accuracies."""
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


def _png(K: np.ndarray) -> str:
    """Draw a kernel's cosines as an image in a data URL."""
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


def _curves(result):
    """Draw what was measured at every state of stage 1, over the epochs."""
    for name in CURVES:
        caption = f"{name.replace('_', ' ')} over the epochs of stage 1, by regime"
        yield _drawn(caption, (4.6, 3.2), partial(EvolutionDisplay.from_evolution, result, name))


def _kernels(result):
    """Draw distances, specialisation and transfer of the first seed."""
    for images in ("clean", "adversarial"):
        caption = f"Kernel distances between all states of all regimes, on {images} images."
        draw = partial(KernelDistanceDisplay.from_evolution, result, images=images)
        yield _drawn(caption, (5.6, 4.8), draw, shown=True)
    for regime in result.experiment.regimes:
        if result.of_kind("checkpoint", seed=0, regime=regime):
            caption = f"Specialisation of the class kernels, {regime}."
            yield _drawn(caption, (4.6, 3.8), partial(SpecializationDisplay.from_evolution, result, regime))
    if result.of_kind("transfer", seed=0):
        caption = "Accuracy of the models (columns) on adversarial examples made on each of them (rows)."
        draw = partial(TransferDisplay.from_evolution, result)
        yield _drawn(caption, (11, 8.5), draw, wide=True, shown=True)


def _features(result):
    """Draw images of the kernels' directions, and eigenfeatures one by one."""
    regimes = [r for r in result.experiment.regimes if result.of_kind("images", seed=0, regime=r)]
    names = {"regression": "regression direction K_c⁻¹y_c", "eigenvector": "leading eigenvector of K_c"}
    drawable = regimes and all(found.ndim == 4 for found in result.images(0, regimes[0]).values())
    # rows of a table are no images
    for kind, what in names.items() if drawable else ():
        size = min(14, 1.1 * len(result.images(0, regimes[0])[kind]) + 1), 1.1 * len(regimes) + 0.6
        caption = f"For each class the image whose gradient points most along the {what}, started from grey."
        draw = partial(ImageGridDisplay.from_evolution, result, kind, regimes=regimes)
        yield _drawn(caption, size, draw, wide=True, shown=True)
    found = [record for record in result.of_kind("features", seed=0) if record["usefulness"]]
    if found:
        caption = (
            "Accuracy of each leading eigenfeature's own predictor, clean (line) and attacked through it (dots)."
        )
        yield _drawn(caption, (9, 3.4), partial(_draw_features, found), wide=True, shown=True)


def _draw_features(found, ax):
    index = np.arange(1, 1 + max(len(record["usefulness"]) for record in found))
    for record in found:
        own, color = index[: len(record["usefulness"])], COLORS[record["regime"]]
        ax.plot(own, record["usefulness"], color=color, label=record["regime"])
        ax.plot(own, record["robustness"], "o", ms=4, color=color)
    ax.set_xticks(index)
    finish(ax, xlabel="eigenfeature", ylabel="accuracy", ylim=(0, None))


def _written_on() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "scikit-learn"))
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}"
    return f"{device}; Python {platform.python_version()}, {versions}, ntkrobust_sk {__version__}"


def _finite_or_none(value: Any) -> Any:
    """Put None, which the page shows as not finite, in place of numbers that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """Write a setting as text."""
    if isinstance(value, list):
        return ", ".join(" at ".join(map(_plain, v)) if isinstance(v, list) else _plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _drawn(caption: str, size: tuple[float, float], draw: Callable[..., Any], wide=False, shown=False) -> Drawing:
    """Draw ``draw(ax=ax)`` in the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    style: dict[Any, Any] = dict.fromkeys(names, INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "ntkrobust_sk", "axes.facecolor": "none", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(ax=figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # other figures of the page have the same names
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1f{prefix}-", svg)
    return Drawing(svg.removeprefix("<svg"), caption, wide, shown)
