"""Rounding of weights to codes in groups of inputs, on the device. Gradients go straight through it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jserve.batch import pytree
from jserve.quant.written import Rounded

SMALLEST_SCALE = 2.0**-14
"""The least normal number of float16."""
SHRINKS = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Shares of a symmetric group's range that are tried."""


@pytree
@dataclass(frozen=True, slots=True)
class Codes:
    """Whole numbers from 0 in float32, with a scale and a zero point for each group."""

    codes: jax.Array
    """[N, groups, size]"""
    scale: jax.Array
    """[N, groups]"""
    zero: jax.Array
    """[N, groups]"""

    def dequantize(self) -> jax.Array:
        """f32[N, inputs]"""
        return ((self.codes - self.zero[..., None]) * self.scale[..., None]).reshape(len(self.codes), -1)

    def on_host(self) -> Rounded:
        """As it is stored."""
        codes, zero = (np.rint(np.asarray(part)).astype(np.uint8) for part in (self.codes, self.zero))
        return Rounded(codes.reshape(len(codes), -1), np.asarray(self.scale).astype(np.float16), zero)


def round_asymmetric(
    weight: jax.Array, size: int, low: jax.Array | float = 1.0, high: jax.Array | float = 1.0
) -> Codes:
    """To 0..15, from the least to the largest value of a group (and 0, so that it stays 0).

    weight: f32[N, inputs]; low, high: [N, groups], the share of either end that is kept.
    """
    grouped = weight.reshape(len(weight), -1, size)
    least = jnp.minimum(grouped.min(-1), 0) * low
    largest = jnp.maximum(grouped.max(-1), 0) * high
    scale = _in_float16((largest - least) / 15)
    zero = jnp.clip(_round(-least / scale), 0, 15)
    return Codes(jnp.clip(_round(grouped / scale[..., None]) + zero[..., None], 0, 15), scale, zero)


def symmetric_scale(group: jax.Array, middle: jax.Array, importance: jax.Array) -> jax.Array:
    """f32[N], the scales about zero that change one group, [N, size], least.

    middle: the code of zero, half of all. importance: [size], of each input. The range is that of the largest value,
    or a share of it.
    """
    whole = jnp.abs(group).max(-1) * 2 / (2 * middle - 1)

    def error(shrink: jax.Array) -> jax.Array:
        scale = _in_float16(whole * shrink)[:, None]
        changed = (symmetric_codes(group, scale, middle) - middle) * scale - group
        return (changed * changed * importance).sum(-1)

    best = jnp.argmin(jax.lax.map(error, jnp.asarray(SHRINKS)), axis=0)
    return _in_float16(whole * jnp.asarray(SHRINKS)[best])


def symmetric_codes(weight: jax.Array, scale: jax.Array, middle: jax.Array | float) -> jax.Array:
    """Codes about their middle, which is zero."""
    return jnp.clip(jnp.rint(weight / scale) + middle, 0, 2 * middle - 1)


def output_error(change: jax.Array, gram: jax.Array) -> jax.Array:
    """|x change^T|^2 over all tokens x. change: [N, inputs]; gram: [inputs, inputs], the sum of x x^T."""
    return (change * _times(change, gram)).sum()


def half_gradient_error(change: jax.Array, gram: jax.Array) -> jax.Array:
    """The same with the right gradient, at the cost of one product: the Gram matrix is its own transpose."""
    product = _times(change, jax.lax.stop_gradient(gram))
    value = (change * product).sum()
    slope = (2 * change * jax.lax.stop_gradient(product)).sum()
    return slope + jax.lax.stop_gradient(value - slope)


def _times(change: jax.Array, gram: jax.Array) -> jax.Array:
    return jnp.dot(change, gram, precision=jax.lax.Precision.HIGHEST)


def _in_float16(scale: jax.Array) -> jax.Array:
    """The scale as it is stored, and codes are chosen for that."""
    scale = jnp.maximum(scale, SMALLEST_SCALE)
    return scale + jax.lax.stop_gradient(scale.astype(jnp.float16).astype(scale.dtype) - scale)


def _round(x: jax.Array) -> jax.Array:
    return x + jax.lax.stop_gradient(jnp.rint(x) - x)
