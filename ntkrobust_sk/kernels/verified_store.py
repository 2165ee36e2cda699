"""A finished store that is taken for the Gram matrix of a kernel, a model and inputs, if it is theirs."""

from __future__ import annotations

import os

import jax
import numpy as np

from ..datasets.items import Rows
from ..networks.model import Model
from . import store_header as header
from .fingerprint import fingerprint
from .gram_matrix import has_same_numbers
from .ntk import Kernel
from .plan import make_plan
from .store import open_finished
from .stored_operator import StoredGram
from .tiles import TileJob


def verified_gram(
    path: str | os.PathLike, kernel: Kernel, model: Model, X: np.ndarray | Rows, memory: int
) -> StoredGram:
    """Open the store at ``path`` to be read, if it holds this kernel's Gram matrix of these rows and no others.

    What it says of itself is compared with kernel, network, parameters and inputs, and entries of a few rows are
    computed again. Nothing is written, so several processes may read one store.

    Parameters
    ----------
    path : str or os.PathLike
        What ``gram(kernel, model, X, store=path)`` has written, in any precision.
    kernel : TangentKernel or CallableKernel
    model : Model
    X : array or Rows (n, ...)
        As :func:`.host_inputs` gives them.
    memory : int
        Budget in bytes for what is computed again.

    Returns
    -------
    StoredGram
        Whose products are in double precision.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    StoreMismatchError
        If it was computed from something else, other rows or fewer; the message names what differs.
    DamagedTileError
        If a tile is missing: call ``gram`` with the same store to finish it.
    """
    store = open_finished(path)
    there = header.read_header(store.path)
    x = jax.ShapeDtypeStruct((1, *X.shape[1:]), X.dtype)
    with jax.default_matmul_precision("highest"):
        function, _ = fingerprint(kernel.entry, model, x, x)
    header.require_same(store.path, there, header.provenance(kernel, model, there["dtype"], function), X, None)
    if there["n_X"] != len(X):
        raise header.mismatch(store.path, f"X: {there['n_X']} rows there, {len(X)} here")
    sizes = there["tile_rows"], there["seeds"]
    plan = make_plan(kernel, model, X.shape[1:], memory, sizes=sizes, dtype=there["dtype"], inputs=X.dtype)
    if not has_same_numbers(TileJob(kernel, model, X, None, plan, there["dtype"]), store):
        raise header.mismatch(
            store.path, "Entries that were computed again are other numbers, though all else looks alike"
        )
    return StoredGram(store, dtype="float64")
