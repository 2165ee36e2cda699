"""Which devices computations run on, and how much of their memory is free."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
from threadpoolctl import ThreadpoolController

# Platforms whose memory is the host's, where NumPy's products and loops in Python have their place. A test that
# empties it runs what an accelerator would.
HOST_PLATFORMS = ("cpu",)

# Rows of a matrix that one thread factors in some milliseconds.
FEW_ROWS = 1000
# The threads that our own products take where those of BLAS are held to one, and those that plans count on.
_taken: ContextVar[int | None] = ContextVar("taken", default=None)
_planned: ContextVar[int | None] = ContextVar("planned", default=None)


def default_devices() -> tuple:
    """Return all devices of JAX's default backend, or its default device if one is set."""
    one = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] - JAX sets it at run time
    if one is None:
        return tuple(jax.local_devices())
    # a platform's name stands for its first device
    return (jax.local_devices(backend=one)[0] if isinstance(one, str) else one,)


def on_host(devices: Sequence[Any] | None = None) -> bool:
    """Tell whether devices, by default those of :func:`default_devices`, are the host's own processor.

    >>> on_host(jax.local_devices(backend="cpu"))
    True
    """
    platforms = {device.platform for device in (default_devices() if devices is None else devices)}
    return platforms <= set(HOST_PLATFORMS)


def at_host() -> AbstractContextManager:
    """Return a context in which the host's processor computes, if JAX has a backend for it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return nullcontext()


def free_bytes(device: Any) -> int | None:
    """Return what JAX may still take of a device's memory; None where the device does not say.

    That is JAX's share of the card (``XLA_PYTHON_CLIENT_MEM_FRACTION``) less what its arrays take.
    """
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def pool_bytes(device: Any) -> int:
    """Return what JAX has taken of a device's memory and has no array in; it never gives it back."""
    stats = device.memory_stats() or {}
    return max(0, stats.get("pool_bytes", 0) - stats.get("bytes_in_use", 0))


@cache
def blas() -> ThreadpoolController:
    """Return the libraries behind NumPy's matrix products."""
    return ThreadpoolController().select(user_api="blas")


def host_threads() -> int:
    """Return the number of threads that NumPy's matrix products may take in this process."""
    return _taken.get() or max((library["num_threads"] for library in blas().info()), default=1)


def planned_threads() -> int:
    """Return the number of threads that plans of memory count on."""
    return _planned.get() or host_threads()


@contextmanager
def planned_for(threads: int) -> Iterator[None]:
    """Plan memory for so many threads, however many there are: then a worker's tiles are those of its parent."""
    token = _planned.set(threads)
    try:
        yield
    finally:
        _planned.reset(token)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Compute each product and factorisation of NumPy and SciPy in one thread, so that no bit depends on more.

    Tiles of Gram matrices are shared by as many threads as before, each with products of its own.

    >>> threads = host_threads()
    >>> with one_thread_each():
    ...     {library["num_threads"] for library in blas().info()} <= {1}, host_threads() == threads
    (True, True)
    """
    token = _taken.set(host_threads())
    try:
        with blas().limit(limits=1):
            yield
    finally:
        _taken.reset(token)


def threads_for(size: int) -> AbstractContextManager:
    """Return a context in which square matrices of few rows are factored by one thread, and larger ones by all.

    NumPy and SciPy bring a BLAS each. The threads of one spin for a while after each call, while those of the
    other wait for a core; a matrix of some hundred rows is done sooner than that.

    >>> with threads_for(10):
    ...     {library["num_threads"] for library in blas().info()} <= {1}
    True
    """
    return one_thread_each() if size <= FEW_ROWS else nullcontext()


def give_back_memory() -> None:
    """Hand what compilers have freed back to the system, where the C library keeps it until it is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
