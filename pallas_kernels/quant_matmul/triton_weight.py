"""One program's share of a quantized weight: where its codes, scales and zero points lie, and what they stand for.

Codes become numbers of the type that tensor cores multiply, exactly. Knows nothing of rows, splits or sums.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from .tiling import Product, Tiling

__all__ = ["Group", "WeightTile", "load", "widen_fp8", "widen_int4"]

Ref = Any  # a Pallas reference: pallas exports no public name for it

# Bits of a float whose last four are 0 and whose last is worth 1: with a code there it is this float more.
BASES: dict[str, tuple[Any, int, float]] = {
    "bfloat16": (jnp.uint16, 0x4300, 2.0**7),
    "float16": (jnp.uint16, 0x6400, 2.0**10),
    "float32": (jnp.uint32, 0x4B00_0000, 2.0**23),
}
MIDDLE = 8  # what a code of 4 bits without a zero point is counted from


@dataclass(frozen=True, slots=True)
class Group:
    """The scale of the group that a block of inputs lies in, for each output of a tile."""

    scale: jax.Array
    """f32[outputs]"""
    shift: jax.Array | None
    """f32[outputs], the zero point less what `WeightTile.numbers` are counted from."""


jax.tree_util.register_dataclass(Group, ["scale", "shift"], [])


@dataclass(frozen=True, slots=True)
class WeightTile:
    """The outputs from `first` on of the weight in these references; parts of a block are the inputs of the low
    and of the high half of each byte, or all.
    """

    values: Ref
    scale: Ref
    zero: Ref | None
    group_index: Ref | None
    first: jax.Array
    product: Product
    tiling: Tiling
    has_fp8: bool
    """Whether the device converts and multiplies float8."""

    @property
    def dtype(self) -> jnp.dtype:
        """The type of both sides when they are multiplied."""
        wanted = self.product.dtype
        return jnp.dtype(jnp.float16) if wanted == jnp.float8_e4m3fn and not self.has_fp8 else wanted

    @property
    def width(self) -> int:
        """Bytes of an output in a block."""
        return self.tiling.inputs // self.product.codes_per_byte

    def load_group(self, block: jax.Array, end: jax.Array) -> Group:
        """The weights of a block of inputs; zeros from block `end` on."""
        n = self.first + lax.iota(jnp.int32, self.tiling.outputs)
        group = lax.div(block * self.tiling.inputs, self.product.group)
        return self._load_groups((n, lax.broadcast(group, n.shape)), (n < self.product.N) & (block < end))

    def numbers(self, block: jax.Array) -> list[jax.Array]:
        """The codes of each part of a block as numbers, [outputs, width], of which 0 is that without a zero point."""
        return [self._numbers(codes) for codes in self._codes(block)]

    def scaled(self, block: jax.Array) -> list[jax.Array]:
        """The weights of each part of a block, [outputs, width], each scaled by itself."""
        return [self._scaled(codes, block, part) for part, codes in enumerate(self._codes(block))]

    def _scaled(self, codes: jax.Array, block: jax.Array, part: int) -> jax.Array:
        product, shape = self.product, codes.shape
        k = block * self.tiling.inputs + product.codes_per_byte * lax.iota(jnp.int32, self.width) + part
        group = lax.div(k, product.group) if self.group_index is None else self._load_index(k)
        n = self._outputs()
        mask = (n < product.N) & lax.broadcast_in_dim(k < product.K, shape, (1,))
        of = self._load_groups((n, lax.broadcast_in_dim(group, shape, (1,))), mask)
        numbers = self._numbers(codes).astype(jnp.float32)
        return ((numbers if of.shift is None else numbers - of.shift) * of.scale).astype(self.dtype)

    def _load_index(self, k: jax.Array) -> jax.Array:
        """The groups that inputs name. A file with others than there are must not make the kernel read elsewhere."""
        index = load(self.group_index, (k,), k < self.product.K)
        return jnp.clip(index, 0, self.product.G - 1)

    def _load_groups(self, where: tuple[jax.Array, jax.Array], mask: jax.Array) -> Group:
        scale = load(self.scale, where, mask).astype(jnp.float32)
        if self.zero is None:
            return Group(scale, None)
        middle = MIDDLE if self.product.kind == "int4" else 0
        return Group(scale, load(self.zero, where, mask).astype(jnp.float32) - middle)

    def _outputs(self) -> jax.Array:
        return self.first + lax.broadcasted_iota(jnp.int32, (self.tiling.outputs, self.width), 0)

    def _codes(self, block: jax.Array) -> list[jax.Array]:
        """The codes of each part of a block, [outputs, width]; zeros where there is no such weight."""
        product, n = self.product, self._outputs()
        byte = block * self.width + lax.broadcasted_iota(jnp.int32, n.shape, 1)
        mask = None if product.N % self.tiling.outputs == 0 else n < product.N
        if product.K % self.tiling.inputs:
            exists = byte < product.K // product.codes_per_byte
            mask = exists if mask is None else mask & exists
        bytes_read = load(self.values, (n, byte), mask)
        if product.kind != "int4":
            return [bytes_read]
        return [bytes_read & jnp.uint8(15), lax.shift_right_logical(bytes_read, jnp.uint8(4))]

    def _numbers(self, codes: jax.Array) -> jax.Array:
        if self.product.kind == "int4":
            return widen_int4(codes, self.dtype)
        if codes.dtype == self.dtype or self.product.kind == "int8" or self.has_fp8:
            return codes.astype(self.dtype)
        return widen_fp8(codes, self.dtype)


def widen_int4(codes: jax.Array, dtype: jnp.dtype, zero: jax.Array | None = None) -> jax.Array:
    """u8 codes of 4 bits, less their zero points in `dtype` (None: less MIDDLE): exactly, in one subtraction."""
    bits, base, value = BASES[jnp.dtype(dtype).name]
    numbers = lax.bitcast_convert_type(codes.astype(bits) | bits(base), dtype)
    return numbers - (jnp.array(value + MIDDLE, dtype) if zero is None else zero + jnp.array(value, dtype))


def widen_fp8(codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """float8_e4m3fn to a wider type by its bits, exactly but for NaN, for GPUs that have no such conversion."""
    # Shifted into float16's fields the bits are value / 2^8.
    bits = lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.uint16)
    sign, rest = (bits & jnp.uint16(0x80)) << jnp.uint16(8), (bits & jnp.uint16(0x7F)) << jnp.uint16(7)
    half = lax.bitcast_convert_type(sign | rest, jnp.float16) * jnp.float16(256)
    return half if dtype == jnp.float16 else half.astype(jnp.float32).astype(dtype)


def load(ref: Ref, index: tuple[jax.Array, ...], mask: jax.Array | None) -> jax.Array:
    """What lies there, zeros where the mask says no."""
    return plt.load(ref.at[index], mask=mask, other=None if mask is None else jnp.zeros((), ref.dtype))
