"""Products of a few rows with integers of 8 or 4 bits on a CPU, at the speed of the memory.

XLA:CPU would widen the whole weight to float32 in memory first. Here the sum is written out as additions of
slices: one loop, vectorised over lanes of inputs, that reads each byte once and widens it in registers.
"""

import jax
import jax.numpy as jnp

__all__ = ["small_batch_matmul"]

LANES = (32, 64, 128, 256, 512, 16)
MOST_TERMS = 48


def small_batch_matmul(x: jax.Array, values: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array | None:
    """f32[T, N], arguments as in `quant_matmul`; None where shapes or types do not suit."""
    packed = values.dtype == jnp.uint8
    if not packed and values.dtype != jnp.int8:
        return None
    (outputs, size), groups = values.shape, scale.shape[1]
    lanes = _lanes(size, size // groups)
    if lanes is None:
        return None
    rows = x.astype(jnp.float32)
    parts = [rows[:, 0::2], rows[:, 1::2]] if packed else [rows]
    terms = [part.reshape(-1, size // lanes, lanes) for part in parts]
    chunks = values.reshape(outputs, size // lanes, lanes)
    whole = None if groups > 1 else scale.astype(jnp.float32)
    sums = jnp.zeros((), jnp.float32)
    for term in range(size // lanes):
        factor = _of_lanes(scale.astype(jnp.float32), term, lanes, size) if whole is None else 1.0
        shift: jax.Array | int = 8 if packed else 0
        if zero is not None:
            shift = _of_lanes(zero.astype(jnp.int32), term, lanes, size)
        for codes, row in zip(_codes(chunks[:, term], packed), terms, strict=True):
            weight = (codes - shift).astype(jnp.float32) * factor
            sums = sums + weight[:, None] * row[None, :, term]
    ones = jnp.ones((lanes,), jnp.float32)
    y = jnp.dot(sums.reshape(-1, lanes), ones, precision=jax.lax.Precision.HIGHEST).reshape(outputs, -1)
    return (y if whole is None else y * whole).T


def _codes(chunk: jax.Array, packed: bool) -> list[jax.Array]:
    wide = chunk.astype(jnp.int32)
    return [wide & 15, wide >> 4] if packed else [wide]


def _of_lanes(of_groups: jax.Array, term: int, lanes: int, size: int) -> jax.Array:
    """[N, G] to what belongs to the lanes of a term, [N, 1] or [N, lanes]."""
    each = size // of_groups.shape[1]
    first = term * lanes // each
    if each >= lanes:
        return of_groups[:, first : first + 1]
    return jnp.repeat(of_groups[:, first : first + lanes // each], each, axis=1, total_repeat_length=lanes)


def _lanes(size: int, each: int) -> int | None:
    """The fewest lanes (but 16 last) that leave no more than MOST_TERMS terms and fit the groups of `each` bytes."""
    return next(
        (n for n in LANES if size % n == 0 and size // n <= MOST_TERMS and (each % n == 0 or n % each == 0)),
        None,
    )
