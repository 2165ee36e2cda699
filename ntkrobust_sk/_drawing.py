"""What all that draws has in common: axes, colours, and keywords of style as scikit-learn's displays take them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._validation import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
else:
    Axes = Any

COLORS = {
    "benign": "#2f6db3",
    "adversarial": "#c44e36",
    "flip": "#7a4fa3",
    "clean": "#8fa8bf",
    "robust": "#22507a",
    "initial": "#8a8a8a",
}
OTHER_COLORS = ("#2f6db3", "#c44e36", "#3a8f5c", "#7a4fa3", "#b8860b", "#5a5a5a")
# "flip" lies on "benign" until it parts from it.
LINE_STYLES = {"flip": "--"}
# The class of matplotlib's that takes the keywords of each kind, and what only the function that draws it takes.
STYLED = {
    "line_kw": ("lines", "Line2D", ()),
    "fill_between_kw": ("collections", "PolyCollection", ("interpolate", "step")),
    "bar_kw": ("patches", "Rectangle", ("align",)),
    "im_kw": ("image", "AxesImage", ("vmin", "vmax", "aspect")),
    "text_kw": ("text", "Text", ()),
}


def axes_of(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib import axes
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'ntkrobust_sk[plot]'") from error
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    if not isinstance(ax, axes.Axes):
        raise TypeError(f"ax must be a matplotlib Axes, such as plt.gca(), or None, got {brief(ax)}")
    return ax


def finish(ax: Axes, loc: Any = "best", **labels: Any) -> None:
    """Label the axes and the lines, and take away the frame's upper and right sides."""
    ax.set(**labels)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc=loc)
    ax.spines[["top", "right"]].set_visible(False)


def color_of(name: str, place: int) -> str:
    """Return the colour of a name, or of its place among the lines of a figure."""
    return COLORS.get(name, OTHER_COLORS[place % len(OTHER_COLORS)])


def styled(name: str, given: dict[str, Any] | None, **defaults: Any) -> dict[str, Any]:
    """Return keywords for matplotlib: the defaults, and in their place what is given, under whichever alias.

    Parameters
    ----------
    name : {"line_kw", "fill_between_kw", "bar_kw", "im_kw", "text_kw"}
    given : dict or None
    **defaults
        Names and values.

    Raises
    ------
    TypeError
        For what is no dict, for a name that matplotlib does not know, and for a name next to its alias.

    Examples
    --------
    >>> styled("line_kw", {"linewidth": 3}, lw=1.8, color="red")
    {'linewidth': 3, 'color': 'red'}
    """
    from matplotlib import cbook

    module, class_name, more = STYLED[name]
    artist = getattr(import_module(f"matplotlib.{module}"), class_name)
    if given is not None and not isinstance(given, dict):
        raise TypeError(
            f"{name} must be a dict of matplotlib's keywords, such as {{'alpha': 0.5}}, got {brief(given)}"
        )
    given = given or {}
    known = [*(part[4:] for part in dir(artist) if part.startswith("set_")), *more]
    for key in given:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{name}: matplotlib's {class_name} has no {key!r}{hint}")
    try:
        own = cbook.normalize_kwargs(given, artist)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    return cbook.normalize_kwargs(defaults, artist) | own
