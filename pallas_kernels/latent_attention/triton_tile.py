"""The inner loop that both latent kernels share: one tile of queries against a range of blocks of latents.

As in `paged_attention.triton_tile`, but a block is loaded once: it is key and value. 576 is no power of two, which
Triton's blocks must be, so a score is two products, over the 512 that are also the value and the 64 that turn.
Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import Target
from ..paged_attention.triton_tile import (
    DEAD,
    LOG2_E,
    Head,
    Ref,
    Softmax,
    Tiling,
    key_index,
    load,
    load_page,
    power_of_two,
    visible,
)
from ..tuning import tuned

__all__ = ["Latent", "Rows", "attend", "check_support", "choose_tiling"]


@dataclass(frozen=True, slots=True)
class Latent:
    """What is static about the keys: rank, the part that is also the value, rope, the part that turns, page size B."""

    rank: int
    rope: int
    B: int
    scale: float

    @property
    def value(self) -> Head:
        """The first part of a key, as a head of its own."""
        return Head(1, self.rank, self.B, self.scale, None, None)

    @property
    def turned(self) -> Head:
        """The second part, likewise; it begins at `rank`."""
        return Head(1, self.rope, self.B, self.scale, None, None)


@dataclass(frozen=True, slots=True)
class Rows:
    """The tile of a program: `count` of M rows of the queries [T*H, D], from `first` on, so that a row is one query's
    head. Neighbours lie next to each other in memory, which keeps addresses out of the registers.
    """

    first: jax.Array
    count: jax.Array
    M: int

    def index(self, part: Head) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Where the rows lie in an array [T*H, part.D], as [M, padded D], and which elements exist."""
        m = lax.broadcasted_iota(jnp.int32, (self.M, part.padded_D), 0)
        d, exists = part.depth(self.M)
        return (self.first + m, d), (m < self.count) & exists

    def queries(self, ref: Ref, latent: Latent) -> tuple[jax.Array, jax.Array]:
        """Both parts of the queries, [M, rank] and [M, padded rope], zeros where there are none."""
        (row, d), mask = self.index(latent.turned)
        return load(ref, *self.index(latent.value)), load(ref, (row, d + latent.rank), mask)


def check_support(q: jax.Array, pages: jax.Array, rank: int) -> None:
    """Raise NotImplementedError unless the Triton kernels can run these shapes and types."""
    D, B = pages.shape[3], pages.shape[2]
    if q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32) or pages.dtype != q.dtype:
        raise NotImplementedError(
            "the Triton kernels want q and the pages both bfloat16, both float16 or both float32; "
            f"got q {q.dtype}, pages {pages.dtype}"
        )
    if B & (B - 1) or not 16 <= B <= 128:
        raise NotImplementedError(f"the Triton kernels support page sizes 16, 32, 64 and 128; got {B}")
    if rank != power_of_two(rank) or not 16 <= rank <= 512:
        raise NotImplementedError(f"the Triton kernels support latents of 16 to 512, a power of two; got {rank}")
    if (D - rank) % 8 or not 8 <= D - rank <= 128:
        raise NotImplementedError(
            f"the Triton kernels support rotary parts of 8 to 128 that are multiples of 8; got {D - rank}"
        )


def choose_tiling(kernel: str, latent: Latent, pairs: int, dtype: jnp.dtype, target: Target) -> Tiling:
    """Tiles for so many pairs of a query and a head that share their keys. Sums of 64 x 512 fill half of the registers
    of a program, which leaves room where operands lie in shared memory (Hopper on); before, 32 do. No tile spills on
    sm_80 and sm_90a, which a test asserts. float32 has no tensor cores here and holds its operands in registers. Or
    the tuned ones, of as many rows.
    """
    wanted = _choose(pairs, dtype, target)
    key = f"{jnp.dtype(dtype).name} R{latent.rank} B{latent.B} M{wanted.M}"
    return replace(tuned(target.kind, kernel, key, wanted), M=wanted.M)


def _choose(pairs: int, dtype: jnp.dtype, target: Target) -> Tiling:
    if jnp.dtype(dtype) == jnp.float32:
        return Tiling(16, 16, num_warps=4, num_stages=2)
    M = max(16, min(64 if target.has_wgmma else 32, power_of_two(pairs)))
    # Blackwell's tensor cores keep both operands in shared memory: with three stages 245 of its 227 KiB.
    C, stages = (32, 3) if target.capability < (10, 0) else (16, 3)
    return Tiling(M, C, num_warps=4 if M == 16 else 8, num_stages=stages)


def attend(
    carry: Softmax,
    q: tuple[jax.Array, jax.Array],
    position: jax.Array,
    pages: tuple[Ref, Ref],
    row: jax.Array,
    blocks: tuple[jax.Array, jax.Array],
    stop: jax.Array,
    *,
    latent: Latent,
    tiling: Tiling,
) -> Softmax:
    """Run the tile over blocks[0] up to blocks[1], each of C keys; returns the new softmax state.

    q: [M, rank] and [M, padded rope]; position: i32[M], the last position each row may see; pages: the latents
    and page_table; row: of the page table; stop: keys at and past it are never read. Every block is masked: a
    second loop without masks, as paged attention has it, makes this width spill.
    """
    ref, table_ref = pages
    precision = lax.Precision.HIGHEST if q[0].dtype == jnp.float32 else None  # no tf32
    first_head = jnp.int32(0)

    def step(block: jax.Array, carry: tuple[Softmax, jax.Array]) -> tuple[Softmax, jax.Array]:
        softmax, page = carry
        key_position = block * tiling.C + lax.iota(jnp.int32, tiling.C)
        latents = load(ref, *key_index(page, first_head, key_position, stop, latent.value, tiling.C))
        (*where, d), mask = key_index(page, first_head, key_position, stop, latent.turned, tiling.C)
        turned = load(ref, (*where, d + latent.rank), mask)
        scores = plt.dot(q[0], latents, trans_b=True, precision=precision)
        scores += plt.dot(q[1], turned, trans_b=True, precision=precision)
        scores = jnp.where(visible(key_position, position, stop, None), scores * (latent.scale * LOG2_E), DEAD)
        m = jnp.maximum(softmax.m, scores.max(1))
        weights, shrink = jnp.exp2(scores - m[:, None]), jnp.exp2(softmax.m - m)
        o = softmax.o * shrink[:, None] + plt.dot(weights.astype(latents.dtype), latents, precision=precision)
        return Softmax(o, m, softmax.l * shrink + weights.sum(1)), page_of(block + 1)

    def page_of(block: jax.Array) -> jax.Array:
        return load_page(table_ref, row, block, blocks[1], stop, latent.value, tiling.C)

    softmax: Softmax
    softmax, _ = lax.fori_loop(*blocks, step, (carry, page_of(blocks[0])))
    return softmax
