"""Images side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .._drawing import Axes, styled
from .._validation import array, check_choice, integer
from .drawing import Display, Regimes, Run, Style, mapping_of, names_of, regimes_of, result_of


class ImageGridDisplay(Display):
    """Images in rows, one row for each name.

    Parameters
    ----------
    images : dict
        Images (m, h, w, c) by name, with c = 1 or 3, in [0, 1].
    titles : list of str, default=None
        Titles of the columns.

    Examples
    --------
    >>> from ntkrobust_sk import load_digits_images
    >>> X, y = load_digits_images()
    >>> display = ImageGridDisplay({"scans": X[:5], "negatives": 1 - X[:5]}, titles=y[:5]).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['scans', 'negatives']
    """

    def __init__(self, images: dict, titles: Iterable[str] | None = None):
        self.images = mapping_of("images", images, "images", pictures)
        shapes = {values.shape[:3] for values in self.images.values()}
        if len(shapes) > 1:
            raise ValueError(f"images must be as many in each row and of one size, got {sorted(shapes)}")
        ((n_columns, *_),) = shapes
        self.titles = None if titles is None else names_of("titles", titles, n_columns)

    @classmethod
    def from_evolution(
        cls,
        result: Run,
        kind: str = "regression",
        *,
        seed: int = 0,
        regimes: Regimes = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw what maximises each class's direction in each regime's kernel: "regression" or "eigenvector".

        ``result`` is a run's results, or its folder; ``style`` are keywords of ``plot``.
        """
        cls._require_style(style)
        result, images = result_of(result), {}
        for regime in regimes_of(result, regimes):
            found = result.images(integer("seed", seed, low=0), regime)
            check_choice("kind", kind, found)
            images[regime] = found[kind]
        n_classes = len(next(iter(images.values())))
        return cls(images, [f"class {c}" for c in range(n_classes)]).plot(ax, **style)

    def plot(self, ax: Axes | None = None, *, im_kw: Style = None) -> Self:
        """Draw into the given axes, or into new ones; ``im_kw`` are keywords for ``ax.imshow``."""
        im_kw = styled("im_kw", im_kw, interpolation="nearest")
        ax = self._axes(ax)
        rows = [np.clip(images.astype(float), 0, 1) for images in self.images.values()]
        height, width = rows[0].shape[1:3]
        # a gap of a twelfth, transparent
        gap = max(1, height // 12)
        canvas = np.ones((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 4))
        canvas[..., 3] = 0
        for i, images in enumerate(rows):
            for j, image in enumerate(images):
                at = np.s_[
                    i * (height + gap) : i * (height + gap) + height, j * (width + gap) : j * (width + gap) + width
                ]
                canvas[at][..., :3] = np.broadcast_to(image, (height, width, 3)) if image.shape[-1] == 1 else image
                canvas[at][..., 3] = 1
        ax.imshow(canvas, **im_kw)
        ax.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], list(self.images))
        titles = self.titles or [""] * len(rows[0])
        ax.set_xticks([j * (width + gap) + width / 2 for j in range(len(titles))], titles)
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
        ax.spines[:].set_visible(False)
        return self


def pictures(name: str, values: ArrayLike) -> np.ndarray:
    """Return images (m, h, w, c) that can be drawn, or raise."""
    values = array(name, values, ndim=4, finite=True)
    if values.shape[3] not in (1, 3) or not values.size:
        raise ValueError(f"{name} must be images (m, h, w, c) with c = 1 or 3, got {values.shape}")
    return values
