"""The definition: a product in float32 with a weight that lies outputs first."""

import jax
import jax.numpy as jnp


def reference(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x: f32[T, K]; weight: f32[N, K], or the bits of bfloat16 in u16[N, K]; f32[T, N]."""
    if weight.dtype == jnp.uint16:
        weight = jax.lax.bitcast_convert_type(weight, jnp.bfloat16).astype(jnp.float32)
    return jnp.einsum("tk,nk->tn", x, weight, precision="highest")
