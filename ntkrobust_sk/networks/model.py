"""Networks: frozen configuration on one side, arrays on the other.

A *network* says how logits are computed, a *model* is a network together with its variables. Whatever has
``init`` and ``apply`` of the right form is a network; the ones here are what most experiments need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from numpy.typing import DTypeLike

from .._portable import Portable
from .._validation import brief
from ..saving.savable import Savable
from .inputs import LogitsAndState, PyTree, all_finite, are_finite, finite_inputs, n_params


class Variables(NamedTuple):
    """The arrays that a network needs besides its configuration.

    Attributes
    ----------
    params : pytree of arrays
        What is trained, and what the tangent kernel differentiates with respect to.
    state : pytree of arrays, default=()
        What is not: batch-norm statistics, or the anchor of a linearisation.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP
    >>> variables = MLP(n_outputs=2, widths=(3,)).init(jax.random.key(0), (4,))
    >>> [leaf.shape for leaf in jax.tree.leaves(variables.params)], variables.state
    ([(3,), (4, 3), (2,), (3, 2)], ())
    """

    params: PyTree
    state: PyTree = ()


@runtime_checkable
class Network(Protocol):
    """Anything hashable with these two methods; see :class:`MLP` for the smallest example.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import Model, Variables
    >>> @dataclass(frozen=True)
    ... class Linear:
    ...     n_outputs: int
    ...
    ...     def init(self, key, input_shape):
    ...         return Variables(jax.random.normal(key, (*input_shape, self.n_outputs)))
    ...
    ...     def apply(self, params, state, x, *, train=False):
    ...         return x @ params, state
    >>> network = Linear(n_outputs=2)
    >>> Model(network, network.init(jax.random.key(0), (4,)))(jax.numpy.ones((3, 4))).shape
    (3, 2)
    """

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw variables for inputs of shape ``input_shape``, the batch axis left out."""
        ...

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False) -> LogitsAndState:
        """Return logits (n, C) and the new state; an argument ``key=None`` is random in training."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Model(Savable, Portable):
    """A network with its variables: an immutable function from inputs to logits.

    A pytree whose leaves are the variables, so that compiled code is reused for new weights.

    Parameters
    ----------
    network : Network
    variables : Variables

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP
    >>> network = MLP(n_outputs=3, widths=(16,))
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> model(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """

    network: Network = field(metadata={"static": True})
    variables: Variables

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute logits (n, C) of inputs (n, ...), in evaluation mode.

        Integers reach the network as integers, as token numbers have to; it is the network that makes numbers of
        them, or not (ours take them as numbers, so images of dtype uint8 are what they are as floats). All other
        inputs come in the dtype of the parameters.

        Raises
        ------
        ValueError
            If the network cannot take inputs of this shape and dtype.
            For inputs that are not finite, where they are known: on the host, and outside of ``jit``.
        TypeError
            For what is no array of numbers, and for a network that is no function of traced arrays.
        """
        if not isinstance(self.variables, Variables):
            require_model(self)
        params, state = self.variables
        try:
            x = finite_inputs("x", x, params)
        except TypeError:
            require_model(self)  # the parameters may be what is wrong
            raise
        try:
            logits, _ = self.network.apply(params, state, x, train=False)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, jax.errors.UnexpectedTracerError) as error:
            raise _not_of_jax(self, error) from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise _not_for_these(self, x, error) from error
        except Exception:
            require_model(self)  # once more: what raises errors of its own kind may be a parameter
            raise
        return logits

    def __repr__(self) -> str:
        if not isinstance(self.variables, Variables):
            return f"Model({self.network!r}, {brief(self.variables)})"
        return f"Model({self.network!r}, n_params={n_params(self.variables.params):,})"


def check_model(
    model: Callable, input_shape: tuple[int, ...], dtype: DTypeLike | None = None, name: str = "X"
) -> int:
    """Find the number C of logits of a model, without computing them.

    Parameters
    ----------
    model : Model, or any other pytree that maps inputs (n, ...) to logits (n, C)
    input_shape : tuple of int
        Shape of one input.
    dtype : dtype, default=None
        Of the inputs; None is JAX's default floating dtype.
    name : str, default="X"
        Of the inputs, for the error where they are complex, and logits therefore are.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the model cannot take such inputs, or returns anything but one array (n, C) of real floating numbers.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import MLP
    >>> network = MLP(n_outputs=3)
    >>> check_model(Model(network, network.init(jax.random.key(0), (4,))), (4,))
    3
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    for n in (5, 6):  # one of them is not C
        x = jax.ShapeDtypeStruct((n, *input_shape), dtype)
        logits = jax.eval_shape(_logits, model, x)
        shape = jax.tree.map(jnp.shape, logits)
        if not isinstance(logits, jax.ShapeDtypeStruct) or len(shape) != 2 or shape[0] != n:
            raise ValueError(
                f"network must return logits of shape (n, C), got {shape} from inputs {x.shape}, tried with "
                f"n = {n}; return one array with a row for each input, such as scores[:, None] for one output"
            )
        if shape[1] != n:
            break
    if jnp.issubdtype(logits.dtype, jnp.complexfloating) and jnp.issubdtype(jnp.dtype(dtype), jnp.complexfloating):
        raise ValueError(
            f"{name} holds complex numbers, of which the network makes complex logits; write {name}.real or "
            f"abs({name}), or let the network return real ones"
        )
    if shape[1] == 0 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"network must return one or more real floating logits for each input, got shape {shape} and dtype "
            f"{logits.dtype}"
        )
    return shape[1]


@jax.jit
def _logits(model, x):
    # compiled for nothing, but what has been traced once is found again
    return model(x)


def require_model(model: object, name: str = "model") -> Model:
    """Return a :class:`Model` that has real parameters, or say what came and what to write instead.

    The one check of whatever takes a model. Costs some microseconds for each parameter array; values of arrays
    that are being traced are not looked at.

    Parameters
    ----------
    model : Model
    name : str, default="model"
        Of the argument, for the error.

    Raises
    ------
    TypeError
        For what is no Model, and for parameters that are no real floating arrays.
    ValueError
        For a model without parameters, and for parameters that are not finite.

    Examples
    --------
    >>> from ntkrobust_sk import MLP
    >>> require_model(MLP(n_outputs=3))
    Traceback (most recent call last):
    TypeError: model must be a ntkrobust_sk.Model, got MLP(...); it is a network without variables: write
    Model(network, network.init(jax.random.key(0), input_shape))
    """
    if not isinstance(model, Model):
        raise TypeError(f"{name} must be a ntkrobust_sk.Model, got {brief(model)}{advice(model)}")
    require_network(model.network, f"{name}.network")
    if not isinstance(model.variables, Variables):
        raise TypeError(
            f"{name}.variables must be Variables(params, state), got {brief(model.variables)}; write "
            "Model(network, Variables(params)), or Variables(params, state) where the network has a state"
        )
    leaves = jax.tree.leaves(model.variables.params)
    for i, leaf in enumerate(leaves):
        if not _is_real(leaf):
            raise _no_parameter(f"{name}.variables.params", model.variables.params, i)
    if sum(math.prod(jnp.shape(leaf)) for leaf in leaves) == 0:
        raise ValueError(
            f"{name} has no parameters, so it has no gradients: its params are {brief(model.variables[0])}"
        )
    if not are_finite(leaves):
        at = next(i for i, leaf in enumerate(leaves) if not all_finite([leaf]))
        raise ValueError(
            f"{_place(f'{name}.variables.params', model.variables.params, at)} contains NaN or infinity"
        )
    return model


def require_network(network: Any, name: str = "network") -> Network:
    """Return what has a network's ``apply``, or raise a TypeError that says what came.

    ``init`` is needed by those alone who draw variables.
    """
    if isinstance(network, type) or is_foreign(network) or not callable(getattr(network, "apply", None)):
        raise TypeError(f"{name} must be a network such as MLP(), got {brief(network)}{advice(network)}")
    return network


def is_foreign(value) -> bool:
    """Tell whether this is a module of Flax, Haiku or Equinox."""
    return any(cls.__module__.startswith(("flax.", "haiku.", "equinox.")) for cls in type(value).__mro__)


def failure(model, shape, dtype, error, argument: str = "") -> ValueError:
    """Make the error to raise where a function from inputs (n, ...) to scores fails on this shape."""
    value = model.func if isinstance(model, Partial) else model
    way = advice(value) if is_foreign(value) else ""
    said = ", ".join(map(str, ("n", *shape[1:]))) + ("," if len(shape) == 1 else "")
    return ValueError(
        f"{argument}the model fails on inputs of shape ({said}), {dtype}: {type(error).__name__}: {error}{way}"
    )


def _is_real(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) if hasattr(leaf, "dtype") else isinstance(leaf, float)


def _place(name, params, at) -> str:
    return name + jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(params)[at][0])


def _no_parameter(name, params, at) -> TypeError:
    leaf, place = jax.tree.leaves(params)[at], _place(name, params, at)
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    way = (
        "parameters are what is differentiated with respect to: hold what is not trained in the state, "
        "Variables(params, state), or in the network itself"
    )
    if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.complexfloating):
        way = (
            "kernels and training differentiate with respect to real parameters: hold the real and the imaginary "
            "part as two arrays, and make one of them in the network with jax.lax.complex(re, im)"
        )
    return TypeError(f"{place} must be a real floating array, got dtype {dtype}; {way}")


# Modules of other libraries, by the beginning of "module" or "package:class".
INSTEAD = {
    "flax.linen": "it is a Flax module: write from_flax(module, variables)",
    "flax.nnx": "it is a Flax NNX module: write from_nnx(module)",
    "equinox": "it is an Equinox module: write from_equinox(module)",
    "haiku:Transformed": "it is a Haiku function: write from_haiku(transformed, params)",
    "torch:Module": "PyTorch's modules cannot be differentiated by JAX: write the network in JAX, Flax, Equinox "
    "or Haiku",
}


def advice(value) -> str:
    """Say what to write instead of a value that is no model, or nothing."""
    if isinstance(value, type):
        return f"; it is a class: write {value.__name__}(...), with its parameters, and make a Model of it"
    names = [cls.__module__ for cls in type(value).__mro__]
    names += [f"{cls.__module__.split('.')[0]}:{cls.__name__}" for cls in type(value).__mro__]
    cases = [(any(name.startswith(of) for name in names), way) for of, way in INSTEAD.items()] + [
        (
            isinstance(value, Model),
            "it is a Model: pass its .network, and make a Model of the result with its .variables",
        ),
        (isinstance(value, Variables), "it is variables without a network: write Model(network, variables)"),
        (isinstance(getattr(value, "model_", None), Model), "it is an estimator: pass its model_"),
        (isinstance(getattr(value, "model", None), Model), "it holds a model: pass its .model"),
        (
            "sklearn:BaseEstimator" in names,
            "it is an estimator, which has no parameters to differentiate: pass the model_ of a fitted "
            "AdversarialKernelTrainer or EmpiricalNTKClassifier",
        ),
        (
            isinstance(value, Network),
            "it is a network without variables: write Model(network, network.init(jax.random.key(0), "
            "input_shape))",
        ),
        (
            isinstance(value, tuple) and any(callable(part) or isinstance(part, Network) for part in value),
            "write Model(network, variables), or from_stax(init_fn, apply_fn, params=params) for two functions",
        ),
        (
            callable(value),
            "a function needs its parameters apart: write Model(Stateless(function), Variables(params)) with "
            "function(params, x) -> logits (n, C)",
        ),
    ]
    return next((f"; {way}" for holds, way in cases if holds), "")


AS_INDEX = (
    "took one for an index or a size of Python ({}); index with jnp arrays, take sizes from x.shape, and write "
    "jnp.where(mask, a, b) instead of a[mask]"
)
# What a network did with a traced array, by the error of JAX, and what to write instead.
MISUSES = {
    jax.errors.TracerArrayConversionError: "made a NumPy array of one ({}); write jnp (jax.numpy) instead of np",
    jax.errors.TracerBoolConversionError: "decided by the value of one (if, while, and, or) ({}); write "
    "jnp.where(condition, a, b) or jax.lax.cond instead",
    jax.errors.TracerIntegerConversionError: AS_INDEX,
    jax.errors.NonConcreteBooleanIndexError: AS_INDEX,
    jax.errors.UnexpectedTracerError: "kept one for a later call ({}); return what is needed, and keep nothing in "
    "attributes or globals",
    Exception: "took one for a number of Python (float, int, item, range) ({}); leave it an array, such as "
    "x.sum() in place of float(x.sum())",
}


def _not_of_jax(model, error) -> TypeError:
    said = next(said for kind, said in MISUSES.items() if isinstance(error, kind))
    return TypeError(
        "the network must be a JAX function of traced arrays, which have shapes but no values yet, but it "
        f"{said.format(type(error).__name__)}. The network is {brief(model.network)}"
    )


def _not_for_these(model, x, error) -> ValueError:
    said = str(error).strip().split("\n")[0] or type(error).__name__
    hint = ""
    if _takes(model, x[None]):
        hint = "; it takes one input of this shape: write X[None]"
    elif jnp.issubdtype(x.dtype, jnp.integer):
        hint = "; integers reach a network as they are: pass X.astype(np.float32) to one that takes numbers"
    shape = ("n", *x.shape[1:]) if x.ndim else ()
    return ValueError(
        f"the network cannot take inputs of shape ({', '.join(map(str, shape))}) and dtype {x.dtype}: {said} "
        f"({type(error).__name__}); check that X has the shape (n, ...) that the network and its parameters were "
        f"made for{hint}. The network is {brief(model.network)}"
    )


def _takes(model, x) -> bool:
    """Tell whether a model takes such inputs, without computing anything."""
    try:
        jax.eval_shape(lambda x: model.network.apply(*model.variables, x, train=False), x)
    except Exception:  # a stranger's function may raise anything
        return False
    return True
