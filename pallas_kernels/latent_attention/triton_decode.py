"""Latent attention for decode: one query a row, the row's range of keys split across programs (flash-decoding).

A program serves up to M of the query heads of one row, which all share its keys. A batch too small to fill the GPU
is split along the keys, and the kernel that combines the parts of paged attention combines these too.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import H200, Target
from ..paged_attention.triton_decode import MIN_BLOCKS, choose_splits, combine, live_blocks
from ..paged_attention.triton_tile import DEAD, Ref, Softmax, Tiling, normalize, output
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
    tiling = choose_tiling(H, q.dtype, target)
    latent = Latent(rank, D - rank, B, scale)
    tiles, keys = pl.cdiv(H, tiling.M), page_table.shape[1] * B
    splits = num_splits or min(MAX_SPLITS, choose_splits(S * tiles, keys, tiling.C, target.num_cores))
    call = functools.partial(
        pl.pallas_call,
        grid=(splits, tiles, S),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
    )
    args = (q.reshape(S * H, D), pages, page_table, context_len)
    if splits == 1:
        kernel = functools.partial(_whole_kernel, H=H, latent=latent, tiling=tiling)
        whole: jax.Array = call(kernel, out_shape=output((S * H, rank), q.dtype, q), name="latent_decode")(*args)
        return whole.reshape(S, H, rank)
    kernel = functools.partial(_split_kernel, H=H, latent=latent, tiling=tiling, splits=splits)
    parts = (output((S * H, splits, rank), jnp.float32, q), output((S * H, splits), jnp.float32, q))
    o, lse = call(kernel, out_shape=parts, name="latent_decode_split")(*args)
    return combine(o.reshape(S, H, splits, rank), lse.reshape(S, H, splits), (), q.dtype, interpret)


def _tile(H: int, M: int) -> Rows:
    """The heads of one row that this program serves; the last tile of a row may have fewer than M."""
    tile, row = pl.program_id(1), pl.program_id(2)
    return Rows(row * H + tile * M, jnp.minimum(H - tile * M, M), M)


def _attend(
    refs: tuple[Ref, ...], rows: Rows, blocks: tuple[jax.Array, jax.Array], latent: Latent, tiling: Tiling
) -> Softmax:
    q_ref, ref, table_ref, len_ref = refs
    row = pl.program_id(2)
    length = len_ref[row]
    q, position = rows.queries(q_ref, latent), jnp.full((tiling.M,), length - 1, jnp.int32)
    empty = Softmax.empty(tiling.M, latent.rank)
    return attend(empty, q, position, (ref, table_ref), row, blocks, length, latent=latent, tiling=tiling)


def _whole_kernel(*refs: Ref, H: int, latent: Latent, tiling: Tiling) -> None:
    *inputs, o_ref = refs
    rows = _tile(H, tiling.M)
    blocks = live_blocks(inputs[-1][pl.program_id(2)], None, tiling.C)
    softmax = _attend(tuple(inputs), rows, blocks, latent, tiling)
    index, mask = rows.index(latent.value)
    plt.store(o_ref.at[index], normalize(softmax).astype(o_ref.dtype), mask=mask)


def _split_kernel(*refs: Ref, H: int, latent: Latent, tiling: Tiling, splits: int) -> None:
    *inputs, o_ref, lse_ref = refs
    rows, split = _tile(H, tiling.M), pl.program_id(0)
    first, end = live_blocks(inputs[-1][pl.program_id(2)], None, tiling.C)
    share = jnp.maximum(lax.div(end - first + (splits - 1), splits), MIN_BLOCKS)
    first = first + split * share
    softmax = _attend(tuple(inputs), rows, (first, jnp.minimum(first + share, end)), latent, tiling)
    (row, d), mask = rows.index(latent.value)
    # A split past the live range leaves its part of o unwritten; DEAD tells the combining kernel not to look.
    alive = softmax.l > 0
    plt.store(o_ref.at[row, split, d], normalize(softmax), mask=mask & alive[:, None])
    lse = jnp.where(alive, softmax.m + jnp.log2(jnp.where(alive, softmax.l, 1)), DEAD)
    m = lax.iota(jnp.int32, tiling.M)
    plt.store(lse_ref.at[rows.first + m, split], lse, mask=m < rows.count)
