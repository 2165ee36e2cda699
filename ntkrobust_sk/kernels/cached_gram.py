"""Gram matrices in a cache, by what they are computed from: function, parameters, inputs, and sizes of tiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from ..execution.loops import form_of, without_numbers
from ..execution.memory import parse_memory
from ..execution.precision import x64_enabled
from ..networks.inputs import host_inputs
from ..networks.model import Model
from ..saving.content_cache import ContentCache
from .edited_functions import told_apart
from .fingerprint import UNSURE, fingerprint
from .gram_matrix import gram_of
from .ntk import resolve_kernel
from .plan import make_plan
from .room import require_host_room
from .store_header import described_inputs, provenance
from .tiles import TileJob, own_digits


def cached_gram(job: TileJob, cache: ContentCache | None, progress: bool = False) -> Any:
    """Return the Gram matrix of a job, from a cache if it has been computed before.

    What a matrix is known by is what a store is known by: the fingerprint of kernel and network, the parameters,
    the inputs, the precision and the sizes of tiles, of which the last bits depend. So nothing is taken for what
    it is not, and what is taken has the bits of what would be computed.

    Parameters
    ----------
    job : TileJob
    cache : ContentCache or None
        None computes it.
    progress : bool, default=False
        Show a progress bar over tiles.

    Returns
    -------
    array (n, m), (n, m, C) or (n, m, C, C)
        NumPy from a cache.

    Warns
    -----
    UserWarning
        If kernel or network call code outside of JAX that reads what is not in it: then nothing is kept.
    """
    if cache is None:
        return gram_of(job, progress)
    x = jax.ShapeDtypeStruct((1, *job.X.shape[1:]), job.X.dtype)
    function, dtype = _function(job.kernel, form_of(job.model, x), x64_enabled())
    if function.startswith(UNSURE):
        warnings.warn(
            "the Gram matrix is not kept in the cache, since kernel or network call Python code outside of JAX "
            f"that reads {function.removeprefix(UNSURE)}; give such code all that it needs as arrays or numbers",
            UserWarning,
            stacklevel=2,
        )
        return gram_of(job, progress)
    about = provenance(job.kernel, job.model, job.dtype or dtype, function) | described_inputs(job.X, job.Y)
    about |= {"tile_rows": job.plan.rows, "seeds": job.plan.directions}
    return cache.get("gram", about, lambda: np.asarray(gram_of(job, progress)))


def make_job(
    kernel: str | Callable, model: Model, X: np.ndarray, Y: np.ndarray | None = None, memory: str | int = "2GiB"
) -> TileJob:
    """Return the job of a Gram matrix of checked inputs (n, ...), in the digits of the network's products."""
    kernel, budget = resolve_kernel(kernel), parse_memory(memory)
    X = host_inputs("X", X, model.variables.params)
    Y = None if Y is None else host_inputs("Y", Y, model.variables.params)
    kernel = told_apart(kernel, model, X.shape[1:], X.dtype)
    digits, n_rows = own_digits(kernel, model), max(len(X), 0 if Y is None else len(Y))
    plan = make_plan(kernel, model, X.shape[1:], budget, n_rows=n_rows, dtype=digits, inputs=X.dtype)
    job = TileJob(kernel, model, X, Y, plan, digits)
    require_host_room(job)
    return job


# tracing takes longer than reading a small matrix; what jit takes for one function is one here
@lru_cache(maxsize=64)
def _function(kernel, form, x64) -> tuple[str, str]:
    """Return the fingerprint of a kernel of a model, and the dtype of its Gram matrix."""
    model, x = without_numbers(form)
    with jax.default_matmul_precision("highest"):
        function, entry = fingerprint(kernel.entry, model, x, x)
    return function, "float64" if entry.dtype == np.float64 else "float32"
