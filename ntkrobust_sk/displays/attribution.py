"""Training images that an answer rests on, side by side with the image that was asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from .._drawing import Axes, styled
from .._validation import array, brief, integer
from ..attribution.kernel_machines import TopContributions
from ..estimators.attackable import TangentClassifier
from ..estimators.attributable import AttributableMachine
from ..networks.inputs import host_inputs
from .drawing import Display, Style, names_of, unfrozen
from .images import pictures

# Of an image's width: between images, and between the groups of images.
GAP, WIDE_GAP = 0.12, 0.55
# Of an image's width: the line of text under each image.
TEXT = 0.36
# An image's width in a figure of its own, and what labels take there.
INCHES, MARGIN = 0.62, np.array([1.3, 0.2])


class AttributionDisplay(Display):
    """Images, each with the training images that contribute most to a score of it, and most against it.

    Parameters
    ----------
    images : array (n, h, w, c)
        With c = 1 or 3, in [0, 1].
    training_images : array (m, h, w, c)
    top : TopContributions
        Of the n images.
    names : list of str, default=None
        Of the n images, written beside them.
    labels : list of str, default=None
        Of the m training images, written under them.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkrobust_sk import TopContributions, load_digits_images
    >>> X, y = load_digits_images()
    >>> top = TopContributions.of_matrix(np.array([[0.5, -0.2, 0.3], [-0.1, 0.4, 0.2]]), 1)
    >>> display = AttributionDisplay(X[3:5], X[:3], top, names=["a 3", "a 4"], labels=y[:3]).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['a 3', 'a 4']
    """

    def __init__(
        self,
        images: ArrayLike,
        training_images: ArrayLike,
        top: TopContributions,
        names: Iterable[str] | None = None,
        labels: Iterable[Any] | None = None,
    ):
        self.images = pictures("images", images)
        self.training_images = pictures("training_images", training_images)
        if self.images.shape[1:3] != self.training_images.shape[1:3]:
            raise ValueError(
                f"images and training_images must be of one size, got {self.images.shape[1:3]} and "
                f"{self.training_images.shape[1:3]}"
            )
        if not isinstance(top, TopContributions):
            raise TypeError(f"top must be TopContributions, as top_attributions returns them, got {brief(top)}")
        if len(top.helpful) != len(self.images):
            raise ValueError(f"top must be of the {len(self.images)} images, got that of {len(top.helpful)}")
        most = max(top.helpful.max(), top.harmful.max())
        if most >= len(self.training_images):
            raise ValueError(f"top names training image {most}, but there are {len(self.training_images)}")
        self.top = top
        self.names = None if names is None else names_of("names", names, len(self.images))
        self.labels = None if labels is None else names_of("labels", labels, len(self.training_images))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        attack: Callable | None = None,
        k: int = 5,
        labels: Iterable[Any] | None = None,
        random_state: Any = 0,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw what the answers of a fitted kernel machine rest on, and under attack what the wrong ones do.

        Parameters
        ----------
        estimator : EmpiricalNTKClassifier
            Fitted on images in closed form.
        X : array (n, h, w, c) or (n, n_features)
            Images in [0, 1], a row of the figure for each.
        y : array (n,), default=None
            True labels, needed for an attack.
        attack : callable, default=None
            Then each image has a second row, of itself attacked. The score that is taken apart is that of the
            label which is answered, before and after.
        k : int, default=5
            Images on either side.
        labels : array (m,), default=None
            Labels of the training images, in the order of ``fit``.
        random_state : int, RandomState or None, default=0
            Of the attack.
        ax : matplotlib Axes, default=None
        **style
            Keywords of ``plot``.
        """
        cls._require_style(style)
        machine = unfrozen(estimator)
        if not isinstance(machine, AttributableMachine) or not isinstance(machine, TangentClassifier):
            raise TypeError(f"estimator must be a fitted EmpiricalNTKClassifier, got {brief(estimator)}")
        shape = _image_shape(machine)
        clean = np.asarray(array("X", X))
        rows, names = [clean], ["clean"]
        if attack is not None:
            if y is None:
                raise ValueError("an attack needs the true labels: give y")
            rows.append(np.asarray(machine.perturb(clean, y, attack, random_state=random_state)))
            names.append("attacked")
        inputs = np.stack(rows, axis=1).reshape(-1, *clean.shape[1:])
        answers = machine.predict(inputs)
        top = machine.top_attributions(inputs, integer("k", k, low=1))
        said = [f"{names[at % len(rows)]}: {answer}" for at, answer in enumerate(answers)]
        images = host_inputs("X", inputs, machine.model_.variables.params).reshape(-1, *shape)
        return cls(images, machine.X_fit_, top, said, labels).plot(ax, **style)

    def plot(self, ax: Axes | None = None, *, im_kw: Style = None, text_kw: Style = None) -> Self:
        """Draw into the given axes, or into new ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        im_kw, text_kw : dict, default=None
            Keywords for ``ax.imshow``, of each image, and for ``ax.text``, of what is written under it.
        """
        im_kw = styled("im_kw", im_kw, interpolation="nearest")
        text_kw = styled("text_kw", text_kw, ha="center", va="top", fontsize="small")
        new, ax = ax is None, self._axes(ax)
        n, k = self.top.helpful.shape
        ratio = self.images.shape[1] / self.images.shape[2]
        side = k * (1 + GAP) - GAP
        starts = np.cumsum([1 + WIDE_GAP, side + WIDE_GAP])
        sides = (
            ("most helpful", self.top.helpful, self.top.helpful_values),
            ("most harmful", self.top.harmful, self.top.harmful_values),
        )
        tops = -np.arange(n) * (ratio + TEXT)
        for row, top in enumerate(tops):
            _show(ax, self.images[row], 0, top, ratio, im_kw)
        for start, (title, places, values) in zip(starts, sides, strict=True):
            ax.text(start + side / 2, GAP, title, ha="center", va="bottom")
            for (row, at), place in np.ndenumerate(places):
                left, top = start + at * (1 + GAP), tops[row]
                _show(ax, self.training_images[place], left, top, ratio, im_kw)
                label = "" if self.labels is None else f"{self.labels[place]}: "
                words = f"{label}{values[row, at]:+.2g}"
                ax.text(left + 0.5, top - ratio - GAP / 3, words, **text_kw)
        ax.set_yticks(tops - ratio / 2, self.names or [""] * n)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.set(xlim=(0, starts[-1] + side), ylim=(tops[-1] - ratio - TEXT, 3 * GAP), aspect="equal", anchor="E")
        ax.spines[:].set_visible(False)
        if new:
            size = np.array([starts[-1] + side, n * (ratio + TEXT) + 3 * GAP])
            cast(Any, self.figure_).set_size_inches(INCHES * size + MARGIN)
        return self


def _image_shape(machine) -> tuple[int, ...]:
    """Return the shape (h, w, c) of the images that a machine was fitted on, or raise."""
    check_is_fitted(machine)
    shape = tuple(machine.input_shape_)
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(
            "estimator must be fitted on images (h, w, c) with c = 1 or 3 to draw them, but its inputs have "
            f"shape {shape}; where rows hold images, fit it with input_shape=, such as "
            f"{type(machine).__name__}(..., input_shape=(8, 8, 1)), and a network for that shape"
        )
    return shape


def _show(ax, image, left, top, ratio, im_kw) -> None:
    """Draw an image of width 1 with its upper left corner at a place."""
    drawn = np.clip(image.astype(float), 0, 1)
    drawn = drawn[:, :, 0] if drawn.shape[2] == 1 else drawn
    colors = {"cmap": "gray", "vmin": 0, "vmax": 1} if drawn.ndim == 2 else {}
    ax.imshow(drawn, **colors | im_kw | {"extent": (left, left + 1, top - ratio, top)})
