"""Features of a tile without their numbers: shapes, sizes in memory, and the programs that compute them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from ..execution.devices import default_devices, on_host, planned_threads
from ..execution.precision import DIGITS, x64_enabled
from ..networks.inputs import PyTree, inputs_dtype, params_dtype, shapes_of
from ..networks.model import Model
from ..tangent.gradient_lists import round_features
from ..tangent.gradients import Gradients
from .ntk import Kernel, TangentKernel


@dataclass(frozen=True)
class AbstractFeatures:
    """Features of a kernel's tile, known by shapes alone: what programs are compiled and cached for.

    Attributes
    ----------
    kernel : TangentKernel or CallableKernel
    tree : PyTreeDef
        The model's structure.
    leaves : tuple of (shape, dtype)
        The model's arrays.
    input_shape : tuple of int
    inputs : dtype
        The dtype of the inputs.
    device : jax.Device
        For which programs are compiled.
    digits : {"tf32", "bf16"} or None
        The digits to which features are rounded.
    x64 : bool
    """

    kernel: Kernel
    tree: Any
    leaves: tuple
    input_shape: tuple[int, ...]
    inputs: np.dtype
    device: Any
    digits: str | None
    x64: bool

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # of all that is cached by it, for each call: a network and a model's structure take a while to hash
        return hash((self.kernel, self.tree, self.leaves, self.input_shape, self.inputs, self.digits, self.x64))

    @cached_property
    def model(self) -> Model:
        """The model with shapes in place of arrays."""
        return jax.tree.unflatten(self.tree, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one parameter."""
        return params_dtype(self.model.variables.params).itemsize

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's arrays."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves)

    @cached_property
    def n_directions(self) -> int:
        """Number of directions in output space of which the kernel takes gradients."""
        return len(output_directions(self))

    def tile(self, rows: int) -> jax.ShapeDtypeStruct:
        """Return the shape of a tile of inputs."""
        return jax.ShapeDtypeStruct((rows, *self.input_shape), self.inputs)

    def directions(self, n_directions: int) -> jax.ShapeDtypeStruct:
        """Return the shape of some directions in output space."""
        directions = output_directions(self)
        return jax.ShapeDtypeStruct((n_directions, directions.shape[1]), directions.dtype)

    def function(self) -> Callable:
        """Return the kernel's features as a function of model, inputs and directions.

        The function rounds the features itself: the unrounded ones are then never there at once.
        """
        compute, digits = self.kernel.features, self.digits
        if digits is None:
            return compute
        packed = not on_host([self.device])

        def rounded(model, x, directions):
            return round_features(cast(list, compute(model, x, directions)), digits, packed=packed)

        return rounded

    def features(self, n_directions: int) -> PyTree:
        """Return the features of one row, with shapes in place of arrays; traced once."""
        return _shapes(self, n_directions)

    def row_bytes(self, n_directions: int) -> int:
        """Count the bytes of one row's features."""
        return _bytes(_shapes(self, n_directions))

    @property
    def direction_bytes(self) -> int:
        """Count the bytes of one row's features in one of all directions."""
        return _bytes(_fewer(_shapes(self, self.n_directions), 1)) if self.is_read_alike else self.row_bytes(1)

    @property
    def is_read_alike(self) -> bool:
        """Whether gradients have the same form in any number of directions, unless that is one."""
        kernel = self.kernel
        own = type(kernel).features is TangentKernel.features
        return kernel.splits_directions and own and self.digits is None

    def working_bytes(self, rows: int, n_directions: int) -> int:
        """Count what computing a tile's features takes besides them, as the compiler states it."""
        stats = compiled_features(self, rows, n_directions).memory_analysis()
        return 0 if stats is None else stats.temp_size_in_bytes

    def contraction_bytes(self, rows: int, n_directions: int, itemsize: int) -> int:
        """Count what the inner products of two tiles take besides their features, in all threads of a host."""
        # those of one row are traced already; they are not rounded here
        features: Any = _shapes(replace(self, digits=None), n_directions)
        if self.kernel.is_tangent:
            features = [leaf.each(partial(_of_rows, rows)) for leaf in features]
        # what is kept in 16 bits is multiplied in single precision
        itemsize = max(itemsize, self.itemsize, 4)
        of_one_layer = self.kernel.contraction_bytes(features, itemsize)
        block = self.block_bytes(rows, n_directions, itemsize)
        n_threads = planned_threads() if on_host([self.device]) else 1
        # each thread's layers and their sums, and what a tile on the diagonal takes to be made symmetric
        return n_threads * (of_one_layer + 2 * len(features) * block) + 3 * block

    def block_bytes(self, rows: int, n_directions: int, itemsize: int) -> int:
        """Count the bytes of the kernel of one pair of tiles, in one pass over directions."""
        return rows**2 * self.kernel.block_entries(n_directions) * itemsize


def abstract_features(
    kernel: Kernel,
    model: Model,
    input_shape: tuple[int, ...],
    inputs=None,
    device=None,
    digits: str | None = None,
) -> AbstractFeatures:
    """Return the features of a kernel's tile without numbers.

    Parameters
    ----------
    kernel : TangentKernel or CallableKernel
    model : Model
    input_shape : tuple of int
    inputs : dtype, default=None
        The dtype of the inputs; None is that of the parameters.
    device : jax.Device, default=None
        None is the first one of JAX's default backend, or its default device if one is set.
    digits : {"tf32", "bf16"} or a dtype, default=None
        Any other dtype than these two rounds nothing.
    """
    leaves, tree = jax.tree.flatten(model)
    shapes = shapes_of(leaves)
    inputs = inputs_dtype(float if inputs is None else inputs, model.variables.params)
    device, digits = device or default_devices()[0], digits if digits in DIGITS else None
    shape = tuple(input_shape)
    return _known(AbstractFeatures(kernel, tree, shapes, shape, inputs, device, digits, x64_enabled()))


@lru_cache(maxsize=256)
def _known(abstract: AbstractFeatures) -> AbstractFeatures:
    """Return the first one that was equal, which knows its hash and whatever else it was asked."""
    return abstract


@lru_cache(maxsize=256)
def output_directions(abstract: AbstractFeatures) -> np.ndarray:
    """Return the kernel's directions (R, C), which depend on shapes alone."""
    return np.asarray(abstract.kernel.output_directions(abstract.model, cast(jax.Array, abstract.tile(1))))


@lru_cache(maxsize=256)
def compiled_features(abstract: AbstractFeatures, rows: int, n_directions: int) -> jax.stages.Compiled:
    """Compile the features of a model at a tile of inputs (rows, ...), for directions (n_directions, C)."""
    compute = jax.jit(abstract.function(), in_shardings=SingleDeviceSharding(abstract.device))
    return compute.lower(abstract.model, abstract.tile(rows), abstract.directions(n_directions)).compile()


@lru_cache(maxsize=256)
def _shapes(abstract: AbstractFeatures, n_directions: int) -> PyTree:
    """Return the shapes of one row's features."""
    if abstract.is_read_alike and 1 < n_directions < abstract.n_directions:
        # tracing a large network takes a second
        return _fewer(_shapes(abstract, abstract.n_directions), n_directions)
    return jax.eval_shape(abstract.function(), abstract.model, abstract.tile(1), abstract.directions(n_directions))


def _fewer(features: list[Gradients], n_directions: int) -> list[Gradients]:
    """Return the shapes of gradients in fewer directions: the first axis, where that of examples is the second."""

    def fewer(array, axis):
        return jax.ShapeDtypeStruct((n_directions, *array.shape[1:]), array.dtype) if axis else array

    return [leaf.each(fewer) for leaf in features]


def _bytes(features: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(features))


def _of_rows(rows: int, array: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
    """Return the shape with so many examples."""
    return jax.ShapeDtypeStruct((*array.shape[:axis], rows, *array.shape[axis + 1 :]), array.dtype)
