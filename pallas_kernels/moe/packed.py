"""Experts in 8 and 4 bits: what their arrays mean, and the product of some rows with one of them in plain jax.numpy.

All arrays are integers, or floats that XLA:CPU slices as they are: of bfloat16 and the 8-bit floats it would first
widen those of all experts, so their bits are kept instead.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..quant_matmul.xla import quant_matmul_xla

__all__ = ["PackedExperts", "as_scale", "dequantize", "float8_value", "product", "small_float"]


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale", "zero"], meta_fields=["kind"])
@dataclass(frozen=True)
class PackedExperts:
    """(values - zero) * scale: the weights of X experts, outputs first, in G groups of neighbouring inputs."""

    values: jax.Array
    """int8 [X, *outputs, inputs], of "fp8" the bits; or uint8 [X, *outputs, inputs / 2], two codes of 4 bits in a byte,
    that of the even input in the low half."""
    scale: jax.Array
    """[X, *outputs, G] in float32 or float16, in uint16 the bits of bfloat16, or of "mxfp4" in uint8 those of E8M0."""
    zero: jax.Array | None
    """int8[X, *outputs, G]; None means 0, and 8 for "int4"."""
    kind: str
    """ "int8", "fp8", "int4", or "mxfp4" (OCP Microscaling Formats v1.0, sections 5.2 and 5.3)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[X, *outputs, inputs]"""
        *outputs, width = self.values.shape
        return (*outputs, width * 2 if self.has_pairs else width)

    @property
    def has_pairs(self) -> bool:
        return self.kind in ("int4", "mxfp4")

    def arrays(self) -> dict[str, Any]:
        """By name, those that there are; likewise of their shapes and partitions."""
        names = ("values", "scale", "zero")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def expert(self, index: jax.Array) -> "PackedExperts":
        """One of them, its outputs as one axis."""

        def take(array: jax.Array) -> jax.Array:
            flat = array.reshape(array.shape[0], -1, array.shape[-1])
            return lax.dynamic_index_in_dim(flat, index, keepdims=False)

        return jax.tree.map(take, self)


def dequantize(packed: PackedExperts) -> jax.Array:
    """The weights in float32, of the shape of `packed`."""
    values, per_group = packed.values, packed.shape[-1] // packed.scale.shape[-1]

    def spread(of_groups: jax.Array) -> jax.Array:
        return jnp.repeat(of_groups.astype(jnp.float32), per_group, axis=-1)

    if packed.has_pairs:
        values = jnp.stack([values & 15, values >> 4], axis=-1).reshape(packed.shape)
    match packed.kind:
        case "mxfp4":
            codes = small_float(values)
        case "fp8":
            codes = float8_value(values)
        case _:
            codes = values.astype(jnp.float32)
    if packed.zero is not None:
        codes = codes - spread(packed.zero)
    elif packed.kind == "int4":
        codes = codes - 8
    return codes * spread(as_scale(packed.scale))


def product(rows: jax.Array, weight: PackedExperts) -> jax.Array:
    """rows: [C, inputs] times one expert's weight [outputs, inputs]; f32[C, outputs].

    Nothing but this weight is ever written out in the type of the rows.
    """
    values, scale = weight.values, as_scale(weight.scale)
    if weight.kind == "fp8":
        values = lax.bitcast_convert_type(values, jnp.float8_e4m3fn)
    if weight.kind != "mxfp4":
        return quant_matmul_xla(rows, values, scale, weight.zero)
    scale = jnp.repeat(scale, values.shape[1] // scale.shape[1], axis=1)

    def half(rows: jax.Array, codes: jax.Array) -> jax.Array:
        values = (small_float(codes) * scale).astype(rows.dtype)
        precision = "highest" if rows.dtype == jnp.float32 else None
        return jnp.einsum("ck,nk->cn", rows, values, precision=precision, preferred_element_type=jnp.float32)

    # Even and odd inputs apart, so that nothing has to be put in order.
    return half(rows[:, 0::2], values & 15) + half(rows[:, 1::2], values >> 4)


def as_scale(scale: jax.Array) -> jax.Array:
    """A scale of `PackedExperts` in float32. E8M0's exponents have a bias of 127; that of 0 is subnormal."""
    if scale.dtype not in (jnp.uint8, jnp.uint16):
        return scale.astype(jnp.float32)
    wide = scale.astype(jnp.uint32)
    bits = wide << 16 if scale.dtype == jnp.uint16 else jnp.where(wide == 0, jnp.uint32(1 << 22), wide << 23)
    return lax.bitcast_convert_type(bits, jnp.float32)


def small_float(codes: jax.Array) -> jax.Array:
    """u8 codes of E2M1, a sign above two bits of exponent and one of mantissa, to float32.

    In the fields of float16 the same bits are value / 2^14, subnormals included.
    """
    wide = codes.astype(jnp.uint16)
    half = lax.bitcast_convert_type(((wide & 7) << 9) | ((wide & 8) << 12), jnp.float16)
    return half.astype(jnp.float32) * 2.0**14


def float8_value(bits: jax.Array) -> jax.Array:
    """i8 bits of float8_e4m3fn to float32, on GPUs too that have no such type: in float16's fields value / 2^8."""
    wide = bits.astype(jnp.uint16)
    half = lax.bitcast_convert_type(((wide & 0x7F) << 7) | ((wide & 0x80) << 8), jnp.float16)
    return half.astype(jnp.float32) * 2.0**8
