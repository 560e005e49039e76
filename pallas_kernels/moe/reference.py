"""The definition of a mixture's experts: plain jnp, one token and one of its experts at a time, float32 throughout.

Never fast. Every implementation is compared with this one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .packed import PackedExperts, dequantize

__all__ = ["as_float32", "reference"]


def reference(
    x: jax.Array,
    expert_ids: jax.Array,
    weights: jax.Array,
    gate_up: jax.Array | PackedExperts,
    down: jax.Array | PackedExperts,
    gate_up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activate: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Shapes as in `moe`; returns f32[T, E]."""
    (T, E), J, X = x.shape, expert_ids.shape[1], gate_up.shape[0]

    def weight_of(stack: jax.Array | PackedExperts, e: jax.Array) -> jax.Array:
        """[inputs, ...outputs] of one expert."""
        if not isinstance(stack, PackedExperts):
            return as_float32(stack[e])
        return jnp.moveaxis(dequantize(jax.tree.map(lambda array: array[e], stack)), -1, 0)

    def one(pair: tuple[jax.Array, ...]) -> jax.Array:
        token, expert, weight = pair
        e = jnp.clip(expert, 0, X - 1)
        both = jnp.einsum("e,ecf->cf", token, weight_of(gate_up, e), precision="highest")
        if gate_up_bias is not None:
            both += as_float32(gate_up_bias[e])
        inner = activate(both[:1], both[1:])[0]
        out = jnp.einsum("f,fe->e", inner, weight_of(down, e), precision="highest")
        if down_bias is not None:
            out += as_float32(down_bias[e])
        return jnp.where(expert == e, weight * out, 0)

    tokens = jnp.repeat(x.astype(jnp.float32), J, axis=0)
    parts: jax.Array = jax.lax.map(one, (tokens, expert_ids.reshape(-1), weights.reshape(-1)))
    return parts.reshape(T, J, E).sum(1)


def as_float32(weight: jax.Array) -> jax.Array:
    """The same values; of uint16, which are the bits of bfloat16, those that they stand for."""
    if weight.dtype != jnp.uint16:
        return weight.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(weight.astype(jnp.uint32) << 16, jnp.float32)
