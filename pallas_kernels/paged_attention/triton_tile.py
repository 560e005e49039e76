"""The inner loop that the decode and prefill kernels share: one tile of queries against a range of KV blocks.

FlashAttention with the online softmax (Dao 2023, arXiv:2307.08691, section 3.1) in base 2, over paged keys.
Knows nothing of grids, rows of a batch or splits.
Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from ..words import as_words, bytes_of, is_word
from .eight_bits import LARGEST, widen

__all__ = [
    "DEAD",
    "Head",
    "Softmax",
    "Tiling",
    "attend",
    "check_support",
    "in_words",
    "key_index",
    "load",
    "load_page",
    "load_sink",
    "normalize",
    "output",
    "power_of_two",
    "split_extras",
    "visible",
]

# Stands for minus infinity, finite so that DEAD - DEAD is 0 and never NaN.
DEAD = -1e30
LOG2_E = math.log2(math.e)

Ref = Any  # a Pallas reference: pallas exports no public name for it


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one program is cut: M rows of (query, head) pairs against blocks of C keys."""

    M: int
    C: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Head:
    """What is static about the attention of one KV head."""

    G: int
    D: int
    B: int
    scale: float
    sliding_window: int | None
    soft_cap: float | None
    casts_fp8: bool = True
    """Whether the GPU converts float8 where pages hold it; else its bits are taken apart."""

    @property
    def padded_D(self) -> int:
        return max(16, power_of_two(self.D))

    def key(self, dtype: Any) -> str:
        """What its tiles hang on, as the tables of `pallas_kernels.tuning` write it."""
        window = "" if self.sliding_window is None else " window"
        return f"{jnp.dtype(dtype).name} G{self.G} D{self.D} B{self.B}{window}"

    def depth(self, rows: int) -> tuple[jax.Array, jax.Array]:
        """The D index of each element of a [rows, padded_D] tile, and which of them exist."""
        d = lax.broadcasted_iota(jnp.int32, (rows, self.padded_D), 1)
        return d, d < self.D


@dataclass(frozen=True, slots=True)
class Softmax:
    """The running softmax of a tile: o f32[M, D] not yet divided by l, m f32[M] (base 2) and l f32[M]."""

    o: jax.Array
    m: jax.Array
    l: jax.Array  # noqa: E741  the paper's name

    @classmethod
    def empty(cls, M: int, D: int) -> "Softmax":
        return cls(jnp.zeros((M, D), jnp.float32), jnp.full((M,), DEAD, jnp.float32), jnp.zeros((M,), jnp.float32))


jax.tree_util.register_dataclass(Softmax, ["o", "m", "l"], [])


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def check_support(
    q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, scales: tuple[jax.Array, ...], *, max_group: int
) -> None:
    """Raise NotImplementedError unless the Triton kernels can run these shapes and types."""
    (_, H, D), (_, K, B, _) = q.shape, k_pages.shape
    dtypes = (jnp.bfloat16, jnp.float16, jnp.float32)
    allowed = tuple(LARGEST) if scales else (q.dtype,)
    if q.dtype not in dtypes or k_pages.dtype not in allowed or v_pages.dtype != k_pages.dtype:
        names = f"q {q.dtype}, k_pages {k_pages.dtype}, v_pages {v_pages.dtype}, {len(scales)} arrays of scales"
        raise NotImplementedError(
            "the Triton kernels want q and the pages all bfloat16, all float16 or all float32, or pages of int8 or "
            f"uint8 with scales; got {names}"
        )
    if B & (B - 1) or not 16 <= B <= 128:
        raise NotImplementedError(f"the Triton kernels support page sizes 16, 32, 64 and 128; got {B}")
    if D % 8 or D > 256:
        raise NotImplementedError(f"the Triton kernels support head dims up to 256 that are multiples of 8; got {D}")
    group = H // K
    if group > max_group:
        raise NotImplementedError(f"the Triton kernels support up to {max_group} query heads a KV head; got {group}")


def split_extras(k_ref: Ref, extras: tuple[Ref, ...]) -> tuple[tuple[Ref, ...], tuple[Ref, ...]]:
    """The references that not every call has: the scales of keys and values, then the sinks; each may be ()."""
    count = 2 if is_word(k_ref.dtype) else 0
    return extras[:count], extras[count:]


def in_words(pages: jax.Array) -> jax.Array:
    """Pages as kernels read them: those of 8 bits in words of two bytes."""
    return as_words(pages) if pages.dtype in LARGEST else pages


def output(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> Any:
    """An output of a kernel that, under shard_map, varies over the mesh axes that `like` varies over."""
    varying = getattr(jax.typeof(like), "manual_axis_type", None)
    struct: Any = jax.ShapeDtypeStruct  # takes more than its type annotations say
    return struct(shape, dtype) if varying is None else struct(shape, dtype, manual_axis_type=varying)


def attend(
    carry: Softmax,
    q: jax.Array,
    position: jax.Array,
    pages: tuple[Ref, ...],
    where: tuple[jax.Array, jax.Array],
    blocks: tuple[jax.Array, jax.Array],
    stop: jax.Array | None,
    *,
    low: jax.Array | None = None,
    head: Head,
    tiling: Tiling,
) -> Softmax:
    """Run the tile over KV blocks blocks[0] up to blocks[1], each of C keys; returns the new softmax state.

    q: [M, padded_D] with zeros past D; position: i32[M], the last position each row may see; pages: k_pages,
    v_pages, page_table and, of 8 bits, k_scale and v_scale; where: (row of the page table, KV head); stop: keys
    at and past it are never read. stop None promises that every row of the tile sees every key of these blocks,
    and saves the masks. low: no row sees keys before it, and their pages may by now be another sequence's; None
    without a window.
    """
    k_ref, v_ref, table_ref, *scales = pages
    row, kv_head = where
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None  # no tf32

    def step(block: jax.Array, carry: tuple[Softmax, jax.Array]) -> tuple[Softmax, jax.Array]:
        softmax, page = carry
        key_position = block * tiling.C + lax.iota(jnp.int32, tiling.C)
        index, mask = key_index(page, kv_head, key_position, stop, head, tiling.C, words=bool(scales))
        k = _operand(load(k_ref, index, mask), q.dtype, head)
        scores = plt.dot(q, k, trans_b=True, precision=precision)
        if scales:
            scores *= _load_scale(scales[0], page, kv_head, key_position, stop, head)[None, :]
        scores = _capped(scores, head)
        if stop is not None:
            scores = jnp.where(visible(key_position, position, stop, head.sliding_window), scores, DEAD)
        m = jnp.maximum(softmax.m, scores.max(1))
        weights, shrink = jnp.exp2(scores - m[:, None]), jnp.exp2(softmax.m - m)
        v = _operand(load(v_ref, index, mask), q.dtype, head)
        shares = weights
        if scales:
            shares = weights * _load_scale(scales[1], page, kv_head, key_position, stop, head)[None, :]
        if low is not None and tiling.C > head.B:  # else the first block is in a page that is seen
            seen = key_position >= low  # the others may hold NaN, which a weight of 0 keeps
            v, shares = jnp.where(seen[:, None], v, 0), jnp.where(seen[None, :], shares, 0)
        o = softmax.o * shrink[:, None] + plt.dot(shares.astype(v.dtype), v, precision=precision)
        return Softmax(o, m, softmax.l * shrink + weights.sum(1)), page_of(block + 1)

    def page_of(block: jax.Array) -> jax.Array:
        return load_page(table_ref, row, block, blocks[1], stop, head, tiling.C)

    # The page of the next block is fetched a step early: a load whose address hangs on another load of the
    # same step is kept out of the software pipeline.
    softmax: Softmax
    softmax, _ = lax.fori_loop(*blocks, step, (carry, page_of(blocks[0])))
    return softmax


def normalize(softmax: Softmax, sink: jax.Array | None = None) -> jax.Array:
    """The attention output f32[M, D] of a tile; zeros for rows that saw no key. sink: f32[M], see `load_sink`."""
    total = softmax.l if sink is None else softmax.l + jnp.exp2(sink - softmax.m)
    return softmax.o / jnp.where(total == 0, 1, total)[:, None]


def load_sink(sinks: tuple[Ref, ...], head: jax.Array, mask: jax.Array | None = None) -> jax.Array | None:
    """The sinks of some query heads in base 2, float32; None where `sinks`, (the reference,) or (), is empty."""
    if not sinks:
        return None
    return load(sinks[0], (head,), mask).astype(jnp.float32) * LOG2_E


def load_page(
    table_ref: Ref,
    row: jax.Array,
    block: jax.Array,
    end: jax.Array,
    stop: jax.Array | None,
    head: Head,
    C: int,
) -> jax.Array:
    """Page ids of a block of C keys: a scalar where one page holds them all, else i32[C]; 0 where dead."""
    if head.B >= C:
        return plt.load(table_ref.at[row, lax.div(block, head.B // C)], mask=block < end, other=0)
    key_position = block * C + lax.iota(jnp.int32, C)
    live = lax.broadcast(block < end, (C,))
    live = live if stop is None else live & (key_position < stop)
    entry = (lax.broadcast(row, (C,)), key_position >> (head.B.bit_length() - 1))
    return plt.load(table_ref.at[entry], mask=live, other=0)


def key_index(
    page: jax.Array,
    kv_head: jax.Array,
    key_position: jax.Array,
    stop: jax.Array | None,
    head: Head,
    C: int,
    *,
    words: bool = False,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Where the C keys of a block lie in [N, K, B, D], as [C, padded_D], and which elements may be read.

    words: of two bytes each, in [N, K, B, D / 2].
    """
    each = 2 if words else 1
    shape = (C, head.padded_D // each)
    d = lax.broadcasted_iota(jnp.int32, shape, 1)
    mask = None if head.padded_D == head.D else d < head.D // each
    if stop is not None:
        live = lax.broadcast_in_dim(key_position < stop, shape, (0,))
        mask = live if mask is None else mask & live
    if page.ndim:
        page = lax.broadcast_in_dim(page, shape, (0,))
    offset = lax.broadcast_in_dim(key_position & (head.B - 1), shape, (0,))
    return (page, kv_head, offset, d), mask


def _load_scale(
    ref: Ref, page: jax.Array, kv_head: jax.Array, key_position: jax.Array, stop: jax.Array | None, head: Head
) -> jax.Array:
    """The scales f32[C] of a block of keys or values, out of [N, K, B, 1]; 0 where dead."""
    offset = key_position & (head.B - 1)
    mask = None if stop is None else key_position < stop
    return load(ref, (page, kv_head, offset, jnp.zeros_like(offset)), mask)


def _operand(held: jax.Array, dtype: jnp.dtype, head: Head) -> jax.Array:
    """Keys or values for a product with queries of a type: themselves, or their codes without the scale."""
    if not is_word(held.dtype):
        return held
    codes = bytes_of(held)
    if codes.dtype == jnp.uint8 and head.casts_fp8:
        return lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(dtype)
    return widen(codes).astype(dtype)


def load(ref: Ref, index: tuple[jax.Array, ...], mask: jax.Array | None) -> jax.Array:
    """The elements at `index`, zeros where the mask says no."""
    return plt.load(ref.at[index], mask=mask, other=None if mask is None else 0)


def _capped(scores: jax.Array, head: Head) -> jax.Array:
    """Scaled, soft-capped scores times log2(e), ready for exp2."""
    if head.soft_cap is None:
        return scores * (head.scale * LOG2_E)
    # tanh(x) = 1 - 2 / (1 + exp(2x)): right at both infinities, and no branch as in libdevice.
    tanh = 1 - 2 / (1 + jnp.exp2(scores * (2 * LOG2_E * head.scale / head.soft_cap)))
    return tanh * (head.soft_cap * LOG2_E)


def visible(key_position: jax.Array, position: jax.Array, stop: jax.Array, window: int | None) -> jax.Array:
    seen = (key_position[None, :] <= position[:, None]) & (key_position < stop)[None, :]
    if window is not None:
        seen &= key_position[None, :] > position[:, None] - window
    return seen
