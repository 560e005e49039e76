"""Latent attention for decode: one query a row, the row's range of keys split across programs (flash-decoding).

A program serves up to M of the query heads of one row, which all share its keys. A batch too small to fill the GPU
is split along the keys, and the kernel that combines the parts of paged attention combines these too.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.decode_parts import Splitting, choose_splitting, find_part, part_ends
from ..paged_attention.target import H200, Target
from ..paged_attention.triton_decode import combine
from ..paged_attention.triton_tile import Ref, Softmax, Tiling, normalize, output
from .triton_tile import Latent, Rows, attend, check_support, choose_tiling

__all__ = ["latent_attention_decode"]

MAX_SPLITS = 32  # the combining kernel holds [splits, rank] in registers


def latent_attention_decode(
    q: jax.Array,
    pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    rank: int,
    scale: float,
    num_splits: int | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of one query a row; shapes as in `latent_attention`, and row s owns token s.

    num_splits pins how many programs share a row's keys; by default it follows from the shapes and the
    number of SMs. Raises NotImplementedError naming the supported shapes.
    """
    del query_start  # row s owns token s
    check_support(q, pages, rank)
    (S, H, D), B = q.shape, pages.shape[2]
    latent = Latent(rank, D - rank, B, scale)
    tiling = choose_tiling("latent_decode", latent, H, q.dtype, target)
    tiles, keys = pl.cdiv(H, tiling.M), page_table.shape[1] * B
    splitting = choose_splitting(S, tiles, keys, tiling.C, None, target.num_cores, most=MAX_SPLITS)
    if num_splits is not None:
        splitting = replace(splitting, wanted=num_splits, most=num_splits)
    call = functools.partial(
        pl.pallas_call,
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
    )
    args = (q.reshape(S * H, D), pages, page_table, context_len)
    shape = functools.partial(functools.partial, H=H, latent=latent, tiling=tiling, splitting=splitting)
    if splitting.most == 1:
        whole: jax.Array = call(
            shape(_whole_kernel), grid=(tiles, S), out_shape=output((S * H, rank), q.dtype, q), name="latent_decode"
        )(*args)
        return whole.reshape(S, H, rank)
    parts_shape = (S, splitting.most, 1, H)
    parts = output((*parts_shape, rank), jnp.float32, q), output(parts_shape, jnp.float32, q)
    o, lse = call(shape(_split_kernel), grid=(splitting.programs, tiles), out_shape=parts, name="latent_decode_split")(
        *args
    )
    return combine(o, lse, context_len, (), splitting, H, q.dtype, interpret)


def _tile(row: jax.Array, tile: jax.Array, H: int, M: int) -> Rows:
    """The heads of one row that this program serves; the last tile of a row may have fewer than M."""
    return Rows(row * H + tile * M, jnp.minimum(H - tile * M, M), M)


def _attend(
    refs: tuple[Ref, ...],
    row: jax.Array,
    rows: Rows,
    blocks: tuple[jax.Array, jax.Array],
    latent: Latent,
    tiling: Tiling,
) -> Softmax:
    q_ref, ref, table_ref, len_ref = refs
    length = len_ref[row]
    q, position = rows.queries(q_ref, latent), jnp.full((tiling.M,), length - 1, jnp.int32)
    empty = Softmax.empty(tiling.M, latent.rank)
    return attend(empty, q, position, (ref, table_ref), row, blocks, length, latent=latent, tiling=tiling)


def _whole_kernel(*refs: Ref, H: int, latent: Latent, tiling: Tiling, splitting: Splitting) -> None:
    *inputs, o_ref = refs
    row = pl.program_id(1)
    rows = _tile(row, pl.program_id(0), H, tiling.M)
    softmax = _attend(tuple(inputs), row, rows, splitting.live_blocks(inputs[-1][row]), latent, tiling)
    index, mask = rows.index(latent.value)
    plt.store(o_ref.at[index], normalize(softmax).astype(o_ref.dtype), mask=mask)


def _split_kernel(*refs: Ref, H: int, latent: Latent, tiling: Tiling, splitting: Splitting) -> None:
    *inputs, o_ref, lse_ref = refs
    len_ref = inputs[-1]
    ends = part_ends(len_ref, splitting)
    first, step, tile = pl.program_id(0), pl.num_programs(0), pl.program_id(1)

    def compute(turn: jax.Array, nothing: jax.Array) -> jax.Array:
        row, part = find_part(ends, first + turn * step)
        rows = _tile(row, tile, H, tiling.M)
        softmax = _attend(tuple(inputs), row, rows, splitting.blocks(len_ref[row], part), latent, tiling)
        (m, d), mask = rows.index(latent.value)
        plt.store(o_ref.at[row, part, 0, m - row * H, d], normalize(softmax), mask=mask)
        m = lax.iota(jnp.int32, tiling.M)
        plt.store(lse_ref.at[row, part, 0, tile * tiling.M + m], softmax.m + jnp.log2(softmax.l), mask=m < rows.count)
        return nothing

    turns = lax.div(jnp.maximum(ends.max(0) - first, 0) + (step - 1), step)
    lax.fori_loop(0, turns, compute, jnp.int32(0))
