"""What all adapters of networks share: libraries on need, hashable configuration, the mode of a module."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields

from .model import Network

# Names under which modules are told their mode, and what each says in training.
MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def require(name: str, library: str):
    """Import the module ``name``, or raise an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{library} networks need {library}, which could not be imported ({error}); "
            "pip install 'ntkrobust_sk[nets]'"
        ) from error


def without_lists(linen, value, made: dict):
    """Return a Linen module with the lists in its fields made tuples, as Linen does when it runs a module."""
    if type(value) in (list, tuple):
        return tuple(without_lists(linen, item, made) for item in value)
    if not isinstance(value, linen.Module):
        return value
    # A module object that occurs twice shares its weights, so its copies have to be one object too.
    if id(value) not in made:
        names = {entry.name for entry in fields(value) if entry.init} - {"parent", "name"}
        made[id(value)] = value.clone(**{name: without_lists(linen, getattr(value, name), made) for name in names})
    return made[id(value)]


def mode(function: Callable, train: bool) -> dict[str, bool]:
    """Return the arguments that set the mode of ``function``, by the names that it knows."""
    known = inspect.signature(function).parameters
    return {name: bool(train) is meaning for name, meaning in MODE_ARGUMENTS.items() if name in known}


def check_hashable(configuration) -> None:
    """Raise TypeError unless compiled code can be looked up by ``configuration``."""
    try:
        hash(configuration)
    except TypeError as error:
        raise TypeError(
            "the module's configuration must be hashable, so that code compiled for it is found again; use "
            f"tuples for lists, and hold arrays as parameters or state: {error}"
        ) from error


def already_built(network: Network, adapter: str) -> ValueError:
    """Make the error for ``init`` of a network whose module was built with its weights."""
    return ValueError(
        f"a {type(network).__name__} cannot draw weights, because its module was built with them; use the "
        f"Model that {adapter} returned, not only its network"
    )
