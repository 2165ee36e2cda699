"""Fitted estimators from files that the command is given."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from .._files import require_file
from .._portable import SavedArray
from .._validation import check_path
from ..networks.model import Model
from ..saving import SavedFileError, load
from ..saving.archive import is_saved_file
from ..saving.registry import own_classes

# Types that a file of skops may build besides scikit-learn's: data alone, which runs nothing when it is built.
TRUSTED = (*own_classes(), SavedArray)
# How files of ``save`` are named, if nobody names them otherwise; what a file holds decides.
SUFFIX = ".ntk"


def load_estimator(path: str | os.PathLike, say: Callable[[str], object] | None = None) -> Any:
    """Load a fitted estimator from a file of its ``save``, of skops or of joblib; what the file holds says which.

    A file of ``save`` is data, of which :func:`~ntkrobust_sk.load` makes objects of registered classes.
    skops builds only objects of types that are known to be harmless: scikit-learn's, and this library's own.
    Loading a file of joblib runs whatever code is in it: load only what you trust. Only the first two have
    checksums, so only there is a changed file sure to be found.

    Parameters
    ----------
    path : path
    say : callable, default=None
        Called with one line of text before a file of joblib is loaded, and where another version of scikit-learn
        has written it.

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file, or no skops to read it.
    ValueError
        If the file cannot be read, or holds something else than a fitted estimator.
    """
    path = check_path("path", path)
    loaded = _loaded(path, say)
    if isinstance(loaded, type) or not (hasattr(loaded, "fit") and hasattr(loaded, "predict")):
        raise ValueError(f"{path} holds {type(loaded).__name__}, which is no estimator that predicts")
    try:
        check_is_fitted(loaded)
    except (NotFittedError, TypeError) as error:
        raise ValueError(f"{path} holds an estimator that is not fitted: {error}") from error
    return loaded


def load_model(path: str | os.PathLike, say: Callable[[str], object] | None = None) -> Model:
    """Load a model from a file of its ``save``, or that of a fitted estimator of this library.

    Raises
    ------
    FileNotFoundError, ImportError
        As for :func:`load_estimator`.
    ValueError
        If the file cannot be read, or there is no network in what it holds.
    """
    path = check_path("path", path)
    loaded = _loaded(path, say)
    model = loaded if isinstance(loaded, Model) else getattr(loaded, "model_", None)
    if not isinstance(model, Model):
        raise ValueError(
            f"{path} holds {type(loaded).__name__}, in which there is no network: a Model or a fitted "
            "estimator of this library, such as AdversarialKernelTrainer, is expected"
        )
    return model


def _loaded(path: Path, say: Callable[[str], object] | None) -> Any:
    """Load what a file holds, with the function that its content asks for."""
    if not path.is_dir():
        require_file(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; the path of a fitted estimator is expected, saved with its save method, or "
            "with skops.io.dump or joblib.dump"
        )
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    own = is_saved_file(path) or path.suffix.lower() == SUFFIX
    if path.suffix.lower() == ".skops" and not archive and not own:
        raise ValueError(
            f"{path} is named as a skops file, but is none, or its beginning is damaged; if joblib wrote it, name "
            "it .joblib"
        )
    if not (archive or own) and say is not None:
        say(f"loading {path} with joblib runs whatever code is in it; a file of save or of skops does not")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            loaded = load(path) if own else _load_skops(path) if archive else joblib.load(path)
    except (ImportError, SavedFileError):
        raise
    except Exception as error:  # whatever the code in a pickle may raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read by {'skops' if archive else 'joblib'}: {said}") from error
    _tell_of(warned, path, say)
    return loaded


def _tell_of(warned: list[warnings.WarningMessage], path: Path, say: Callable[[str], object] | None) -> None:
    """Say one line for all estimators of another version of scikit-learn, and warn of all else as it was."""
    of_versions = [one.message for one in warned if isinstance(one.message, InconsistentVersionWarning)]
    for one in warned:
        if say is None or one.message not in of_versions:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if say is not None and of_versions:
        first = of_versions[0]
        say(
            f"{path} was written with scikit-learn {first.original_sklearn_version}, and here is "
            f"{first.current_sklearn_version}: it may fail, or give other answers"
        )


def _load_skops(path: Path) -> Any:
    """Load a file of skops, which builds only objects of types that are known to be harmless."""
    try:
        import skops.io
    except ImportError as error:
        raise ImportError("reading .skops files needs skops: pip install skops") from error
    from ..sklearn_kernels.ntk_kernel import NTKKernel

    known = [f"{kind.__module__}.{kind.__qualname__}" for kind in (*TRUSTED, NTKKernel)]
    return skops.io.load(path, trusted=known)
