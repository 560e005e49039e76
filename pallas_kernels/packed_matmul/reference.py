"""The definition of a product with a packed weight: decode to float32, multiply, round nothing but what is said."""

import jax
import jax.numpy as jnp

from .weight import CODINGS, ROUNDED_INPUTS, TILE, PackedWeight

__all__ = ["dequantize", "dequantize_rows", "reference", "round_groups"]


def reference(x: jax.Array, weight: PackedWeight, *, activations: str = "float") -> jax.Array:
    """x: [T, K]; arguments as in `packed_matmul`. Returns f32[T, N]."""
    rows = x.astype(jnp.float32)
    if activations == "int8":
        rows = round_groups(rows)
    return jnp.einsum("tk,nk->tn", rows, dequantize(weight), precision="highest")


def round_groups(x: jax.Array) -> jax.Array:
    """f32[T, K] with every ROUNDED_INPUTS neighbours rounded to 255 values about zero."""
    grouped = x.reshape(x.shape[0], -1, ROUNDED_INPUTS)
    scale = jnp.abs(grouped).max(-1, keepdims=True) * jnp.float32(1 / 127)
    return (jnp.round(grouped / jnp.where(scale == 0, 1, scale)) * scale).reshape(x.shape)


def dequantize(weight: PackedWeight) -> jax.Array:
    """f32[N, K]"""
    values = _decode(weight)
    return values.swapaxes(1, 2).reshape(weight.outputs, weight.inputs)


def dequantize_rows(weight: PackedWeight, rows: jax.Array) -> jax.Array:
    """f32[T, K]: the outputs i32[T], which may be out of bounds: the nearest is taken."""
    rows = jnp.clip(rows, 0, weight.outputs - 1)
    one = {
        name: jnp.expand_dims(jnp.asarray(array).at[rows // TILE, :, rows % TILE].get(mode="promise_in_bounds"), 2)
        for name, array in weight.arrays().items()
    }
    absent = dict.fromkeys(("high", "scale_codes", "minimum", "minimum_codes"))
    return _decode(PackedWeight(**{**absent, **one}, coding=weight.coding))[..., 0]  # type: ignore[arg-type]


def _decode(weight: PackedWeight) -> jax.Array:
    """f32[tiles, K, outputs of a tile]"""
    coding = CODINGS[weight.coding]
    codes = _plane(weight.codes, coding.planes[0])
    if weight.high is not None:
        codes |= _plane(weight.high, coding.planes[1]) << coding.planes[0]
    if coding.table:
        values = jnp.asarray(coding.table, jnp.float32)[codes]
    else:
        values = codes.astype(jnp.float32) - coding.middle(weight.has_minimum)
    inputs = values.shape[1]
    scale = _spread(weight.scale, weight.scale_codes, inputs)
    if weight.minimum is not None:
        return values * scale + _spread(weight.minimum, weight.minimum_codes, inputs)
    if weight.minimum_codes is not None:  # a zero point: taken off before anything is rounded
        values = values - _each(weight.minimum_codes.astype(jnp.float32), inputs)
    return values * scale


def _plane(plane: jax.Array, bits: int) -> jax.Array:
    """u8[tiles, rows, outputs, 4] to the codes u8[tiles, K, outputs]."""
    shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None, None]
    codes = (plane[:, :, None] >> shifts) & ((1 << bits) - 1)  # [tiles, rows, quads, outputs, 4]
    tiles, _, _, outputs, _ = codes.shape
    return codes.swapaxes(3, 4).reshape(tiles, -1, outputs)


def _spread(scale: jax.Array, factors: jax.Array | None, inputs: int) -> jax.Array:
    """What groups have, for each of their inputs: f32[tiles, inputs, outputs]."""
    wide = scale.astype(jnp.float32)
    if factors is not None:
        wide = _each(wide, factors.shape[1]) * factors.astype(jnp.float32)
    return _each(wide, inputs)


def _each(of_groups: jax.Array, size: int) -> jax.Array:
    """[tiles, groups, outputs] to [tiles, size, outputs]."""
    return jnp.repeat(of_groups, size // of_groups.shape[1], axis=1, total_repeat_length=size)
