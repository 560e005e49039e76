"""Paged attention for prefill chunks and mixed batches: one launch over ragged rows, causal.

A program serves one KV head of up to M // G queries of one row, with their G query heads packed in one tile.
Rows are found inside the kernel, so no host or XLA work depends on how the batch is cut.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..tuning import tuned
from .eight_bits import LARGEST
from .target import H200, Target
from .triton_tile import (
    Head,
    Ref,
    Softmax,
    Tiling,
    attend,
    check_support,
    in_words,
    load_sink,
    normalize,
    output,
    power_of_two,
    split_extras,
)

__all__ = ["QueryTile", "choose_tiling", "find_tile", "paged_attention_prefill"]


@dataclass(frozen=True, slots=True)
class QueryTile:
    """The queries of one program: tokens first:end of row; first >= end where there is nothing to do."""

    row: jax.Array
    first: jax.Array
    end: jax.Array
    position: jax.Array  # of token `first` in its row's context


def paged_attention_prefill(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of ragged rows; shapes as in `paged_attention`, and tiles chosen for `target`.

    Raises NotImplementedError naming the supported shapes.
    """
    scales = tuple(array for array in (k_scale, v_scale) if array is not None)
    check_support(q, k_pages, v_pages, scales, max_group=64)
    (T, H, D), (_, K, B, _), S = q.shape, k_pages.shape, context_len.shape[0]
    casts = target.has_fp8 or k_pages.dtype != jnp.uint8
    head = Head(H // K, D, B, scale, sliding_window, soft_cap, casts)
    tiling = choose_tiling(head, q.dtype, k_pages.dtype, T, target)
    # Each row starts at tile query_start // width + row: room for every ragged end, with no prefix sum. One
    # more row, S, takes the padding tokens and writes their zeros.
    tiles = T // (tiling.M // head.G) + S + 1
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, head=head, tiling=tiling),
        grid=(tiles, K),
        out_shape=output(q.shape, q.dtype, q),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="paged_prefill",
    )(
        q,
        in_words(k_pages),
        in_words(v_pages),
        page_table,
        query_start,
        context_len,
        *scales,
        *(() if sinks is None else (sinks,)),
    )
    return out


def choose_tiling(head: Head, dtype: jnp.dtype, held: jnp.dtype, T: int, target: Target) -> Tiling:
    """The largest tile whose sums stay in registers: no spill on sm_80, sm_90a and sm_100a, which tests assert.

    Or the tuned one; of either no more rows than there are queries. dtype: of the queries; held: of the pages, whose
    codes of 8 bits pass through registers to be converted.
    """
    narrow = head.padded_D <= 128
    if jnp.dtype(dtype) == jnp.float32:
        # Full float32 products run on the plain cores, and their operands live in registers too.
        wanted = Tiling(32, 16, 8, 2) if narrow else Tiling(16, 16, 4, 2)
    elif target.has_wgmma:
        wanted = Tiling(128, 64, 8, 3) if narrow else Tiling(64, 32, 8, 2 if held in LARGEST else 3)
        if head.padded_D <= 64 and head.sliding_window is not None:
            # The masks of 64 keys spill on sm_100a; and a narrow window has fewer keys outside it in smaller blocks.
            wanted = replace(wanted, C=32)
    else:  # operands pass through registers; and the 99 KiB of shared memory of sm_86 and sm_89 must do
        wanted = Tiling(128 if head.casts_fp8 else 64, 32, 8, 3) if narrow else Tiling(64, 32, 8, 2)
    wanted = tuned(target.kind, "paged_prefill", head.key(dtype), wanted)
    few_queries = power_of_two(T * head.G)
    return replace(wanted, M=max(16, power_of_two(head.G), min(wanted.M, few_queries)))


def _kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    table_ref: Ref,
    start_ref: Ref,
    len_ref: Ref,
    *refs: Ref,
    head: Head,
    tiling: Tiling,
) -> None:
    *extras, o_ref = refs
    scales, sinks = split_extras(k_ref, tuple(extras))
    tile = find_tile(start_ref, len_ref, tiling.M // head.G, q_ref.shape[0])
    kv_head = pl.program_id(1)
    index, mask = _query_index(tile, kv_head, head, tiling.M)
    q = plt.load(q_ref.at[index], mask=mask, other=0)
    position = tile.position + lax.div(lax.iota(jnp.int32, tiling.M), head.G)
    # Keys up to the tile's last query; none for a tile without queries and for padding.
    queries = jnp.minimum(tile.end - tile.first, tiling.M // head.G)
    stop = jnp.where(queries > 0, jnp.maximum(tile.position + queries, 0), 0)
    where = (jnp.minimum(tile.row, table_ref.shape[0] - 1), kv_head)
    softmax = Softmax.empty(tiling.M, head.padded_D)
    run = functools.partial(
        attend,
        q=q,
        position=position,
        pages=(k_ref, v_ref, table_ref, *scales),
        where=where,
        head=head,
        tiling=tiling,
    )
    end = lax.div(stop + (tiling.C - 1), tiling.C)
    low = None
    if head.sliding_window is None:
        # Blocks that end at or before the first query's position need no mask: most of a long context.
        masked_from = jnp.minimum(lax.div(jnp.maximum(tile.position + 1, 0), tiling.C), end)
        softmax = run(softmax, blocks=(jnp.int32(0), masked_from), stop=None)
    else:
        low = tile.position + 1 - head.sliding_window
        masked_from = lax.div(jnp.maximum(low, 0), tiling.C)
    softmax = run(softmax, blocks=(masked_from, end), stop=stop, low=low)
    sink = load_sink(sinks, kv_head * head.G + lax.rem(lax.iota(jnp.int32, tiling.M), head.G))
    plt.store(o_ref.at[index], normalize(softmax, sink).astype(o_ref.dtype), mask=mask)


def find_tile(start_ref: Ref, len_ref: Ref, width: int, T: int) -> QueryTile:
    """Which queries this program owns; width: queries in a tile."""
    S = len_ref.shape[0]
    # Within a row the last tile sees the most keys; start the long ones first.
    tile = pl.num_programs(0) - 1 - pl.program_id(0)
    rows = lax.iota(jnp.int32, power_of_two(S + 1))
    starts = plt.load(start_ref.at[rows], mask=rows <= S, other=0)
    begun = (rows <= S) & (lax.div(starts, width) + rows <= tile)
    row = begun.astype(jnp.int32).sum() - 1
    start = start_ref[row]
    end = jnp.where(row < S, start_ref[jnp.minimum(row + 1, S)], T)
    first = start + (tile - lax.div(start, width) - row) * width
    length = jnp.where(row < S, len_ref[jnp.minimum(row, S - 1)], 0)
    return QueryTile(row, first, end, length - end + first)


def _query_index(tile: QueryTile, kv_head: jax.Array, head: Head, M: int) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Where the tile's (query, head) rows lie in [T, H, D], as [M, padded_D], and which elements exist."""
    m = lax.broadcasted_iota(jnp.int32, (M, head.padded_D), 0)
    d, exists = head.depth(M)
    token = tile.first + lax.div(m, head.G)
    mask = (token < tile.end) & (m < M // head.G * head.G) & exists
    return (token, kv_head * head.G + lax.rem(m, head.G), d), mask
