"""Self-attention in which the tokens of a text see each other, those before and those after. Keeps no cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import TextContext
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
        self.head_dim = config.head_dim
        self.precision = build.precision

    def __call__(self, x: jax.Array, context: TextContext) -> jax.Array:
        """[T, E] to [T, E]."""
        q, k, v = self.qkv(x).reshape(len(x), 3, -1, self.head_dim).swapaxes(0, 1)
        return attend(q, k, v, context.lengths, precision=self.precision).reshape(x.shape)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    *,
    scale: float | None = None,
    radius: int | None = None,
    soft_cap: float | None = None,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """q: [T, H, D]; k, v: [T, K, D], of S texts of L places of which `lengths` i32[S] are real. [T, H, D].

    A token sees the others of its text that are at most `radius` places away, on either side; None is all of them.
    `scale` None is D ** -0.5. Sums are float32. Where L is above QUERY_BLOCK it must be a multiple of it.
    """
    texts, (heads, dim), groups = len(lengths), q.shape[1:], q.shape[1] // k.shape[1]
    k, v = (each.reshape(texts, -1, *each.shape[1:]) for each in (k, v))
    length = k.shape[1]
    block = min(length, QUERY_BLOCK)
    place = jnp.arange(length)
    is_real = (place < lengths[:, None])[:, None]

    def of_block(q: jax.Array, start: jax.Array) -> jax.Array:
        scores = jnp.einsum("sqkgd,stkd->skgqt", q, k, precision=precision, preferred_element_type=jnp.float32)
        scores = scores * (dim**-0.5 if scale is None else scale)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        is_seen = is_real
        if radius is not None and radius < length - 1:
            is_seen = is_real & (jnp.abs(start + jnp.arange(block)[:, None] - place) <= radius)
        scores = jnp.where(is_seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("skgqt,stkd->sqkgd", shares, v, precision=precision, preferred_element_type=jnp.float32)
        return out.astype(q.dtype)

    blocks = q.reshape(texts, -1, block, heads // groups, groups, dim).swapaxes(0, 1)
    if len(blocks) == 1:
        return of_block(blocks[0], jnp.int32(0)).reshape(q.shape)
    starts = jnp.arange(len(blocks), dtype=jnp.int32) * block
    out = jax.lax.map(lambda each: of_block(*each), (blocks, starts))
    return out.swapaxes(0, 1).reshape(q.shape)
