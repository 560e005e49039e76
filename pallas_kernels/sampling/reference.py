"""The definition of the threshold that top-k and top-p leave, by sorting. Never fast."""

import jax
import jax.numpy as jnp

__all__ = ["reference"]


def reference(mass: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Arguments and result as in `kept_threshold`."""
    vocab = mass.shape[1]
    order = -jnp.sort(-mass, axis=-1)
    last = jnp.clip(top_k - 1, 0, vocab - 1)[:, None]
    kth = jnp.where(top_k[:, None] < vocab, jnp.take_along_axis(order, last, axis=-1), 0.0)
    kept = jnp.where(order >= kth, order, 0.0)
    reaches = jnp.cumsum(kept, axis=-1) >= top_p[:, None] * jnp.sum(kept, axis=-1, keepdims=True)
    first = jnp.argmax(reaches, axis=-1)[:, None]
    nucleus = jnp.where(top_p[:, None] < 1.0, jnp.take_along_axis(kept, first, axis=-1), 0.0)
    return jnp.maximum(kth, nucleus)[:, 0]
