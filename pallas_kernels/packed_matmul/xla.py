"""Products with packed weights in plain jax.numpy: XLA writes one weight out in x's type, then multiplies."""

import jax
import jax.numpy as jnp

from .reference import dequantize, round_groups
from .weight import PackedWeight

__all__ = ["packed_matmul_xla"]


def packed_matmul_xla(x: jax.Array, weight: PackedWeight, *, activations: str = "float") -> jax.Array:
    """Arguments as in `packed_matmul`. Returns f32[T, N]."""
    if activations == "int8":
        x = round_groups(x.astype(jnp.float32))
    exact = x.dtype == jnp.float32
    return jax.lax.dot_general(
        x,
        dequantize(weight).astype(x.dtype),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
