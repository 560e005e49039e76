"""The threshold by halving the range of floats: no sort of the vocabulary, and whole rows at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["kept_threshold_xla"]


def kept_threshold_xla(mass: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Arguments and result as in `kept_threshold`."""
    kth = _bisect(mass, top_k < mass.shape[1], lambda threshold: jnp.sum(mass >= threshold, axis=-1) >= top_k)
    kept = jnp.where(mass >= kth[:, None], mass, 0.0)
    needed = top_p * jnp.sum(kept, axis=-1)

    def keeps(threshold: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(kept >= threshold, kept, 0.0), axis=-1) >= needed

    return jnp.maximum(kth, _bisect(kept, top_p < 1.0, keeps))


def _bisect(mass: jax.Array, active: jax.Array, keeps: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest f32 threshold in [0, max] of each active row with `keeps(threshold[:, None])`, else 0.

    `keeps` is monotone. The bits of floats that are not negative are ordered as integers are, so 31 halvings
    are exact. Their number is fixed: a GPU runs a loop whose length it knows without asking the host.
    """
    low = jnp.zeros(mass.shape[0], jnp.int32)
    top = jax.lax.bitcast_convert_type(jnp.max(mass, axis=-1), jnp.int32)
    high = jnp.where(active, top + 1, 1)

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        good = keeps(jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None])
        return jnp.where(good, middle, low), jnp.where(good, high, jnp.maximum(middle, low + 1))

    low, _ = jax.lax.fori_loop(0, 31, lambda _, bounds: halve(bounds), (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
