"""Hypothesis strategies: inputs, networks, models, and tilings of a Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import DTypeLike

from ..kernels.ntk import resolve_kernel
from ..kernels.plan import Plan, fixed_plan
from ..networks.feedforward import CNN, MLP
from ..networks.layers import ACTIVATIONS
from ..networks.model import Model

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# few rows, so that few inputs fill more than one tile
TILE_ROWS = (1, 4)


def inputs(
    input_shape: tuple[int, ...],
    *,
    n_samples: int | tuple[int, int] = (2, 5),
    bounds: tuple[float, float] = (0.0, 1.0),
    dtype: DTypeLike = np.float32,
) -> SearchStrategy[np.ndarray]:
    """Strategy for inputs ``(n, *input_shape)``, finite and within bounds.

    The values are ``bounds[0]`` plus multiples of 1/1024 of the range: the smallest floats, which ReLU
    networks compute differently in every precision, are no inputs that anybody has.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one input.
    n_samples : int or (int, int), default=(2, 5)
        Number n of inputs, or its least and largest value. Every n is compiled anew.
    bounds : (float, float), default=(0.0, 1.0)
    dtype : floating dtype, default=float32

    Returns
    -------
    hypothesis.strategies.SearchStrategy of arrays
    """
    st, extra = _hypothesis()
    low, high = bounds
    least, most = (n_samples, n_samples) if isinstance(n_samples, int) else n_samples

    def drawn(n):
        steps = extra.arrays(np.int64, (n, *input_shape), elements=st.integers(0, 1024))
        return steps.map(lambda k: (low + (high - low) * (k / 1024)).astype(dtype))

    return st.integers(least, most).flatmap(drawn)


def networks(
    input_shape: tuple[int, ...], *, n_outputs: int | tuple[int, int] = (1, 3)
) -> SearchStrategy[MLP | CNN]:
    """Strategy for small networks: :class:`MLP`, and :class:`CNN` where inputs are images (h, w, c).

    Parameters
    ----------
    input_shape : tuple of int
    n_outputs : int or (int, int), default=(1, 3)
        Number C of logits, or its least and largest value.

    Returns
    -------
    hypothesis.strategies.SearchStrategy of Network
    """
    st, _ = _hypothesis()
    least, most = (n_outputs, n_outputs) if isinstance(n_outputs, int) else n_outputs
    common = {"n_outputs": st.integers(least, most), "activation": st.sampled_from(sorted(ACTIVATIONS))}
    width = st.integers(1, 6)
    dense = st.builds(MLP, widths=st.lists(width, max_size=2).map(tuple), **common)
    if len(input_shape) != 3:
        return dense
    layers = st.lists(st.tuples(width, st.integers(1, 3)), min_size=1, max_size=2)
    return dense | layers.flatmap(
        lambda drawn: st.builds(
            CNN,
            widths=st.just(tuple(width for width, _ in drawn)),
            strides=st.just(tuple(stride for _, stride in drawn)),
            kernel_size=st.integers(1, 3),
            **common,
        )
    )


def models(input_shape: tuple[int, ...], *, networks: SearchStrategy | None = None) -> SearchStrategy[Model]:
    """Strategy for models: a drawn network with variables drawn from its ``init``.

    Parameters
    ----------
    input_shape : tuple of int
    networks : SearchStrategy of Network, default=None
        None means :func:`networks` of that shape. Every network is compiled anew, so a strategy over two or
        three, ``st.sampled_from([MLP(3), CNN(3)])``, tries many more weights and inputs in the same time.

    Returns
    -------
    hypothesis.strategies.SearchStrategy of Model
    """
    st, _ = _hypothesis()
    networks = globals()["networks"](input_shape) if networks is None else networks
    seeds = st.integers(0, 2**16 - 1)
    return st.builds(
        lambda network, seed: Model(network, network.init(jax.random.key(seed), input_shape)), networks, seeds
    )


def tilings(
    kernel: str | Callable, model: Model, input_shape: tuple[int, ...], *, max_rows: int = 8
) -> SearchStrategy[Plan]:
    """Strategy for plans with which :func:`~ntkrobust_sk.gram` takes tiles of 1, 2, 4, ... rows.

    Parameters
    ----------
    kernel : {"trace", "class", "full", "pseudo"} or callable
    model : Model
    input_shape : tuple of int
    max_rows : int, default=8
        Rows of the largest tile.

    Returns
    -------
    hypothesis.strategies.SearchStrategy of Plan
        For ``gram(..., plan=plan)``.
    """
    st, _ = _hypothesis()
    kernel = resolve_kernel(kernel)
    rows = [2**i for i in range(max_rows.bit_length())]
    return st.sampled_from(rows).map(partial(fixed_plan, kernel, model, tuple(input_shape)))


def _hypothesis():
    try:
        from hypothesis import strategies
        from hypothesis.extra import numpy as extra
    except ImportError as error:
        raise ImportError(
            f"the strategies of ntkrobust_sk.testing need Hypothesis, which could not be imported ({error}); "
            "pip install hypothesis"
        ) from error
    return strategies, extra
