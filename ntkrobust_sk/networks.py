"""Networks: frozen configuration on one side, arrays on the other.

A *network* says how logits are computed, a *model* is a network together with its variables. Whatever has
``init`` and ``apply`` of the right form is a network; the ones here are what most experiments need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ._portable import Portable
from ._validation import (
    LARGEST_COUNT,
    array,
    brief,
    brief_with_dtype,
    check_choice,
    fitting,
    flag,
    function,
    integer,
    is_finite,
    positive_tuple,
)
from .execution.devices import on_host
from .execution.keys import one_key

PyTree = Any
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


class Variables(NamedTuple):
    """What a network needs besides its configuration.

    Attributes
    ----------
    params : pytree of arrays
        What is trained, and what the tangent kernel differentiates with respect to.
    state : pytree of arrays, default=()
        What is not: batch-norm statistics, or the anchor of a linearisation.
    """

    params: PyTree
    state: PyTree = ()


@runtime_checkable
class Network(Protocol):
    """Anything hashable with these two methods; see :class:`MLP` for the smallest example."""

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw variables for inputs of shape ``input_shape``, the batch axis left out."""

    def apply(self, params: PyTree, state: PyTree, x: jax.Array, *, train: bool = False):
        """Return logits (n, C) and the new state."""


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["network"])
@dataclass(frozen=True, eq=False)
class Model(Portable):
    """A network with its variables: an immutable function from inputs to logits.

    A pytree whose leaves are the variables, so that compiled code is reused for new weights.

    Parameters
    ----------
    network : Network
    variables : Variables

    Examples
    --------
    >>> import jax
    >>> network = MLP(n_outputs=3, widths=(16,))
    >>> model = Model(network, network.init(jax.random.key(0), (4,)))
    >>> model(jax.numpy.ones((2, 4))).shape
    (2, 3)
    """

    network: Network
    variables: Variables

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (n, C) of inputs (n, ...), in evaluation mode.

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


def params_dtype(params: PyTree) -> jnp.dtype:
    """The floating dtype of a network's parameters, the one that holds all of them where they have several.

    >>> params_dtype({"body": jnp.zeros(2, jnp.float16), "head": jnp.zeros(2, jnp.float32)})
    dtype('float32')
    """
    found = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
    floating = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else jax.dtypes.canonicalize_dtype(float)


def as_inputs(x, params: PyTree, name: str = "x") -> jax.Array:
    """Inputs as a network with these parameters gets them: integers as they are, others in the parameters' dtype.

    >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
    >>> as_inputs([[1, 2]], params).dtype, as_inputs([[1.0, 2.0]], params).dtype
    (dtype('int32'), dtype(bfloat16))
    """
    is_series = isinstance(x, list | tuple) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
    if not isinstance(x, jax.Array) and not is_series:
        x = host_inputs(name, x, params)
    _require_numbers(name, x)
    return jnp.asarray(x, inputs_dtype(jnp.result_type(x), params))


def finite_inputs(name: str, x, params: PyTree) -> jax.Array:
    """The same as :func:`as_inputs`, or ValueError for NaN and infinity where inputs are known without waiting."""
    x = as_inputs(x, params, name)
    return require_finite(name, x)


def require_finite(name: str, x):
    """Inputs, or ValueError for NaN and infinity; those that are traced or on an accelerator are not looked at."""
    known = isinstance(x, np.ndarray) or (not isinstance(x, jax.core.Tracer) and on_host())
    if known and x.dtype.kind not in "biu" and not is_finite(np.asarray(x)):
        raise ValueError(f"{name} must be finite, but {brief(x)} has NaN or infinity")
    return x


def host_inputs(name: str, X, params: PyTree) -> np.ndarray:
    """The same as :func:`as_inputs`, in NumPy.

    Raises
    ------
    TypeError
        For what is no dense array of numbers.
    ValueError
        For rows of different lengths, and for numbers that JAX would cut off: integers, and what overflows.
    """
    _require_numbers(name, X)
    X = (
        np.asarray(X)
        if isinstance(X, jax.Array) or (not isinstance(X, list | tuple) and np.ndim(X) == 0)
        else array(name, X, kinds="biufc")
    )
    if X.dtype.kind not in "biufc" and not jnp.issubdtype(X.dtype, jnp.floating):
        raise TypeError(f"{name} must be an array of numbers, got {brief_with_dtype(X, X.dtype)}")
    dtype = inputs_dtype(X.dtype, params)
    return fitting(name, X, dtype)


def _require_numbers(name, x):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must be an array of numbers, got {brief(x)}")


def inputs_dtype(dtype, params: PyTree) -> np.dtype:
    """The dtype in which inputs of some dtype reach a network with these parameters."""
    if jnp.issubdtype(dtype, jnp.integer):
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    own = params_dtype(params)
    return np.dtype(jnp.result_type(own, jnp.complex64) if jnp.issubdtype(dtype, jnp.complexfloating) else own)


def n_params(params: PyTree) -> int:
    """Number P of scalar parameters.

    >>> n_params({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})
    8
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


@dataclass(frozen=True)
class Stateless:
    """A bare function ``apply_fn(params, x) -> logits`` as a network.

    Parameters
    ----------
    apply_fn : callable
        ``apply_fn(params, x)`` with x (n, ...) returns logits (n, C). Networks are compared by value: pass
        the same function object again, not a new lambda, to reuse compiled code.
    init_fn : callable, default=None
        ``init_fn(key, input_shape) -> params``. Without it the parameters have to be given:
        ``Model(Stateless(apply_fn), Variables(params))``.

    Examples
    --------
    >>> network = Stateless(lambda params, x: x @ params)
    >>> Model(network, Variables(jnp.ones((4, 2))))(jnp.ones((1, 4)))
    Array([[4., 4.]], dtype=float32)
    """

    apply_fn: Callable
    init_fn: Callable | None = None

    def __post_init__(self):
        if not callable(self.apply_fn):
            raise TypeError(f"apply_fn must be a function, got {brief(self.apply_fn)}{advice(self.apply_fn)}")
        function("apply_fn", self.apply_fn, "apply_fn(params, x)", 2)
        if self.init_fn is not None:
            function("init_fn", self.init_fn, "init_fn(key, input_shape)", 2)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Parameters from ``init_fn``."""
        if self.init_fn is None:
            raise ValueError(
                "this Stateless network has no init_fn, so it cannot draw parameters; give them instead: "
                "Model(Stateless(apply_fn), Variables(params))"
            )
        return Variables(self.init_fn(key, input_shape))

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the unchanged state."""
        return self.apply_fn(params, x), state


@dataclass(frozen=True)
class MLP:
    """Fully connected network on flattened inputs.

    Parameters
    ----------
    n_outputs : int, default=None
        Number C of logits. None lets an estimator fill in the number of classes of its data.
    widths : tuple of int, default=(64,)
        Units of each hidden layer.
    activation : {"relu", "gelu", "silu", "softplus", "tanh"}, default="relu"
    zero_last_layer : bool, default=False
        Start with logits that are zero everywhere, as the paper's networks do.

    Notes
    -----
    Weights are drawn from N(0, 2 / fan_in) (He et al. 2015, arXiv:1502.01852), those of the last layer from
    N(0, 1 / fan_in); biases start at zero.

    Examples
    --------
    >>> import jax
    >>> MLP(n_outputs=2, widths=(8,)).init(jax.random.key(0), (4,)).params["dense_1"]["kernel"].shape
    (8, 2)
    """

    n_outputs: int | None = None
    widths: tuple[int, ...] = (64,)
    activation: str = "relu"
    zero_last_layer: bool = False

    def __post_init__(self):
        check_outputs(self)
        object.__setattr__(self, "widths", positive_tuple("widths", self.widths))
        check_choice("activation", self.activation, ACTIVATIONS)
        flag("zero_last_layer", self.zero_last_layer)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for inputs of any shape; they are flattened."""
        key, input_shape = check_init(key, input_shape)
        sizes = (math.prod(input_shape), *self.widths, required_outputs(self))
        keys = jax.random.split(key, len(sizes) - 1)
        params = {}
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            gain = 2.0 if i < len(self.widths) else float(not self.zero_last_layer)
            params[f"dense_{i}"] = init_dense(keys[i], fan_in, fan_out, gain)
        return Variables(params)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the (empty) state."""
        h = as_numbers(x, params).reshape(x.shape[0], math.prod(x.shape[1:]))
        for i in range(len(self.widths)):
            h = ACTIVATIONS[self.activation](dense(params[f"dense_{i}"], h))
        return dense(params[f"dense_{len(self.widths)}"], h), state


@dataclass(frozen=True)
class CNN:
    """Plain convolutional network: 3×3 convolutions, global average pooling, one dense layer.

    Parameters
    ----------
    n_outputs : int, default=None
        Number C of logits. None lets an estimator fill in the number of classes of its data.
    widths : tuple of int, default=(32, 32, 64, 64)
        Channels of each convolution.
    strides : tuple of int, default=(1, 2, 2, 1)
        Stride of each convolution.
    kernel_size : int, default=3
        Side of the (square) filters, in pixels.
    activation : {"relu", "gelu", "silu", "softplus", "tanh"}, default="relu"
    zero_last_layer : bool, default=False
        Start with logits that are zero everywhere, as the paper's networks do.

    Examples
    --------
    >>> import jax
    >>> network = CNN(n_outputs=10)
    >>> model = Model(network, network.init(jax.random.key(0), (8, 8, 1)))
    >>> model(jax.numpy.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    n_outputs: int | None = None
    widths: tuple[int, ...] = (32, 32, 64, 64)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    kernel_size: int = 3
    activation: str = "relu"
    zero_last_layer: bool = False

    def __post_init__(self):
        check_outputs(self)
        object.__setattr__(self, "widths", positive_tuple("widths", self.widths))
        object.__setattr__(self, "strides", positive_tuple("strides", self.strides))
        object.__setattr__(self, "kernel_size", integer("kernel_size", self.kernel_size))
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"widths and strides need one entry for each convolution, got {len(self.widths)} widths "
                f"and {len(self.strides)} strides"
            )
        check_choice("activation", self.activation, ACTIVATIONS)
        flag("zero_last_layer", self.zero_last_layer)

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """Draw parameters for images of shape (h, w, c)."""
        key, input_shape = check_init(key, input_shape)
        n_outputs = required_outputs(self)
        channels = (image_channels(self, input_shape), *self.widths)
        keys = jax.random.split(key, len(channels))
        params = {}
        for i, (c_in, c_out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            kernel = init_conv(keys[i], self.kernel_size, c_in, c_out)
            params[f"conv_{i}"] = {"kernel": kernel, "bias": jnp.zeros(c_out, kernel.dtype)}
        gain = float(not self.zero_last_layer)
        params["dense"] = init_dense(keys[-1], channels[-1], n_outputs, gain)
        return Variables(params)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the (empty) state."""
        h = as_numbers(x, params)
        for i, stride in enumerate(self.strides):
            layer = params[f"conv_{i}"]
            h = ACTIVATIONS[self.activation](conv(layer["kernel"], h, stride) + layer["bias"])
        return dense(params["dense"], h.mean((1, 2))), state


@dataclass(frozen=True)
class Normalized:
    """A network on (x − mean) / std, so that attacks keep to the units of x.

    Parameters
    ----------
    network : Network
    mean, std : tuple of float
        One number for each channel (the last axis of the inputs), or one for all.

    Raises
    ------
    ValueError
        For a standard deviation that is not positive.

    Examples
    --------
    >>> import jax
    >>> network = Normalized(MLP(n_outputs=2), mean=(0.5,), std=(0.25,))
    >>> inner = Model(network.network, network.init(jax.random.key(0), (4,)))
    >>> x = jax.numpy.full((1, 4), 0.75)
    >>> bool((Model(network, inner.variables)(x) == inner((x - 0.5) / 0.25)).all())
    True
    """

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        require_network(self.network)
        for name in ("mean", "std"):
            values = np.ravel(array(name, getattr(self, name))).tolist()
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if not self.std or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be positive and finite, got {self.std}; a constant channel needs none")
        if not all(math.isfinite(value) for value in self.mean) or len(self.mean) not in (1, len(self.std)):
            raise ValueError(f"mean must be finite, one number or as many as std, got {self.mean} and {self.std}")

    def init(self, key: jax.Array, input_shape: tuple[int, ...]) -> Variables:
        """The network's own variables."""
        return self.network.init(key, input_shape)

    def apply(self, params, state, x, *, train=False):
        """Logits (n, C) and the network's new state."""
        x = as_numbers(x, params)
        mean, std = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype)
        return self.network.apply(params, state, (x - mean) / std, train=train)


def check_model(model: Callable, input_shape: tuple[int, ...], dtype=None, name: str = "X") -> int:
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
    if jnp.issubdtype(logits.dtype, jnp.complexfloating) and jnp.issubdtype(dtype, jnp.complexfloating):
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


def require_model(model, name: str = "model") -> Model:
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
    if sum(math.prod(jnp.shape(leaf)) for leaf in leaves) == 0:
        raise ValueError(
            f"{name} has no parameters, so it has no gradients: its params are {brief(model.variables[0])}"
        )
    for i, leaf in enumerate(leaves):
        if not _is_real(leaf):
            raise _no_parameter(f"{name}.variables.params", model.variables.params, i)
    if not all_finite(leaves):
        at = next(i for i, leaf in enumerate(leaves) if not all_finite([leaf]))
        raise ValueError(
            f"{_place(f'{name}.variables.params', model.variables.params, at)} contains NaN or infinity"
        )
    return model


def require_network(network, name: str = "network") -> Network:
    """Return what has a network's ``apply``, or raise a TypeError that says what came.

    ``init`` is needed by those alone who draw variables.
    """
    if isinstance(network, type) or is_foreign(network) or not callable(getattr(network, "apply", None)):
        raise TypeError(f"{name} must be a network such as MLP(), got {brief(network)}{advice(network)}")
    return network


def is_foreign(value) -> bool:
    """Whether this is a module of Flax, Haiku or Equinox."""
    return any(cls.__module__.startswith(("flax.", "haiku.", "equinox.")) for cls in type(value).__mro__)


def failure(model, shape, dtype, error, argument: str = "") -> ValueError:
    """What to raise where a function from inputs (n, ...) to scores fails on this shape, with a way out."""
    value = model.func if isinstance(model, Partial) else model
    way = advice(value) if is_foreign(value) else ""
    said = ", ".join(map(str, ("n", *shape[1:]))) + ("," if len(shape) == 1 else "")
    return ValueError(
        f"{argument}the model fails on inputs of shape ({said}), {dtype}: {type(error).__name__}: {error}{way}"
    )


def all_finite(leaves) -> bool:
    """Whether arrays hold neither NaN nor infinity; those that are being traced are taken for finite."""
    on_device, on_host = [], []
    for leaf in leaves:
        if not isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            far = isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform != "cpu"
            (on_device if far else on_host).append(leaf)
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in on_host)
    return finite and (not on_device or bool(_finite(on_device)))


@jax.jit
def _finite(leaves):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _is_real(leaf) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float)
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _place(name, params, at) -> str:
    return name + jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(params)[at][0])


def _no_parameter(name, params, at) -> TypeError:
    leaf, place = jax.tree.leaves(params)[at], _place(name, params, at)
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.complexfloating):
        way = (
            "kernels and training differentiate with respect to real parameters: hold the real and the imaginary "
            "part as two arrays, and make one of them in the network with jax.lax.complex(re, im)"
        )
    else:
        way = (
            "parameters are what is differentiated with respect to: hold what is not trained in the state, "
            "Variables(params, state), or in the network itself"
        )
    return TypeError(f"{place} must be a real floating array, got dtype {dtype}; {way}")


def advice(value) -> str:
    """What to write instead of a value that is no model, or nothing."""
    of = {cls.__module__.split(".")[0] + ":" + cls.__name__ for cls in type(value).__mro__}
    modules = {cls.__module__ for cls in type(value).__mro__}
    if isinstance(value, type):
        way = f"it is a class: write {value.__name__}(...), with its parameters, and make a Model of it"
    elif any(module.startswith("flax.linen") for module in modules):
        way = "it is a Flax module: write from_flax(module, variables)"
    elif any(module.startswith("flax.nnx") for module in modules):
        way = "it is a Flax NNX module: write from_nnx(module)"
    elif any(module.startswith("equinox") for module in modules):
        way = "it is an Equinox module: write from_equinox(module)"
    elif {"haiku:Transformed", "haiku:TransformedWithState"} & of:
        way = "it is a Haiku function: write from_haiku(transformed, params)"
    elif "torch:Module" in of:
        way = "PyTorch's modules cannot be differentiated by JAX: write the network in JAX, Flax, Equinox or Haiku"
    elif isinstance(value, Model):
        way = "it is a Model: pass its .network, and make a Model of the result with its .variables"
    elif isinstance(value, Variables):
        way = "it is variables without a network: write Model(network, variables)"
    elif isinstance(getattr(value, "model_", None), Model):
        way = "it is an estimator: pass its model_"
    elif isinstance(getattr(value, "model", None), Model):
        way = "it holds a model: pass its .model"
    elif "sklearn:BaseEstimator" in of:
        way = (
            "it is an estimator, which has no parameters to differentiate: pass the model_ of a fitted "
            "AdversarialKernelTrainer or EmpiricalNTKClassifier"
        )
    elif isinstance(value, Network):
        way = (
            "it is a network without variables: write Model(network, network.init(jax.random.key(0), input_shape))"
        )
    elif isinstance(value, tuple) and any(callable(part) or isinstance(part, Network) for part in value):
        way = "write Model(network, variables), or from_stax(init_fn, apply_fn, params=params) for two functions"
    elif callable(value):
        way = (
            "a function needs its parameters apart: write Model(Stateless(function), Variables(params)) with "
            "function(params, x) -> logits (n, C)"
        )
    else:
        return ""
    return f"; {way}"


def _not_of_jax(model, error) -> TypeError:
    cases = (
        (
            jax.errors.TracerArrayConversionError,
            "made a NumPy array of one",
            "write jnp (jax.numpy) instead of np",
        ),
        (
            jax.errors.TracerBoolConversionError,
            "decided by the value of one (if, while, and, or)",
            "write jnp.where(condition, a, b) or jax.lax.cond instead",
        ),
        (
            jax.errors.TracerIntegerConversionError | jax.errors.NonConcreteBooleanIndexError,
            "took one for an index or a size of Python",
            "index with jnp arrays, take sizes from x.shape, and write jnp.where(mask, a, b) instead of a[mask]",
        ),
        (
            jax.errors.UnexpectedTracerError,
            "kept one for a later call",
            "return what is needed, and keep nothing in attributes or globals",
        ),
        (
            Exception,
            "took one for a number of Python (float, int, item, range)",
            "leave it an array, such as x.sum() in place of float(x.sum())",
        ),
    )
    did, instead = next(case[1:] for case in cases if isinstance(error, case[0]))
    return TypeError(
        f"the network must be a JAX function of traced arrays, which have shapes but no values yet, but it {did} "
        f"({type(error).__name__}); {instead}. The network is {brief(model.network)}"
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
    """Whether a model takes such inputs, found without computing anything."""
    try:
        jax.eval_shape(lambda x: model.network.apply(*model.variables, x, train=False), x)
    except Exception:  # a stranger's function may raise anything
        return False
    return True


def dense(layer: dict, h: jax.Array) -> jax.Array:
    """Affine map of (n, fan_in)."""
    return h @ layer["kernel"] + layer["bias"]


def conv(kernel: jax.Array, h: jax.Array, stride: int) -> jax.Array:
    """Convolution of images NHWC with filters HWIO, padded to ceil(size / stride)."""
    return jax.lax.conv_general_dilated(
        h, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def init_dense(key: jax.Array, fan_in: int, fan_out: int, gain: float) -> dict:
    """Kernel from N(0, gain / fan_in), bias zero."""
    kernel = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(gain / fan_in)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out, kernel.dtype)}


def init_conv(key: jax.Array, size: int, c_in: int, c_out: int, gain: float = 2.0) -> jax.Array:
    """Filters (size, size, c_in, c_out) from N(0, gain / fan_in)."""
    return jax.random.normal(key, (size, size, c_in, c_out)) * math.sqrt(gain / (size * size * c_in))


def as_numbers(x, params: PyTree) -> jax.Array:
    """Inputs as floating numbers: integers, such as pixels from 0 to 255, in the parameters' dtype."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(params_dtype(params))


def check_outputs(network) -> None:
    """Check ``network.n_outputs``, None or a number of logits."""
    if network.n_outputs is not None:
        object.__setattr__(network, "n_outputs", integer("n_outputs", network.n_outputs))


def check_init(key, input_shape) -> tuple[jax.Array, tuple[int, ...]]:
    """A random key and the shape of one input, as ``init`` takes them.

    Raises
    ------
    TypeError
        If ``key`` is no key of JAX.
    ValueError
        If ``input_shape`` is no tuple of positive integers; an int stands for one axis.
    """
    key = one_key(key)
    if isinstance(input_shape, int | np.integer) and not isinstance(input_shape, bool):
        input_shape = (input_shape,)
    input_shape = positive_tuple("input_shape", input_shape)
    if math.prod(input_shape) > LARGEST_COUNT:
        raise ValueError(f"input_shape must hold at most {LARGEST_COUNT} numbers in all, got {brief(input_shape)}")
    return key, input_shape


def required_outputs(network) -> int:
    """``network.n_outputs``, or an error that says that it is missing."""
    if network.n_outputs is None:
        raise ValueError(
            f"{network!r} does not know its number of logits; write {type(network).__name__}(n_outputs=...)"
        )
    return network.n_outputs


def image_channels(network, input_shape: tuple[int, ...]) -> int:
    """The c of an image shape (h, w, c), or an error that says what came instead."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{type(network).__name__} needs images: input_shape must be (height, width, channels), got "
            f"{tuple(input_shape)}; pass X as (n, h, w, c), or flat rows with input_shape=(h, w, c)"
        )
    return input_shape[-1]
