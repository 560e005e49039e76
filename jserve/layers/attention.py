"""Self-attention over the paged KV cache."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import CacheArray, LayerKV, StepContext, TextContext
from jserve.config import ModelConfig
from jserve.layers.bidirectional import attend as attend_both_ways
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.fused_source import Fused, Split, Transposed
from jserve.layers.linear import Linear
from jserve.layers.norm import EachHeadLayerNorm, HeadsRMSNorm, RMSNorm
from jserve.layers.rope import apply_rope
from jserve.layers.source import GroupedHeads, Source, Tensor
from pallas_kernels.paged_attention import paged_attention, write_kv

NormOfHeads = Callable[[str, int, int], RMSNorm | HeadsRMSNorm | EachHeadLayerNorm | None]
"""Makes the norm of "q" or "k" of so many heads, each kept so often."""


@dataclass(frozen=True, slots=True)
class Projections:
    """How a family's checkpoints keep the products of attention, by name."""

    fused: str | None = None
    """One tensor of query, key and value, one below the other; None where there are q_proj, k_proj and v_proj."""
    by_head: bool = False
    """`fused` holds each head's query, key and value together."""
    output: str = "o_proj"
    q_norm: str = "q_norm"
    """The norm of each head, where there is one."""
    k_norm: str = "k_norm"
    inputs_first: bool = False

    def qkv(self, heads: GroupedHeads) -> Source:
        """Where the product of query, key and value, or its bias, comes from."""
        if self.fused is None:
            return heads
        name = f"../{self.fused}.{heads.suffix}"
        if self.by_head:
            return Split(name, (heads.num_heads, 3, heads.head_dim), heads.inner)
        return Transposed(Fused(heads, name)) if self.inputs_first and heads.inner else Fused(heads, name)

    def out(self, shape: tuple[int, int]) -> Source:
        """Where the output projection comes from."""
        source = Tensor(f"../{self.output}.weight", shape)
        return Transposed(source) if self.inputs_first else source


class Attention(nnx.Module):
    """Grouped-query attention with rotary embedding; query, key and value are one product.

    `K` is the number of KV heads in the cache: with more devices than KV heads, each KV head is kept
    several times, so that every device has one. With `output_gate` what a head attends to is weighted by a sigmoid.
    """

    def __init__(
        self,
        build: Build,
        config: ModelConfig,
        layer: int,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        head_norm: type[RMSNorm] | None = None,
        projection_norm: bool = False,
        norms: NormOfHeads | None = None,
        projections: Projections = Projections(),
        sinks: bool = False,
        others: tuple[str, ...] = ("k", "v"),
        output_gate: bool = False,
    ) -> None:
        hidden, dim = config.hidden_size, config.head_dim
        copies = kv_head_copies(config, build.tensor_parallel)
        rows = config.num_heads * (1 + output_gate)  # each query is followed by its gate
        weight = GroupedHeads(rows, config.num_kv_heads, dim, "weight", (hidden,), copies, others)
        bias = GroupedHeads(rows, config.num_kv_heads, dim, "bias", (), copies, others)
        kv_heads, self.groups = config.num_kv_heads * copies, weight.groups
        self.qkv_proj = Linear(
            build,
            projections.qkv(weight),
            (hidden, kv_heads, self.groups + len(others), dim),
            shard=1,
            bias=projections.qkv(bias) if qkv_bias else None,
        )
        self.o_proj = Linear(
            build,
            projections.out((hidden, config.num_heads * dim)),
            (config.num_heads * dim, hidden),
            shard=0,
            bias=Tensor(f"../{projections.output}.bias", (hidden,)) if output_bias else None,
        )
        if norms is None:
            norms = _norm_of_heads(build, config, head_norm, projection_norm, projections)
        self.q_norm = norms("q", config.num_heads, 1)
        self.k_norm = norms("k", config.num_kv_heads, copies)
        self.sinks = build.param(Tensor("sinks", (config.num_heads,)), (config.num_heads,), 0) if sinks else None
        self.scale = config.attention_scale or dim**-0.5
        self.output_gate = output_gate
        self.soft_cap = config.attention_soft_cap
        rope = config.layer_ropes[layer]
        self.rope = None if rope is None else config.ropes.index(rope)
        self.interleaved = rope is not None and rope.interleaved
        window = config.layer_windows[layer]
        self.in_chunks = config.windows_are_chunks and window is not None
        self.window = None if self.in_chunks else window
        self.plan = config.windows.index(window)
        self.build = build

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext | TextContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E]. Writes the step's keys and values into `kv`, then attends. Returns [T, E] and the cache, which is
        empty where the tokens of whole texts see each other both ways.
        """
        tokens = x.shape[0]
        qkv = self.qkv_proj(x)
        q, gate = qkv[:, :, : self.groups], None
        if self.output_gate:
            q, gate = q[:, :, 0::2], q[:, :, 1::2]
        q = q.reshape(tokens, -1, qkv.shape[-1])
        k, v = qkv[:, :, self.groups], qkv[:, :, self.groups + 1]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.place(q, k, context)
        if isinstance(context, TextContext):
            out = self._attend_both_ways(q, k, v, context)
        else:
            out, kv = self.attend(q, k, v, kv, context)
        if gate is not None:
            out *= jax.nn.sigmoid(gate.reshape(out.shape))
        return self.o_proj(out.reshape(tokens, -1)), kv

    def place(self, q: jax.Array, k: jax.Array, context: StepContext | TextContext) -> tuple[jax.Array, jax.Array]:
        """Queries and keys, [T, heads, D], with the positions of their tokens in them; related families differ here."""
        if self.rope is None:
            return q, k
        table = context.ropes[self.rope]
        return tuple(apply_rope(heads, table, interleaved=self.interleaved) for heads in (q, k))  # type: ignore[return-value]

    def _attend_both_ways(self, q: jax.Array, k: jax.Array, v: jax.Array, context: TextContext) -> jax.Array:
        return attend_both_ways(
            q,
            k,
            v,
            context.lengths,
            scale=self.scale,
            radius=self.window,
            soft_cap=self.soft_cap,
            precision=self.build.precision,
        )

    def attend(
        self, q: jax.Array, k: jax.Array | None, v: jax.Array | None, kv: LayerKV, context: StepContext
    ) -> tuple[jax.Array, LayerKV]:
        """[T, H, D] of queries [T, H, D], and the cache with keys and values [T, K, D] in it.

        Without `k` and `v` another layer has put them there.
        """

        def local(
            q: jax.Array,
            k: jax.Array | None,
            v: jax.Array | None,
            kv: LayerKV,
            sinks: jax.Array | None,
            context: StepContext,
        ) -> tuple[jax.Array, LayerKV]:
            k_pages, v_pages, *scales = kv
            if k is not None and v is not None:
                k_pages, v_pages, *scales = kv = write_kv(k_pages, v_pages, k, v, context.write_slots, *scales)
            rows = context.chunks if self.in_chunks else context.rows
            assert rows is not None
            out = paged_attention(
                q,
                k_pages,
                v_pages,
                rows.page_table,
                rows.query_start,
                rows.context_len,
                sinks,
                *scales,
                scale=self.scale,
                sliding_window=self.window,
                soft_cap=self.soft_cap,
                decode=context.is_decode,
                implementation=self.build.attention,
                plan=context.attention_plans[self.plan],
            )
            return out, kv

        sinks = None if self.sinks is None else self.sinks[...]
        if self.build.tensor_parallel == 1:
            return local(q, k, v, kv, sinks, context)
        heads, whole = PartitionSpec(None, TENSOR_AXIS), PartitionSpec()
        specs = (heads, heads, heads, heads, PartitionSpec(TENSOR_AXIS), whole)
        out, pages = self.build.spread(local, specs, (heads, heads))(q, k, v, kv, sinks, context)
        return out, pages


def _norm_of_heads(
    build: Build, config: ModelConfig, each: type[RMSNorm] | None, over_all: bool, projections: Projections
) -> NormOfHeads:
    """Makes norms of one kind for each head, or over all heads, or none."""

    def norm(side: str, heads: int, copies: int) -> RMSNorm | HeadsRMSNorm | None:
        if over_all:
            return HeadsRMSNorm(build, heads, config.head_dim, config.norm_eps, copies)
        name = projections.q_norm if side == "q" else projections.k_norm
        return None if each is None else each(build, config.head_dim, config.norm_eps, f"../{name}.weight")

    return norm


def kv_arrays(build: Build, config: ModelConfig) -> tuple[CacheArray, ...]:
    """What `Attention` keeps: keys and values, then their scales where they have 8 bits."""
    heads = config.num_kv_heads * kv_head_copies(config, build.tensor_parallel)
    if build.kv_cache == "auto":
        return (CacheArray(heads, config.head_dim, build.kv_dtype),) * 2
    codes = jnp.dtype({"int8": "int8", "fp8": "uint8"}[build.kv_cache])  # the bits of float8: see `write_kv`
    return (*(CacheArray(heads, config.head_dim, codes),) * 2, *(CacheArray(heads, 1, jnp.dtype("float32")),) * 2)


def kv_head_copies(config: ModelConfig, tensor_parallel: int) -> int:
    """How often each KV head is kept, so that the tensor axis divides them."""
    return max(1, tensor_parallel // config.num_kv_heads)
