"""Latent attention for prefill chunks and mixed batches: one launch over ragged rows, causal.

A program serves M pairs of a query and a head: all heads of some queries of one row, or where a query has more than
M heads, some heads of one query. Pallas Triton.
Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import H200, Target
from ..paged_attention.triton_prefill import find_tile
from ..paged_attention.triton_tile import Ref, Softmax, Tiling, normalize, output
from .triton_tile import Latent, Rows, attend, check_support, choose_tiling

__all__ = ["latent_attention_prefill"]


def latent_attention_prefill(
    q: jax.Array,
    pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    rank: int,
    scale: float,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of ragged rows; shapes as in `latent_attention`, and tiles chosen for `target`.

    Raises NotImplementedError naming the supported shapes.
    """
    check_support(q, pages, rank)
    (T, H, D), B, S = q.shape, pages.shape[2], context_len.shape[0]
    latent = Latent(rank, D - rank, B, scale)
    tiling = choose_tiling("latent_prefill", latent, T * H, q.dtype, target)
    # As in paged attention: room for every ragged end, and one more row for the padding tokens.
    tiles = T // max(1, tiling.M // H) + S + 1
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, H=H, latent=latent, tiling=tiling),
        grid=(tiles, pl.cdiv(H, tiling.M)),
        out_shape=output((T * H, rank), q.dtype, q),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="latent_prefill",
    )(q.reshape(T * H, D), pages, page_table, query_start, context_len)
    return out.reshape(T, H, rank)


def _kernel(
    q_ref: Ref,
    ref: Ref,
    table_ref: Ref,
    start_ref: Ref,
    len_ref: Ref,
    o_ref: Ref,
    *,
    H: int,
    latent: Latent,
    tiling: Tiling,
) -> None:
    width = max(1, tiling.M // H)
    tile = find_tile(start_ref, len_ref, width, q_ref.shape[0] // H)
    queries = jnp.clip(tile.end - tile.first, 0, width)
    part = pl.program_id(1) * tiling.M  # 0 where a tile takes all heads
    rows = Rows(tile.first * H + part, jnp.minimum(queries * H - part, tiling.M), tiling.M)
    q = rows.queries(q_ref, latent)
    position = tile.position + lax.div(lax.iota(jnp.int32, tiling.M) + part, H)
    # Keys up to the tile's last query; none for a tile without queries and for padding.
    stop = jnp.where(queries > 0, jnp.maximum(tile.position + queries, 0), 0)
    row = jnp.minimum(tile.row, table_ref.shape[0] - 1)
    blocks = jnp.int32(0), lax.div(stop + (tiling.C - 1), tiling.C)
    softmax = Softmax.empty(tiling.M, latent.rank)
    softmax = attend(softmax, q, position, (ref, table_ref), row, blocks, stop, latent=latent, tiling=tiling)
    index, mask = rows.index(latent.value)
    plt.store(o_ref.at[index], normalize(softmax).astype(o_ref.dtype), mask=mask)
