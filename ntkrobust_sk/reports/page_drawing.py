"""Drawing for the page: SVG in its colours, pictures as data URLs, and what a pointer or keys read from them."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._drawing import COLORS

# Colour of lines and text in a figure, which becomes that of the text around it, in the dark and in the light.
INK = "#010203"
# Colours that the page has for regimes, other ones in the dark.
REGIME_COLORS = {COLORS[regime]: f"var(--{regime})" for regime in ("benign", "adversarial", "flip")}


class Figure(NamedTuple):
    """A figure of the page.

    Attributes
    ----------
    title, caption : str
    svg : str
        What follows on ``<svg``.
    hover : dict
        What is read at a place: ``box`` (left, top, width, height) of the axes as shares of the drawing, and
        either ``points``, pairs of a share of the drawing's width and a text, or ``cells``, a matrix with names.
    claims : tuple of str
        Numbers of the claims that it bears on.
    regimes : tuple of str
        For a key of their colours.
    wide : bool
    names : tuple of str
        What numbers in the figure stand for, from 1.
    """

    title: str
    caption: str
    svg: str
    hover: dict[str, Any]
    claims: tuple[str, ...] = ()
    regimes: tuple[str, ...] = ()
    wide: bool = False
    names: tuple[str, ...] = ()


class Gallery(NamedTuple):
    """A figure of small images: for each regime one for each class, as data URLs."""

    title: str
    caption: str
    images: dict[str, list[str]]
    claims: tuple[str, ...] = ()


def picture(image: np.ndarray, **colors: Any) -> str:
    """Write an image (h, w), (h, w, 1) or (h, w, 3) as PNG in a data URL; without ``colors`` in [0, 1]."""
    from matplotlib.image import imsave

    colors = colors or {"cmap": "gray", "vmin": 0, "vmax": 1}
    shown = np.clip(np.asarray(image, float), colors.get("vmin", 0), colors.get("vmax", 1))
    shown = shown[:, :, 0] if shown.ndim == 3 and shown.shape[2] == 1 else shown
    file = io.BytesIO()
    imsave(file, shown, format="png", **colors)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def number(value: Any) -> str:
    """Write a number to be read from a figure."""
    return f"{value:.3g}"


def cells(matrix: np.ndarray, rows: list[str], columns: list[str]) -> dict[str, Any]:
    """Return what a matrix says at each of its cells."""
    return {"rows": rows, "columns": columns, "values": [[number(value) for value in row] for row in matrix]}


def scratch() -> Any:
    """Return axes for a display that is drawn again."""
    from matplotlib.figure import Figure as Drawing

    return Drawing().subplots()


def drawn(
    size: tuple[float, float], draw: Callable[..., Any]
) -> tuple[str, list[float], Callable[[float], float]]:
    """Draw ``draw(ax=ax)`` in the colours of the page.

    Returns
    -------
    svg : str
        What follows on ``<svg``.
    box : list of float
        Left, top, width and height of the axes, as shares of the drawing.
    place_of : callable
        From a number on the horizontal axis to a share of the drawing's width.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    style: dict[Any, Any] = dict.fromkeys((*names, "grid.color"), INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "ntkrobust_sk", "axes.facecolor": "none", "font.size": 14}
    with matplotlib.rc_context(style):
        drawing = Drawing(figsize=size, layout="constrained")
        ax = drawing.subplots()
        draw(ax=ax)
        file = io.StringIO()
        drawing.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for color, of_page in REGIME_COLORS.items():
        svg = svg.replace(color, of_page)
    # other figures of the page have the same names
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1f{prefix}-", svg)
    at, wide = ax.get_position(), drawing.bbox.width
    box = [round(float(share), 4) for share in (at.x0, 1 - at.y1, at.width, at.height)]
    return svg.removeprefix("<svg"), box, lambda x: round(float(ax.transData.transform((x, 0))[0] / wide), 4)
