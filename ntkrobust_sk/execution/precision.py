"""Double precision in JAX, for a while."""

from __future__ import annotations

import jax

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64 as enable_x64  # pyright: ignore[reportAttributeAccessIssue] - old JAX


def x64_enabled() -> bool:
    """Tell whether JAX computes in double precision here and now."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue] - JAX makes it at run time
