"""The threshold of each row in one program, which finds it two bits at a time.

XLA's halvings read the whole batch 62 times, from memory where it is larger than the cache. A program here compares
each element with 3 thresholds at once, so that 16 passes find top-k's and 16 top-p's, over a row of half a megabyte
that stays in the L2 cache. Each thread adds up what it sees in a pass; the program reduces these sums once a pass.
Rows share nothing: a row's threshold does not depend on its neighbours.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import H200, Target
from ..paged_attention.triton_tile import output
from ..tuning import tuned

__all__ = ["kept_threshold_triton"]

WAYS = 4
PASSES = 16
"""WAYS ** PASSES is more than there are floats from 0 to the largest."""

Ref = Any
Sum = Callable[[jax.Array, jax.Array], jax.Array]
"""(a block of elements, f32[elements], a threshold f32[]) to what is added up, of the same shape."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Elements that are compared at once: with 3 thresholds 24 comparisons a thread."""

    num_warps: int = 16
    elements_a_thread: int = 8

    @property
    def block(self) -> int:
        return 32 * self.num_warps * self.elements_a_thread


def kept_threshold_triton(
    mass: jax.Array, top_k: jax.Array, top_p: jax.Array, *, target: Target = H200, interpret: bool = False
) -> jax.Array:
    """Arguments and result as in `kept_threshold`. Raises NotImplementedError where mass is not float32."""
    if mass.dtype != jnp.float32:
        raise NotImplementedError(f"the Triton kernel wants mass in float32; got {mass.dtype}")
    rows, vocab = mass.shape
    tiling = tuned(target.kind, "kept_threshold", f"vocab{1 << (vocab - 1).bit_length()}", Tiling())
    threshold: jax.Array = pl.pallas_call(
        functools.partial(_kernel, vocab=vocab, block_size=tiling.block),
        grid=(rows,),
        out_shape=output((rows,), jnp.float32, mass),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=1),
        interpret=interpret,
        name="kept_threshold",
    )(mass, top_k.astype(jnp.int32), top_p.astype(jnp.float32))
    return threshold


def _kernel(mass_ref: Ref, k_ref: Ref, p_ref: Ref, out_ref: Ref, *, vocab: int, block_size: int) -> None:
    row = pl.program_id(0)
    k, p = plt.load(k_ref.at[row]), plt.load(p_ref.at[row])
    blocks = -(-vocab // block_size)

    def load(block: jax.Array) -> jax.Array:
        """f32[block_size]; -1, below every threshold, past the end."""
        place = block * block_size + lax.iota(jnp.int32, block_size)
        return plt.load(mass_ref.at[row, place], mask=place < vocab, other=-1.0)

    def total(add: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return lax.fori_loop(0, blocks, lambda block, sums: sums + add(load(block)), nothing).sum(0)

    nothing = jnp.zeros((block_size,), jnp.float32)
    largest = lax.fori_loop(0, blocks, lambda block, so_far: jnp.maximum(so_far, load(block)), nothing).max(0)

    def search(active: jax.Array, add: Sum, needed: jax.Array) -> jax.Array:
        """The largest threshold at which the sum of `add` is still what is needed; 0 where not active."""

        def narrow(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds  # as bits, which are ordered as the floats are; low is good, high is not
            step = lax.div(high - low + (WAYS - 1), jnp.int32(WAYS))
            bits = [low + step * way for way in range(1, WAYS)]
            thresholds = [lax.bitcast_convert_type(each, jnp.float32) for each in bits]

            def count(block: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                x = load(block)
                return tuple(sums + add(x, threshold) for sums, threshold in zip(so_far, thresholds, strict=True))

            # One array a threshold: one of both axes would change its layout, through shared memory, in each block.
            counts = lax.fori_loop(0, blocks, count, (nothing,) * len(bits))
            steps = jnp.int32(0)
            for each, sums in zip(bits, counts, strict=True):
                steps += ((sums.sum(0) >= needed) & (each < high)).astype(jnp.int32)
            low += step * steps
            return low, jnp.minimum(low + step, high)

        high = lax.bitcast_convert_type(largest, jnp.int32) + 1
        passes = active.astype(jnp.int32) * PASSES
        low, _ = lax.fori_loop(0, passes, narrow, (jnp.int32(0), high))
        return lax.bitcast_convert_type(low, jnp.float32)

    # A count is exact in float32: no vocabulary has 2^24 tokens.
    kth = search(k < vocab, lambda x, t: jnp.where(x >= t, 1.0, 0.0), k.astype(jnp.float32))
    everything = total(lambda x: jnp.where(x >= kth, x, 0.0))
    nucleus = search(p < 1, lambda x, t: jnp.where((x >= t) & (x >= kth), x, 0.0), p * everything)
    plt.store(out_ref.at[row], jnp.maximum(kth, nucleus))
