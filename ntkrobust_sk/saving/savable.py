"""The methods ``save`` and ``load``, and loading whatever a file holds."""

from __future__ import annotations

import os
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from .._validation import check_path
from . import archive
from .archive import SavedFileError
from .registry import found
from .tree import decoded, encoded


class Savable:
    """What saves itself in a file whose loading runs no code from the file."""

    def save(self, path: str | os.PathLike) -> None:
        """Write this to one file, which :meth:`load` reads without running code from it.

        The file is a zip archive of JSON, safetensors and checksums. It holds all fitted attributes, and all
        parameters but for ``cache`` and ``gram_store``, which name places on this machine; so what is loaded
        gives the same answers to the bit. It is written whole or not at all, and replaces a file that was there.

        Parameters
        ----------
        path : path
            Such as ``"model.ntk"``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            For an estimator that is not fitted.
        TypeError
            For what a file cannot hold, such as a function of your own; the message names its place, and says how
            to register it by :func:`~ntkrobust_sk.saved_as`.
        OSError
            If the file cannot be written; what was there before is kept.
        """
        path = check_path("path", path)
        if hasattr(self, "fit"):
            check_is_fitted(self)
        archive.write(path, *encoded(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read what :meth:`save` has written.

        Parameters
        ----------
        path : path

        Returns
        -------
        object of this class

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        SavedFileError
            Naming the file, if it is damaged, of a newer version, or of another class.

        Warns
        -----
        UserWarning
            If JAX holds numbers of 64 bits in the file, and keeps 32 here.
        """
        return _load(path, cls)


def load(path: str | os.PathLike) -> Any:
    """Read a fitted estimator, a model or a predictor from a file that its ``save`` has written.

    No code from the file is run: it chooses by name among this library's classes and those that you registered.
    ``EmpiricalNTKClassifier.load(path)`` and its like take only files of their own class.

    Parameters
    ----------
    path : path

    Returns
    -------
    object

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SavedFileError
        Naming the file, if it is damaged, of a newer version, or holds what is not registered here.

    Warns
    -----
    UserWarning
        If JAX holds numbers of 64 bits in the file, and keeps 32 here.

    Examples
    --------
    >>> import tempfile
    >>> import jax
    >>> from ntkrobust_sk import MLP, Model, load
    >>> network = MLP(n_outputs=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Model(network, network.init(jax.random.key(0), (4,))).save(f"{folder}/model.ntk")
    ...     load(f"{folder}/model.ntk")
    Model(MLP(n_outputs=3, widths=(64,), activation='relu', zero_last_layer=False), n_params=515)
    """
    return _load(path, Savable)


def _load(path, wanted):
    path = check_path("path", path)
    tree, arrays = archive.read(path, lambda tree: _require_kind(path, tree, wanted))
    try:
        return decoded(tree, arrays)
    except MemoryError:
        raise
    except Exception as error:  # whatever classes raise that are made of what they do not take
        said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise SavedFileError(f"{path} cannot be loaded: {said}") from error


def _require_kind(path, tree, wanted):
    try:
        kind = found(tree["type"])
    except LookupError as error:
        raise SavedFileError(f"{path} cannot be loaded: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, wanted)):
        raise SavedFileError(
            f"{path} holds {tree['type']}, and {wanted.__name__} is wanted; {tree['type']}.load or "
            "ntkrobust_sk.load reads it"
        )
