"""A run as one self-contained HTML file: its claims with their figures, tables, and the kernel over the epochs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import __version__
from .._files import require_file, write_atomically
from .._validation import check_path
from ..displays.kernels import spectrum
from ..evolution.result_lines import mapped
from ..evolution.results import EvolutionResult, require_result
from ..evolution.run_directory import RunDirectory
from ..evolution.tasks import RESTARTS
from . import page_figures, page_tables
from .evidence import counted, learning_of, stated_claims
from .page_drawing import picture
from .page_tables import name_of

# Side of a kernel's image in the page; larger kernels are averaged over squares.
PIXELS = 100
# Eigenvalues of a spectrum in the page.
EIGENVALUES = 200
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
# Sections of figures: the part of the page that links to them, and what draws them.
SECTIONS = {
    "over-epochs": ("Evolution", page_figures.curves),
    "distances": ("Distances between kernels", page_figures.distances),
    "specialisation": ("Specialisation", page_figures.specializations),
    "transfer": ("Transfer", page_figures.transfers),
    "images": ("Images of the kernels", page_figures.galleries),
    "eigenfeatures": ("Eigenfeatures", page_figures.eigenfeatures),
}


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
    Of kernels at initialisation alone.

    >>> import tempfile
    >>> from ntkrobust_sk import KernelEvolution, write_report
    >>> sizes = {"n_train": 20, "n_test": 10, "n_kernel": 10, "network": "mlp", "n_features": 0}
    >>> at_first = KernelEvolution(**sizes, regimes=("benign",), epochs=0, stage2_from=())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(at_first.run(folder, progress=False)).name
    'report.html'
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
        loader=jinja2.PackageLoader("ntkrobust_sk.reports", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("report_template.html")
    write_atomically(path, page.render(contents(result)).encode())
    return path


def contents(result: EvolutionResult) -> dict[str, Any]:
    """Collect what the page shows of a run."""
    experiment, learning = result.experiment, learning_of(result)
    claims = stated_claims(result, learning)
    # the kernel epoch by epoch and its spectrum, which stand between the first one and the others
    numbers = count(1)
    stage_two = _numbered(page_figures.stage_two(result), numbers)
    kernel_figures = next(numbers), next(numbers)
    sections = [
        {"key": key, "title": title, "figures": figures}
        for key, (title, draw) in SECTIONS.items()
        if (figures := _numbered(draw(result), numbers))
    ]
    tables = [
        page_tables.settings_table(result),
        page_tables.claims_table(claims),
        page_tables.accuracies_table(result),
        page_tables.states_table(result),
        page_tables.transfer_table(result),
        page_tables.features_table(result),
    ]
    return {
        "title": f"Kernel evolution: {name_of(experiment.data)}, {name_of(experiment.network)}",
        "experiment": experiment,
        "attack": experiment.test_attack,
        "norm": NORMS.get(experiment.test_attack.norm, experiment.test_attack.norm),
        "used": result.of_kind("checkpoint")[0],
        "starts": 1 + RESTARTS,
        "learning": learning,
        "claims": claims,
        "verdicts": counted(claims),
        "figures_of": _figures_of(
            [*stage_two, *(figure for section in sections for figure in section["figures"])]
        ),
        "stage_two": stage_two,
        "kernel_figures": kernel_figures,
        "networks": [row.cells() for row in result.accuracies() if row.dynamics == "stage 1"],
        "tables": {table.name: table for table in tables if table},
        "data": mapped(_finite_or_none, slider_data(result)),
        "pixels": PIXELS,
        "sections": sections,
        "settings": _settings(result),
        "written_on": _written_on(),
        "style": _part("report_style.css"),
        "script": _part("report_script.js"),
    }


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
    K = np.asarray(K, np.float64)
    scale = np.sqrt(np.maximum(np.diag(K), np.finfo(float).tiny))
    cosines = K / scale / scale[:, None]
    step = max(1, len(K) // PIXELS)
    size = len(K) // step
    cosines = cosines[: size * step, : size * step].reshape(size, step, size, step).mean((1, 3))
    return picture(cosines, vmin=0, vmax=1, cmap="magma")


def _numbered(figures: Iterable, numbers: Iterator[int]) -> list[tuple[int, Any]]:
    return [(next(numbers), figure) for figure in figures]


def _figures_of(figures) -> dict[str, list[int]]:
    """Return the numbers of the figures that bear on each claim."""
    found: dict[str, list[int]] = {}
    for number, figure in figures:
        for claim in figure.claims:
            found.setdefault(claim, []).append(number)
    return found


def _part(name: str) -> str:
    return files("ntkrobust_sk.reports").joinpath(name).read_text(encoding="utf-8")


def _settings(result) -> dict[str, str]:
    """Write the settings of a run; what is no plain value there, as Python would."""
    found = {name: value for name, value in RunDirectory(result.path).settings.items() if value is not None}
    return {
        name: repr(getattr(result.experiment, name, value))
        if isinstance(value, dict)
        else page_tables.plain(value)
        for name, value in found.items()
    }


def _written_on() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "scikit-learn"))
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}"
    return f"{device}; Python {platform.python_version()}, {versions}, ntkrobust_sk {__version__}"


def _finite_or_none(value: Any) -> Any:
    """Put None, which the page shows as not finite, in place of numbers that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
