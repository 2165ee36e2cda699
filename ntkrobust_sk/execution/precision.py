"""Double precision in JAX, for a while, and the digits of the formats that GPUs multiply fast."""

from __future__ import annotations

import jax

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # JAX before 0.8
    from jax.experimental import enable_x64 as enable_x64  # pyright: ignore[reportAttributeAccessIssue] - old JAX

# Binary digits that products keep of their factors, sums being in single precision, by the names that GPUs have.
DIGITS = {"tf32": 10, "bf16": 7}


def x64_enabled() -> bool:
    """Tell whether JAX computes in double precision here and now."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue] - JAX makes it at run time
