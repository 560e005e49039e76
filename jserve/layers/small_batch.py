"""Products of one or two rows with bfloat16 weights on a CPU, at the speed of the memory, where XLA has to do it.

XLA:CPU has no fast program for them: a matvec of bfloat16 is emitted value by value, a reduction is not vectorised
along what it sums, and a conversion that many readers share is written out as float32 first. Here the weights are
the bits of bfloat16 in uint16, [*outputs, inputs], and the sum is written out as additions of slices: one loop,
vectorised over `LANES` inputs, that reads each weight once, widens it in registers and keeps float32 throughout.
"""

import jax
import jax.numpy as jnp

LANES = (32, 64, 128, 256, 512, 16)
MOST_TERMS = 48


def as_float32(bits: jax.Array) -> jax.Array:
    """uint16 bits of bfloat16 to the same values in float32."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def product(x: jax.Array, bits: jax.Array) -> jax.Array:
    """x: f32[T, inputs], bits: u16[*outputs, inputs]; f32[T, *outputs]. Each row is summed in the same order."""
    tokens, inputs = x.shape
    outputs = bits.shape[:-1]
    lanes = _lanes(inputs)
    if lanes is None:
        return jnp.tensordot(x, as_float32(bits), (1, bits.ndim - 1), precision=jax.lax.Precision.HIGHEST)
    weight = bits.reshape(-1, inputs // lanes, lanes)
    rows = x.reshape(tokens, inputs // lanes, lanes)
    sums = jnp.zeros((), jnp.float32)
    for term in range(inputs // lanes):
        sums = sums + as_float32(weight[:, term])[:, None] * rows[None, :, term]
    ones = jnp.ones((lanes,), jnp.float32)
    y = jnp.dot(sums.reshape(-1, lanes), ones, precision=jax.lax.Precision.HIGHEST)
    return y.reshape(-1, tokens).T.reshape(tokens, *outputs)


def _lanes(inputs: int) -> int | None:
    """The fewest lanes (but 16 last) that leave no more than MOST_TERMS additions to write out."""
    return next((n for n in LANES if inputs % n == 0 and inputs // n <= MOST_TERMS), None)
