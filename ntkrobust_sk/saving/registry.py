"""What saved files may hold, by name: this library's own classes, and those that users register.

A name in a file is looked up here and nowhere else. So a file chooses among what is known, and can neither import
a module nor name a function that nobody has entered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, TypeVar

from sklearn.base import BaseEstimator

from .._validation import brief

# This library's own classes, and one of scikit-learn's that ours hold, by modules. These lie below this one, so
# they are imported when a file needs them. A name in this table is in files, and stays.
MODULES = {
    "ntkrobust_sk.networks.feedforward": "MLP CNN",
    "ntkrobust_sk.networks.resnet": "ResNet18",
    "ntkrobust_sk.networks.wrappers": "Normalized Stateless",
    "ntkrobust_sk.networks.precision": "MixedPrecision",
    "ntkrobust_sk.networks.chosen_parameters": "Restricted",
    "ntkrobust_sk.networks.model": "Model Variables",
    "ntkrobust_sk.tangent.linearization": "Linearized",
    "ntkrobust_sk.kernels.ntk": "TraceNTK ClassNTK FullNTK PseudoNTK CallableKernel",
    "ntkrobust_sk.kernels.projected": "ProjectedNTK",
    "ntkrobust_sk.kernels.infinite": "InfiniteNTK",
    "ntkrobust_sk.kernels.predictors": "PrimalPredictor DualPredictor",
    "ntkrobust_sk.solvers.direct": "Cholesky Eigh",
    "ntkrobust_sk.solvers.iterative": "ConjugateGradient",
    "ntkrobust_sk.solvers.nystrom": "Nystrom",
    "ntkrobust_sk.solvers.eigenpro": "EigenPro",
    "ntkrobust_sk.attacks.pgd": "Clean PGD FGSM NFGSM",
    "ntkrobust_sk.attacks.apgd": "APGD",
    "ntkrobust_sk.attacks.autoattack": "AutoAttack",
    "ntkrobust_sk.attacks.fab": "FAB",
    "ntkrobust_sk.attacks.fmn": "FMN DDN",
    "ntkrobust_sk.attacks.sigma_zero": "SigmaZero",
    "ntkrobust_sk.attacks.square": "Square",
    "ntkrobust_sk.attacks.boxes": "Box",
    "ntkrobust_sk.training.objectives": "AdversarialTraining TRADES MART AWP",
    "ntkrobust_sk.training.schedules": "Cosine MultiStep",
    "ntkrobust_sk.training.augmentations": "Flip Crop",
    "ntkrobust_sk.estimators.trainer": "AdversarialKernelTrainer",
    "ntkrobust_sk.estimators.kernel_machines": "EmpiricalNTKClassifier EmpiricalNTKRegressor",
    "ntkrobust_sk.estimators.kernel_machines_cv": "EmpiricalNTKClassifierCV EmpiricalNTKRegressorCV",
    "ntkrobust_sk.estimators.tangent_features": "TangentFeatures",
    "ntkrobust_sk.estimators.robust_features": "RobustFeatureSelector",
    "sklearn.frozen": "FrozenEstimator",
}
OWN = {name: module for module, names in MODULES.items() for name in names.split()}
# What users have registered, by name; names of their own have a dot, and so are never ours.
REGISTERED: dict[str, Any] = {}

T = TypeVar("T", bound=Callable)


def saved_as(name: str) -> Callable[[T], T]:
    """Register a class or function of your own under a name, so that saved files may hold it.

    Files hold the name and the fields, never the code: whoever loads such a file imports first the module in which
    this decorator stands.

    Parameters
    ----------
    name : str
        With a dot in it, such as ``"lab.Linear"``, so that it is never one of this library's. Files keep it: it
        stays when the class is renamed or moved.

    Returns
    -------
    callable
        A decorator, which returns what it is given: a frozen dataclass of plain values and arrays (a network, a
        kernel, an attack), a NamedTuple (in a network's parameters), a function, or the class of a scikit-learn
        estimator.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a name without a dot, and for one that something else has.

    Examples
    --------
    >>> import tempfile
    >>> from dataclasses import dataclass
    >>> import jax
    >>> from ntkrobust_sk import Model, Variables, saved_as
    >>> @saved_as("lab.Linear")
    ... @dataclass(frozen=True)
    ... class Linear:
    ...     n_outputs: int
    ...
    ...     def init(self, key, input_shape):
    ...         return Variables(jax.random.normal(key, (*input_shape, self.n_outputs)))
    ...
    ...     def apply(self, params, state, x, *, train=False):
    ...         return x @ params, state
    >>> model = Model(Linear(2), Linear(2).init(jax.random.key(0), (3,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/linear.ntk")
    ...     Model.load(f"{folder}/linear.ntk").network
    Linear(n_outputs=2)
    """
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(parts) or not name.isprintable():
        raise ValueError(f"name must be text with a dot in it, such as 'lab.Linear', got {brief(name)}")

    def register(thing: Any) -> Any:
        if not (is_configuration(thing) or is_estimator(thing) or is_function(thing)):
            raise TypeError(
                "saved_as takes a frozen dataclass, a NamedTuple, the class of an estimator, or a function, got "
                f"{brief(thing)}"
            )
        held = REGISTERED.get(name)
        # a cell of a notebook that runs again defines its classes anew
        if held is not None and _place(held) != _place(thing):
            raise ValueError(f"the name {name!r} is that of {_place(held)} already; give {_place(thing)} another")
        REGISTERED[name] = thing
        return thing

    return register


def _place(thing) -> str:
    return f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', thing.__name__)}"


def is_function(thing: Any) -> bool:
    """Tell whether this is a function with a name, of Python, NumPy or JAX.

    >>> import jax
    >>> is_function(len), is_function(jax.jit(len)), is_function(jax.nn.relu), is_function(int)
    (True, True, True, False)
    """
    return callable(thing) and not isinstance(thing, type) and isinstance(getattr(thing, "__name__", None), str)


def is_configuration(thing: Any) -> bool:
    """Tell whether this is a frozen dataclass or a NamedTuple, as a class."""
    if not isinstance(thing, type):
        return False
    if is_dataclass(thing):
        return thing.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    return issubclass(thing, tuple) and isinstance(getattr(thing, "_fields", None), tuple)


def is_estimator(thing: Any) -> bool:
    """Tell whether this is the class of a scikit-learn estimator."""
    return isinstance(thing, type) and issubclass(thing, BaseEstimator)


def name_of(thing: Any) -> str | None:
    """Return the name in files of a class or function, or None where it has none.

    >>> from ntkrobust_sk import MLP
    >>> name_of(MLP), name_of(print)
    ('MLP', None)
    """
    own = getattr(thing, "__name__", None)
    if isinstance(own, str) and own in OWN and found(own) is thing:
        return own
    return next((name for name, held in REGISTERED.items() if held is thing), None)


def found(name: str) -> Any:
    """Return the class or function of a name in a file.

    Raises
    ------
    LookupError
        If there is none; the message says how to register it.
    """
    if name in OWN:
        return getattr(import_module(OWN[name]), name)
    if name in REGISTERED:
        return REGISTERED[name]
    if "." not in name:
        raise LookupError(f"there is no {brief(name)} in this version of ntkrobust_sk")
    raise LookupError(
        f"{brief(name)} is not registered here: import the module whose class or function is decorated with "
        f"@saved_as({name!r}) before you load the file"
    )


def own_classes() -> tuple[type, ...]:
    """Return this library's own classes that files may hold."""
    return tuple(found(name) for name, module in OWN.items() if module.startswith("ntkrobust_sk."))
