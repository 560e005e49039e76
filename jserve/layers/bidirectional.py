"""Self-attention in which every token of a text sees all others, before it and after it. Keeps no cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.linear import Linear
from jserve.layers.source import Stacked

QUERY_BLOCK = 512
"""Positions of each text that attend at once: their scores f32[S, H, 512, L] are the largest array."""


class BidirectionalAttention(nnx.Module):
    """Named `self` in checkpoints of BERT's family; query, key and value are one product. On one device."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        hidden, names = config.hidden_size, ("query", "key", "value")
        self.qkv = Linear(
            build,
            Stacked(tuple(f"../{name}.weight" for name in names), (hidden, hidden)),
            (hidden, 3, hidden),
            shard=2,
            bias=Stacked(tuple(f"../{name}.bias" for name in names), (hidden,)),
        )
        self.heads = config.num_heads
        self.precision = build.precision

    def __call__(self, x: jax.Array, is_real: jax.Array) -> jax.Array:
        """x: [S * L, E], S texts of L places; is_real: bool[S, L], false where a place is padding. [S * L, E]."""
        texts, length = is_real.shape
        q, k, v = self.qkv(x).reshape(texts, length, 3, self.heads, -1).transpose(2, 0, 1, 3, 4)
        return attend(q, k, v, is_real, self.precision).reshape(x.shape)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, is_real: jax.Array, precision: jax.lax.Precision | None = None
) -> jax.Array:
    """q, k, v: [S, L, H, D]; is_real: bool[S, L], which keys are seen. [S, L, H, D]; sums are float32.

    Where L is above QUERY_BLOCK it must be a multiple of it.
    """
    texts, length, heads, dim = q.shape

    def of_block(q: jax.Array) -> jax.Array:
        scores = jnp.einsum("sqhd,skhd->shqk", q, k, precision=precision, preferred_element_type=jnp.float32)
        scores = jnp.where(is_real[:, None, None], scores * dim**-0.5, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("shqk,skhd->sqhd", shares, v, precision=precision, preferred_element_type=jnp.float32)

    if length <= QUERY_BLOCK:
        return of_block(q).astype(q.dtype)
    blocks = q.reshape(texts, -1, QUERY_BLOCK, heads, dim).swapaxes(0, 1)
    return jax.lax.map(of_block, blocks).swapaxes(0, 1).reshape(q.shape).astype(q.dtype)
