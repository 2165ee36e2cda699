"""scikit-learn's callbacks of an estimator that trains by epochs, where scikit-learn has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import sklearn

try:
    from sklearn.callback import (
        CallbackSupportMixin,  # pyright: ignore[reportAssignmentType]
        with_callbacks,
    )
except ImportError:  # scikit-learn 1.8

    class CallbackSupportMixin:  # pyright: ignore[reportRedeclaration]
        """What takes callbacks in scikit-learn 1.9, and says so before."""

        def set_callbacks(self, *callbacks: Any) -> Self:
            """Raise ImportError, unless there are no callbacks."""
            if callbacks:
                raise ImportError(
                    f"callbacks need scikit-learn 1.9 or newer, and this is {sklearn.__version__}; verbose=1 "
                    f"shows a "
                    "progress bar without them, and early_stopping=True keeps validation_scores_"
                )
            return self

    def with_callbacks(method: Callable) -> Callable:
        """Return the method as it is."""
        return method


class EpochCallbacks:
    """Tells an estimator's callbacks of a fit and of its epochs; without any it does nothing.

    Parameters
    ----------
    estimator : estimator
    n_epochs : int
    X, y : array (n, ...)
        What it is fitted on, with labels as they came.
    """

    def __init__(self, estimator: Any, n_epochs: int, X: Any, y: Any):
        self.n_epochs, self.data = n_epochs, {"estimator": estimator, "X": X, "y": y}
        begin = getattr(estimator, "_init_callback_context", None)
        self.fit = None if begin is None else begin(max_subtasks=n_epochs)
        if self.fit is not None:
            self.fit.call_on_fit_task_begin(**self.data)
        self.epoch = None

    def begin(self, done: int) -> None:
        """Tell that an epoch begins, if there is another after so many."""
        if self.fit is not None and done < self.n_epochs:
            self.epoch = self.fit.subcontext(task_name="epoch").call_on_fit_task_begin(**self.data)

    def end(self, fitted: Callable[[], dict[str, Any]]) -> bool:
        """Tell that an epoch has ended; return whether a callback asks to stop.

        ``fitted`` gives the attributes of the estimator as if training ended here.
        """
        if self.epoch is None:
            return False
        return bool(self.epoch.call_on_fit_task_end(**self.data, reconstruction_attributes=fitted))

    def finish(self) -> None:
        """Tell that the fit has ended."""
        if self.fit is not None:
            self.fit.call_on_fit_task_end(**self.data, reconstruction_attributes=dict)
