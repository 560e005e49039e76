"""Self-attention over a paged cache of latents (DeepSeek-V2, arXiv:2405.04434, section 2.1), in the absorbed form.

The cache holds of a token one latent for all heads, and beside it the rotated part of their keys. What would make keys
of latents is multiplied into the queries, and what would make values into the result.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import CacheArray, LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.config.deepseek import LatentConfig
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.fused_source import Part, Split
from jserve.layers.linear import Linear
from jserve.layers.norm import RMSNorm
from jserve.layers.rope import apply_rope, query_growth
from jserve.layers.source import Tensor
from pallas_kernels.latent_attention import latent_attention
from pallas_kernels.paged_attention import write_pages

LATENT_EPS = 1e-6
"""Epsilon in the norms of latents, whatever a configuration says of the others."""


class LatentAttention(nnx.Module):
    """Heads are split over the tensor axis; every device makes and keeps the latents of all tokens."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        latent = config.latent
        assert latent is not None
        heads, hidden, rope = config.num_heads, config.hidden_size, config.layer_ropes[layer]
        assert rope is not None
        query, inner = (heads, latent.key_dim + latent.rope_dim), latent.query_rank or hidden
        biased = config.attention_bias
        queries = Linear(build, Split("weight", query, (inner,)), (inner, *query), shard=1)
        if latent.query_rank is None:
            self.q_proj = queries
        else:
            self.q_a_proj = _whole(build, (hidden, inner), biased)
            self.q_a_layernorm = RMSNorm(build, inner, LATENT_EPS)
            self.q_b_proj = queries
        self.kv_a_proj_with_mqa = _whole(build, (hidden, latent.rank + latent.rope_dim), biased)
        self.kv_a_layernorm = RMSNorm(build, latent.rank, LATENT_EPS)
        self.kv_b_proj = LatentHeads(build, latent, heads)
        self.o_proj = Linear(
            build,
            Tensor("weight", (hidden, heads * latent.value_dim)),
            (heads * latent.value_dim, hidden),
            shard=0,
            bias=Tensor("bias", (hidden,)) if biased else None,
        )
        self.scale = config.attention_scale or query[1] ** -0.5
        self.temperature = config.attention_temperature
        self.rope, self.interleaved = config.ropes.index(rope), rope.interleaved
        self.plan = config.windows.index(config.layer_windows[layer])
        self.latent, self.build = latent, build

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E]. Writes the step's latents into `kv`, then attends. Returns [T, E] and the cache."""
        latent, rope = self.latent, context.ropes[self.rope]
        q = self.q_proj(x) if latent.query_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        if self.temperature is not None:
            q = q * query_growth(context.positions, self.temperature)[:, None, None].astype(q.dtype)
        made = self.kv_a_proj_with_mqa(x)
        turned_key = apply_rope(made[:, None, latent.rank :], rope, interleaved=self.interleaved)
        latents = jnp.concatenate([self.kv_a_layernorm(made[:, : latent.rank])[:, None], turned_key], axis=-1)
        turned = apply_rope(q[:, :, latent.key_dim :], rope, interleaved=self.interleaved)
        out, kv = self._attend(q[:, :, : latent.key_dim], turned, latents, kv, context)
        return self.o_proj(out.reshape(x.shape[0], -1)), kv

    def _attend(
        self, q: jax.Array, turned: jax.Array, latents: jax.Array, kv: LayerKV, context: StepContext
    ) -> tuple[jax.Array, LayerKV]:
        """q: [T, H, key_dim]; turned: [T, H, rope_dim]; latents: [T, 1, rank + rope_dim]. Returns [T, H, value_dim]."""
        to_latent, to_value = self.kv_b_proj.key[...], self.kv_b_proj.value[...]
        args = (q, turned, latents, kv, to_latent, to_value, context)
        if self.build.tensor_parallel == 1:
            return self._local(*args)
        heads, rows, whole = PartitionSpec(None, TENSOR_AXIS), PartitionSpec(TENSOR_AXIS), PartitionSpec()
        specs = (heads, heads, whole, whole, rows, rows, whole)
        out, pages = self.build.spread(self._local, specs, (heads, whole))(*args)
        return out, pages

    def _local(
        self,
        q: jax.Array,
        turned: jax.Array,
        latents: jax.Array,
        kv: LayerKV,
        to_latent: jax.Array,
        to_value: jax.Array,
        context: StepContext,
    ) -> tuple[jax.Array, LayerKV]:
        (pages,) = kv
        pages = write_pages(pages, latents, context.write_slots)
        absorbed = _each_head(self.build, "thk,hkr->thr", q, to_latent)
        attended = latent_attention(
            jnp.concatenate([absorbed, turned], axis=-1),
            pages,
            context.rows.page_table,
            context.rows.query_start,
            context.rows.context_len,
            rank=self.latent.rank,
            scale=self.scale,
            decode=context.is_decode,
            implementation=self.build.attention,
            plan=context.attention_plans[self.plan],
        )
        return _each_head(self.build, "thr,hvr->thv", attended, to_value), (pages,)


class LatentHeads(nnx.Module):
    """What makes keys and values of a latent, `[H, key_dim, rank]` and `[H, value_dim, rank]`.

    Two arrays of the checkpoint's one, so that no step cuts it. Multiplied into the projections beside them once and
    for all, they would be larger than both: of DeepSeek-V3, 1536 x 512 numbers a head in place of 1536 x 128 + 128 x
    512, so each step has two small products more instead. A quantized one is dequantized while it is read.
    """

    def __init__(self, build: Build, latent: LatentConfig, heads: int) -> None:
        both = Split("weight", (heads, latent.key_dim + latent.value_dim), (latent.rank,))
        self.key = build.param(Part(both, 0), (heads, latent.key_dim, latent.rank), 0)
        self.value = build.param(Part(both, latent.key_dim), (heads, latent.value_dim, latent.rank), 0)


def latent_arrays(build: Build, config: ModelConfig) -> tuple[CacheArray, ...]:
    """What `LatentAttention` keeps: one array, the same on every device."""
    latent = config.latent
    assert latent is not None
    return (CacheArray(1, latent.rank + latent.rope_dim, build.kv_dtype, sharded=False),)


def _whole(build: Build, shape: tuple[int, int], biased: bool) -> Linear:
    """A product `[inputs, outputs]` that every device computes."""
    bias = Tensor("bias", shape[1:]) if biased else None
    return Linear(build, Tensor("weight", shape[::-1]), shape, shard=None, bias=bias)


def _each_head(build: Build, axes: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """A product of each head with a weight of its own, in x's dtype; sums are float32."""
    sums = build.rounded_sums
    y = jnp.einsum(axes, x.astype(weight.dtype), weight, precision=build.precision, preferred_element_type=sums)
    return y.astype(x.dtype)
