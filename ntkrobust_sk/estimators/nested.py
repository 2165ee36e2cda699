"""Parameters of parameters, by scikit-learn's names: ``attack__epsilon`` is the field of a frozen dataclass.

An attack, a network or a solver is never changed. Setting one of its fields puts another object in the estimator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Self

import jax
from sklearn.base import BaseEstimator

from .._validation import brief


class NestedParameters(BaseEstimator):
    """An estimator whose parameters may be dataclasses, the fields of which are parameters too."""

    def _objects_by_name(self, name: str) -> Mapping[str, Any]:
        """Return the objects that strings stand for in a parameter: ``"cholesky"`` for ``Cholesky()``."""
        return {}

    def _examples_of(self, name: str) -> str:
        """Return examples of what has fields in a parameter, for messages; nothing where nothing has."""
        return ""

    def _held(self, name: str) -> Any:
        """Return the object in a parameter, also where the parameter is its name."""
        value = getattr(self, name)
        return self._objects_by_name(name).get(value, value) if isinstance(value, str) else value

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the estimator's parameters by name.

        Parameters
        ----------
        deep : bool, default=True
            Also those of what the parameters hold: of estimators, and of attacks, networks, kernels and solvers
            (``attack__epsilon``). A solver or network by name has those of the object that the name stands for.

        Returns
        -------
        dict
        """
        params = super().get_params(deep=deep)
        if deep:
            for name in self._get_param_names():
                params.update(_within(name, self._held(name)))
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of what the parameters hold.

        Parameters
        ----------
        **params
            By name: ``alpha``, ``attack``; ``estimator__max_epochs`` of an estimator within; ``attack__epsilon``
            of an attack, network, kernel or solver within, and ``attack__bounds__mask`` of what that holds. Whole
            objects are set before their fields. A field's new value is put in a copy of the object.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a name that there is not, which lists those that there are; where a parameter holds nothing with
            fields; and for values that the object does not take.
        TypeError
            For values of a wrong kind.
        """
        whole, parts = _by_depth(params)
        super().set_params(**whole)
        for name, changes in parts.items():
            held = self._held(name) if name in self._get_param_names() else None
            if _has_fields(held):
                changed = with_fields(name, held, changes)
                # a name stays one where nothing is changed, as in set_params(**get_params())
                if not isinstance(getattr(self, name), str) or changed != held:
                    setattr(self, name, changed)
            elif name in self._get_param_names() and not hasattr(held, "set_params"):
                raise ValueError(self._without_fields(name, next(iter(changes))))
            else:
                super().set_params(**{f"{name}__{part}": value for part, value in changes.items()})
        return self

    def _get_params_html(self, deep: bool = True, *args: Any, **options: Any) -> Any:
        # of whole objects, whose text names their fields: scikit-learn would mark each field as the user's choice
        base: Any = super()
        return base._get_params_html(False, *args, **options)

    def _without_fields(self, name: str, part: str) -> str:
        """Return the message for a parameter that holds nothing whose fields can be set."""
        examples = self._examples_of(name)
        way = f"; set {name} first, or in the same call, to {examples}" if examples else ""
        return (
            f"Invalid parameter {f'{name}__{part}'!r} for estimator {brief(self)}: {name} is "
            f"{brief(getattr(self, name))}, which has no parameters of its own{way}"
        )


def with_fields(name: str, value: Any, changes: Mapping[str, Any]) -> Any:
    """Return a copy of a dataclass with other fields, also of dataclasses within it.

    Parameters
    ----------
    name : str
        What messages call the value.
    value : dataclass
    changes : mapping
        New values by field; ``bounds__mask`` is the field ``mask`` of what the field ``bounds`` holds.

    Returns
    -------
    dataclass of the same class

    Raises
    ------
    ValueError
        For fields that there are not, and for values that the dataclass refuses.
    TypeError
        For values that the dataclass refuses as of a wrong kind.

    Examples
    --------
    >>> from ntkrobust_sk import MLP, MixedPrecision
    >>> with_fields("net", MixedPrecision(MLP()), {"precision": "tf32", "network__widths": (8,)}).network.widths
    (8,)
    """
    whole, parts = _by_depth(changes)
    names = [f.name for f in fields(value) if f.init]
    for part in (*whole, *parts):
        if part not in names:
            raise ValueError(
                f"Invalid parameter {part!r} for {name} {brief(value)}. Valid parameters are: {names!r}"
            )
    for part, within in parts.items():
        held = whole.get(part, getattr(value, part))
        if not _has_fields(held):
            raise ValueError(
                f"Invalid parameter {next(iter(within))!r} for {name}__{part} {brief(held)}, which has no "
                f"parameters of its own; set {name}__{part} to an object that has, first or in the same call"
            )
        whole[part] = with_fields(f"{name}__{part}", held, within)
    try:
        return replace(value, **whole)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name}__{part}={brief(new)}" for part, new in whole.items())
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{given}: {error}") from error


def _has_fields(value: Any) -> bool:
    """Whether a value is configuration: a dataclass that is no estimator, and no pytree, which holds arrays."""
    if not is_dataclass(value) or isinstance(value, type) or hasattr(value, "get_params"):
        return False
    return jax.tree_util.all_leaves([value])


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of what is configuration, by the parameter's name and theirs."""
    if _has_fields(value):
        for f in fields(value):
            if f.init:
                part, held = f"{name}__{f.name}", getattr(value, f.name)
                yield part, held
                yield from _within(part, held)


def _by_depth(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split parameters into whole ones, and those of what a parameter holds, by the parameter's name."""
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        name, is_part, part = key.partition("__")
        if is_part:
            parts.setdefault(name, {})[part] = value
        else:
            whole[name] = value
    return whole, parts
