"""Keys and values in 8 bits, with one scale for each token and KV head, worked out when the token is written.

Pages of int8 hold whole numbers, pages of uint8 the bits of float8_e4m3fn: XLA:CPU would widen a pool of float8 to
write a token. What a token becomes depends on itself alone: nothing is calibrated, and no neighbour counts.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["LARGEST", "round_kv", "widen"]

LARGEST = {jnp.dtype("int8"): 127.0, jnp.dtype("uint8"): 448.0}
"""What the largest number of a token becomes, by the type of the pages."""
_SMALLEST = 1e-30  # a token below this is zero: smaller scales would be flushed to zero, and divide by it


def round_kv(new: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """[T, K, D] to codes of a type of `LARGEST`, [T, K, D], and their scales, f32[T, K, 1]."""
    wide = new.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(-1, keepdims=True), _SMALLEST) / LARGEST[jnp.dtype(dtype)]
    scaled = wide / scale
    if dtype == jnp.int8:
        return jnp.round(scaled).astype(jnp.int8), scale
    return lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), jnp.uint8), scale


def widen(codes: jax.Array) -> jax.Array:
    """Codes as float32, exactly, without their scales."""
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.float32)
    # For processors without float8: the bits, shifted into float16's fields, are value / 2^8.
    bits = codes.astype(jnp.uint16)
    half = lax.bitcast_convert_type(((bits & 0x7F) << 7) | ((bits & 0x80) << 8), jnp.float16)
    return half.astype(jnp.float32) * 256
