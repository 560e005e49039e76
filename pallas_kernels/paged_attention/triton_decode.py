"""Paged attention for decode: one query a row, the row's KV range split across programs (flash-decoding).

A program serves one KV head of one row with all G query heads in one tile, so each key is read once. A batch
too small to fill the GPU, and a long row, are split along the KV range, and a second small kernel combines the parts.
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
from .decode_parts import PROGRAMS_PER_CORE, Splitting, choose_splitting, find_part, part_ends
from .target import H200, Target
from .triton_tile import (
    DEAD,
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

__all__ = ["choose_tiling", "combine", "paged_attention_decode"]

MAX_SPLITS = 128  # the combining kernel holds [splits, D] in registers


@dataclass(frozen=True, slots=True)
class Filling:
    """How many programs a batch is split into, if it has fewer."""

    programs_per_core: int = PROGRAMS_PER_CORE


def paged_attention_decode(
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
    num_splits: int | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of one query a row; shapes as in `paged_attention`, and row s owns token s.

    num_splits pins how many programs share a row's keys; by default it follows from the shapes and the
    number of SMs. Raises NotImplementedError naming the supported shapes.
    """
    del query_start  # row s owns token s
    scales = tuple(array for array in (k_scale, v_scale) if array is not None)
    check_support(q, k_pages, v_pages, scales, max_group=64)
    (S, H, D), (_, K, B, _) = q.shape, k_pages.shape
    casts = target.has_fp8 or k_pages.dtype != jnp.uint8
    head = Head(H // K, D, B, scale, sliding_window, soft_cap, casts)
    tiling = choose_tiling(head, q.dtype, target)
    keys = page_table.shape[1] * B
    filling = tuned(target.kind, "paged_decode_splits", head.key(q.dtype), Filling())
    splitting = choose_splitting(
        S, K, keys, tiling.C, sliding_window, target.num_cores, most=MAX_SPLITS, per_core=filling.programs_per_core
    )
    if num_splits is not None:
        splitting = replace(splitting, wanted=num_splits, most=num_splits)
    call = functools.partial(
        pl.pallas_call,
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
    )
    args = (q, in_words(k_pages), in_words(v_pages), page_table, context_len, *scales)
    extras = () if sinks is None else (sinks,)
    if splitting.most == 1:
        kernel = functools.partial(_whole_kernel, head=head, tiling=tiling, splitting=splitting)
        whole: jax.Array = call(kernel, grid=(K, S), out_shape=output(q.shape, q.dtype, q), name="paged_decode")(
            *args, *extras
        )
        return whole
    kernel = functools.partial(_split_kernel, head=head, tiling=tiling, splitting=splitting)
    shape = (S, splitting.most, K, head.G)
    parts = output((*shape, D), jnp.float32, q), output(shape, jnp.float32, q)
    o, lse = call(kernel, grid=(splitting.programs, K), out_shape=parts, name="paged_decode_split")(*args)
    return combine(o, lse, context_len, extras, splitting, head.G, q.dtype, interpret)


def choose_tiling(head: Head, dtype: jnp.dtype, target: Target = H200) -> Tiling:
    """Tile for the tensor cores: at least 16 rows, and blocks of up to 16 KiB of keys, double buffered.

    Three stages are two buffers: the loads of the next block run while this one is multiplied. float32 has no
    tensor cores here and holds its operands in registers; more than 16 keys spill. Or the tuned one.
    """
    M = max(16, power_of_two(head.G))
    itemsize = jnp.dtype(dtype).itemsize
    # 64 keys out of several pages, each key with a page of its own to look up, spill on sm_90a.
    most = 64 if head.B >= 64 else 32
    C = 16 if itemsize == 4 else max(16, min(most, 16384 // (head.padded_D * itemsize)))
    return tuned(target.kind, "paged_decode", head.key(dtype), Tiling(M, C, num_warps=4, num_stages=3))


def _attend(
    refs: tuple[Ref, ...],
    where: tuple[jax.Array, jax.Array],
    blocks: tuple[jax.Array, jax.Array],
    head: Head,
    tiling: Tiling,
) -> Softmax:
    """where: (row, KV head)"""
    q_ref, k_ref, v_ref, table_ref, len_ref, *scales = refs
    row, kv_head = where
    length = len_ref[row]
    index, mask = _query_index(row, kv_head, head, tiling.M)
    q = plt.load(q_ref.at[index], mask=mask, other=0)
    position = jnp.full((tiling.M,), length - 1, jnp.int32)
    empty = Softmax.empty(tiling.M, head.padded_D)
    pages = (k_ref, v_ref, table_ref, *scales)
    low = None if head.sliding_window is None else length - head.sliding_window
    return attend(empty, q, position, pages, where, blocks, length, low=low, head=head, tiling=tiling)


def _query_index(row: jax.Array, kv_head: jax.Array, head: Head, M: int) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Where the G query heads lie in [T, H, D], as [M, padded_D], and which elements exist."""
    g = lax.broadcasted_iota(jnp.int32, (M, head.padded_D), 0)
    d, exists = head.depth(M)
    return (row, kv_head * head.G + g, d), (g < head.G) & exists


def _whole_kernel(*refs: Ref, head: Head, tiling: Tiling, splitting: Splitting) -> None:
    q_ref, k_ref, v_ref, table_ref, len_ref, *extras, o_ref = refs
    scales, sinks = split_extras(k_ref, tuple(extras))
    kv_head, row = pl.program_id(0), pl.program_id(1)
    blocks = splitting.live_blocks(len_ref[row])
    softmax = _attend((q_ref, k_ref, v_ref, table_ref, len_ref, *scales), (row, kv_head), blocks, head, tiling)
    g = lax.iota(jnp.int32, tiling.M)
    sink = load_sink(sinks, kv_head * head.G + g, g < head.G)
    index, mask = _query_index(row, kv_head, head, tiling.M)
    plt.store(o_ref.at[index], normalize(softmax, sink).astype(o_ref.dtype), mask=mask)


def _split_kernel(*refs: Ref, head: Head, tiling: Tiling, splitting: Splitting) -> None:
    *inputs, o_ref, lse_ref = refs
    len_ref, kv_head = inputs[4], pl.program_id(1)
    ends = part_ends(len_ref, splitting)
    first, step = pl.program_id(0), pl.num_programs(0)

    def compute(turn: jax.Array, nothing: jax.Array) -> jax.Array:
        row, part = find_part(ends, first + turn * step)
        blocks = splitting.blocks(len_ref[row], part)
        softmax = _attend(tuple(inputs), (row, kv_head), blocks, head, tiling)
        (_, _, d), mask = _query_index(row, kv_head, head, tiling.M)
        g = lax.broadcasted_iota(jnp.int32, d.shape, 0)
        plt.store(o_ref.at[row, part, kv_head, g, d], normalize(softmax), mask=mask)
        g = lax.iota(jnp.int32, tiling.M)
        plt.store(lse_ref.at[row, part, kv_head, g], softmax.m + jnp.log2(softmax.l), mask=g < head.G)
        return nothing

    turns = lax.div(jnp.maximum(ends.max(0) - first, 0) + (step - 1), step)
    lax.fori_loop(0, turns, compute, jnp.int32(0))


def combine(
    o: jax.Array,
    lse: jax.Array,
    context_len: jax.Array,
    sinks: tuple[jax.Array, ...],
    splitting: Splitting,
    G: int,
    dtype: jnp.dtype,
    interpret: bool,
) -> jax.Array:
    """Weigh the parts o f32[S, parts, K, W, D] by 2^lse, f32[S, parts, K, W], to [S, K * G, D]. sinks: ([H],) or ().

    Of W heads beside a KV head the first G exist. What a row has no part for is not read: nobody wrote it.
    """
    S, most, K, _, D = o.shape
    H = K * G
    elements = power_of_two(most) * power_of_two(D)
    out: jax.Array = pl.pallas_call(
        functools.partial(_combine_kernel, splitting=splitting, G=G),
        grid=(H, S),
        out_shape=output((S, H, D), dtype, o),
        compiler_params=plt.CompilerParams(num_warps=max(1, min(8, elements // 2048)), num_stages=1),
        interpret=interpret,
        name="paged_decode_combine",
    )(o, lse, context_len, *sinks)
    return out


def _combine_kernel(o_ref: Ref, lse_ref: Ref, len_ref: Ref, *refs: Ref, splitting: Splitting, G: int) -> None:
    *sinks, out_ref = refs
    h, row = pl.program_id(0), pl.program_id(1)
    kv_head, g = lax.div(h, G), lax.rem(h, G)
    _, most, _, _, D = o_ref.shape
    shape = (power_of_two(most), power_of_two(D))
    parts, part = splitting.parts(len_ref[row]) * splitting.pieces, lax.iota(jnp.int32, shape[0])
    lse = plt.load(lse_ref.at[row, part, kv_head, g], mask=part < parts, other=DEAD)
    largest = lse.max(0)
    weight = jnp.exp2(lse - largest)
    total = weight.sum(0)
    sink = load_sink(tuple(sinks), h)
    if sink is not None:
        total += jnp.exp2(sink - largest)
    rows, d = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    o = plt.load(o_ref.at[row, rows, kv_head, g, d], mask=(rows < parts) & (d < D), other=0)
    combined = (o * weight[:, None]).sum(0) / jnp.where(total == 0, 1, total)
    depth = lax.iota(jnp.int32, shape[1])
    plt.store(out_ref.at[row, h, depth], combined.astype(out_ref.dtype), mask=depth < D)
