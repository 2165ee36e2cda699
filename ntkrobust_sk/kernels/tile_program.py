"""Features of tiles, by a program that is bound once to a kernel, a model and a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..execution.devices import by_rows, everywhere, give_back_memory, on_one_cpu
from ..execution.tiles import one_ahead, pad_rows
from ..networks.model import Model
from ..tangent.gradient_lists import concatenate_tiles
from .abstract_features import abstract_features, compiled_features, output_directions
from .ntk import Kernel
from .plan import Plan
from .verification import verify


@dataclass(frozen=True, eq=False)
class TileProgram:
    """A compiled program from inputs to features of a tile, bound to what does not change from tile to tile.

    Attributes
    ----------
    compiled : callable
        The program: from model, a chunk of inputs and directions to features.
    model : Model
        The model on the plan's devices.
    passes : dict of arrays
        The directions of each pass, (``plan.directions``, C), by the first one's number.
    plan : Plan
    in_numpy : bool
        Whether features are returned in NumPy, which on a CPU shares memory with JAX.
    """

    compiled: Callable
    model: Model
    passes: dict[int, jax.Array]
    plan: Plan
    in_numpy: bool

    def __call__(self, x: np.ndarray, start: int = 0) -> Any:
        """Compute features of a tile, or hand on the inputs where the kernel has none.

        Parameters
        ----------
        x : array (n, ...)
            At most ``plan.rows`` rows; missing ones repeat the first.
        start : int, default=0
            First direction of the pass; directions beyond the last are zero.
        """
        rows, chunk = self.plan.rows, self.plan.chunk
        x = jax.device_put(pad_rows(x, rows), by_rows(self.plan.devices))
        directions = self.passes[start]
        if chunk == rows:
            features = self.compiled(self.model, x, directions)
        else:
            parts = (self.compiled(self.model, x[at : at + chunk], directions) for at in range(0, rows, chunk))
            features = concatenate_tiles(one_ahead(parts), rows)
        return jax.tree.map(np.asarray, features) if self.in_numpy else features


def tile_program(
    kernel: Kernel, model: Model, plan: Plan, X: np.ndarray, digits: str | None = None
) -> TileProgram:
    """Bind the program that computes features of tiles, and verify how the network's gradients are read.

    Parameters
    ----------
    kernel : TangentKernel or CallableKernel
    model : Model
    plan : Plan
    X : array (n, ...)
        Inputs of the shape and dtype that the program is for; the first rows are looked at.
    digits : {"tf32", "bf16"}, default=None
        Features are rounded so, on an accelerator "bf16" in as many bits.

    Raises
    ------
    ArithmeticError
        If the network's structure was read wrongly: see :mod:`.verification`.
    """
    abstract = abstract_features(kernel, model, X.shape[1:], X.dtype, plan.devices, digits)
    model = jax.device_put(model, everywhere(plan.devices))
    if kernel.base is not None and verify(kernel.base, model, X[:2]):
        give_back_memory()
    directions = output_directions(abstract)
    directions = np.pad(directions, ((0, plan.passes * plan.directions - len(directions)), (0, 0)))
    starts = range(0, plan.n_directions, plan.directions)
    passes = {start: directions[start : start + plan.directions] for start in starts}
    return TileProgram(
        compiled_features(abstract, plan.chunk, plan.directions),
        model,
        jax.device_put(passes, everywhere(plan.devices)),
        plan,
        in_numpy=kernel.is_tangent and on_one_cpu(plan.devices),
    )
